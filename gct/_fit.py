"""Fitting a generalized Gaussian to data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from gct.distribution import CHUNK, MAX_SHAPE, MIN_SHAPE, GeneralizedGaussian, flat_floats

__all__ = ["PooledScaleWarning", "fit"]

_MAX_NEWTON = 60  # far more than ever needed: it converges quadratically

# Blocks of the pooled-scale check, and how much of a large tensor it looks at.
_BLOCK = 256
_WINDOWS = 64
_WINDOW = 4096
# Homogeneous samples give at most 1.05, for shapes from 0.3 to 4 and 8 blocks or more. 64 Laplace
# layers whose scales spread log-normally reach 1.3 at a standard deviation of ln a of 0.4, where
# the pooled shape has fallen to 0.75.
_POOLED_FACTOR = 1.3


class PooledScaleWarning(UserWarning):
    """The data of one fit seem to come from distributions of very different scales."""


def fit(x: Tensor, *, warn_pooled: bool = True) -> GeneralizedGaussian:
    """Maximum likelihood fit of a generalized Gaussian to the nonzero elements of x.

    Exact zeros are set apart and returned as ``zero_fraction``: a density gives them no
    probability, and counted in they bias the shape (a fraction z multiplies E x^2 / (E|x|)^2 by
    1 / (1 - z)). The start is the shape whose moment ratio E|x| / (E|x|^(1/2))^2 is the sample's
    (Mallat 1989 with lower orders, which suit heavy tails); safeguarded Newton steps on the
    likelihood equation follow, until the step is far below the statistical error. The scale is
    the likelihood's optimum for that shape. With n nonzero elements the standard error of the
    shape is about 0.8, 1.9 and 4.5 / sqrt(n) at shapes 0.5, 1 and 2. The scale alone is known far
    less well than ``std`` or ``mean_abs``, since its error and the shape's go together.

    The result does not depend on the unit of x: values are divided by the largest |x| first.

    Args:
        x: float16, bfloat16, float32 or float64 tensor of any shape and on any device. Read in
            chunks of float64, 5 passes or so; a non-contiguous x is copied once.
        warn_pooled: compare the shape with the one after each block of 256 nonzero elements is
            divided by its own mean |x|, on at most 2^18 elements, and warn if the latter is much
            larger. Then most of the heavy tail is a mixture of scales, which one shape and one
            scale describe badly.

    Returns:
        The fitted distribution, shape clamped to [``MIN_SHAPE``, ``MAX_SHAPE``]. Data whose
        nonzero elements all have the same magnitude (a single element, for example) get
        ``MAX_SHAPE``. All zeros give scale 0 (and shape 1, which means nothing there).

    Raises:
        TypeError: x is not a tensor of one of those dtypes.
        ValueError: x is empty or holds NaN or infinity.

    Warns:
        PooledScaleWarning: see ``warn_pooled``.
    """
    flat = flat_floats(x)
    if flat.numel() == 0:
        raise ValueError("x: expected at least one element, got none")
    peak, nonzeros = _peak_and_nonzeros(flat)
    if nonzeros == 0:
        return GeneralizedGaussian(shape=1.0, scale=0.0)
    shape = _fit_shape(flat, peak, nonzeros)
    # E t = 1/b gives a^b = b E|x|^b.
    log_power, _, _ = _log_power_moments(flat, peak, nonzeros, shape)
    scale = peak * math.exp((math.log(shape) + log_power) / shape)
    if warn_pooled:
        _warn_if_pooled(flat)
    return GeneralizedGaussian(shape, scale, zero_fraction=1.0 - nonzeros / flat.numel())


def _peak_and_nonzeros(flat: Tensor) -> tuple[float, int]:
    """Largest |x| and number of nonzero elements; refuses NaN and infinity."""
    peak, nonzeros = 0.0, 0
    for chunk in flat.split(CHUNK):
        top = float(chunk.abs().max())
        if not math.isfinite(top):  # max propagates NaN
            bad = int((~flat.isfinite()).sum())
            raise ValueError(
                f"x: expected finite values, got {bad} NaN or infinite of {flat.numel()}"
            )
        peak = max(peak, top)
        nonzeros += int(torch.count_nonzero(chunk))
    return peak, nonzeros


def _chunks(flat: Tensor, peak: float) -> Iterator[Tensor]:
    """|x| / peak in float64, so that no power of it overflows."""
    for chunk in flat.split(CHUNK):
        yield chunk.abs().double().div_(peak)  # abs first: double() of float64 is no copy


def _fit_shape(flat: Tensor, peak: float, nonzeros: int) -> float:
    """Root of the likelihood equation by Newton's method, inside a bracket that only shrinks."""
    low, high = MIN_SHAPE, MAX_SHAPE
    half = one = 0.0
    for u in _chunks(flat, peak):
        one += float(u.sum())
        half += float(u.sqrt_().sum())
    shape = shape_from_ratio(one * nonzeros / half**2)
    for _ in range(_MAX_NEWTON):
        value, slope = _likelihood_equation(shape, *_log_power_moments(flat, peak, nonzeros, shape))
        if value > 0.0:
            low = shape
        else:
            high = shape
        # In log(shape), where the equation is closest to a straight line.
        factor = math.exp(max(-1.0, min(1.0, -value / (slope * shape)))) if slope < 0.0 else 0.0
        following = min(max(shape * factor, MIN_SHAPE), MAX_SHAPE)
        if not (low <= following <= high):
            following = math.sqrt(low * high)
        converged = abs(following - shape) <= 1e-6 * shape
        shape = following
        if converged:
            break
    return shape


def _log_power_moments(
    flat: Tensor, peak: float, nonzeros: int, shape: float
) -> tuple[float, float, float]:
    """log E u^b, and mean and variance of ln u under the weights u^b, for u = |x| / peak > 0."""
    sums = torch.zeros(3, dtype=torch.float64)
    for u in _chunks(flat, peak):
        # A zero gets ln u = -1000: its weight, e^-100 at most, vanishes beside the peak's 1.
        log = u.log_().clamp_(min=-1000.0)
        weight = (log * shape).exp_()
        weighted = weight * log
        sums += torch.stack([weight.sum(), weighted.sum(), torch.dot(weighted, log)]).cpu()
    total, first, second = sums.tolist()
    mean = first / total
    return math.log(total / nonzeros), mean, max(0.0, second / total - mean * mean)


def _likelihood_equation(
    shape: float, log_power: float, mean_log: float, var_log: float
) -> tuple[float, float]:
    """Derivative in shape of the profile log-likelihood times shape / n, and its own slope.

    Do and Vetterli 2002, equation for the shape:
    1 + [psi(1/b) + ln(b E|x|^b)] / b - E|x|^b ln|x| / E|x|^b = 0.
    """
    s = 1.0 / shape
    argument = torch.tensor(s, dtype=torch.float64)
    digamma = float(torch.special.digamma(argument))
    trigamma = float(torch.special.polygamma(1, argument))
    bracket = digamma + math.log(shape) + log_power
    value = 1.0 + bracket * s - mean_log
    slope = -bracket * s**2 + (s + mean_log - trigamma * s**2) * s - var_log
    return value, slope


def shape_from_ratio(ratio: float) -> float:
    """The shape with E|x| / (E|x|^(1/2))^2 = ratio, clamped; the ratio falls as shape grows."""

    def excess(shape: float) -> float:
        s = 1.0 / shape
        return math.lgamma(2.0 * s) + math.lgamma(s) - 2.0 * math.lgamma(1.5 * s) - log_ratio

    log_ratio = math.log(ratio)
    low, high = MIN_SHAPE, MAX_SHAPE
    for _ in range(50):
        middle = math.sqrt(low * high)
        if excess(middle) > 0.0:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def shape_text(shape: float, digits: int = 2) -> str:
    """A fitted shape for people; one that the fit's limits have cut is shown as such."""
    if shape >= MAX_SHAPE:
        return f">={MAX_SHAPE:g}"
    return f"<={MIN_SHAPE:g}" if shape <= MIN_SHAPE else f"{shape:.{digits}f}"


def _warn_if_pooled(flat: Tensor) -> None:
    shapes = pooled_and_block_shapes(flat)
    if shapes is not None and looks_pooled(*shapes):
        warnings.warn(
            f"the data look pooled from different scales: shape {shape_text(shapes[0])} as one, "
            f"{shape_text(shapes[1])} after dividing blocks of {_BLOCK} by their mean magnitude; "
            "fit the parts apart, or pass warn_pooled=False",
            PooledScaleWarning,
            stacklevel=3,
        )


def looks_pooled(pooled: float, apart: float) -> bool:
    """Whether these two shapes of ``pooled_and_block_shapes`` tell of different scales."""
    return apart > _POOLED_FACTOR * pooled


def pooled_and_block_shapes(flat: Tensor) -> tuple[float, float] | None:
    """Moment-ratio shapes of a sample of x, as it is and with each block's scale divided out.

    None where x has fewer than 8 blocks of nonzero elements.
    """
    if flat.numel() > _WINDOWS * _WINDOW:  # evenly spaced windows of neighbours
        stride = flat.numel() // _WINDOWS
        flat = flat[: stride * _WINDOWS].view(_WINDOWS, stride)[:, :_WINDOW].reshape(-1)
    u = flat.abs().double()
    u = u[u > 0.0]
    blocks = u.numel() // _BLOCK
    if blocks < 8:  # too little to tell spread from chance
        return None
    u = u[: blocks * _BLOCK].view(blocks, _BLOCK)
    u = u / u.max()  # no sum of it overflows
    one, half = u.mean(1), u.sqrt().mean(1)
    pooled = float(one.mean() / half.mean() ** 2)
    apart = float(1.0 / (half / one.sqrt()).mean() ** 2)
    return shape_from_ratio(pooled), shape_from_ratio(apart)
