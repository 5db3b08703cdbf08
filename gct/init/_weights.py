"""Which parameters of a model are weights to draw, what they do there, and their fans."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from gct._models import clean_name
from gct.init._draws import check_fillable

__all__ = ["ROLES", "Weight", "clean_names", "find", "matches", "refuse_flattened", "role_of_name"]

ROLES = ("embedding", "attention", "mlp", "conv", "linear")
_BIAS = "bias"

# How GPT-2, Llama, NeoX, BERT, T5, OPT, timm and torch.nn.Transformer name these layers.
_EMBEDDING = re.compile(r"emb|(^|\.)(wte|wpe|tokens?|positions?)\.")
_ATTENTION = re.compile(r"attn|attention|(^|\.)(in_proj_weight|qkv|[qkvo]_proj|w[qkv])(\.|$)")
_MLP = re.compile(
    r"mlp|ffn|feed_?forward|expert|intermediate|denserelu"
    r"|(^|\.)(fc[12]|c_fc|(up|down|gate)(_proj)?|linear[12]|w[123io]|output\.dense)\."
)
_MULTIHEAD = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")

_UNFLATTEN = (
    "FullyShardedDataParallel flattens parameters: initialize the model before it is wrapped, or "
    "inside FullyShardedDataParallel.summon_full_params(model), or use fully_shard"
)


@dataclass(frozen=True)
class Weight:
    """A weight or bias under all the names that it has: several if it is tied or wrapped."""

    names: tuple[str, ...]
    parameter: Tensor
    role: str
    dimensions: int  # that its layer expects
    inputs_first: bool = False  # dimension 0 runs over inputs: transposed convolution, HF Conv1D
    groups: int = 1
    zero_row: int | None = None  # an embedding's padding

    @property
    def is_bias(self) -> bool:
        return self.role == _BIAS

    def check(self) -> None:
        """Raises TypeError or ValueError if it can't be filled: flattened, lazy, quantized."""
        check_fillable(self.parameter, self.names[0])
        if self.parameter.dim() != self.dimensions:
            raise ValueError(
                f"{self.names[0]}: its layer's weight has {self.dimensions} dimensions, but it has "
                f"shape {tuple(self.parameter.shape)}; {_UNFLATTEN}"
            )

    def fans(self) -> tuple[int, int]:
        """Weights that feed an output, weights that an input feeds; strides are not looked at.

        An embedding gives its outputs one row as it is: both are its width (docs/methods.md).
        """
        first, second = self.parameter.shape[:2]
        if self.role == "embedding":
            return second, second
        field = math.prod(self.parameter.shape[2:])
        across, along = first // self.groups * field, second * field
        return (across, along) if self.inputs_first else (along, across)


def find(model: nn.Module) -> list[Weight]:
    """All weights and biases, each once, in the model's order.

    Weights are those of linear, convolution, embedding and attention layers, and any parameter
    called ``weight`` with two dimensions in a module that is no norm. Biases are those of the
    same modules. Everything else is left out. A tied weight is an embedding if any use is.

    Raises:
        ValueError: FullyShardedDataParallel has flattened the parameters.
    """
    uses = list(_uses(model))
    merged: dict[int, Weight] = {}
    for use, name in zip(uses, clean_names([use.names[0] for use in uses]), strict=True):
        known = merged.get(id(use.parameter), use)
        leading = use if use.role == "embedding" and known.role != "embedding" else known
        names = dict.fromkeys((*(() if known is use else known.names), name, *use.names))
        merged[id(use.parameter)] = replace(leading, names=tuple(names))
    return list(merged.values())


def _uses(model: nn.Module) -> Iterator[Weight]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        parameters = {dot + k: p for k, p in module._parameters.items() if p is not None}
        for name in parameters:
            refuse_flattened(name)
        weights = list(_weights_of(module, dot, parameters))
        yield from weights
        for name in (dot + "bias", dot + "in_proj_bias") if weights else ():
            if name in parameters:
                yield Weight((name,), parameters[name], _BIAS, dimensions=1)


def _weights_of(module: nn.Module, dot: str, parameters: Mapping[str, Tensor]) -> Iterator[Weight]:
    if isinstance(module, nn.MultiheadAttention):
        for name in [dot + short for short in _MULTIHEAD if dot + short in parameters]:
            yield Weight((name,), parameters[name], "attention", 2)
        return
    name = dot + "weight"
    weight = parameters.get(name)
    if weight is None:
        return
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield Weight((name,), weight, "embedding", 2, zero_row=module.padding_idx)
    elif isinstance(module, _ConvNd):
        dimensions = 2 + len(module.kernel_size)
        inputs_first = isinstance(module, _ConvTransposeNd)
        yield Weight((name,), weight, "conv", dimensions, inputs_first, module.groups)
    elif isinstance(module, nn.Linear) or _is_matrix(module, weight):
        # transformers' Conv1D, found by name so that transformers need not be there.
        inputs_first = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
        in_attention = isinstance(module, NonDynamicallyQuantizableLinear)  # MultiheadAttention's
        role = "attention" if in_attention else _linear_role(name)
        yield Weight((name,), weight, role, 2, inputs_first)


def _is_matrix(module: nn.Module, weight: Tensor) -> bool:
    """A linear layer of somebody's own making, as far as one can tell."""
    is_norm = "norm" in type(module).__name__.lower()
    return not is_norm and weight.is_floating_point() and weight.dim() == 2


def role_of_name(name: str, dimensions: int) -> str | None:
    """The role of a checkpoint's tensor by its name alone, None if it is no weight."""
    if dimensions < 2 or not name.endswith("weight"):
        return None
    if dimensions > 2:
        return "conv"
    return "embedding" if _EMBEDDING.search(name.lower()) else _linear_role(name)


def _linear_role(name: str) -> str:
    name = name.lower()
    if _ATTENTION.search(name):
        return "attention"
    return "mlp" if _MLP.search(name) else "linear"


def clean_names(names: Sequence[str]) -> list[str]:
    """The names without what wrappers put in; DDP's "module." goes if all names have it."""
    cleaned = [clean_name(name) for name in names]
    if cleaned and all(name.startswith("module.") for name in cleaned):
        cleaned = [name.removeprefix("module.") for name in cleaned]
    return cleaned


def matches(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def refuse_flattened(name: str) -> None:
    if name.endswith("_flat_param"):
        raise ValueError(f"{name}: can't tell the layers' weights apart; {_UNFLATTEN}")
