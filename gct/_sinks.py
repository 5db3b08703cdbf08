"""Where a monitor's records go: a file of JSON lines, TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

Record = Mapping[str, Any]


class Sink(Protocol):
    name: str  # for messages

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, each handed to the system at once: a killed run keeps its lines."""

    def __init__(self, path: Path, *, append: bool) -> None:
        self.name = str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if append:
            _end_last_line(path)
        self._file = path.open("a" if append else "w", encoding="utf-8", buffering=1)

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(_plain(record), allow_nan=False) + "\n")

    def close(self) -> None:
        self._file.close()


def check_writable(path: Path) -> None:
    """Raise OSError where JsonLines(path) would, but open, make and change nothing."""
    problem = _problem(path)
    if problem:
        raise OSError(f"can't write {path}: {problem}; give the monitor another path")


def _problem(path: Path) -> str:
    if os.path.isdir(path):
        return "it is a folder"
    if os.path.exists(path):
        return "" if os.access(path, os.W_OK) else "no permission to write this file"
    folder = path.absolute().parent
    while not os.path.exists(folder):  # missing ones are made later
        folder = folder.parent
    if not os.path.isdir(folder):
        return f"{folder} is no folder"
    writable = os.access(folder, os.W_OK | os.X_OK)
    return "" if writable else f"no permission to write in {folder}"


def _end_last_line(path: Path) -> None:
    """Drop what a killed run left of a line."""
    if not path.exists():
        return
    text = path.read_bytes()
    if not text.endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def _plain(value: Any) -> Any:
    """JSON has neither NaN nor infinity, and nobody needs 17 digits of a statistic."""
    if isinstance(value, float):
        return _rounded(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _rounded(value: float) -> float:
    """Six digits; of a large number three decimals, since sums are subtracted from each other."""
    return round(value, 3) if abs(value) >= 1e3 else float(f"{value:.6g}")


class TensorBoard:
    """Scalars and histograms for TensorBoard, in the folder ``directory``."""

    def __init__(self, directory: str | PathLike[str]) -> None:
        self.name = str(directory)
        self._writer: Any = None
        self._names: list[str] = []

    @staticmethod
    def check_installed() -> None:
        """Raise ImportError where the package is missing."""
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "tensorboard= needs the package tensorboard: pip install tensorboard "
                f"(or leave tensorboard out): {error}"
            ) from error

    def write(self, record: Record) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.name)
        kind, step = record["kind"], record.get("step", 0)
        if kind == "parameters":
            self._names = list(record["names"])
        elif kind == "values":
            for name, value in record["values"].items():
                self._writer.add_scalar(name, value, step)
        elif kind == "sample":
            self._write_sample(record, step)
        elif kind == "histogram":
            self._write_histogram(record, step)

    def _write_sample(self, record: Record, step: int) -> None:
        for column in ("shape", "scale", "bits", "nmse"):
            for name, value in zip(self._names, record[column], strict=True):
                self._writer.add_scalar(f"gct_{column}/{name}", value, step)
        for name, value in record["counters"].items():
            self._writer.add_scalar(f"gct/{name}", value, step)

    def _write_histogram(self, record: Record, step: int) -> None:
        low, high, counts = record["low"], record["high"], record["counts"]
        width = (high - low) / len(counts)
        middles = [low + width * (i + 0.5) for i in range(len(counts))]
        self._writer.add_histogram_raw(
            f"gct_histogram/{record['name']}",
            min=low,
            max=high,
            num=sum(counts),
            sum=sum(m * c for m, c in zip(middles, counts, strict=True)),
            sum_squares=sum(m * m * c for m, c in zip(middles, counts, strict=True)),
            bucket_limits=[low + width * (i + 1) for i in range(len(counts))],
            bucket_counts=counts,
            global_step=step,
        )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
