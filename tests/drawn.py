"""Do a tensor's values come from a generalized Gaussian? scipy's gennorm judges."""

from __future__ import annotations

import math

import scipy.stats
import torch

import gct

# Of the Kolmogorov-Smirnov test. With the fixed seeds of the tests nothing is left to chance; a
# new seed would be refused once in ten thousand times.
P_VALUE = 1e-4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def p_value(values: torch.Tensor, shape: float, scale: float) -> float:
    sample = values.detach().double().flatten().numpy()
    return float(scipy.stats.kstest(sample, scipy.stats.gennorm(shape, scale=scale).cdf).pvalue)


def assert_drawn(values: torch.Tensor, distribution: gct.GeneralizedGaussian) -> None:
    p = p_value(values, distribution.shape, distribution.scale)
    assert p > P_VALUE, f"{tuple(values.shape)} are not draws of {distribution}: p = {p:.1e}"


def variance_tolerance(shape: float, n: int) -> float:
    """5 relative standard deviations of the variance of n draws: sqrt((kurtosis - 1) / n)."""
    log_kurtosis = (
        math.lgamma(5.0 / shape) + math.lgamma(1.0 / shape) - 2.0 * math.lgamma(3.0 / shape)
    )
    return 5.0 * math.sqrt((math.exp(log_kurtosis) - 1.0) / n)
