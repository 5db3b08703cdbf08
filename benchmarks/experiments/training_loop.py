"""One training loop for all experiments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from runlog import RunLog
from torch import Tensor, nn
from training import learning_rate, make_optimizer, set_learning_rate


class Task(Protocol):
    """A model, its data, and what is measured on data held out."""

    model: nn.Module

    def loss(self) -> Tensor:
        """Of the next training batch."""
        ...

    def evaluate(self, final: bool) -> dict[str, float]:
        """``held_out_loss`` and, for classifiers, ``accuracy``; on a part unless final."""
        ...


@dataclass(frozen=True)
class Schedule:
    """AdamW (SGD with momentum 0.9 if ``momentum``), warm-up and cosine."""

    steps: int
    lr: float
    warmup: int
    eval_every: int
    weight_decay: float = 0.1
    clip: float = 1.0  # of the gradient's norm
    momentum: bool = False
    loss_scale: float = 1.0  # of the loss and of the clip: to Adam no change at all


def train(
    task: Task,
    schedule: Schedule,
    log: RunLog,
    on_gradient: Callable[[int], None] = lambda step: None,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, float]:
    """Train and log evaluations; the final one is returned, with ``early_loss``.

    The latter is the held-out loss at the last evaluation in the first sixth of the steps.
    ``on_gradient`` sees (and may change) the gradients before clipping, ``on_step`` comes after
    the optimizer's step. Both get the step's number, from 0. A loss that is no longer finite ends
    the run: its held-out loss is then infinite.
    """
    optimizer = _optimizer(task.model, schedule)
    early = math.inf
    for step in range(schedule.steps):
        task.model.train()
        loss = task.loss()
        if not math.isfinite(loss.item()):
            return {"held_out_loss": math.inf, "early_loss": early, "diverged_at": step}
        (schedule.loss_scale * loss).backward()
        on_gradient(step)
        nn.utils.clip_grad_norm_(task.model.parameters(), schedule.clip * schedule.loss_scale)
        rate = learning_rate(step, schedule.steps, schedule.lr, schedule.warmup)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        on_step(step)
        optimizer.zero_grad(set_to_none=True)
        if step == 0 or (step + 1) % schedule.eval_every == 0:
            measured = finite(evaluate(task, final=False))
            log.write("evaluation", step=step + 1, train_loss=loss.item(), **measured)
            if 6 * step <= schedule.steps:
                early = measured["held_out_loss"]
    return {**evaluate(task, final=True), "early_loss": early}


def evaluate(task: Task, final: bool) -> dict[str, float]:
    task.model.eval()
    return task.evaluate(final)


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    if schedule.momentum:
        return torch.optim.SGD(model.parameters(), lr=schedule.lr, momentum=0.9)
    return make_optimizer(model, schedule.lr, schedule.weight_decay)


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: None instead."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
