"""One self-contained HTML page from a monitor's recording."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from gct._cli.figures import MAX_HISTOGRAMS, draw_all
from gct._recording import COLUMNS, Recording
from gct._version import __version__

_TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Totals:
    """Sums over the recorded intervals: up to the last sample."""

    raw_bytes: int
    wire_bytes: int
    plain_bytes: int
    bits_per_element: float | None  # None where nothing was encoded
    seconds: float

    @property
    def ratio(self) -> float | None:
        return self.raw_bytes / self.wire_bytes if self.wire_bytes else None


def page(recording: Recording, source: str) -> str:
    """The report as HTML; ``source`` is the name of the recording's file."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(bytes=human_bytes, number=_number)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        source=source,
        header=recording.header,
        settings=_settings(recording.header["settings"]),
        began=_date(recording.header.get("time")),
        written_by=__version__,
        totals=_totals(recording),
        last_step=_last_step(recording),
        latest=_latest_losses(recording),
        parameters=_parameter_rows(recording),
        sample=recording.samples[-1] if recording.samples else None,
        histograms=min(len(recording.histograms), MAX_HISTOGRAMS),
        all_histograms=len(recording.histograms),
        figures={name: Markup(svg) for name, svg in draw_all(recording).items()},
    )


def human_bytes(count: float) -> str:
    """1234567 -> '1.23 MB': three significant digits, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)


def _settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """What was given or has a default; an unset target says nothing."""
    return {name: str(value) for name, value in settings.items() if value is not None}


def _date(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _totals(recording: Recording) -> Totals:
    intervals = [sample.interval for sample in recording.samples]
    numel = sum(interval.encoded_numel for interval in intervals)
    encoded = sum(interval.encoded_bytes for interval in intervals)
    return Totals(
        raw_bytes=sum(interval.raw_bytes for interval in intervals),
        wire_bytes=sum(interval.wire_bytes for interval in intervals),
        plain_bytes=sum(interval.plain_bytes for interval in intervals),
        bits_per_element=8 * encoded / numel if numel else None,
        seconds=sum(interval.seconds for interval in intervals),
    )


def _last_step(recording: Recording) -> int:
    steps = [sample.step for sample in recording.samples]
    steps += [points[-1][0] for points in recording.values.values() if points]
    return max(steps, default=0)


def _latest_losses(recording: Recording) -> dict[str, float]:
    """The latest value of what looks like a loss, by name."""
    return {
        name: points[-1][1]
        for name, points in recording.values.items()
        if points and "loss" in name.lower()
    }


def _parameter_rows(recording: Recording) -> list[dict[str, Any]]:
    if not recording.samples:
        return []
    last = recording.samples[-1]
    return [
        {"name": name, "numel": last.numel[name]}
        | {column: last.columns[column][name] for column in COLUMNS}
        for name in last.numel
    ]
