"""What a checkpoint says about who made it, and its form for files that hold only tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_REST = "gct"  # what isn't a tensor, as JSON
_SEPARATOR = "/"


class Place(NamedTuple):
    """Where a state's residuals belong to, as far as it is known."""

    rank: int | None = None
    world_size: int | None = None
    hosts: int | None = None

    def unlike(self, here: Place) -> str:
        """What of this place is known to be different ``here``, in words; else empty."""
        if None not in (self.rank, here.rank) and self[:2] != here[:2]:
            return f"rank {self.rank} of {self.world_size}"
        if None not in (self.hosts, here.hosts) and self.hosts != here.hosts:
            return f"hierarchy of {self.hosts} host(s)"
        return ""


def flatten(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of nested dicts and lists by the way to them, and the rest as bytes of JSON."""
    tensors: dict[str, Tensor] = {}

    def strip(value: Any, way: str) -> Any:
        if isinstance(value, Tensor):
            tensors[way] = value.contiguous()
            return {_REST: way}
        if isinstance(value, Mapping):
            return {key: strip(item, f"{way}{_SEPARATOR}{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [strip(item, f"{way}{_SEPARATOR}{i}") for i, item in enumerate(value)]
        return value

    rest = {key: strip(value, key) for key, value in state_dict.items()}
    tensors[_REST] = torch.tensor(list(json.dumps(rest).encode()), dtype=torch.uint8)
    return tensors


def is_flat(state_dict: Mapping[str, Any]) -> bool:
    return isinstance(state_dict.get(_REST), Tensor)


def unflatten(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What :func:`flatten` was given."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {_REST}:
                return tensors[value[_REST]]
            return {key: restore(item) for key, item in value.items()}
        return [restore(item) for item in value] if isinstance(value, list) else value

    result: dict[str, Any] = restore(json.loads(bytes(tensors[_REST].tolist())))
    return result
