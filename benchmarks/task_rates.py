"""Which rate other models than the example's GPT need: held-out loss by rate, several seeds.

    python benchmarks/task_rates.py                     # both, three seeds: about half an hour
    python benchmarks/task_rates.py digits --seeds 1

digits: a convolutional net of 0.37 M parameters on scikit-learn's digits, SGD with momentum, 300
steps. finetune: all-MiniLM-L6-v2 (10.8 M parameters without its word embeddings) learns to tell
plays apart, AdamW, 100 steps. Two processes over Gloo with batches of their own, DDP with gct.hook.
Needs the extra experiments. Writes task_rates_TASK.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import task_gradients  # makes the examples importable
import torch
import torch.distributed as dist
from experiments.training_loop import train
from multihost.arguments import Parser, whole_number
from runlog import RunLog
from torch.nn.parallel import DistributedDataParallel

import gct

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2
STEPS = {"digits": 300, "finetune": 100}
FLOAT32 = "float32"
FIRST_PART = 0.3  # of the steps: those with the first of two numbers of bits
LOW_RANK = {"allocation": 0.5, "low_rank": 16}
SCALES = {"element_scales": True}
CENTROIDS = {"reconstruction": "centroid"}  # levels of the least error, in the place of unit gain
SCHEMES: dict[str, dict[str, Any] | None] = {
    FLOAT32: None,
    "2 bits (default)": {"bits": 2.0},
    "1.2 bits": {"bits": 1.2},
    "0.8 bits": {"bits": 0.8},
    "2 bits, scales": {"bits": 2.0, **SCALES},
    "1.2 bits, scales": {"bits": 1.2, **SCALES},
    # Factors of matrices' strongest directions, and steps by the square root of blocks' scales.
    "1.2 bits, low rank": {"bits": 1.2, **LOW_RANK},
    "0.8 bits, low rank": {"bits": 0.8, **LOW_RANK},
    "0.4 bits, low rank": {"bits": 0.4, **LOW_RANK},
    "3 bits, centroids": {"bits": 3.0, **CENTROIDS},
    "2 bits, centroids": {"bits": 2.0, **CENTROIDS},
    "1.2 bits, centroids": {"bits": 1.2, **CENTROIDS},
    "0.8 bits, centroids": {"bits": 0.8, **CENTROIDS},
    "2 bits, mse, centroids": {"bits": 2.0, "allocation": "mse", **CENTROIDS},
    "2 bits, scales, centroids": {"bits": 2.0, **SCALES, **CENTROIDS},
    "1.2 bits, scales, centroids": {"bits": 1.2, **SCALES, **CENTROIDS},
    "0.8 bits, scales, centroids": {"bits": 0.8, **SCALES, **CENTROIDS},
    "1.2 bits, allocation 0.5, centroids": {"bits": 1.2, "allocation": 0.5, **CENTROIDS},
    "1.2 bits, low rank, centroids": {"bits": 1.2, **LOW_RANK, **CENTROIDS},
    "0.8 bits, low rank, centroids": {"bits": 0.8, **LOW_RANK, **CENTROIDS},
    "0.4 bits, low rank, centroids": {"bits": 0.4, **LOW_RANK, **CENTROIDS},
    # 1.2 bits on average
    "2, then 0.86 bits, centroids": {"bits": (2.0, 0.86), **CENTROIDS},
    "2, then 0.86 bits, scales, centroids": {"bits": (2.0, 0.86), **SCALES, **CENTROIDS},
}


def task_name(text: str) -> str:
    """For ``type=``; ``choices`` would compare the default, all of them, with each."""
    if text not in STEPS:
        raise argparse.ArgumentTypeError(f"expected {' or '.join(STEPS)}, got {text!r}")
    return text


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("tasks", nargs="*", type=task_name, default=list(STEPS), metavar="TASK")
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=whole_number(1), help=f"instead of {STEPS}")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "task_rates")
    return parser.parse_args(words)


def run(task: str, scheme: str, seed: int, steps: int) -> dict[str, float]:
    """Train once; what rank 0 measured."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(  # type: ignore[no-untyped-call]
            train_on_rank, (folder, task, scheme, seed, steps), nprocs=RANKS
        )
        result: dict[str, float] = json.loads((Path(folder) / "result.json").read_text())
        return result


def train_on_rank(rank: int, folder: str, name: str, scheme: str, seed: int, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    torch.manual_seed(seed)  # of the initial weights, the same on all ranks
    task, schedule = task_gradients.make_task(name, RANKS * seed + rank, steps)
    model = DistributedDataParallel(task.model)
    task.model = model
    options = SCHEMES[scheme]
    state = gct.GCTState(**options_for(options, steps)) if options is not None else None
    if state is not None:
        model.register_comm_hook(state, gct.hook)
    measured = train(task, schedule, RunLog(Path(folder) / f"run{rank}.jsonl"))
    if state is not None:
        measured["bits_per_element"] = float(state.stats()["bits_per_element"])
        state.close()
    if rank == 0:
        (Path(folder) / "result.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


def options_for(options: dict[str, Any], steps: int) -> dict[str, Any]:
    """GCTState's arguments for a run of this length."""
    if not isinstance(options["bits"], tuple):
        return options
    first, then = options["bits"]
    return {**options, "bits": {0: first, round(FIRST_PART * steps): then}}


def table(runs: dict[str, dict[int, dict[str, float]]], seeds: list[int]) -> list[str]:
    """Of one task; runs by scheme and seed."""
    header = ["gradients", *(f"seed {seed}" for seed in seeds), "mean", "spread"]
    rows = [[*header, "against float32", "accuracy", "bits/element"]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    base = statistics.fmean(run["held_out_loss"] for run in runs[FLOAT32].values())
    for scheme, results in runs.items():
        losses = [results[seed]["held_out_loss"] for seed in seeds]
        accuracy = statistics.fmean(results[seed]["accuracy"] for seed in seeds)
        bits = results[seeds[0]].get("bits_per_element", 32.0)
        row = [scheme, *(f"{loss:.4f}" for loss in losses), f"{statistics.fmean(losses):.4f}"]
        row += [f"{max(losses) - min(losses):.4f}"]
        row += [f"{100 * (statistics.fmean(losses) / base - 1):+.1f} %"]
        rows.append([*row, f"{100 * accuracy:.1f} %", f"{bits:.2f}"])
    return ["| " + " | ".join(row) + " |" for row in rows]


def markdown(content: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"# Held-out loss by rate: {content['task']}, {content['steps']} steps",
            "",
            *table(content["runs"], content["seeds"]),
            "",
            "Cross-entropy and accuracy on data held out, after the last step; two processes, DDP "
            "with gct.hook. Bits: of all elements that the hook compressed, headers included. "
            "Scales: element_scales=True. Low rank: low_rank=16, allocation=0.5. Centroids: "
            'reconstruction="centroid". Two numbers of bits: the first for '
            f"{FIRST_PART:.0%} of the steps.",
            "",
            f"Machine: {content['machine']}; torch {torch.__version__}, one thread a process; gct "
            f"{gct.__version__}.",
            "",
            f"    {content['command']}",
            "",
        ]
    )


def run_all(task: str, seeds: list[int], steps: int) -> Iterator[dict[str, Any]]:
    """What is finished, after each seed."""
    runs: dict[str, dict[int, dict[str, float]]] = {scheme: {} for scheme in SCHEMES}
    for i, seed in enumerate(seeds):
        for scheme, results in runs.items():
            results[seed] = run(task, scheme, seed, steps)
            print(f"{task}, {scheme}, seed {seed}: {results[seed]}", file=sys.stderr, flush=True)
        yield {
            "task": task,
            "command": shlex.join(["python", "benchmarks/task_rates.py", *sys.argv[1:]]),
            "machine": f"{platform.platform()}, {os.cpu_count()} cores",
            "seeds": seeds[: i + 1],
            "steps": steps,
            "runs": runs,
        }


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        path = args.out / f"task_rates_{task}"
        for content in run_all(task, args.seeds, args.steps or STEPS[task]):
            path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
            path.with_suffix(".md").write_text(markdown(content))
        print(markdown(content))


if __name__ == "__main__":
    main()
