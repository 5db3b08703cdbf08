"""Scales of single elements, from reduced gradients: what ``element_scales=True`` remembers.

Each gradient is divided by a scale for each element before it is encoded, and multiplied by it
afterwards: the larger an element was in earlier steps, the larger its scale. So the quantizer's
error follows each element's own size, as Adam's steps do. Nothing is sent: every rank has the same
reduced gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict

import torch
from torch import Tensor
from torch.futures import Future

from gct import _C
from gct._by_parameter import ByParameter
from gct._parameters import ParameterKeys, is_exempt

# Measured: docs/decisions.md, "Scales of single elements".
DECAY = 0.98
# An element's own steps say more of it than its tensor does as soon as there are more than these.
TENSOR_STEPS = 4.0


@lru_cache
def _weight(steps: int) -> float:
    """Of all steps in a moving average that began at 0. By products and sums: the same bits on
    every machine."""
    weight = 0.0
    for _ in range(steps):
        weight = DECAY * weight + (1 - DECAY)
    return weight


def factor_of(steps: int) -> float:
    """See csrc/cpu/element_scales.h: the element's mean square over the tensor's counts as many
    steps as it is of, and 1, the tensor's own, as TENSOR_STEPS."""
    steps = min(steps, round(20 / (1 - DECAY)))  # where the weight is 1
    return min(steps, 1 / (1 - DECAY)) / (TENSOR_STEPS * _weight(steps)) if steps else 0.0


class Saved(TypedDict):
    """Of one parameter, in a checkpoint: averages in memory order."""

    averages: Tensor
    steps: int


@dataclass
class Memory:
    """Of one parameter: moving averages of its elements' squares over each step's mean square."""

    averages: Tensor  # float32, flat, in memory order
    steps: int = 0  # that they are of
    future: Future[None] | None = None  # of the reduction that they still wait for

    def settle(self) -> None:
        """Wait until what was begun has been learned.

        It has been where backward has ended well. After an error that DDP raised before all buckets
        were done (a wrong checksum) ranks would go on with different memories otherwise.
        """
        future, self.future = self.future, None
        if future is not None:
            future.wait()

    def saved(self) -> Saved:
        self.settle()
        return {"averages": self.averages.clone(), "steps": self.steps}


@dataclass(frozen=True)
class Part:
    """One parameter's gradient in a bucket, flat, and what is known of it."""

    gradient: Tensor
    memory: Memory
    divided: bool

    def finish(self) -> None:
        """After the reduction."""
        memory = self.memory
        if self.divided:
            _C.multiply_by_scales(self.gradient, memory.averages, factor_of(memory.steps))
        memory.steps += _C.learn_squares(self.gradient, memory.averages, DECAY)


class ElementScales:
    """For parameters that travel compressed in any bucket: ``min_numel`` elements and more.

    So whether a parameter is scaled doesn't depend on the bucket that it is in.
    """

    def __init__(self, keys: ParameterKeys, min_numel: int) -> None:
        self._keys = keys
        self._min_numel = min_numel
        self._memories = ByParameter[Memory, Saved](keys, _make)

    def covers(self, parameter: Tensor) -> bool:
        return not is_exempt(parameter) and parameter.numel() >= self._min_numel

    def begin(self, parameters: Sequence[Tensor], buffer: Tensor, coded: bool) -> list[Part]:
        """Divide a bucket's gradients, or a single one, by their scales if they will be coded."""
        gradients = buffer.view(-1).split([parameter.numel() for parameter in parameters])
        parts = []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if not self.covers(parameter):
                continue
            memory = self._memories[parameter]
            memory.settle()
            divide = coded and memory.steps > 0
            if divide:
                _C.divide_by_scales(gradient, memory.averages, factor_of(memory.steps))
            parts.append(Part(gradient, memory, divide))
        return parts

    def describe(self, parameters: Sequence[Tensor]) -> str:
        """In words, to be compared among ranks: other scales would make other results."""
        return " ".join(
            f"{_C.crc32c(saved['averages'].view(torch.uint8)):08x}/{saved['steps']}"
            for parameter in parameters
            if (saved := self._known(parameter)) is not None
        )

    def _known(self, parameter: Tensor) -> Saved | None:
        memory = self._memories.known(parameter)
        return memory.saved() if memory else self._memories.waiting.get(self._keys.key(parameter))

    def unclaimed(self) -> list[str]:
        """Keys of loaded ones, not empty, whose parameters have not appeared."""
        return [key for key, saved in self._memories.unclaimed().items() if saved["steps"]]

    def state_dict(self) -> dict[str, Saved]:
        """Copies by parameter key.

        With zeros, which tell no scales, for named parameters that have not appeared yet: some
        loaders need to find a tensor to load to.
        """
        unseen: dict[str, Saved] = {
            name: {"averages": _zeros(p), "steps": 0}
            for p, name in self._keys.named()
            if p.requires_grad and self.covers(p)
        }
        loaded = {key: _copy(saved) for key, saved in self._memories.waiting.items()}
        current = {key: memory.saved() for key, memory in self._memories.by_key().items()}
        return {**unseen, **loaded, **current}

    def load_state_dict(self, saved: Mapping[str, Saved]) -> None:
        """Forget everything and start from these when their parameters appear."""
        self._memories.load({key: _copy(item) for key, item in saved.items()})


def _make(parameter: Tensor, key: str, saved: Saved | None) -> Memory:
    if saved is None:
        return Memory(_zeros(parameter))
    if saved["averages"].numel() != parameter.numel():
        raise ValueError(
            f"the loaded scales of parameter {key} have {saved['averages'].numel()} elements, "
            f"but the parameter has {parameter.numel()}: they belong to another model"
        )
    return Memory(saved["averages"], saved["steps"])


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros(parameter.numel(), dtype=torch.float32, device="cpu")


def _copy(saved: Saved) -> Saved:
    averages = saved["averages"].detach().to("cpu", torch.float32).flatten().clone()
    return {"averages": averages, "steps": int(saved["steps"])}


def finish_after(
    reduced: Future[Tensor], parts: Sequence[Part], settle: bool = True
) -> Future[Tensor]:
    """A future of the same bucket, once its gradients are reduced and multiplied by their scales.

    Backward goes on meanwhile. ``settle``: whoever needs these memories next waits for it.
    """

    def finish(reduced: Future[Tensor]) -> Tensor:
        result = reduced.value()  # raises what went wrong
        for part in parts:
            part.finish()
        return result

    future = reduced.then(finish)
    # Without its value, the bucket, and without its error, which backward raises.
    done: Future[None] = future.then(lambda _: None)
    for part in parts:
        part.memory.future = done if settle else None
    return future
