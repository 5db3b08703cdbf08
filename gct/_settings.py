"""What GCTState's settings may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from gct.codec import Reconstruction, unit_gain_obstacle

_KINDS = ("gg", "eg", "fixed", "raw", "auto")


def check_kind(codec: object) -> None:
    """Raise for what is not GCTState's ``codec``: TypeError for a gct.Codec and other objects."""
    if isinstance(codec, str) and codec in _KINDS:
        return
    names = ", ".join(f'"{kind}"' for kind in _KINDS)
    message = f"codec must be one of the names {names}"
    if isinstance(codec, str):
        raise ValueError(f"{message}, got {codec!r}")
    raise TypeError(
        f"{message}, got {type(codec).__name__}: bits, snr_db, step, allocation, rounding, "
        "low_rank, effort and reconstruction are own arguments of GCTState, such as "
        'GCTState(codec="gg", bits=2.0)'
    )


def resolve_reconstruction(settings: Mapping[str, Any]) -> Reconstruction:
    """What ``reconstruction="auto"`` means beside these settings, or the one that was asked for."""
    asked: Reconstruction | Literal["auto"] = settings["reconstruction"]
    if asked not in ("auto", *get_args(Reconstruction)):
        raise ValueError(f'reconstruction must be "auto", "centroid" or "unit_gain", got {asked!r}')
    if asked != "auto":
        return asked
    if settings["error_feedback"] is True:
        return "centroid"  # what is left out comes with the next step: over steps the gain is one
    kind = "gg" if settings["codec"] == "auto" else settings["codec"]
    others = (settings[name] for name in ("snr_db", "rounding", "effort"))
    return "centroid" if unit_gain_obstacle(kind, *others) else "unit_gain"


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for the first that is out of range."""
    if settings["error_feedback"] not in (True, False, "auto"):
        raise ValueError(
            f'error_feedback must be True, False or "auto", got {settings["error_feedback"]!r}'
        )
    for name in ("start_step", "min_numel", "seed"):
        value = settings[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}")
    for name in ("checksum", "element_scales"):
        if not isinstance(settings[name], bool):
            raise ValueError(f"{name} must be True or False, got {settings[name]!r}")
    if settings["element_scales"] and settings["error_feedback"] is True:
        raise ValueError(
            "element_scales and error_feedback don't go together: what was left out is in units of "
            "one step's scales, and the next step has others"
        )
    if settings["reconstruction"] == "unit_gain" and settings["error_feedback"] is True:
        raise ValueError(
            'reconstruction="unit_gain" and error_feedback don\'t go together: at low rates the '
            "error is larger than what was encoded, and would grow from step to step"
        )
    if settings["algorithm"] not in ("auto", "one_shot", "two_shot"):
        raise ValueError(
            f"algorithm must be auto, one_shot or two_shot, got {settings['algorithm']!r}"
        )
