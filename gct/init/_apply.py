"""The functions of ``gct.init``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from gct._models import check_model
from gct._patterns import as_tuple
from gct.distribution import GeneralizedGaussian
from gct.init._by_name import check_patterns, number
from gct.init._draws import Draws, check_fillable
from gct.init._rule import ByRole, Mode, Rule, distribution, rule_std
from gct.init._statistics import Statistics, measure
from gct.init._weights import find, matches, refuse_flattened

__all__ = ["apply", "from_statistics", "generalized_gaussian_"]


def generalized_gaussian_(
    tensor: Tensor,
    shape: float = 1.0,
    gain: float = 1.0,
    mode: Mode = "fan_in",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a weight with generalized Gaussian draws of mean 0 and variance gain^2 / fan.

    The scale is a = gain sqrt(Gamma(1/b) / (fan Gamma(3/b))) for shape b, which makes the variance
    the same for all shapes: shape 2 with ``gain=math.sqrt(2)`` is He's rule, shape 2 with
    ``mode="fan_avg"`` Glorot's.

    Args:
        tensor: float16, bfloat16, float32 or float64, two dimensions or more, on any device. Read
            as torch.nn.init does: (outputs, inputs, *kernel). Hand over ``weight.T`` where inputs
            come first, or use ``apply``, which knows the layers. A tensor on the meta device stays
            as it is. For a DTensor collective over its mesh: the whole has the values that the
            unsharded tensor would have with the generator of the mesh's first rank.
        shape: exponent of the density, from 0.1 to 10.
        gain: standard deviation times the square root of the fan, at least 0
            (``torch.nn.init.calculate_gain``).
        mode: which fan: inputs of an output, outputs of an input, or the mean of both.
        generator: source of all randomness, torch's default one on the CPU if None; the draws are
            made on the generator's device, on the tensor's if None. The same state gives the same
            values, whatever the sharding and, up to rounding, the dtype.

    Returns:
        tensor

    Raises:
        TypeError: not a dense floating point tensor.
        ValueError: fewer than two dimensions, a number out of range, an unknown mode, a DTensor
            with a Partial placement.
    """
    check_fillable(tensor, "tensor")
    if tensor.numel() == 0:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    fans = nn.init._calculate_fan_in_and_fan_out(tensor)
    Draws(generator).fill_(tensor, distribution(shape, rule_std(number("gain", gain), fans, mode)))
    return tensor


def apply(
    model: nn.Module,
    shape: ByRole | Statistics | None = None,
    *,
    gain: ByRole | None = None,
    std: ByRole | Statistics | None = None,
    mode: Mode = "fan_in",
    residual_depth_scaling: bool | str | Sequence[str] = True,
    layers: int | None = None,
    exclude: str | Sequence[str] = (),
    zero_biases: bool = True,
    paper: bool = False,
    generator: torch.Generator | None = None,
) -> dict[str, GeneralizedGaussian]:
    """Initialize a model's weights with generalized Gaussian draws.

    Weights of linear, convolution (transposed and grouped too), embedding and multi-head attention
    layers, of transformers' Conv1D, and two-dimensional parameters called ``weight`` in modules of
    unknown classes get the variance gain^2 / fan; an embedding's fan is its width in every mode,
    and its padding row becomes 0. Biases of these layers become 0. Norms and all other parameters
    stay as they are. A tied weight is drawn once, as an embedding if it is one.

    Three arguments take a number for all weights or a mapping. Its keys are names, fnmatch
    patterns of names, or roles: ``"embedding"``, ``"conv"``, ``"attention"`` and ``"mlp"`` by the
    layer's name, ``"linear"`` for the other matrices. A full name comes first, then the first key
    that fits, in the mapping's order; a weight that none fits gets the default.

    Args:
        model: on any devices. On the meta device nothing happens, as with torch.nn.init; after
            ``to_empty`` call it again and initialize the rest (docs/methods.md). Parameters sharded
            by ``fully_shard`` or tensor parallelism (DTensor) get the values of the unsharded
            model; all ranks make the same call. Call it before DistributedDataParallel is made,
            which then copies rank 0's values to all.
        shape: exponent of the density, 0.1 to 10; default 1, with ``paper`` 2. Or what
            ``from_statistics`` returned: the shape measured on the weight of the same name, else
            the median of its role, else (no weight of that role was measured) 1. Names are matched
            whatever stands there: an embedding gets a linear layer's shape if it has its name.
        gain: at least 0; default 1, with ``paper`` sqrt(2).
        std: standard deviation in place of gain / sqrt(fan) (so no gain beside a number), such as
            ``{"embedding": 0.02}``. Or what ``from_statistics`` returned: the one measured on the
            weight of the same name and size, which depth scaling leaves alone; else the rule.
        mode: which fan: inputs of an output, outputs of an input, or the mean of both.
        residual_depth_scaling: divide the standard deviation of weights that write to the residual
            stream by sqrt(2 layers), as GPT-2 does. True: those in numbered blocks with a name
            in ``RESIDUAL_OUTPUTS``; or your own patterns.
        layers: number of a stack's blocks; by default counted in the names, stack by stack.
        exclude: fnmatch patterns of names to leave as they are, biases too.
        zero_biases: False leaves the biases as they are.
        paper: the authors' published rule and nothing else: every parameter of two dimensions gets
            the variance gain^2 / n with n = ``parameter.shape[0]``; of the others, those with
            "weight" in their names become 1 and those with "bias" 0. Beware: convolution kernels
            become all ones, and so does every other weight of more than two dimensions; n is the
            number of outputs for torch.nn.Linear but of inputs for transformers' Conv1D, and the
            vocabulary for an embedding; there is no depth scaling. Takes a number for ``shape`` and
            ``gain`` (gain^2 is the authors' xi: 2 for ReLU, 1 for sigmoid or none), and
            ``generator``.
        generator: as for ``generalized_gaussian_``.

    Returns:
        What each weight was drawn from, by name, in the model's order (biases left out).

    Raises:
        TypeError, ValueError: model is no module, an argument is out of range or names nothing in
            the model, or a parameter can't be filled: flattened by FullyShardedDataParallel,
            quantized, lazy, a DTensor with a Partial placement. Nothing has been changed then.
    """
    check_model(model)
    excluded = as_tuple("exclude", exclude)
    if paper:
        others = (std, mode, residual_depth_scaling, layers, excluded, zero_biases)
        if others != (None, "fan_in", True, None, (), True):
            raise ValueError("paper=True takes shape, gain and generator and nothing else")
        return _apply_paper(model, shape, gain, generator)
    everything = find(model)
    check_patterns("exclude", excluded, everything)
    chosen = [w for w in everything if not any(matches(w.names, p) for p in excluded)]
    weights = [weight for weight in chosen if not weight.is_bias]
    biases = [weight for weight in chosen if weight.is_bias and zero_biases]
    for each in weights + biases:
        each.check()
    rule = Rule(weights, everything, shape, gain, std, mode, residual_depth_scaling, layers)
    result = {weight.names[0]: rule.of(weight) for weight in weights}
    draws = Draws(generator)
    for weight in weights:
        draws.fill_(weight.parameter, result[weight.names[0]], weight.zero_row)
    with torch.no_grad():
        for bias in biases:
            bias.parameter.zero_()
    return result


def _apply_paper(
    model: nn.Module,
    shape: ByRole | Statistics | None,
    gain: ByRole | None,
    generator: torch.Generator | None,
) -> dict[str, GeneralizedGaussian]:
    b = number("shape", 2.0 if shape is None else shape)
    xi = number("gain", math.sqrt(2.0) if gain is None else gain) ** 2
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        refuse_flattened(name)
        check_fillable(parameter, name)
    matrices = {name: p for name, p in parameters.items() if p.dim() == 2}
    result = {name: distribution(b, math.sqrt(xi / p.shape[0])) for name, p in matrices.items()}
    draws = Draws(generator)
    for name, parameter in matrices.items():
        draws.fill_(parameter, result[name])
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name not in matrices and "weight" in name:
                parameter.fill_(1.0)
            elif name not in matrices and "bias" in name:
                parameter.zero_()
    return result


def from_statistics(
    source: nn.Module | Mapping[str, Tensor] | str | PathLike[str], *, min_numel: int = 1024
) -> Statistics:
    """Measure the shapes of trained weights, to initialize another model alike.

    Args:
        source: a model (collective for sharded ones), a state dict, or the path of a checkpoint:
            .safetensors, a folder of them, or what torch.save wrote (.pt, .pth, .bin, .ckpt; read
            with weights_only=True). A state dict inside a checkpoint is found under "state_dict",
            "model_state_dict", "model" or "module". Without a model, roles are guessed by name.
        min_numel: leave out smaller tensors; at 1024 elements the standard error of the shape is
            0.06 at shape 1. Of tensors with more than 2^20 elements that many are looked at,
            chosen at random, the same ones each time.

    Returns:
        Shape and standard deviation by tensor, for ``apply(model, shape=..., std=...)``; prints as
        a table, ``save`` and ``load`` as JSON.

    Raises:
        TypeError: source is something else, or a tensor has a dtype that ``gct.fit`` refuses.
        OSError: the file can't be opened.
        ValueError: a file that is broken or whose loading would run code, no tensors in it, NaN or
            infinity in one, parameters flattened by FullyShardedDataParallel.
        ImportError: a .safetensors file without the safetensors package.
    """
    return measure(source, min_numel)
