"""(c) Gradient-constrained training against plain training, in bits and in loss.

From scratch: the example's GPT. Fine-tuning: all-MiniLM-L6-v2 (22 M parameters, word embeddings
fixed) learns to say from which of six plays 32 words are. Bits are per element of the matrices'
gradients as they are reduced, before the rate term, mean over two to eight steps of the run's last
fifth:

- bits at equal relative error: gct.encode at 15 dB in every tensor, with allocation="mse" and
  low_rank=0, headers counted;
- at a fixed step of 2^-16, as the authors count: exp-Golomb of order 0 on symbols numbered by
  frequency, their list not counted; and the entropy. This falls with |g|, whatever the reason.

Controls: half and twice the learning rate; and the loss (with the clipping threshold) multiplied
by 1/16, which to Adam is no change at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from runlog import RunLog
from torch import nn

import gct

from . import curves
from .finetune import (
    FINETUNE_LR,
    FINETUNE_SECONDS,
    TINY_FINETUNE,
    FinetuneSizes,
    PassagesTask,
    finetune_schedule,
)
from .jobs import Job, run_jobs
from .jobs import add_arguments as add_common_arguments
from .measures import AUTHORS_STEP, Cost, cost_of, matrices, mean_cost
from .results import Column, Row, rows, table, write
from .tasks import GPT_LR, GPT_SECONDS, TINY_GPT, GPTSizes, TextTask, gpt_schedule, settings
from .training_loop import Schedule, Task, finite, train

_MEASURED_STEPS = 8  # at most; a twentieth of a short run's


@dataclass(frozen=True)
class Config:
    label: str
    constraint: dict[str, Any] = field(default_factory=dict)  # of gct.GradientConstraint
    schedule: dict[str, Any] = field(default_factory=dict)  # changes


def _configs(lr: float) -> dict[str, Config]:
    """rate_weight is in units of the parameters: the middle one is a tenth of the largest step."""
    weights = [lr / 100, lr / 10, lr]
    damped = {f"damped-{w:g}": Config(f"rate_weight {w:g}", {"rate_weight": w}) for w in weights}
    middle = weights[1]
    raw = {"rate_weight": middle, "curvature": "raw"}
    return {
        "none": Config("no constraint"),
        **damped,
        f"raw-{middle:g}": Config(f"rate_weight {middle:g}, raw curvature", raw),
        "lr-half": Config("no constraint, half the learning rate", schedule={"lr": lr / 2}),
        "lr-double": Config("no constraint, twice the learning rate", schedule={"lr": 2 * lr}),
        "loss-scale": Config("no constraint, loss / 16", schedule={"loss_scale": 1 / 16}),
    }


SCRATCH = _configs(GPT_LR)
FINETUNE = _configs(FINETUNE_LR)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(
        parser, "methods_gct", "of training from scratch (400); fine-tuning takes three tenths"
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=("scratch", "finetune"), default=["scratch", "finetune"]
    )


def run(args: argparse.Namespace) -> None:
    steps = args.steps or 400
    jobs: list[Job] = []
    if "scratch" in args.tasks:
        jobs += _scratch_jobs(steps, args)
    if "finetune" in args.tasks:
        jobs += _finetune_jobs(max(3 * steps // 10, 3), args)
    finished = run_jobs(jobs, run_once, args)
    scratch = rows(finished, "gct-scratch", _labels(SCRATCH))
    finetune = rows(finished, "gct-finetune", _labels(FINETUNE))
    tables = [
        *([_table("From scratch", scratch, [])] if scratch else []),
        *([_table("Fine-tuning", finetune, [_ACCURACY])] if finetune else []),
    ]
    picture = args.out / f"{args.name}.png"
    _draw({"from scratch": scratch, "fine-tuning": finetune}, picture)
    write(args, __doc__ or "", tables, finished, picture)


def _labels(configs: Mapping[str, Config]) -> dict[str, str]:
    return {key: config.label for key, config in configs.items()}


def _scratch_jobs(steps: int, args: argparse.Namespace) -> list[Job]:
    sizes = TINY_GPT if args.tiny else GPTSizes()
    return [
        Job(
            "gct-scratch",
            key,
            seed,
            settings(sizes, gpt_schedule(steps, **config.schedule), constraint=config.constraint),
            GPT_SECONDS * steps,
        )
        for seed in args.seeds
        for key, config in SCRATCH.items()
    ]


def _finetune_jobs(steps: int, args: argparse.Namespace) -> list[Job]:
    sizes = TINY_FINETUNE if args.tiny else FinetuneSizes()
    return [
        Job(
            "gct-finetune",
            key,
            seed,
            settings(
                sizes, finetune_schedule(steps, **config.schedule), constraint=config.constraint
            ),
            FINETUNE_SECONDS * steps,
        )
        for seed in args.seeds
        for key, config in FINETUNE.items()
    ]


def run_once(job: Job, log: RunLog) -> None:
    schedule = Schedule(**job.settings["schedule"])
    task: Task
    if job.experiment == "gct-scratch":
        task = TextTask(GPTSizes(**job.settings["sizes"]), job.seed)
    else:
        task = PassagesTask(FinetuneSizes(**job.settings["sizes"]), job.seed)
    constraint = gct.GradientConstraint(task.model, **job.settings["constraint"])
    late = set(_late_steps(schedule.steps))
    sent: list[Cost] = []
    changed: list[Cost] = []

    def on_gradient(step: int) -> None:
        if step in late:
            sent.append(_cost(task.model))
        constraint.apply()
        if step in late and job.settings["constraint"]:
            changed.append(_cost(task.model))

    final = train(task, schedule, log, on_gradient)
    summary = {**final, **(mean_cost(sent) if sent else {})}
    if changed:
        # Of the gradients with the term: what a place for it before the exchange would send.
        summary |= {f"changed_{name}": value for name, value in mean_cost(changed).items()}
    log.write("summary", **finite(summary), measured_at=sorted(late))


def _late_steps(steps: int) -> list[int]:
    """Evenly spaced in the last fifth; not the last one, where the learning rate is least."""
    first = steps - max(steps // 5, 1)
    count = min(_MEASURED_STEPS, max(steps // 20, 2))
    return torch.linspace(first, steps - 1, count).long().unique().tolist()


def _cost(model: nn.Module) -> Cost:
    gradients = [p.grad for p in matrices(model) if p.grad is not None]
    return cost_of(gradients, AUTHORS_STEP)


_ACCOUNTS = {"bits": "equal relative error", "fixed_golomb": "fixed step, authors' count"}
_ACCURACY = Column("accuracy, %", "accuracy", ".1f", factor=100)


def _table(title: str, shown: list[Row], more: list[Column]) -> str:
    bits = Column("bits at 15 dB", "bits", ".3f", against_first=True)
    columns = [
        Column("held-out loss", "held_out_loss", spread=True),
        *more,
        Column("mean absolute gradient", "mean_abs", ".3g"),
        bits,
        replace(bits, title="bits at a fixed step, authors' count", field="fixed_golomb"),
        Column("entropy at that step", "fixed_entropy", ".2f"),
    ]
    return table(title, shown, columns)


def _draw(tasks: Mapping[str, list[Row]], picture: Path) -> None:
    """For each task: loss, and bits against those of no constraint in both accounts, by row."""
    kept = {name: shown for name, shown in tasks.items() if shown}
    figure, axes = curves.panels(2, len(kept))
    for name, shown, losses, bits in zip(kept, kept.values(), axes[::2], axes[1::2], strict=True):
        curves.by_row(losses, shown, "held_out_loss", color="black")
        losses.set_title(f"{name}: held-out loss (nats), mean and range of the seeds", fontsize=10)
        for index, (column, label) in enumerate(_ACCOUNTS.items()):
            base = shown[0].mean(column)
            curves.by_row(
                bits,
                shown,
                column,
                100 / base if base else 1.0,
                label=label,
                color=curves.COLOURS[index],
                marker="os"[index],
            )
        bits.set_title(f"{name}: bits, % of those without constraint", fontsize=10)
        bits.legend(frameon=False, fontsize=8)
        bits.tick_params(labelleft=False)
    curves.save(figure, picture)
