"""What a DDP hook is called with. torch's own GradBucket can't be constructed in Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Bucket:
    """One bucket of gradients, with the methods of torch.distributed.GradBucket.

    It never is the last of its step: hooks that count steps stay in the one that they are in, so
    that buckets of other sizes, with other indices, may come as the step's next ones.
    """

    def __init__(self, index: int, shapes: Sequence[tuple[int, ...]], device: torch.device) -> None:
        sizes = [math.prod(shape) for shape in shapes]
        self._index = index
        self._buffer = torch.zeros(sum(sizes), device=device)
        parts = self._buffer.split(sizes)
        self._gradients = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def index(self) -> int:
        return self._index

    def buffer(self) -> Tensor:
        return self._buffer

    def gradients(self) -> list[Tensor]:
        return self._gradients

    def parameters(self) -> list[Tensor]:
        """The gradients stand for them: hooks look at shapes, sizes and identities."""
        return self._gradients

    def is_last(self) -> bool:
        return False

    def set_buffer(self, tensor: Tensor) -> None:
        self._buffer.copy_(tensor)
