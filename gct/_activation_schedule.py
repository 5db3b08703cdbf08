"""How the activation constraint sets in: over time, over layers, over magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["Schedule", "ScheduleKind"]

ScheduleKind = Literal["ramp", "layerwise", "threshold"]


@dataclass(frozen=True)
class Schedule:
    """Factors of the strength, and caps, as functions of the optimizer steps done.

    - ``"ramp"``: the strength of all sites grows linearly over ``steps`` steps, then stays.
    - ``"layerwise"``: ``steps`` is divided evenly among the sites, from front to back; a site's
      strength grows linearly in its part, then stays.
    - ``"threshold"``: full strength from the start, on magnitudes up to a cap that grows linearly
      from 0 to ``threshold`` over ``steps`` steps, then stays.

    With ``steps`` 0 the end is reached from the start.
    """

    kind: ScheduleKind
    steps: int
    threshold: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            names = ", ".join(get_args(ScheduleKind))
            raise ValueError(f"schedule must be one of {names}, got {self.kind!r}")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 0:
            raise ValueError(f"ramp_steps must be a whole number from 0 on, got {self.steps!r}")

    def factor(self, step: int, place: int, places: int) -> float:
        """What the strength of the site at ``place`` (from 0) of ``places`` is multiplied by."""
        if self.kind == "threshold":
            return 1.0
        if self.kind == "ramp":
            return self._progress(step)
        return min(max(places * self._progress(step) - place, 0.0), 1.0)

    def cap(self, step: int) -> float | None:
        """The largest magnitude that the rate acts on, in the unit of eps; None for all."""
        return self.threshold * self._progress(step) if self.kind == "threshold" else None

    def _progress(self, step: int) -> float:
        return min(step / self.steps, 1.0) if self.steps else 1.0
