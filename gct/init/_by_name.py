"""A number for every weight, or numbers by name, pattern and role."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence

from gct import _patterns
from gct.init._weights import ROLES, Weight, matches

__all__ = ["ByName", "check_patterns", "number"]


class ByName:
    """What an argument of ``gct.init.apply`` says about each weight.

    A mapping's keys are names, fnmatch patterns of names, or roles. A full name comes first,
    whatever the order; then the first key that fits, in the mapping's order.
    """

    def __init__(self, argument: str, value: float | Mapping[str, float] | None) -> None:
        self._argument = argument
        self._number: float | None = None
        self._mapping: dict[str, float] = {}
        if isinstance(value, Mapping):
            self._mapping = {k: number(f"{argument}[{k!r}]", v) for k, v in value.items()}
        elif value is not None:
            self._number = number(argument, value)

    def of(self, weight: Weight) -> float | None:
        """The number for this weight, None where the argument says nothing about it."""
        for name in weight.names:
            if name in self._mapping:
                return self._mapping[name]
        for key, value in self._mapping.items():
            if key == weight.role or matches(weight.names, key):
                return value
        return self._number

    def check_used(self, weights: Sequence[Weight]) -> None:
        """Raises ValueError for a key that fits nothing and is no role: likely a slip."""
        check_patterns(self._argument, [k for k in self._mapping if k not in ROLES], weights)


def number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{where}: expected a real number, got {type(value).__name__}")
    if not (0.0 <= float(value) < math.inf):
        raise ValueError(f"{where}: expected a finite number >= 0, got {value}")
    return float(value)


def check_patterns(argument: str, patterns: Sequence[str], weights: Sequence[Weight]) -> None:
    """Raises ValueError for the first pattern that matches no name."""
    _patterns.check_patterns(
        argument,
        patterns,
        [weight.names for weight in weights],
        "parameter that would be initialized",
        hint=f"; roles are {', '.join(ROLES)}",
    )
