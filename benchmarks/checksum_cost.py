"""What GCTState(checksum=True) costs: time of encoding, and of a whole reduction, with and without.

    torchrun --nproc-per-node 2 benchmarks/checksum_cost.py

Both kinds of state take turns on the same gradient, so that whatever else the machine does meets
both; medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

import gct

NUMEL = 25 * 2**20 // 4  # DDP's default bucket, in float32


def reducer(checksum: bool, bits: float) -> Callable[[], tuple[float, float]]:
    """Seconds of encoding and of all of one reduction."""
    state = gct.GCTState(bits=bits, start_step=0, checksum=checksum, hierarchy="off")
    parameter = nn.Parameter(torch.zeros(NUMEL // 1000, 1000))
    gradient = torch.randn(NUMEL // 1000, 1000) * torch.rand(NUMEL // 1000, 1)
    buffer = torch.empty_like(gradient)

    def reduce() -> tuple[float, float]:
        buffer.copy_(gradient)
        encoded = state.stats()["encode_seconds"]
        dist.barrier()
        began = time.perf_counter()
        gct.hook(state, (buffer, parameter)).wait()  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
        return state.stats()["encode_seconds"] - encoded, seconds

    return reduce


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    os.environ.setdefault("GCT_NUM_THREADS", "1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ways = {"without": reducer(False, args.bits), "with": reducer(True, args.bits)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for reduce in ways.values():
        reduce()
    for _ in range(args.rounds):
        for name, reduce in ways.items():
            times[name].append(reduce())
    if dist.get_rank() == 0:
        print(f"{NUMEL} float32, {args.bits} bits, {dist.get_world_size()} ranks")
        medians = {
            name: [statistics.median(column) for column in zip(*rows, strict=True)]
            for name, rows in times.items()
        }
        for name, (encode, whole) in medians.items():
            print(f"{name:>8} checksum: encoding {1e3 * encode:.2f} ms, all {1e3 * whole:.2f} ms")
        more = [medians["with"][i] / medians["without"][i] - 1 for i in range(2)]
        print(f"    more: encoding {more[0]:+.2%}, all {more[1]:+.2%}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
