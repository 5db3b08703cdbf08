"""All-reduces and training on a GPU: one rank with NCCL, two ranks that share it with Gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from small_run import make_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import gct
from gct._device_channel import DeviceChannel
from gct._device_codec import decode_on_device, encode_on_device
from gct._device_reducer import DeviceReducer

ROOT = Path(__file__).resolve().parents[2]


def laplace(numel: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (numel,), generator=generator) * 2.0 - 1.0
    return sign * torch.empty(numel).exponential_(generator=generator)


def reduce_both(rank: int, world: int) -> list[int]:
    """The GPU's result is that of the kernels' bodies on the CPU, over the same group."""
    group = dist.group.WORLD
    device = torch.device("cuda", 0)
    channels = [DeviceChannel(group, device), DeviceChannel(group, torch.device("cpu"))]
    sizes = []
    for numel in (1, 3001, 200_000):
        for algorithm in ("one_shot", "two_shot"):
            for codec in (gct.Codec(bits=3.0), gct.Codec("fixed", bits=4)):
                results = []
                for channel in channels:
                    tensor = laplace(numel, rank).to(channel.device)
                    future, _ = channel.all_reduce(
                        tensor,
                        codec._params,
                        name="x",
                        settings=f"{codec}",
                        mean=True,
                        algorithm=algorithm,
                    )
                    results.append(future.wait().cpu())
                assert torch.equal(*results), (numel, algorithm, codec)
                sizes.append(numel)
    for channel in channels:
        channel.check()
        channel.close()
    return sizes


def test_two_ranks_share_a_gpu_over_gloo() -> None:
    """Only encoded bytes cross PCIe; NCCL refuses two ranks on one GPU."""
    assert all(run_ranks(2, reduce_both, timeout=300))


def train(rank: int, world: int, bits: float | None) -> list[float]:
    device = torch.device("cuda", 0)
    net = make_model().to(device)
    ddp = DistributedDataParallel(net, device_ids=[0])
    if bits is not None:
        state = gct.GCTState(bits=bits, model=net)
        ddp.register_comm_hook(state, gct.hook)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    torch.manual_seed(100 + rank)
    losses = []
    for _ in range(30):
        x = torch.randn(64, 48).to(device)
        loss = (ddp(x) - x[:, :8]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    if bits is not None:
        assert state.stats()["ratio"] > 8
        state.close()
    return losses


def test_training_over_gloo_learns_as_without_compression() -> None:
    [plain, _] = run_ranks(2, train, None, timeout=300)
    [coded, _] = run_ranks(2, train, 3.0, timeout=300)
    # Noise of one batch's loss at the end is some 10 % of it.
    assert coded[-1] < 1.3 * plain[-1] < 0.5 * plain[0]


@pytest.fixture
def nccl() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("nccl", rank=0, world_size=1, store=dist.HashStore())
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("algorithm", ["one_shot", "two_shot"])
def test_one_rank_of_nccl_codes_and_exchanges(nccl: dist.ProcessGroup, algorithm: Any) -> None:
    """Several buckets on their way at a time, streams ordered by their futures alone."""
    channel = DeviceChannel(nccl, torch.device("cuda", 0), alone=True)
    codec = gct.Codec(bits=3.0)
    inputs = [laplace(numel, numel) for numel in (3001, 200_000, 3001, 1, 200_000)]
    jobs = []
    for x in inputs:
        tensor = x.cuda()
        future, _ = channel.all_reduce(
            tensor, codec._params, name="x", settings="s", mean=True, algorithm=algorithm
        )
        jobs.append((future, tensor))
    for (future, tensor), x in zip(jobs, inputs, strict=True):
        assert future.wait() is tensor
        expected = decode_on_device(encode_on_device(x, codec._params))
        assert torch.equal(tensor.cpu(), expected)
    channel.check()


def test_one_rank_of_nccl_trains(nccl: dist.ProcessGroup) -> None:
    losses: dict[str, list[float]] = {}
    for name in ("plain", "gct"):
        net = make_model().cuda()
        ddp = DistributedDataParallel(net, device_ids=[0])
        if name == "gct":
            state = gct.GCTState(bits=3.0)
            state._group, device = nccl, torch.device("cuda", 0)
            state._device = device
            state._reducer = DeviceReducer(nccl, state._settings, device)
            state._reducer._channel._idle = False  # code although there is nobody to send to
            ddp.register_comm_hook(state, gct.hook)
        optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(5)
        losses[name] = []
        for _ in range(30):
            x = torch.randn(64, 48, generator=generator).cuda()
            loss = (ddp(x) - x[:, :8]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(float(loss.detach()))
    # Noise of one batch's loss at the end is some 10 % of it.
    assert losses["gct"][-1] < 1.3 * losses["plain"][-1] < 0.5 * losses["plain"][0]


def test_all_reduce_in_a_world_of_one_changes_nothing(nccl: dist.ProcessGroup) -> None:
    tensor = torch.ones(1000, device="cuda")
    assert gct.all_reduce(tensor) is tensor
    assert torch.equal(tensor, torch.ones_like(tensor))


@pytest.mark.long
def test_the_example_trains_on_the_gpu() -> None:
    """DDP of the example's GPT: the loss at 2 bits against float32's."""
    final: dict[str, float] = {}
    for comm in ("fp32", "gct"):
        command: list[Any] = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            ROOT / "examples" / "train_gpt.py",
            "--device",
            "cuda",
            "--comm",
            comm,
            "--steps",
            "60",
        ]
        output = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=540,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).stdout
        print(output)
        final[comm] = float(output.split("held-out loss")[-1].split()[0])
    assert final["gct"] < 1.02 * final["fp32"]
