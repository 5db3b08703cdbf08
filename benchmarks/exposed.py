"""What of the gradients' exchange is left after backward, in real steps of DistributedDataParallel.

    python benchmarks/exposed.py --local 2
    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        benchmarks/exposed.py --backward-ms 300 --buckets 12 --bucket-mb 25
    mpirun -n 4 --host a,b,c,d python benchmarks/exposed.py
    python benchmarks/netlab.py run --hosts 2 --rate 1gbit -- python benchmarks/exposed.py

Backward takes --backward-ms and leaves the processor alone, as where an accelerator computes it:
its gradients, random float32 in a bucket each, become ready evenly over that time. A step's seconds
are those of its slowest rank, and the median over the steps counts; `exposed` is what it takes more
than a step in which nothing is exchanged. Schemes as in allreduce_bw.py but for PowerSGD: with
several buckets the steps of torch's hook wait for each other on Gloo's two threads for ever. Table
on stdout.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from multihost.arguments import Parser, check_writable, positive, whole_number
from multihost.errors import exits_with_sentence
from multihost.inputs import MATRIX, Source, make_source
from multihost.join import process_group, shared_facts
from multihost.rendezvous import find_place
from multihost.schemes import check_schemes, make_reducer
from multihost.spawn import is_local_rank, run_locally
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel

_SCHEMES = ("fp32", "bf16", "gct-2", "gct-3", "gct-fixed-3")
_ROWS_OF_MEBIBYTE = 256  # of 1024 float32
_WARMUP = 3  # DDP puts its buckets in order after the first step
_LEAST_STEPS = 5


@dataclass(frozen=True)
class Row:
    """Steps of one scheme; seconds."""

    scheme: str
    buckets: int
    bucket_numel: int
    steps: int
    base: float  # of a step that exchanges nothing
    step: float
    step_min: float
    step_max: float

    @property
    def exposed(self) -> float:
        return self.step - self.base


@dataclass(frozen=True)
class Size:
    """Of a step's gradients."""

    buckets: int
    mebibytes: int  # of a bucket

    @property
    def matrix(self) -> tuple[int, int]:
        return _ROWS_OF_MEBIBYTE * self.mebibytes, MATRIX[1]


class Clock:
    """When the gradients of a backward pass become ready."""

    def __init__(self, seconds: float, count: int) -> None:
        self._seconds = seconds / count
        self._began = 0.0

    def start(self) -> float:
        self._began = time.perf_counter()
        return self._began

    def wait_for(self, number: int) -> None:
        """Until the gradient of that number is ready; 1 for the first."""
        left = self._began + number * self._seconds - time.perf_counter()
        if left > 0:
            time.sleep(left)


class _Ready(torch.autograd.Function):
    """Passes its input on; backward waits until the weight's gradient is ready."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, wait: Callable[[], None]) -> Tensor:
        ctx.wait = wait
        # Added to the gradient that lies in DDP's bucket already: it takes next to no processor.
        ctx.nothing = torch.zeros(1, 1).expand_as(weight)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.wait()
        return gradients[0], ctx.nothing, None


class Layers(nn.Module):
    """Weights whose gradients are given values, ready when the clock says so."""

    def __init__(self, source: Source, clock: Clock, size: Size) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(size.matrix) for _ in range(size.buckets))
        self._source = source
        self._clock = clock
        self._call = 0

    def fill(self) -> None:
        """The next step's gradients; in the first one there is no place for them yet."""
        for weight in self.weights:
            if weight.grad is not None:
                self._call += 1
                self._source.fill(weight.grad.view(-1), self._call)

    def forward(self, x: Tensor) -> Tensor:
        count = len(self.weights)
        for i, weight in enumerate(self.weights):
            x = _Ready.apply(x, weight, lambda number=count - i: self._clock.wait_for(number))
        return x


def wrapped(source: Source, clock: Clock, size: Size) -> DistributedDataParallel:
    """A bucket for each weight."""
    layers = Layers(source, clock, size)
    return DistributedDataParallel(
        layers, bucket_cap_mb=size.mebibytes, gradient_as_bucket_view=True
    )


def step_seconds(model: DistributedDataParallel, clock: Clock) -> float:
    model.module.fill()
    loss = model(torch.zeros(1, requires_grad=True)).sum()
    dist.barrier()
    began = clock.start()
    loss.backward()
    return time.perf_counter() - began


def timed_steps(model: DistributedDataParallel, clock: Clock, seconds: float) -> list[float]:
    """Of the slowest rank in each step, for about so long; the same on all ranks."""
    took = max(slowest([step_seconds(model, clock) for _ in range(_WARMUP)]))
    steps = max(_LEAST_STEPS, int(seconds / took))
    return slowest([step_seconds(model, clock) for _ in range(steps)])


def slowest(seconds: list[float]) -> list[float]:
    tensor = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [float(value) for value in tensor]


def measure(args: argparse.Namespace, rank: int) -> list[Row]:
    source = make_source("gg", rank, seed=1)
    clock = Clock(args.backward_ms / 1e3, args.buckets)
    size = Size(args.buckets, args.bucket_mb)
    idle = wrapped(source, clock, size)
    idle.register_comm_hook(None, noop_hook)
    rows = []
    for scheme in args.schemes:
        reducer = make_reducer(scheme)
        model = wrapped(source, clock, size)
        reducer.register(model)
        # Beside each scheme: a machine may be slower a minute later.
        base = statistics.median(timed_steps(idle, clock, args.seconds / 4))
        steps = timed_steps(model, clock, args.seconds)
        reducer.close()
        rows.append(
            Row(
                scheme=scheme,
                buckets=args.buckets,
                bucket_numel=size.matrix[0] * size.matrix[1],
                steps=len(steps),
                base=base,
                step=statistics.median(steps),
                step_min=min(steps),
                step_max=max(steps),
            )
        )
        if rank == 0:
            print(line(rows[-1]), flush=True)
    return rows


def head(args: argparse.Namespace, world: int) -> str:
    return (
        f"{world} ranks, {args.buckets} buckets of {args.bucket_mb} MiB ready over "
        f"{args.backward_ms:g} ms of backward\n"
        f"{'scheme':>24} {'steps':>6} {'step ms':>9} {'least':>9} {'most':>9} {'exposed ms':>11}"
    )


def line(row: Row) -> str:
    times = [f"{1e3 * seconds:>9,.1f}" for seconds in (row.step, row.step_min, row.step_max)]
    return f"{row.scheme:>24} {row.steps:>6} {' '.join(times)} {1e3 * row.exposed:>11,.1f}"


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "--local", type=whole_number(1), metavar="N", help="start N ranks on this machine"
    )
    parser.add_argument(
        "--schemes",
        nargs="+",
        default=list(_SCHEMES),
        metavar="SCHEME",
        help=f"(default: {' '.join(_SCHEMES)})",
    )
    parser.add_argument("--buckets", type=whole_number(1), default=8, help="(default: 8)")
    parser.add_argument(
        "--bucket-mb",
        type=whole_number(1, 1024),
        default=4,
        help="MiB of float32 (default: 4; DDP's own default is 25)",
    )
    parser.add_argument("--backward-ms", type=positive, default=100.0, help="(default: 100)")
    parser.add_argument(
        "--seconds", type=positive, default=5.0, help="for each scheme (default: 5)"
    )
    parser.add_argument(
        "--timeout", type=positive, default=120.0, help="seconds to wait for others (default: 120)"
    )
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    if args.buckets > 1 and any(scheme.startswith("powersgd") for scheme in args.schemes):
        parser.error("torch's PowerSGD hook never ends with several buckets over Gloo")
    return args


def run() -> int:
    args = parse_arguments()
    check_schemes(args.schemes)
    if args.local and not is_local_rank():
        return run_locally(args.local, sys.argv[1:])
    place = find_place()
    if place.rank == 0:
        check_writable(args.json)
    facts = shared_facts(args, own=("json", "timeout", "local"))
    with process_group(place, "gloo", args.timeout, facts):
        if place.rank == 0:
            print(head(args, place.world), flush=True)
        rows = measure(args, place.rank)
    if place.rank == 0 and args.json:
        command = shlex.join(["python", "benchmarks/exposed.py", *sys.argv[1:]])
        content = {"facts": {"command": command, "ranks": place.world}}
        content["rows"] = [{**asdict(row), "exposed": row.exposed} for row in rows]
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def main() -> int:
    with exits_with_sentence("exposed.py"):
        try:
            return run()
        except KeyboardInterrupt:
            return 130
    raise AssertionError("exits_with_sentence ends the program")


if __name__ == "__main__":
    sys.exit(main())
