"""Activation-constrained training (ACT): a rate term on activations, added in the backward pass.

The paper (arXiv 2506.00486) names the method and its purpose, less redundancy in what layers pass
on; the form used here is a reconstruction. docs/methods.md says what is whose.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, NoReturn

from torch import Tensor, nn

from gct._activation_modules import Modules, choose_modules
from gct._activation_rate import LEAST_SHAPE, MOST_SHAPE, RateForm
from gct._activation_report import ActivationReport, report_on
from gct._activation_schedule import Schedule, ScheduleKind
from gct._activation_site import Control, LossScale, Site, check_loss_scale, is_constrained
from gct._checks import check_number, plain_number

__all__ = ["ActivationConstraint", "ActivationReport"]


class ActivationConstraint:
    """Adds strength * R to the loss, as gradients: R is the rate of the chosen modules' outputs.

        act = gct.ActivationConstraint(model, strength=0.01, ramp_steps=1000)
        for inputs, targets in batches:
            loss_of(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            act.step()
        act.report()

    R is the sum over the modules' outputs a of weight / N * sum over their N elements of
    ((|a| + e) / s)^b, with the shape b and scale s of the generalized Gaussian that has the
    module's running moments, and e = ``eps`` times its mean |a|. Up to a constant that is the code
    length of the elements in nats. b, s and e count as constants for the gradient; at the best fit
    of b and s the code length does not change with them. The gradient,

        weight * strength / N * b / s * sign(a) * ((|a| + e) / s)^(b - 1),

    is added to what arrives at the module's output in the backward pass. There is no second
    forward pass, and the loss's value stays as it is. Replicas that average their gradients (DDP)
    train on the mean of their rates.

    Training mode only: in evaluation mode, under ``no_grad``, or where the output needs no
    gradient, nothing happens. A module that runs several times has a rate for each run. Works
    with checkpointed regions, autocast and ``torch.compile``; attach it before a compiled model's
    first call. The next operation must not change the output in place (autograd says so), and
    ``create_graph=True`` is an error outside of :meth:`paused`. Copies of the model (deepcopy,
    pickle) are not constrained.

    The model's hooks hold the constraint: it acts until :meth:`remove`, or the end of a ``with``
    block, also if you keep no reference to it. A module takes one at a time.

    Args:
        model: also wrapped by DistributedDataParallel or ``torch.compile``.
        strength: nats of loss per nat of code length of one module's activation. docs/methods.md
            has measurements; 0.1 was too much there.
        modules: those whose outputs are constrained: names, patterns such as ``"*.mlp"`` (``*``
            goes over dots too), modules, or a mapping from names and patterns to weights, of which
            the first that matches counts. An output is a tensor, or a tuple or list whose first
            element is meant. None: blocks and MLPs, known by class name (``*Block``, ``*Layer``,
            ``*MLP`` and the like).
        schedule: how the constraint sets in over ``ramp_steps`` optimizer steps: ``"ramp"``: the
            strength of all modules grows from 0; ``"layerwise"``: that of one module after the
            other, in the model's order; ``"threshold"``: full strength, but only on |a| up to a
            cap that rises from 0 to ``threshold``: small activations are pushed to 0, large ones
            left alone.
        ramp_steps: 0 for the full constraint from the start.
        threshold: in the unit of ``eps``.
        eps: softens the gradient at 0, where it would be infinite for shapes below 1; above 0.
        unit: ``"relative"``: as above. ``"absolute"``: the form of BackSlash, mean (|a| + eps)^b:
            s = 1, ``eps`` and ``threshold`` in the activation's own unit. The same strength then
            means something else for every module.
        shape: of all modules, from 0.3 to 3; None: estimated for each.
        estimate_every: optimizer steps from one estimate of the moments to the next.
        loss_scale: what your loss is multiplied by before ``backward()``, so that the rate is too:
            a ``GradScaler``, a number such as 1 / 4 if you divide the loss by 4 accumulated
            batches, or a function that returns the factor as a number or tensor. With a scaler
            and without this the rate is too weak by its scale, by default 65,536: no effect.

    Raises:
        TypeError: ``model`` is no module, or a value no number.
        ValueError: a value out of range; no module found (the error lists the candidates); a
            module that another constraint acts on.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float = 0.01,
        *,
        modules: Modules | None = None,
        schedule: ScheduleKind = "ramp",
        ramp_steps: int = 1000,
        threshold: float = 1.0,
        eps: float = 0.1,
        unit: Literal["relative", "absolute"] = "relative",
        shape: float | None = None,
        estimate_every: int = 10,
        loss_scale: LossScale = 1.0,
    ) -> None:
        if unit not in ("relative", "absolute"):
            raise ValueError(f"unit must be relative or absolute, got {unit!r}")
        if shape is not None:
            check_number("shape", shape)
        if shape is not None and not LEAST_SHAPE <= shape <= MOST_SHAPE:
            raise ValueError(f"shape must be from {LEAST_SHAPE} to {MOST_SHAPE}, got {shape}")
        ramp_steps, estimate_every = plain_number(ramp_steps), plain_number(estimate_every)
        if type(estimate_every) is not int or estimate_every < 1:
            raise ValueError(
                f"estimate_every must be a whole number from 1 on, got {estimate_every!r}"
            )
        form = RateForm(_above_zero("eps", eps), unit == "relative", shape)
        self._schedule = Schedule(schedule, ramp_steps, _above_zero("threshold", threshold))
        self._every = estimate_every
        self._position = 0  # optimizer steps done
        self._was_paused = False  # since the last step()
        check_loss_scale(loss_scale)
        chosen = choose_modules(model, modules)
        for name, (module, _) in chosen.items():
            if is_constrained(module):
                raise ValueError(
                    f"{name} has an ActivationConstraint already, and their rates would add up: "
                    "remove() that one first, or choose other modules with modules="
                )
        self._control = Control(loss_scale, len(chosen), expects_step=ramp_steps > 0)
        self._sites = [Site(name, w, form, self._control) for name, (_, w) in chosen.items()]
        self._strength = 0.0
        self.strength = strength
        self._handles = [
            module.register_forward_hook(site)
            for site, (module, _) in zip(self._sites, chosen.values(), strict=True)
        ]

    @property
    def strength(self) -> float:
        """The full strength, without the schedule's factor. Can be set."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        check_number("strength", value)
        if not 0.0 <= value < math.inf:
            raise ValueError(f"strength must be a finite number from 0 on, got {value}")
        self._strength = float(value)
        self._apply_schedule()

    @property
    def modules(self) -> list[str]:
        """Names of the constrained modules, in the model's order."""
        return [site.name for site in self._sites]

    def step(self) -> None:
        """Move the schedule on: call once after every optimizer step."""
        control = self._control
        if not (control.passes or self._was_paused or control.removed):
            warnings.warn(
                f"no backward pass went through {self._sites[0].name} or the others since the last "
                "act.step(): the modules are in evaluation mode, are not used, or were compiled "
                "before the constraint was attached",
                stacklevel=2,
            )
        self._position += 1
        control.passes = 0
        self._was_paused = control.paused > 0
        self._apply_schedule()

    def _apply_schedule(self) -> None:
        self._control.estimating = self._position % self._every == 0
        for place, site in enumerate(self._sites):
            factor = self._schedule.factor(self._position, place, len(self._sites))
            site.strength = self._strength * site.weight * factor
            site.cap = self._schedule.cap(self._position)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is added to gradients, nor estimated, for forward or backward passes inside.

        (A region under reentrant checkpointing runs forward again in the backward pass, which
        alone decides there.)
        """
        self._control.paused += 1
        self._was_paused = True
        try:
            yield
        finally:
            self._control.paused -= 1

    def report(
        self,
        step: float | None = None,
        *,
        relative_step: float = 0.5,
        threshold: float = 0.1,
        encoded: bool = False,
    ) -> dict[str, ActivationReport]:
        """What is known of each module's activation by its latest estimate.

        Args:
            step: of the quantizer, in the activations' unit. None: ``relative_step`` times the
                module's standard deviation at its first estimate.
            relative_step: step over the standard deviation of now, for the bits at equal relative
                error.
            threshold: what counts as small, over the standard deviation of now.
            encoded: encode the sample too, with :func:`gct.encode`, for bits that include headers
                and the coder's overhead.

        Returns:
            By module name; modules that no training pass has gone through are left out.

        Raises:
            ValueError: a step that is not a finite number above 0.
        """
        if step is not None:
            _above_zero("step", step)
        _above_zero("relative_step", relative_step)
        return {
            site.name: report_on(
                site.sample, site.numel, _std(site.start), step, relative_step, threshold, encoded
            )
            for site in self._sites
            if site.sample is not None and site.start is not None
        }

    def state_dict(self) -> dict[str, Any]:
        """The schedule's position and the running moments by module name."""
        return {
            "step": self._position,
            "moments": {site.name: _copy(site.moments) for site in self._sites},
            "start": {site.name: _copy(site.start) for site in self._sites},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            TypeError: the step is no number.
            ValueError: not from :meth:`state_dict`, or of other modules; nothing is loaded then.
        """
        if missing := {"step", "moments", "start"} - set(state):
            raise ValueError(
                "expected an ActivationConstraint's state_dict, got a mapping without "
                + ", ".join(sorted(missing))
            )
        for part in ("moments", "start"):
            if set(state[part]) != set(self.modules):
                raise ValueError(
                    f"expected {part} of modules {', '.join(self.modules)}, got those of "
                    + (", ".join(state[part]) or "none")
                )
        step = state["step"]
        check_number("step", step)
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"step must be a whole number from 0 on, got {step!r}")
        self._position = step
        for site in self._sites:
            site.moments = _copy(state["moments"][site.name])
            site.start = _copy(state["start"][site.name])
        self._apply_schedule()

    def remove(self) -> None:
        """Take the hooks off the model for good. The report stays; ``step()`` does nothing more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._control.removed = True  # for graphs that are still to run backward

    def __enter__(self) -> ActivationConstraint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an ActivationConstraint belongs to one model and is not copied or pickled: save its "
            "state_dict() and make one for the other model"
        )


def _above_zero(name: str, value: float) -> float:
    check_number(name, value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    return float(value)


def _copy(moments: Tensor | None) -> Tensor | None:
    return None if moments is None else moments.detach().clone()


def _std(moments: Tensor) -> float:
    """Root mean square of the whole activation, zeros included."""
    return float((moments[0] * moments[3]).sqrt())
