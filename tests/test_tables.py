"""The generated tables: up to date, and right by formulas that the generator doesn't use."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from tool_scripts import load_tool


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load_tool("generate_tables")


def unit_mean(shape: float) -> scipy.stats.rv_continuous:
    """The generalized Gaussian with E|x| = 1, by scipy's own density."""
    plain = scipy.stats.gennorm(shape)
    mean = 2 * scipy.integrate.quad(lambda x: x * plain.pdf(x), 0, np.inf, limit=200)[0]
    return scipy.stats.gennorm(shape, scale=1 / mean)


def moment_between(law: scipy.stats.rv_continuous, order: int, low: float, high: float) -> float:
    """Of |x|, both signs; numerically."""
    points = np.linspace(low, high, 9)
    parts = [
        scipy.integrate.quad(lambda x: x**order * law.pdf(x), a, b, epsabs=1e-13)[0]
        for a, b in itertools.pairwise(points)
    ]
    return 2 * float(sum(parts))


def test_committed_file_is_what_the_script_writes(tables: ModuleType) -> None:
    committed: str = tables.OUTPUT.read_text()
    generated: str = tables.generate()
    lines = zip(committed.splitlines(), generated.splitlines(), strict=False)
    first = next((i for i, (a, b) in enumerate(lines, 1) if a != b), None)
    assert first is None, f"line {first} of {tables.OUTPUT.name} differs: run tools/{__name__}"
    assert committed == generated


CELLS = [(shape, t) for shape in (0.45, 0.87, 1.0, 2.0, 6.0) for t in (-6, 0, 5, 10)]


@pytest.mark.parametrize(("shape", "t"), CELLS)
def test_frequencies_are_bin_masses(tables: ModuleType, shape: float, t: int) -> None:
    """A frequency is its bin's probability in 1/4096, rounded: half a unit, and at least 1. The
    zero's takes what the others' rounding left, half a unit of each."""
    table = tables.symbol_table(shape, t)
    law, step = unit_mean(shape), 2 ** (-t / 4)
    edges = (np.arange(len(table["freqs"]) - 1) + 0.5 + table["deadzone"] / 256) * step
    one_sided = np.diff(law.cdf(edges)) * 4096
    freqs = np.array(table["freqs"])
    # The distribution function is good to 1e-9 of the whole: nothing next to half a unit.
    assert np.all(np.abs(freqs[1:-1] - np.maximum(one_sided, 1)) <= 0.5 + 1e-5)
    escape = 2 * law.sf(edges[-1]) * 4096
    assert abs(freqs[-1] - max(escape, 1)) <= 0.5 + 1e-5
    zero = (law.cdf(edges[0]) - law.cdf(-edges[0])) * 4096
    lifted = 2 * np.maximum(1 - one_sided, 0).sum() + max(1 - escape, 0)
    assert abs(freqs[0] - zero) <= 0.5 * (2 * len(one_sided) + 1) + lifted + 1e-5
    assert freqs[0] + 2 * freqs[1:-1].sum() + freqs[-1] == 4096


@pytest.mark.parametrize(("shape", "t"), CELLS)
def test_offsets_lead_to_centroids(tables: ModuleType, shape: float, t: int) -> None:
    """Half a unit of 1/4096 step; 1e-4 units for the quadrature."""
    table = tables.symbol_table(shape, t)
    law, step = unit_mean(shape), 2 ** (-t / 4)
    for k in range(1, min(6, len(table["offsets"]) + 1)):
        low = (k - 0.5 + table["deadzone"] / 256) * step
        mass = moment_between(law, 0, low, low + step)
        if mass < 1e-7:  # a quotient of two tiny integrals
            continue
        centroid = moment_between(law, 1, low, low + step) / mass / step
        assert abs((k - centroid) * 4096 - table["offsets"][k - 1]) <= 0.5 + 1e-4


@pytest.mark.parametrize("shape", [0.87, 1.0, 2.0])
def test_rate_and_distortion_of_samples(tables: ModuleType, shape: float) -> None:
    """The model's numbers against quantizing a million samples. Four standard errors: the spread of
    a code length is below 3 bits and of an error below 1 step^2 times its mean's order, so 0.02
    bits and 2 % cover them and the 12-bit frequencies."""
    table = tables.symbol_table(shape, 2)
    step, deadzone = 2**-0.5, table["deadzone"] / 256
    law = unit_mean(shape)
    x = np.abs(law.rvs(size=1_000_000, random_state=1)) / step
    k = np.floor(x + 0.5 - deadzone).astype(int)
    k[k < 0] = 0
    freqs = np.array(table["freqs"])
    inside = k <= len(freqs) - 2
    bits = 12 - np.log2(freqs[np.minimum(k, len(freqs) - 1)])
    assert bits[inside].mean() == pytest.approx(table["rate"] / 4096, abs=0.02)
    offsets = np.concatenate([[0], table["offsets"], table["offsets"][-1:]])
    level = np.where(k > 0, k - offsets[np.minimum(k, len(offsets) - 1)] / 4096, 0)
    distortion = np.mean((x - level) ** 2)
    assert distortion == pytest.approx(table["distortion"] / 16384, rel=0.02)


def test_deadzone_pays(tables: ModuleType) -> None:
    """At the table's lambda the chosen deadzone beats none, and its neighbours don't beat it by
    more than the search's grid of 2/256 leaves (1e-4)."""
    for shape, t in CELLS:
        law = tables.UnitGG(shape)
        chosen = tables.symbol_table(shape, t)["deadzone"]

        def cost(units: int, law: object = law, t: int = t) -> float:
            rate, error = tables.entropy_and_distortion(law, 2 ** (-t / 4), units / 256)
            return float(error + tables.LAMBDA * rate)

        assert cost(chosen) <= cost(0)
        assert cost(chosen) <= min(cost(max(chosen - 6, 0)), cost(min(chosen + 6, 76))) + 1e-4


# Positive levels in standard deviations, from Max 1960 (Gauss) and Paez and Glisson 1972 (Laplace);
# printed to four digits.
KNOWN_LEVELS = {
    (2.0, 1): [0.7980],
    (2.0, 2): [0.4528, 1.510],
    (2.0, 4): [0.2451, 0.7560, 1.344, 2.152],
    (1.0, 1): [0.7071],
    (1.0, 2): [0.4198, 1.8340],
    (1.0, 4): [0.2334, 0.8330, 1.6725, 3.0867],
}


@pytest.mark.parametrize(("shape", "count"), KNOWN_LEVELS)
def test_fixed_levels_are_the_known_ones(tables: ModuleType, shape: float, count: int) -> None:
    deviation = {1.0: math.sqrt(2), 2.0: math.sqrt(math.pi / 2)}[shape]  # where E|x| = 1
    levels = np.array(tables.lloyd_max(shape, count)) / 65536 / deviation
    assert np.allclose(levels, KNOWN_LEVELS[shape, count], rtol=5e-4)


@pytest.mark.parametrize("shape", [0.45, 1.0, 2.0])
def test_fixed_levels_are_centroids(tables: ModuleType, shape: float) -> None:
    """Each level is the mean of the values nearest to it: Lloyd's condition, by quadrature. The
    iteration stops when levels move by 1e-6 a time, which leaves them 1e-3 from there at most."""
    levels = np.array(tables.lloyd_max(shape, 8)) / 65536
    law = unit_mean(shape)
    edges = np.concatenate([[0], (levels[1:] + levels[:-1]) / 2, [levels[-1] * 20]])
    for low, level, high in zip(edges[:-1], levels, edges[1:], strict=True):
        centroid = moment_between(law, 1, low, high) / moment_between(law, 0, low, high)
        assert level == pytest.approx(centroid, rel=1e-3)


def test_shape_grid(tables: ModuleType) -> None:
    """E x^2 / (E|x|)^2: 2 for Laplace, pi / 2 for Gauss, 4 / 3 for a box."""
    assert tables.rho(1.0) == pytest.approx(2, rel=1e-12)
    assert tables.rho(2.0) == pytest.approx(math.pi / 2, rel=1e-12)
    assert tables.rho(1000.0) == pytest.approx(4 / 3, rel=1e-3)
    assert sorted(tables.SHAPES) == tables.SHAPES
