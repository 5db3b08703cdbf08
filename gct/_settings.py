"""What GCTState's settings may be."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any, Literal, get_args

from gct.codec import Reconstruction, unit_gain_obstacle

_logger = logging.getLogger("gct")

_KINDS = ("gg", "eg", "fixed", "raw", "auto")

# Values that say no more than the default does, of settings that some codecs can't follow.
_AS_BY_DEFAULT: dict[str, tuple[Any, ...]] = {
    "allocation": ("auto", "relative", 1),
    "rounding": ("deterministic",),
    "error_feedback": (False, "auto"),
    "element_scales": (False,),
    "seed": (0,),
}
_ONLY_WARNED = ("element_scales", "seed")  # programs set them whatever their codec is


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


def check_effects(settings: Mapping[str, Any]) -> None:
    """Raise ValueError, or warn, where something was asked for that the others leave no room for.

    Other combinations that say so are errors of :class:`gct.Codec`.
    """
    for name, as_by_default in _AS_BY_DEFAULT.items():
        reason = _why_idle(name, settings)
        if not reason or settings[name] in as_by_default:
            continue
        message = f"{name}={settings[name]!r} has no effect with {reason}"
        if name not in _ONLY_WARNED:
            raise ValueError(message)
        warnings.warn(message, UserWarning, stacklevel=3)


def _why_idle(name: str, settings: Mapping[str, Any]) -> str:
    """What keeps a setting from changing anything, and what to do; empty where nothing does."""
    if settings["codec"] == "raw":
        return 'codec="raw", which sends values as they are: leave it out, or take another codec'
    if settings["codec"] == "fixed" and name == "allocation":
        return (
            'codec="fixed", whose steps always follow the scales of blocks: leave it out, or take '
            'codec="gg" or "eg"'
        )
    if settings["rounding"] == "deterministic" and name == "seed":
        return (
            'rounding="deterministic", which draws no random numbers: leave it out, or take '
            'rounding="stochastic"'
        )
    return ""


def warn_of_changes(settings: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Where a resumed run is set otherwise, in the log: meant or not, its bits are others."""
    if "reconstruction" not in saved:  # written when there was one
        settings = {**settings, "reconstruction": resolve_reconstruction(settings)}
        saved = {**saved, "reconstruction": "centroid"}
    changes = [
        f"{name} is {value!r} and was {saved[name]!r}"
        for name, value in settings.items()
        if name in saved and saved[name] != value
    ]
    if changes:
        _logger.warning("gct: other settings than the checkpoint's: %s", ", ".join(changes))
