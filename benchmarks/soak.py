"""A long run of everything at once, for what only shows after a while: leaks, and ranks that part.

    python benchmarks/netlab.py run --hosts 4 --rate 1gbit -- python benchmarks/soak.py

Every step reduces a few of a set of gradients through states of the hook, with error feedback and
checksums, and a tensor of random size with a random codec; now and then a rank is late. All ranks
compare a hash of all results at every step. At the end each has to have about the memory, and
exactly the file descriptors and threads, that it had once everything had been used.

Started by whatever sets torch's variables (netlab.py, torchrun). Status 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import gct

LARGEST = 400_000  # elements
PARAMETERS = 12
CODECS = [
    gct.Codec(bits=2.0),
    gct.Codec("fixed", bits=4),
    gct.Codec(snr_db=15.0),
    gct.Codec(bits=1.0, rounding="stochastic", allocation="mse"),
    gct.Codec("raw"),
]
LATE_SECONDS = 0.05
LATE_ONCE_IN = 10  # steps
WARM_UP = 0.2  # of the steps: buffers have grown to their largest
GROWTH = 0.01  # of the resident memory, allowed
_PAGE = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None)


@dataclass
class Usage:
    """What this process holds, step by step.

    Without what malloc keeps for later: that goes up and down by some percent with random sizes.
    """

    resident: list[int] = field(default_factory=list)  # bytes
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def note(self) -> None:
        _libc.malloc_trim(0)
        self.resident.append(_PAGE * int(Path("/proc/self/statm").read_text().split()[1]))
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(len(os.listdir("/proc/self/task")))

    def summary(self) -> dict[str, Any]:
        """After the warm-up, and in the last steps: medians, since pages come and go."""
        begin, part = int(len(self.resident) * WARM_UP), len(self.resident) // 10
        first, last = (
            statistics.median(part)
            for part in (self.resident[begin:][:part], self.resident[-part:])
        )
        return {
            "resident_bytes": [int(first), int(last)],
            "growth": last / first - 1,
            "files": [max(self.files[begin:][:part]), max(self.files[-part:])],
            "threads": [max(self.threads[begin:][:part]), max(self.threads[-part:])],
        }


class Load:
    """The reductions of each step; their sizes and order are the same on all ranks."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._noise = torch.Generator().manual_seed(seed + dist.get_rank())
        self._pool = torch.randn(2 * LARGEST, generator=self._noise)
        sizes = [LARGEST, *(self._size() for _ in range(PARAMETERS - 1))]
        self._parameters = [nn.Parameter(torch.zeros(-(-n // 100), 100)) for n in sizes]
        common: dict[str, Any] = {"start_step": 0, "min_numel": 0, "checksum": True}
        self._states = [
            gct.GCTState(error_feedback=True, **common),
            gct.GCTState(bits=1.5, algorithm="one_shot", hierarchy="off", **common),
        ]

    def _size(self) -> int:
        """Small ones as likely as large ones."""
        return int(LARGEST ** self._dice.random()) or 1

    def _values(self, numel: int) -> Tensor:
        """Heavy-tailed, and different at each step."""
        begin = int(torch.randint(LARGEST, (1,), generator=self._noise))
        values = self._pool[begin : begin + numel]
        return values * values.abs()

    def step(self, everything: bool) -> str:
        """A hash of all results. ``everything``: the largest of all kinds, to have it behind us."""
        digest = hashlib.blake2b(digest_size=8)
        chosen = range(PARAMETERS) if everything else self._dice.sample(range(PARAMETERS), 4)
        for i in chosen:
            parameter = self._parameters[i]
            gradient = self._values(parameter.numel()).view_as(parameter)
            gct.hook(self._states[i % 2], (gradient, parameter)).wait()  # type: ignore[arg-type]
            digest.update(memoryview(gradient.numpy()))
        for codec in CODECS if everything else [self._dice.choice(CODECS)]:
            tensor = self._values(LARGEST if everything else self._size())
            gct.all_reduce(tensor, codec)
            digest.update(memoryview(tensor.numpy()))
        if self._dice.randrange(LATE_ONCE_IN) == 0:
            late, seconds = self._dice.randrange(dist.get_world_size()), self._dice.random()
            if late == dist.get_rank():
                time.sleep(LATE_SECONDS * seconds)
        return digest.hexdigest()


def same_on_all_ranks(digest: str) -> bool:
    mine = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return all(torch.equal(other, mine) for other in everyone)


def gather(summary: dict[str, Any]) -> list[dict[str, Any]]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, summary)
    return everyone


def faults(summaries: list[dict[str, Any]]) -> list[str]:
    found = []
    for rank, summary in enumerate(summaries):
        if summary["differing_steps"]:
            found.append(f"rank {rank}: other results at {summary['differing_steps']} steps")
        if summary["growth"] >= GROWTH:
            found.append(f"rank {rank}: memory has grown by {summary['growth']:.2%}")
        for name in ("files", "threads"):
            before, after = summary[name]
            if after > before:
                found.append(f"rank {rank}: {before} {name} have become {after}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="rank 0 writes its results here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    load, usage, differing = Load(args.seed), Usage(), 0
    began = time.perf_counter()
    for step in range(args.steps):
        differing += not same_on_all_ranks(load.step(everything=step in (0, args.steps // 10)))
        usage.note()
        if dist.get_rank() == 0 and (step + 1) % 200 == 0:
            held = usage.resident[-1] / 2**20
            print(
                f"step {step + 1}: {time.perf_counter() - began:.0f} s, {held:.1f} MiB", flush=True
            )
    summaries = gather({"differing_steps": differing, **usage.summary()})
    found = faults(summaries)
    if dist.get_rank() == 0:
        seconds = time.perf_counter() - began
        result = {"steps": args.steps, "seconds": seconds, "ranks": summaries, "faults": found}
        print(json.dumps(result, indent=1))
        if args.output is not None:
            args.output.write_text(json.dumps(result, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
