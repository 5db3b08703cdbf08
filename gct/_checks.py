"""Checks of arguments that several interfaces share."""

from __future__ import annotations

import numbers

__all__ = ["check_number"]


def check_number(name: str, value: object) -> None:
    """Raise TypeError for anything but a real number; NumPy's count, but not True and False."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
