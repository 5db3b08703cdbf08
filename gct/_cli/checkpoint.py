"""The floating point tensors of a checkpoint, one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gct._checkpoint import load_pickled
from gct._cli import CommandError, require

__all__ = ["tensors_of"]


def tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a .safetensors file, or of anything that torch.save wrote.

    A file's mappings and sequences are gone through whatever their depth; a name is the way to the
    tensor, with dots. The file is mapped into memory, so that a large checkpoint is not held whole.
    Code in a pickle is not run (``weights_only``).

    Raises:
        CommandError: it can't be read as such a file.
    """
    if not path.is_file():
        raise CommandError(f"no file {path}")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        return _walk(load_pickled(path), "")
    except OSError as error:
        raise CommandError(f"can't read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CommandError(str(error)) from error


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    require("safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys(), key=_natural):
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise CommandError(f"{path} is no whole safetensors file: {error}") from error


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts layer.10 after layer.9; the file itself has no order to go by."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "tensor", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _walk(item, f"{name}.{index}" if name else str(index))
