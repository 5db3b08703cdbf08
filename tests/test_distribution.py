"""The generalized Gaussian against scipy, closed forms, numerical integration and its own samples.

Tolerances: float64 formulas that both sides evaluate directly agree to 1e-12; the regularised
incomplete gamma functions of torch and scipy differ by up to 1e-13 relative, and quantiles,
entropies and distortions inherit a small multiple of that. Wider tolerances say why.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch

import gct
from gct._fit import PooledScaleWarning
from gct.distribution import MAX_SHAPE, MIN_SHAPE

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [0.3, 0.5, 0.87, 1.0, 1.3, 2.0, 4.0]
SCALE = 2.5
NEGLIGIBLE = 1e-12  # both sides are the same formula in float64
INCOMPLETE_GAMMA = 1e-12  # ten times the difference between the two libraries


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relative(actual: np.ndarray | torch.Tensor | float, expected: np.ndarray | float) -> float:
    return float(np.max(np.abs(np.asarray(actual) / np.asarray(expected) - 1.0)))


# Density, distribution function, quantiles, moments


@pytest.mark.parametrize("shape", SHAPES)
class TestAgainstScipy:
    @staticmethod
    def both(shape: float) -> tuple[gct.GeneralizedGaussian, scipy.stats.rv_continuous]:
        return gct.GeneralizedGaussian(shape, SCALE), scipy.stats.gennorm(shape, scale=SCALE)

    def test_log_prob(self, shape: float) -> None:
        ours, scipys = self.both(shape)
        x = np.concatenate([-np.logspace(-9, 2, 50), [0.0], np.logspace(-9, 2, 50)])
        # Relative to 1 + |log density|, which crosses 0.
        reference = scipys.logpdf(x)
        error = np.abs(ours.log_prob(torch.tensor(x)).numpy() - reference) / (1 + np.abs(reference))
        assert error.max() < NEGLIGIBLE

    def test_cdf(self, shape: float) -> None:
        ours, scipys = self.both(shape)
        x = scipys.ppf(np.concatenate([np.logspace(-30, -3, 28), np.linspace(0.001, 0.999, 999)]))
        assert relative(ours.cdf(torch.tensor(x)), scipys.cdf(x)) < INCOMPLETE_GAMMA

    def test_quantile(self, shape: float) -> None:
        ours, scipys = self.both(shape)
        p = np.concatenate([np.logspace(-30, -3, 28), np.linspace(0.001, 0.999, 998)])
        assert relative(ours.quantile(torch.tensor(p)), scipys.ppf(p)) < INCOMPLETE_GAMMA

    def test_quantile_inverts_cdf_to_the_last_representable_tail(self, shape: float) -> None:
        ours, _ = self.both(shape)
        p = np.array([1e-300, 1e-200, 1e-100, 0.5 - 1e-12, 0.5 + 1e-12, 1 - 1e-15])
        # An error of 1e-15 in x is one of 1e-15 b t in p, and t is up to 700 here.
        assert relative(ours.cdf(ours.quantile(torch.tensor(p))), p) < 5e-12

    def test_moments_and_entropy(self, shape: float) -> None:
        ours, scipys = self.both(shape)
        assert relative(ours.std, scipys.std()) < NEGLIGIBLE
        assert relative(ours.moment(4.0), scipys.moment(4)) < NEGLIGIBLE
        # scipy integrates E|x| numerically, to about 1e-8.
        mean_abs = 2.0 * scipys.expect(lambda x: x, lb=0.0, ub=math.inf)
        assert relative(ours.mean_abs, mean_abs) < 1e-6
        assert abs(ours.entropy() - scipys.entropy() / math.log(2.0)) < NEGLIGIBLE

    def test_another_shape_is_told_apart(self, shape: float) -> None:
        """Negative control: one percent in shape is far outside each tolerance above."""
        ours, scipys = gct.GeneralizedGaussian(shape * 1.01, SCALE), self.both(shape)[1]
        x = np.linspace(0.1, 3.0, 9) * scipys.std()
        assert relative(ours.cdf(torch.tensor(-x)), scipys.cdf(-x)) > 1e-4
        assert relative(ours.std, scipys.std()) > 1e-3


def test_laplace_closed_forms() -> None:
    laplace = gct.GeneralizedGaussian(1.0, SCALE)
    assert laplace.std == pytest.approx(math.sqrt(2.0) * SCALE, rel=NEGLIGIBLE)
    assert laplace.mean_abs == pytest.approx(SCALE, rel=NEGLIGIBLE)
    assert laplace.moment(0.5) == pytest.approx(math.gamma(1.5) * SCALE**0.5, rel=NEGLIGIBLE)
    assert laplace.entropy() == pytest.approx(math.log2(2.0 * math.e * SCALE), rel=NEGLIGIBLE)
    assert laplace.cdf(-SCALE) == pytest.approx(0.5 / math.e, rel=INCOMPLETE_GAMMA)
    assert laplace.quantile(0.05) == pytest.approx(SCALE * math.log(0.1), rel=INCOMPLETE_GAMMA)
    assert laplace.log_prob(SCALE) == pytest.approx(-1.0 - math.log(2.0 * SCALE), rel=NEGLIGIBLE)


def test_normal_closed_forms() -> None:
    normal = gct.GeneralizedGaussian(2.0, math.sqrt(2.0))  # standard deviation 1
    assert normal.std == pytest.approx(1.0, rel=NEGLIGIBLE)
    assert normal.mean_abs == pytest.approx(math.sqrt(2.0 / math.pi), rel=NEGLIGIBLE)
    assert normal.moment(4) == pytest.approx(3.0, rel=NEGLIGIBLE)
    assert normal.entropy() == pytest.approx(0.5 * math.log2(2 * math.pi * math.e), rel=NEGLIGIBLE)
    assert normal.cdf(1.0) == pytest.approx(0.5 * math.erfc(-math.sqrt(0.5)), rel=INCOMPLETE_GAMMA)
    assert normal.quantile(0.975) == pytest.approx(1.959963984540054, rel=INCOMPLETE_GAMMA)


def test_moment_zero_and_overflow() -> None:
    wide = gct.GeneralizedGaussian(0.5, 1e200)
    assert wide.moment(0) == 1.0
    assert wide.moment(2.0) == math.inf
    assert wide.std == pytest.approx(math.sqrt(120.0) * 1e200, rel=NEGLIGIBLE)


def test_quantile_in_the_atom_is_zero_without_a_sign() -> None:
    mixed = gct.GeneralizedGaussian(1.0, 2.0, zero_fraction=0.5)
    inside = mixed.quantile(torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64))
    assert inside.tolist() == [0.0] * 3
    assert not inside.signbit().any()


def test_quantile_at_the_ends_and_the_middle() -> None:
    p = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert gct.GeneralizedGaussian(0.7, 1.0).quantile(p).tolist() == [-math.inf, 0.0, math.inf]
    x = torch.tensor([-math.inf, -1e300, 0.0, 1e300, math.inf], dtype=torch.float64)
    assert gct.GeneralizedGaussian(0.7, 1.0).cdf(x).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_numbers_give_numbers_and_tensors_keep_their_shape() -> None:
    laplace = gct.GeneralizedGaussian(1, 1)
    for function in (laplace.cdf, laplace.quantile, laplace.log_prob):
        assert type(function(0.25)) is float
        out = function(torch.full((2, 3), 0.25, dtype=torch.float16))
        assert (out.shape, out.dtype) == ((2, 3), torch.float64)
        assert out[1, 2].item() == function(0.25)
        assert function(torch.empty(0)).shape == (0,)


def test_log_likelihood_sums_log_prob_over_chunks() -> None:
    laplace = gct.GeneralizedGaussian(1.0, SCALE)
    x = laplace.sample(300_001, seeded(1)).float()
    expected = -x.double().abs().sum().item() / SCALE - x.numel() * math.log(2.0 * SCALE)
    assert laplace.log_likelihood(x) == pytest.approx(expected, rel=1e-11)  # rounding of the sums
    assert gct.GeneralizedGaussian(1.1, SCALE).log_likelihood(x) < expected


# Rate and distortion


def integrate_bins(shape: float, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mass, first and second moment of [0, step/2] and of each bin right of it, for scale 1.

    Gauss-Legendre quadrature of the density: another way than incomplete gamma functions.
    """
    far = 80.0 ** (1.0 / shape)  # mass e^-80 beyond
    edges = np.concatenate([[0.0], (np.arange(int(far / step) + 2) + 0.5) * step])
    nodes, weights = np.polynomial.legendre.leggauss(60)
    nodes, weights = 0.5 * (nodes + 1.0), 0.5 * weights
    # x = edge + width u^m flattens the cusp at 0, where the density isn't smooth.
    power = 12.0 / min(shape, 1.0)
    width = np.diff(edges)[:, None]
    flatten = np.where(np.arange(len(width)) == 0, power, 1.0)[:, None]
    x = edges[:-1, None] + width * nodes**flatten
    f = shape / (2.0 * math.gamma(1.0 / shape)) * np.exp(-(x**shape))
    jacobian = width * flatten * nodes ** (flatten - 1.0) * weights
    mass, first, second = ((f * x**r * jacobian).sum(axis=1) for r in range(3))
    return mass, first, second


@pytest.mark.parametrize("shape", [0.5, 0.87, 1.0, 1.3, 2.0, 4.0])
@pytest.mark.parametrize("step_in_std", [0.02, 0.2, 1.0, 3.0])
@pytest.mark.parametrize("zero_fraction", [0.0, 0.6])
def test_entropy_and_distortion_against_quadrature(
    shape: float, step_in_std: float, zero_fraction: float
) -> None:
    """The finest step has thousands of bins, so it also checks the closed form of the tail."""
    unit = gct.GeneralizedGaussian(shape, 1.0)
    step = step_in_std * unit.std
    mass, first, second = integrate_bins(shape, step)
    weight = 1.0 - zero_fraction
    side = weight * mass[1:][mass[1:] > 0]
    centre = zero_fraction + weight * 2.0 * mass[0]
    entropy = -centre * math.log2(centre) - 2.0 * float((side * np.log2(side)).sum())
    filled = mass[1:] > 1e-30  # elsewhere the quotient is noise and the error below 1e-25
    error = second[1:][filled] - first[1:][filled] ** 2 / mass[1:][filled]
    distortion = weight * 2.0 * (second[0] + float(error.sum()))

    model = gct.GeneralizedGaussian(shape, SCALE, zero_fraction)
    # The tail's closed form errs by 1e-6 at worst; differences of moments lose 9 digits in the
    # oracle as in the code.
    assert model.entropy(step * SCALE) == pytest.approx(entropy, rel=1e-6)
    assert model.rate(step * SCALE) == model.entropy(step * SCALE)
    assert model.distortion(step * SCALE) == pytest.approx(distortion * SCALE**2, rel=1e-5)
    snr = 10.0 * math.log10(model.std**2 / model.distortion(step * SCALE))
    assert model.snr_db(step * SCALE) == pytest.approx(snr, rel=NEGLIGIBLE)


def test_laplace_symbols_have_a_closed_form() -> None:
    """Magnitudes of a rounded Laplace variable beyond 0 are geometric."""
    step = 0.8
    outside, ratio = math.exp(-step / 2.0), math.exp(-step)

    def binary(p: float) -> float:
        return -p * math.log2(p) - (1.0 - p) * math.log2(1.0 - p)

    expected = binary(outside) + outside * (1.0 + binary(ratio) / (1.0 - ratio))
    laplace = gct.GeneralizedGaussian(1.0, 1.0)
    assert laplace.entropy(step) == pytest.approx(expected, rel=INCOMPLETE_GAMMA)
    # Every bin but the middle one holds the same exponential density on a width of one step.
    centre = 2.0 - math.exp(-step / 2) * (step**2 / 4 + step + 2.0)
    within = 1.0 - step**2 * ratio / (1.0 - ratio) ** 2
    assert laplace.distortion(step) == pytest.approx(centre + outside * within, rel=1e-10)


# SNR in dB of round-to-nearest with centroid reconstruction at 1, 2, 3 and 4 bits, to two decimals,
# from a separate computation with scipy.
SNR_AT_RATE = {
    0.5: (8.57, 14.56, 20.43, 26.35),
    0.7: (6.91, 12.59, 18.42, 24.36),
    0.87: (6.15, 11.74, 17.59, 23.55),
    1.0: (5.77, 11.33, 17.21, 23.19),
    1.3: (5.20, 10.81, 16.75, 22.76),
    2.0: (4.58, 10.51, 16.53, 22.55),
}


@pytest.mark.parametrize("shape", SNR_AT_RATE)
def test_snr_at_rate_matches_the_table(shape: float) -> None:
    model = gct.GeneralizedGaussian(shape, SCALE)
    for bits, expected in enumerate(SNR_AT_RATE[shape], start=1):
        actual = model.snr_db(model.step_for(bits))
        assert actual == pytest.approx(
            expected, abs=0.0065
        )  # half a unit of the last digit + .0015
    # Negative control: neighbouring shapes of the table are far outside.
    other = gct.GeneralizedGaussian(shape * 1.15, SCALE)
    assert abs(other.snr_db(other.step_for(1)) - SNR_AT_RATE[shape][0]) > 0.05


def test_steps_for_whole_bits_at_shape_087() -> None:
    model = gct.GeneralizedGaussian(0.87, SCALE)
    steps = [model.step_for(bits) / model.std for bits in (1, 2, 3, 4)]
    assert steps == pytest.approx([2.1658, 0.9748, 0.4696, 0.2319], abs=6e-5)  # printed digits


@pytest.mark.parametrize("shape", [MIN_SHAPE, 0.5, 1.0, 4.0, MAX_SHAPE])
@pytest.mark.parametrize("bits", [2e-4, 0.05, 2.0, 9.0, 31.0])
@pytest.mark.parametrize("zero_fraction", [0.0, 0.9])
def test_step_for_inverts_the_rate(shape: float, bits: float, zero_fraction: float) -> None:
    for scale in (1e-150, 1e150):
        model = gct.GeneralizedGaussian(shape, scale, zero_fraction)
        step = model.step_for(bits)
        # A relative error of 1e-12 in step is one of 2e-12 bits, or as much of a small rate.
        assert model.rate(step) == pytest.approx(bits, rel=1e-9)
        assert model.step_for(model.rate(step)) == pytest.approx(step, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("db", [0.5, 12.0, 40.0, 120.0])
def test_step_for_snr_inverts_the_snr(shape: float, db: float) -> None:
    model = gct.GeneralizedGaussian(shape, SCALE, zero_fraction=0.25)
    assert model.snr_db(model.step_for_snr(db)) == pytest.approx(db, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_small_steps_reach_the_high_rate_limits(shape: float) -> None:
    model = gct.GeneralizedGaussian(shape, SCALE)
    step = model.step_for(16.0)
    # The cusp of shape 0.3 still costs 8e-6 bits at 16 bits.
    assert model.entropy(step) == pytest.approx(model.entropy() - math.log2(step), abs=2e-5)
    assert model.distortion(step) == pytest.approx(step**2 / 12.0, rel=1e-4)
    # Gish and Pierce: half of log2(pi e / 6) bits above the Shannon lower bound.
    bound = model.entropy() - 0.5 * math.log2(2 * math.pi * math.e * model.distortion(step))
    assert 16.0 - bound == pytest.approx(0.5 * math.log2(math.pi * math.e / 6), abs=1e-4)


@pytest.mark.parametrize("shape", [MIN_SHAPE, *SHAPES, MAX_SHAPE])
def test_rate_falls_and_distortion_grows_with_step(shape: float) -> None:
    model = gct.GeneralizedGaussian(shape, SCALE)
    steps = [model.std * 2.0**e for e in np.arange(-8, 6, 0.5)]
    rates = [model.rate(step) for step in steps]
    errors = [model.distortion(step) for step in steps]
    # Strictly, down to where the mass outside bin 0 underflows.
    assert all(a > b or a == b == 0.0 for a, b in itertools.pairwise(rates))
    # Strictly up to where the error has reached the variance in float64.
    assert all(a < b or a > 0.999999 * model.std**2 for a, b in itertools.pairwise(errors))
    assert errors[-1] <= model.std**2 * (1 + NEGLIGIBLE)
    assert model.rate(1e300) == 0.0


# The atom at zero and the point mass


def test_atom_enters_every_quantity() -> None:
    density = gct.GeneralizedGaussian(0.87, SCALE)
    model = dataclasses.replace(density, zero_fraction=0.6)
    assert model.nonzero == density
    assert model.mean_abs == pytest.approx(0.4 * density.mean_abs, rel=NEGLIGIBLE)
    assert model.std == pytest.approx(math.sqrt(0.4) * density.std, rel=NEGLIGIBLE)
    assert model.distortion(1.0) == pytest.approx(0.4 * density.distortion(1.0), rel=NEGLIGIBLE)
    assert model.cdf(-1.0) == pytest.approx(0.4 * density.cdf(-1.0), rel=NEGLIGIBLE)
    assert model.cdf(0.0) - model.cdf(-1e-300) == pytest.approx(0.6, rel=NEGLIGIBLE)
    assert [model.quantile(p) for p in (0.21, 0.5, 0.79)] == [0.0, 0.0, 0.0]
    assert model.quantile(0.1) == pytest.approx(density.quantile(0.25), rel=INCOMPLETE_GAMMA)
    assert model.log_prob(0.0) == pytest.approx(math.log(0.6), rel=NEGLIGIBLE)
    log_prob = math.log(0.4) + density.log_prob(1.0)
    assert model.log_prob(1.0) == pytest.approx(log_prob, rel=NEGLIGIBLE)
    mixing = -0.6 * math.log2(0.6) - 0.4 * math.log2(0.4)
    assert model.entropy() == pytest.approx(mixing + 0.4 * density.entropy(), rel=NEGLIGIBLE)
    assert model.rate(0.1) < density.rate(0.1)


@pytest.mark.parametrize(
    "model", [gct.GeneralizedGaussian(1.0, 0.0), gct.GeneralizedGaussian(1.0, 2.0, 1.0)]
)
def test_point_mass_is_legal(model: gct.GeneralizedGaussian) -> None:
    assert model.zero_fraction == 1.0
    assert (model.std, model.mean_abs, model.moment(0)) == (0.0, 0.0, 1.0)
    assert (model.rate(0.1), model.distortion(0.1), model.snr_db(0.1)) == (0.0, 0.0, math.inf)
    assert (model.cdf(-1e-9), model.cdf(0.0), model.quantile(0.3)) == (0.0, 1.0, 0.0)
    assert (model.log_prob(0.0), model.log_prob(1.0)) == (0.0, -math.inf)
    assert model.sample(3).tolist() == [0.0, 0.0, 0.0]
    for solve in (model.step_for, model.step_for_snr):
        with pytest.raises(ValueError, match="expected a distribution with scale > 0"):
            solve(2.0)


# Sampling


@pytest.mark.parametrize("shape", [MIN_SHAPE, *SHAPES, MAX_SHAPE])
def test_samples_follow_the_distribution(shape: float) -> None:
    """Kolmogorov-Smirnov, seeded: a sound sampler fails a given seed with probability 1e-3."""
    x = gct.GeneralizedGaussian(shape, SCALE).sample(50_000, seeded(11)).numpy()
    assert scipy.stats.kstest(x, scipy.stats.gennorm(shape, scale=SCALE).cdf).pvalue > 1e-3
    # Negative control: another shape of the same mean magnitude.
    wrong = gct.GeneralizedGaussian(1.6 * shape if shape < MAX_SHAPE else 0.5 * shape, 1.0)
    rescaled = scipy.stats.gennorm(wrong.shape, scale=np.abs(x).mean() / wrong.mean_abs)
    assert scipy.stats.kstest(x, rescaled.cdf).pvalue < 1e-3


def test_samples_hold_the_atom() -> None:
    x = gct.GeneralizedGaussian(0.5, SCALE, zero_fraction=0.7).sample(100_000, seeded(3))
    fraction = (x == 0).double().mean().item()
    assert fraction == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 100_000))  # 4 standard errors


def test_generator_is_the_only_source_of_randomness() -> None:
    model = gct.GeneralizedGaussian(0.5, 1.0, zero_fraction=0.1)
    before = torch.get_rng_state()
    first = model.sample(300_000, seeded(5))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, model.sample(300_000, seeded(5)))
    assert not torch.equal(first, model.sample(300_000, seeded(6)))
    generator = seeded(5)
    model.sample(10, generator)
    assert not torch.equal(first[:10], model.sample(10, generator))


def test_sampling_without_a_generator_follows_torch_manual_seed() -> None:
    model = gct.GeneralizedGaussian(0.5, 1.0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = model.sample(100)
        torch.manual_seed(5)
        assert torch.equal(first, model.sample(100))
        assert not torch.equal(first, model.sample(100))


def test_a_seed_is_no_generator() -> None:
    with pytest.raises(TypeError, match=r"generator: .*got int; .*manual_seed\(seed\)"):
        gct.GeneralizedGaussian(1.0, SCALE).sample(2, generator=3)  # type: ignore[arg-type]


def test_sample_shapes() -> None:
    model = gct.GeneralizedGaussian(0.5, 1.0)
    assert model.sample(0).shape == (0,)
    assert model.sample((2, 3), seeded(1)).shape == (2, 3)
    assert torch.equal(model.sample((2, 3), seeded(1)).view(-1), model.sample(6, seeded(1)))
    assert model.sample(()).shape == ()


# Fitting


def cramer_rao(shape: float) -> float:
    """The least standard deviation, times sqrt(n), of any unbiased shape, scale unknown, too.

    From the Fisher information of one element with scale 1, by quadrature of the scores.
    """
    density = scipy.stats.gennorm(shape).pdf

    def scores(x: float) -> np.ndarray:
        """Derivatives of ln f in shape and scale."""
        t = x**shape
        constant = 1 / shape + scipy.special.digamma(1 / shape) / shape**2
        return np.array([constant - t * math.log(x), shape * t - 1])

    far = 60.0 ** (1 / shape)  # mass e^-60 beyond
    information = np.array(
        [
            # u^4 for x flattens the cusp at 0; both sides together.
            scipy.integrate.quad(
                lambda u, i=i, j=j: (
                    2 * scores(u**4)[i] * scores(u**4)[j] * density(u**4) * 4 * u**3
                ),
                1e-12,
                far**0.25,
                limit=200,
            )[0]
            for i, j in ((0, 0), (0, 1), (1, 1))
        ]
    )
    return math.sqrt(information[2] / (information[0] * information[2] - information[1] ** 2))


# The same at 10 000 elements, to three decimals, from a separate computation.
MLE_SD = {0.3: 0.005, 0.5: 0.008, 0.87: 0.016, 1.0: 0.019, 1.3: 0.026, 2.0: 0.045}


@pytest.mark.parametrize("shape", MLE_SD)
def test_bound_is_that_of_the_table(shape: float) -> None:
    assert cramer_rao(shape) / 100 == pytest.approx(MLE_SD[shape], abs=5e-4)


@pytest.mark.parametrize("shape", MLE_SD)
def test_fit_is_efficient(shape: float) -> None:
    n, repeats = 10_000, 80
    model, bound = gct.GeneralizedGaussian(shape, SCALE), cramer_rao(shape) / math.sqrt(n)
    generator = seeded(2025)
    fits = [gct.fit(model.sample(n, generator)) for _ in range(repeats)]
    shapes = torch.tensor([f.shape for f in fits], dtype=torch.float64)
    # An sd from 80 repeats is known to 8 %: 3 of its errors. Moments E x^2 and E|x| would give
    # 1.8 times the bound at shape 0.5; the kurtosis 10 times.
    assert shapes.std().item() == pytest.approx(bound, rel=0.24)
    # The bias of a maximum likelihood estimate is a small fraction of its sd.
    assert abs(shapes.mean().item() - shape) < 4 * bound / math.sqrt(repeats)


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
def test_fit_is_the_likeliest_that_scipy_finds(shape: float) -> None:
    x = gct.GeneralizedGaussian(shape, SCALE).sample(3000, seeded(13))
    ours = gct.fit(x)
    found, _, scale = scipy.stats.gennorm.fit(x.numpy(), 1.3 * shape, floc=0, scale=SCALE)
    scipys = gct.GeneralizedGaussian(found, scale)
    assert ours.log_likelihood(x) >= scipys.log_likelihood(x) - 1e-6
    # scipy's simplex stops at steps of 1e-4.
    assert (ours.shape, ours.scale) == pytest.approx((found, scale), rel=1e-3)


@pytest.mark.parametrize("shape", [0.4, 0.87, 2.0])
@pytest.mark.parametrize("zero_fraction", [0.0, 0.3, 0.6, 0.9])
def test_fit_sets_zeros_apart(shape: float, zero_fraction: float) -> None:
    nonzeros = 300_000
    n = round(nonzeros / (1.0 - zero_fraction))
    model = gct.GeneralizedGaussian(shape, 1e-3, zero_fraction)
    x = torch.zeros(n)
    x[-nonzeros:] = model.nonzero.sample(nonzeros, seeded(7)).float()
    found = gct.fit(x)
    # At shape 2 the standard error is 0.0083; 0.03 is 3.6 of them, more for the other shapes.
    assert abs(found.shape - shape) < 0.03
    # E|x| has a relative standard error of at most 1.82 / sqrt(n), 0.0033; std is no worse here.
    assert found.nonzero.mean_abs == pytest.approx(model.nonzero.mean_abs, rel=0.01)
    assert found.nonzero.std == pytest.approx(model.nonzero.std, rel=0.01)
    assert found.zero_fraction == pytest.approx(zero_fraction, abs=1e-6)  # n is a whole number


def test_fit_maximizes_the_likelihood() -> None:
    """No neighbour in shape or scale is likelier, also on data from another family."""
    x = torch.distributions.StudentT(4.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        data = x.sample((20_000,)).double()
    best = gct.fit(data)
    top = best.log_likelihood(data)
    for shape in (0.97, 1.0, 1.03):
        for scale in (0.97, 1.0, 1.03):
            if (shape, scale) != (1.0, 1.0):
                other = gct.GeneralizedGaussian(best.shape * shape, best.scale * scale)
                assert other.log_likelihood(data) < top


@pytest.mark.parametrize("unit", [1e-300, 1e-20, 1.0, 1e20, 1e300])
def test_fit_does_not_depend_on_the_unit(unit: float) -> None:
    x = gct.GeneralizedGaussian(0.6, 1.0).sample(20_000, seeded(9))
    plain, scaled = gct.fit(x), gct.fit(x * unit)
    # Rounding of x * unit, amplified by Newton's stop at 1e-6 and what little it leaves.
    assert scaled.shape == pytest.approx(plain.shape, rel=1e-9)
    assert scaled.scale / unit == pytest.approx(plain.scale, rel=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Rounding to 24, 11 and 8 bits moves x by a relative 6e-8, 5e-4 and 4e-3 at most, at random.
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 3e-3)],
)
def test_fit_reads_every_float_type(dtype: torch.dtype, tolerance: float) -> None:
    x = gct.GeneralizedGaussian(0.87, 1.0).sample(100_000, seeded(4))
    reference = gct.fit(x)
    # float16 flushes |x| < 3e-8 to zero, so zeros are left out of the comparison.
    found = gct.fit(x.to(dtype)).nonzero
    assert found.shape == pytest.approx(reference.shape, rel=tolerance)
    assert found.std == pytest.approx(reference.std, rel=tolerance)


def test_fit_takes_any_layout_and_leaves_it_alone() -> None:
    x = gct.GeneralizedGaussian(0.87, 1.0).sample((300, 1000), seeded(4))
    for view in (x, x.t(), x[::2, 1::3], x.view(3, 100, 10, 100), x.requires_grad_()):
        before = view.detach().clone()
        assert gct.fit(view) == gct.fit(before.contiguous().view(-1))
        assert torch.equal(view, before)


def test_fit_of_a_meta_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="got one on the meta device"):
        gct.fit(torch.empty(4, device="meta"))


def test_fit_of_degenerate_data() -> None:
    assert gct.fit(torch.zeros(5)) == gct.GeneralizedGaussian(1.0, 0.0, 1.0)
    for same in (torch.tensor(3.0), torch.tensor([0.0, -3.0, 3.0, 3.0])):
        found = gct.fit(same)
        assert found.shape == MAX_SHAPE
        # The likelihood's optimum with |x| = c throughout: a^b = b c^b.
        assert found.scale == pytest.approx(3.0 * MAX_SHAPE ** (1 / MAX_SHAPE), rel=1e-12)
    spike = torch.full((1000,), 1e-30)
    spike[17] = 1e30
    assert gct.fit(spike).shape == MIN_SHAPE
    denormal = torch.tensor([5e-324, -5e-324, 1e-323], dtype=torch.float64)
    assert 0.0 < gct.fit(denormal).std < 1e-322
    two_ends = torch.tensor([5e-324, 1.7e308], dtype=torch.float64)
    assert math.isfinite(gct.fit(two_ends).scale)


def layers(shape: float, spread: float) -> torch.Tensor:
    """64 layers of 4096 elements, ln(scale) normal with standard deviation ``spread``."""
    generator = seeded(3)
    scales = torch.exp(spread * torch.randn(64, 1, generator=generator, dtype=torch.float64))
    return gct.GeneralizedGaussian(shape, 1.0).sample((64, 4096), generator) * scales


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
def test_pooled_scales_warn(shape: float) -> None:
    pooled = layers(shape, 1.0)
    with pytest.warns(PooledScaleWarning, match="pooled from different scales"):
        found = gct.fit(pooled)
    assert found.shape < 0.75 * shape
    assert gct.fit(pooled, warn_pooled=False) == found
    with pytest.warns(PooledScaleWarning):  # too large to be looked at whole
        gct.fit(pooled.repeat(1, 5).float())


@pytest.mark.parametrize("shape", [*SHAPES, MAX_SHAPE])
@pytest.mark.parametrize("n", [1, 2048, 300_000])
def test_homogeneous_data_do_not_warn(shape: float, n: int) -> None:
    """Warnings are errors in this suite, so a fit without pytest.warns is the check."""
    gct.fit(gct.GeneralizedGaussian(shape, SCALE, zero_fraction=0.5).sample(n, seeded(n)))


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "shape: expected a number from 0.1 to 10, got 0.0"),
        ((10.5, 1.0), "shape: expected a number from 0.1 to 10, got 10.5"),
        ((math.nan, 1.0), "shape: expected a number from 0.1 to 10, got nan"),
        ((1.0, -1.0), "scale: expected a finite number >= 0, got -1.0"),
        ((1.0, math.inf), "scale: expected a finite number >= 0, got inf"),
        ((1.0, math.nan), "scale: expected a finite number >= 0, got nan"),
        ((1.0, 1.0, 1.5), "zero_fraction: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_parameters_out_of_range(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gct.GeneralizedGaussian(*arguments)


@pytest.mark.parametrize("value", ["1.0", None, True, 1j, torch.tensor(1.0)])
def test_parameters_of_another_type(value: object) -> None:
    with pytest.raises(TypeError, match="scale: expected a real number, got"):
        gct.GeneralizedGaussian(1.0, value)  # type: ignore[arg-type]


def test_frozen_and_hashable() -> None:
    model = gct.GeneralizedGaussian(np.float32(0.5), 1)
    assert (type(model.shape), type(model.scale)) == (float, float)
    assert len({model, gct.GeneralizedGaussian(0.5, 1.0)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.shape = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.rate(0.0), "step: expected a finite number > 0, got 0.0"),
        (lambda m: m.entropy(-1.0), "step: expected a finite number > 0, got -1.0"),
        (lambda m: m.distortion(math.nan), "step: expected a finite number > 0, got nan"),
        (lambda m: m.snr_db(math.inf), "step: expected a finite number > 0, got inf"),
        (lambda m: m.step_for(0.0), "bits: expected a number from 0.0001 to 32, got 0.0"),
        (lambda m: m.step_for(33), "bits: expected a number from 0.0001 to 32, got 33.0"),
        (lambda m: m.step_for_snr(-3.0), "db: expected a number from 0.001 to 180, got -3.0"),
        (lambda m: m.moment(-0.5), "r: expected a finite number >= 0, got -0.5"),
        (lambda m: m.quantile(1.5), r"p: expected probabilities in \[0, 1\], got 1.5"),
        (lambda m: m.quantile(math.nan), r"p: expected probabilities in \[0, 1\], got nan"),
        (lambda m: m.sample(-1), "n: expected lengths >= 0, got -1"),
    ],
)
def test_method_arguments_out_of_range(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(gct.GeneralizedGaussian(1.0, 1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.rate("1"), "step: expected a real number, got str"),
        (lambda m: m.sample(2.0), "n: expected an integer or a tuple of integers, got 2.0"),
        (lambda m: m.log_likelihood(torch.ones(3, dtype=torch.int32)), "x: expected a dense"),
    ],
)
def test_method_arguments_of_another_type(call, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(gct.GeneralizedGaussian(1.0, 1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fit_refuses_what_is_not_finite(bad: float, dtype: torch.dtype) -> None:
    x = torch.ones(300_000, dtype=dtype)
    x[[5, 299_999]] = bad
    with pytest.raises(ValueError, match="x: expected finite values, got 2 NaN or infinite"):
        gct.fit(x)


def test_fit_refuses_empty_and_other_types() -> None:
    with pytest.raises(ValueError, match="x: expected at least one element, got none"):
        gct.fit(torch.empty(0))
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        gct.fit([1.0, 2.0])  # type: ignore[arg-type]
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=f"x: expected a dense tensor .* got {dtype}"):
            gct.fit(torch.ones(3, dtype=dtype))
    with pytest.raises(TypeError, match="sparse"):
        gct.fit(torch.eye(3).to_sparse())
