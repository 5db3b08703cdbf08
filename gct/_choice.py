"""Whether coding pays on this network: measured where a state is first used."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.futures import Future

from gct._channel import Channel

Way = Callable[[Tensor], Future[Tensor]]

BUCKET_NUMEL = 25 * 2**20 // 4  # DDP's default, in float32
_SIZES = [1 << shift for shift in range(14, 23, 2)]  # elements
_SECONDS = 0.12  # for each way
# A size's second and third call are made if those before took less; the fastest one counts.
_REPEATED_BELOW = (math.inf, 0.06, 0.03)
# Coding takes processor time from whatever else runs: it has to win by more than noise.
_WORTH = 1.1


def measure(ways: Mapping[str, Way], channel: Channel) -> dict[str, float]:
    """Seconds that an all-reduce of a bucket of BUCKET_NUMEL elements takes each way.

    A collective call while nothing else is on its way. Of each call the slowest rank's time counts,
    so that all ranks get the same numbers. Each way is tried with growing buckets as long as its
    time lasts; the rest is extrapolated. Together they take under a second, but more where already
    the smallest bucket, 64 KB, takes an eighth of it.

    Args:
        ways: start an all-reduce of a tensor in place.
        channel: of the ranks that take part.

    Raises:
        RuntimeError: a peer died or the group's timeout passed.
    """
    return {name: _measure(way, channel) for name, way in ways.items()}


def choose(seconds: Mapping[str, float]) -> str:
    """The first way that is not clearly slower than the best.

    The most exact one stands first; of the codecs, whose errors are alike, the one that sends less.
    """
    best = min(seconds.values())
    return next(way for way, took in seconds.items() if took <= _WORTH * best)


def extrapolate(points: Sequence[tuple[int, float]], numel: int) -> float:
    """Seconds at ``numel`` elements, on the line through the smallest and the largest point.

    A single one is taken for bytes alone, without latency.
    """
    most, took_most = points[-1]
    least, took_least = 0, 0.0
    if len(points) > 1:
        # No bucket is faster than a smaller one: that one was disturbed.
        least, took_least = points[0][0], min(took for _, took in points)
    return took_most + (took_most - took_least) / (most - least) * (numel - most)


def _measure(way: Way, channel: Channel) -> float:
    pattern = torch.randn(_SIZES[0], generator=torch.Generator().manual_seed(channel.rank))
    way(pattern.clone()).wait()  # connections, memory
    points: list[tuple[int, float]] = []
    spent = 0.0
    for numel in _SIZES:
        # A multiple of the ranks: nothing has to be padded.
        bucket = pattern.repeat(numel // pattern.numel())[: numel - numel % channel.size]
        calls: list[float] = []
        for limit in _REPEATED_BELOW:
            if sum(calls) < limit:
                calls += channel.largest([_seconds(way, bucket)])
        points.append((bucket.numel(), min(calls)))
        spent += sum(calls)
        # The next size takes up to four times as long, less where latency is most of it. Latency
        # is told from bytes by two sizes.
        next_call = min(calls) * _SIZES[1] / _SIZES[0]
        if spent + next_call > _SECONDS and (len(points) > 1 or next_call > _SECONDS):
            break
    return extrapolate(points, BUCKET_NUMEL)


def _seconds(way: Way, bucket: Tensor) -> float:
    began = time.perf_counter()
    way(bucket).wait()
    return time.perf_counter() - began
