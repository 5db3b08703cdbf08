"""Pictures: curves with the seeds' range, and points against a strength."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .jobs import Job, Lines
from .results import Row

# Okabe-Ito colours: distinguishable with colour blindness and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":")


def panels(columns: int, lines: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, line by line."""
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(5.6 * columns, 4.4 * lines), layout="constrained", squeeze=False
    )
    for each in axes.flat:
        each.grid(True, which="major", alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def loss_curves(
    axes: Axes,
    finished: Mapping[Job, Lines],
    experiment: str,
    labels: Mapping[str, str],
) -> None:
    """Held-out loss against steps: mean over the seeds, and their range as a band.

    Without the first step, whose loss would set the scale, where there are others.
    """
    for index, (config, label) in enumerate(labels.items()):
        curves = [
            {line["step"]: line["held_out_loss"] for line in lines if line["kind"] == "evaluation"}
            for job, lines in finished.items()
            if (job.experiment, job.config) == (experiment, config)
        ]
        # Where a run has diverged, the others' mean would mislead.
        steps = [s for s in (curves[0] if curves else ()) if all(c.get(s) for c in curves)]
        steps = steps[1:] or steps
        points = [[curve[step] for curve in curves] for step in steps]
        if not points:
            continue
        colour, style = COLOURS[index % len(COLOURS)], _STYLES[index // len(COLOURS)]
        means = [statistics.fmean(p) for p in points]
        axes.plot(steps, means, style, color=colour, label=label, linewidth=1.4)
        low, high = [min(p) for p in points], [max(p) for p in points]
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out loss (nats)")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


def points(
    axes: Axes, places: Sequence[float], shown: Sequence[Row], field: str, **style: Any
) -> None:
    """Mean of a field against numbers from 0 on, on a logarithmic axis, with the seeds' range."""
    axes.set_xscale("symlog", linthresh=min([place for place in places if place > 0], default=1))
    kept = [(x, v) for x, row in zip(places, shown, strict=True) if (v := row.values(field))]
    means, spread = _means_and_spread([values for _, values in kept])
    axes.errorbar([x for x, _ in kept], means, yerr=spread, capsize=3, **style)


def by_row(axes: Axes, shown: Sequence[Row], field: str, factor: float = 1.0, **style: Any) -> None:
    """Mean of a field and the seeds' range, a line of the panel for each row."""
    kept = [(y, v) for y, row in enumerate(shown) if (v := row.values(field))]
    scaled = [[factor * value for value in values] for _, values in kept]
    means, spread = _means_and_spread(scaled)
    style = {"marker": "o", "linestyle": "", "capsize": 3, **style}
    axes.errorbar(means, [y for y, _ in kept], xerr=spread, **style)
    axes.set_yticks(range(len(shown)), [row.label for row in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)


def _means_and_spread(lists: Sequence[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    means = [statistics.fmean(values) for values in lists]
    below = [mean - min(values) for mean, values in zip(means, lists, strict=True)]
    above = [max(values) - mean for mean, values in zip(means, lists, strict=True)]
    return means, [below, above]
