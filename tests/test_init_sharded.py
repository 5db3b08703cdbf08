"""Initialization of sharded parameters: the values of the unsharded model, or a clear refusal."""

from __future__ import annotations

import warnings

import pytest
import torch
from drawn import seeded
from ranks import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import gct

# Uneven over two ranks, and several blocks of 65,536 elements of which a rank holds a part.
SIZES = [(701, 301), (1, 70), (3, 5, 7)]


def unsharded(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    w = torch.empty(size, dtype=dtype)
    return gct.init.generalized_gaussian_(w, 0.7, generator=seeded(1))


def fill_tensors(rank: int, world: int) -> int:
    mesh = init_device_mesh("cpu", (world,))
    checked = 0
    for size in SIZES:
        for placement in (Shard(0), Shard(1), Replicate()):
            for dtype in (torch.float32, torch.bfloat16):
                w = distribute_tensor(torch.zeros(size, dtype=dtype), mesh, [placement])
                # Only the first rank's generator counts.
                gct.init.generalized_gaussian_(w, 0.7, generator=seeded(1 + rank))
                assert torch.equal(w.full_tensor(), unsharded(size, dtype)), (size, placement)
                checked += 1
    return checked


@pytest.mark.parametrize("world", [1, 2])
def test_dtensor_has_the_values_of_the_unsharded_tensor(world: int) -> None:
    assert run_ranks(world, fill_tensors) == [18] * world


def fill_on_two_dimensions(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for placements in (
        [Shard(0), Shard(1)],
        [Shard(0), Shard(0)],
        [Replicate(), Shard(1)],
        [_StridedShard(0, split_factor=2), Shard(0)],  # fully_shard over tensor parallelism
    ):
        # torch cannot send uneven strided shards; it can cut them out of what each rank has.
        w = distribute_tensor(torch.zeros(301, 50), mesh, placements, src_data_rank=None)
        gct.init.generalized_gaussian_(w, 0.7, generator=seeded(1))
        expected = distribute_tensor(unsharded((301, 50)), mesh, placements, src_data_rank=None)
        assert torch.equal(w.to_local(), expected.to_local()), placements


def test_dtensor_on_a_mesh_of_two_dimensions() -> None:
    run_ranks(4, fill_on_two_dimensions)


def refuse_addends(rank: int, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    w = DTensor.from_local(torch.zeros(4, 4), mesh, [Partial()])
    with pytest.raises(ValueError, match="holds addends: redistribute"):
        gct.init.generalized_gaussian_(w)


def test_partial_dtensor_is_refused() -> None:
    run_ranks(1, refuse_addends)


def make_model() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Embedding(31, 16, padding_idx=20),
        nn.Sequential(nn.Linear(16, 300), nn.LayerNorm(300), nn.Linear(300, 250)),
        nn.Linear(250, 5),
    )


def shard_then_fill(rank: int, world: int) -> list[str]:
    """As one does with a model that is too large to be built on one rank."""
    with torch.device("meta"):
        model = make_model()
    mesh = init_device_mesh("cpu", (world,))
    fully_shard(model[1], mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    # About torch's own draws, in reset_parameters.
    warnings.filterwarnings("ignore", "DTensor random operators")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.manual_seed(3 + rank)  # the ranks' default generators differ, as in most scripts
    result = gct.init.apply(model, {"embedding": 0.6})
    torch.manual_seed(3)
    whole = make_model()
    torch.manual_seed(3)
    assert gct.init.apply(whole, {"embedding": 0.6}) == result
    expected = whole.state_dict()
    for name, value in model.state_dict().items():
        assert isinstance(value, DTensor)
        assert torch.equal(value.full_tensor(), expected[name]), name
    assert not expected["0.weight"][20].any()
    statistics = gct.init.from_statistics(model, min_numel=1000)
    assert statistics == gct.init.from_statistics(whole, min_numel=1000)
    return list(statistics.tensors)


def test_fully_sharded_model_has_the_values_of_the_whole_one() -> None:
    names = ["1.0.weight", "1.2.weight", "2.weight"]
    assert run_ranks(2, shard_then_fill) == [names] * 2


def flatten(rank: int, world: int) -> None:
    whole = make_model()
    gct.init.apply(whole, generator=seeded(4))
    for original in (False, True):
        model = FullyShardedDataParallel(
            make_model(), device_id=torch.device("cpu"), use_orig_params=original
        )
        with pytest.raises(ValueError, match="summon_full_params"):
            gct.init.apply(model)
        with pytest.raises(ValueError, match="summon_full_params"):
            gct.init.from_statistics(model)
        with FullyShardedDataParallel.summon_full_params(model):
            gct.init.apply(model, generator=seeded(4))
        with FullyShardedDataParallel.summon_full_params(model):
            values = dict(model.named_parameters())
            assert values
            for name, expected in whole.named_parameters():
                assert torch.equal(values[name], expected), name


def test_flattened_parameters_are_refused_and_summoned_ones_filled() -> None:
    run_ranks(2, flatten)
