"""Seconds and wire bytes of training steps, evaluation excluded."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from wire import WireMeter


class Measurement:
    """Per-step seconds and bytes of this rank. All methods but snapshots are collective calls.

    The barriers at the ends of a measured interval make sure that what was written to the
    sockets before it has left. An interval contains one of them: well under a kilobyte.
    """

    def __init__(self, elements: int, steady_from: int) -> None:
        self._elements = elements
        self._steady_from = steady_from
        # Where ranks share one machine every byte passes the loopback interface.
        self._meter = WireMeter(os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
        self._step_seconds: list[float] = []
        self._sent_after: list[int | None] = [0]
        self._began = 0.0

    def resume(self) -> None:
        dist.barrier()
        self._meter.resume()
        dist.barrier()
        self._began = time.perf_counter()

    def end_step(self) -> None:
        now = time.perf_counter()
        self._step_seconds.append(now - self._began)
        self._sent_after.append(self._meter.sent())
        self._began = now

    def pause(self) -> None:
        dist.barrier()
        self._meter.pause()
        self._sent_after[-1] = self._meter.sent()
        dist.barrier()

    def snapshot(self) -> dict[str, Any]:
        """Rank 0's view so far, for the log."""
        return {"wire_bytes": self._sent_after[-1], "seconds": sum(self._step_seconds)}

    def recent_bytes_per_step(self, steps: int = 10) -> float:
        after = self._sent_after[-steps - 1 :]
        if after[0] is None or after[-1] is None:
            return float("nan")
        return (after[-1] - after[0]) / (len(after) - 1)

    def bits_per_element(self, bytes_per_step: float) -> float:
        """Bytes sent by a rank, on the scale where a float32 ring all-reduce is 32 bits.

        That ring sends 2 (W-1)/W times the gradient's size from each rank.
        """
        world = dist.get_world_size()
        sent_by_ring = 2 * (world - 1) / world * self._elements
        return 8 * bytes_per_step / sent_by_ring if sent_by_ring else 0.0

    def summary(self) -> dict[str, Any]:
        """Means over ranks; a collective call after the last ``pause``."""
        steps = len(self._step_seconds)
        total = _mean_over_ranks(self._sent_after[-1])
        before = _mean_over_ranks(self._sent_after[self._steady_from])
        interface = _from_rank_0(self._meter.interface_sent())
        result: dict[str, Any] = {
            "steps": steps,
            "seconds": sum(self._step_seconds),
            "seconds_per_step": statistics.median(self._step_seconds),
            "steady_from": self._steady_from,
            "wire_bytes": total,
            "wire_bytes_per_step": None,
            "bits_per_element": None,
            "interface": self._meter.interface,
            # All ranks send through it; a busy machine's other traffic is in it, too.
            "interface_bytes_per_rank": interface and interface / dist.get_world_size(),
        }
        if total is not None and before is not None:
            per_step = (total - before) / (steps - self._steady_from)
            result["wire_bytes_per_step"] = per_step
            result["bits_per_element"] = self.bits_per_element(per_step)
        return result


def _mean_over_ranks(value: int | None) -> float | None:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return None if None in values else statistics.fmean(values)


def _from_rank_0(value: int | None) -> int | None:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def describe(args: argparse.Namespace, elements: int, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that is needed to repeat a run, for the log's first line."""
    settings = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
    }
    return {
        "settings": settings,
        "gct_options": options,
        "elements": elements,
        "world_size": dist.get_world_size(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.platform(),
    }
