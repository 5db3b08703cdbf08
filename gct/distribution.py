"""Generalized Gaussian distributions: moments, entropy, rate and distortion, sampling, fitting.

Gradients, weights and activations of neural networks follow a generalized Gaussian closely
(arXiv 2506.00486). Its density, with shape b and scale a, is

    f(x) = b / (2 a Gamma(1/b)) exp(-(|x|/a)^b)

so b = 1 is Laplace, b = 2 is normal, and smaller b means a sharper peak and heavier tails. The
scale is not the standard deviation. All arithmetic is float64 and nothing here needs the native
extension. What the codec puts on the wire never depends on this module: its tables are integers
that were computed once and committed.

Three facts about s = 1/b and t = (|x|/a)^b carry everything below: t is Gamma(s) distributed;
the r-th absolute moment is E|x|^r = a^r Gamma((r + 1) s) / Gamma(s); and the part of that moment
which comes from |x| <= u is P((r + 1) s, (u/a)^b), with P the regularised lower incomplete gamma
function and Q = 1 - P the upper one.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from gct._checks import whole_number
from gct._gamma import interval_mass, log_gamma_quantile, lower, sample_gamma, upper

__all__ = ["MAX_SHAPE", "MIN_SHAPE", "GeneralizedGaussian"]

# Below 0.1 the standard deviation is more than 5e12 scales, above 10 the density is a box with
# slightly rounded corners: nothing measured on networks lies outside.
MIN_SHAPE = 0.1
MAX_SHAPE = 10.0

_MAX_BITS = 32.0
_MIN_BITS = 1e-4
_MAX_SNR_DB = 180.0
_MIN_SNR_DB = 1e-3

_LN2 = math.log(2.0)
_EXACT_BINS = 512  # bins on each side that are summed one by one; the tail has a closed form
# Elements converted to float64 at a time: 2 MB of temporaries, which stay in cache.
CHUNK = 1 << 16

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class GeneralizedGaussian:
    """A generalized Gaussian centred at 0, with an optional extra atom at exactly 0.

    Args:
        shape: exponent b, from ``MIN_SHAPE`` (0.1) to ``MAX_SHAPE`` (10).
        scale: a, in the unit of x, at least 0. With scale 0 the whole mass is at 0, and
            ``zero_fraction`` becomes 1.
        zero_fraction: probability z in [0, 1] that x is exactly 0. The rest, 1 - z, follows the
            density. Gradients of embeddings, for example, are mostly exact zeros, which belong
            to no density and would drag the shape far down.

    Every method describes the mixture z delta_0 + (1 - z) GG, which is the variable that a coder
    sees; ``nonzero`` is the density alone.

    Raises:
        TypeError: an argument is not a real number.
        ValueError: an argument is out of range.
    """

    shape: float
    scale: float
    zero_fraction: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shape", "scale", "zero_fraction"):
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        _check_range("shape", self.shape, MIN_SHAPE, MAX_SHAPE)
        if not (0.0 <= self.scale < math.inf):
            raise ValueError(f"scale: expected a finite number >= 0, got {self.scale}")
        _check_range("zero_fraction", self.zero_fraction, 0.0, 1.0)
        if self.scale == 0.0:
            object.__setattr__(self, "zero_fraction", 1.0)

    @property
    def nonzero(self) -> GeneralizedGaussian:
        """The distribution of the nonzero elements: the same density without the atom."""
        return replace(self, zero_fraction=0.0)

    # Moments

    @property
    def std(self) -> float:
        """Standard deviation, in the unit of x."""
        return self.scale * math.sqrt(self._weight) * math.exp(0.5 * self._log_unit_moment(2.0))

    @property
    def mean_abs(self) -> float:
        """E|x|, in the unit of x."""
        return self.moment(1.0)

    def moment(self, r: float) -> float:
        """E|x|^r for r >= 0; infinite where it exceeds the range of float64.

        Raises:
            ValueError: r is negative or not finite.
        """
        r = _real("r", r)
        if not (0.0 <= r < math.inf):
            raise ValueError(f"r: expected a finite number >= 0, got {r}")
        if r == 0.0:
            return 1.0
        if self._weight == 0.0:
            return 0.0
        log = math.log(self._weight) + r * math.log(self.scale) + self._log_unit_moment(r)
        return math.exp(log) if log < 709.0 else math.inf

    # Density and distribution function

    @overload
    def log_prob(self, x: float) -> float: ...
    @overload
    def log_prob(self, x: Tensor) -> Tensor: ...
    def log_prob(self, x: float | Tensor) -> float | Tensor:
        """Natural logarithm of the density at x, in nats.

        With an atom (zero_fraction > 0) the density is taken with respect to Lebesgue measure
        plus a unit mass at 0: log(zero_fraction) at x = 0, log(1 - zero_fraction) + log f(x)
        elsewhere. So a sum of log_prob is a proper log-likelihood in both cases.

        Args:
            x: a number, or a tensor of any shape and real dtype.

        Returns:
            A float for a number, a float64 tensor of the same shape for a tensor.
        """
        return _elementwise(self._log_prob, x)

    @overload
    def cdf(self, x: float) -> float: ...
    @overload
    def cdf(self, x: Tensor) -> Tensor: ...
    def cdf(self, x: float | Tensor) -> float | Tensor:
        """P(X <= x). The lower tail keeps its relative precision.

        Args and returns as for ``log_prob``.
        """
        return _elementwise(self._cdf, x)

    @overload
    def quantile(self, p: float) -> float: ...
    @overload
    def quantile(self, p: Tensor) -> Tensor: ...
    def quantile(self, p: float | Tensor) -> float | Tensor:
        """The smallest x with P(X <= x) >= p; -inf and inf at p = 0 and 1.

        Args and returns as for ``log_prob``.

        Raises:
            ValueError: p is outside [0, 1] or NaN.
        """
        return _elementwise(self._quantile, p)

    def log_likelihood(self, x: Tensor) -> float:
        """Sum of ``log_prob`` over all elements of x, in nats.

        Args:
            x: floating point tensor of any shape; read in chunks, so memory stays modest.

        Raises:
            TypeError: x is not a floating point tensor.
        """
        flat = flat_floats(x)
        return math.fsum(float(self._log_prob(c.double()).sum()) for c in flat.split(CHUNK))

    # Coding

    def entropy(self, step: float | None = None) -> float:
        """Entropy in bits.

        Without ``step``: differential entropy of x, -E log2 of the density that ``log_prob``
        defines; -inf for scale 0. With ``step``: entropy of the integer symbol round(x / step),
        bits per element. For small steps and no atom, entropy(step) -> entropy() - log2(step).

        Args:
            step: width of the quantizer's bins, in the unit of x. Bin k is
                [(k - 1/2) step, (k + 1/2) step].

        Raises:
            ValueError: step is not a finite number > 0.
        """
        if step is None:
            return self._differential_entropy()
        return self._symbol_entropy(_positive("step", step))

    def rate(self, step: float) -> float:
        """Bits per element that an ideal entropy coder needs at this step.

        The same number as ``entropy(step)``, since an ideal coder which knows the distribution
        reaches the entropy of the symbols. A real coder adds its overhead, and a coder with the
        wrong parameters the divergence between them. Strictly decreasing in step.

        Raises:
            ValueError: step is not a finite number > 0.
        """
        return self.entropy(step)

    def distortion(self, step: float) -> float:
        """Mean squared error of round(x / step) with centroid reconstruction, unit of x squared.

        Each symbol is decoded to the conditional mean of its bin; symbol 0 to 0. Tends to
        step^2 / 12 times 1 - zero_fraction for small steps, to std^2 for large ones.

        Raises:
            ValueError: step is not a finite number > 0.
        """
        unit = self._unit_distortion(_positive("step", step))
        # Two factors, so that a scale below 1e-154 underflows no earlier than the result does.
        return (unit * self.scale) * self.scale * self._weight if unit else 0.0

    def snr_db(self, step: float) -> float:
        """Signal to noise ratio 10 log10(std^2 / distortion) in dB; infinite for scale 0.

        Raises:
            ValueError: step is not a finite number > 0.
        """
        unit = self._unit_distortion(_positive("step", step))
        if unit == 0.0:
            return math.inf
        return 10.0 * (self._log_unit_moment(2.0) - math.log(unit)) / math.log(10.0)

    def step_for(self, bits: float) -> float:
        """The step whose rate is ``bits`` bits per element, relative precision about 1e-12.

        Raises:
            ValueError: bits is outside [1e-4, 32], or the distribution is the point mass at 0,
                whose rate is 0 at every step.
        """
        bits = _check_range("bits", _real("bits", bits), _MIN_BITS, _MAX_BITS)
        unit = self._unit_scale()
        return self.scale * unit._solve_step(unit._symbol_entropy, bits)

    def step_for_snr(self, db: float) -> float:
        """The step whose signal to noise ratio is ``db`` dB, relative precision about 1e-12.

        Raises:
            ValueError: db is outside [1e-3, 180], or the distribution is the point mass at 0.
        """
        db = _check_range("db", _real("db", db), _MIN_SNR_DB, _MAX_SNR_DB)
        unit = self._unit_scale()
        return self.scale * unit._solve_step(unit.snr_db, db)

    # Sampling

    def sample(self, n: int | tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Independent draws.

        Args:
            n: number of draws, or the shape of the result.
            generator: source of all randomness, torch's default one if None. The same generator
                state gives the same draws.

        Returns:
            float64 tensor of shape (n,) or n, on the generator's device.

        Raises:
            TypeError, ValueError: n is not an integer >= 0 or a tuple of them, or generator is
                no torch.Generator.
        """
        size = _check_size(n)
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(
                "generator: expected a torch.Generator or None, got "
                f"{type(generator).__name__}; for a seed pass torch.Generator().manual_seed(seed)"
            )
        device = torch.device("cpu") if generator is None else generator.device
        out = torch.zeros(size, dtype=torch.float64, device=device)
        if self._weight > 0.0:
            for part in out.view(-1).split(CHUNK):
                part.copy_(self._draw(part.numel(), generator, device))
        return out

    def _draw(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        # Khinchine: a symmetric unimodal variable is U V with U uniform on (-1, 1). For the GG,
        # V = a G^(1/b) with G ~ Gamma(1 + 1/b). One uniform gives the sign too, and the gamma
        # parameter stays above 1, where Marsaglia and Tsang's method needs no special case.
        uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
        gamma = sample_gamma(1.0 + 1.0 / self.shape, n, generator, device)
        x = uniform.mul_(2.0).sub_(1.0).mul_(gamma.pow_(1.0 / self.shape)).mul_(self.scale)
        if self.zero_fraction > 0.0:
            u = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
            x.masked_fill_(u < self.zero_fraction, 0.0)
        return x

    # Private: formulas with scale 1 ("unit"), and for the density alone unless said otherwise

    @property
    def _weight(self) -> float:
        return 1.0 - self.zero_fraction

    def _log_unit_moment(self, r: float) -> float:
        return math.lgamma((r + 1.0) / self.shape) - math.lgamma(1.0 / self.shape)

    @property
    def _log_unit_peak(self) -> float:
        return math.log(0.5 * self.shape) - math.lgamma(1.0 / self.shape)

    def _unit_scale(self) -> GeneralizedGaussian:
        """The same with scale 1, where no step over- or underflows; refuses the point mass."""
        if self._weight == 0.0:
            raise ValueError(
                "expected a distribution with scale > 0 and zero_fraction < 1, got the point "
                "mass at 0, which costs 0 bits at every step"
            )
        return replace(self, scale=1.0)

    def _exponent(self, x: Tensor) -> Tensor:
        """t = (|x| / a)^b."""
        return (x.abs() / self.scale).pow(self.shape)

    def _log_prob(self, x: Tensor) -> Tensor:
        log_zero = math.log(self.zero_fraction) if self.zero_fraction > 0.0 else -math.inf
        if self._weight == 0.0:
            return torch.where(x == 0.0, log_zero, torch.where(x.isnan(), x, -math.inf))
        log = math.log(self._weight) + self._log_unit_peak - math.log(self.scale)
        log_density = log - self._exponent(x)
        if self.zero_fraction == 0.0:
            return log_density
        return torch.where(x == 0.0, log_zero, log_density)

    def _cdf(self, x: Tensor) -> Tensor:
        if self._weight == 0.0:
            return torch.where(x.isnan(), x, (x >= 0.0).double())
        half_tail = 0.5 * self._weight * upper(1.0 / self.shape, self._exponent(x))
        return torch.where(x < 0.0, half_tail, 1.0 - half_tail)

    def _quantile(self, p: Tensor) -> Tensor:
        if not bool(((p >= 0.0) & (p <= 1.0)).all()):
            bad = p[~((p >= 0.0) & (p <= 1.0))].flatten()[0].item()
            raise ValueError(f"p: expected probabilities in [0, 1], got {bad}")
        if self._weight == 0.0:
            return torch.zeros_like(p)
        # tail is P(|X| >= |quantile|) of the density alone; above 1 it falls into the atom.
        tail = 2.0 * torch.minimum(p, 1.0 - p) / self._weight
        centre = (2.0 * p - 1.0).abs() - self.zero_fraction
        log_t = log_gamma_quantile(1.0 / self.shape, centre / self._weight, tail)
        return torch.sign(p - 0.5) * self.scale * torch.exp(log_t / self.shape) + 0.0  # no -0

    def _differential_entropy(self) -> float:
        # -log2 f has the mean [1/b - ln f(0)] / ln 2, since E t = 1/b.
        z, w = self.zero_fraction, self._weight
        atom = -z * math.log(z) if z > 0.0 else 0.0
        if self.scale == 0.0:
            return -math.inf
        if w == 0.0:
            return 0.0
        density = 1.0 / self.shape - self._log_unit_peak + math.log(self.scale) - math.log(w)
        return (atom + w * density) / _LN2

    def _bin_edges(self, step: float) -> Tensor:
        """Exponents t at the bin edges (k - 1/2) step, k = 1 .. _EXACT_BINS."""
        k = torch.arange(1, _EXACT_BINS + 1, dtype=torch.float64)
        return self._exponent((k - 0.5) * step)

    def _symbol_entropy(self, step: float) -> float:
        """Entropy of round(x / step) in bits, atom included."""
        w, s = self._weight, 1.0 / self.shape
        if w == 0.0:
            return 0.0
        t = self._bin_edges(step)
        outside = w * float(upper(s, t[0]))  # P(symbol != 0)
        nats = -(1.0 - outside) * math.log1p(-outside) if outside < 1.0 else 0.0
        pairs = w * interval_mass(s, t)  # symbols k and -k together
        nats -= float(torch.special.xlogy(pairs, 0.5 * pairs).sum())
        return (nats + self._tail_entropy(t[-1:], step)) / _LN2

    def _tail_entropy(self, t: Tensor, step: float) -> float:
        """What the symbols beyond the exactly summed bins add to the entropy, in nats.

        There a bin's mass is step times the density to a relative error of (k'/k)^2 / 24 with
        k' = b t and k >= _EXACT_BINS, below 1e-4 wherever there is any mass to speak of.
        """
        w, s = self._weight, 1.0 / self.shape
        mass = float(upper(s, t))
        if mass == 0.0:
            return 0.0
        log_bin = self._log_unit_peak + math.log(w) + math.log(step) - math.log(self.scale)
        return -w * (log_bin * mass - s * float(upper(s + 1.0, t)))

    def _unit_distortion(self, step: float) -> float:
        """Mean squared error for scale 1 and without the atom, whose error is 0."""
        if self._weight == 0.0:
            return 0.0
        s = 1.0 / self.shape
        t = self._bin_edges(step)
        first, second = (math.exp(self._log_unit_moment(r)) for r in (1.0, 2.0))
        mass, m1, m2 = (interval_mass(r * s, t) for r in (1.0, 2.0, 3.0))
        # Per bin: E x^2 - (E x)^2 / mass; a bin so far out that its mass is 0 has no error left.
        error = second * m2 - torch.where(mass > 0.0, (first * m1) ** 2 / mass, 0.0)
        centre = second * float(lower(3.0 * s, t[0]))
        tail = (step / self.scale) ** 2 / 12.0 * float(upper(s, t[-1]))
        return min(second, centre + float(error.clamp(min=0.0).sum()) + tail)

    def _solve_step(self, decreasing: Callable[[float], float], target: float) -> float:
        """The step where a function that decreases in step reaches the target.

        Why it decreases: growing the step moves the edge between bins k - 1 and k outwards. For
        a density that falls with |x|, bin k - 1 is the heavier one, so the entropy falls, and
        the edge is nearer to the centroid of bin k than to that of bin k - 1, so the error grows.
        """
        low = high = math.log2(self.nonzero.std)
        while decreasing(2.0**high) > target:
            high += 2.0
        while decreasing(2.0**low) < target:
            low -= 2.0
        for _ in range(45):  # 2 octaves / 2^45, or the whole of a longer bracket to 1e-12
            middle = 0.5 * (low + high)
            if decreasing(2.0**middle) > target:
                low = middle
            else:
                high = middle
        return float(2.0 ** (0.5 * (low + high)))


# Arguments


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a real number, got {type(value).__name__}")
    return float(value)


def _check_range(name: str, value: float, low: float, high: float) -> float:
    if not (low <= value <= high):
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value}")
    return value


def _positive(name: str, value: float) -> float:
    value = _real(name, value)
    if not (0.0 < value < math.inf):
        raise ValueError(f"{name}: expected a finite number > 0, got {value}")
    return value


def _check_size(n: int | tuple[int, ...]) -> tuple[int, ...]:
    try:
        size = tuple(whole_number("n", k) for k in (n if isinstance(n, (tuple, list)) else (n,)))
    except TypeError:
        raise TypeError(f"n: expected an integer or a tuple of integers, got {n!r}") from None
    if min(size, default=0) < 0:
        raise ValueError(f"n: expected lengths >= 0, got {n!r}")
    return size


def flat_floats(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.dtype not in FLOAT_DTYPES or x.layout is not torch.strided:
        raise TypeError(
            "x: expected a dense tensor of float16, bfloat16, float32 or float64, got "
            f"{x.dtype}, {x.layout}"
        )
    if x.is_meta:
        raise ValueError("x: expected a tensor with values, got one on the meta device")
    return x.detach().reshape(-1)


def _elementwise(function: Callable[[Tensor], Tensor], x: float | Tensor) -> float | Tensor:
    if isinstance(x, Tensor):
        return function(x.detach().double())
    return function(torch.tensor(_real("x", x), dtype=torch.float64)).item()
