"""A state's codecs: of which kind, from which backward pass on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gct._bits import schedule
from gct._settings import resolve_reconstruction
from gct.codec import Codec, Kind

Codecs = Sequence[tuple[int, Codec]]  # from which backward pass on, ascending from 0

_WIDEST = 8  # bits of kind "fixed"


def codecs_by_kind(settings: Mapping[str, Any]) -> dict[Kind, Codecs]:
    """Of one kind, the one that was asked for; of those that ``codec="auto"`` may become.

    Raises:
        TypeError, ValueError: see :class:`gct.Codec`.
    """
    kind: Kind = "gg" if settings["codec"] == "auto" else settings["codec"]
    names = ("snr_db", "step", "allocation", "low_rank", "rounding", "effort")
    others = {name: settings[name] for name in names}
    others["reconstruction"] = resolve_reconstruction(settings)
    codecs = [
        (begin, Codec(kind, bits=bits, **others)) for begin, bits in schedule(settings["bits"])
    ]
    by_kind: dict[Kind, Codecs] = {kind: codecs}
    if settings["codec"] == "auto" and settings["reconstruction"] != "unit_gain":
        quick = [(begin, quick_codec(codec)) for begin, codec in codecs]
        sound = [(begin, codec) for begin, codec in quick if codec is not None]
        if len(sound) == len(quick):
            by_kind["fixed"] = sound
    return by_kind


def codec_at(codecs: Codecs, step: int) -> Codec:
    """The codec of backward pass ``step``."""
    return next(codec for begin, codec in reversed(codecs) if begin <= step)


def quick_codec(codec: Codec) -> Codec | None:
    """Kind "fixed" with about the error of a codec of kind "gg", in less time and more bytes.

    That takes one bit more, rounded up, since codes have a width where an entropy coder has a mean
    (measured by shape and bits in docs/decisions.md); below a bit less error, too. None where the
    codec's settings are none of "fixed".
    """
    simple = Codec(bits=codec.bits, reconstruction=codec.reconstruction)
    if codec.bits is None or codec != simple:
        return None
    width = math.ceil(codec.bits) + 1
    return Codec("fixed", bits=width) if width <= _WIDEST else None
