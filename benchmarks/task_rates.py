"""Which rate other models than the example's GPT need: held-out loss by rate, several seeds.

    python benchmarks/task_rates.py                     # both, three seeds: some hours
    python benchmarks/task_rates.py digits --seeds 1
    python benchmarks/task_rates.py finetune --only "2 bits (default)"

digits: a convolutional net of 0.37 M parameters on scikit-learn's digits, SGD with momentum, 300
steps. finetune: all-MiniLM-L6-v2 (10.8 M parameters without its word embeddings) learns to tell
plays apart, AdamW, 100 steps. Two processes over Gloo with batches of their own, DDP with gct.hook.
Needs the extra experiments. Writes task_rates_TASK.json after every run and .md at the end; a run
that is in the former is not repeated, so an interrupted call is started again, and --only adds
rows. Float32, which all others are compared with, is always among them. "notes" of that file are
printed at the page's end.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import task_gradients  # makes the examples importable
import torch
import torch.distributed as dist
from experiments.training_loop import train
from machine import processor
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
Results = dict[str, dict[str, Any]]  # by seed
Runs = dict[str, Results]  # by scheme
SCHEMES: dict[str, dict[str, Any] | None] = {
    FLOAT32: None,
    "3 bits": {"bits": 3.0},
    "2 bits (default)": {"bits": 2.0},
    "1.2 bits": {"bits": 1.2},
    "0.8 bits": {"bits": 0.8},
    "2 bits, scales": {"bits": 2.0, **SCALES},
    "1.2 bits, scales": {"bits": 1.2, **SCALES},
    # Factors of matrices' strongest directions, and steps by the square root of blocks' scales.
    "1.2 bits, low rank": {"bits": 1.2, **LOW_RANK},
    "0.8 bits, low rank": {"bits": 0.8, **LOW_RANK},
    "0.4 bits, low rank": {"bits": 0.4, **LOW_RANK},
    "2, then 0.86 bits, low rank": {"bits": (2.0, 0.86), **LOW_RANK},  # 1.2 on average
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
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(SCHEMES),
        choices=list(SCHEMES),
        metavar="ROW",
        help="of the table; all of them: " + "; ".join(SCHEMES),
    )
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


def table(runs: Runs) -> list[str]:
    """Of one task; every row is compared with float32's runs of the same seeds."""
    seeds = sorted({seed for results in runs.values() for seed in results}, key=int)
    header = ["gradients", *(f"seed {seed}" for seed in seeds), "mean", "spread"]
    rows = [[*header, "against float32", "accuracy", "bits/element"]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for scheme in SCHEMES:
        if results := runs.get(scheme):
            rows.append([scheme, *cells(results, runs[FLOAT32], seeds)])
    return ["| " + " | ".join(row) + " |" for row in rows]


def cells(results: Results, base: Results, seeds: list[str]) -> list[str]:
    """One row's, from the first seed's on."""
    losses = {seed: result["held_out_loss"] for seed, result in results.items()}
    mean = statistics.fmean(losses.values())
    against = mean / statistics.fmean(base[seed]["held_out_loss"] for seed in losses) - 1
    accuracy = statistics.fmean(result["accuracy"] for result in results.values())
    bits = next(iter(results.values())).get("bits_per_element", 32.0)
    return [
        *(f"{losses[seed]:.4f}" if seed in losses else "" for seed in seeds),
        f"{mean:.4f}",
        f"{max(losses.values()) - min(losses.values()):.4f}",
        f"{100 * against:+.1f} %",
        f"{100 * accuracy:.1f} %",
        f"{bits:.2f}",
    ]


def machines(runs: Runs) -> list[str]:
    """Which rows were measured where, and when."""
    rows: dict[str, list[str]] = {}
    for scheme in SCHEMES:
        for place in sorted({run["where"] for run in runs.get(scheme, {}).values()}):
            rows.setdefault(place, []).append(scheme)
    return [f"{'; '.join(schemes)}: {place}." for place, schemes in rows.items()]


def markdown(content: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"# Held-out loss by rate: {content['task']}, {content['steps']} steps",
            "",
            *table(content["runs"]),
            "",
            "Cross-entropy and accuracy on data held out, after the last step; two processes, DDP "
            "with gct.hook. Bits: of all elements that the hook compressed, headers included. "
            "Scales: element_scales=True. Low rank: low_rank=16, allocation=0.5. Centroids: "
            'reconstruction="centroid". Two numbers of bits: the first for '
            f"{FIRST_PART:.0%} of the steps.",
            "",
            "Rows, and where and when they were measured:",
            "",
            *(f"- {line}" for line in machines(content["runs"])),
            "",
            f"    {content['command']}",
            "",
            *(f"{note}\n" for note in content["notes"]),
        ]
    )


def where() -> str:
    """This machine and the day."""
    return (
        f"{platform.platform()}, {processor()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"one thread a process, gct {gct.__version__}, {datetime.date.today()}"
    )


def run_all(task: str, args: argparse.Namespace) -> dict[str, Any]:
    """Make the runs that are missing; write after each."""
    path = args.out / f"task_rates_{task}"
    steps = args.steps or STEPS[task]
    content: dict[str, Any] = {"task": task, "steps": steps, "runs": {}, "notes": []}
    if path.with_suffix(".json").exists():
        content = json.loads(path.with_suffix(".json").read_text())
        if content["steps"] != steps:
            raise SystemExit(
                f"{path}.json holds runs of {content['steps']} steps, not of {steps}: remove it, "
                "or choose another --out"
            )
    content["command"] = shlex.join(["python", "benchmarks/task_rates.py", *sys.argv[1:]])
    runs: Runs = content["runs"]
    for seed in map(str, args.seeds):  # as JSON has it
        for scheme in dict.fromkeys((FLOAT32, *args.only)):
            if seed in runs.setdefault(scheme, {}):
                continue
            result = {**run(task, scheme, int(seed), steps), "where": where()}
            print(f"{task}, {scheme}, seed {seed}: {result}", file=sys.stderr, flush=True)
            runs[scheme][seed] = result
            path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(content))
    return content


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        print(markdown(run_all(task, args)))


if __name__ == "__main__":
    main()
