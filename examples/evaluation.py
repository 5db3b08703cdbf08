"""Held-out loss: the same windows in every run, shared out over the ranks if there are several."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn as nn
from model import loss_per_byte


class HeldOut:
    """Consecutive windows of the held-out text, without overlap."""

    def __init__(
        self,
        text: torch.Tensor,
        context: int,
        batch_size: int = 64,
        device: torch.device | None = None,
    ) -> None:
        count = (len(text) - 1) // context
        if count < 1:
            raise ValueError(f"expected more than {context} held-out bytes, got {len(text)}")
        self._inputs = text[: count * context].view(count, context)
        self._targets = text[1 : count * context + 1].view(count, context)
        self._batch_size = batch_size
        self._device = device or torch.device("cpu")

    def __len__(self) -> int:
        return len(self._inputs)

    @torch.no_grad()
    def loss(self, model: nn.Module, limit: int = 0) -> float:
        """Return nats per byte over all windows, or over ``limit`` evenly spaced ones.

        With a process group a collective call: rank r takes every W-th window, the sums are added
        over ranks.
        """
        chosen = self._spread(limit)
        together = dist.is_initialized()
        mine = chosen[dist.get_rank() :: dist.get_world_size()] if together else chosen
        total = torch.zeros(2, dtype=torch.float64)
        for rows in mine.split(self._batch_size):
            inputs, targets = self._inputs[rows].long(), self._targets[rows].long()
            inputs, targets = inputs.to(self._device), targets.to(self._device)
            total[0] += loss_per_byte(model(inputs), targets).double().cpu() * len(rows)
            total[1] += len(rows)
        if together:
            dist.all_reduce(total)
        return float(total[0] / total[1])

    def inputs(self, count: int) -> torch.Tensor:
        """Evenly spaced windows, int64 (count, context)."""
        return self._inputs[self._spread(count)].long()

    def _spread(self, limit: int) -> torch.Tensor:
        count = min(limit, len(self)) if limit else len(self)
        return torch.linspace(0, len(self) - 1, count).round().long()
