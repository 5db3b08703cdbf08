"""Records what compression does, parameter by parameter, while a model trains.

    state = gct.GCTState(bits=2.0, model=model, monitor="run.jsonl")
    ...
    state.monitor.log(loss=loss.item())

Then ``python -m gct report run.jsonl -o report.html``. docs/monitoring.md says what is measured
and describes the records.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gct._channel import Run
from gct._checks import plain_number
from gct._histogram import histogram
from gct._patterns import as_tuple, check_patterns, matches
from gct._sinks import JsonLines, Record, Sink, TensorBoard, check_writable
from gct._version import __version__

__all__ = ["FORMAT", "Monitor"]

FORMAT = 1  # of the file; docs/monitoring.md

_logger = logging.getLogger("gct")
_open_monitors: weakref.WeakSet[Monitor] = weakref.WeakSet()


class Source(Protocol):
    """What a monitor asks of the state that it watches."""

    start_step: int

    def counters(self) -> Mapping[str, float]: ...

    def parameter_order(self) -> Sequence[str]: ...

    def compressible_names(self) -> Sequence[str]: ...


class Monitor:
    """Writes statistics of a :class:`gct.GCTState` to a file of JSON lines.

    Every ``interval`` backward passes, on one rank, the engine measures of each parameter what it
    encoded: shape and scale of the fitted distribution, bits per element, and the squared error
    over the squared values (NMSE). The measurement encodes and decodes once more, and sends
    nothing: other ranks don't take part. The gradients are the same with and without it.

    Args:
        path: the file. A state that goes on from a checkpoint (its step is not 0) appends to it;
            otherwise it begins anew.
        interval: backward passes between two measurements; the first compressed one is measured.
        histograms: parameters of which a histogram and a fit are recorded too, at the same passes:
            names or patterns such as ``"*.attn.*"``, or a number of parameters evenly spaced over
            the model. A pattern that fits none is an error if the state knows the model, else a
            warning in the log. Of a gradient before it is averaged, at most 16,384 elements.
        tensorboard: folder for TensorBoard's files; needs the package ``tensorboard``.
        rank: the rank that measures and writes. None: all do, rank 3 to ``run.rank3.jsonl``.

    Raises:
        ValueError: interval below 1.
        OSError: the file could not be written. Nothing is made or changed before the first backward
            pass; ranks that don't write may have no such folder.
        ImportError: ``tensorboard`` is given, but not installed.

    A file that can't be written later, such as on a full disk, ends with a warning in the log;
    training goes on.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        interval: int = 100,
        histograms: int | Sequence[str] = 6,
        tensorboard: str | PathLike[str] | None = None,
        rank: int | None = 0,
    ) -> None:
        interval, histograms = plain_number(interval), plain_number(histograms)
        if type(interval) is not int or interval < 1:
            raise ValueError(f"interval must be a whole number from 1 on, got {interval!r}")
        if tensorboard is not None:
            TensorBoard.check_installed()
        self.path = Path(path)
        if _may_write(rank):
            check_writable(self.path)
        self.interval = interval
        self.sampling = False  # whether the backward pass under way is measured
        self._histograms = (
            histograms if isinstance(histograms, int) else as_tuple("histograms", histograms)
        )
        self._tensorboard = tensorboard
        self._rank = rank
        self._source: weakref.ref[Source] | None = None
        self._settings: Mapping[str, Any] = {}
        self._sinks: list[Sink] | None = None  # None until the first backward pass
        self._active = True
        self._early: list[Record] = []  # logged before the first backward pass
        self._names: list[str] | None = None  # of the file's latest "parameters" record
        self._chosen: set[str] = set()
        self._patterns_checked = False
        self._step = 0
        self._began = 0.0
        self._sample = _Sample(0)
        self._pending = False
        _open_monitors.add(self)

    def log(self, step: int | None = None, /, **values: float | Tensor) -> None:
        """Record numbers of your own, such as ``loss=0.7``, under the latest backward pass's step.

        Tensors of one element are taken too; one on a GPU is waited for. Ranks that don't write
        return at once.

        Raises:
            TypeError: a value is not a number.
        """
        if not self._active:
            return
        self._write_pending()
        numbers = {name: _number(name, value) for name, value in values.items()}
        self._write(
            {"kind": "values", "step": self._step if step is None else step, "values": numbers}
        )

    def close(self) -> None:
        """Write what is measured and close the file. The interpreter's exit does it too."""
        self._write_pending()
        self._drop_pending()
        for sink in list(self._sinks or ()):
            try:
                sink.close()
            except OSError as error:
                self._give_up(sink, error)
        self._sinks, self._active, self.sampling = [], False, False

    # What the state calls.

    def attach(self, source: Source, settings: Mapping[str, Any]) -> None:
        """Watch ``source``; a monitor serves one state."""
        if self._source is not None and self._source() is not None:
            raise ValueError("this monitor already serves another GCTState: make one for each")
        names = source.compressible_names()
        self._patterns_checked = bool(names)
        if names:
            self._check_histograms(names)
        self._source = weakref.ref(source)
        self._settings = settings

    def begin_step(self, step: int, rank: int, size: int) -> None:
        """The first bucket of a backward pass is here."""
        if self._sinks is None:
            self._active = self._rank in (None, rank)
            self._open(step, rank, size)
        if not self._active:
            return
        self._write_pending()
        self._step = step
        source = self._watched()
        self.sampling = (
            source is not None
            and step >= source.start_step
            and (step - source.start_step) % self.interval == 0
        )
        if self.sampling:
            self._drop_pending()
            self._sample = _Sample(step)
            self._choose(self._watched_names())

    def watch(
        self, keys: Sequence[str | None], runs: Sequence[Run], buffer: Tensor
    ) -> Callable[[Tensor], None]:
        """A bucket of a measured pass goes to the engine; what to do with its statistics."""
        sample = self._sample
        flat, begin = buffer.reshape(-1), 0
        for key, run in zip(keys, runs, strict=True):
            if key in self._chosen:
                shown = histogram(flat[begin : begin + run.numel])
                if shown is not None:
                    sample.histograms.append({"name": key, **shown.to_json()})
            begin += run.numel
        sample.expected += 1
        return lambda run_stats: sample.add(keys, runs, run_stats)

    def end_step(self) -> None:
        """The last bucket of the backward pass has been handed over."""
        self._pending = self._pending or self.sampling  # an earlier one may still be on its way
        self.sampling = False

    # How it works.

    def _open(self, step: int, rank: int, size: int) -> None:
        early, self._early = self._early, []
        if not self._active:
            self._sinks = []
            return
        suffix = f".rank{rank}" if self._rank is None else ""
        path = self.path.with_name(f"{self.path.stem}{suffix}{self.path.suffix}")
        self._sinks = [JsonLines(path, append=step > 0)]
        if self._tensorboard is not None:
            self._sinks.append(TensorBoard(f"{self._tensorboard}{suffix}"))
        self._began = time.perf_counter()
        header = {
            "kind": "run",
            "format": FORMAT,
            "gct": __version__,
            "torch": torch.__version__,
            "step": step,
            "time": time.time(),
            "rank": rank,
            "world_size": size,
            "interval": self.interval,
            "settings": dict(self._settings),
        }
        for record in [header, *early]:
            self._write(record)

    def _write(self, record: Record) -> None:
        if self._sinks is None:
            self._early.append(record)
        for sink in list(self._sinks or ()):
            try:
                sink.write(record)
            except OSError as error:
                self._give_up(sink, error)

    def _give_up(self, sink: Sink, error: OSError) -> None:
        """A disk that is full is no reason to end a training run."""
        _logger.warning("gct: the monitor stops writing to %s: %s", sink.name, error)
        with contextlib.suppress(OSError):  # what is left in a buffer doesn't fit either
            sink.close()
        assert self._sinks is not None
        self._sinks.remove(sink)
        if not self._sinks:
            self._active = self._pending = self.sampling = False

    def _write_pending(self) -> None:
        """Write the measured pass once its backward pass is over."""
        if not self._pending or not self._sample.complete():
            return
        self._pending = False
        source = self._watched()
        sample = self._sample
        self._warn_of_histograms()
        names = sorted(sample.rows, key=_model_order(self._watched_names()))
        if names != self._names:
            self._names = names
            numel = [sample.rows[name][0] for name in names]
            self._write({"kind": "parameters", "names": names, "numel": numel})
        columns = {
            column: [sample.rows[name][i] for name in names]
            for i, column in enumerate(("scale", "shape", "bits", "nmse"), start=1)
        }
        counters = dict(source.counters()) if source is not None else {}
        counters["seconds"] = time.perf_counter() - self._began
        self._write({"kind": "sample", "step": sample.step, "counters": counters, **columns})
        for shown in sample.histograms:
            self._write({"kind": "histogram", "step": sample.step, **shown})

    def _drop_pending(self) -> None:
        """Say so where a measured pass never ended: an error in it, or one that still goes on."""
        if not self._pending:
            return
        self._pending = False
        step, (arrived, expected) = self._sample.step, self._sample.progress()
        _logger.warning(
            "gct: the monitor drops its sample of step %d: statistics of %d of %d buckets came",
            step,
            arrived,
            expected,
        )
        self._write({"kind": "dropped", "step": step, "arrived": arrived, "expected": expected})

    def _watched(self) -> Source | None:
        return self._source() if self._source is not None else None

    def _watched_names(self) -> Sequence[str]:
        source = self._watched()
        return source.parameter_order() if source is not None else ()

    def _check_histograms(self, names: Sequence[str]) -> None:
        if not isinstance(self._histograms, int):
            each = [[name] for name in names]
            check_patterns("histograms", self._histograms, each, "compressed parameter")

    def _warn_of_histograms(self) -> None:
        """Where names come from DDP they are known after a backward pass: too late to end a run."""
        if self._patterns_checked:
            return
        self._patterns_checked = True
        try:
            self._check_histograms(self._watched_names())
        except ValueError as error:
            _logger.warning("gct: %s; GCTState(model=...) gives them their names", error)

    def _choose(self, names: Sequence[str]) -> None:
        """Which parameters' histograms to record, among those known by now."""
        if isinstance(self._histograms, int):
            count = min(self._histograms, len(names))
            self._chosen = {names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)}
        else:
            self._chosen = {name for name in names if matches(name, self._histograms)}


class _Sample:
    """What is measured in one backward pass; the engine's thread adds to it."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.expected = 0  # buckets
        self.rows: dict[str, tuple[int, float, float, float, float]] = {}
        self.histograms: list[dict[str, Any]] = []
        self._arrived = 0
        self._lock = threading.Lock()

    def add(self, keys: Sequence[str | None], runs: Sequence[Run], run_stats: Tensor) -> None:
        with self._lock:
            for key, run, row in zip(keys, runs, run_stats.tolist(), strict=True):
                if key is not None:
                    scale, shape, bits, nmse = row
                    # Shape 0 is the engine's word for nothing to fit.
                    self.rows[key] = (run.numel, scale, shape or math.nan, bits, nmse)
            self._arrived += 1

    def complete(self) -> bool:
        arrived, expected = self.progress()
        return arrived == expected

    def progress(self) -> tuple[int, int]:
        """Buckets whose statistics are here, and those handed over."""
        with self._lock:
            return self._arrived, self.expected


def _may_write(rank: int | None) -> bool:
    """Whether this process may be the one that writes, as far as can be known so early.

    By the rank in the world; the first backward pass goes by the rank in the state's group.
    """
    if rank is None:
        return True
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == rank
    return os.environ.get("RANK", str(rank)) == str(rank)  # torchrun's


def as_monitor(monitor: Monitor | str | PathLike[str] | None) -> Monitor | None:
    """A path stands for ``Monitor(path)``."""
    if monitor is None or isinstance(monitor, Monitor):
        return monitor
    if isinstance(monitor, (str, PathLike)):
        return Monitor(monitor)
    raise TypeError(f"monitor must be a gct.Monitor or a path, got {type(monitor).__name__}")


def _model_order(order: Sequence[str]) -> Callable[[str], int]:
    places = {name: place for place, name in enumerate(order)}
    return lambda name: places.get(name, len(places))


def _number(name: str, value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None


@atexit.register
def _close_all() -> None:
    for monitor in list(_open_monitors):
        monitor.close()
