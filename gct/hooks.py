"""The DDP communication hook.

Annotations in this module are objects, not strings: DDP compares them with its own types when the
hook is registered. So no postponed annotations here.
"""

import weakref
from typing import cast

import torch
import torch.distributed as dist

from gct._channel import resolve_group
from gct.state import GCTState

__all__ = ["hook"]

# States that the hook made itself, for callers that registered it with None or a process group.
_default_states: weakref.WeakKeyDictionary[dist.ProcessGroup, list[GCTState]] = (
    weakref.WeakKeyDictionary()
)


def hook(
    state: GCTState | dist.ProcessGroup | None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Reduce a bucket of gradients to its mean over all ranks, compressed on the wire.

        model.register_comm_hook(gct.GCTState(bits=2.0), gct.hook)

    Args:
        state: settings and memory, one for each model. None or a process group, as torch's own
            hooks take, stand for ``GCTState(group)`` with its defaults.
        bucket: what DDP hands over. Compiled DDP calls with a tuple (gradient, parameter) and
            ignores what is returned: then the gradient is reduced in place before this returns.

    Returns:
        A future of the bucket's buffer, which holds the result; backward goes on meanwhile. It
        fails with a RuntimeError that names the bucket, the step and the rank if a peer dies or
        the group's timeout passes.

    ``DDP(mixed_precision=...)`` takes the place of the hook itself and cannot be combined with it.
    """
    if isinstance(bucket, tuple):
        gradient, parameter = cast(tuple[torch.Tensor, torch.Tensor], bucket)
        return _reduce_gradient(state, gradient, parameter)
    if not isinstance(state, GCTState):
        state = _default_state(state, bucket.index(), bucket.parameters())
    return state.reduce_bucket(bucket)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _reduce_gradient(
    state: GCTState | dist.ProcessGroup | None, gradient: torch.Tensor, parameter: torch.Tensor
) -> torch.futures.Future[torch.Tensor]:
    if not isinstance(state, GCTState):
        state = _default_state(state, id(parameter), [parameter])
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(state.reduce_gradient(gradient, parameter))
    return done


def _default_state(group: object, index: int, parameters: list[torch.Tensor]) -> GCTState:
    """The state made for the model that these parameters belong to."""
    if not (group is None or isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            "gct.hook's state must be a gct.GCTState, a process group or None, got "
            f"{type(group).__name__}"
        )
    states = _default_states.setdefault(resolve_group(group), [])
    for state in states:
        if state.serves(index, parameters):
            return state
    states.append(GCTState(group))
    return states[-1]
