"""Incomplete gamma functions, their inverse, and gamma samples, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_MAX_NEWTON = 60  # far more than ever needed: it converges quadratically


def upper(s: float, t: Tensor) -> Tensor:
    return torch.igammac(torch.tensor(s, dtype=t.dtype, device=t.device), t)


def lower(s: float, t: Tensor) -> Tensor:
    return torch.igamma(torch.tensor(s, dtype=t.dtype, device=t.device), t)


def interval_mass(s: float, t: Tensor) -> Tensor:
    """P(s, t[k + 1]) - P(s, t[k]), from the smaller of P and Q so that little cancels."""
    below = lower(s, t).diff()
    above = -upper(s, t).diff()
    return torch.where(t[:-1] > s, above, below)


def log_gamma_quantile(s: float, lower: Tensor, upper: Tensor) -> Tensor:
    """log t with P(s, t) = lower and Q(s, t) = upper = 1 - lower; -inf where lower <= 0.

    Both are given because each alone is useless near 1. Newton's method for ln P or ln Q,
    whichever is smaller, in u = ln t. The density of u is log-concave, hence ln P and ln Q are
    concave, and Newton's method can't leave the side of the root on which it starts: left of it
    for P, by P <= t^s / Gamma(s + 1); right of it for Q, by the sub-gamma tail bound
    Q(s, s + sqrt(2 s v) + v) <= e^-v (Boucheron, Lugosi and Massart 2013, section 2.4).
    """
    out = torch.where(lower <= 0.0, -math.inf, torch.where(upper <= 0.0, math.inf, lower))
    left = (lower > 0.0) & (lower <= upper)
    right = (upper > 0.0) & (lower > upper)
    log_p, log_q = lower[left].log(), upper[right].log()
    out[left] = _newton(s, log_p, (log_p + math.lgamma(s + 1.0)) / s, _log_lower, sign=1.0)
    start = (s - log_q + (-2.0 * s * log_q).sqrt()).log()
    out[right] = _newton(s, log_q, start, _log_upper, sign=-1.0)
    return out


def _newton(
    s: float,
    log_target: Tensor,
    u: Tensor,
    log_function: Callable[[float, Tensor], Tensor],
    sign: float,
) -> Tensor:
    """Root u of log_function(s, e^u) = log_target; sign is that of the function's slope."""
    for _ in range(_MAX_NEWTON):
        if u.numel() == 0:
            break
        t = u.exp()
        log_value = log_function(s, t)
        slope = torch.exp(s * u - t - math.lgamma(s) - log_value)
        move = sign * (log_value - log_target) / slope
        u = u - move
        # What is left after a move m is about |s - t| m^2 / 2: below 1e-16 relative here.
        if float(move.abs().max()) <= 3e-10:
            break
    return u


def _log_lower(s: float, t: Tensor) -> Tensor:
    return lower(s, t).log()


def _log_upper(s: float, t: Tensor) -> Tensor:
    """ln Q(s, t), also where Q itself underflows."""
    # Legendre's continued fraction, converged to float64 for t > 200 at the s used here.
    fraction = t + 17.0 - s
    for i in range(8, 0, -1):
        fraction = t + (2 * i - 1) - s - i * (i - s) / fraction
    far = s * t.log() - t - math.lgamma(s) - fraction.log()
    return torch.where(t > 200.0, far, upper(s, t).log())


def sample_gamma(
    k: float, n: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """n draws of Gamma(k), k >= 1, float64 (Marsaglia and Tsang 2000).

    torch's own gamma sampler takes no generator. Rejected draws, under 5 %, are drawn again.
    """
    d = k - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    out = torch.empty(n, dtype=torch.float64, device=device)
    filled = 0
    while filled < n:
        size = n - filled
        normal = torch.randn(size, generator=generator, dtype=torch.float64, device=device)
        uniform = torch.rand(size, generator=generator, dtype=torch.float64, device=device)
        v = (1.0 + c * normal) ** 3
        # log of v <= 0 is NaN or -inf, for which the comparison is false: rejected.
        accept = uniform.log() < 0.5 * normal**2 + d * (1.0 - v + v.log())
        accepted = v[accept]
        out[filled : filled + accepted.numel()] = accepted
        filled += accepted.numel()
    return out.mul_(d)
