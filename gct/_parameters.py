"""What a hook's state remembers by parameter: names, layouts of buckets.

DDP regroups its buckets after the first iteration, and a bucket's index then means other
parameters. So nothing that outlives a step is keyed by bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from gct._channel import Run, row_length
from gct._models import check_model, named_parameters

# Norm gains and biases travel uncompressed: they are a fraction of a percent of the elements, and
# errors in them hurt most. A longer 1-D parameter is something else, such as a flattened module.
EXEMPT_NUMEL = 65536


class ParameterKeys:
    """Stable keys: names where the model is known, else the order in which parameters appear.

    Names are those of the user's own model, however it has been wrapped. The order is the same in
    every run of the same model under DDP, which fills its first buckets in a fixed order: so a run
    that is resumed without the model goes on with the names of the one that was saved.
    """

    def __init__(self, model: nn.Module | None) -> None:
        if model is not None:
            check_model(model)
        self._keys = WeakTensorKeyDictionary()
        self._names = WeakTensorKeyDictionary()
        for name, parameter in named_parameters(model) if model is not None else ():
            self._names[parameter] = name
        self._saved: list[str] = []

    def knows(self, parameter: Tensor) -> bool:
        return parameter in self._keys

    def add(self, parameter: Tensor) -> None:
        if parameter not in self._keys:
            place = len(self._keys)
            self._keys[parameter] = self._names.get(parameter) or (
                self._saved[place] if place < len(self._saved) else str(place)
            )

    def appeared(self) -> list[str]:
        """All keys so far, in the order in which their parameters appeared; for a checkpoint."""
        return list(self._keys.values()) or list(self._saved)

    def load(self, appeared: Sequence[str]) -> None:
        """Give the parameters that are still to come the keys they had in the saved run."""
        self._saved = [] if self._names else list(appeared)

    def compressible(self) -> list[str]:
        """Names of the model's parameters that travel compressed; none where it isn't known."""
        return [name for p, name in self._names.items() if p.requires_grad and not is_exempt(p)]

    def named(self) -> list[tuple[Tensor, str]]:
        """The model's parameters, seen or not, and their names."""
        return list(self._names.items())

    def order(self) -> list[str]:
        """Keys of all parameters seen, in the model's order where the model is known."""
        present = set(self._keys.values())
        named = [name for name in self._names.values() if name in present]
        return named + [key for key in self._keys.values() if key not in set(named)]

    def key(self, parameter: Tensor) -> str:
        key: str = self._keys[parameter]
        return key


def is_exempt(parameter: Tensor) -> bool:
    """Whether a parameter travels uncompressed."""
    return parameter.dim() < 2 and parameter.numel() <= EXEMPT_NUMEL


@dataclass(frozen=True)
class Layout:
    """How a bucket divides into runs."""

    ids: tuple[int, ...]  # of the parameters: what tells this layout from the next
    runs: tuple[Run, ...]
    keys: tuple[str | None, ...]  # by run; None for those that travel uncompressed
    parameters: tuple[str, ...] = ()  # their keys

    def cut(self, part: slice) -> Layout:
        """The layout of the elements of ``part`` alone, as a tensor of their own."""
        if part == slice(0, sum(run.numel for run in self.runs)):
            return self
        runs: list[Run] = []
        keys: list[str | None] = []
        run_begin = 0
        for run, key in zip(self.runs, self.keys, strict=True):
            run_end = run_begin + run.numel
            numel = min(part.stop, run_end) - max(part.start, run_begin)
            if numel > 0:
                runs.append(run._replace(numel=numel))
                keys.append(key)
            run_begin = run_end
        return Layout(self.ids, tuple(runs), tuple(keys), self.parameters)


def make_layout(parameters: Sequence[Tensor], keys: ParameterKeys) -> Layout:
    """One run for each parameter; neighbours that travel uncompressed share one."""
    runs: list[Run] = []
    run_keys: list[str | None] = []
    for parameter in parameters:
        exempt = is_exempt(parameter)
        if exempt and runs and runs[-1].raw:
            runs[-1] = Run(runs[-1].numel + parameter.numel(), True)
            continue
        runs.append(Run(parameter.numel(), exempt, row_length(parameter)))
        run_keys.append(None if exempt else keys.key(parameter))
    names = tuple(keys.key(parameter) for parameter in parameters)
    return Layout(tuple(map(id, parameters)), tuple(runs), tuple(run_keys), names)


def describe(parameters: Sequence[Tensor]) -> str:
    """All about a bucket that has to be the same on all ranks, in words."""
    of = ", ".join(
        f"{'x'.join(map(str, p.shape)) or 'a number'} {str(p.dtype).removeprefix('torch.')}"
        for p in parameters
    )
    return f"{len(parameters)} parameters ({of})"
