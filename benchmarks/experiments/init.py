"""(a) Generalized Gaussian initialization against torch's defaults, Glorot's and He's rules.

The three ``gg`` rows have the same variances (1 / fan_in, no depth scaling), so what differs is
the shape alone; the same holds for the three rows of the example's variances. The example's own is
GPT-2's: normal, 0.02, residual outputs divided by sqrt(2 layers). The published rule is the
authors' code: variance 2 / (size of dimension 0) for matrices, ones for other weights. Glorot's,
He's and gct's rules draw all weights of two dimensions and more, embeddings and output layer too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from runlog import RunLog
from torch import nn

import gct

from . import curves
from .jobs import Job, Lines, run_jobs
from .jobs import add_arguments as add_common_arguments
from .results import Column, rows, table, write
from .tasks import (
    DIGITS_SECONDS,
    GPT_SECONDS,
    TINY_DIGITS,
    TINY_GPT,
    DigitsSizes,
    DigitsTask,
    GPTSizes,
    TextTask,
    digits_schedule,
    gpt_schedule,
    settings,
)
from .training_loop import Schedule, finite, train

Initialize = Callable[[nn.Module], None]


def _as_made(model: nn.Module) -> None:
    """What the model's constructor did."""


def _torch_defaults(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
            module.reset_parameters()


def _by_rule(draw: Callable[..., object], model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            draw(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def _gg(model: nn.Module, shape: float) -> None:
    # Without depth scaling, so that the rows differ from He's and Glorot's in one thing at a time.
    gct.init.apply(model, shape=shape, residual_depth_scaling=False)


def _published(model: nn.Module, shape: float) -> None:
    gct.init.apply(model, shape=shape, paper=True)


def _like_example(model: nn.Module, shape: float) -> None:
    gct.init.apply(model, shape=shape, std=0.02)


_RULES: dict[str, tuple[str, Initialize]] = {
    "xavier": ("Glorot, normal", partial(_by_rule, nn.init.xavier_normal_)),
    "he": ("He, normal", partial(_by_rule, partial(nn.init.kaiming_normal_, nonlinearity="relu"))),
    "gg-2": ("gg, shape 2", partial(_gg, shape=2.0)),
    "gg-1": ("gg, shape 1", partial(_gg, shape=1.0)),
    "gg-0.5": ("gg, shape 0.5", partial(_gg, shape=0.5)),
    "published": ("published rule, shape 2", partial(_published, shape=2.0)),
}
GPT_ROWS: dict[str, tuple[str, Initialize]] = {
    "example": ("the example's own", _as_made),
    "example-1": ("the same variances, shape 1", partial(_like_example, shape=1.0)),
    "example-0.5": ("the same variances, shape 0.5", partial(_like_example, shape=0.5)),
    "torch": ("torch's defaults", _torch_defaults),
    **_RULES,
}
DIGITS_ROWS = {"torch": ("torch's defaults", _as_made), **_RULES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(parser, "methods_init", "of the GPT (300); the small net takes half")


def run(args: argparse.Namespace) -> None:
    steps = args.steps or 300
    half = max(steps // 2, 1)
    # The short runs first.
    jobs = _jobs(
        "init-digits", DIGITS_ROWS, _digits_settings(half, args.tiny), DIGITS_SECONDS * half, args
    )
    jobs += _jobs("init-gpt", GPT_ROWS, _gpt_settings(steps, args.tiny), GPT_SECONDS * steps, args)
    finished = run_jobs(jobs, run_once, args)
    gpt, digits = _labels(GPT_ROWS), _labels(DIGITS_ROWS)
    loss = Column("held-out loss", "held_out_loss", spread=True)
    small_loss = replace(loss, form=".3f")
    accuracy = Column("accuracy, %", "accuracy", ".1f", spread=True, factor=100)
    early = Column("after a sixth of the steps", "early_loss", ".3f")
    tables = []
    if shown := rows(finished, "init-gpt", gpt):
        tables.append(table("GPT", shown, [early, replace(loss, against_first=True)]))
    if shown := rows(finished, "init-digits", digits):
        tables.append(table("Convolutional net on digits", shown, [small_loss, accuracy]))
    picture = args.out / f"{args.name}.png"
    _draw(finished, gpt, digits, picture)
    write(args, __doc__ or "", tables, finished, picture)


def _draw(
    finished: dict[Job, Lines], gpt: dict[str, str], digits: dict[str, str], picture: Path
) -> None:
    figure, (by_text, by_digits) = curves.panels(2)
    curves.loss_curves(by_text, finished, "init-gpt", gpt)
    curves.loss_curves(by_digits, finished, "init-digits", digits)
    by_text.set_title("GPT, nats per byte")
    by_digits.set_title("convolutional net on digits")
    by_digits.set_yscale("log")
    by_digits.set_ylim(top=3.0)  # guessing is 2.3; what is far above never comes down
    curves.save(figure, picture)


def _labels(rows: dict[str, tuple[str, Initialize]]) -> dict[str, str]:
    return {config: label for config, (label, _) in rows.items()}


def _gpt_settings(steps: int, tiny: bool) -> dict[str, object]:
    return settings(TINY_GPT if tiny else GPTSizes(), gpt_schedule(steps))


def _digits_settings(steps: int, tiny: bool) -> dict[str, object]:
    return settings(TINY_DIGITS if tiny else DigitsSizes(), digits_schedule(steps))


def _jobs(
    experiment: str,
    configs: Iterable[str],
    chosen: dict[str, object],
    seconds: float,
    args: argparse.Namespace,
) -> list[Job]:
    return [
        Job(experiment, config, seed, chosen, seconds) for seed in args.seeds for config in configs
    ]


def run_once(job: Job, log: RunLog) -> None:
    sizes, schedule = job.settings["sizes"], Schedule(**job.settings["schedule"])
    if job.experiment == "init-gpt":
        _, initialize = GPT_ROWS[job.config]
        task = TextTask(GPTSizes(**sizes), job.seed, initialize)
    else:
        _, initialize = DIGITS_ROWS[job.config]
        task = DigitsTask(DigitsSizes(**sizes), job.seed, initialize)
    final = train(task, schedule, log)
    log.write("summary", **finite(final))
