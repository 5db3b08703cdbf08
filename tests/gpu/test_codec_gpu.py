"""The kernels against their bodies on the CPU and against the CPU's codec, byte by byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gct
from gct import _C
from gct._device_codec import encode_on_device

CODECS = [
    gct.Codec(bits=0.5),
    gct.Codec(bits=2.0),
    gct.Codec(bits=4.0, rounding="stochastic"),
    gct.Codec(bits=3.0, allocation="mse", low_rank=0),
    gct.Codec(bits=0.8, reconstruction="unit_gain"),
    gct.Codec(step=0.25),
    gct.Codec("fixed", bits=1),
    gct.Codec("fixed", bits=4),
    gct.Codec("fixed", bits=7),
    gct.Codec("raw"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def values(name: str, numel: int) -> Tensor:
    generator = torch.Generator().manual_seed(numel)
    x = torch.randn(numel, generator=generator)
    if name == "gradient":
        x *= torch.empty(numel).exponential_(generator=generator)
        x *= 2.0 ** (torch.arange(numel) // 256 % 9 - 12)
    elif name == "spikes":
        x[::777] *= 1e4
    elif name == "rows":
        x *= (torch.arange(numel) // 300 % 7 == 0).float()
    elif name == "zeros":
        x.zero_()
    elif name == "tiny":
        x *= 1e-24
    elif name == "nan":
        x[numel // 2] = float("nan")
    elif name == "inf":
        x[-1] = float("inf")
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [1, 255, 256, 257, 8193, 70001, 1 << 20])
@pytest.mark.parametrize(
    "name", ["normal", "gradient", "spikes", "rows", "zeros", "tiny", "nan", "inf"]
)
def test_bytes_are_those_of_the_bodies_on_the_cpu(
    name: str, numel: int, dtype: torch.dtype
) -> None:
    x = values(name, numel).to(dtype)
    if numel > 100_000 and name not in ("normal", "gradient"):
        pytest.skip("the bodies on the CPU are slow")
    for codec in CODECS:
        expected = encode_on_device(x, codec._params)
        wire = gct.encode(x.cuda(), codec)
        assert wire.is_cuda
        assert torch.equal(wire.cpu(), expected), codec
        decoded = gct.decode(wire).cpu()
        assert torch.equal(decoded.isnan(), gct.decode(expected).isnan())
        assert torch.equal(decoded.nan_to_num(), gct.decode(expected).nan_to_num()), codec


@pytest.mark.parametrize("codec", [c for c in CODECS if c.kind != "gg"])
def test_bytes_without_a_choice_of_step_are_the_cpu_s(codec: gct.Codec) -> None:
    x = values("gradient", 300_001)
    assert torch.equal(gct.encode(x.cuda(), codec).cpu(), gct.encode(x, codec))


@pytest.mark.parametrize(
    "codec", [*CODECS, gct.Codec("eg"), gct.Codec(snr_db=20), gct.Codec(effort="high")]
)
def test_a_gpu_decodes_what_a_cpu_sent(codec: gct.Codec) -> None:
    wire = gct.encode(values("gradient", 300_001), codec)
    assert torch.equal(gct.decode(wire.cuda()).cpu(), gct.decode(wire))


@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0, 4.0])
def test_rate(bits: float) -> None:
    x = values("gradient", 3_000_000).cuda()
    wire = gct.encode(x, gct.Codec(bits=bits))
    assert 0.97 * bits <= 8 * wire.numel() / x.numel() <= bits


def test_damaged_wires_raise() -> None:
    wire = gct.encode(values("normal", 5000).cuda())
    for position in (0, 20, 300):
        bad = wire.clone()
        bad[position] ^= 0x55
        with pytest.raises(ValueError, match="segment"):
            gct.decode(bad)


def test_capture_in_a_graph() -> None:
    """Encoding and decoding only enqueue: a graph replays them on other values."""
    device = torch.device("cuda", torch.cuda.current_device())
    numel, params = 500_000, gct.Codec(bits=2.0)._params
    x = values("normal", numel).to(device)
    encoder = _C.DeviceEncoder(params, torch.float32, [(numel, False, 0)], [(0, numel)], 0, device)
    wire = torch.zeros(encoder.out_bytes, dtype=torch.uint8, device=device)
    decoder = _C.DeviceDecoder([(0, wire.numel(), 0, numel, 1)], device)
    out = torch.zeros(numel, device=device)
    scratch = _C.DeviceScratch(device)

    def both() -> None:
        stream = torch.cuda.current_stream(device).cuda_stream
        encoder.encode(x, wire, 0, stream, scratch)
        decoder.decode(wire, out, False, stream, scratch)

    both()  # reserves scratch
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        both()
    for seed in range(3):
        y = values("gradient", numel + seed)[:numel]
        x.copy_(y)
        graph.replay()
        torch.cuda.synchronize()
        assert int(decoder.statuses[0]) == 0
        assert torch.equal(out.cpu(), gct.decode(encode_on_device(y, params)))


def test_segments_of_a_batch_and_launches_agree() -> None:
    """Chunks in one batch are what they are alone, on another stream too."""
    device = torch.device("cuda", torch.cuda.current_device())
    params = gct.Codec(bits=2.0)._params
    runs = [(300_000, False, 0), (700, True, 0), (400_000, False, 0)]
    x = values("gradient", 700_700).to(device)
    parts = _C.split(x.numel(), 3)

    def encode(parts: list[tuple[int, int]], stream: torch.cuda.Stream) -> Tensor:
        encoder = _C.DeviceEncoder(params, torch.float32, runs, parts, 0, device)
        out = torch.zeros(encoder.out_bytes, dtype=torch.uint8, device=device)
        stream.wait_stream(torch.cuda.current_stream(device))
        encoder.encode(x, out, 0, stream.cuda_stream, _C.DeviceScratch(device))
        stream.synchronize()
        return out

    together = encode(parts, torch.cuda.current_stream(device))
    alone = [encode([part], torch.cuda.Stream(device)) for part in parts]
    assert torch.equal(together, torch.cat(alone))
