"""What the plots of the command line have in common: their look, rows of names, histograms."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from gct._fit import shape_text
from gct._histogram import REACH, Histogram

INK, MUTED, GRID = "#1f2328", "#59636e", "#d4dae1"
# Okabe and Ito's colours: told apart with colour blindness and in print.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SERIES = (BLUE, ORANGE, GREEN, PURPLE)
# In a page these become its style sheet's colours, which follow the reader's light or dark theme.
_CSS_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    PURPLE: "var(--purple)",
}

_STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",  # text stays text: readable aloud, and small
    "svg.hashsalt": "gct",  # the same input gives the same file
}

_MAX_LABELS = 80  # rows of a plot that get their name
_ROW_INCHES = 0.17
_MAX_NAME = 44


@contextmanager
def style() -> Iterator[None]:
    """Figures are made and written in here; the caller's own matplotlib settings stay."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc is not for these plots
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element for a page, with ids of its own, in the page's colours."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, dpi=200, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in _CSS_COLOURS.items():
        text = text.replace(colour, variable)
    size = re.compile(r'width="[\d.]+pt" height="[\d.]+pt"')
    label = f'role="img" aria-label="{html.escape(description)}"'
    return size.sub(label, text, count=1)


def rows_height(rows: int) -> float:
    """Inches for so many rows of names."""
    return _ROW_INCHES * max(3, min(rows, _MAX_LABELS))


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names along the y axis, first on top, row i at i; of many rows only every so many-th."""
    every = -(-len(names) // _MAX_LABELS)
    axes.set_yticks(range(0, len(names), every), [short_name(n) for n in names[::every]])
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)


def short_name(name: str) -> str:
    """At most 44 characters, the middle left out: both ends say which tensor it is."""
    if len(name) > _MAX_NAME:
        head = _MAX_NAME // 2
        name = f"{name[: head - 1]}…{name[head - _MAX_NAME :]}"
    return plain_text(name)


def plain_text(text: str) -> str:
    """matplotlib takes what stands between dollar signs for a formula."""
    return text.replace("$", r"\$")


def plain_log_ticks(axes: Axes, axis: str) -> None:
    """Ticks such as 0.001 and 1e-05 instead of small raised exponents."""
    which = axes.xaxis if axis == "x" else axes.yaxis
    which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    which.set_minor_formatter(NullFormatter())


def draw_histogram(
    axes: Axes, name: str, shown: Histogram, before: Histogram | None = None
) -> None:
    """Density of the nonzero elements over x in standard deviations, and the fitted one.

    ``before``: an earlier histogram, as an outline in units of its own standard deviation.
    """
    edges, density, floor = _density(shown)
    axes.stairs(density, edges, baseline=floor, fill=True, color=BLUE, alpha=0.35)
    if before is not None:
        then_edges, then, _ = _density(before)
        axes.stairs(then, then_edges, baseline=None, color=MUTED, linewidth=0.9)
    x = torch.linspace(-REACH, REACH, 481, dtype=torch.float64)
    unit = _unit(shown)
    fitted = shown.fitted.log_prob(x * unit).exp() * unit
    axes.plot(x.numpy(), fitted.numpy(), color=ORANGE)
    axes.set_yscale("log")
    axes.set_ylim(floor, 3 * max(density))
    plain_log_ticks(axes, "y")
    zeros = f", {shown.zero_fraction:.0%} zeros" if shown.zero_fraction > 0.005 else ""
    axes.set_title(f"{short_name(name)}\nshape {shape_text(shown.shape)}, std {unit:.2g}{zeros}")


def _unit(shown: Histogram) -> float:
    """The standard deviation, as the histogram took it to choose its bins."""
    return shown.high / REACH


def _density(shown: Histogram) -> tuple[list[float], list[float], float]:
    """Bin edges in standard deviations, density in their unit, and half an element's density."""
    bins = len(shown.counts)
    edges = [REACH * (2 * i / bins - 1) for i in range(bins + 1)]
    one = 1.0 / ((sum(shown.counts) + shown.outside) * (edges[1] - edges[0]))
    # A logarithm has no place for 0: an empty bin lies below the axis.
    return edges, [max(count, 0.1) * one for count in shown.counts], 0.5 * one
