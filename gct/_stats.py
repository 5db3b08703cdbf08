"""What :meth:`gct.GCTState.stats` tells."""

from __future__ import annotations

import math
from typing import Protocol, TypedDict

from gct._device_reducer import DeviceReducer
from gct._parameters import Layout
from gct._reducer import NO_TRAFFIC, Reducer


class _HasRows(Protocol):
    """One row a run: a tensor, or what fetches one from a GPU."""

    def tolist(self) -> list[list[float]]: ...


class ParameterStats(TypedDict):
    """How one parameter's gradient was distributed when this rank last sent it.

    Keys:
        shape: of the generalized Gaussian, after each block's scale was divided out.
        scale: mean absolute value.
    """

    shape: float
    scale: float


class Stats(TypedDict):
    """Totals of this rank since the state was made, except where said otherwise.

    With a hierarchy raw_bytes, wire_bytes and bits_per_element are about what crosses between
    hosts, and a rank's parameters are those in its share of a bucket. raw_bytes, wire_bytes and
    ratio are of what is compressed alone: 0, 0 and 1.0 before anything was, as with codec="auto"
    that has become "fp32" or "bf16".

    Keys:
        steps: backward passes that were synchronized.
        codec: the codec's kind; codec="auto" may have become "fixed", "fp32" or "bf16".
        codec_seconds: what codec="auto" has measured, seconds of a bucket of 25 MB each way.
        raw_bytes: what a ring all-reduce of the same buckets, uncompressed, would have sent.
        wire_bytes: handed to the process group for other ranks, all headers counted.
        local_bytes: with a hierarchy, uncompressed, for ranks of this host; not in wire_bytes.
        ratio: raw_bytes / wire_bytes.
        bits_per_element: mean size of what was encoded, exempt parameters and headers included.
            Before anything was, that of ordinary all-reduces: 32.0 of float32, and 16.0 since
            codec="auto" has become "bf16". NaN before the first step, and with one rank, which
            sends nothing.
        plain_bytes: sent by ordinary all-reduces (first steps, small buckets), as in a ring.
        encode_seconds: of the threads that encode.
        wait_seconds: for the process group, in the engine's threads.
        decode_seconds: decoding and adding.
        nonfinite_runs: runs that held NaN or Inf and were sent as NaN.
        scratch_bytes: memory held now, without residuals.
        parameters: by key (:class:`ParameterStats`), of the last time that each was sent.
    """

    steps: int
    codec: str
    codec_seconds: dict[str, float]
    raw_bytes: int
    wire_bytes: int
    local_bytes: int
    ratio: float
    bits_per_element: float
    plain_bytes: int
    encode_seconds: float
    wait_seconds: float
    decode_seconds: float
    nonfinite_runs: int
    scratch_bytes: int
    parameters: dict[str, ParameterStats]


RunStats = dict[int, tuple[Layout, _HasRows]]  # of each bucket's last reduction, by its index


def make_stats(
    steps: int, codec: str, reducer: Reducer | DeviceReducer | None, run_stats: RunStats
) -> Stats:
    traffic = reducer.traffic() if reducer is not None else NO_TRAFFIC
    raw, wire, numel = (traffic[n] for n in ("raw_bytes", "wire_bytes", "encoded_numel"))
    plain_bits = reducer.plain.bits_per_element() if reducer is not None else math.nan
    return {
        "steps": steps,
        "codec": codec,
        "codec_seconds": dict(reducer.seconds) if reducer is not None else {},
        "raw_bytes": raw,
        "wire_bytes": wire,
        "local_bytes": reducer.local_bytes() if reducer is not None else 0,
        "ratio": raw / wire if wire else 1.0,
        "bits_per_element": 8 * traffic["encoded_bytes"] / numel if numel else plain_bits,
        "plain_bytes": reducer.plain.bytes if reducer is not None else 0,
        "encode_seconds": traffic["encode_seconds"],
        "wait_seconds": traffic["wait_seconds"],
        "decode_seconds": traffic["decode_seconds"],
        "nonfinite_runs": traffic["nonfinite_runs"],
        "scratch_bytes": reducer.scratch_bytes() if reducer is not None else 0,
        "parameters": _parameter_stats(run_stats),
    }


def _parameter_stats(run_stats: RunStats) -> dict[str, ParameterStats]:
    result: dict[str, ParameterStats] = {}
    for layout, rows in list(run_stats.values()):
        for key, (scale, shape, *_) in zip(layout.keys, rows.tolist(), strict=True):
            if key is not None:
                result[key] = {"shape": shape, "scale": scale}
    return result
