"""Low-rank parts through the Python interface: what they save, what they must not cost.

That the bytes mean what docs/wire-format.md says is in test_wire_format.py and test_malformed.py,
and kernels and factors have tests of their own in tests/cpp/test_low_rank.cpp.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable

import numpy as np
import pytest
import test_collectives
import torch
import wire_decoder as wd
from ranks import assert_same_on_all_ranks, run_ranks
from torch import Tensor

import gct
from gct import _C

HEADER_BYTES = 40 + 24  # segment and one run
# Of a low-rank part: its entry, run headers, segment header, piece table and lane states of the
# factors, whose states hold the first symbols, and half as much again.
PART_BYTES = 600


pytestmark = pytest.mark.usefixtures("one_thread")


def low_rank_matrix(rows: int, columns: int, rank: int, noise_db: float, seed: int = 1) -> Tensor:
    """A product of narrow matrices, and noise that far below it; elements of variance 1."""
    rng = np.random.default_rng([seed, rows, columns])
    product = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    noise = 10 ** (-noise_db / 20) * rng.standard_normal((rows, columns))
    return torch.from_numpy((product / math.sqrt(rank) + noise).astype(np.float32))


def embedding_like(rows: int, columns: int) -> Tensor:
    """Of four rows in five nothing; the others a product whose directions fade, and noise."""
    rng = np.random.default_rng([2, rows, columns])
    directions = rng.standard_normal((rows, 40)) / np.arange(1, 41)
    x = directions @ rng.standard_normal((40, columns)) + rng.laplace(size=(rows, columns)) / 10
    x[rng.random(rows) < 0.8] = 0
    return torch.from_numpy(x.astype(np.float32))


def noise(rows: int, columns: int) -> Tensor:
    rng = np.random.default_rng([3, rows, columns])
    return torch.from_numpy(rng.laplace(size=(rows, columns)).astype(np.float32))


def parts(wire: Tensor) -> list[wd.LowRankPart]:
    data = wire.numpy().tobytes()
    segment, runs = wd.read_headers(data)
    rest = data[wd.SEGMENT_HEADER.size + wd.RUN_HEADER.size * len(runs) :]
    _, profiles = wd.read_profiles(runs, rest)
    return wd.read_low_rank(segment, runs, rest[profiles:]).parts


def snr_db(x: Tensor, y: Tensor) -> float:
    signal = x.double().flatten()
    error = signal - y.double().flatten()
    return 10 * math.log10(float(signal.square().sum() / error.square().sum()))


def mse(kind: gct.codec.Kind = "gg", **settings: object) -> gct.Codec:
    return gct.Codec(kind, allocation="mse", **settings)  # type: ignore[arg-type]


# ---- what they save


@pytest.mark.parametrize("target", [10.0, 20.0, 30.0])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(256, 256, 4), (900, 100, 2), (64, 700, 3)])
def test_bits_fall_to_those_of_the_factors(
    rows: int, columns: int, rank: int, target: float
) -> None:
    """With noise 15 dB under the error that is allowed, factors are all that there is to send.

    They have (m + n) r coefficients; an error of d in each of these is an error of (m + n) r d in
    the matrix, whose energy is m n. With s = 10^(target / 10), d is m n / ((m + n) r s). Those of
    the left factor, in the coordinates of right vectors of length 1, have the variance n / r, so
    they take 0.5 log2(n / (r d)) = 0.5 log2((m + n) s / m) bits at least (Shannon's limit for
    normal values), and the right ones 0.5 log2((m + n) s / n). A uniform quantizer takes 0.25 bits
    more (Gish and Pierce 1968). Another 0.75 bits, 4.5 dB, are for one step and one shape for all
    of a factor, and for the blocks of zeros in the place of the residual.
    """
    x = low_rank_matrix(rows, columns, rank, noise_db=target + 15)
    with_parts, without = (
        gct.encode(x, mse(snr_db=target, low_rank=low_rank)) for low_rank in ("auto", 0)
    )
    for wire in (with_parts, without):
        assert abs(snr_db(x, gct.decode(wire)) - target) < 0.3
    assert [part.rank for part in parts(with_parts)] == [rank]
    s = 10 ** (target / 10)
    left = rows * rank * (0.5 * math.log2((rows + columns) * s / rows) + 1)
    right = columns * rank * (0.5 * math.log2((rows + columns) * s / columns) + 1)
    most = (left + right) / 8 + PART_BYTES
    assert with_parts.numel() < most < 0.5 * without.numel()


@pytest.mark.parametrize("kind", ["gg", "eg"])
def test_error_falls_at_equal_bytes(kind: gct.codec.Kind) -> None:
    """Without parts 6 dB a bit, 12 dB, is about what values close to normal allow. Of the 131,072
    bits the factors' 2048 coefficients need 8 each to come 40 dB near, where the noise begins."""
    x = low_rank_matrix(256, 256, 4, noise_db=40)
    without = gct.encode(x, mse(kind, bits=2, low_rank=0))
    with_parts = gct.encode(x, mse(kind, bits=2))
    assert with_parts.numel() <= 2 * x.numel() / 8
    assert snr_db(x, gct.decode(without)) < 13
    assert snr_db(x, gct.decode(with_parts)) > 38


# ---- what they must not cost

SHAPES = [(64, 64), (512, 8), (8, 512), (100, 257), (300, 300), (1000, 1000)]
MATRICES: dict[str, Callable[[int, int], Tensor]] = {
    "low rank": lambda rows, columns: low_rank_matrix(rows, columns, 3, noise_db=20),
    "embedding": embedding_like,
    "noise": noise,
}


# A few rows of an embedding in use are too few values for any target.
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in MATRICES
        for shape in SHAPES
        if name != "embedding" or 8 not in shape
    ],
)
def test_targets_are_met(name: str, shape: tuple[int, int]) -> None:
    """As without: 3 % under the target at most, of tensors too large for headers to matter."""
    x = MATRICES[name](*shape)
    for bits in (2.0, 4.0):
        achieved = 8 * gct.encode(x, mse(bits=bits)).numel() / x.numel()
        assert 0.97 * bits <= achieved <= bits
    for target in (8.0, 20.0):
        assert abs(snr_db(x, gct.decode(gct.encode(x, mse(snr_db=target)))) - target) < 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_step_is_the_one_asked_for(shape: tuple[int, int]) -> None:
    """Every error is under a step, as in test_codec.py: residuals have no other quantizer."""
    x = low_rank_matrix(*shape, rank=2, noise_db=20)
    for step in (0.5, 0.02):
        wire = gct.encode(x, mse(step=step))
        [run] = wd.read_headers(wire.numpy().tobytes())[1]
        assert run.step == np.float32(step)
        error = gct.decode(wire) - x.flatten()
        assert float(error.abs().max()) <= step * (1 + 1e-5) + 1e-6 * float(x.abs().max())
    assert parts(wire)


@pytest.mark.parametrize("name", MATRICES)
def test_never_larger_than_raw(name: str) -> None:
    for shape in (*SHAPES[:4], (2, 3), (1, 5000), (5000, 1), (70, 60)):
        for dtype in (torch.float32, torch.bfloat16):
            x = MATRICES[name](*shape).to(dtype)
            raw = x.numel() * x.element_size()
            for codec in (mse(bits=12), mse(snr_db=120), mse(step=1e-12), mse("eg", snr_db=120)):
                assert gct.encode(x, codec).numel() <= raw + HEADER_BYTES


# ---- all dtypes and implementations


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_coded_like_their_float32(dtype: torch.dtype) -> None:
    x = low_rank_matrix(90, 100, 3, noise_db=20).to(dtype)
    same = gct.encode(x.float(), mse(bits=3))
    wire = gct.encode(x, mse(bits=3))
    assert torch.equal(gct.decode(wire), gct.decode(same))
    assert [part.rank for part in parts(wire)] == [part.rank for part in parts(same)] != []


@pytest.mark.parametrize("kind", ["gg", "eg"])
def test_implementations_give_the_same_bytes(implementation: str, kind: gct.codec.Kind) -> None:
    """Against those of the last in the list, the reference."""
    for x in (low_rank_matrix(301, 203, 5, noise_db=10), embedding_like(170, 130)):
        for codec in (mse(kind, bits=3), gct.Codec(kind, snr_db=20, allocation=0.5)):
            wire = gct.encode(x, codec)
            assert parts(wire)
            values = gct.decode(wire)
            try:
                assert _C.set_implementation(_C.implementations()[-1])
                assert torch.equal(gct.encode(x, codec), wire)
                assert torch.equal(gct.decode(wire), values)
            finally:
                _C.set_implementation(implementation)


# ---- values


@pytest.mark.parametrize("kind", ["gg", "eg"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_stays_nonfinite(kind: gct.codec.Kind, bad: float) -> None:
    x = low_rank_matrix(80, 90, 2, noise_db=20)
    x[33, 44] = bad
    assert not torch.isfinite(gct.decode(gct.encode(x, mse(kind, bits=4)))).any()


@pytest.mark.parametrize("kind", ["gg", "eg"])
def test_zeros_are_exact(kind: gct.codec.Kind) -> None:
    wire = gct.encode(torch.zeros(80, 90), mse(kind, bits=4))
    assert torch.equal(gct.decode(wire), torch.zeros(7200))
    assert wire.numel() == HEADER_BYTES


@pytest.mark.parametrize("kind", ["gg", "eg"])
def test_one_spike(kind: gct.codec.Kind) -> None:
    """Alone it is a matrix of rank 1; in noise a quantizer's step is all that it may err by."""
    alone = torch.zeros(80, 90)
    alone[12, 34] = 1e6
    y = gct.decode(gct.encode(alone, mse(kind, snr_db=40)))
    assert snr_db(alone, y) > 39.7
    x = noise(80, 90)
    x[12, 34] = 1e6
    error = gct.decode(gct.encode(x, mse(kind, step=0.1))) - x.flatten()
    assert float(error.abs().max()) <= 0.1 * (1 + 1e-5) + 1e-6 * 1e6


@pytest.mark.parametrize("kind", ["gg", "eg"])
@pytest.mark.parametrize("octaves", [-95, -50, 50, 100, 120])
def test_any_scale(kind: gct.codec.Kind, octaves: int) -> None:
    """Powers of two change the size by little and the error by less: products of the smallest
    numbers lose digits, and for the largest ones there may be no part."""
    x = low_rank_matrix(80, 90, 2, noise_db=20)
    y = gct.decode(gct.encode(torch.ldexp(x, torch.tensor(octaves)), mse(kind, snr_db=15)))
    assert torch.isfinite(y).all()
    assert abs(snr_db(x, torch.ldexp(y, torch.tensor(-octaves))) - 15) < 0.3


@pytest.mark.parametrize("kind", ["gg", "eg"])
@pytest.mark.parametrize("scale", [1e-45, 1e-41, 1e-37, 1e37])
def test_both_ends_of_float32(kind: gct.codec.Kind, scale: float) -> None:
    """Blocks under 2^-100 decode to zeros, and near the largest numbers nothing becomes infinite
    that wasn't: the result is no farther from the input than zeros are."""
    x = low_rank_matrix(80, 90, 2, noise_db=20).clamp(-4, 4) * scale
    y = gct.decode(gct.encode(x, mse(kind, bits=4)))
    assert torch.isfinite(y).all()
    error = (x.double().flatten() - y.double()).square().sum()
    assert float(error) <= (1 if scale < 1 else 0.01) * float(x.double().square().sum())


# ---- settings


@pytest.mark.parametrize("low_rank", [-1, 17, 1 << 40])
def test_ranks_out_of_range_are_refused(low_rank: int) -> None:
    with pytest.raises(ValueError, match=f"low_rank must be from 0 to 16, got {low_rank}"):
        mse(bits=2, low_rank=low_rank)


@pytest.mark.parametrize("low_rank", ["best", 1.0, True, None])
def test_ranks_are_whole_numbers(low_rank: object) -> None:
    with pytest.raises(TypeError, match='low_rank must be a whole number or "auto"'):
        mse(bits=2, low_rank=low_rank)


@pytest.mark.parametrize(
    ("kind", "allocation"), [("gg", "auto"), ("eg", 1.0), ("fixed", "mse"), ("raw", "mse")]
)
def test_low_rank_needs_an_allocation_below_1(
    kind: gct.codec.Kind, allocation: str | float
) -> None:
    with pytest.raises(ValueError, match="low_rank needs kind"):
        gct.Codec(kind, allocation=allocation, low_rank=4)
    for low_rank in ("auto", 0):  # without low-rank parts then
        codec = gct.Codec(kind, allocation=allocation, low_rank=low_rank)  # type: ignore[arg-type]
        assert not parts(gct.encode(low_rank_matrix(80, 90, 2, noise_db=20), codec))


def test_rank_is_limited() -> None:
    x = low_rank_matrix(200, 200, 5, noise_db=20)
    for low_rank in (1, 3, 5):
        assert [part.rank for part in parts(gct.encode(x, mse(low_rank=low_rank)))] == [low_rank]
    assert not parts(gct.encode(x, mse(low_rank=0)))
    assert not parts(gct.encode(x.flatten(), mse()))  # no rows


# ---- collectives

ALGORITHMS = ("one_shot", "two_shot")


def errors_of_mean(
    rank: int, world: int, shape: tuple[int, int]
) -> dict[tuple[str, int], tuple[float, str]]:
    """Squared error of the mean of low-rank matrices, over its own square, and its bits' hash."""
    inputs = [low_rank_matrix(*shape, rank=2, noise_db=20, seed=r) for r in range(world)]
    exact = torch.stack(inputs).double().mean(0)
    results = {}
    for algorithm in ALGORITHMS:
        for low_rank in (16, 0):
            codec = mse(snr_db=15, low_rank=low_rank)
            mean = gct.all_reduce(inputs[rank].clone(), codec, algorithm=algorithm)
            assert_same_on_all_ranks(mean, world)
            error = float((mean - exact).square().sum() / exact.square().sum())
            digest = hashlib.sha256(mean.numpy().tobytes()).hexdigest()
            results[algorithm, low_rank] = error, digest
    return results


@pytest.mark.parametrize(("world", "shape"), [(2, (150, 333)), (3, (1100, 501))])
def test_all_reduce_of_matrices_cut_anywhere(world: int, shape: tuple[int, int]) -> None:
    """Slices and chunks end in the middle of rows; the second shape has two slices.

    As in test_collectives.py: each signal loses a share q, so with one shot the mean errs by q, and
    with two by q (1 - 1 / W) before it is quantized itself. That costs q again, for snr_db holds in
    each segment, but a product of the mean's rank also takes noise away. snr_db holds within 0.3
    dB, 7 %.
    """
    q = 10**-1.5
    [results, *_] = run_ranks(world, errors_of_mean, shape)
    for (algorithm, _), (error, _) in results.items():
        most = q if algorithm == "one_shot" else q * (2 - 1 / world)
        least = q if algorithm == "one_shot" else q * (1 - 1 / world)
        assert 0.93 * least < error < 1.07 * most


ROW = 256  # a block: chunks end where rows end, so that gct.encode can be given them as matrices


def recode_rows(values: Tensor, codec: gct.Codec) -> Tensor:
    return gct.decode(gct.encode(values.view(-1, ROW), codec))


def as_in_the_model(rank: int, world: int) -> None:
    test_collectives.recode = recode_rows  # of this process
    inputs = [low_rank_matrix(300, ROW, rank=2, noise_db=20, seed=r) for r in range(world)]
    for codec in (mse(bits=1.0), mse("eg", snr_db=20)):
        for algorithm, model in test_collectives.MODELS.items():
            mean = gct.all_reduce(inputs[rank].clone(), codec, algorithm=algorithm)
            expected = model([x.flatten() for x in inputs], codec, float(world))
            assert torch.equal(mean.flatten(), expected), f"{codec} {algorithm}"


@pytest.mark.parametrize("world", [2, 3])
def test_all_reduce_gives_what_the_model_gives(world: int) -> None:
    run_ranks(world, as_in_the_model)


def with_threads(rank: int, world: int, threads: int) -> dict[tuple[str, int], tuple[float, str]]:
    os.environ["GCT_NUM_THREADS"] = str(threads)
    return errors_of_mean(rank, world, (700, 333))


def test_threads_give_the_same_bits() -> None:
    [one, _], [three, _] = (run_ranks(2, with_threads, threads) for threads in (1, 3))
    assert one == three
