"""Reads what a monitor wrote; the records are described in docs/monitoring.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from gct._histogram import Histogram
from gct.monitor import FORMAT

_T = TypeVar("_T")

__all__ = ["COLUMNS", "Interval", "Recording", "Sample", "read_recording"]

COLUMNS = ("shape", "scale", "bits", "nmse")
_COUNTERS = (
    "steps",
    "seconds",
    "raw_bytes",
    "wire_bytes",
    "plain_bytes",
    "encoded_numel",
    "encoded_bytes",
    "encode_seconds",
    "wait_seconds",
    "decode_seconds",
)


@dataclass(frozen=True)
class Interval:
    """What happened since the sample before, or since the process began."""

    steps: int
    seconds: float
    raw_bytes: int
    wire_bytes: int
    plain_bytes: int
    encoded_numel: int
    encoded_bytes: int
    encode_seconds: float
    wait_seconds: float
    decode_seconds: float

    @property
    def bits_per_element(self) -> float:
        return 8 * self.encoded_bytes / self.encoded_numel if self.encoded_numel else 0.0

    @property
    def ratio(self) -> float:
        """Bytes that a ring without compression would have sent, over those sent."""
        return self.raw_bytes / self.wire_bytes if self.wire_bytes else 1.0


@dataclass(frozen=True)
class Sample:
    """One measured backward pass; a column holds one number by parameter, None where unknown."""

    step: int
    interval: Interval
    numel: Mapping[str, int]
    columns: Mapping[str, Mapping[str, float | None]]  # COLUMNS, then by parameter


@dataclass
class Recording:
    """A whole file, in the order of steps."""

    header: Mapping[str, Any]
    samples: list[Sample] = field(default_factory=list)
    values: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # by name: step, value
    histograms: dict[str, list[tuple[int, Histogram]]] = field(default_factory=dict)

    def parameters(self) -> list[str]:
        """Every parameter that some sample has, in the order of the latest one."""
        names: dict[str, None] = {}
        for sample in reversed(self.samples):
            names.update(dict.fromkeys(sample.numel))
        return list(names)

    def forget_from(self, step: int) -> None:
        """Drop what a resumed run is going to do again."""
        self.samples = [sample for sample in self.samples if sample.step < step]
        self.values = {name: _until(points, step) for name, points in self.values.items()}
        self.histograms = {name: _until(points, step) for name, points in self.histograms.items()}


def read_recording(path: str | PathLike[str]) -> Recording:
    """Read a monitor's file.

    A last line without its end, of a run that is still going on or was killed, is left out.

    Raises:
        OSError: it can't be read.
        ValueError: it is no such file; names the line.
    """
    reader = _Reader()
    for number, text in _lines(Path(path)):
        try:
            reader.read(_parse(text))
        except _BadLineError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{path}, line {number}: not a record of format {FORMAT} ({reason}); is the line "
                "whole?"
            ) from error
    if reader.recording is None:
        raise ValueError(f"{path}: expected a gct.Monitor's JSON lines, got no line")
    return reader.recording


class _BadLineError(ValueError):
    """Says all there is to say."""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and line.endswith("\n"):
                yield number, line


def _parse(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise _BadLineError(
            f"expected a JSON object, but at column {error.colno}: {error.msg}"
        ) from error
    if not isinstance(record, dict) or "kind" not in record:
        raise _BadLineError('expected a JSON object with a "kind"')
    return record


class _Reader:
    def __init__(self) -> None:
        self.recording: Recording | None = None
        self._numel: dict[str, int] = {}
        self._before: dict[str, float] = {}

    def read(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind == "run":
            self._begin(record)
            return
        if self.recording is None:
            raise _BadLineError(f'expected a record of kind "run" first, got "{kind}"')
        if kind == "parameters":
            self._numel = dict(zip(record["names"], map(int, record["numel"]), strict=True))
        elif kind == "values":
            for name, value in record["values"].items():
                if value is not None:
                    points = self.recording.values.setdefault(name, [])
                    points.append((int(record["step"]), float(value)))
        elif kind == "sample":
            self.recording.samples.append(self._sample(record))
        elif kind == "histogram":
            self._histogram(record, self.recording)
        # A later version may write more kinds: they are no reason to refuse the rest.

    def _begin(self, record: dict[str, Any]) -> None:
        if record["format"] != FORMAT:
            raise _BadLineError(
                f"expected format {FORMAT}, got {record['format']!r}: read it with the gct that "
                "wrote it"
            )
        if self.recording is None:
            self.recording = Recording(record)
        else:
            self.recording.forget_from(int(record["step"]))
            self.recording.header = record
        self._before = {}

    def _sample(self, record: dict[str, Any]) -> Sample:
        counters = {name: record["counters"].get(name, 0) for name in _COUNTERS}
        # A run that was resumed begins to count its steps where the one before ended.
        before = self._before or {"steps": self.recording.header["step"]}  # type: ignore[union-attr]
        self._before = counters
        return Sample(
            step=int(record["step"]),
            interval=Interval(**{n: counters[n] - before.get(n, 0) for n in _COUNTERS}),
            numel=self._numel,
            columns={
                column: dict(zip(self._numel, map(_optional, record[column]), strict=True))
                for column in COLUMNS
            },
        )

    def _histogram(self, record: dict[str, Any], recording: Recording) -> None:
        fields = {k: v for k, v in record.items() if k not in ("kind", "step", "name")}
        points = recording.histograms.setdefault(str(record["name"]), [])
        points.append((int(record["step"]), Histogram(**fields)))


def _until(points: list[tuple[int, _T]], step: int) -> list[tuple[int, _T]]:
    return [point for point in points if point[0] < step]


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
