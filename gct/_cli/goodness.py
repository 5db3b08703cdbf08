"""How well one tensor's elements follow a generalized Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gct._fit import fit, looks_pooled, pooled_and_block_shapes
from gct.distribution import CHUNK, GeneralizedGaussian, flat_floats

__all__ = ["Fit", "fit_tensor"]

_STEP = 0.5  # of the quantizer, in root mean squares: 2.5 to 3 bits
_REACH = 1024  # symbols on each side: 512 root mean squares, then all are one
_FLOOR = 2.0**-32  # a coder has an escape: no symbol costs more than 32 bits


@dataclass(frozen=True)
class Fit:
    """The fit of a tensor's nonzero elements, and what it is worth.

    The losses are bits per nonzero element that an ideal coder of round(x / step), step half the
    root mean square, needs more with the density's probabilities than with the symbols' own
    frequencies (the relative entropy between the two). They don't grow with the number of
    elements; chance alone gives about s / (1.4 n) for s different symbols among n elements.
    """

    numel: int
    zero_fraction: float
    shape: float
    block_shape: float | None  # after each block's scale was divided out; None: too few elements
    pooled: bool  # block_shape is much larger: a mixture of scales
    scale: float
    std: float  # of the fitted density
    bits: float  # entropy of those symbols
    loss: float
    laplace_loss: float  # the same for the likeliest Laplace density
    normal_loss: float  # and for the likeliest normal one


def fit_tensor(x: Tensor) -> Fit | None:
    """Fit the nonzero elements of a floating point tensor.

    Returns:
        None where nothing is nonzero.

    Raises:
        ValueError: x is empty or holds NaN or infinity.
    """
    flat = flat_floats(x)
    fitted = fit(flat, warn_pooled=False)
    if fitted.scale == 0.0:
        return None
    density = fitted.nonzero
    nonzeros = round(flat.numel() * (1.0 - fitted.zero_fraction))
    mean, root = _moments(flat, nonzeros)
    step = _STEP * root
    frequencies = _counts(flat, step) / nonzeros
    seen = frequencies > 0
    share = frequencies[seen]
    bits = -float((share * share.log2()).sum())

    def loss(model: GeneralizedGaussian) -> float:
        return -float((share * _probabilities(model, step)[seen].log2()).sum()) - bits

    shapes = pooled_and_block_shapes(flat)
    return Fit(
        numel=flat.numel(),
        zero_fraction=fitted.zero_fraction,
        shape=fitted.shape,
        block_shape=shapes[1] if shapes else None,
        pooled=shapes is not None and looks_pooled(*shapes),
        scale=fitted.scale,
        std=density.std,
        bits=bits,
        loss=loss(density),
        # Their scales' maximum likelihood estimates.
        laplace_loss=loss(GeneralizedGaussian(1.0, mean)),
        normal_loss=loss(GeneralizedGaussian(2.0, math.sqrt(2.0) * root)),
    )


def _moments(flat: Tensor, nonzeros: int) -> tuple[float, float]:
    """Mean |x| and root mean square of the nonzero elements."""
    peak = float(flat.abs().max())
    one = two = 0.0
    for chunk in flat.split(CHUNK):
        u = chunk.double() / peak  # no square of it overflows
        one += float(u.abs().sum())
        two += float(u.square().sum())
    return peak * one / nonzeros, peak * math.sqrt(two / nonzeros)


def _counts(flat: Tensor, step: float) -> Tensor:
    """How often each symbol -_REACH .. _REACH occurs among the nonzero elements, float64."""
    counts = torch.zeros(2 * _REACH + 1, dtype=torch.int64)
    for chunk in flat.split(CHUNK):
        symbols = (chunk[chunk != 0].double() / step).round_().clamp_(-_REACH, _REACH)
        counts += torch.bincount(symbols.long() + _REACH, minlength=len(counts))
    return counts.double()


def _probabilities(model: GeneralizedGaussian, step: float) -> Tensor:
    """Of the symbols -_REACH .. _REACH."""
    edges = (torch.arange(-_REACH, 1, dtype=torch.float64) - 0.5) * step
    edges[0] = -math.inf  # everything beyond
    below = model.cdf(edges).diff()  # the lower tail keeps its precision
    centre = 1.0 - 2.0 * model.cdf(-0.5 * step)
    return torch.cat([below, torch.tensor([centre]), below.flip(0)]).clamp(min=_FLOOR)
