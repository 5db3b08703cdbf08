"""The GPU's path without a GPU: the same layouts, plans and transports, with the kernels' bodies
run as loops on the CPU. What only a GPU can show (streams, NCCL, compiled kernels) is in tests/gpu.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from ranks import assert_same_on_all_ranks, run_ranks
from small_run import make_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import gct
from gct import _C, _device_channel
from gct._channel import Run
from gct._device_channel import DeviceChannel
from gct._device_codec import decode_on_device, encode_on_device
from gct._device_reducer import DeviceReducer
from gct._device_wire import Exchange

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def laplace(numel: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Heavy-tailed values whose scale changes from block to block."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (numel,), generator=generator) * 2.0 - 1.0
    size = torch.empty(numel).exponential_(generator=generator)
    return (sign * size * 2.0 ** (torch.arange(numel) // 256 % 5)).to(dtype)


# ---- one tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [0, 1, 255, 70001])
@pytest.mark.parametrize(
    "codec", [gct.Codec(), gct.Codec(step=0.5), gct.Codec("fixed", bits=4), gct.Codec("raw")]
)
def test_one_tensor_there_and_back(dtype: torch.dtype, numel: int, codec: gct.Codec) -> None:
    x = laplace(numel, 3, dtype)
    wire = encode_on_device(x, codec._params)
    decoded = decode_on_device(wire)
    assert torch.equal(decoded, gct.decode(wire))  # the CPU's codec reads it, to the same bits
    if codec.kind == "raw":
        assert torch.equal(decoded, x.float())
    elif codec.step is not None and numel > 0:
        # A step's deadzone and the classes' half octave allow 1.6 steps of the block's scale.
        scale = x.float().abs().max()
        assert (decoded - x.float()).abs().max() <= 1.6 * codec.step * scale


def test_fixed_and_raw_bytes_are_the_cpu_s() -> None:
    x = laplace(10000, 5)
    for codec in (gct.Codec("fixed", bits=3), gct.Codec("raw")):
        assert torch.equal(encode_on_device(x, codec._params), gct.encode(x, codec))


@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0, 4.0])
def test_rate(bits: float) -> None:
    x = laplace(300_000, 7)
    wire = encode_on_device(x, gct.Codec(bits=bits)._params)
    # Three percent is the promise; the short input adds headers and lane states, 0.7 % at 1 bit.
    assert 0.95 * bits < 8 * wire.numel() / x.numel() <= bits


def test_what_kernels_do_not_decode_goes_through_the_cpu() -> None:
    x = laplace(20000, 9).view(100, 200)
    for codec in (
        gct.Codec("eg"),
        gct.Codec(allocation="mse", low_rank=2),
        gct.Codec(effort="high"),
    ):
        wire = gct.encode(x, codec)
        assert torch.equal(decode_on_device(wire), gct.decode(wire))


def test_damaged_wires_raise() -> None:
    wire = encode_on_device(laplace(5000, 1), gct.Codec()._params)
    for position, text in ((0, "GCT1"), (20, "header"), (300, "payload")):
        bad = wire.clone()
        bad[position] ^= 0x55
        with pytest.raises(ValueError, match=text):
            decode_on_device(bad)
    with pytest.raises(ValueError, match="ends before"):
        decode_on_device(wire[:-1].contiguous())


def test_seed_of_stochastic_rounding() -> None:
    x, params = laplace(5000, 1), gct.Codec(rounding="stochastic")._params
    assert torch.equal(encode_on_device(x, params, 7), encode_on_device(x, params, 7))
    assert not torch.equal(encode_on_device(x, params, 7), encode_on_device(x, params))


def test_what_gpus_do_not_encode_is_refused() -> None:
    x = torch.ones(300)
    for codec, dtype, text in (
        (gct.Codec("eg"), torch.float32, "kind eg"),
        (gct.Codec(snr_db=20), torch.float32, "dB"),
        (gct.Codec(effort="high"), torch.float32, "effort high"),
        (gct.Codec(), torch.float64, "float64"),
    ):
        with pytest.raises(ValueError, match=text):
            encode_on_device(x.to(dtype), codec._params)


# ---- all_reduce


def recode(x: Tensor, codec: gct.Codec) -> Tensor:
    return decode_on_device(encode_on_device(x, codec._params)) if x.numel() else x.float()


def model(inputs: list[Tensor], codec: gct.Codec, two_shot: bool) -> Tensor:
    """What every rank must end with: the collectives in a few lines."""
    world = len(inputs)
    if not two_shot:
        total = recode(inputs[0], codec)
        for other in inputs[1:]:
            total += recode(other, codec)
        return total / world
    result = torch.empty(inputs[0].numel())
    for owner, (begin, end) in enumerate(_C.split(result.numel(), world)):
        total = inputs[owner][begin:end].float().clone()
        for rank, other in enumerate(inputs):
            if rank != owner:
                total += recode(other[begin:end], codec)
        result[begin:end] = recode(total / world, codec)
    return result


def reduce_all(rank: int, world: int, staged: bool) -> dict[str, Any]:
    """Every size, dtype and algorithm on one channel, several on their way at a time."""
    import torch.distributed as dist

    channel = DeviceChannel(dist.group.WORLD, CPU, staged=staged)
    jobs = []
    for numel in (1, 300, 3001, 40000):
        for dtype in DTYPES:
            for codec in (gct.Codec(bits=3.0), gct.Codec("fixed", bits=4)):
                for algorithm in ("one_shot", "two_shot"):
                    inputs = [laplace(numel, 100 * numel + r, dtype) for r in range(world)]
                    tensor = inputs[rank].clone()
                    future, _ = channel.all_reduce(
                        tensor,
                        codec._params,
                        name="a tensor",
                        settings=f"{codec}",
                        mean=True,
                        algorithm=algorithm,
                    )
                    jobs.append((future, tensor, inputs, codec, algorithm == "two_shot"))
    for future, tensor, inputs, codec, two_shot in jobs:
        assert future.wait() is tensor
        expected = model(inputs, codec, two_shot).to(tensor.dtype)
        assert torch.equal(tensor, expected), (tensor.numel(), tensor.dtype, codec, two_shot)
        assert_same_on_all_ranks(tensor, world)
    channel.check()
    stats = channel.stats()
    channel.close()
    return dict(stats)


@pytest.mark.parametrize(("world", "staged"), [(2, False), (3, True)])
def test_all_reduce_is_the_model_to_the_last_bit(world: int, staged: bool) -> None:
    for stats in run_ranks(world, reduce_all, staged):
        assert stats["jobs"] == 48
        assert 0 < stats["wire_bytes"] < stats["raw_bytes"]


def many_of_one_layout(rank: int, world: int) -> None:
    """Calls of one plan share its buffers: none may overwrite what another still sends."""
    import torch.distributed as dist

    channel = DeviceChannel(dist.group.WORLD, CPU, staged=True)
    codec = gct.Codec(bits=3.0)
    jobs = []
    for call in range(6):
        inputs = [laplace(5000, 10 * call + r) for r in range(world)]
        future, _ = channel.all_reduce(
            inputs[rank].clone(), codec._params, name="x", settings="s", mean=True
        )
        jobs.append((future, inputs))
    for future, inputs in jobs:
        assert torch.equal(future.wait(), model(inputs, codec, two_shot=False))


def test_calls_of_one_layout_follow_each_other() -> None:
    run_ranks(2, many_of_one_layout)


def test_memory_of_encoding() -> None:
    """docs/gpu.md: 6.1 bytes an element, and what a run and a segment take."""
    numel = 50 * 65536
    encoder = _C.DeviceEncoder(
        gct.Codec()._params, torch.float32, [(numel, False, 0)], [(0, numel)], 0, CPU
    )
    scratch = _C.DeviceScratch(CPU)
    x, wire = torch.zeros(numel), torch.zeros(encoder.out_bytes, dtype=torch.uint8)
    encoder.encode(x, wire, 0, 0, scratch)
    assert scratch.capacity_bytes() < 6.1 * numel + 4096


def test_a_world_of_one_on_request() -> None:
    """What tests/gpu does with NCCL, which takes one rank of a GPU only."""
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        codec = gct.Codec(bits=3.0)
        for staged in (False, True):
            channel = DeviceChannel(dist.group.WORLD, CPU, staged=staged, alone=True)
            for algorithm in ("one_shot", "two_shot"):
                x = laplace(5000, 1)
                future, _ = channel.all_reduce(
                    x.clone(), codec._params, name="x", settings="s", algorithm=algorithm
                )
                assert torch.equal(future.wait(), recode(x, codec))
            channel.close()
        idle = DeviceChannel(dist.group.WORLD, CPU)
        x = laplace(5000, 1)
        future, _ = idle.all_reduce(x.clone(), codec._params, name="x", settings="s")
        assert torch.equal(future.wait(), x)
    finally:
        dist.destroy_process_group()


def one_step_again(rank: int, world: int) -> None:
    """A plan's buffers serve the next step too, with raw runs and stochastic rounding."""
    import torch.distributed as dist

    channel = DeviceChannel(dist.group.WORLD, CPU, staged=False)
    runs = [Run(9000, False), Run(50, True), Run(0, False), Run(2950, False)]
    codec = gct.Codec(bits=4.0, rounding="stochastic")
    results = []
    for step in range(3):
        tensor = laplace(12000, 7 + rank)
        exact = sum(laplace(12000, 7 + r) for r in range(world)) / world
        future, plan = channel.all_reduce(
            tensor,
            codec._params,
            name="x",
            settings="s",
            runs=runs,
            mean=True,
            seed=step,
            algorithm="two_shot",
        )
        future.wait()
        assert_same_on_all_ranks(tensor, world)
        assert torch.equal(tensor[9000:9050], exact[9000:9050])
        # At 4 bits the error is some 20 dB under the signal; a rank left out would give 5 dB.
        assert (tensor - exact).square().sum() < 0.03 * exact.square().sum()
        results.append(tensor)
        statistics = plan.run_statistics()
        assert statistics[0][0] > 0
        assert statistics[0][1] > 0
        assert statistics[1][1] == 0
    assert not torch.equal(results[0], results[1])  # another seed, other rounding
    assert channel.stats()["nonfinite_runs"] == 0
    tensor = laplace(12000, rank)
    if rank == 0:
        tensor[8000] = float("nan")  # rank 1's to reduce
    future, _ = channel.all_reduce(
        tensor, codec._params, name="x", settings="s", runs=runs, mean=True, algorithm="two_shot"
    )
    assert torch.isnan(future.wait()[8000])
    assert torch.isfinite(tensor[9000:]).all()
    assert channel.stats()["nonfinite_runs"] == (1 if rank == 0 else 0)


def test_steps_share_a_plan() -> None:
    run_ranks(2, one_step_again)


def other_calls(rank: int, world: int, staged: bool) -> str:
    import torch.distributed as dist

    channel = DeviceChannel(dist.group.WORLD, CPU, staged=staged)
    params = gct.Codec()._params
    with pytest.raises(RuntimeError, match="same call") as error:
        channel.all_reduce(torch.ones(300 + rank), params, name="x", settings="s")
    tensor = laplace(3000, 1)
    channel.all_reduce(tensor, params, name="x", settings="s")[0].wait()
    return str(error.value)


@pytest.mark.parametrize("staged", [False, True])
def test_ranks_that_make_other_calls_are_told(staged: bool) -> None:
    for message in run_ranks(2, other_calls, staged):
        assert "nothing was sent" in message


def damaged(rank: int, world: int, staged: bool) -> None:
    """What comes from rank 1 is damaged on its way to rank 0."""
    import torch.distributed as dist

    channel = DeviceChannel(dist.group.WORLD, CPU, staged=staged)
    real = _device_channel.begin

    def altered(step: Exchange, group: dist.ProcessGroup) -> dist.Work:
        work = real(step, group)
        work.wait()
        if rank == 0 and step.recv.numel() > 100:
            step.recv[step.recv.numel() // 2 + 1000] ^= 1  # words of rank 1's segment
        return work

    params = gct.Codec()._params
    tensor = laplace(20000, rank)
    with mock.patch.object(_device_channel, "begin", altered):
        channel.all_reduce(tensor, params, name="bucket 3", settings="s")[0].wait()
    assert bool(torch.isnan(tensor).all()) == (rank == 0)
    if rank == 0:
        with pytest.raises(RuntimeError, match=r"bucket 3 failed on rank 0 of 2.*\n?.*altered"):
            channel.all_reduce(tensor, params, name="the next", settings="s")


@pytest.mark.parametrize("staged", [False, True])
def test_damage_is_loud(staged: bool) -> None:
    run_ranks(2, damaged, staged)


def without_a_peer(rank: int, world: int) -> str:
    import os

    import torch.distributed as dist

    channel = DeviceChannel(dist.group.WORLD, CPU, staged=True)
    params = gct.Codec()._params
    channel.all_reduce(laplace(3000, 1), params, name="x", settings="s")[0].wait()
    if rank == 1:
        os._exit(0)
    future, _ = channel.all_reduce(laplace(3000, 1), params, name="bucket 7", settings="s")
    with pytest.raises(RuntimeError, match="bucket 7 failed on rank 0 of 2") as error:
        future.wait()
    with pytest.raises(RuntimeError, match="bucket 7"):
        channel.check()
    return str(error.value)


def test_a_dead_peer_becomes_an_error() -> None:
    [message, _] = run_ranks(2, without_a_peer, group_timeout=5, lost=[1])
    assert "start again from a checkpoint" in message


# ---- the hook


def train(rank: int, world: int, bits: float | None) -> list[float]:
    """Losses of a small run whose gradients go through the GPU's reducer."""
    import torch.distributed as dist

    net = make_model()
    ddp = DistributedDataParallel(net)
    if bits is not None:
        state = gct.GCTState(bits=bits, model=net)
        group = dist.group.WORLD
        state._group, state._reducer = group, DeviceReducer(group, state._settings, CPU)
        ddp.register_comm_hook(state, gct.hook)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    torch.manual_seed(100 + rank)
    losses = []
    for _ in range(30):
        x = torch.randn(64, 48)
        loss = (ddp(x) - x[:, :8]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    values = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert_same_on_all_ranks(values, world)
    if bits is not None:
        stats = state.stats()
        assert stats["steps"] == 30
        assert stats["ratio"] > 8
        assert stats["parameters"]["0.weight"]["scale"] > 0
        assert stats["scratch_bytes"] > 0
        state.close()
    return losses


def test_training_learns_as_without_compression() -> None:
    [plain, _], [coded, _] = run_ranks(2, train, None), run_ranks(2, train, 3.0)
    assert plain[-1] < 0.5 * plain[0]
    # Noise of one batch's loss at the end is some 10 % of it; without gradients it would not fall.
    assert coded[-1] < 1.3 * plain[-1]


@pytest.mark.parametrize(
    "setting",
    [
        {"codec": "eg"},
        {"codec": "auto"},
        {"snr_db": 20.0},
        {"step": 0.5},
        {"error_feedback": True},
        {"rate_weight": 0.1},
        {"element_scales": True},
        {"low_rank": 2, "allocation": "mse"},
        {"effort": "high"},
        {"hierarchy": 2},
        {"bits": {0: 2.0, 100: 1.0}},
    ],
)
def test_settings_that_gpus_lack_are_refused(setting: dict[str, Any]) -> None:
    state = gct.GCTState(**setting)
    name = next(iter(setting))
    with pytest.raises(ValueError, match=f"GPU can't have {name}"):
        DeviceReducer(mock.Mock(), state._settings, CPU)


@pytest.mark.parametrize("debug", ["hash", ""])
def test_hashes_that_are_not_compared_are_a_warning(
    debug: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GCT_DEBUG", debug)
    monkeypatch.setattr("gct._device_reducer.DeviceChannel", mock.Mock())
    DeviceReducer(mock.Mock(), gct.GCTState()._settings, CPU)
    assert ("GCT_DEBUG=hash does not compare gradients on cpu" in caplog.text) == bool(debug)


def test_gradients_that_change_their_device_are_refused() -> None:
    state = gct.GCTState()
    state._reducer = mock.Mock()
    state._check_device(CPU)
    with pytest.raises(ValueError, match="on one device"):
        state._check_device(torch.device("cuda", 0))


def test_cuda_tensors_are_refused_where_kernels_can_not_run() -> None:
    if not _C.cuda_problem():
        pytest.skip("kernels can run here")
    with pytest.raises(ValueError, match="no way to reduce"):
        DeviceChannel(mock.Mock(), torch.device("cuda", 0))
