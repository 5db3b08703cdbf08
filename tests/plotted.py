"""What a figure of matplotlib shows."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

Points = list[tuple[float, float]]


def curve(axes: Axes, label: str = "") -> Points:
    [line] = [line for line in axes.get_lines() if line.get_label() == label or not label]
    return _points(line)


def named_curves(axes: Axes, legend: Legend) -> dict[str, Points]:
    """By what a legend, be it another panel's, calls a curve's colour and marker."""
    entries = zip(legend.legend_handles, legend.get_texts(), strict=True)
    names = {_look(handle): text.get_text() for handle, text in entries}
    assert len(names) == len(legend.legend_handles), "two entries look the same"
    lines = [line for line in axes.get_lines() if _look(line) in names]
    found = {names[_look(line)]: _points(line) for line in lines}
    assert len(found) == len(lines), "two curves look the same"
    return found


def _look(line: Line2D) -> tuple[Any, Any]:
    return line.get_color(), line.get_marker()


def _points(line: Line2D) -> Points:
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))
