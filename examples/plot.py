"""Draw the runs' held-out loss against steps and against bytes sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from extra import how_to_install
from runlog import read_log

try:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
except ImportError as error:
    raise SystemExit(f"The plot needs matplotlib: {how_to_install('matplotlib')}.") from error

# Okabe-Ito colours: distinguishable with colour blindness and in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = "osD^v"


def plot_runs(logs: dict[str, Path], path: Path, title: str) -> None:
    """Write a PNG with two panels; ``logs`` maps the legend's labels to JSON-lines files."""
    figure, (by_step, by_bytes) = pyplot.subplots(
        1, 2, figsize=(11, 4.6), sharey=True, layout="constrained"
    )
    for index, (label, log) in enumerate(logs.items()):
        style = {
            "color": _COLOURS[index % len(_COLOURS)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "markersize": 4.5,
            "linewidth": 1.6,
        }
        lines = read_log(log)
        points = [line for line in lines if line["kind"] == "evaluation"]
        loss = [point["held_out_loss"] for point in points]
        by_step.plot(
            [point["step"] for point in points], loss, label=_legend(label, lines), **style
        )
        sent = [point["wire_bytes"] for point in points]
        if all(sent):  # not counted on this system, or a single process
            by_bytes.plot(sent, loss, **style)
    _decorate(by_step, "step", "held-out loss (nats per byte)")
    _decorate(by_bytes, "bytes sent by each rank (log scale)", "")
    by_bytes.set_xscale("log")
    by_bytes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    by_bytes.xaxis.set_minor_formatter(NullFormatter())
    by_bytes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    by_step.legend(frameon=False, title="loss on all held-out text at the end")
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _legend(label: str, lines: list[dict[str, Any]]) -> str:
    final = [line["held_out_loss"] for line in lines if line["kind"] == "summary"]
    return f"{label}: {final[0]:.3f}" if final else f"{label} (unfinished)"


def _decorate(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def human_bytes(count: float) -> str:
    """1234567 -> '1.23 MB', three significant digits, decimal units."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
