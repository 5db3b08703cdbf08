"""Scales of single elements, from reduced gradients: what ``element_scales=True`` remembers.

Each gradient is divided by the root mean square that its elements had in earlier steps before it is
encoded, and multiplied by it afterwards. So the quantizer's error follows each element's own size,
as Adam's steps do. Nothing is sent: every rank has the same reduced gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.futures import Future
from torch.utils.weak import WeakTensorKeyDictionary

from gct import _C
from gct._parameters import ParameterKeys, is_exempt

# Measured: docs/decisions.md, "Scales of single elements".
DECAY = 0.98
FLOOR = 0.01


@dataclass
class Squares:
    """Of one parameter: moving averages of its elements' squares, in memory order; their mean."""

    values: Tensor  # float32, flat
    mean: float


@dataclass(frozen=True)
class Part:
    """One parameter's gradient in a bucket, flat, and what is known of it."""

    gradient: Tensor
    squares: Squares

    def divide(self) -> bool:
        """Whether it was divided: in the first step, and after zeros only, there are no scales."""
        return _C.divide_by_scales(self.gradient, self.squares.values, self.squares.mean, FLOOR)

    def multiply(self, divided: bool) -> None:
        self.squares.mean = _C.multiply_by_scales(
            self.gradient, self.squares.values, self.squares.mean, divided, FLOOR, DECAY
        )


class ElementScales:
    """For parameters that travel compressed in any bucket: ``min_numel`` elements and more.

    So whether a parameter is scaled doesn't depend on the bucket that it is in.
    """

    def __init__(self, keys: ParameterKeys, min_numel: int) -> None:
        self._keys = keys
        self._min_numel = min_numel
        self._squares = WeakTensorKeyDictionary()
        self._loaded: dict[str, Tensor] = {}

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
            values = self._initial(parameter)
            squares = self._squares[parameter] = Squares(values, _C.mean_of_squares(values))
        return squares

    def _initial(self, parameter: Tensor) -> Tensor:
        key = self._keys.key(parameter)
        loaded = self._loaded.pop(key, None)
        if loaded is None:
            return torch.zeros(parameter.numel())
        if loaded.numel() != parameter.numel():
            raise ValueError(
                f"the loaded scales of parameter {key} have {loaded.numel()} elements, but the "
                f"parameter has {parameter.numel()}: they belong to another model"
            )
        return loaded

    def describe(self, parameters: Sequence[Tensor]) -> str:
        """In words, to be compared among ranks: other scales would make other results."""
        known = (self._of(parameter) for parameter in parameters if self.covers(parameter))
        sums = [_C.crc32c(squares.values.view(torch.uint8)) for squares in known]
        return " ".join(f"{checksum:08x}" for checksum in sums)

    def unclaimed(self) -> list[str]:
        """Keys of loaded ones whose parameters have not appeared."""
        appeared = set(self._keys.appeared())
        return [key for key in self._loaded if key not in appeared]

    def state_dict(self) -> dict[str, Tensor]:
        """Copies by parameter key, flat.

        Zeros, which tell no scales, for named parameters that have not appeared yet: some loaders
        need to find a tensor to load to.
        """
        unseen = {
            name: torch.zeros(p.numel())
            for p, name in self._keys.named()
            if p.requires_grad and self.covers(p)
        }
        current = {self._keys.key(p): s.values.clone() for p, s in self._squares.items()}
        return {**unseen, **self._loaded, **current}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Forget everything and start from these when their parameters appear."""
        self._squares = WeakTensorKeyDictionary()
        self._loaded = {
            key: values.detach().to("cpu", torch.float32).flatten().clone()
            for key, values in saved.items()
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
