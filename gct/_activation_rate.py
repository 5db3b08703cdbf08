"""The rate term of the activation constraint and its gradient, in torch operations only.

Nothing here waits for a device: statistics are small tensors beside the activations, and no Python
branch looks into one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gct.distribution import GeneralizedGaussian

__all__ = ["LEAST_SHAPE", "MOST_SHAPE", "RateForm", "blend", "moments_of"]

# Below 0.3 the moments say little about the shape, and the rate's gradient is a spike at 0; above
# 3 there is no tail left to speak of. BackSlash's table goes from 0.1 to 3.
LEAST_SHAPE, MOST_SHAPE = 0.3, 3.0
_TABLE_SIZE = 96  # linear between them: below 0.001 in the shape
_BLEND = 0.5  # weight of the newest moments


@dataclass(frozen=True)
class RateForm:
    """The rate of a tensor a of N elements: R = (1 / N) sum of ((|a| + e) / s)^b.

    With ``relative``, e = eps times the mean of the nonzero |a| and s is the scale of the
    generalized Gaussian with that mean and shape b. Without, e = eps and s = 1. A cap c replaces
    |a| by min(|a|, c), in the unit of eps. b, s and the mean are constants for the gradient.
    """

    eps: float
    relative: bool
    shape: float | None  # None: from the moments

    def gradient(self, activation: Tensor, moments: Tensor, cap: float | None) -> Tensor:
        """dR / da, of the activation's shape, in the moments' dtype."""
        shape, scale = self._shape(moments), moments.new_ones(())
        unit = scale
        if self.relative:
            # A tensor of zeros has no unit, and no gradient whatever it is.
            unit = torch.where(moments[1] > 0.0, moments[1], unit)
            scale = unit * torch.exp(torch.lgamma(1.0 / shape) - torch.lgamma(2.0 / shape))
        magnitude = activation.to(moments.dtype).abs()
        slope = torch.pow((magnitude + self.eps * unit) / scale, shape - 1.0)
        slope *= shape / (scale * activation.numel())
        if cap is not None:
            slope *= magnitude <= cap * unit
        return slope.mul_(activation.sign())

    def _shape(self, moments: Tensor) -> Tensor:
        if self.shape is not None:
            return moments.new_tensor(self.shape)
        return shape_of(moments)


def moments_of(activation: Tensor) -> Tensor:
    """(nonzero fraction, mean |a|, mean |a|^(1/2), mean a^2), the last three of the nonzero a.

    float32, or float64 for a float64 activation. NaN where there is no nonzero element.
    """
    magnitude = activation.detach().to(torch.promote_types(activation.dtype, torch.float32)).abs()
    nonzeros = magnitude.count_nonzero().to(magnitude.dtype)
    sums = torch.stack([magnitude.sum(), magnitude.sqrt().sum(), magnitude.square().sum()])
    return torch.cat([(nonzeros / activation.numel()).reshape(1), sums / nonzeros])


def blend(old: Tensor | None, new: Tensor) -> Tensor:
    """The running moments after one more estimate.

    An estimate from zeros only, or from an activation with NaN or infinity, is left out.
    """
    if old is None:
        old = torch.zeros_like(new)
    mixed = torch.lerp(old.to(new), new, _BLEND)
    return torch.where(new.isfinite().all(), first_of(old, new, mixed), old.to(new))


def first_of(old: Tensor | None, new: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """``new`` while there are no moments yet; then ``otherwise``, which is ``old`` unless given.

    A nonzero fraction of 0 says that there are none.
    """
    if old is None:
        return new
    old = old.to(new)
    return torch.where(old[0] > 0.0, old if otherwise is None else otherwise, new)


def shape_of(moments: Tensor) -> Tensor:
    """The shape with this E|a| / (E|a|^(1/2))^2, clamped, as a tensor of no dimensions.

    The same ratio as in :func:`gct.fit`'s start: lower orders than BackSlash's E a^2 / (E|a|)^2,
    since a few channels of a transformer's activations are far larger than the rest.
    """
    log_ratios, shapes = _shape_table(moments.device, moments.dtype)
    log_ratio = torch.log(moments[1] / moments[2].square())
    # No estimate yet gives NaN: any shape will do, since all activations were zero.
    log_ratio = log_ratio.nan_to_num().clamp(log_ratios[0], log_ratios[-1])
    above = torch.searchsorted(log_ratios, log_ratio).clamp(1, len(shapes) - 1)
    below = above - 1
    weight = (log_ratio - log_ratios[below]) / (log_ratios[above] - log_ratios[below])
    return torch.lerp(shapes[below], shapes[above], weight)


@functools.cache
def _shape_table(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """ln of the moment ratio, ascending, and the shapes that go with it, descending."""
    steps = [i / (_TABLE_SIZE - 1) for i in range(_TABLE_SIZE)]
    shapes = [MOST_SHAPE * (LEAST_SHAPE / MOST_SHAPE) ** x for x in steps]
    units = [GeneralizedGaussian(shape, scale=1.0) for shape in shapes]
    log_ratios = [math.log(unit.moment(1.0) / unit.moment(0.5) ** 2) for unit in units]
    return (
        torch.tensor(log_ratios, device=device, dtype=dtype),
        torch.tensor(shapes, device=device, dtype=dtype),
    )
