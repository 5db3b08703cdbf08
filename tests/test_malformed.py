"""Bytes that no encoder wrote: an error that says why, or values; never a crash.

The Python decoder, which states every rule of docs/wire-format.md, is asked about each of them too:
both must refuse or both must read the same values. `make sanitize` runs this file with a library
that ends the process at the first access out of bounds.
"""

from __future__ import annotations

import functools
import struct

import numpy as np
import numpy.typing as npt
import pytest
import torch
import wire_builder
import wire_decoder as wd

import gct
from gct import _C

PROFILED = ("profiled gg", "profiled eg")
TRELLIS = ("trellis gg",)
UNIT_GAIN = ("unit-gain gg", "unit-gain eg")
LOW_RANK = ("low-rank gg", "low-rank eg")
KINDS = {"raw": wd.RAW, "gg": wd.GG, "eg": wd.EG, "fixed": wd.FIXED}
NUMEL = 300  # a block and a tail
HEADERS = wd.SEGMENT_HEADER.size + wd.RUN_HEADER.size
PAYLOAD_FLIPS = 300  # per kind, of single bits
SCRAMBLES = 150  # per kind, of each sort
HUGE = 1 << 47
# A wrong size would not be seen by "it raised something": each message is one of these.
REFUSAL = "not a gct segment|wire version|code tables|header|ends before|does not decode"


pytestmark = pytest.mark.usefixtures("implementation")


@functools.cache
def sound_segment(kind: str) -> bytes:
    """As the encoder writes it: escapes, class escapes and low bits are in that of kind gg."""
    if kind in PROFILED:
        return profiled_segment(kind.removeprefix("profiled "))
    if kind in LOW_RANK:
        return low_rank_segment(kind.removeprefix("low-rank "))
    if kind in TRELLIS:
        return trellis_segment()
    if kind in UNIT_GAIN:
        return unit_gain_segment(kind.removeprefix("unit-gain "))
    x = np.random.default_rng(0).laplace(size=NUMEL).astype(np.float32)
    x[7] = 1e6
    codec = gct.Codec(kind, bits=4, allocation=0) if kind != "raw" else gct.Codec("raw")
    return gct.encode(torch.from_numpy(x), codec).numpy().tobytes()


def unit_gain_segment(kind: str) -> bytes:
    """With blocks with and without low bits aside."""
    x = np.random.default_rng(0).laplace(size=3 * wd.BLOCK + 40)
    x[[7, 300]], x[2 * wd.BLOCK : 3 * wd.BLOCK] = [60, -60], 1e4
    codec = gct.Codec(kind, step=1.0, allocation=0, reconstruction="unit_gain")
    wire = gct.encode(torch.from_numpy(x.astype(np.float32)), codec).numpy().tobytes()
    assert 0 < wd.decode(wire).counts["blocks with shift"] < 4
    return wire


def trellis_segment() -> bytes:
    """With escapes of either sign, and with blocks with and without low bits aside."""
    x = np.random.default_rng(0).laplace(size=3 * wd.BLOCK + 40)
    x[[7, 300]], x[2 * wd.BLOCK : 3 * wd.BLOCK] = [60, -60], 1e4
    codec = gct.Codec(step=0.25, allocation=0, effort="high")
    wire = gct.encode(torch.from_numpy(x.astype(np.float32)), codec).numpy().tobytes()
    counts = wd.decode(wire).counts
    assert counts["trellis blocks"] > 0
    assert counts["blocks with shift"] > 0
    assert counts["escapes"] > 0
    return wire


def profiled_segment(kind: str) -> bytes:
    """A matrix of 20 columns."""
    x = np.random.default_rng(0).laplace(size=(100, 20)) * 2.0 ** -np.arange(20)
    codec = gct.Codec(kind, bits=4, allocation=0)
    wire = gct.encode(torch.from_numpy(x.astype(np.float32)), codec).numpy().tobytes()
    assert [run.columns for run in wd.read_headers(wire)[1]] == [20]
    return wire


def low_rank_segment(kind: str) -> bytes:
    """That of the kind, as rows of 20 with a product of rank 2, cut in the middle of a row."""
    part = low_rank_part(NUMEL, columns=20, first=7)
    factors = np.random.default_rng(5).standard_normal(part.factor_numel).astype(np.float32)
    wire = gct.encode(torch.from_numpy(factors), gct.Codec(kind, bits=5)).numpy().tobytes()
    assert wd.read_headers(wire)[0].kind == KINDS[kind]
    return with_section(sound_segment(kind), wire_builder.low_rank_section([part], wire))


def low_rank_part(
    numel: int, run: int = 0, columns: int = 10, first: int = 3, rank: int = 2
) -> wd.LowRankPart:
    rows = -(-(first + numel) // max(columns, 1))
    gains = 2.0 ** -np.arange(rank, dtype=np.float32)
    return wd.LowRankPart(run, columns, first, rank, gains, rows)


def with_section(wire: bytes, section: bytes) -> bytes:
    """A segment without column profiles, with this section of low-rank parts."""
    segment, runs = wd.read_headers(wire)
    begin = wd.SEGMENT_HEADER.size + wd.RUN_HEADER.size * len(runs)
    segment = segment._replace(flags=segment.flags | wd.LOW_RANK)
    return wire_builder.join(segment, runs, section + wire[begin:])


def decode(wire: bytes) -> npt.NDArray[np.float32]:
    return gct.decode(torch.tensor(list(wire), dtype=torch.uint8)).numpy()


def accepts(wire: bytes) -> bool:
    """Whether both decoders read these bytes; fails unless they agree."""
    try:
        expected = wd.decode(wire).values
    except wd.MalformedError as error:
        with pytest.raises(ValueError, match=REFUSAL):
            pytest.fail(f"{error}: but the library read {decode(wire).size} values")
        return False
    ours = decode(wire)
    same = (ours.view(np.uint32) == expected.view(np.uint32)) | np.isnan(ours) & np.isnan(expected)
    assert ours.shape == expected.shape
    assert same.all()
    return True


def flip(wire: bytes, bit: int) -> bytes:
    changed = bytearray(wire)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def patch(wire: bytes, offset: int, new: bytes) -> bytes:
    return wire[:offset] + new + wire[offset + len(new) :]


@pytest.mark.parametrize("kind", [*KINDS, *PROFILED, *LOW_RANK, *TRELLIS, *UNIT_GAIN])
def test_sound_segments_are_read(kind: str) -> None:
    assert accepts(sound_segment(kind))


@pytest.mark.parametrize("kind", [*KINDS, *PROFILED, *LOW_RANK, *TRELLIS, *UNIT_GAIN])
def test_every_truncation_is_refused(kind: str) -> None:
    wire = sound_segment(kind)
    for length in range(len(wire)):
        assert not accepts(wire[:length])
        with pytest.raises(ValueError, match="ends before"):
            decode(wire[:length])


@pytest.mark.parametrize("kind", [*KINDS, *PROFILED, *LOW_RANK, *TRELLIS, *UNIT_GAIN])
def test_every_truncation_that_the_header_hides_is_refused(kind: str) -> None:
    wire = sound_segment(kind)
    for length in range(wd.SEGMENT_HEADER.size, len(wire)):
        assert not accepts(patch(wire[:length], 24, struct.pack("<Q", length)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_of_the_headers_matters_to_both(kind: str) -> None:
    wire = sound_segment(kind)
    table = 64 if kind in ("gg", "eg") else 0  # bits of the piece table
    read = [bit for bit in range(8 * HEADERS + table) if accepts(flip(wire, bit))]
    # Magic, version; table id to pieces; the zeros and the run's numel: nothing there goes unseen.
    assert not set(read) & {*range(40), *range(64, 288), *range(304, 384)}


@pytest.mark.parametrize("kind", KINDS)
def test_payload_bits(kind: str) -> None:
    wire = sound_segment(kind)
    rng = np.random.default_rng(1)
    read = sum(
        accepts(flip(wire, int(bit)))
        for bit in rng.integers(8 * HEADERS, 8 * len(wire), PAYLOAD_FLIPS)
    )
    if kind in ("raw", "fixed"):  # any payload is sound
        assert read == PAYLOAD_FLIPS


def test_most_damage_to_coded_payload_is_noticed() -> None:
    """32 final states of 31 bits and an exact number of words leave little room: what passes are
    flips in the extra bits of kind gg, which have no check."""
    wire = sound_segment("gg")
    _, runs = wd.read_headers(wire)
    words, _ = struct.unpack_from("<II", wire, HEADERS)
    assert len(runs) == 1
    coded = range(8 * (HEADERS + 8), 8 * (HEADERS + 8 + 4 * wd.LANES + 2 * words))
    read = [bit for bit in coded[::7] if accepts(flip(wire, bit))]
    assert not read


@pytest.mark.parametrize("kind", [*KINDS, *PROFILED, *LOW_RANK, *TRELLIS, *UNIT_GAIN])
def test_random_payload(kind: str) -> None:
    wire = sound_segment(kind)
    rng = np.random.default_rng(2)
    for _ in range(SCRAMBLES):
        keep = int(rng.integers(wd.SEGMENT_HEADER.size, len(wire)))
        accepts(wire[:keep] + rng.bytes(len(wire) - keep))


@pytest.mark.parametrize(
    ("kind", "extra"),
    [*((kind, "") for kind in KINDS)]
    + [(kind, extra) for kind in ("gg", "eg") for extra in ("profiles", "low-rank parts")]
    + [("gg", "trellis"), ("gg", "unit gain"), ("eg", "unit gain")],
)
def test_damaged_segments_of_many_runs(kind: str, extra: str) -> None:
    rng = np.random.default_rng(3)
    read = 0
    for seed in range(SCRAMBLES):
        wire = wire_builder.random_segment(
            KINDS[kind],
            seed,
            profiles=extra == "profiles",
            low_rank=extra == "low-rank parts",
            form={"trellis": wd.TRELLIS, "unit gain": wd.UNIT_GAIN}.get(extra, 0),
        )
        for _ in range(int(rng.integers(1, 4))):
            wire = patch(wire, int(rng.integers(wd.SEGMENT_HEADER.size, len(wire))), rng.bytes(1))
        read += accepts(wire)
    assert read < SCRAMBLES


def test_garbage() -> None:
    rng = np.random.default_rng(4)
    for length in [*range(100), 1000, 10_000]:
        assert not accepts(rng.bytes(length))
        header = wire_builder.plain_header(wd.GG)._replace(num_runs=1, size=length)
        assert not accepts((wd.SEGMENT_HEADER.pack(*header) + rng.bytes(length))[:length])


WRONG_FIELDS = {
    "magic": (0, b"GCT2", "begin with 'GCT1'"),
    "version": (4, b"\x04", "wire version: expected version 1, 2 or 3"),
    "version without its flag": (4, b"\x02", "code tables"),
    "version without its tables": (4, b"\x03", "code tables"),
    "kind": (5, b"\x04", "header"),
    "flags": (6, b"\x04", "header"),
    "flag of another version": (6, b"\x08", "header"),
    "unknown flag": (6, b"\x10", "header"),
    "raw type": (7, b"\x03", "header"),
    "table id": (8, b"\0\0\0\0", "code tables"),
    "runs": (12, struct.pack("<I", 2), "header"),
    "no runs": (12, struct.pack("<I", 0), "header"),
    "huge runs": (12, struct.pack("<I", 1 << 31), "header"),
    "numel": (16, struct.pack("<Q", NUMEL + 1), "header"),
    "huge numel": (16, struct.pack("<Q", 1 << 60), "header"),
    "size": (24, struct.pack("<Q", 1 << 20), "ends before its end"),
    "huge size": (24, struct.pack("<Q", 1 << 63), "ends before"),
    "small size": (24, struct.pack("<Q", 63), "header"),
    "pieces": (32, struct.pack("<I", 2), "header"),
    "huge pieces": (32, struct.pack("<I", (1 << 32) - 1), "header"),
    "p": (36, b"\x11", "header"),
    "bits": (37, b"\x09", "header"),
    "reserved": (39, b"\x01", "header"),
    "numel of a run": (40, struct.pack("<Q", NUMEL - 1), "header"),
    "huge numel of a run": (40, struct.pack("<Q", (1 << 64) - 1), "header"),
    "mode": (56, b"\x04", "header"),
    "columns": (60, struct.pack("<I", NUMEL + 1), "header"),
    "huge columns": (60, struct.pack("<I", (1 << 16) + 1), "header"),
}


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (b"", "expected its header, 40 bytes"),
        (b"GCT1", "expected its header, 40 bytes"),
        (b"hello world", "not a gct segment"),
    ],
)
def test_what_is_shorter_than_a_header(wire: bytes, message: str) -> None:
    assert not accepts(wire)
    with pytest.raises(ValueError, match=message):
        decode(wire)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_wrong_fields_are_named(field: str, kind: str) -> None:
    offset, new, message = WRONG_FIELDS[field]
    wire = patch(sound_segment(kind), offset, new)
    assert not accepts(wire)
    with pytest.raises(ValueError, match=message):
        decode(wire)


# ---- versions 2 and 3


@pytest.mark.parametrize("kind", [*TRELLIS, *UNIT_GAIN])
def test_versions_and_flags_go_together(kind: str) -> None:
    """Another version reads none of these: a decoder of version 1 names the version."""
    wire = sound_segment(kind)
    tables = {name: struct.pack("<I", wd.TABLES[name]) for _, name in wd.VERSIONS.values()}
    together = {(version, flag, name) for flag, (version, name) in wd.VERSIONS.items()}
    together.add((1, wd.STOCHASTIC, "kTableId"))
    read = set()
    for version in range(5):
        for flags in range(32):
            for name, table_id in tables.items():
                changed = patch(patch(wire, 4, bytes([version])), 8, table_id)
                if accepts(patch(changed, 6, bytes([flags]))):
                    read.add((version, flags, name))
    # Plain symbols can be read with any levels; those of a trellis with nothing else.
    if kind in TRELLIS:
        assert read == {(2, wd.TRELLIS, "kTrellisTableId")}
    else:
        assert read == together - {(2, wd.TRELLIS, "kTrellisTableId")}


def test_forms_of_other_kinds() -> None:
    for form, kinds in ((wd.TRELLIS, {"gg"}), (wd.UNIT_GAIN, {"gg", "eg"})):
        for kind in KINDS.keys() - kinds:
            segment, runs = wd.read_headers(sound_segment(kind))
            begin = wd.SEGMENT_HEADER.size + wd.RUN_HEADER.size * len(runs)
            header = wire_builder.of_form(segment, form)
            payload = sound_segment(kind)[begin : segment.size]
            assert not accepts(wire_builder.join(header, runs, payload)), (form, kind)


def test_most_damage_to_a_trellis_is_noticed() -> None:
    """A flip that turns one symbol's slot into that of another with the same frequency, as rare
    ones have, leaves all else as it was if both have the same parity; next to nothing else
    passes."""
    wire = sound_segment("trellis gg")
    words, _ = struct.unpack_from("<II", wire, HEADERS)
    coded = range(8 * (HEADERS + 8), 8 * (HEADERS + 8 + 4 * wd.LANES + 2 * words))[::11]
    values = wd.decode(wire).values
    changed = [
        np.count_nonzero(wd.decode(flip(wire, bit)).values != values)
        for bit in coded
        if accepts(flip(wire, bit))
    ]
    assert len(changed) < len(coded) / 10
    assert set(changed) <= {1}


# ---- column profiles


@pytest.mark.parametrize("kind", PROFILED)
def test_every_bit_of_a_profile(kind: str) -> None:
    wire = sound_segment(kind)
    [length] = struct.unpack_from("<I", wire, HEADERS)
    # The length decides where everything after it is; columns decide what is read of the bits.
    assert not any(accepts(flip(wire, 8 * HEADERS + bit)) for bit in range(32))
    assert not any(accepts(flip(wire, 8 * 60 + bit)) for bit in range(32))
    for bit in range(8 * length):
        accepts(flip(wire, 8 * (HEADERS + 4) + bit))


def with_profile(kind: str, offsets: list[int], columns: int, padding: bytes = b"") -> bytes:
    """A run of 30 elements, all zeros, with these bits for its profile of so many columns."""
    wire = zero_block(kind, PLAIN_RUN._replace(numel=30))
    segment, [run] = wd.read_headers(wire)
    section = wire_builder.profile_section([tuple(offsets)])[4:] + padding
    payload = struct.pack("<I", len(section)) + section + wire[HEADERS:]
    return wire_builder.join(segment, [run._replace(columns=columns)], payload)


@pytest.mark.parametrize("kind", ["gg", "eg"])
def test_profiles_have_limits(kind: str) -> None:
    for offset, sound in [(-12, True), (-13, False), (8, True), (9, False), (1 << 20, False)]:
        assert accepts(with_profile(kind, [0, offset], 2)) == sound
    assert accepts(with_profile(kind, [1] * 30, 30))
    assert not accepts(with_profile(kind, [1] * 31, 31))  # over numel
    assert not accepts(with_profile(kind, [1] * 20, 21))  # bits missing
    assert not accepts(with_profile(kind, [1] * 20, 17))  # bits left
    assert not accepts(with_profile(kind, [1] * 20, 20, padding=b"\0"))


@pytest.mark.parametrize("kind", ["gg", "eg"])
def test_only_coded_runs_of_coded_kinds_have_columns(kind: str) -> None:
    segment, [run] = wd.read_headers(with_profile(kind, [0, 0], 2))
    for mode in (wd.ZERO_RUN, wd.NONFINITE_RUN, wd.RAW_RUN):
        payload = bytes(4 * run.numel) if mode == wd.RAW_RUN else b""
        for columns, sound in [(0, True), (2, False)]:
            changed = run._replace(mode=mode, columns=columns)
            header = segment._replace(num_pieces=0)
            assert accepts(wire_builder.join(header, [changed], payload)) == sound
    fixed = wire_builder.plain_header(wd.FIXED)
    codes = bytes(wd.fixed_run_bytes(run, fixed.bits))
    assert accepts(wire_builder.join(fixed, [run._replace(columns=0)], codes))
    assert not accepts(wire_builder.join(fixed, [run], codes))


# ---- low-rank parts


@pytest.mark.parametrize("kind", LOW_RANK)
def test_every_bit_of_a_low_rank_section(kind: str) -> None:
    """Up to the end of the headers of the factors. Of a part's fields, columns and first may take
    other values that touch as many rows and columns; any gain is sound."""
    wire = sound_segment(kind)
    gains = range(8 * (HEADERS + 20), 8 * (HEADERS + 28))
    factors = HEADERS + 32
    read = {bit for bit in range(8 * HEADERS, 8 * (factors + HEADERS)) if accepts(flip(wire, bit))}
    assert read >= set(gains)
    number_and_run = range(8 * HEADERS, 8 * (HEADERS + 8))
    rank = range(8 * (HEADERS + 16), 8 * (HEADERS + 20))
    length = range(8 * (HEADERS + 28), 8 * factors)
    magic_and_version = range(8 * factors, 8 * (factors + 5))
    assert not read & {*number_and_run, *rank, *length, *magic_and_version}


def zeros(*numels: int, kind: int = wd.RAW, mode: int = wd.ZERO_RUN) -> bytes:
    """A segment of runs without payload."""
    runs = [wd.Run(numel, 0.0, 0, 0, mode, 0, 0, 0, 0) for numel in numels]
    return wire_builder.join(wire_builder.plain_header(kind), runs, b"")


def low_rank_zeros(numel: int = 100, factors: bytes | None = None, **fields: int) -> bytes:
    """A zero run with one part; its factors are zeros unless they are given."""
    part = low_rank_part(numel, **fields)
    factors = zeros(part.factor_numel) if factors is None else factors
    return with_section(zeros(numel, kind=wd.GG), wire_builder.low_rank_section([part], factors))


@pytest.mark.parametrize(
    ("numel", "fields", "sound"),
    [
        (100, {}, True),
        (100, {"columns": 0}, False),
        (100, {"columns": (1 << 32) - 1}, False),
        (100, {"columns": 1, "first": 0, "rank": 1}, False),  # 100 rows and a column
        (100, {"first": 9}, True),
        (100, {"first": 10}, False),
        (100, {"first": (1 << 32) - 1}, False),
        (100, {"first": 0, "rank": 0}, False),
        (100, {"first": 0, "rank": 5}, True),  # (10 + 10) * 5
        (100, {"first": 1, "rank": 5}, False),  # (11 + 10) * 5
        (2 * 128 * 64, {"columns": 128, "first": 0, "rank": 64}, True),
        (2 * 130 * 65, {"columns": 130, "first": 0, "rank": 65}, False),
        (100, {"first": 0, "rank": (1 << 32) - 1}, False),
        (0, {"columns": 1, "first": 0, "rank": 1}, False),
    ],
)
def test_parts_have_limits(numel: int, fields: dict[str, int], sound: bool) -> None:
    if fields.get("rank", 0) < 1 << 20:
        wire = low_rank_zeros(numel, **fields)
    else:
        wire = patch(low_rank_zeros(numel), HEADERS + 16, struct.pack("<I", fields["rank"]))
    assert accepts(wire) == sound


@pytest.mark.parametrize(
    ("mode", "sound"),
    [(wd.ZERO_RUN, True), (wd.CODED_RUN, True), (wd.RAW_RUN, False), (wd.NONFINITE_RUN, False)],
)
def test_parts_are_of_coded_or_zero_runs(mode: int, sound: bool) -> None:
    run = wd.Run(100, 1.0, 0, 0, mode, 0, 0, 0, 0)
    coded = zero_block("eg", run)
    payload = {wd.CODED_RUN: coded[HEADERS:], wd.RAW_RUN: bytes(400)}.get(mode, b"")
    header = wire_builder.plain_header(wd.EG)._replace(num_pieces=int(mode == wd.CODED_RUN))
    wire = wire_builder.join(header, [run], payload)
    assert accepts(wire)
    part = low_rank_part(100)
    section = wire_builder.low_rank_section([part], zeros(part.factor_numel))
    assert accepts(with_section(wire, section)) == sound


@pytest.mark.parametrize(
    ("order", "sound"),
    [
        ([0], True),
        ([2], True),
        ([0, 2], True),
        ([0, 1, 2], True),
        ([2, 0], False),
        ([1, 1], False),
        ([3], False),
        ([(1 << 32) - 1], False),
        ([], False),
    ],
)
def test_runs_of_parts_rise(order: list[int], sound: bool) -> None:
    parts = [low_rank_part(100, run=run) for run in order]
    factors = zeros(sum(part.factor_numel for part in parts))
    section = wire_builder.low_rank_section(parts, factors)
    assert accepts(with_section(zeros(100, 100, 100, kind=wd.EG), section)) == sound


def test_a_low_rank_section_counts_right() -> None:
    """The number of parts and the length of the factors, in a section where they come to 1 and 64;
    more of them may be what follows, but there is nothing."""
    wire = low_rank_zeros()
    length = HEADERS + 4 + 16 + 8
    assert struct.unpack_from("<I", wire, HEADERS) == (1,)
    assert struct.unpack_from("<I", wire, length) == (64,)
    for offset, numbers in [
        (HEADERS, (0, 2, 3, 1 << 16, (1 << 32) - 1)),
        (length, (0, 39, 40, 63, 65, 1 << 16, (1 << 32) - 1)),
    ]:
        for number in numbers:
            assert not accepts(patch(wire, offset, struct.pack("<I", number)))
    assert not accepts(with_section(zeros(100, kind=wd.GG), b""))


@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_a_segment_of_any_kind(kind: str) -> None:
    values = np.random.default_rng(6).standard_normal(low_rank_part(100).factor_numel)
    codec = gct.Codec("raw") if kind == "raw" else gct.Codec(kind, bits=4)
    wire = gct.encode(torch.from_numpy(values.astype(np.float32)), codec).numpy().tobytes()
    assert accepts(low_rank_zeros(factors=wire))
    assert np.any(decode(low_rank_zeros(factors=wire)))


def test_factors_are_one_sound_segment() -> None:
    numel = low_rank_part(100).factor_numel
    sound = zeros(numel)
    assert accepts(low_rank_zeros(factors=sound))
    assert accepts(low_rank_zeros(factors=zeros(numel - 5, 0, 5)))
    assert accepts(low_rank_zeros(factors=zeros(numel, mode=wd.NONFINITE_RUN)))
    for wrong in (
        b"",
        sound[:-1],
        sound + b"\0",
        zeros(numel - 1),
        zeros(numel + 1),
        sound + sound,
    ):
        assert not accepts(low_rank_zeros(factors=wrong))
    for offset in (0, 4, 8, 39):  # magic, version, table id, the zeros
        assert not accepts(low_rank_zeros(factors=patch(sound, offset, b"\x77")))


def test_factors_have_no_low_rank_parts() -> None:
    """A section that would be sound anywhere else."""
    part = low_rank_part(400, columns=20)
    inner = low_rank_zeros(part.factor_numel)
    assert accepts(inner)
    assert accepts(low_rank_zeros(400, columns=20))
    assert not accepts(low_rank_zeros(400, factors=inner, columns=20))


@pytest.mark.parametrize("kind", ["raw", "fixed"])
def test_only_coded_kinds_have_low_rank_parts(kind: str) -> None:
    section = low_rank_zeros()[HEADERS:]
    assert accepts(with_section(zeros(100, kind=wd.GG), section))
    header = wire_builder.plain_header(KINDS[kind])
    _, runs = wd.read_headers(zeros(100))
    assert accepts(wire_builder.join(header, runs, b""))
    for payload in (b"", section):
        wire = wire_builder.join(header._replace(flags=wd.LOW_RANK), runs, payload)
        assert not accepts(wire)


@pytest.mark.parametrize("gain", [float("nan"), float("inf"), -0.0, 2.0**-149, 3.4e38])
def test_any_gain_is_sound(gain: float) -> None:
    part = low_rank_part(NUMEL, columns=20, first=7)
    place = HEADERS + 4 + 16
    wire = patch(sound_segment("low-rank gg"), place, struct.pack("<f", gain))
    assert part.gains.size == 2
    assert accepts(wire)
    assert np.isfinite(decode(wire)).any() == np.isfinite(gain)


# ---- segments of one run, built so that a single rule decides


PLAIN_RUN = wd.Run(1, 1.0, 0, 0, wd.CODED_RUN, 0, 0, 0, 0)


def gg_segment(
    run: wd.Run,
    steps: list[wire_builder.Step],
    text: str,
    more_words: int = 0,
    padding: bytes = b"",
) -> bytes:
    states, words = wire_builder.rans_encode(steps)
    words += [0] * more_words
    extra = wire_builder.pack_bits(text) + padding
    header = wire_builder.plain_header(wd.GG)._replace(num_pieces=1)
    table = struct.pack("<II", len(words), len(extra))
    body = struct.pack(f"<{len(states)}I{len(words)}H", *states, *words)
    return wire_builder.join(header, [run], table + body + extra)


def eg_segment(run: wd.Run, text: str, padding: bytes = b"") -> bytes:
    extra = wire_builder.pack_bits(text) + padding
    header = wire_builder.plain_header(wd.EG)._replace(num_pieces=1)
    return wire_builder.join(header, [run], struct.pack("<II", 0, len(extra)) + extra)


def zero_block(kind: str, run: wd.Run) -> bytes:
    """Nothing in the payload depends on the run's fields."""
    if kind == "gg":
        return gg_segment(run, [(wd.class_model(run.model % 32), 0, 0)], "")
    return eg_segment(run, wire_builder.exp_golomb_text(0, 1))


def block_of_class(kind: str, run: wd.Run, block_class: int) -> bytes:
    """One element, 0, in a block of this class, coded with the rule of the nearest sound class."""
    nearest = min(max(block_class, wd.CLASS_MIN), wd.CLASS_MAX)
    rule = wd.block_rule(run._replace(step=1.0, base_class=0), False, nearest)
    code = wire_builder.zigzag(block_class - run.base_class)
    if kind == "gg":
        steps = [(wd.class_model(0), 0, 1), (rule.table.alphabet, 0, 0)]
        return gg_segment(run, steps, wire_builder.exp_golomb_text(code, 3))
    element = wire_builder.exp_golomb_text(0, rule.table.golomb_order + rule.shift)
    return eg_segment(run, wire_builder.exp_golomb_text(code + 1, 1) + element)


# The last sound values of a field, and the first ones beyond.
FIELD_LIMITS: dict[str, tuple[list[float], list[float]]] = {
    "step": ([3.4e38, 2.0**-149], [0.0, -1.0, float("inf"), float("nan")]),
    "base_class": ([-200, 248], [-201, 249]),
    "shape": ([15], [16]),
    "allocation": ([8], [9]),
    "columns": ([0], [2, (1 << 16) + 1]),
    "mode": ([wd.ZERO_RUN], [4]),
}


@pytest.mark.parametrize("kind", ["gg", "eg"])
@pytest.mark.parametrize("field", FIELD_LIMITS)
def test_fields_of_a_run_have_limits(field: str, kind: str) -> None:
    wire = zero_block(kind, PLAIN_RUN)
    segment, [run] = wd.read_headers(wire)
    for values, sound in zip(FIELD_LIMITS[field], (True, False), strict=True):
        for value in values:
            payload = b"" if value == wd.ZERO_RUN and field == "mode" else wire[HEADERS:]
            header = segment._replace(num_pieces=1 if payload else 0)
            changed = wire_builder.join(header, [run._replace(**{field: value})], payload)
            assert accepts(changed) == sound


@pytest.mark.parametrize(("kind", "last"), [("gg", 31), ("eg", 0)])
def test_class_models_have_a_limit(kind: str, last: int) -> None:
    assert accepts(zero_block(kind, PLAIN_RUN._replace(model=last)))
    assert not accepts(zero_block(kind, PLAIN_RUN._replace(model=last + 1)))


@pytest.mark.parametrize("kind", ["gg", "eg"])
def test_classes_have_limits(kind: str) -> None:
    run = PLAIN_RUN._replace(allocation=8)  # the step follows the class and the table stays
    for block_class, sound in [(-200, True), (-201, False), (248, True), (249, False)]:
        assert accepts(block_of_class(kind, run, block_class)) == sound


@pytest.mark.parametrize("kind", ["gg", "eg"])
def test_shifts_have_a_limit(kind: str) -> None:
    """Tables end at 10 quarters of an octave, and 18 octaves more are 82; 82 and a half is 83."""
    last = PLAIN_RUN._replace(ratio=4 * 82 + 1)
    assert wd.block_rule(last, False, 0).shift == 18
    wire = {"gg": far_escape(0, 18), "eg": block_of_class("eg", last, 0)}[kind]
    assert accepts(wire)
    assert not accepts(patch(wire, 52, struct.pack("<h", last.ratio + 1)))


@pytest.mark.parametrize("kind", ["gg", "eg"])
@pytest.mark.parametrize(
    ("step", "block_class", "sound"),
    [(3.4e38, 0, True), (3.4e38, 2, False), (2.0**-126, 0, True), (2.0**-126, -2, False)],
)
def test_steps_of_blocks_are_normal(kind: str, step: float, block_class: int, sound: bool) -> None:
    """Two classes are an octave here."""
    run = PLAIN_RUN._replace(step=step, allocation=8)
    assert accepts(block_of_class(kind, run, block_class)) == sound


def far_escape(excess: int, shift: int) -> bytes:
    """One element of kind gg, an escape."""
    run = PLAIN_RUN._replace(ratio=16 * shift + 40)
    rule = wd.block_rule(run, False, 0)
    assert rule.shift == shift
    steps = [(wd.class_model(0), 0, 9), (rule.table.alphabet, 0, 2 * rule.table.K + 1)]
    text = "0" + wire_builder.exp_golomb_text(excess, max(0, rule.t // 4)) + "0" * shift
    return gg_segment(run, steps, text)


@pytest.mark.parametrize("shift", [0, 1, 18])
def test_escapes_have_a_limit(shift: int) -> None:
    assert accepts(far_escape(1 << 30, shift))
    assert not accepts(far_escape((1 << 30) + 1, shift))


def test_magnitudes_of_eg_have_a_limit() -> None:
    order = wd.block_rule(PLAIN_RUN, False, 0).table.golomb_order
    for k, sound in [(1 << 30, True), (-(1 << 30), True), ((1 << 30) + 1, False)]:
        element = wire_builder.exp_golomb_text(wire_builder.zigzag(k), order)
        assert accepts(eg_segment(PLAIN_RUN, wire_builder.exp_golomb_text(1, 1) + element)) == sound


def test_a_piece_ends_exactly() -> None:
    steps = [(wd.class_model(0), 0, 0)]
    assert accepts(gg_segment(PLAIN_RUN, steps, ""))
    assert not accepts(gg_segment(PLAIN_RUN, steps, "", more_words=1))
    assert not accepts(gg_segment(PLAIN_RUN, steps, "", padding=b"\0"))
    other_lane = [*steps, (wd.class_model(0), 1, 0)]
    assert not accepts(gg_segment(PLAIN_RUN, other_lane, ""))
    zero = wire_builder.exp_golomb_text(0, 1)
    assert not accepts(eg_segment(PLAIN_RUN, zero, padding=b"\0"))
    assert not accepts(eg_segment(PLAIN_RUN, zero + "000001"))


def test_no_tensor_for_numbers_of_elements_beyond_memory() -> None:
    """The page allows any number of zeros in 64 bytes: the allocator says no, not the kernel."""
    if _C.build_info()["sanitize"]:
        pytest.skip("AddressSanitizer ends the process where an allocation is too large")
    for wire in (zeros(HUGE, kind=wd.GG), low_rank_zeros(HUGE, columns=1 << 20, rank=64)):
        with pytest.raises(RuntimeError, match="memory"):
            decode(wire)


@pytest.mark.parametrize("stated", [HUGE, 1 << 36, 101, 99])
def test_another_number_of_elements_than_expected_is_refused(stated: int) -> None:
    """Before anything is allocated: not even the allocator is asked for 2^47 elements."""
    wire = torch.tensor(list(zeros(stated, kind=wd.GG)), dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"expected a segment of 100 elements, .* {stated}:"):
        gct.decode(wire, numel=100)


def test_the_expected_number_of_elements_is_read() -> None:
    for kind in KINDS:
        wire = torch.tensor(list(sound_segment(kind)), dtype=torch.uint8)
        assert torch.equal(gct.decode(wire, numel=NUMEL), gct.decode(wire))
        with pytest.raises(ValueError, match="ends before"):  # the headers come first
            gct.decode(wire[:-1], numel=NUMEL)
    for wrong in ("300", 300.0, True):
        with pytest.raises(TypeError, match="numel must be a whole number or None, got"):
            gct.decode(wire, numel=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_huge_coded_runs_need_their_bytes(kind: str) -> None:
    """No few bytes make the library allocate for coded or raw runs that aren't there."""
    mode = wd.RAW_RUN if kind == "raw" else wd.CODED_RUN
    run = wd.Run(HUGE, 1.0, 0, 0, mode, 0, 0, 0, 0)
    for pieces in (0, 1, (1 << 32) - 1):
        header = wire_builder.plain_header(KINDS[kind])._replace(piece_log2=16, num_pieces=pieces)
        assert not accepts(wire_builder.join(header, [run], bytes(1000)))
