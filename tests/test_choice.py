"""codec="auto": what is measured, that all ranks agree on it, and what the plain ways do."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from log_capture import captured_log
from ranks import assert_same_on_all_ranks, run_ranks
from test_collectives import DTYPES, laplace
from torch import Tensor, nn
from torch.futures import Future

import gct
from gct import _choice, _reducer
from gct._choice import BUCKET_NUMEL, choose, extrapolate, measure
from gct._codecs import codec_at, quick_codec

WAYS = ("fp32", "bf16", "gg", "fixed")
NUMEL = 4096
CODECS = ("gg", "fixed")
# Least and most for each element that is sent. "fixed" has a bit more than was asked for, a scale
# of 16 bits for each block of 256, and up to 64 bytes of header for each segment of NUMEL / 4.
BITS = {"fp32": (32, 32), "bf16": (16, 16), "gg": (4, 4), "fixed": (5 + 1 / 16, 5 + 1 / 16 + 0.5)}


def test_the_most_exact_of_nearly_equal_ways_is_chosen() -> None:
    assert choose({"fp32": 1.0, "bf16": 1.0, "gg": 1.0}) == "fp32"
    assert choose({"fp32": 1.09, "bf16": 1.0, "gg": 1.0}) == "fp32"
    assert choose({"fp32": 2.0, "bf16": 1.09, "gg": 1.0}) == "bf16"
    assert choose({"fp32": 4.0, "bf16": 2.0, "gg": 1.0}) == "gg"
    assert choose({"fp32": 4.0, "bf16": 2.0, "gg": 1.09, "fixed": 1.0}) == "gg"
    assert choose({"fp32": 4.0, "bf16": 2.0, "gg": 1.11, "fixed": 1.0}) == "fixed"


def test_times_of_larger_buckets_are_on_the_line() -> None:
    assert extrapolate([(100, 3.0), (300, 5.0)], 1000) == pytest.approx(12.0)
    assert extrapolate([(100, 3.0), (200, 9.0), (300, 5.0)], 1000) == pytest.approx(12.0)
    assert extrapolate([(100, 9.0), (200, 4.0), (300, 5.0)], 1000) == pytest.approx(8.5)
    assert extrapolate([(100, 3.0)], 1000) == pytest.approx(30.0)
    assert extrapolate([(100, 3.0), (300, 2.0)], 1000) == 2.0, "never less than what was measured"


class Alone:
    """A channel of one rank."""

    rank = 0
    size = 1

    def largest(self, values: Sequence[float]) -> list[float]:
        return list(values)


@pytest.mark.alone
@pytest.mark.parametrize("rate", [2e5, 1e6, 1e7, 1e9])
def test_measuring_is_over_in_a_second(rate: float) -> None:
    """Four ways over a link of so many elements a second, with 2 ms of latency."""
    sizes = []

    def way(bucket: Tensor) -> Future[Tensor]:
        sizes.append(bucket.numel())
        time.sleep(2e-3 + bucket.numel() / rate)
        done: Future[Tensor] = Future()
        done.set_result(bucket)
        return done

    began = time.perf_counter()
    seconds = measure(dict.fromkeys(WAYS, way), Alone())  # type: ignore[arg-type]
    # The promise. 0.12 s each, of which a last call may take what is left twice over.
    assert time.perf_counter() - began < 1.0
    assert max(sizes) >= min(0.02 * rate, 1 << 22), "as large as there is time for"
    exact = 2e-3 + BUCKET_NUMEL / rate
    # A call that sleeps too long by a millisecond counts 100-fold where there is little time.
    assert set(seconds) == set(WAYS)
    assert all(0.8 * exact < took < 1.5 * exact + 0.1 for took in seconds.values())


# ---- on ranks


def slow_down(rank: int, ways: set[str]) -> None:
    """Rank 1 begins these ways late: the others know it from their own clocks, but not how late."""
    original = _choice.measure

    def delayed(way: _choice.Way, bucket: Tensor) -> Future[Tensor]:
        time.sleep(1e-6 * bucket.numel() * (rank == 1))  # 6.5 s for a whole one
        return way(bucket)

    def measure_late(measured: Mapping[str, _choice.Way], channel: Any) -> dict[str, float]:
        return original(
            {
                name: partial(delayed, way) if name in ways else way
                for name, way in measured.items()
            },
            channel,
        )

    _reducer.measure = measure_late


def plain_error_bound(inputs: list[Tensor], kind: str) -> Tensor:
    """Of the mean of W values: each is rounded, and so is each of W - 1 sums, to 24 or 8 bits.

    A sum is at most the sum of all magnitudes; divided by W, W roundings are one of that.
    """
    total = torch.stack(inputs).double().abs().sum(0)
    rounding = {"fp32": 2.0**-24, "bf16": 2.0**-8}[kind]
    return total * rounding * (1 + 2.0**-6)  # what has been rounded may be larger


def chosen(rank: int, world: int, wanted: str, hierarchy: Any) -> dict[str, Any]:
    slow_down(rank, set(WAYS) - {wanted})
    checksum = wanted not in CODECS  # what is sent for it while measuring doesn't count either
    state = gct.GCTState(
        bits=4.0, codec="auto", start_step=1, hierarchy=hierarchy, checksum=checksum
    )
    assert state.stats()["codec"] == "auto"
    assert math.isnan(state.stats()["bits_per_element"]), "nothing was sent"
    parameter = nn.Parameter(torch.zeros(NUMEL // 64, 64))
    inputs = [laplace(NUMEL, r) for r in range(world)]
    exact = torch.stack(inputs).double().mean(0)
    # A warning is shown where nobody has set up logging.
    with captured_log(logging.WARNING) as warnings:
        for step in range(3):
            gradient = inputs[rank].clone().view(parameter.shape)
            result = gct.hook(state, (gradient, parameter)).wait().view(-1)
            assert_same_on_all_ranks(result, world)
            error = (result.double() - exact).abs()
            kind = wanted if step >= 1 else "fp32"
            low, high = BITS[kind]
            assert low <= state.stats()["bits_per_element"] <= high
            if kind in CODECS:
                assert 1e-3 < error.norm() / exact.norm() < 0.2, "4 bits of gg, 5 of fixed"
            else:
                assert bool((error <= plain_error_bound(inputs, kind)).all())
            if kind == "bf16":
                assert not bool((error <= plain_error_bound(inputs, "fp32")).all())
    messages = [m for m in warnings if "auto" in m]
    words = {"gg": "gg at 4 bits", "fixed": "fixed at 5 bits"}.get(wanted, wanted)
    begin = f'gct: codec="auto" is {words}: '
    assert [m.startswith(begin) for m in messages if "takes" in m] == [True] * (rank == 0)
    dist.barrier()
    return dict(state.stats())


def resumed_choice(rank: int, world: int) -> None:
    """A resumed run goes on as it was saved, whatever would be measured now."""
    _reducer.measure = lambda ways, channel: {"fp32": 2.0, "bf16": 1.0, "gg": 2.0}
    parameter = nn.Parameter(torch.zeros(NUMEL, 1))
    gradient = laplace(NUMEL, rank).view(NUMEL, 1)
    first = gct.GCTState(codec="auto", start_step=0)
    gct.hook(first, (gradient.clone(), parameter)).wait()
    saved = first.state_dict()
    _reducer.measure = lambda ways, channel: {"fp32": 1.0, "bf16": 2.0, "gg": 2.0}
    second = gct.GCTState(codec="auto", start_step=0)
    second.load_state_dict(saved)
    assert second.state_dict()["choice"] == "bf16", "also before its first pass"
    gct.hook(second, (gradient.clone(), parameter)).wait()
    assert second.stats()["codec"] == "bf16"
    third = gct.GCTState(codec="auto", start_step=0)
    third.load_state_dict({**saved, "choice": "gg"} if rank == 1 else saved)
    with pytest.raises(ValueError, match="choice of a codec is 'bf16' on rank 0 and 'gg' on rank"):
        gct.hook(third, (gradient.clone(), parameter)).wait()


def test_a_resumed_run_keeps_its_choice() -> None:
    run_ranks(2, resumed_choice)


def resumed_as_fixed(rank: int, world: int) -> None:
    """The saved choice brings its codec with it, by the bits of the step, and only where it may."""
    parameter = nn.Parameter(torch.zeros(NUMEL, 1))
    gradient = laplace(NUMEL, rank).view(NUMEL, 1)
    bits = {0: 4.0, 2: 1.5}
    state = gct.GCTState(codec="auto", bits=bits, start_step=0)
    state.load_state_dict({**state.state_dict(), "choice": "fixed"})
    widths = []
    for _ in range(4):
        gct.hook(state, (gradient.clone(), parameter)).wait()
        widths.append(state.codec.bits)
    assert widths == [5, 5, 3, 3]
    assert state.stats()["codec"] == "fixed"
    _reducer.measure = lambda ways, channel: dict.fromkeys(ways, 1.0) | {"gg": 0.5}
    other = gct.GCTState(codec="auto", snr_db=12, start_step=0)
    other.load_state_dict(state.state_dict())
    with captured_log(logging.WARNING) as warnings:
        gct.hook(other, (gradient.clone(), parameter)).wait()
    assert other.stats()["codec"] == "gg"
    assert sum("was fixed in the checkpoint" in m for m in warnings) == (rank == 0)


def test_a_resumed_run_is_fixed_again() -> None:
    run_ranks(2, resumed_as_fixed)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, {"gg": 2.0, "fixed": 3}),
        ({"bits": 2.5}, {"gg": 2.5, "fixed": 4}),
        ({"bits": 7.0, "error_feedback": True}, {"gg": 7.0, "fixed": 8}),
        ({"bits": 7.5}, {"gg": 7.5}),
        ({"bits": {0: 2.0, 9: 7.5}}, {"gg": 2.0}),
        ({"snr_db": 10.0}, {"gg": None}),
        ({"step": 1.0}, {"gg": None}),
        ({"allocation": 0.5}, {"gg": 2.0}),
        ({"allocation": 0.5, "low_rank": 4}, {"gg": 2.0}),
        ({"rounding": "stochastic"}, {"gg": 2.0}),
        ({"effort": "high"}, {"gg": 2.0}),
        ({"reconstruction": "unit_gain"}, {"gg": 2.0}),
        ({"reconstruction": "centroid"}, {"gg": 2.0, "fixed": 3}),
        ({"codec": "gg"}, {"gg": 2.0}),
        ({"codec": "fixed"}, {"fixed": 2.0}),
    ],
)
def test_fixed_is_tried_where_it_can_follow_the_settings(
    settings: dict[str, Any], kinds: dict[str, float | None]
) -> None:
    state = gct.GCTState(**{"codec": "auto", **settings})
    assert {kind: codec_at(codecs, 0).bits for kind, codecs in state._by_kind.items()} == kinds


@pytest.mark.parametrize("reconstruction", ["unit_gain", "centroid"])
def test_fixed_has_about_the_error_of_gg(reconstruction: gct.codec.Reconstruction) -> None:
    """At most gg's from shape 1 on, 1.12 times as much at 0.8, 1.9 at 0.6: docs/decisions.md."""
    generator = torch.Generator().manual_seed(1)
    for shape, times in ((0.6, 1.9), (0.8, 1.12), (1.0, 1.0), (2.0, 1.0)):
        x = gct.GeneralizedGaussian(shape, 1.0).sample(1 << 18, generator)
        for bits in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0):
            codec = gct.Codec(bits=bits, reconstruction=reconstruction)
            quick = quick_codec(codec)
            assert quick is not None
            errors = [(gct.decode(gct.encode(x, c)) - x).norm() ** 2 for c in (codec, quick)]
            assert errors[1] <= times * errors[0], (shape, bits, errors)


@pytest.mark.parametrize("wanted", WAYS)
def test_all_ranks_choose_the_same(wanted: str) -> None:
    hierarchy = 2 if wanted == "gg" else "off"
    stats, *others = run_ranks(4, chosen, wanted, hierarchy)
    assert stats["codec"] == wanted
    assert set(stats["codec_seconds"]) == set(WAYS)
    for other in others:
        assert other["codec"] == wanted
        assert other["codec_seconds"] == stats["codec_seconds"], "to the last bit"
    # 2 (W - 1) / W times the bucket, in a ring; what was sent to measure does not count.
    nbytes = {"fp32": 4, "bf16": 2, "gg": 0, "fixed": 0}[wanted]
    assert stats["plain_bytes"] == (4 + 2 * nbytes) * 2 * NUMEL * 3 // 4
    assert (stats["wire_bytes"] > 0) == (wanted in CODECS)
    if wanted == "gg":
        assert stats["wire_bytes"] == 2 * (NUMEL // 2) * 4 // 8


def dtypes_in_bfloat16(rank: int, world: int) -> None:
    """float16 keeps its own digits; the others have as many as bfloat16 or more."""
    _reducer.measure = lambda ways, channel: {"fp32": 2.0, "bf16": 1.0, "gg": 2.0}
    state = gct.GCTState(codec="auto", start_step=0)
    parameters = []
    for dtype in DTYPES:
        parameters.append(nn.Parameter(torch.zeros(NUMEL, 1, dtype=dtype)))
        inputs = [laplace(NUMEL, r, dtype) for r in range(world)]
        gradient = inputs[rank].clone().view(NUMEL, 1)
        result = gct.hook(state, (gradient, parameters[-1])).wait().view(-1)
        assert result.dtype == dtype
        assert_same_on_all_ranks(result, world)
        error = (result.double() - torch.stack(inputs).double().mean(0)).abs()
        if dtype == torch.float16:
            # One rounding, of the mean to 11 bits.
            assert bool((error <= 2.0**-11 * result.double().abs() * 1.01).all())
        else:
            # bfloat16 gradients are divided in bfloat16, too: that rounds the mean once more.
            assert bool((error <= 1.5 * plain_error_bound(inputs, "bf16")).all())


def test_plain_bfloat16_of_all_dtypes() -> None:
    run_ranks(3, dtypes_in_bfloat16)


def alone(rank: int, world: int) -> str:
    state = gct.GCTState(codec="auto", start_step=1)
    parameter = nn.Parameter(torch.zeros(64, 64))
    for _ in range(2):
        gct.hook(state, (torch.ones(64, 64), parameter))
        assert not state.stats()["codec_seconds"]
        assert math.isnan(state.stats()["bits_per_element"]), "nothing was sent"
    return state.stats()["codec"]


def test_one_rank_has_nothing_to_measure() -> None:
    assert run_ranks(1, alone) == ["gg"]
