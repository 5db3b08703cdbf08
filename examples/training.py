"""What the training script and the gradient collector share: batches, optimizer, schedule."""

from __future__ import annotations

import math

import torch
import torch.nn as nn


class Batches:
    """Random windows of the text; each (seed, rank) has its own stream."""

    def __init__(self, text: torch.Tensor, batch_size: int, context: int, seed: int, rank: int = 0):
        if len(text) <= context:
            raise ValueError(f"expected more than {context} bytes of text, got {len(text)}")
        self._text = text
        self._batch_size = batch_size
        self._window = torch.arange(context + 1)
        # An odd multiplier keeps (seed, rank) pairs apart for every realistic number of ranks.
        self._generator = torch.Generator().manual_seed(seed * 1_000_003 + rank)

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets, both int64 (batch, context)."""
        last = len(self._text) - len(self._window)
        starts = torch.randint(0, last + 1, (self._batch_size, 1), generator=self._generator)
        window = self._text[starts + self._window].long()
        return window[:, :-1], window[:, 1:]


def make_optimizer(
    model: nn.Module, lr: float, weight_decay: float, name: str = "adamw"
) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9; matrices are decayed, norms are not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def learning_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.1) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine down to ``floor`` times the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
