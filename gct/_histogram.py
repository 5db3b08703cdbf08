"""Histograms of tensors with the generalized Gaussian fitted to them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gct._fit import fit
from gct.distribution import GeneralizedGaussian, flat_floats

__all__ = ["REACH", "Histogram", "histogram", "spread"]

_BINS = 61  # odd: one bin is centred at 0
REACH = 6.0  # standard deviations to either side; a Laplace variable has 2e-4 beyond
_WINDOW = 256  # neighbours are taken together
_GOLDEN = 0.6180339887498949  # fractional parts of its multiples fill [0, 1) evenly


@dataclass(frozen=True)
class Histogram:
    """Counts of a tensor's nonzero elements in equal bins from ``low`` to ``high``, and its fit."""

    low: float  # in the unit of the tensor
    high: float
    counts: list[int]
    outside: int  # nonzero elements below low or above high
    shape: float  # of the generalized Gaussian fitted to the nonzero elements
    scale: float
    zero_fraction: float

    @property
    def fitted(self) -> GeneralizedGaussian:
        """The density of the nonzero elements."""
        return GeneralizedGaussian(self.shape, self.scale)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def spread(x: Tensor, limit: int) -> Tensor:
    """At most ``limit`` elements of x, flat, in windows of neighbours from all over it.

    One window from each of as many equal parts. Its place in its part moves by the golden ratio,
    since a stride that is a multiple of a matrix's columns would show the same columns each time.
    """
    flat = flat_floats(x)
    if flat.numel() <= limit:
        return flat
    windows = max(1, limit // _WINDOW)
    part = flat.numel() // windows
    width = min(part, _WINDOW)
    k = torch.arange(windows, device=flat.device)
    begins = k * part + ((k * _GOLDEN) % 1.0 * (part - width + 1)).long()
    return flat[(begins[:, None] + torch.arange(width, device=flat.device)).view(-1)]


def histogram(x: Tensor, limit: int = 1 << 14) -> Histogram | None:
    """Histogram and fit of at most ``limit`` elements of x.

    Returns:
        None where there is nothing to show: all zeros, or NaN or infinity among the elements.
    """
    sample = spread(x, limit).cpu()
    if not bool(sample.isfinite().all()) or not bool(sample.any()):
        return None
    fitted = fit(sample, warn_pooled=False)
    nonzero = sample[sample != 0].double()
    reach = REACH * min(fitted.nonzero.std, math.sqrt(float(nonzero.square().mean())))
    # Unit reach: histc takes its bounds in the tensor's own precision.
    counts = torch.histc(nonzero / reach, _BINS, -1.0, 1.0)
    return Histogram(
        low=-reach,
        high=reach,
        counts=[int(count) for count in counts.tolist()],
        outside=nonzero.numel() - int(counts.sum()),
        shape=fitted.shape,
        scale=fitted.scale,
        zero_fraction=fitted.zero_fraction,
    )
