"""Files that torch.save wrote, without running code in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_pickled"]

_REFUSED_CLASS = re.compile(r"GLOBAL (\S+)")  # in torch's message


def load_pickled(path: Path) -> Any:
    """What torch.save wrote, on the CPU; mapped into memory, so that it is not held whole.

    Raises:
        OSError: it can't be opened.
        ValueError: it is broken, or loading it would run code (``weights_only``).
    """
    try:
        # Only torch's zip format can be mapped.
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # of a broken file torch.load raises nearly anything
        # Not torch's own words, which recommend weights_only=False, nor a traceback with them.
        raise ValueError(_reason(path, error)) from None


def _reason(path: Path, error: Exception) -> str:
    message = str(error)
    if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in message:
        first_line = (message.strip().splitlines() or [type(error).__name__])[0]
        return f"{path} can't be loaded: {first_line}"
    found = _REFUSED_CLASS.search(message)
    what = f"{found[1]}, whose loading would run code" if found else "something else"
    return (
        f"{path}: expected a file of torch.save with tensors in dicts and lists, got {what}; where "
        "you trust the file, convert it to safetensors or save its state_dict() alone"
    )
