"""Error feedback's memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gct._by_parameter import ByParameter
from gct._parameters import ParameterKeys


class Residuals:
    """Error feedback's memory: what this rank has not sent yet, in units of its gradients.

    Flat float32 tensors, one per bucket, because that is what the engine updates; re-cut when DDP
    regroups its buckets.
    """

    def __init__(self, keys: ParameterKeys) -> None:
        self._keys = keys
        self._views = ByParameter[Tensor, Tensor](keys, _make)  # parts of the flat tensors
        self._flat: dict[int, tuple[tuple[int, ...], Tensor]] = {}

    def for_bucket(self, index: int, parameters: Sequence[Tensor]) -> Tensor:
        """The residual of a bucket, zero for parameters seen for the first time."""
        ids = tuple(map(id, parameters))
        known = self._flat.get(index)
        if known is not None and known[0] == ids:
            return known[1]
        flat = torch.empty(sum(p.numel() for p in parameters), dtype=torch.float32)
        begin = 0
        for parameter in parameters:
            view = flat[begin : begin + parameter.numel()]
            begin += parameter.numel()
            self._views[parameter] = view.copy_(self._views[parameter])
        self._flat[index] = (ids, flat)
        return flat

    def unclaimed(self) -> list[str]:
        """Keys of loaded ones, not zero, whose parameters have not appeared."""
        return [key for key, residual in self._views.unclaimed().items() if residual.any()]

    def state_dict(self, complete: bool = False) -> dict[str, Tensor]:
        """Copies by parameter key, flat.

        ``complete``: zeros for the named parameters that have not appeared yet, for loaders that
        need to find a tensor to load to.
        """
        current = {key: view.clone() for key, view in self._views.by_key().items()}
        unseen = (
            {
                name: torch.zeros(p.numel(), dtype=torch.float32)
                for p, name in self._keys.named()
                if p.requires_grad
            }
            if complete
            else {}
        )
        return {**unseen, **self._views.waiting, **current}

    def load_state_dict(self, residuals: dict[str, Tensor]) -> None:
        """Forget everything and start from these when their parameters appear."""
        self._flat.clear()
        self._views.load(
            {
                key: residual.detach().to("cpu", torch.float32).flatten().clone()
                for key, residual in residuals.items()
            }
        )


def _make(parameter: Tensor, key: str, loaded: Tensor | None) -> Tensor:
    if loaded is None:
        return torch.zeros(parameter.numel(), dtype=torch.float32)
    if loaded.numel() != parameter.numel():
        raise ValueError(
            f"the loaded residual of parameter {key} has {loaded.numel()} elements, but the "
            f"parameter has {parameter.numel()}: it belongs to another model"
        )
    return loaded
