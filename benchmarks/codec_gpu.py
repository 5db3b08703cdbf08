"""What benchmarks/codec.py --device cuda measures: the kernels, by the GPU's clock.

A call is what the hook enqueues for one bucket that is one segment: with gg some forty launches.
Bytes are the float32 values and the wire; the copy moves twice the values. Results are checked
against the CPU's decoder in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import gct
from gct import _C

CODECS = [
    gct.Codec("gg", bits=1.0),
    gct.Codec("gg", bits=2.0),
    gct.Codec("gg", bits=4.0),
    gct.Codec("fixed", bits=2),
    gct.Codec("fixed", bits=4),
    gct.Codec("fixed", bits=8),
    gct.Codec("raw"),
]


@dataclass(frozen=True)
class DeviceRow:
    name: str
    numel: int
    bits: float
    encode_seconds: float  # medians
    decode_seconds: float
    copy_seconds: float  # of the values, in the same run

    def share(self, seconds: float) -> float:
        """Bytes moved a second, over the copy's."""
        moved = (32 + self.bits) / 64
        return moved * self.copy_seconds / seconds

    def __str__(self) -> str:
        def column(seconds: float) -> str:
            gigabytes = 4 * self.numel / seconds / 1e9
            return f"{1e6 * seconds:9.1f} {gigabytes:8.1f} {100 * self.share(seconds):7.1f}"

        return (
            f"{self.name:9} {self.numel:10} {self.bits:7.3f} |{column(self.encode_seconds)} "
            f"|{column(self.decode_seconds)} | {8 * self.numel / self.copy_seconds / 1e9:8.1f}"
        )


HEAD = (
    f"{'':9} {'elements':>10} {'bits':>7} | encode us    GB/s  % copy | decode us    GB/s  % copy"
    " | copy GB/s"
)


def measure(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call on the device, after two that aren't counted."""
    seconds = []
    for repeat in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= 2:
            seconds.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(seconds)


def row(x: Tensor, codec: gct.Codec, repeats: int) -> DeviceRow:
    device, numel = x.device, x.numel()
    encoder = _C.DeviceEncoder(codec._params, x.dtype, [(numel, False, 0)], [(0, numel)], 0, device)
    wire = torch.zeros(encoder.out_bytes, dtype=torch.uint8, device=device)
    decoder = _C.DeviceDecoder([(0, wire.numel(), 0, numel, 1)], device)
    out, copy = torch.zeros_like(x), torch.empty_like(x)
    scratch = _C.DeviceScratch(device)
    stream = torch.cuda.current_stream(device).cuda_stream
    encode_seconds = measure(lambda: encoder.encode(x, wire, 0, stream, scratch), repeats)
    decode_seconds = measure(lambda: decoder.decode(wire, out, False, stream, scratch), repeats)
    if not torch.equal(out.cpu(), gct.decode(wire.cpu())):
        raise AssertionError(f"{codec}: the GPU decodes other values than the CPU")
    name = codec.kind if codec.bits is None else f"{codec.kind} {codec.bits:g}"
    return DeviceRow(
        name=name,
        numel=numel,
        bits=8 * wire.numel() / numel,
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
        copy_seconds=measure(lambda: copy.copy_(x), repeats),
    )


def rows(values: list[Tensor], repeats: int) -> list[DeviceRow]:
    """Measures all codecs on each tensor and prints a table."""
    if problem := _C.cuda_problem():
        raise SystemExit(f"--device cuda: {problem}")
    print(f"GPU: {torch.cuda.get_device_name()}\n\nmicroseconds, GB/s of float32, bytes moved")
    print(HEAD)
    result = []
    for x in values:
        for codec in CODECS:
            result.append(row(x, codec, repeats))
            print(result[-1], flush=True)
    return result
