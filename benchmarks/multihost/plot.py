"""Matplotlib without a display, and how lines look."""

from __future__ import annotations

from typing import Any

from multihost.errors import UserError

try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.backend_bases import FigureCanvasBase
except ImportError as error:
    raise UserError("A plot needs matplotlib: pip install matplotlib.") from error

__all__ = ["pyplot", "style", "suffixes"]

# Okabe-Ito colours: distinguishable with colour blindness and in print.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vP*X<>"


def suffixes() -> list[str]:
    """Of the files that savefig can write, without the dot."""
    return sorted(FigureCanvasBase.get_supported_filetypes())


def style(index: int) -> dict[str, Any]:
    """Arguments of pyplot.plot for the line of this number; no two of 70 are the same."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 5,
        "linewidth": 1.4,
    }
