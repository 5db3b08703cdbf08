"""docs/wire-format.md is complete: its Python decoder and the library read the same values.

Values are compared bit by bit; NaNs by their places, since the page leaves their bits open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
import wire_builder
import wire_decoder as wd

import gct
from gct import _C

Random = np.random.Generator
Input = Callable[[int, Random], npt.NDArray[np.float32]]

NUMEL = 700  # two blocks and a tail
LENGTHS = [0, 1, 7, 255, 256, 257, 1000]
LONG = 70001  # two pieces
BUILT_SEGMENTS = 60  # random ones, per kind


def gg_samples(shape: float) -> Input:
    """Generalized Gaussian noise: the sign of a coin, a power of a gamma variable."""

    def draw(n: int, rng: Random) -> npt.NDArray[np.float32]:
        magnitude = rng.gamma(1 / shape, size=n) ** (1 / shape)
        return (rng.choice([-1.0, 1.0], n) * magnitude).astype(np.float32)

    return draw


def spiky(n: int, rng: Random) -> npt.NDArray[np.float32]:
    """One value that its block, with the step of all others, can only code with low bits aside."""
    x = rng.standard_normal(n).astype(np.float32)
    x[n // 2 : n // 2 + 1] = 1e7
    return x


def mixed_scales(n: int, rng: Random) -> npt.NDArray[np.float32]:
    """Block scales over more than 1e12."""
    scales = 10.0 ** rng.uniform(-7, 7, n // wd.BLOCK + 1)
    return (rng.laplace(size=n) * np.repeat(scales, wd.BLOCK)[:n]).astype(np.float32)


def mostly_zeros(n: int, rng: Random) -> npt.NDArray[np.float32]:
    return (rng.laplace(size=n) * (rng.random(n) > 0.77)).astype(np.float32)


def sparse(n: int, rng: Random) -> npt.NDArray[np.float32]:
    """Single values far above the mean of their block, which no shape in the tables foresees."""
    x = np.zeros(n, np.float32)
    x[::97] = rng.standard_normal(x[::97].size)
    return x


def one_nan(n: int, rng: Random) -> npt.NDArray[np.float32]:
    x = rng.standard_normal(n).astype(np.float32)
    x[:1] = np.nan
    return x


INPUTS: dict[str, Input] = {
    **{f"gg {shape}": gg_samples(shape) for shape in (0.4, 0.7, 1.0, 2.0, 3.0)},
    "zeros": lambda n, _: np.zeros(n, np.float32),
    "mostly zeros": mostly_zeros,
    "sparse": sparse,
    "constant": lambda n, _: np.full(n, -3.25, np.float32),
    "one spike": spiky,
    "denormals": lambda n, rng: (rng.standard_normal(n) * 1e-41).astype(np.float32),
    "nearly denormal": lambda n, rng: (rng.standard_normal(n) * 1e-29).astype(np.float32),
    "nearly infinite": lambda n, rng: (rng.standard_normal(n) * 1e37).astype(np.float32),
    "mixed scales": mixed_scales,
    "one NaN": one_nan,
    "infinity": lambda n, _: np.full(n, np.inf, np.float32),
}

CODECS: list[gct.Codec] = [
    *(
        gct.Codec(kind, bits=bits, allocation=allocation, rounding=rounding)
        for kind, rates in (("gg", (0.5, 2, 8)), ("eg", (1.5, 2, 8)))
        for bits in rates
        for allocation in (0, 0.5, 1)
        for rounding in ("deterministic", "stochastic")
    ),
    *(gct.Codec("gg", bits=bits) for bits in (1, 3, 5, 6)),
    *(
        gct.Codec(bits=bits, allocation=allocation, effort="high")
        for bits in (0.5, 2, 8)
        for allocation in (0, 0.5, 1)
    ),
    *(
        gct.Codec(kind, bits=bits, allocation=allocation, reconstruction="unit_gain")
        for kind, rates in (("gg", (0.5, 2, 8)), ("eg", (1.5, 8)))
        for bits in rates
        for allocation in (0, 0.5, 1)
    ),
    *(gct.Codec("fixed", bits=bits) for bits in range(1, 9)),
    gct.Codec("raw"),
]


def codec_name(codec: gct.Codec) -> str:
    form = "unit_gain" if codec.reconstruction == "unit_gain" else codec.effort
    return f"{codec.kind}-{codec.bits}-{codec.allocation}-{codec.rounding}-{form}"


pytestmark = pytest.mark.usefixtures("implementation")


def assert_same_floats(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
    assert ours.shape == theirs.shape
    same = ours.view(np.uint32) == theirs.view(np.uint32)
    wrong = np.flatnonzero(~(same | (np.isnan(ours) & np.isnan(theirs))))
    assert wrong.size == 0, (
        f"{wrong.size} of {ours.size} values differ, first at {wrong[0]}: "
        f"the library has {ours[wrong[0]]!r}, the page says {theirs[wrong[0]]!r}"
    )


def decode_both(wire: torch.Tensor) -> wd.Decoded:
    decoded = wd.decode(wire.numpy().tobytes())
    assert_same_floats(gct.decode(wire).numpy(), decoded.values)
    return decoded


def encode(x: npt.NDArray[np.float32], codec: gct.Codec) -> torch.Tensor:
    return gct.encode(torch.from_numpy(x), codec)


def as_tensor(wire: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(wire), dtype=torch.uint8)


@pytest.mark.parametrize("codec", CODECS, ids=codec_name)
def test_any_values(codec: gct.Codec) -> None:
    rng = np.random.default_rng(0)
    for make in INPUTS.values():
        wire = encode(make(NUMEL, rng), codec)
        assert decode_both(wire).segment.size == wire.numel()


@pytest.mark.parametrize(
    ("kind", "effort"),
    [("gg", "normal"), ("gg", "high"), ("eg", "normal"), ("fixed", "normal"), ("raw", "normal")],
)
def test_any_length(kind: gct.codec.Kind, effort: gct.codec.Effort) -> None:
    codec = gct.Codec("raw") if kind == "raw" else gct.Codec(kind, bits=4, effort=effort)
    rng = np.random.default_rng(1)
    for numel in [*LENGTHS, LONG]:
        decoded = decode_both(encode(gg_samples(1.0)(numel, rng), codec))
        assert decoded.values.size == numel
    assert decoded.segment.num_pieces == (2 if kind in ("gg", "eg") else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_raw_values_arrive_as_they_were(dtype: torch.dtype) -> None:
    x = torch.randn(300, generator=torch.Generator().manual_seed(2)).to(dtype)
    x[0], x[1], x[2] = float("inf"), 1e-7, -0.0
    decoded = decode_both(gct.encode(x, gct.Codec("raw")))
    assert_same_floats(decoded.values, x.float().numpy())


def scaled_matrix(columns: int, rows: int, rng: Random) -> npt.NDArray[np.float32]:
    """Each row and each column with a scale of its own, over six octaves."""
    scales = 2.0 ** rng.uniform(-6, 0, (rows, 1)) * 2.0 ** rng.uniform(-6, 0, columns)
    return (rng.standard_normal((rows, columns)) * scales).astype(np.float32)


@pytest.mark.parametrize("columns", [2, 20, 256, 300])
@pytest.mark.parametrize("kind", ["gg", "eg"])
@pytest.mark.parametrize("rounding", ["deterministic", "stochastic"])
def test_column_profiles(rounding: gct.codec.Rounding, kind: gct.codec.Kind, columns: int) -> None:
    x = scaled_matrix(columns, 80, np.random.default_rng(8))
    x[:, 0] *= 100
    counts: Counter[str] = Counter()
    for allocation in (0, 0.5):
        for bits in (2, 4, 8):
            codec = gct.Codec(kind, bits=bits, allocation=allocation, rounding=rounding)
            decoded = decode_both(encode(x, codec))
            counts += decoded.counts
            assert [run.columns for run in decoded.runs] in ([columns], [0])
    assert counts["blocks with offsets"] > 0 or columns == 2


def test_columns_of_any_shape() -> None:
    """The first dimension counts the rows; relative allocation has no profiles."""
    x = scaled_matrix(24, 100, np.random.default_rng(9))
    mse = gct.Codec(bits=4, allocation="mse")
    for shape, columns in [((100, 24), 24), ((100, 2, 3, 4), 24), ((2400,), 0)]:
        decoded = decode_both(encode(x.reshape(shape), mse))
        assert [run.columns for run in decoded.runs] == [columns]
    for codec in (gct.Codec(bits=4), gct.Codec("fixed", bits=4), gct.Codec("raw")):
        assert [run.columns for run in decode_both(encode(x, codec)).runs] == [0]
    for shape in ((0, 5), (5, 0)):
        assert decode_both(encode(np.zeros(shape, np.float32), mse)).values.size == 0


def low_rank_matrix(rows: int, columns: int, rank: int, rng: Random) -> npt.NDArray[np.float32]:
    """A product of narrow matrices, and noise of a hundredth of its size."""
    product = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    noise = np.sqrt(rank) / 100 * rng.standard_normal((rows, columns))
    return (product + noise).astype(np.float32)


@pytest.mark.parametrize("columns", [20, 60, 257])
@pytest.mark.parametrize("kind", ["gg", "eg"])
@pytest.mark.parametrize("rounding", ["deterministic", "stochastic"])
def test_low_rank_parts(rounding: gct.codec.Rounding, kind: gct.codec.Kind, columns: int) -> None:
    x = low_rank_matrix(1 + 5000 // columns, columns, 2, np.random.default_rng(11))
    for allocation in (0, 0.5):
        for bits in (3, 6):
            codec = gct.Codec(kind, bits=bits, allocation=allocation, rounding=rounding)
            [part] = decode_both(encode(x, codec)).parts
            assert (part.run, part.columns, part.first) == (0, columns, 0)
            assert part.rank >= 2


def test_low_rank_part_beside_a_column_profile() -> None:
    rng = np.random.default_rng(12)
    x = 0.3 * low_rank_matrix(80, 80, 2, rng) + scaled_matrix(80, 80, rng)
    decoded = decode_both(encode(x.astype(np.float32), gct.Codec(snr_db=20, allocation="mse")))
    assert [run.columns for run in decoded.runs] == [80]
    assert decoded.parts[0].rank >= 2


def test_the_order_of_a_product_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed from the other end it has other bits, and the comparison sees them."""
    wire = encode(low_rank_matrix(70, 70, 3, np.random.default_rng(13)), gct.Codec(allocation=0))
    assert decode_both(wire).parts[0].rank >= 3
    forwards = wd.LowRankPart.product

    def backwards(part: wd.LowRankPart, factors: wd.Floats, numel: int) -> wd.Floats:
        at = part.columns * part.rank
        right = factors[:at].reshape(-1, part.rank)[:, ::-1]
        left = factors[at:].reshape(-1, part.rank)[:, ::-1]
        turned = part._replace(gains=part.gains[::-1])
        return forwards(turned, np.concatenate([right.ravel(), left.ravel()]), numel)

    monkeypatch.setattr(wd.LowRankPart, "product", backwards)
    with pytest.raises(AssertionError, match="values differ"):
        decode_both(wire)


# A special path and what takes it: an input and a codec.
SPECIAL_PATHS: dict[str, tuple[str, gct.Codec]] = {
    "escapes": ("sparse", gct.Codec("gg", bits=1)),
    "class escapes": ("mixed scales", gct.Codec("gg", bits=3)),
    "zero blocks": ("mixed scales", gct.Codec("gg", bits=2, allocation=0)),
    "blocks with shift": ("one spike", gct.Codec("gg", bits=3, allocation=0)),
    "blocks at kTableMin": ("one spike", gct.Codec("gg", step=20.0)),
    "trellis blocks": ("gg 1.0", gct.Codec("gg", bits=2, effort="high")),
    "escapes of the trellis": ("sparse", gct.Codec("gg", bits=1, effort="high")),
    "zero blocks of the trellis": ("mixed scales", gct.Codec(allocation=0, effort="high")),
    "blocks with shift of the trellis": (
        "one spike",
        gct.Codec(bits=3, allocation=0, effort="high"),
    ),
    "escapes with unit gain": (
        "sparse",
        gct.Codec("gg", bits=1, reconstruction="unit_gain"),
    ),
    "blocks with shift with unit gain": (
        "one spike",
        gct.Codec("gg", bits=3, allocation=0, reconstruction="unit_gain"),
    ),
    "zero blocks of eg": ("mixed scales", gct.Codec("eg", bits=2, allocation=0)),
    "blocks with shift of eg": ("one spike", gct.Codec("eg", bits=3, allocation=0)),
}


@pytest.mark.parametrize("path", SPECIAL_PATHS)
def test_special_paths_are_taken(path: str) -> None:
    name, codec = SPECIAL_PATHS[path]
    decoded = decode_both(encode(INPUTS[name](5000, np.random.default_rng(3)), codec))
    for form in (" of eg", " of the trellis", " with unit gain"):
        path = path.removesuffix(form)
    assert decoded.counts[path] > 0


@pytest.mark.parametrize(
    ("name", "mode"),
    [("zeros", wd.ZERO_RUN), ("one NaN", wd.NONFINITE_RUN), ("gg 1.0", wd.CODED_RUN)],
)
def test_run_modes_are_used(name: str, mode: int) -> None:
    decoded = decode_both(encode(INPUTS[name](NUMEL, np.random.default_rng(4)), gct.Codec()))
    assert [run.mode for run in decoded.runs] == [mode]


def part_values(decoded: wd.Decoded) -> Iterator[tuple[int, wd.Floats]]:
    """Modes and values of the runs with low-rank parts."""
    ends = np.cumsum([run.numel for run in decoded.runs])
    for part in decoded.parts:
        run = decoded.runs[part.run]
        yield run.mode, decoded.values[ends[part.run] - run.numel : ends[part.run]]


FORMS = {
    wd.RAW: (0, 0, 0),
    wd.GG: (0, wd.TRELLIS, wd.UNIT_GAIN),
    wd.EG: (0, 0, wd.UNIT_GAIN),
    wd.FIXED: (0, 0, 0),
}


@pytest.mark.parametrize("kind", [wd.RAW, wd.GG, wd.EG, wd.FIXED])
def test_segments_that_no_encoder_wrote(kind: int) -> None:
    """Many runs and modes together, small pieces, any class model, the longest escapes, products
    of any factors."""
    counts: Counter[str] = Counter()
    for seed in range(BUILT_SEGMENTS):
        profiles, low_rank = seed % 2 == 1, seed % 4 > 1
        wire = wire_builder.random_segment(
            kind,
            seed,
            profiles=profiles,
            low_rank=low_rank,
            form=FORMS[kind][seed % 12 // 4],
        )
        decoded = decode_both(as_tensor(wire))
        counts += decoded.counts
        counts["pieces"] += decoded.segment.num_pieces > 1
        counts["stochastic"] += decoded.segment.stochastic
        counts["unit gain"] += decoded.segment.levels == "unit gain"
        counts["modes"] += len({run.mode for run in decoded.runs}) > 2
        for mode, values in part_values(decoded):
            counts[f"products in runs of mode {mode}"] += bool(np.any(values[np.isfinite(values)]))
            counts["products with NaN"] += bool(np.isnan(values).any())
    expected = {"modes", "stochastic"}
    if kind in (wd.GG, wd.EG):
        expected |= {"pieces", "zero blocks", "blocks with shift", "blocks with offsets"}
        expected |= {f"products in runs of mode {mode}" for mode in (wd.ZERO_RUN, wd.CODED_RUN)}
        expected |= {"products with NaN", "unit gain"}
    if kind == wd.GG:
        expected |= {"escapes", "class escapes", "blocks at kTableMin", "trellis blocks"}
    assert expected <= set(counts)


def test_padding_is_ignored() -> None:
    wire = encode(gg_samples(1.0)(300, np.random.default_rng(5)), gct.Codec())
    padded = torch.cat([wire, torch.full((17,), 255, dtype=torch.uint8)])
    assert_same_floats(decode_both(padded).values, gct.decode(wire).numpy())


@pytest.mark.parametrize(
    ("numbers", "reconstruction"), [("kCentroidOffsets", "centroid"), ("kGains", "unit_gain")]
)
def test_decoders_differ_where_tables_differ(
    numbers: str, reconstruction: gct.codec.Reconstruction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this file compares isn't the library with itself."""
    codec = gct.Codec(reconstruction=reconstruction)
    wire = encode(gg_samples(1.0)(300, np.random.default_rng(6)), codec)
    monkeypatch.setitem(wd.TABLES, numbers, [number + 1 for number in wd.TABLES[numbers]])
    wd.quantizer_table.cache_clear()
    wd.block_rule.cache_clear()
    with pytest.raises(AssertionError, match="values differ"):
        decode_both(wire)
    wd.quantizer_table.cache_clear()
    wd.block_rule.cache_clear()


@pytest.mark.parametrize("bits", [1.5, 2, 3])
def test_size_is_near_the_ideal_code_length(bits: float) -> None:
    """Overhead over -log2 of the probabilities, for 100 000 elements in two pieces:

    - 40 + 24 + 2 * 8 bytes of headers, 2 * 32 states of 4 bytes, 2 bytes of padding: at most 338
      bytes, 1.8 % of 150 000 bits;
    - rANS rounds a symbol's length by up to log2(1 + 4096 / x), up or down. States x are spread
      evenly on a log scale from 2^15 to 2^31, so that the mean of this is under log2(e) / 8 / (16
      ln 2) = 1.6 % of a bit: at most 1.1 % of 1.5 bits, if all were rounded up.
    """
    wire = encode(gg_samples(0.9)(100_000, np.random.default_rng(7)), gct.Codec(bits=bits))
    ideal_bits = decode_both(wire).ideal_bits
    assert ideal_bits <= 8 * wire.numel() <= 1.03 * ideal_bits


def test_size_is_near_the_ideal_code_length_with_a_profile() -> None:
    """The same limits; the profile is in both numbers."""
    x = scaled_matrix(256, 256, np.random.default_rng(10))
    wire = encode(x, gct.Codec(bits=2, allocation="mse"))
    decoded = decode_both(wire)
    assert [run.columns for run in decoded.runs] == [256]
    assert decoded.ideal_bits <= 8 * wire.numel() <= 1.03 * decoded.ideal_bits


def test_ranks_compare_the_tables_of_both_versions() -> None:
    """Tables of one version alone may differ between two builds."""
    for table_id in (wd.TABLES["kTableId"], wd.TABLES["kTrellisTableId"]):
        assert f"{table_id:08x}" in _C.wire_format()
