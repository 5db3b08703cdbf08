"""Generalized Gaussian initialization, in the manner of ``torch.nn.init``.

    gct.init.apply(model, shape=0.8)                         # one shape for all weights
    gct.init.apply(model, shape={"embedding": 1.0, "attention": 0.8, "mlp": 1.2})
    gct.init.generalized_gaussian_(layer.weight, shape=0.8)  # one tensor

    trained = gct.init.from_statistics("model.safetensors")  # or a model, or its state dict
    gct.init.apply(model, shape=trained)                     # with the shapes measured there

A shape of 2 is normal, 1 is Laplace; smaller ones have a sharper peak and heavier tails. The
variance is the same for every shape: that of Glorot's and He's rules, gain^2 / fan.
docs/methods.md tells what of this is the paper's (arXiv 2506.00486) and what is not.
"""

from gct.init._apply import apply, from_statistics, generalized_gaussian_
from gct.init._rule import RESIDUAL_OUTPUTS
from gct.init._statistics import Statistics, TensorStatistics
from gct.init._weights import ROLES

__all__ = [
    "RESIDUAL_OUTPUTS",
    "ROLES",
    "Statistics",
    "TensorStatistics",
    "apply",
    "from_statistics",
    "generalized_gaussian_",
]
