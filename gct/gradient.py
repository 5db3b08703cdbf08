"""Gradient-constrained training (GCT): a rate term on the gradients themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

from torch import nn

from gct._parameters import ParameterKeys
from gct._patterns import as_tuple, check_patterns
from gct._rate_term import Curvature, RateSettings, RateTerm, saved_tensors

__all__ = ["GradientConstraint"]

_STATE_VERSION = 1


class GradientConstraint:
    """Adds the gradient of a rate, sum |g|^shape, to the gradients of a model.

        constraint = gct.GradientConstraint(model, rate_weight=1e-4)
        ...
        loss.backward()
        constraint.apply()
        optimizer.step()

    GCT of arXiv 2506.00486, reconstructed; docs/methods.md says what is the paper's and what was
    measured (no gain in bits at equal error on the model tried). Off by default:
    with ``rate_weight=0`` it does nothing and holds nothing.

    With shape 1 every gradient becomes g + rate_weight h sign(g), with the diagonal h of the
    Hessian estimated element by element from dg = g - (the last g) and dp = p - (the last p). g is
    the gradient as it came to :meth:`apply`, without the term.

    Args:
        model: whose parameters; also wrapped by DistributedDataParallel or ``torch.compile``.
        rate_weight: lambda / N of the paper's loss + lambda / N sum |g|, in units of the
            parameters: H (w sign g) is, to first order, by how much g grows if every parameter is
            moved by w in the direction of its gradient's sign. So compare it with what an optimizer
            moves a parameter in a step.
        shape: exponent v: 1 is the paper's l1 norm; other multiples of 1/4 from 0.25 to 2; or
            ``"gg"``, the shape of each gradient's generalized Gaussian, estimated at each step and
            held fixed in the derivative. The term is then
            rate_weight h v (|g| / mean |g| + 0.1)^(v - 1) sign(g).
        curvature: h. ``"raw"`` is the paper's dg / dp, 0 where it is not finite; the noise of
            minibatches gives it tails like Cauchy's, which wreck the training. ``"damped"`` is
            dg dp / (dp^2 + damping^2 E dp^2), ``"ema"`` the same with exponential averages over
            steps of dg dp and dp^2; both are clipped to [0, max_curvature].
        damping: relative to the root mean square of dp in its tensor (elements that have moved).
        decay: of the averages of ``"ema"``.
        max_curvature: None: rate_weight h is at most the mean |g| of the tensor (nonzero
            elements). For SGD 1 / lr is another choice.
        exclude: names of parameters to leave alone, or patterns such as ``"*.embedding.*"``; one
            that fits none is an error.

    Parameters with fewer than two dimensions, up to 65,536 elements, are left alone: the hook
    sends them uncompressed.

    Memory: two copies of the parameters (8 bytes per float32 element), with ``"ema"`` four.

    Raises:
        TypeError: model is no module, or a setting is no number.
        ValueError: settings out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rate_weight: float = 0.0,
        shape: float | Literal["gg"] = 1.0,
        curvature: Curvature = "damped",
        damping: float = 1.0,
        decay: float = 0.9,
        max_curvature: float | None = None,
        exclude: str | Sequence[str] = (),
    ) -> None:
        settings = RateSettings(rate_weight, shape, curvature, damping, decay, max_curvature)
        keys = ParameterKeys(model)
        self._parameters = list(model.parameters())
        for parameter in self._parameters:
            keys.add(parameter)
        self._by_name = {keys.key(parameter): parameter for parameter in self._parameters}
        patterns = as_tuple("exclude", exclude)
        check_patterns(
            "exclude", patterns, [[name] for name in keys.order()], "parameter of the model"
        )
        self._term = RateTerm(keys, settings, patterns)

    @property
    def rate_weight(self) -> float:
        """As given; it can't be changed."""
        return self._term.settings.rate_weight

    def apply(self) -> None:
        """Change the gradients in place: once a step, where they are finished and not yet used.

        Once: a second call before the next backward pass would remember the changed gradients as
        the loss's own, and the next step's differences would be wrong.

        After DDP's reduction (the end of ``backward()``) and ``GradScaler.unscale_``, before
        clipping and ``optimizer.step()``. Nothing is added at the first call, to parameters that
        have not moved since the last one, or to a gradient that is None, sparse, all zeros, or has
        NaN or infinity; the last also ends the memory of that parameter.
        """
        if self.rate_weight == 0.0:
            return
        for parameter in self._parameters:
            if parameter.grad is not None:
                self._term.add_to(parameter.grad, parameter)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same bits; the same on all ranks."""
        return {"version": _STATE_VERSION, "past": self._term.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; settings stay what this object was made with.

        Raises:
            ValueError: not from :meth:`state_dict`, of another version, or of another model;
                nothing is loaded then.
        """
        if not isinstance(state_dict, Mapping):
            raise ValueError(
                f"expected a GradientConstraint's state_dict, got {type(state_dict).__name__}"
            )
        version = state_dict.get("version")
        if version != _STATE_VERSION:
            raise ValueError(
                f"expected a GradientConstraint's state_dict of version {_STATE_VERSION}, "
                f"got {version!r}"
            )
        past = state_dict.get("past")
        if not isinstance(past, Mapping):
            raise ValueError(f"expected 'past' by parameter in the state_dict, got {past!r}")
        strange = sorted(set(past) - set(self._by_name))
        if strange:
            raise ValueError(
                f"expected the state of this model's parameters, got that of {', '.join(strange)}: "
                "load it into the same model"
            )
        for name, saved in past.items():
            saved_tensors(name, saved, self._by_name[name])
        self._term.load_state_dict(past)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a GradientConstraint belongs to one model and is not copied or pickled: save its "
            "state_dict() and make one for the other model"
        )
