"""Rows as a table, JSON, CSV and a plot."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multihost.arguments import check_writable
from multihost.errors import UserError
from multihost.measure import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    ("size", 11), ("elements", 10), ("scheme", 14), ("time", 10), ("min", 10), ("max", 10),
    ("algbw", 7), ("busbw", 7), ("wire", 12), ("ratio", 6), ("NMSE", 8), ("#wrong", 6),
    ("encode", 9), ("wait", 9), ("decode", 9),
)  # fmt: skip
_UNITS = ("(B)", "", "", "(us)", "(us)", "(us)", "(GB/s)", "(GB/s)", "(B/call)", "", "", "",
          "(us)", "(us)", "(us)")  # fmt: skip


def header(facts: Mapping[str, Any]) -> str:
    """What is needed to repeat the run, and the table's head, as comment lines."""
    lines = [f"# {name}: {value}" for name, value in facts.items()]
    names = _line([name for name, _ in _COLUMNS])
    return "\n".join([*lines, "#", "#" + names[1:], "#" + _line(list(_UNITS))[1:]])


def row_line(row: Row) -> str:
    micro = [f"{1e6 * seconds:,.0f}" for seconds in (row.seconds, row.seconds_min, row.seconds_max)]
    stages = [
        f"{1e6 * seconds:,.0f}"
        for seconds in (row.encode_seconds, row.wire_seconds, row.decode_seconds)
    ]
    wire = "-" if row.wire_bytes is None else f"{row.wire_bytes:,.0f}"
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    cells = [f"{row.size}", f"{row.numel}", row.scheme, *micro]
    cells += [f"{row.algbw / 1e9:.3f}", f"{row.busbw / 1e9:.3f}", wire, ratio]
    return _line([*cells, f"{row.nmse:.1e}", str(row.wrong), *stages])


def _line(cells: Sequence[str]) -> str:
    return " ".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def check_outputs(json_path: Path | None, csv_path: Path | None, plot_path: Path | None) -> None:
    """Raise UserError for a file that could not be written at the end."""
    if plot_path is not None:
        from multihost.plot import suffixes  # raises where there is no matplotlib

        if plot_path.suffix[1:].lower() not in suffixes():
            known = ", ".join(f".{suffix}" for suffix in suffixes())
            raise UserError(f"--plot {plot_path}: expected a name that ends in one of {known}.")
    check_writable(json_path, csv_path, plot_path)


def write_json(path: Path, facts: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Numbers that are not finite become null: JSON has no name for them."""
    content = {"facts": dict(facts), "rows": [_finite(row.as_dict()) for row in rows]}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        table = [row.as_dict() for row in rows]
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)


def write_plot(path: Path, title: str, rows: Sequence[Row]) -> None:
    from multihost.plot import pyplot

    figure = draw(title, rows)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw(title: str, rows: Sequence[Row]) -> Figure:
    """Median time against size, and error against bytes at the largest size."""
    from multihost.plot import pyplot, style

    figure, (times, errors) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    largest = max(row.size for row in rows)
    for index, scheme in enumerate(dict.fromkeys(row.scheme for row in rows)):
        mine = [row for row in rows if row.scheme == scheme]
        look = style(index)
        times.plot([r.size for r in mine], [r.seconds for r in mine], label=scheme, **look)
        for row in mine:
            if row.size == largest and row.wire_bytes and row.nmse:
                errors.plot(row.wire_bytes, row.nmse, linestyle="none", **look)
    times.set(xlabel="bytes of float32 on each rank", ylabel="seconds, median of the slowest rank")
    errors.set(xlabel=f"bytes sent by each rank, at {largest:,}", ylabel="NMSE of the mean")
    for axes in (times, errors):
        axes.set(xscale="log", yscale="log")
        axes.grid(True, which="major", alpha=0.3)
    times.legend(frameon=False, fontsize="small")
    figure.suptitle(title)
    return figure
