"""What the monitor costs: the same training step with and without it, in the same processes.

    python benchmarks/monitor_cost.py
    python benchmarks/monitor_cost.py --ranks 4 --rounds 40

Every rank trains two copies of the example's GPT, one whose state has a monitor that measures
every other pass. A round is one step of each, in turns who is first; every step begins at a
barrier. Of the rounds: medians, and medians of the differences between the two, on rank 0, which
measures and writes. What the monitor does on the other passes is too little to see in those
differences, so its calls are timed as well.

Cost at interval i = (difference where measured + (i - 1) calls elsewhere) / (i steps without).

Writes a table and JSON to docs/results/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from multihost.spawn import run_locally
from torch.nn.parallel import DistributedDataParallel

import gct

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # scripts beside each other, not a package

from model import GPT, GPTConfig, loss_per_byte  # noqa: E402
from text import load_corpus  # noqa: E402
from training import Batches, make_optimizer  # noqa: E402

# The demo's model, and that of examples/collect_gradients.py; windows of a batch.
MODELS = [(GPTConfig(128, 4, 4, 64), 16), (GPTConfig(256, 4, 4, 128), 16)]
WARM_UP = 4
INTERVAL = 100  # the default


@dataclass(frozen=True)
class Cost:
    """Seconds, medians on rank 0."""

    parameters: int
    step: float  # without a monitor
    difference: float  # of a pass that is measured
    difference_error: float  # standard error of that median
    calls: float  # the monitor's own, on a pass that isn't
    other_difference: float  # of such a pass: 0 within its error, unless something is wrong
    other_error: float
    raw: list[list[float]]  # by round: without, with, whether measured, calls

    def at(self, interval: int) -> float:
        """Share of the training time."""
        extra = self.difference + (interval - 1) * self.calls
        return extra / (interval * self.step)


class Trainee:
    """One copy of the model and what trains it."""

    def __init__(self, config: GPTConfig, batch: int, monitor: gct.Monitor | None) -> None:
        torch.manual_seed(1)
        self.model = DistributedDataParallel(GPT(config))
        self.state = gct.GCTState(model=self.model.module, monitor=monitor)
        self.model.register_comm_hook(self.state, gct.hook)
        self.optimizer = make_optimizer(self.model, 1e-3, weight_decay=0.1)
        text = load_corpus().train
        self.batches = Batches(text, batch, config.context, 1, dist.get_rank())

    def step(self) -> float:
        """Seconds of one step, from a barrier on."""
        inputs, targets = self.batches.next()
        dist.barrier()
        began = time.perf_counter()
        loss = loss_per_byte(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        if self.state.monitor is not None:
            self.state.monitor.log(loss=value)
        return time.perf_counter() - began


@contextmanager
def timed(monitor: gct.Monitor) -> Iterator[list[float]]:
    """Adds up the seconds of the calls that a state and a script make, in a list of one."""
    total = [0.0]

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                total[0] += time.perf_counter() - began

        return timed_call

    for name in ("begin_step", "watch", "end_step", "log"):
        setattr(monitor, name, wrap(getattr(monitor, name)))
    yield total
    for name in ("begin_step", "watch", "end_step", "log"):
        delattr(monitor, name)


def measure(config: GPTConfig, batch: int, rounds: int, folder: str) -> Cost:
    monitor = gct.Monitor(f"{folder}/{config.width}.jsonl", interval=2)
    plain, watched = Trainee(config, batch, None), Trainee(config, batch, monitor)
    rows: list[list[float]] = []
    with timed(monitor) as calls:
        for i in range(WARM_UP + rounds):
            calls[0] = 0.0
            if i % 4 < 2:  # both orders for measured passes and for others
                without, with_it = plain.step(), watched.step()
            else:
                with_it, without = watched.step(), plain.step()
            measured = (watched.state.step - 1 - watched.state.start_step) % 2 == 0
            rows.append([without, with_it, float(measured), calls[0]])
    monitor.close()
    del rows[:WARM_UP]
    parameters = sum(p.numel() for p in plain.model.parameters())
    return summarize(parameters, rows)


def summarize(parameters: int, rows: list[list[float]]) -> Cost:
    measured = [with_it - without for without, with_it, flag, _ in rows if flag]
    others = [with_it - without for without, with_it, flag, _ in rows if not flag]
    return Cost(
        parameters=parameters,
        step=statistics.median(row[0] for row in rows),
        difference=statistics.median(measured),
        difference_error=median_error(measured),
        calls=statistics.median(row[3] for row in rows if not row[2]),
        other_difference=statistics.median(others),
        other_error=median_error(others),
        raw=rows,
    )


def median_error(values: list[float]) -> float:
    """Standard error of the median of values with a normal middle, from their quartiles."""
    low, _, high = statistics.quantiles(values, n=4)
    return 1.2533 * (high - low) / 1.349 / math.sqrt(len(values))


def table(costs: list[Cost], args: argparse.Namespace) -> str:
    header = ["parameters", "step without, ms", "measured pass, ms more", "other pass, ms more"]
    header += ["calls on it, ms", f"cost at interval {INTERVAL}", "at 20"]
    rows = [header, ["---:"] * len(header)]
    for cost in costs:
        ms = [cost.difference, cost.difference_error, cost.other_difference, cost.other_error]
        more, error, other, other_error = (1e3 * value for value in ms)
        row = [f"{cost.parameters:,}", f"{1e3 * cost.step:.1f}", f"{more:.1f} ± {error:.1f}"]
        row += [f"{other:.2f} ± {other_error:.2f}", f"{1e3 * cost.calls:.3f}"]
        rows.append([*row, f"{cost.at(INTERVAL):.2%}", f"{cost.at(20):.2%}"])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    facts = f"{args.ranks} ranks, {args.rounds} rounds; medians, with standard errors. "
    facts += f"{os.cpu_count()} cores, {platform.platform()}, torch {torch.__version__}."
    command = shlex.join(["python", "benchmarks/monitor_cost.py", *sys.argv[1:]])
    return "\n".join(["# Cost of the monitor", "", *lines, "", facts, "", f"    {command}", ""])


def run_rank(args: argparse.Namespace) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group("gloo")
    try:
        with tempfile.TemporaryDirectory() as folder:
            costs = [measure(*model, args.rounds, folder) for model in MODELS]
        if dist.get_rank() == 0:
            write(costs, args)
    finally:
        dist.destroy_process_group()


def write(costs: list[Cost], args: argparse.Namespace) -> None:
    text = table(costs, args)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "monitor_cost.md").write_text(text)
    content = [{"cost_at_100": cost.at(INTERVAL), **asdict(cost)} for cost in costs]
    (args.out / "monitor_cost.json").write_text(json.dumps(_rounded(content)) + "\n")


def _rounded(value: Any) -> Any:
    """Microseconds are enough."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    if "RANK" not in os.environ:
        return run_locally(args.ranks, sys.argv[1:])
    run_rank(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
