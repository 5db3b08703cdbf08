"""How fast this machine encodes, decodes and does what other schemes need: for gct.plan."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gct.codec import Codec, decode, encode

__all__ = ["Curve", "Speed", "calibrate"]

# Seconds on one core by elements of a segment or bucket; both grow.
Curve = tuple[tuple[float, float], ...]

# Pieces of a segment that are encoded independently (docs/wire-format.md): what cores can share.
_PIECE_NUMEL = 64 * 1024
_SIZES = (4 * 1024, 16 * 1024, 64 * 1024, 512 * 1024)
_POOL_NUMEL = 1 << 20
_STRETCHES = 9  # of values, for each size; other values as far as there are any
# PowerSGD and casts are measured on buckets: the memory that they ask for anew takes its time.
_BUCKET_NUMEL = 1 << 22
_BUCKETS = 3
_SMALL_BUCKETS = (1 << 18, 1 << 20)  # PowerSGD's many small calls weigh more in these
_SIDE = 1024  # of the matrices in them, or as many rows as there are


@dataclass(frozen=True)
class Speed:
    """Of one core.

    Args:
        encode, decode: seconds of a segment by its elements, in growing order; in between, and
            from zero, linear, beyond the last as the last two.
        cast_rate: elements a second from float32 to bfloat16 and back.
        powersgd: seconds of a bucket through PowerSGD's products and error feedback, as encode.
            Nothing where it is empty.
        message_seconds, byte_seconds: of a core, for a message that a rank sends and one that it
            receives, and for each of their bytes; nothing where other hardware moves them.
    """

    encode: Curve
    decode: Curve
    cast_rate: float = math.inf
    powersgd: Curve = ()
    message_seconds: float = 0.0
    byte_seconds: float = 0.0

    @classmethod
    def from_rates(cls, encode_rate: float, decode_rate: float) -> Speed:
        """Of another machine: elements a second, whatever the segment's size; the rest is free."""
        return cls(encode=((1.0, 1 / encode_rate),), decode=((1.0, 1 / decode_rate),))

    def encode_seconds(self, numel: float, cores: float = 1.0) -> float:
        """A segment on ``cores`` cores; the first piece keeps one busy, the others are shared."""
        return _on_cores(self.encode, numel, cores)

    def transport_seconds(self, messages: float, sent_bytes: float) -> float:
        """To send so many messages and bytes and to receive as many."""
        return messages * self.message_seconds + sent_bytes * self.byte_seconds

    def powersgd_seconds(self, numel: float) -> float:
        return _interpolate(self.powersgd, numel) if self.powersgd else 0.0

    def decode_seconds(self, numel: float, cores: float = 1.0) -> float:
        return _on_cores(self.decode, numel, cores)


def _on_cores(curve: Curve, numel: float, cores: float) -> float:
    first = _interpolate(curve, min(numel, _PIECE_NUMEL))
    rest = max(0.0, _interpolate(curve, numel) - first)
    return first / min(1.0, cores) + rest / cores


def _interpolate(curve: Curve, numel: float) -> float:
    points = ((0.0, 0.0), *curve)
    upper = next((i for i, (size, _) in enumerate(points) if size >= numel), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(0, upper - 1)], points[max(1, upper)]
    return y0 + (y1 - y0) * (numel - x0) / (x1 - x0)


def calibrate(
    *,
    bits: float = 2.0,
    powersgd_rank: int = 4,
    values: Tensor | None = None,
) -> Speed:
    """Measure this machine, on one core, in under a second if nothing else runs on it.

    In this thread's time on a core: what else runs on the machine hardly counts.

    Args:
        bits: of the codec ``"gg"``.
        powersgd_rank: of PowerSGD's products.
        values: float32, 1-D, at least 512 Ki elements of real gradients; None: generalized
            Gaussian ones of shape 0.8 whose scale differs from block to block.

    Raises:
        ValueError: fewer values.
    """
    if values is not None and values.numel() < _SIZES[-1]:
        raise ValueError(f"expected at least {_SIZES[-1]} values, got {values.numel()}")
    pool = _gradient() if values is None else values
    codec = Codec(bits=bits)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoding, decoding = [], []
        for numel in _SIZES:
            stretches = [_stretch(pool, numel, i) for i in range(_STRETCHES)]
            wires = [encode(x, codec) for x in stretches]
            encoding.append((float(numel), _mean_of(lambda x: encode(x, codec), stretches)))
            decoding.append((float(numel), _mean_of(decode, wires)))
        bucket = pool.repeat(-(-_BUCKET_NUMEL // pool.numel()))[:_BUCKET_NUMEL]
        return Speed(
            encode=_growing(encoding),
            decode=_growing(decoding),
            cast_rate=_BUCKET_NUMEL / _mean_of(_cast, [bucket] * _BUCKETS),
            powersgd=_growing(
                [
                    (float(numel), _powersgd_seconds(bucket[:numel], powersgd_rank))
                    for numel in (*_SMALL_BUCKETS, _BUCKET_NUMEL)
                ]
            ),
        )
    finally:
        torch.set_num_threads(threads)


def _gradient() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = 0.8  # |x|^shape is Gamma(1 / shape) distributed
    rate = torch.full((_POOL_NUMEL,), 1 / shape, dtype=torch.float32)
    values = torch._standard_gamma(rate, generator=generator).pow_(1 / shape)
    signs = torch.randint(0, 2, (_POOL_NUMEL,), generator=generator).mul_(2).sub_(1)
    scales = (
        torch.randn(_POOL_NUMEL // 256, generator=generator, dtype=torch.float32)
        .mul_(0.5)
        .exp_()
        .mul_(1e-4)
    )
    return values.mul_(signs).mul_(scales.repeat_interleave(256))


def _stretch(pool: Tensor, numel: int, index: int) -> Tensor:
    """``numel`` values of the pool, others for each index while there are others."""
    begin = index * numel % (pool.numel() - numel + 1)
    return pool[begin : begin + numel]


def _mean_of(call: Callable[[Tensor], object], inputs: list[Tensor]) -> float:
    """Mean without the slowest, which something else may have disturbed.

    A mean, because some values are encoded twice (csrc/cpu/encode.cpp). Each input is used once:
    what is in the cache already would be too quick.
    """
    return statistics.fmean(sorted(_seconds(call, x) for x in inputs)[:-1])


def _seconds(call: Callable[[Tensor], object], x: Tensor) -> float:
    began = time.thread_time()
    call(x)
    return time.thread_time() - began


def _growing(points: list[tuple[float, float]]) -> Curve:
    """A disturbed small segment must not seem slower than a larger one."""
    limit = math.inf
    result = []
    for numel, seconds in reversed(points):
        limit = min(limit, seconds)
        result.append((numel, limit))
    return tuple(reversed(result))


def _cast(x: Tensor) -> None:
    """What torch's bf16_compress_hook does around its all-reduce."""
    x.copy_(x.to(torch.bfloat16).div_(2))


def _powersgd_seconds(bucket: Tensor, rank: int) -> float:
    """What torch's powerSGD_hook does to a bucket around its all-reduces."""
    matrices = bucket.view(-1, min(_SIDE, bucket.numel() // _SIDE), _SIDE)
    q, _ = torch.linalg.qr(torch.randn(len(matrices), _SIDE, rank, dtype=torch.float32))
    error = torch.zeros_like(bucket)

    def reduce(bucket: Tensor) -> None:
        nonlocal error
        bucket.add_(error)
        copy = bucket.clone()
        # Matrices of one shape are copied, become products together, and are copied back.
        batch = torch.stack(list(matrices)) if len(matrices) > 1 else matrices
        torch.linalg.qr(q)
        p, _ = torch.linalg.qr(torch.bmm(batch, q))
        new_q = torch.bmm(batch.transpose(1, 2), p)
        torch.bmm(p, new_q.transpose(1, 2), out=batch)
        if len(matrices) > 1:
            for matrix, approximation in zip(matrices, batch, strict=True):
                matrix.copy_(approximation)
        error = copy - bucket

    return _mean_of(reduce, [bucket] * _BUCKETS)
