"""Measure one scheme at one size: time, bytes, error, and whether all ranks agree."""

from __future__ import annotations

import hashlib
import statistics
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from multihost.bucket import Bucket
from multihost.errors import UserError
from multihost.inputs import Source
from multihost.schemes import Reducer
from multihost.wire import SocketCounter


@dataclass(frozen=True)
class Effort:
    """``calls`` are measured, fewer if they took over ``seconds``, but at least LEAST_CALLS."""

    calls: int
    warmup: int
    seconds: float


LEAST_CALLS = 3


@dataclass(frozen=True)
class Row:
    """One scheme at one size. Times are of the slowest rank in each call."""

    scheme: str
    size: int  # bytes of the float32 values on each rank
    numel: int
    world: int
    calls: int
    seconds: float  # median
    seconds_min: float
    seconds_max: float
    wire_bytes: float | None  # counted, a call, mean over ranks
    reported_bytes: float | None  # the same, by the scheme's own count
    nmse: float
    wrong: int  # ranks whose result differs from rank 0's in any bit
    encode_seconds: float  # rank 0, median
    wire_seconds: float
    decode_seconds: float

    # The formulas of nccl-tests' PERFORMANCE.md, on uncompressed bytes.

    @property
    def algbw(self) -> float:
        """Bytes a second."""
        return self.size / self.seconds

    @property
    def busbw(self) -> float:
        return self.algbw * self.ring_factor

    @property
    def ring_factor(self) -> float:
        """A ring sends this many times the size from each rank."""
        return 2 * (self.world - 1) / self.world

    @property
    def ratio(self) -> float | None:
        """An uncompressed ring's bytes over those counted."""
        return self.size * self.ring_factor / self.wire_bytes if self.wire_bytes else None

    def as_dict(self) -> dict[str, Any]:
        derived = {"algbw": self.algbw, "busbw": self.busbw, "ratio": self.ratio}
        return {**vars(self), **derived}


def check_same_layout(source: Source, device: torch.device) -> None:
    """Raises UserError if this rank's tensors have other shapes than another rank's.

    A collective of tensors of unequal length ends the process, or never.
    """
    shapes = zlib.crc32(repr(source.shapes).encode())
    mine = torch.tensor([source.values.numel(), len(source.shapes), shapes], device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    for rank, other in enumerate(everyone):
        if not torch.equal(other, everyone[0]):
            (first, tensors, _), (numel, count, _) = everyone[0].tolist(), other.tolist()
            raise UserError(
                f"--input must have tensors of the same shapes on all ranks, but rank 0 has "
                f"{tensors} with {first:,} elements and rank {rank} has {count} with {numel:,}"
                + (" in other shapes." if numel == first else ".")
            )


class Bench:
    """What stays the same for all rows: this rank's values, the exact mean of all ranks' values."""

    def __init__(self, source: Source, device: torch.device, effort: Effort) -> None:
        self._source = source
        self._device = device
        self._effort = effort
        check_same_layout(source, device)
        self._exact = source.values.double().to(device)
        dist.all_reduce(self._exact)
        self._exact /= dist.get_world_size()
        self._counter = SocketCounter()

    def bucket(self, index: int, numel: int) -> Bucket:
        return Bucket(index, self._source.layout(numel), self._device)

    def run(self, scheme: str, reducer: Reducer, bucket: Bucket) -> Row:
        """A collective call; the row is the same on all ranks."""
        reducer.forget()
        self._source.fill(bucket.buffer())
        took, _ = reducer.reduce(bucket)
        nmse = self._nmse(bucket.buffer())
        wrong = count_wrong(bucket.buffer())
        for call in range(1, self._effort.warmup):
            self._source.fill(bucket.buffer(), call)
            took, _ = reducer.reduce(bucket)
        calls = self._agree_on_calls(took)
        sent, reported = self._sent(), reducer.reported_bytes()
        measured = []
        for call in range(calls):
            # Between barriers: where ranks share cores, filling isn't part of anybody's call.
            dist.barrier()
            self._source.fill(bucket.buffer(), self._effort.warmup + call)
            dist.barrier()
            measured.append(reducer.reduce(bucket))
        sent_after, reported_after = self._sent(), reducer.reported_bytes()
        wrong = max(wrong, count_wrong(bucket.buffer()))
        slowest = _over_ranks([seconds for seconds, _ in measured], dist.ReduceOp.MAX)
        stages = [stages for _, stages in measured]
        return Row(
            scheme=scheme,
            size=4 * bucket.buffer().numel(),
            numel=bucket.buffer().numel(),
            world=dist.get_world_size(),
            calls=calls,
            seconds=statistics.median(slowest),
            seconds_min=min(slowest),
            seconds_max=max(slowest),
            wire_bytes=_mean_growth(sent, sent_after, calls),
            reported_bytes=_mean_growth(reported, reported_after, calls),
            nmse=nmse,
            wrong=wrong,
            encode_seconds=statistics.median(s.encode for s in stages),
            wire_seconds=statistics.median(s.wire for s in stages),
            decode_seconds=statistics.median(s.decode for s in stages),
        )

    def _sent(self) -> int | None:
        """Bytes that this rank has sent, once all that it wrote has arrived."""
        dist.barrier()
        sent = self._counter.read()
        dist.barrier()
        return sent

    def _agree_on_calls(self, took: float) -> int:
        [slowest] = _over_ranks([took], dist.ReduceOp.MAX)
        affordable = int(self._effort.seconds / max(slowest, 1e-9))
        return max(LEAST_CALLS, min(self._effort.calls, affordable))

    def _nmse(self, result: Tensor) -> float:
        """Squared error over squared length, against the mean in float64."""
        error = signal = 0.0
        for part in result.split(self._exact.numel()):
            exact = self._exact[: part.numel()]
            error += float((part.double() - exact).square().sum())
            signal += float(exact.square().sum())
        return error / signal if signal else 0.0


def count_wrong(result: Tensor) -> int:
    """How many ranks' bits differ from rank 0's; a collective call."""
    digest = hashlib.blake2b(result.cpu().numpy().data, digest_size=7).digest()
    mine = torch.tensor([int.from_bytes(digest, "little")], device=result.device)
    everyone = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return sum(int(other) != int(everyone[0]) for other in everyone)


def _over_ranks(values: Sequence[float], op: Any) -> list[float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    dist.all_reduce(tensor, op=op)
    return [float(value) for value in tensor]


def _mean_growth(before: int | None, after: int | None, calls: int) -> float | None:
    """Mean over ranks and calls; None as soon as one rank can't count. A collective call."""
    known = before is not None and after is not None
    grown = [float(after - before), 1.0] if known else [0.0, 0.0]  # type: ignore[operator]
    total, counted = _over_ranks(grown, dist.ReduceOp.SUM)
    return total / counted / calls if counted == dist.get_world_size() else None
