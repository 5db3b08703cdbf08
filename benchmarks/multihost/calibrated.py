"""A laboratory's hosts as the model gct.plan has to know them: all share this machine."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gct import plan
from multihost import lab as labs
from multihost.errors import UserError
from multihost.fleet import run_everywhere
from multihost.inputs import make_source

BITS, POWERSGD_RANK = 2.0, 4
_TOOLS = Path(__file__).resolve().parents[1]
_RING_SIZES = ("4K", "16M", "4096")  # the time of messages, and that of bytes
_ROUNDS, _PAUSE_SECONDS = 11, 0.5  # of the codec's measurement
# tc counts frames of up to 1,514 bytes for 1,448 of payload; no preamble, no gap between frames.
_EFFICIENCY = 1448 / 1514


@dataclass(frozen=True)
class Layout:
    hosts: int
    per_host: int = 1

    def __str__(self) -> str:
        return f"{self.hosts}" if self.per_host == 1 else f"{self.hosts}x{self.per_host}"

    @property
    def ranks(self) -> int:
        return self.hosts * self.per_host

    @property
    def cores(self) -> float:
        """Of each rank: all of them share this machine's."""
        return min(1.0, len(os.sched_getaffinity(0)) / self.ranks)


@dataclass(frozen=True)
class Machine:
    """What each of so many ranks needs of this machine's cores, and how long a message takes."""

    speed: plan.Speed
    message: float  # seconds in an exchange
    ring_message: float  # in a ring, where all wait for the rank that gets a core last


def run_tool(place: Layout, rate: str, tool: str, words: Sequence[str]) -> dict[str, Any]:
    """What a program of benchmarks/ that runs on every rank writes to its --json."""
    lab = labs.create(f"plan-check-{os.getpid()}", place.hosts, rate)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.json"
            command = [sys.executable, str(_TOOLS / tool), *words, "--json", str(path)]
            status = run_everywhere(lab, command, per_host=place.per_host, quiet=True)
            if status:
                raise UserError(f"{tool} ended with status {status}: see above.")
            content: dict[str, Any] = json.loads(path.read_text())
            return content
    finally:
        labs.destroy(lab.name)


def measure(
    place: Layout, rate: str, seconds: float, sizes: Sequence[str], schemes: Sequence[str]
) -> dict[str, Any]:
    """allreduce_bw's facts and rows on these hosts; sizes are its -b, -e and -f."""
    smallest, largest, factor = sizes
    # Only the time ends it: 20 calls, the default, are 0.1 s of a small bucket.
    words = ["-b", smallest, "-e", largest, "-f", factor, "--iters", "1000000"]
    words += ["--seconds", str(seconds), "--schemes", *schemes]
    return run_tool(place, rate, "allreduce_bw.py", words)


def calibrate(place: Layout, seconds: float) -> Machine:
    """The codec's speed in as many processes at once, and the time of a message and of a byte from
    rings over links without a limit."""
    ranks = place.ranks
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(ranks)
    with context.Pool(ranks, initializer=_keep, initargs=(barrier,)) as pool:
        speeds = [s for of_rank in pool.map(_calibrate, range(ranks), chunksize=1) for s in of_rank]

    def curve(name: str) -> plan.Curve:
        columns = zip(*(getattr(speed, name) for speed in speeds), strict=True)
        return tuple((c[0][0], statistics.median(seconds for _, seconds in c)) for c in columns)

    small, large = measure(place, labs.UNLIMITED, seconds, _RING_SIZES, ["fp32"])["rows"]
    messages = 2 * (ranks - 1)
    message = small["seconds_min"] / messages
    moved = 2 * (ranks - 1) / ranks * (large["size"] - small["size"])
    speed = plan.Speed(
        encode=curve("encode"),
        decode=curve("decode"),
        cast_rate=statistics.median(speed.cast_rate for speed in speeds),
        powersgd=curve("powersgd"),
        # While a ring without a limit moves bytes, all its ranks' cores are busy.
        message_seconds=message * place.cores,
        byte_seconds=(large["seconds"] - small["seconds"]) / moved * place.cores,
    )
    return Machine(speed, message, ring_message=small["seconds"] / messages)


_barrier: Any = None


def _keep(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _calibrate(_: int) -> list[plan.Speed]:
    """What one of the processes found in each round; all begin a round together.

    In time on a core: a call shorter than the scheduler's slices rarely sees on the clock that
    others want the core too.
    """
    values = make_source("gg", 0, 1).values  # those of allreduce_bw
    plan.calibrate(bits=BITS, powersgd_rank=POWERSGD_RANK, values=values)  # memory is fetched once
    found = []
    for _ in range(_ROUNDS):
        _barrier.wait()
        found.append(plan.calibrate(bits=BITS, powersgd_rank=POWERSGD_RANK, values=values))
        time.sleep(_PAUSE_SECONDS)
    return found


def predict(
    place: Layout,
    rate: str,
    machine: Machine,
    scheme: str,
    step: plan.Step,
    matrix: tuple[int, int],
) -> plan.Prediction:
    """Of the model's scheme on these hosts; ``matrix``: rows and columns of a parameter."""
    bits_per_second = labs.bits_per_second(rate)
    assert bits_per_second is not None  # plan_check.py's limit() has seen to it
    # These links have no latency of their own.
    in_ring = not scheme.startswith("gct")
    latency = machine.ring_message if in_ring else machine.message
    link = plan.Link(bits_per_second, latency, message=latency, efficiency=_EFFICIENCY)
    # On a host bytes are moved by its processor, which speed.byte_seconds counts.
    inside = plan.Link(math.inf, machine.ring_message, message=latency)
    cluster = plan.Cluster(
        place.ranks, link, local_ranks=place.per_host, local_link=inside, cores=place.cores
    )
    return plan.predict(
        scheme,
        cluster,
        step,
        machine.speed,
        bits=BITS,
        powersgd_rank=POWERSGD_RANK,
        matrix=matrix,
    )
