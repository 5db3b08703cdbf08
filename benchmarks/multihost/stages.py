"""Where a call's time went: before, in, and after the network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class Stages:
    """Seconds. gct's are those of its threads, which overlap: their sum may exceed the call."""

    encode: float = 0.0
    wire: float = 0.0
    decode: float = 0.0


class AllReduceClock:
    """When torch's hooks were in ``dist.all_reduce``; everything else is encoding and decoding.

    Wire: the union of the intervals from each call until its future is done. Encode: the rest, up
    to the last call. Decode: what comes after all of them.
    """

    def __init__(self) -> None:
        self._open: list[tuple[float, Any]] = []
        self._intervals: list[list[float]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note every dist.all_reduce(..., async_op=True) in this block."""
        original = dist.all_reduce

        def noted(*args: Any, **kwargs: Any) -> Any:
            interval = [time.perf_counter(), 0.0]
            self._intervals.append(interval)
            work = original(*args, **kwargs)

            def ended(_: Any) -> None:
                interval[1] = time.perf_counter()

            work.get_future().add_done_callback(ended)
            return work

        self._intervals.clear()
        dist.all_reduce = noted  # type: ignore[assignment]
        try:
            yield
        finally:
            dist.all_reduce = original  # type: ignore[assignment]

    def stages(self, began: float, ended: float) -> Stages:
        """The stages of a call that took from ``began`` to ``ended``."""
        wire, last = 0.0, began
        for start, end in self._intervals:
            wire += max(0.0, end - max(start, last))
            last = max(last, end)
        return Stages(encode=last - began - wire, wire=wire, decode=ended - last)
