"""Scales of single elements, from reduced gradients: what ``element_scales=True`` remembers.

Each gradient is divided by the root mean square that its elements had in earlier steps before it is
encoded, and multiplied by it afterwards. So the quantizer's error follows each element's own size,
as Adam's steps do. Nothing is sent: every rank has the same reduced gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor
from torch.futures import Future
from torch.utils.weak import WeakTensorKeyDictionary

from gct import _C
from gct._parameters import ParameterKeys, is_exempt

# Measured: docs/decisions.md, "Scales of single elements".
DECAY = 0.98
# An element's own steps say more of it than its tensor does as soon as there are more than these.
TENSOR_STEPS = 4.0


@dataclass
class Squares:
    """Of one parameter: moving averages of its elements' squares, in memory order."""

    values: Tensor  # float32, flat
    mean: float  # of the values
    steps: int  # that they are of

    @property
    def floor(self) -> float:
        """Weight of the tensor's mean square beside the element's own."""
        return TENSOR_STEPS / min(max(self.steps, 1), 1 / (1 - DECAY))


class Saved(TypedDict):
    """Squares in a checkpoint."""

    squares: Tensor
    steps: int


@dataclass(frozen=True)
class Part:
    """One parameter's gradient in a bucket, flat, and what is known of it."""

    gradient: Tensor
    squares: Squares

    def divide(self) -> bool:
        """Whether it was divided: in the first step, and after zeros only, there are no scales."""
        known = self.squares
        return _C.divide_by_scales(self.gradient, known.values, known.mean, known.floor)

    def multiply(self, divided: bool) -> None:
        known = self.squares
        known.mean = _C.multiply_by_scales(
            self.gradient, known.values, known.mean, divided, known.floor, DECAY
        )
        known.steps += 1


class ElementScales:
    """For parameters that travel compressed in any bucket: ``min_numel`` elements and more.

    So whether a parameter is scaled doesn't depend on the bucket that it is in.
    """

    def __init__(self, keys: ParameterKeys, min_numel: int) -> None:
        self._keys = keys
        self._min_numel = min_numel
        self._squares = WeakTensorKeyDictionary()
        self._loaded: dict[str, Saved] = {}

    def covers(self, parameter: Tensor) -> bool:
        return not is_exempt(parameter) and parameter.numel() >= self._min_numel

    def parts(self, parameters: Sequence[Tensor], buffer: Tensor) -> list[Part]:
        """Those of a bucket (or of a single gradient)."""
        flat = buffer.view(-1)
        gradients = flat.split([parameter.numel() for parameter in parameters])
        return [
            Part(gradient, self._of(parameter))
            for parameter, gradient in zip(parameters, gradients, strict=True)
            if self.covers(parameter)
        ]

    def _of(self, parameter: Tensor) -> Squares:
        squares: Squares | None = self._squares.get(parameter)
        if squares is None:
            squares = self._squares[parameter] = self._initial(parameter)
        return squares

    def _initial(self, parameter: Tensor) -> Squares:
        key = self._keys.key(parameter)
        saved = self._loaded.pop(key, None)
        if saved is None:
            return Squares(torch.zeros(parameter.numel()), 0.0, 0)
        values = saved["squares"]
        if values.numel() != parameter.numel():
            raise ValueError(
                f"the loaded scales of parameter {key} have {values.numel()} elements, but the "
                f"parameter has {parameter.numel()}: they belong to another model"
            )
        return Squares(values, _C.mean_of_squares(values), saved["steps"])

    def describe(self, parameters: Sequence[Tensor]) -> str:
        """In words, to be compared among ranks: other scales would make other results."""
        known = [self._of(parameter) for parameter in parameters if self.covers(parameter)]
        return " ".join(f"{_C.crc32c(s.values.view(torch.uint8)):08x}/{s.steps}" for s in known)

    def unclaimed(self) -> list[str]:
        """Keys of loaded ones whose parameters have not appeared."""
        appeared = set(self._keys.appeared())
        return [key for key in self._loaded if key not in appeared]

    def state_dict(self) -> dict[str, Saved]:
        """Copies by parameter key.

        With zeros, which tell no scales, for named parameters that have not appeared yet: some
        loaders need to find a tensor to load to.
        """
        unseen: dict[str, Saved] = {
            name: {"squares": torch.zeros(p.numel()), "steps": 0}
            for p, name in self._keys.named()
            if p.requires_grad and self.covers(p)
        }
        current: dict[str, Saved] = {
            self._keys.key(p): {"squares": known.values.clone(), "steps": known.steps}
            for p, known in self._squares.items()
        }
        return {**unseen, **self._loaded, **current}

    def load_state_dict(self, saved: Mapping[str, Saved]) -> None:
        """Forget everything and start from these when their parameters appear."""
        self._squares = WeakTensorKeyDictionary()
        self._loaded = {
            key: {
                "squares": item["squares"].detach().to("cpu", torch.float32).flatten().clone(),
                "steps": int(item["steps"]),
            }
            for key, item in saved.items()
        }


def multiply_after(
    reduced: Future[Tensor], parts: Sequence[Part], divided: Sequence[bool]
) -> Future[Tensor]:
    """A future of the same bucket, once its gradients are reduced and multiplied by their scales.

    Backward goes on meanwhile.
    """

    def finish(reduced: Future[Tensor]) -> Tensor:
        result = reduced.value()  # raises what went wrong
        for part, was_divided in zip(parts, divided, strict=True):
            part.multiply(was_divided)
        return result

    return reduced.then(finish)
