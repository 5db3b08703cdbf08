"""(b) Activation-constrained training of the GPT from scratch, at strengths over decades.

Constrained and measured: the outputs of the blocks (what stages of a pipeline would send to each
other) and of the MLPs' first layers (what an MLP computes with). Measured after training, on
windows of the held-out text, per element:

- bits at equal relative error: gct.encode at 15 dB in every tensor, with allocation="mse" and
  low_rank=0;
- bits at a fixed step: entropy, the same step in all rows;
- small: share of values below a tenth of the root mean square;
- held-out loss if these activations are replaced by what gct decodes of 2 bits per element.

Control: twice the learning rate, without the constraint and with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from runlog import RunLog
from torch import Tensor, nn

import gct

from . import curves
from .jobs import Job, run_jobs
from .jobs import add_arguments as add_common_arguments
from .measures import encoded_bits, fixed_step_bits
from .results import Column, Row, rows, table, write
from .tasks import GPT_LR, GPT_SECONDS, TINY_GPT, GPTSizes, TextTask, gpt_schedule, settings
from .training_loop import Schedule, finite, train


@dataclass(frozen=True)
class Config:
    label: str
    strength: float
    lr: float = GPT_LR


_STRENGTHS = (0.0, 0.001, 0.01, 0.03, 0.1)
_CONTROLS = (0.0, 0.01)
CONFIGS = {
    **{f"{s:g}": Config(f"strength {s:g}", s) for s in _STRENGTHS},
    **{
        f"{s:g}-lr-double": Config(f"strength {s:g}, twice the learning rate", s, 2 * GPT_LR)
        for s in _CONTROLS
    },
}
KINDS = {"block": "blocks.?", "mlp": "blocks.?.up"}  # kind -> pattern of module names
_TITLES = {"block": "Outputs of blocks", "mlp": "Outputs of the MLPs' first layers"}
FIXED_STEP = 0.25
CODED_BITS = 2.0
_WINDOWS = 64  # of the held-out text, for bits and sparsity
_CODED_WINDOWS = 512  # for the loss with coded activations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(parser, "methods_act", "of training (400)")


def run(args: argparse.Namespace) -> None:
    steps = args.steps or 400
    sizes = TINY_GPT if args.tiny else GPTSizes()
    jobs = [
        Job(
            "act",
            key,
            seed,
            settings(sizes, gpt_schedule(steps, lr=config.lr), strength=config.strength),
            GPT_SECONDS * steps,
        )
        for seed in args.seeds
        for key, config in CONFIGS.items()
    ]
    finished = run_jobs(jobs, run_once, args)
    shown = rows(finished, "act", {key: config.label for key, config in CONFIGS.items()})
    picture = args.out / f"{args.name}.png"
    _draw([row for row in shown if CONFIGS[row.config].lr == GPT_LR], picture)
    write(args, __doc__ or "", _tables(shown), finished, picture)


def run_once(job: Job, log: RunLog) -> None:
    schedule = Schedule(**job.settings["schedule"])
    task = TextTask(GPTSizes(**job.settings["sizes"]), job.seed)
    ramp = schedule.steps // 2
    act = gct.ActivationConstraint(
        task.model,
        strength=job.settings["strength"],
        modules=list(KINDS.values()),
        schedule="ramp",
        ramp_steps=ramp,
    )
    final = train(task, schedule, log, on_step=lambda step: act.step())
    shapes = {name: report.shape for name, report in act.report().items()}
    act.remove()
    with replaced(task.model, coded):
        loss = task.held_out_loss(_CODED_WINDOWS)
    measured = {"coded_loss": loss, "uncoded_loss": task.held_out_loss(_CODED_WINDOWS)}
    log.write("summary", **finite({**final, **measured, **_activation_costs(task)}), shapes=shapes)


def constrained(model: nn.Module, kind: str) -> list[nn.Module]:
    return [m for name, m in model.named_modules() if fnmatchcase(name, KINDS[kind])]


@contextmanager
def replaced(model: nn.Module, by: Any, kinds: tuple[str, ...] = tuple(KINDS)) -> Iterator[None]:
    """Outputs of the constrained modules go through ``by`` first."""
    handles = [
        module.register_forward_hook(lambda module, args, output: by(output))
        for kind in kinds
        for module in constrained(model, kind)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def coded(activation: Tensor) -> Tensor:
    """What arrives of it at CODED_BITS."""
    codec = gct.Codec(bits=CODED_BITS, allocation="mse", low_rank=0)
    return gct.decode(gct.encode(activation.contiguous(), codec)).view_as(activation)


@torch.no_grad()
def _activation_costs(task: TextTask) -> dict[str, float]:
    inputs = task.held_out_windows(_WINDOWS)
    costs = {}
    for kind in KINDS:
        seen: list[Tensor] = []
        with replaced(task.model, seen.append, (kind,)):
            task.model(inputs)
        costs.update({f"{kind}_{name}": value for name, value in _costs(seen).items()})
    return costs


def _costs(activations: list[Tensor]) -> dict[str, float]:
    """Means over the modules of a kind."""
    each = []
    for activation in activations:
        rms = float(activation.double().square().mean().sqrt())
        each.append(
            {
                "rms": rms,
                "bits": encoded_bits(activation.contiguous()) / activation.numel(),
                "fixed_bits": fixed_step_bits(activation.flatten(), FIXED_STEP)[0],
                "small": float((activation.abs() < 0.1 * rms).double().mean()),
            }
        )
    return {name: sum(cost[name] for cost in each) / len(each) for name in each[0]}


def _tables(shown: list[Row]) -> list[str]:
    loss = Column("held-out loss", "held_out_loss", spread=True, against_first=True)
    parts = [
        table("Loss", shown, [loss, Column("with 2-bit activations", "coded_loss")]),
    ]
    for kind, title in (
        ("block", "Outputs of blocks"),
        ("mlp", "Outputs of the MLPs' first layer"),
    ):
        bits = Column("bits at 15 dB", f"{kind}_bits", ".2f", against_first=True)
        fixed = Column(f"bits at step {FIXED_STEP:g}", f"{kind}_fixed_bits", ".2f")
        columns = [
            bits,
            replace(fixed, against_first=True),
            Column("small, %", f"{kind}_small", ".1f", factor=100),
            Column("root mean square", f"{kind}_rms", ".3f"),
        ]
        parts.append(table(title, shown, columns))
    return parts


def _draw(shown: list[Row], picture: Path) -> None:
    places = [CONFIGS[row.config].strength for row in shown]
    figure, (losses, bits, small) = curves.panels(3)
    curves.points(losses, places, shown, "held_out_loss", color=curves.COLOURS[0], label="as it is")
    curves.points(
        losses, places, shown, "coded_loss", color=curves.COLOURS[1], label="2-bit activations"
    )
    losses.set_ylabel("held-out loss (nats per byte)")
    for index, (kind, label) in enumerate({"block": "blocks", "mlp": "MLPs"}.items()):
        for axes, field, style, more in (
            (bits, "bits", "-", ", equal error"),
            (bits, "fixed_bits", "--", ", fixed step"),
            (small, "small", "-", ""),
        ):
            curves.points(
                axes,
                places,
                shown,
                f"{kind}_{field}",
                linestyle=style,
                color=curves.COLOURS[index],
                label=label + more,
            )
    bits.set_ylabel("bits per element")
    small.set_ylabel("share below a tenth of the rms")
    for axes in (losses, bits, small):
        axes.set_xlabel("strength")
        axes.legend(frameon=False, fontsize=8)
    curves.save(figure, picture)
