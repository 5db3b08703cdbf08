"""One constrained module: the hook on its output, and what its backward pass adds and records.

Everything happens in the backward pass of an identity. So a module that runs twice (activation
checkpointing) is counted once, evaluation costs nothing, and what is saved for backward is the
activation itself, which checkpointing and offloading handle as they do any other.
"""

from __future__ import annotations

import itertools
import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from gct._activation_rate import RateForm, blend, first_of, moments_of
from gct._checks import check_number
from gct._histogram import spread

__all__ = ["Control", "LossScale", "Site", "check_loss_scale", "is_constrained"]

LossScale = float | GradScaler | Callable[[], float | Tensor]

_SAMPLE_NUMEL = 1 << 16
_FORGOTTEN = 200  # backward passes without one step(): more than anyone accumulates


@dataclass
class Control:
    """What the sites of one constraint share."""

    loss_scale: LossScale
    sites: int  # how many
    estimating: bool = True  # whether backward passes estimate the moments at this step
    paused: int = 0  # depth of nested paused()
    removed: bool = False
    passes: int = 0  # sites' backward passes since the last step()
    expects_step: bool = True  # there is a schedule, and no warning yet

    def count_pass(self) -> None:
        self.passes += 1
        if self.expects_step and self.passes > _FORGOTTEN * self.sites:
            self.expects_step = False
            warnings.warn(
                f"{_FORGOTTEN} backward passes without act.step(): the schedule stands still. Call "
                "it once after every optimizer step",
                stacklevel=2,
            )

    def current_loss_scale(self, device: torch.device) -> float | Tensor:
        if isinstance(self.loss_scale, GradScaler):
            scale: Tensor = self.loss_scale.scale(torch.ones((), device=device))  # no waiting
            return scale
        if not callable(self.loss_scale):
            return self.loss_scale
        factor = self.loss_scale()
        if not (isinstance(factor, Tensor) and factor.numel() == 1):  # whose value costs waiting
            _check_factor("what loss_scale returns", factor)
        return factor


def check_loss_scale(value: object) -> None:
    """Raise TypeError or ValueError for what can't be one; a function's result is seen later."""
    if isinstance(value, GradScaler) or callable(value):
        return
    _check_factor("loss_scale (or a GradScaler, or a function of no arguments)", value)


def _check_factor(name: str, value: Any) -> None:
    check_number(name, value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def is_constrained(module: nn.Module) -> bool:
    """Whether a constraint that was not removed acts on this module's output."""
    hooks = module._forward_hooks.values()
    return any(isinstance(hook, Site) and not hook.control.removed for hook in hooks)


@dataclass(eq=False)
class Site:
    """The forward hook of one module, with its statistics."""

    name: str
    weight: float
    form: RateForm
    control: Control
    strength: float = 0.0  # of this step, weight included
    cap: float | None = None  # of this step: larger activations are left alone
    moments: Tensor | None = None  # running; see moments_of
    start: Tensor | None = None  # the first moments
    sample: Tensor | None = None  # of the activation that was estimated last
    numel: int = 0  # of that activation
    key: int = field(init=False)

    def __post_init__(self) -> None:
        self.key = next(_keys)
        _sites[self.key] = self

    def __call__(self, module: nn.Module, args: object, output: Any) -> Any:
        """Forward hook: put the identity behind the module."""
        if not (torch.is_grad_enabled() and module.training):
            return None
        if isinstance(output, Tensor):
            return self._watch(output)
        if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
            first = self._watch(output[0])
            if isinstance(output, list):
                return [first, *output[1:]]
            # Named tuples take their fields as arguments, plain ones take a sequence.
            rest = (first, *output[1:])
            return type(output)(*rest) if hasattr(output, "_fields") else rest
        raise TypeError(
            f"expected {self.name} to return a tensor, or a tuple or list that begins with one, "
            f"got {type(output).__name__}: choose other modules with modules="
        )

    def _watch(self, activation: Tensor) -> Tensor:
        # Nothing that can be trained lies before an activation that needs no gradient.
        if not activation.requires_grad:
            return activation
        result: Tensor = GctActivationConstraint.apply(activation, self)
        return result

    def backward(self, grad: Tensor, activation: Tensor) -> Tensor:
        """The gradient with the rate's added; ``grad`` itself where there is nothing to add."""
        control = self.control
        if control.paused or control.removed or activation.numel() == 0:
            return grad
        control.count_pass()
        moments = self.moments
        if control.estimating or moments is None:
            moments = self._estimate(activation)
        if self.strength == 0.0:
            return grad
        rate = self.form.gradient(activation, moments.to(activation.device), self.cap)
        rate *= self.strength * control.current_loss_scale(activation.device)
        # One rounding, to the precision of the gradient.
        return rate.add_(grad).to(grad.dtype)

    def _estimate(self, activation: Tensor) -> Tensor:
        self.moments = blend(self.moments, moments_of(activation))
        self.start = first_of(self.start, self.moments)
        self.sample = spread(activation, _SAMPLE_NUMEL).clone()
        self.numel = activation.numel()
        return self.moments

    # The hook is in the module's dict, and so in what deepcopy and pickle make of the module.

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _make_inert_hook, ()


def inert_hook(module: nn.Module, args: object, output: object) -> None:
    """What copies of a constrained module have in the place of its hook."""


def _make_inert_hook() -> Callable[..., None]:
    return inert_hook


class GctActivationConstraint(torch.autograd.Function):
    """Identity whose backward pass is :meth:`Site.backward`. Autograd's errors tell its name."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, site: Site) -> Tensor:
        # Saved even if paused: a recomputation has to save as many tensors, paused or not.
        ctx.save_for_backward(activation)
        ctx.site = site
        ctx.paused = site.control.paused > 0
        return activation.view_as(activation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.paused:
            return grad, None
        (activation,) = ctx.saved_tensors
        if torch.compiler.is_compiling():
            return torch.ops.gct.add_rate(grad, activation, ctx.site.key), None
        control = ctx.site.control
        # Not once_differentiable: torch.autograd.grad goes past its error without a word.
        if torch.is_grad_enabled() and not (control.paused or control.removed):
            raise RuntimeError(
                f"gct.ActivationConstraint can't differentiate the rate of {ctx.site.name} twice "
                "(create_graph=True): make such passes inside act.paused()"
            )
        return ctx.site.backward(grad, activation), None


# A compiled graph holds numbers and tensors, so there a site goes by its key. To the compiler a
# site's backward pass is one opaque operation, which runs as Python each time: schedule, moments
# and removal need no new compilation.
_keys = itertools.count()
_sites: weakref.WeakValueDictionary[int, Site] = weakref.WeakValueDictionary()


@torch.library.custom_op(
    "gct::add_rate",
    mutates_args=(),
    schema="(Tensor grad, Tensor activation, SymInt key) -> Tensor",
)
def _add_rate(grad: Tensor, activation: Tensor, key: int) -> Tensor:
    site = _sites.get(key)
    result = grad if site is None else site.backward(grad, activation)
    result = result.contiguous()
    return result.clone() if result is grad else result  # never the argument itself


@_add_rate.register_fake
def _(grad: Tensor, activation: Tensor, key: int) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)
