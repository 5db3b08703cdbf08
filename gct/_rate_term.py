"""The rate term of gradient-constrained training: its arithmetic, and what it remembers.

Results are the same bits on all ranks. Elements go through correctly rounded operations only, one
by one (no fused multiply-add, no power function), and a sum over elements, whose last bits depend
on the order in which a processor adds, is cut to seven bits. So ranks with other processors agree
too unless a sum lies within its own rounding error of a cut: about one in 10^12.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gct._by_parameter import ByParameter
from gct._channel import row_length
from gct._checks import check_number, plain_number
from gct._fit import shape_from_ratio
from gct._parameters import ParameterKeys, is_exempt
from gct._patterns import matches
from gct.distribution import CHUNK

Curvature = Literal["raw", "damped", "ema"]

_SOFTENING = 0.1  # added to |g| / mean |g|, whose power would explode at 0 for shapes below 1
_MIN_SHAPE, _MAX_SHAPE = 0.25, 2.0


@dataclass(frozen=True)
class RateSettings:
    """What :class:`gct.GradientConstraint` describes, checked."""

    rate_weight: float
    shape: float | Literal["gg"] = 1.0
    curvature: Curvature = "damped"
    damping: float = 1.0
    decay: float = 0.9
    max_curvature: float | None = None

    def __post_init__(self) -> None:
        for name in ("rate_weight", "damping", "decay"):
            check_number(name, getattr(self, name))
        if self.max_curvature is not None:
            check_number("max_curvature", self.max_curvature)
        if not 0.0 <= self.rate_weight < math.inf:
            raise ValueError(f"rate_weight must be a number from 0 on, got {self.rate_weight!r}")
        if self.shape != "gg" and not _is_shape(self.shape):
            raise ValueError(
                f'shape must be "gg" or a multiple of 1/4 from {_MIN_SHAPE} to {_MAX_SHAPE}, '
                f"got {self.shape!r}"
            )
        if self.curvature not in ("raw", "damped", "ema"):
            raise ValueError(f"curvature must be raw, damped or ema, got {self.curvature!r}")
        if not 0.0 < self.damping < math.inf:
            raise ValueError(f"damping must be a number above 0, got {self.damping!r}")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be from 0 to below 1, got {self.decay!r}")
        if self.max_curvature is not None and not 0.0 < self.max_curvature < math.inf:
            raise ValueError(
                f"max_curvature must be None or a number above 0, got {self.max_curvature!r}"
            )


def _is_shape(value: object) -> bool:
    return (
        isinstance(value := plain_number(value), (int, float))
        and _MIN_SHAPE <= value <= _MAX_SHAPE
        and float(4 * value).is_integer()
    )


@dataclass
class Past:
    """What is remembered of one parameter, in its shape; moments in the arithmetic's dtype."""

    gradient: Tensor | None = None  # as it was reduced, before the rate term
    parameter: Tensor | None = None  # the values that it was taken at
    moments: list[Tensor] = field(default_factory=list)  # "ema": averages of dg dp and dp^2


@torch.no_grad()
def add_rate_term(gradient: Tensor, parameter: Tensor, past: Past, settings: RateSettings) -> None:
    """Add the rate's gradient to ``gradient``, in place, and remember both as they came.

    The rate of a tensor is sum |g|^v; its gradient H (v |g|^(v-1) sign g) is taken with the
    diagonal h of H (arXiv 2506.00486, as far as it is known: docs/methods.md). A gradient of zeros
    (a parameter that took no part) changes nothing. One with NaN or infinity is left alone and
    ends the memory: no later difference is taken from it.
    """
    gradient, parameter = gradient.detach(), parameter.detach()
    size = _mean_of_nonzero(g.abs() for (g,) in _pieces(gradient))
    if size == 0.0:
        return
    if not math.isfinite(size):
        past.gradient = past.parameter = None
        past.moments = []
        return
    if past.gradient is None or past.parameter is None:
        past.gradient, past.parameter = gradient.clone(), parameter.clone()
        return
    square = _mean_of_nonzero(
        (_wide(p) - old).square_() for p, old in _pieces(parameter, past.parameter)
    )
    if square == 0.0:  # it has not moved: nothing to learn
        past.gradient.copy_(gradient)
        return
    if settings.curvature == "ema":
        square = _average(gradient, parameter, past, settings.decay)
    shape = _shape_of(gradient, size) if settings.shape == "gg" else settings.shape
    for g, p, old_g, old_p, *moments in _pieces(
        gradient, parameter, past.gradient, past.parameter, *past.moments
    ):
        x = _wide(g)
        h = _curvature(x - old_g, _wide(p) - old_p, moments, settings, size, square)
        old_g.copy_(g)
        old_p.copy_(p)
        term = h.mul_(settings.rate_weight).mul_(x.sign())
        g.add_(term if shape == 1.0 else term.mul_(_slope(x.abs(), size, shape)))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each, views, few enough to stay in the processor's cache."""
    rows = max(1, CHUNK // max(1, row_length(tensors[0])))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _curvature(
    dg: Tensor,
    dp: Tensor,
    moments: Sequence[Tensor],
    settings: RateSettings,
    size: float,
    square: float,
) -> Tensor:
    """Diagonal of the Hessian. Overwrites dg and dp."""
    if settings.curvature == "raw":
        return torch.nan_to_num_(dg.div_(dp), nan=0.0, posinf=0.0, neginf=0.0)
    product, own_square = moments or (dg.mul_(dp), dp.mul_(dp))
    highest = settings.max_curvature or size / settings.rate_weight
    return (product / (own_square + settings.damping**2 * square)).clamp_(0.0, highest)


def _average(gradient: Tensor, parameter: Tensor, past: Past, decay: float) -> float:
    """Update the averages of dg dp and dp^2; the second one's mean.

    They start at 0, which their ratio does not notice.
    """
    assert past.gradient is not None
    assert past.parameter is not None
    if not past.moments:
        past.moments = [torch.zeros_like(_wide(past.gradient)) for _ in range(2)]
    for g, p, old_g, old_p, product, square in _pieces(
        gradient, parameter, past.gradient, past.parameter, *past.moments
    ):
        dp = _wide(p) - old_p
        product.mul_(decay).add_((_wide(g) - old_g).mul_(dp).mul_(1.0 - decay))
        square.mul_(decay).add_(dp.square_().mul_(1.0 - decay))
    return _mean_of_nonzero(square for (square,) in _pieces(past.moments[1]))


def _slope(magnitude: Tensor, size: float, shape: float) -> Tensor:
    """v (|g| / mean |g|)^(v-1), softened: the power has no unit, so rate_weight keeps its own."""
    power = _power((magnitude / size).add_(_SOFTENING), abs(shape - 1.0))
    return power.mul_(shape) if shape >= 1.0 else shape / power


def _power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent for multiples of 1/4 from 0 to 1. Square roots are exact on every processor."""
    result = torch.ones_like(x)
    for part in (1.0, 0.5, 0.25):
        if exponent >= part:
            exponent -= part
            result.mul_(x)
        x = x.sqrt()
    return result


def _shape_of(gradient: Tensor, size: float) -> float:
    """Shape of the generalized Gaussian, by moments of the nonzero elements, to 1/4.

    The moments are those that :func:`gct.fit` starts from. The rate is flat in the shape.
    """
    root = _mean_of_nonzero(_wide(g).abs().sqrt_() for (g,) in _pieces(gradient))
    shape = round(4.0 * shape_from_ratio(max(size / root**2, 1.0))) / 4.0
    return min(max(shape, _MIN_SHAPE), _MAX_SHAPE)


def _mean_of_nonzero(pieces: Iterable[Tensor]) -> float:
    """Mean of the elements that are not 0, to seven bits; 0 where there is none.

    All are at least 0. Not finite if one of them is not.
    """
    total, count = 0.0, 0
    for piece in pieces:
        total += float(piece.sum(dtype=torch.float64))
        count += int(torch.count_nonzero(piece))
    if count == 0 or not math.isfinite(total):
        return total
    mantissa, exponent = math.frexp(total / count)
    return math.ldexp(round(mantissa * 128.0) / 128.0, exponent)


class RateTerm:
    """The rate term for many parameters, and their pasts by name."""

    def __init__(
        self, keys: ParameterKeys, settings: RateSettings, exclude: Sequence[str] = ()
    ) -> None:
        self.settings = settings
        self._keys = keys
        self._exclude = exclude
        with_moments = settings.curvature == "ema"

        def make_past(parameter: Tensor, key: str, saved: Mapping[str, Any] | None) -> Past:
            return Past() if saved is None else _loaded_past(parameter, key, saved, with_moments)

        self._pasts = ByParameter[Past, Mapping[str, Any]](keys, make_past)

    def covers(self, parameter: Tensor) -> bool:
        """Not those that the hook sends uncompressed: their rate is the same whatever they are."""
        return (
            parameter.is_floating_point()
            and not is_exempt(parameter)
            and not matches(self._keys.key(parameter), self._exclude)
        )

    def add_to(self, gradient: Tensor, parameter: Tensor) -> None:
        """Change the gradient in place; all ranks do this with the same bits."""
        if self.covers(parameter) and not gradient.is_sparse:
            add_rate_term(gradient, parameter, self._pasts[parameter], self.settings)

    def after(
        self,
        reduced: Future[Tensor],
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> Future[Tensor]:
        """A future of the same bucket, once its gradients are reduced and have the term.

        Backward goes on meanwhile, but parameters change only after it.
        """
        if bucket.buffer().is_sparse:
            return reduced
        # Looked up here: what follows runs on whichever thread completes the reduction.
        work = [
            (gradient, parameter, self._pasts[parameter])
            for gradient, parameter in zip(bucket.gradients(), bucket.parameters(), strict=True)
            if self.covers(parameter)
        ]
        settings = self.settings  # not self

        def finish(reduced: Future[Tensor]) -> Tensor:
            result = reduced.value()  # raises what went wrong
            for gradient, parameter, past in work:
                add_rate_term(gradient, parameter, past, settings)
            return result

        return reduced.then(finish)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """By parameter: ``gradient``, ``parameter`` and, with ``"ema"``, ``moments``; copies."""
        saved = {key: dict(past) for key, past in self._pasts.waiting.items()}
        for key, past in self._pasts.by_key().items():
            if past.gradient is not None and past.parameter is not None:
                saved[key] = {
                    "gradient": past.gradient.clone(),
                    "parameter": past.parameter.clone(),
                    "moments": [moment.clone() for moment in past.moments],
                }
        return saved

    def load_state_dict(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Forget everything and start from these when their parameters appear."""
        self._pasts.load(saved)


def _loaded_past(parameter: Tensor, key: str, saved: Mapping[str, Any], with_moments: bool) -> Past:
    gradient, values, *moments = (
        tensor.detach().to(parameter.device, copy=True)
        for tensor in saved_tensors(key, saved, parameter)
    )
    return Past(gradient, values, moments if with_moments else [])


def saved_tensors(key: str, saved: Any, parameter: Tensor) -> list[Tensor]:
    """Gradient, values and moments, if any, of one parameter in :meth:`RateTerm.state_dict`.

    Raises:
        ValueError: it is something else, or another model's.
    """
    fields = {"gradient", "parameter", "moments"}
    tensors = []
    if isinstance(saved, Mapping) and fields <= set(saved) and isinstance(saved["moments"], list):
        tensors = [saved["gradient"], saved["parameter"], *saved["moments"]]
    if len(tensors) not in (2, 4) or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError(
            f"expected gradient, parameter and moments of parameter {key} in the state_dict, got "
            f"{type(saved).__name__}: was it saved by this version of gct?"
        )
    for tensor in tensors:
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"the loaded past of parameter {key} has shape {tuple(tensor.shape)}, but the "
                f"parameter has {tuple(parameter.shape)}: it belongs to another model"
            )
    return tensors
