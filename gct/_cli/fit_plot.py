"""The plot of `python -m gct fit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import LogLocator

from gct._cli.plotting import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    draw_histogram,
    label_rows,
    new_figure,
    plain_log_ticks,
    plain_text,
    rows_height,
    style,
)

if TYPE_CHECKING:
    from gct._cli.fit import Row

_WIDTH = 11.0  # inches
_HISTOGRAMS = 6


def plot_fits(rows: Sequence[Row], path: Path, title: str) -> None:
    """Shapes and losses by tensor, and histograms of six of them; the suffix says the format.

    Raises:
        OSError: the file can't be written.
    """
    chosen = _evenly_spaced([row for row in rows if row.histogram is not None], _HISTOGRAMS)
    heights = [rows_height(len(rows)) + 1.1, 2.5 * -(-len(chosen) // 3) + 0.2]
    with style():
        figure = new_figure(_WIDTH, sum(heights))
        figure.suptitle(plain_text(title), x=0.01, ha="left", fontsize=11)
        by_tensor, histograms = figure.subfigures(2, 1, height_ratios=heights)
        _draw_rows(by_tensor, rows)
        _draw_histograms(histograms, chosen)
        figure.savefig(path, dpi=130, facecolor="white")


def _draw_rows(figure: SubFigure, rows: Sequence[Row]) -> None:
    shapes, losses = figure.subplots(1, 2)
    places = range(len(rows))
    fits = [row.fit for row in rows]
    in_blocks = [(place, fit.block_shape) for place, fit in enumerate(fits) if fit.block_shape]
    for axes in (shapes, losses):
        axes.set_xscale("log")
    for shape in (1, 2):
        shapes.axvline(shape, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    blocks_y, blocks_x = zip(*in_blocks, strict=True) if in_blocks else ((), ())
    _dots(shapes, blocks_x, blocks_y, "in blocks of 256", GREEN, hollow=True)
    _dots(shapes, [fit.shape for fit in fits], places, "whole tensor", BLUE)
    label_rows(shapes, [row.name for row in rows])
    shapes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    _decorate(shapes, "shape (1 Laplace, 2 normal)")

    # Chance alone gives 20 / n: 1e-4 is as good as nothing.
    _dots(losses, [max(f.normal_loss, 1e-4) for f in fits], places, "normal", MUTED)
    _dots(losses, [max(f.laplace_loss, 1e-4) for f in fits], places, "Laplace", ORANGE)
    _dots(losses, [max(f.loss, 1e-4) for f in fits], places, "generalized Gaussian", BLUE)
    label_rows(losses, [row.name for row in rows])
    losses.set_yticklabels([])
    _decorate(losses, "bits per element lost to the density's misfit")


def _dots(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[int],
    label: str,
    colour: str,
    hollow: bool = False,
) -> None:
    fill = "none" if hollow else colour
    axes.plot(
        x, y, "o", label=label, color=colour, markerfacecolor=fill, markersize=4.5, clip_on=False
    )


def _decorate(axes: Axes, label: str) -> None:
    plain_log_ticks(axes, "x")
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def _draw_histograms(figure: SubFigure, chosen: Sequence[Row]) -> None:
    rows = -(-len(chosen) // 3)
    panels = list(figure.subplots(rows, 3, squeeze=False).flat)
    for axes in panels[len(chosen) :]:
        axes.remove()
    for axes, row in zip(panels, chosen, strict=False):
        assert row.histogram is not None
        draw_histogram(axes, row.name, row.histogram)
    figure.supxlabel("nonzero elements, in standard deviations", color=MUTED, fontsize=9)
    figure.supylabel("density", color=MUTED, fontsize=9)


def _evenly_spaced(rows: Sequence[Row], count: int) -> list[Row]:
    count = min(count, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]
