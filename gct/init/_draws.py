"""Generalized Gaussian draws for whole tensors, or for the part of one that a rank holds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement
from torch.nn.parameter import is_lazy

from gct.distribution import CHUNK, FLOAT_DTYPES, GeneralizedGaussian

__all__ = ["Draws", "check_fillable"]

# All ranks have the indices that are distributed; torch 2.6 sends them all the same.
_SENDER = "src_data_rank"
_NO_SENDING: dict[str, Any] = (
    {_SENDER: None} if _SENDER in signature(distribute_tensor).parameters else {}
)


class Draws:
    """Fills tensors with draws that follow from one seed, whatever is sharded how.

    A tensor is drawn in blocks of ``CHUNK`` elements in row-major order. Each block has a seed of
    its own, numbered on from tensor to tensor, so a rank draws the blocks that it needs without
    the others and gets what the unsharded tensor would have there.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator
        self._next_block = 0

    @cached_property
    def _seed(self) -> int:
        """Drawn for the first tensor that has data: meta tensors leave the generator alone."""
        device = torch.device("cpu") if self._generator is None else self._generator.device
        return int(torch.randint(1 << 62, (), generator=self._generator, device=device))

    def fill_(
        self, tensor: Tensor, distribution: GeneralizedGaussian, zero_row: int | None = None
    ) -> None:
        """Replace the values of ``tensor``; its row ``zero_row``, if given, becomes 0.

        For a DTensor collective over its mesh, whose first rank's seed counts for all.
        """
        first_block = self._next_block
        self._next_block += -(-tensor.numel() // CHUNK)
        if tensor.device.type == "meta" or tensor.numel() == 0:
            return
        with torch.no_grad():
            if isinstance(tensor, DTensor):
                self._fill_shard(tensor, distribution, first_block, zero_row)
            else:
                self._fill_whole(tensor, distribution, first_block, zero_row)

    def _fill_whole(
        self,
        tensor: Tensor,
        distribution: GeneralizedGaussian,
        first_block: int,
        zero_row: int | None,
    ) -> None:
        # The order of draws is that of the indices, not of the memory: a transposed view needs a
        # copy in between.
        straight = tensor.is_contiguous()
        dense = torch.contiguous_format
        target = tensor if straight else torch.empty_like(tensor, memory_format=dense)
        flat = target.view(-1)
        seed = self._seed + first_block
        for begin, values in self._blocks(tensor, distribution, seed, 0, tensor.numel()):
            flat[begin : begin + values.numel()].copy_(values)
        if not straight:
            tensor.copy_(target)
        if zero_row is not None:
            tensor[zero_row] = 0.0

    def _fill_shard(
        self,
        tensor: DTensor,
        distribution: GeneralizedGaussian,
        first_block: int,
        zero_row: int | None,
    ) -> None:
        mesh = tensor.device_mesh
        if mesh.get_coordinate() is None:
            return
        # From the mesh's first rank to all, so that replicas agree if the generators don't.
        replicated = distribute_tensor(torch.tensor(self._seed), mesh, [Replicate()] * mesh.ndim)
        seed = int(replicated.to_local()) + first_block
        local = tensor.to_local()
        held = [_held_indices(tensor, dim) for dim in range(tensor.dim())]
        if local.numel() == 0:
            return
        positions = [
            _positions(indices, size) for indices, size in zip(held, tensor.shape, strict=True)
        ]
        row = tensor.numel() // tensor.shape[0]
        first, last = int(held[0].min()) * row, (int(held[0].max()) + 1) * row
        for begin, values in self._blocks(tensor, distribution, seed, first, last):
            flat = torch.arange(begin, begin + values.numel())
            coordinates = torch.unravel_index(flat, tensor.shape)
            index = torch.stack([p[i] for p, i in zip(positions, coordinates, strict=True)])
            mine = (index >= 0).all(dim=0)
            place = tuple(index[:, mine].to(local.device))
            local[place] = values[mine.to(values.device)].to(local.device, local.dtype)
        if zero_row is not None:
            local[(held[0] == zero_row).to(local.device)] = 0.0

    def _blocks(
        self, tensor: Tensor, distribution: GeneralizedGaussian, seed: int, first: int, last: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Those blocks that hold any of the elements first to last: begin, and float64 values."""
        device = tensor.device if self._generator is None else self._generator.device
        generator = torch.Generator(device)
        for begin in range(first - first % CHUNK, last, CHUNK):
            # The CPU's generator keeps 32 bits of a seed. Blocks of one call have consecutive
            # seeds, so two of them are equal only after 2^32 blocks.
            generator.manual_seed(seed + begin // CHUNK)
            length = min(CHUNK, tensor.numel() - begin)
            yield begin, distribution._draw(length, generator, device)


def check_fillable(tensor: Tensor, name: str) -> None:
    """Refuse what can't be filled with draws, in words that say what to do."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if is_lazy(tensor):
        raise ValueError(f"{name} has no shape yet: run the model once on an example first")
    if type(tensor).__name__ == "ShardedTensor":
        raise TypeError(f"{name}: ShardedTensor is not supported: use DTensor or fill it before")
    if tensor.dtype not in FLOAT_DTYPES or tensor.layout is not torch.strided:
        raise TypeError(
            f"{name}: expected a dense tensor of float16, bfloat16, float32 or float64, got "
            f"{tensor.dtype}, {tensor.layout}"
        )
    if isinstance(tensor, DTensor):
        for placement in tensor.placements:
            if placement.is_partial():
                raise ValueError(
                    f"{name}: a DTensor with placement {placement} holds addends: redistribute it "
                    "to Shard or Replicate first"
                )


def _held_indices(tensor: DTensor, dim: int) -> Tensor:
    """The global indices along ``dim`` that this rank holds, in the order of its local tensor."""
    indices = torch.arange(tensor.shape[dim])
    placements = [_along(placement, dim) for placement in tensor.placements]
    if all(isinstance(placement, Replicate) for placement in placements):
        return indices
    # DTensor itself says where what goes: uneven and strided shards are its business.
    return (
        distribute_tensor(indices, tensor.device_mesh, placements, **_NO_SENDING).to_local().cpu()
    )


def _along(placement: Placement, dim: int) -> Placement:
    """What the placement of a tensor means for a vector along its dimension ``dim``."""
    if getattr(placement, "dim", None) != dim:
        return Replicate()
    if hasattr(placement, "split_factor"):  # of FSDP over tensor parallelism on one dimension
        strided: Any = type(placement)
        return strided(0, split_factor=placement.split_factor)
    return Shard(0)


def _positions(indices: Tensor, size: int) -> Tensor:
    """For each of ``size`` global indices its position among ``indices``, or -1."""
    positions = torch.full((size,), -1)
    positions[indices] = torch.arange(indices.numel())
    return positions
