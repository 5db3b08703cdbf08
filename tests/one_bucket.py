"""A bucket of one gradient, handed to the hook without DDP around it."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

import gct


class OneBucket:
    """What the hook asks of a GradBucket."""

    def __init__(self, gradient: Tensor, parameter: nn.Parameter) -> None:
        self._gradient = gradient
        self._parameter = parameter

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True

    def buffer(self) -> Tensor:
        return self._gradient

    def parameters(self) -> list[Tensor]:
        return [self._parameter]

    def gradients(self) -> list[Tensor]:
        return [self._gradient]


class Reductions:
    """Each is a step of a state with a gradient of ``numel`` elements, its own on every rank."""

    def __init__(self, state: gct.GCTState, numel: int) -> None:
        self.state = state
        self._parameter = nn.Parameter(torch.zeros(numel, 1))
        generator = torch.Generator().manual_seed(dist.get_rank())
        self._values = torch.randn(numel, generator=generator)

    def start(self) -> Future[Tensor]:
        bucket = OneBucket(self._values.clone(), self._parameter)
        return gct.hook(self.state, cast(dist.GradBucket, bucket))
