"""The figures of a monitor's report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from gct._cli.plotting import (
    INK,
    MUTED,
    SERIES,
    draw_histogram,
    label_rows,
    new_figure,
    plain_log_ticks,
    plain_text,
    rows_height,
    style,
    to_svg,
)
from gct._recording import Interval, Recording, Sample

_WIDTH = 11.0  # inches, of a figure that fills the page
_MAX_POINTS = 1000  # of a curve: more than the page has pixels
_COLUMNS = 3
MAX_HISTOGRAMS = 24

# The column, what it is called, and whether its values spread over powers of ten.
_TITLES = {
    "shape": ("shape", False),
    "bits": ("bits per element", False),
    "nmse": ("NMSE", True),
    "scale": ("scale", True),
}


def draw_all(recording: Recording) -> dict[str, str]:
    """SVG elements by name: those for which the recording has something to show."""
    drawings: dict[str, Callable[[Recording], tuple[Figure, str] | None]] = {
        "loss": _loss,
        "others": _other_values,
        "wire": _wire,
        "shape": _shape,
        "columns": _other_columns,
        "histograms": _histograms,
        "times": _times,
    }
    result = {}
    with style():
        for name, draw in drawings.items():
            drawn = draw(recording)
            if drawn is not None:
                figure, description = drawn
                result[name] = to_svg(figure, name, description)
    return result


# ---- curves over steps


def _loss(recording: Recording) -> tuple[Figure, str] | None:
    losses = {name: points for name, points in recording.values.items() if _is_loss(name)}
    if not losses:
        return None
    figure = new_figure(_WIDTH, 3.4)
    axes = figure.add_subplot()
    for name, points in losses.items():
        _curve(axes, points, name)
    _over_steps(axes, "loss")
    axes.legend()
    return figure, "The logged losses over steps."


def _other_values(recording: Recording) -> tuple[Figure, str] | None:
    """Whatever else was logged, a small panel each."""
    values = [(name, p) for name, p in recording.values.items() if not _is_loss(name)]
    if not values:
        return None
    figure, panels = _grid(len(values), height=1.9)
    for (name, points), axes in zip(values, panels, strict=True):
        _curve(axes, points, name)
        axes.set_title(plain_text(name))
        _over_steps(axes, "")
    return figure, "Other logged values over steps."


def _wire(recording: Recording) -> tuple[Figure, str] | None:
    compressed = [s for s in recording.samples if s.interval.encoded_numel]
    if not compressed:
        return None
    figure = new_figure(_WIDTH, 3.0)
    bits, ratio = figure.subplots(1, 2)
    _curve(bits, [(s.step, s.interval.bits_per_element) for s in compressed])
    target = recording.header["settings"].get("bits")
    for value in [pair[1] for pair in target] if isinstance(target, list) else [target]:
        if value:
            bits.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    bits.set_ylim(bottom=0)
    _over_steps(bits, "bits per element")
    _curve(ratio, [(s.step, s.interval.ratio) for s in compressed])
    ratio.set_ylim(bottom=0)
    _over_steps(ratio, "times fewer bytes")
    return figure, "Bits per element on the wire, and the compression ratio, over steps."


def _times(recording: Recording) -> tuple[Figure, str] | None:
    stages: list[tuple[str, Callable[[Interval], float]]] = [
        ("encode", lambda interval: interval.encode_seconds),
        ("wait", lambda interval: interval.wait_seconds),
        ("decode", lambda interval: interval.decode_seconds),
        ("whole step", lambda interval: interval.seconds),
    ]
    timed = [s for s in recording.samples if s.interval.steps > 0 and s.interval.encoded_numel]
    if not timed:
        return None
    figure = new_figure(_WIDTH, 3.0)
    axes = figure.add_subplot()
    for name, seconds in stages:
        points = [(s.step, 1e3 * seconds(s.interval) / s.interval.steps) for s in timed]
        _curve(axes, [(step, value) for step, value in points if value > 0], name)
    axes.set_yscale("log")
    plain_log_ticks(axes, "y")
    _over_steps(axes, "ms per step")
    figure.legend(loc="outside right upper")
    return figure, "Milliseconds per step of encoding, waiting, decoding and the whole step."


def _curve(axes: Axes, points: Sequence[tuple[int, float]], label: str = "") -> None:
    """A line over steps; of a long one the mean of each stretch, and its range as a band."""
    colour = SERIES[len(axes.get_lines()) % len(SERIES)]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    if len(steps) > _MAX_POINTS:
        stretches = np.array_split(np.arange(len(steps)), _MAX_POINTS)
        parts = [values[stretch] for stretch in stretches]
        low, high = [part.min() for part in parts], [part.max() for part in parts]
        steps = np.array([steps[stretch].mean() for stretch in stretches])
        values = np.array([part.mean() for part in parts])
        axes.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
    marker = "." if len(steps) < 50 else ""
    axes.plot(steps, values, color=colour, marker=marker, label=plain_text(label))


def _over_steps(axes: Axes, label: str, ticks: int = 8) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, steps=(1, 2, 5, 10)))
    axes.margins(x=0.01)


# ---- by parameter


def _shape(recording: Recording) -> tuple[Figure, str] | None:
    if not recording.samples:
        return None
    figure = new_figure(_WIDTH, 1.1 + rows_height(len(recording.parameters())))
    _heat_map(figure, figure.add_subplot(), recording, "shape")
    return figure, "Heat map: shape of each parameter's gradient over steps."


def _other_columns(recording: Recording) -> tuple[Figure, str] | None:
    if not recording.samples:
        return None
    figure = new_figure(_WIDTH, 1.1 + rows_height(len(recording.parameters())))
    panels = figure.subplots(1, 3)
    for axes, column in zip(panels, ("bits", "nmse", "scale"), strict=True):
        _heat_map(figure, axes, recording, column)
        if axes is not panels[0]:
            axes.set_yticks([])
    return figure, "Heat maps: bits, error and scale of each parameter's gradient over steps."


def _heat_map(figure: Figure, axes: Axes, recording: Recording, column: str) -> None:
    names = recording.parameters()
    title, logarithmic = _TITLES[column]
    values = _matrix(recording.samples, names, column)
    mesh = axes.pcolormesh(
        _edges(recording),
        np.arange(len(names) + 1) - 0.5,
        np.ma.masked_invalid(values),
        norm=_norm(values, logarithmic),
        rasterized=True,  # one picture instead of a path for each cell
    )
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    label_rows(axes, names)
    alone = column == "shape"
    _over_steps(axes, "", ticks=8 if alone else 4)
    bar = figure.colorbar(
        mesh,
        ax=axes,
        location="top",
        shrink=0.4 if alone else 1.0,
        anchor=(0.0, 0.0),
        pad=0.01,
        aspect=30,
        extend="both",
    )
    bar.solids.set_rasterized(True)
    bar.outline.set_visible(False)
    bar.set_label(title, color=INK)
    _mark_colours(bar, logarithmic)


def _mark_colours(bar: Colorbar, logarithmic: bool) -> None:
    """A few ticks with plain numbers."""
    if logarithmic:
        wide = bar.norm.vmax > 30 * bar.norm.vmin  # whole decades are enough
        bar.locator = LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=5)
    else:
        bar.locator = MaxNLocator(5)
    bar.minorticks_off()
    bar.formatter = FuncFormatter(lambda value, _: f"{value:g}")
    bar.update_ticks()


def _matrix(samples: Sequence[Sample], names: Sequence[str], column: str) -> np.ndarray:
    """Rows are parameters; NaN where a sample has none."""
    rows = [[sample.columns[column].get(name) for sample in samples] for name in names]
    return np.array(rows, dtype=float)  # None becomes NaN


def _edges(recording: Recording) -> np.ndarray:
    """A measurement stands until the next one."""
    steps = [sample.step for sample in recording.samples]
    return np.array([*steps, steps[-1] + int(recording.header["interval"])], dtype=float)


def _norm(values: np.ndarray, logarithmic: bool) -> Normalize:
    """Colours from the 1st to the 99th percentile: one odd cell doesn't dim all others."""
    known = values[np.isfinite(values) & ((values > 0) | (not logarithmic))]
    if known.size == 0:
        return Normalize(0, 1)
    low, high = (float(bound) for bound in np.percentile(known, (1, 99)))
    if high <= low:
        low, high = 0.9 * low, 1.1 * high + math.ulp(high)
    return LogNorm(low, high) if logarithmic else Normalize(low, high)


def _histograms(recording: Recording) -> tuple[Figure, str] | None:
    order = {name: place for place, name in enumerate(recording.parameters())}
    shown = [(name, points) for name, points in recording.histograms.items() if points]
    shown.sort(key=lambda item: order.get(item[0], len(order)))
    if not shown:
        return None
    shown = shown[:MAX_HISTOGRAMS]
    figure, panels = _grid(len(shown), height=2.5)
    for (name, points), axes in zip(shown, panels, strict=True):
        draw_histogram(axes, name, points[-1][1], points[0][1] if len(points) > 1 else None)
    figure.supxlabel("gradient, in standard deviations", color=MUTED, fontsize=9)
    figure.supylabel("density", color=MUTED, fontsize=9)
    return figure, "Histograms of gradients with the density of the fitted generalized Gaussian."


# ---- small things


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """``count`` panels, at most three in a row."""
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure = new_figure(_WIDTH, height * rows + 0.3)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _is_loss(name: str) -> bool:
    return "loss" in name.lower()
