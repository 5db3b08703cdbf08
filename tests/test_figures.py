"""The figures of the report and of gct fit: what is drawn is what was recorded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra 'report')")

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from plotted import curve

from gct._cli import figures
from gct._cli.fit import Row
from gct._cli.fit_plot import _draw_rows
from gct._cli.goodness import Fit
from gct._cli.plotting import ORANGE, draw_histogram, label_rows
from gct._histogram import REACH, Histogram
from gct._recording import Interval, Recording, Sample

NAMES = ["first", "second", "third"]


def interval(steps: int = 10, **counters: Any) -> Interval:
    """All numbers differ, so that none can stand for another."""
    given = {
        "seconds": 4.0,
        "raw_bytes": 3200,
        "wire_bytes": 400,
        "plain_bytes": 7,
        "encoded_numel": 800,
        "encoded_bytes": 250,
        "encode_seconds": 0.1,
        "wait_seconds": 0.2,
        "decode_seconds": 0.05,
    }
    return Interval(**{"steps": steps, **given, **counters})


def sample(step: int, between: Interval | None = None, shift: float = 0.0) -> Sample:
    columns = {
        column: {name: base + place + shift for place, name in enumerate(NAMES)}
        for base, column in enumerate(("shape", "scale", "bits", "nmse"), start=1)
    }
    return Sample(step, between or interval(), dict.fromkeys(NAMES, 100), columns)


def recording(*samples: Sample, **parts: Any) -> Recording:
    return Recording({"interval": 20, "settings": {}}, list(samples), **parts)


def drawn(result: tuple[Figure, str] | None) -> Figure:
    assert result is not None
    return result[0]


def row_places(axes: Axes) -> dict[str, float]:
    """By name, its height on the y axis."""
    labels = [label.get_text() for label in axes.get_yticklabels()]
    return dict(zip(labels, axes.get_yticks().tolist(), strict=True))


# ---- curves


def test_wire_shows_bits_and_how_many_times_fewer_bytes() -> None:
    second = interval(encoded_bytes=500, wire_bytes=800)
    bits, ratio = drawn(figures._wire(recording(sample(2), sample(22, second)))).axes
    assert curve(bits) == [(2, 8 * 250 / 800), (22, 8 * 500 / 800)]
    assert curve(ratio) == [(2, 3200 / 400), (22, 3200 / 800)]


@pytest.mark.parametrize(
    ("setting", "expected"), [(None, []), (2.0, [2.0]), ([[0, 3.0], [10, 1.0]], [3.0, 1.0])]
)
def test_wire_shows_the_bits_that_were_asked_for(setting: Any, expected: list[float]) -> None:
    shown = recording(sample(2), sample(22))
    shown.header["settings"]["bits"] = setting
    bits, _ = drawn(figures._wire(shown)).axes
    assert [line.get_ydata()[0] for line in bits.get_lines()[1:]] == expected


def test_times_are_those_of_each_stage_by_step() -> None:
    [axes] = drawn(figures._times(recording(sample(2), sample(22, interval(steps=20))))).axes
    for label, seconds in (("encode", 0.1), ("wait", 0.2), ("decode", 0.05), ("whole step", 4.0)):
        expected = [(2, 1e3 * seconds / 10), (22, 1e3 * seconds / 20)]
        assert curve(axes, label) == [pytest.approx(point) for point in expected], label


def test_long_curve_is_the_mean_of_each_stretch_in_a_band_of_its_range() -> None:
    axes = Figure().add_subplot()
    count, each = figures._MAX_POINTS, 3
    points = [(step, 9.0 if step % each == 2 else 0.0) for step in range(count * each)]
    figures._curve(axes, points)
    assert curve(axes) == [(each * i + 1, 3.0) for i in range(count)]
    [band] = axes.collections
    box = band.get_datalim(axes.transData)
    assert (box.y0, box.y1) == (0.0, 9.0)


# ---- heat maps


def test_heat_map_has_its_values_by_name_and_time() -> None:
    figure = drawn(figures._shape(recording(sample(2), sample(22, shift=0.5))))
    axes = figure.axes[0]
    [mesh] = axes.collections
    corners = mesh.get_coordinates()
    # A measurement stands until the next one; the last for another interval.
    assert corners[0, :, 0].tolist() == [2, 22, 42]
    heights = row_places(axes)
    assert list(heights) == NAMES
    for place, name in enumerate(NAMES):
        [row] = np.flatnonzero(np.diff(np.sign(corners[:, 0, 1] - heights[name])))
        assert mesh.get_array()[row].tolist() == [1 + place, 1.5 + place]
    bottom, top = axes.get_ylim()
    assert bottom > top  # the first name stands on top


def test_of_many_rows_every_so_many_th_is_named_at_its_place() -> None:
    axes = Figure().add_subplot()
    label_rows(axes, [f"name {i}" for i in range(200)])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"name {int(tick)}" for tick in axes.get_yticks()]
    assert axes.get_yticks().tolist() == list(range(0, 200, 3))


def test_one_odd_cell_does_not_dim_the_others() -> None:
    values = np.append(np.linspace(1.0, 2.0, 999), 1e6).reshape(10, 100)
    norm = figures._norm(values, logarithmic=False)
    assert (norm.vmin, norm.vmax) == pytest.approx((1.01, 1.99), abs=0.002)
    norm = figures._norm(np.append(values, [0.0, math.nan]), logarithmic=True)
    assert isinstance(norm, LogNorm)
    assert (norm.vmin, norm.vmax) == pytest.approx((1.01, 1.99), abs=0.002)


# ---- histograms


def shown(counts: list[int], outside: int = 0, std: float = 2e-3) -> Histogram:
    """Of Laplace data with this standard deviation."""
    reach = REACH * std
    return Histogram(-reach, reach, counts, outside, 1.0, std / math.sqrt(2), 0.0)


def test_histogram_is_a_density_with_the_fitted_one_over_it() -> None:
    axes = Figure().add_subplot()
    draw_histogram(axes, "w", shown([1, 0, 6, 2, 1], outside=10))
    [bars] = axes.patches
    values, edges, _ = bars.get_data()
    assert edges.tolist() == pytest.approx([-6, -3.6, -1.2, 1.2, 3.6, 6])
    # In standard deviations; half of the elements lie beyond. 0 has no place on a log axis.
    one = 1 / 20 / 2.4
    assert values.tolist() == pytest.approx([one, 0.1 * one, 6 * one, 2 * one, one])
    [fitted] = [line for line in axes.get_lines() if line.get_color() == ORANGE]
    x, y = fitted.get_data()
    laplace = scipy.stats.laplace(scale=math.sqrt(0.5))  # standard deviation 1
    assert y == pytest.approx(laplace.pdf(x), rel=1e-6)
    assert (x[0], x[-1]) == (-REACH, REACH)


def test_latest_histogram_is_filled_and_the_first_an_outline() -> None:
    early, middle, late = (shown([0, n, 0]) for n in (4, 5, 7))
    early.counts[0], late.counts[2] = 4, 7
    points = {"second": [(2, early), (4, middle), (6, late)], "first": [(2, early)]}
    figure = drawn(figures._histograms(recording(sample(2), histograms=points)))
    one, two = figure.axes  # in the model's order
    assert [len(axes.patches) for axes in (one, two)] == [1, 2]
    filled, outline = two.patches
    assert (filled.get_fill(), outline.get_fill()) == (True, False)
    of_late, of_early = (patch.get_data().values for patch in (filled, outline))
    assert of_late[2] == of_late[1] > of_late[0]
    assert of_early[0] == of_early[1] > of_early[2]


# ---- gct fit


def fit_row(name: str, place: int) -> Row:
    numbers = {"shape": 1.0, "block_shape": 1.5, "loss": 0.01, "laplace_loss": 0.02}
    numbers = {key: value * (1 + place) for key, value in numbers.items()}
    others = {"zero_fraction": 0.0, "pooled": False, "scale": 1.0, "std": 1.0, "bits": 3.0}
    return Row(
        name, (10,), Fit(numel=10, normal_loss=0.04 * (1 + place), **numbers, **others), None
    )


def test_fit_shows_each_number_beside_its_name() -> None:
    figure = Figure()
    _draw_rows(figure.subfigures(), [fit_row(name, place) for place, name in enumerate(NAMES)])
    shapes, losses = figure.subfigs[0].axes
    expected = {
        shapes: {"whole tensor": 1.0, "in blocks of 256": 1.5},
        losses: {"generalized Gaussian": 0.01, "Laplace": 0.02, "normal": 0.04},
    }
    heights = row_places(shapes)
    assert list(heights) == NAMES
    assert losses.get_ylim() == shapes.get_ylim()
    for axes, series in expected.items():
        for label, value in series.items():
            dots = [(value * (1 + place), heights[name]) for place, name in enumerate(NAMES)]
            assert curve(axes, label) == dots, label
