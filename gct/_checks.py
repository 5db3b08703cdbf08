"""Checks of arguments that several interfaces share."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_memory",
    "check_number",
    "check_tensor",
    "check_values",
    "plain_number",
    "whole_number",
]

_VALUE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_number(name: str, value: object) -> None:
    """Raise TypeError for anything but a real number; NumPy's count, but not True and False."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def whole_number(name: str, value: object, allowed: str = "") -> int:
    """The value as an int; TypeError for True, False and what is no whole number by its type.

    ``allowed``: what else the argument may be, for the message.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{name} must be a whole number{allowed}, got {type(value).__name__}"
        ) from None


def plain_number(value: Any) -> Any:
    """A number of NumPy's as one of Python's, which JSON and checkpoints keep; others stay."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_values(name: str, value: object, devices: tuple[str, ...] = ("cpu", "cuda")) -> None:
    """Raise unless ``value`` is a tensor whose elements the codec can take from its memory."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.is_nested:
        raise ValueError(
            f"{name} must be an ordinary tensor, got a nested one: pass the parts of "
            f"{name}.unbind() one by one, or {name}.to_padded_tensor(0.0)"
        )
    if value.dtype not in _VALUE_DTYPES:
        raise ValueError(
            f"{name} must be float32, bfloat16, float16 or float64, got {value.dtype}: "
            f"pass {_to_floats(name, value)}"
        )
    check_memory(name, value, devices)


def check_memory(name: str, tensor: Tensor, devices: tuple[str, ...] = ("cpu", "cuda")) -> None:
    """Raise ValueError unless the elements lie one after the other on one of the devices."""
    if tensor.layout != torch.strided:
        raise ValueError(
            f"{name} must have the layout torch.strided, got {tensor.layout}: pass "
            f"{name}.to_dense()"
        )
    if tensor.device.type not in devices:
        places = " or on ".join({"cpu": "the CPU", "cuda": "a CUDA device"}[d] for d in devices)
        advice = ", which holds no values" if tensor.is_meta else f": pass {name}.cpu()"
        raise ValueError(f"{name} must be on {places}, got one on {tensor.device}{advice}")
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got strides {tensor.stride()} of the shape "
            f"{tuple(tensor.shape)}: pass {name}.contiguous()"
        )


def _to_floats(name: str, tensor: Tensor) -> str:
    if tensor.is_complex():
        return f"torch.view_as_real({name}), or its .real and .imag, made contiguous"
    return f"{name}.dequantize()" if tensor.is_quantized else f"{name}.float()"
