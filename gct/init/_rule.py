"""The distribution of each weight: shape, fan, gain, depth."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from gct._patterns import as_tuple
from gct.distribution import GeneralizedGaussian
from gct.init._by_name import ByName, check_patterns
from gct.init._statistics import Statistics
from gct.init._weights import Weight, matches

__all__ = ["RESIDUAL_OUTPUTS", "ByRole", "Mode", "Rule", "distribution", "rule_std"]

Mode: TypeAlias = Literal["fan_in", "fan_out", "fan_avg"]
ByRole: TypeAlias = float | Mapping[str, float]

RESIDUAL_OUTPUTS = (
    "*.c_proj.weight",  # GPT-2, nanoGPT
    "*.o_proj.weight",  # Llama and its kin
    "*.down_proj.weight",
    "*.out_proj.weight",  # torch.nn.Transformer, OPT
    "*.linear2.weight",
    "*.fc2.weight",
    "*attn.proj.weight",  # timm
    "*attention.dense.weight",  # GPT-NeoX
    "*.dense_4h_to_h.weight",
    "*.output.dense.weight",  # BERT, ViT: of attention and of the MLP
    "*.wo.weight",  # Llama's own code, T5
    "*Attention.o.weight",  # T5
    "*.w2.weight",
    "*attention.out.weight",  # examples/model.py
    "*.down.weight",
)
"""Names of layers that write to a transformer's residual stream, as fnmatch patterns."""

# The first number in a parameter's name is its block's: "transformer.h.3.", "encoder_layer_0.".
_BLOCK = re.compile(r"(?P<stack>(?:[^.]+\.)*?(?:[^.]*_)?)(?P<number>\d+)\.")


class Rule:
    """Shape and standard deviation of each weight after the arguments of ``apply``.

    Args:
        weights: those to initialize; every key of a mapping has to fit one of them.
        model_weights: all of the model's, whose names count the layers.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        model_weights: Sequence[Weight],
        shape: ByRole | Statistics | None,
        gain: ByRole | None,
        std: ByRole | Statistics | None,
        mode: Mode,
        residual: bool | str | Sequence[str],
        layers: int | None,
    ) -> None:
        for argument, given in (("shape", shape), ("std", std)):
            if isinstance(given, Statistics) and not given.tensors:
                raise ValueError(
                    f"{argument}: these statistics are of no tensor at all; from_statistics leaves "
                    "out those with fewer than min_numel elements"
                )
        if gain is not None and isinstance(std, numbers.Real):
            raise ValueError(
                f"std={std} is that of every weight, which leaves nothing to gain: give one of the "
                "two, or a mapping for std"
            )
        self._mode = mode
        self._shape = _shapes(shape, weights)
        self._gain = _checked("gain", gain, weights)
        self._measured = std.tensors if isinstance(std, Statistics) else {}
        self._std = _checked("std", None if isinstance(std, Statistics) else std, weights)
        self._divisors = _depth_divisors(model_weights, residual, layers)

    def of(self, weight: Weight) -> GeneralizedGaussian:
        shape = self._shape.of(weight)
        return distribution(1.0 if shape is None else shape, self._std_of(weight))

    def _std_of(self, weight: Weight) -> float:
        for measured in filter(None, map(self._measured.get, weight.names)):
            if measured.numel == weight.parameter.numel():  # another width has another fan
                return measured.std
        std = self._std.of(weight)
        if std is None:
            gain = self._gain.of(weight)
            std = rule_std(1.0 if gain is None else gain, weight.fans(), self._mode)
        return std / self._divisors.get(weight.names[0], 1.0)


def distribution(shape: float, std: float) -> GeneralizedGaussian:
    return GeneralizedGaussian(shape, std / GeneralizedGaussian(shape, 1.0).std)


def rule_std(gain: float, fans: tuple[int, int], mode: Mode) -> float:
    """gain / sqrt(fan); 0 for a weight without elements."""
    choices = {"fan_in": fans[0], "fan_out": fans[1], "fan_avg": 0.5 * sum(fans)}
    if mode not in choices:
        raise ValueError(f"mode: expected one of {', '.join(choices)}, got {mode!r}")
    fan = choices[mode]
    return gain / math.sqrt(fan) if fan else 0.0


def _shapes(value: ByRole | Statistics | None, weights: Sequence[Weight]) -> ByName:
    if isinstance(value, Statistics):  # of another model, whose names need not be here
        names = {name: measured.shape for name, measured in value.tensors.items()}
        return ByName("shape", names | value.roles)
    return _checked("shape", value, weights)


def _checked(argument: str, value: ByRole | None, weights: Sequence[Weight]) -> ByName:
    by_name = ByName(argument, value)
    by_name.check_used(weights)
    return by_name


def _depth_divisors(
    weights: Sequence[Weight], residual: bool | str | Sequence[str], layers: int | None
) -> dict[str, float]:
    """sqrt(2 layers) by name, for the weights that write to the residual stream.

    Radford et al. 2019, section 2.3: a stream that adds up N branches of equal variance ends with
    N times that variance, and each of the layers has two branches.
    """
    if layers is not None and layers < 1:
        raise ValueError(f"layers: expected at least 1, got {layers}")
    if residual is False:
        return {}
    patterns: tuple[str, ...] = RESIDUAL_OUTPUTS
    if residual is not True:
        patterns = as_tuple("residual_depth_scaling", residual)
        check_patterns("residual_depth_scaling", patterns, weights)
    names = [w.names[0] for w in weights if any(matches(w.names, p) for p in patterns)]
    blocks = {name: _BLOCK.match(name) for name in names}
    numbers: dict[str, set[str]] = {}  # of each stack's blocks
    for block in blocks.values():
        if block is not None:
            numbers.setdefault(block["stack"], set()).add(block["number"])
    divisors: dict[str, float] = {}
    for name, block in blocks.items():
        if layers is not None:
            divisors[name] = math.sqrt(2.0 * layers)
        elif block is not None:
            divisors[name] = math.sqrt(2.0 * len(numbers[block["stack"]]))
        elif residual is not True:
            raise ValueError(
                f"residual_depth_scaling: {name} has no block number in its name to count layers "
                "by: pass layers=..."
            )
    return divisors
