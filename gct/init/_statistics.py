"""Shapes and standard deviations of trained weights, by tensor and by role."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gct._checkpoint import load_pickled
from gct._fit import fit, shape_text
from gct._version import __version__
from gct.init._weights import ROLES, clean_names, find, refuse_flattened, role_of_name

__all__ = ["Statistics", "TensorStatistics", "measure"]

_FORMAT = 1
# Elements of a tensor that are looked at: the shape's standard error is then 0.002 at shape 1.
_MAX_NUMEL = 1 << 20
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# Where training scripts put the model's state among the optimizer's and others.
_NESTED = ("state_dict", "model_state_dict", "model", "module")


@dataclass(frozen=True)
class TensorStatistics:
    """One weight: its role, number of elements, shape and standard deviation.

    Shape and standard deviation are those of the nonzero elements (``gct.fit``).
    """

    role: str
    numel: int
    shape: float
    std: float


class Statistics:
    """What ``from_statistics`` measured: ``tensors`` by name; ``str()`` is a table.

    Hand it to ``gct.init.apply`` as ``shape`` (and ``std``). A weight of the same name gets what
    was measured on it; others get their role's median shape.
    """

    def __init__(self, tensors: Mapping[str, TensorStatistics]) -> None:
        self.tensors = dict(tensors)

    @property
    def roles(self) -> dict[str, float]:
        """The median shape of each role's tensors, for the roles that there are."""
        shapes: dict[str, list[float]] = {role: [] for role in ROLES}
        for measured in self.tensors.values():
            shapes[measured.role].append(measured.shape)
        return {role: statistics.median(found) for role, found in shapes.items() if found}

    def save(self, path: str | PathLike[str]) -> None:
        """Write as JSON, for ``load``."""
        tensors = {name: asdict(measured) for name, measured in self.tensors.items()}
        content = {"kind": "gct statistics", "format": _FORMAT, "gct": __version__}
        Path(path).write_text(json.dumps({**content, "tensors": tensors}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Statistics:
        """Read what ``save`` wrote.

        Raises:
            ValueError: the file holds something else, or a later format.
        """
        try:
            content = json.loads(Path(path).read_text())
        except ValueError as error:  # no JSON, no text
            raise ValueError(
                f"{path}: expected the JSON of Statistics.save, got: {error}"
            ) from None
        found = (content.get("kind"), content.get("format")) if isinstance(content, dict) else None
        if found != ("gct statistics", _FORMAT):
            raise ValueError(
                f"{path}: expected gct statistics of format {_FORMAT}, got {found}: was it "
                "written by Statistics.save of this version?"
            )
        return cls({name: TensorStatistics(**row) for name, row in content["tensors"].items()})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statistics) and self.tensors == other.tensors

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        roles = ", ".join(f"{role} {shape_text(shape)}" for role, shape in self.roles.items())
        return f"<Statistics of {len(self.tensors)} tensors, shapes by role: {roles or 'none'}>"

    def __str__(self) -> str:
        table = [("tensor", "role", "elements", "shape", "std")]
        for name, m in self.tensors.items():
            table.append((name, m.role, f"{m.numel:,}", shape_text(m.shape, 3), f"{m.std:.3g}"))
        medians = self.roles.items()
        table += [("(median)", role, "", shape_text(shape, 3), "") for role, shape in medians]
        a, b, c, d, e = (max(map(len, column)) for column in zip(*table, strict=True))
        lines = (f"{r[0]:{a}}  {r[1]:{b}}  {r[2]:>{c}}  {r[3]:>{d}}  {r[4]:>{e}}" for r in table)
        return "\n".join(line.rstrip() for line in lines)


def measure(source: Any, min_numel: int) -> Statistics:
    tensors: dict[str, TensorStatistics] = {}
    for name, role, tensor in _weights_in(source):
        if tensor.numel() < min_numel or not tensor.is_floating_point():
            continue
        if tensor.device.type == "meta":
            raise ValueError(f"{name}: a tensor on the meta device has no values to measure")
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        measured = _measured(name, role, tensor)
        if measured is not None:
            tensors[name] = measured
    return Statistics(tensors)


def _measured(name: str, role: str, tensor: Tensor) -> TensorStatistics | None:
    """None for all zeros, which have no shape."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() > _MAX_NUMEL:
        # At random: a regular stride could see only some columns.
        generator = torch.Generator().manual_seed(0)
        index = torch.randint(flat.numel(), (_MAX_NUMEL,), generator=generator)
        flat = flat[index.to(flat.device)]
    try:
        # One shape for a tensor whose rows differ in scale is what a new tensor of it is drawn by.
        fitted = fit(flat, warn_pooled=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    if fitted.scale == 0.0:
        return None
    return TensorStatistics(role, tensor.numel(), fitted.shape, fitted.nonzero.std)


def _weights_in(source: Any) -> Iterator[tuple[str, str, Tensor]]:
    """(name, role, tensor) of all weights in a model, a state dict or a file of one."""
    if isinstance(source, nn.Module):
        for weight in find(source):
            if not weight.is_bias:
                weight.check()
                yield weight.names[0], weight.role, weight.parameter
        return
    if isinstance(source, Mapping):
        yield from _with_roles(_state_dict(source, "the mapping"))
    elif isinstance(source, (str, PathLike)):
        yield from _weights_in_file(Path(source))
    else:
        raise TypeError(
            "expected a torch.nn.Module, a state dict or the path of a checkpoint, got "
            f"{type(source).__name__}"
        )


def _with_roles(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    for raw, name in zip(state, clean_names(list(state)), strict=True):
        refuse_flattened(name)
        tensor = state[raw]
        role = role_of_name(name, tensor.dim())
        if role is not None:
            yield name, role, tensor


def _weights_in_file(path: Path) -> Iterator[tuple[str, str, Tensor]]:
    if path.is_dir():
        parts = sorted(path.glob("*.safetensors"))
        if not parts:
            raise ValueError(f"{path}: expected .safetensors files in this folder, found none")
        for part in parts:
            yield from _with_roles(_Safetensors(part))
    elif path.suffix == ".safetensors":
        yield from _with_roles(_Safetensors(path))
    elif path.suffix in _SUFFIXES:
        yield from _with_roles(_state_dict(load_pickled(path), str(path)))
    else:
        raise ValueError(
            f"{path}: expected a file ending in .safetensors, {', '.join(_SUFFIXES)}, or a folder "
            "of .safetensors files"
        )


def _state_dict(content: Any, where: str) -> dict[str, Tensor]:
    """The names and tensors in a checkpoint, which may hold other things beside them."""
    if isinstance(content, Mapping):
        for key in _NESTED:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if state:
            return state
    keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else ""
    raise ValueError(
        f"{where}: expected names and tensors, or one of {', '.join(_NESTED)} that holds them, got "
        f"{type(content).__name__} {keys}"
    )


class _Safetensors(Mapping[str, Tensor]):
    """A file's tensors, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        try:
            from safetensors import safe_open
        except ImportError:
            raise ImportError(f"{path}: reading it needs `pip install safetensors`") from None
        self._file = safe_open(str(path), framework="pt")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
