"""GCTState's ``bits``: one number, or others from given backward passes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gct._checks import plain_number

Bits = float | Mapping[int, float] | Sequence[Sequence[float]]


def as_setting(bits: Any) -> Any:
    """What JSON keeps as it is: a number, None, or ascending [backward pass, bits].

    Raises:
        ValueError: not a mapping from whole numbers, the first of them 0, to bits.
    """
    if not isinstance(bits, (Mapping, list, tuple)):
        return plain_number(bits)
    items = bits.items() if isinstance(bits, Mapping) else bits
    pairs = [tuple(map(plain_number, item)) for item in items if isinstance(item, (tuple, list))]
    if len(pairs) < len(bits) or not all(map(_is_pair, pairs)):
        raise ValueError(
            "bits must be a number, or a mapping from backward passes to numbers such as "
            f"{{0: 3.0, 500: 1.0}}, got {bits!r}"
        )
    pairs.sort()
    first = [begin for begin, _ in pairs]
    if first[:1] != [0] or len(set(first)) < len(first):
        raise ValueError(
            f"bits must say what holds from backward pass 0 on, and each pass once, got {bits!r}"
        )
    return [list(pair) for pair in pairs]


def _is_pair(pair: tuple[Any, ...]) -> bool:
    return len(pair) == 2 and type(pair[0]) is int and type(pair[1]) in (int, float)


def schedule(setting: Any) -> list[tuple[int, float | None]]:
    """Of :func:`as_setting`: from which backward pass on which bits."""
    if isinstance(setting, list):
        return [(begin, bits) for begin, bits in setting]
    return [(0, setting)]
