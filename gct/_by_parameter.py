"""What outlives a step, by parameter, and what a checkpoint brought of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gct._parameters import ParameterKeys

Memory = TypeVar("Memory")
Saved = TypeVar("Saved")


class ByParameter(Generic[Memory, Saved]):
    """Memories by parameter, each made when its parameter first appears.

    ``make`` gets the parameter, its key and what was loaded under it, or None.
    """

    def __init__(
        self, keys: ParameterKeys, make: Callable[[Tensor, str, Saved | None], Memory]
    ) -> None:
        self._keys = keys
        self._make = make
        self._memories = WeakTensorKeyDictionary()
        self.waiting: dict[str, Saved] = {}  # loaded, of parameters that have not appeared yet

    def __getitem__(self, parameter: Tensor) -> Memory:
        memory = self.known(parameter)
        if memory is None:
            key = self._keys.key(parameter)
            memory = self._memories[parameter] = self._make(parameter, key, self.waiting.get(key))
            self.waiting.pop(key, None)
        return memory

    def __setitem__(self, parameter: Tensor, memory: Memory) -> None:
        self._memories[parameter] = memory

    def known(self, parameter: Tensor) -> Memory | None:
        memory: Memory | None = self._memories.get(parameter)
        return memory

    def by_key(self) -> dict[str, Memory]:
        return {self._keys.key(parameter): memory for parameter, memory in self._memories.items()}

    def load(self, saved: Mapping[str, Saved]) -> None:
        """Forget everything and start from these when their parameters appear."""
        self._memories = WeakTensorKeyDictionary()
        self.waiting = dict(saved)

    def unclaimed(self) -> dict[str, Saved]:
        """Loaded ones whose parameters have not appeared, nor will under their keys."""
        appeared = set(self._keys.appeared())
        return {key: saved for key, saved in self.waiting.items() if key not in appeared}
