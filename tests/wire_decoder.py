"""A decoder written from docs/wire-format.md and the number tables, and from nothing else.

Slow and plain on purpose: what it and the library read alike is what the page says. It refuses
whatever the page forbids, with an error that names the broken rule, and counts on its way
which rules a segment made use of.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

RAW, GG, EG, FIXED = range(4)
ZERO_RUN, NONFINITE_RUN, RAW_RUN, CODED_RUN = range(4)
RAW_TYPES = ("float32", "bfloat16", "float16")
BLOCK = 256
LANES = 32
SCALE_BITS = 12  # frequencies sum to 4096
STATE_MIN, STATE_END = 1 << 15, 1 << 31
CLASS_MIN, CLASS_MAX = -200, 248
OFFSET_MIN, OFFSET_MAX = -12, 8
ABOVE_MIN, ABOVE_MAX = -6, 9
MAX_COLUMNS = 1 << 16
MAX_NUMEL = 1 << 48
MAX_RANK = 64
STOCHASTIC, LOW_RANK, TRELLIS, UNIT_GAIN = 1, 2, 4, 8  # flags
# Version and table id by the flag that came with them.
VERSIONS = {0: (1, "kTableId"), TRELLIS: (2, "kTrellisTableId"), UNIT_GAIN: (3, "kGainTableId")}
SMALLEST_NORMAL = np.float32(2.0**-126)


class Segment(NamedTuple):
    magic: bytes
    version: int
    kind: int
    flags: int
    raw_type: int
    table_id: int
    num_runs: int
    numel: int
    size: int
    num_pieces: int
    piece_log2: int
    bits: int
    zero: int

    @property
    def stochastic(self) -> bool:
        return bool(self.flags & STOCHASTIC)

    @property
    def low_rank(self) -> bool:
        return bool(self.flags & LOW_RANK)

    @property
    def trellis(self) -> bool:
        return bool(self.flags & TRELLIS)

    @property
    def levels(self) -> str:
        """What symbols stand for: centroids, integers or unit gain."""
        if self.stochastic:
            return "integers"
        return "unit gain" if self.flags & UNIT_GAIN else "centroids"

    @property
    def raw_bytes(self) -> int:
        return 4 if self.raw_type == 0 else 2


class Run(NamedTuple):
    numel: int
    step: float
    ratio: int
    base_class: int
    mode: int
    shape: int
    allocation: int
    model: int
    columns: int

    @property
    def num_blocks(self) -> int:
        return -(-self.numel // BLOCK)


SEGMENT_HEADER = struct.Struct("<4sBBBBIIQQIBBH")
RUN_HEADER = struct.Struct("<QfhhBBBBI")
PART_HEADER = struct.Struct("<IIII")


@dataclasses.dataclass
class Decoded:
    """What a segment holds, and how it was coded."""

    segment: Segment
    runs: list[Run]
    values: Floats
    # Of everything coded, under the segment's own tables; profiles and low-rank parts as they are.
    ideal_bits: float
    counts: Counter[str]  # how often each special rule was used
    parts: list[LowRankPart]


class MalformedError(ValueError):
    """Names the rule that a segment breaks."""


def require(condition: bool, rule: str) -> None:
    if not condition:
        raise MalformedError(rule)


# ---- number tables


def _number(text: str) -> int | float:
    text = text.strip().rstrip("uf" if "." in text else "u")
    return float.fromhex(text) if "." in text else int(text, 0)


def _read_tables() -> dict[str, Any]:
    folder = Path(__file__).parent.parent / "csrc" / "core"
    text = "".join(
        (folder / f"{name}_tables.inc").read_text() for name in ("gg", "trellis", "gain")
    )
    tables: dict[str, Any] = {}
    for name, brackets, body in re.findall(r"constexpr \w+ (\w+)(\[\])? = ([^;]+);", text):
        numbers = [_number(text) for text in body.strip("{} \n").split(",") if text.strip()]
        tables[name] = numbers if brackets else numbers[0]
    return tables


TABLES = _read_tables()


class Alphabet:
    """Symbols with integer frequencies that sum to 4096."""

    def __init__(self, freqs: list[int]) -> None:
        assert sum(freqs) == 1 << SCALE_BITS
        self.freqs = freqs
        self.starts = list(itertools.accumulate(freqs, initial=0))
        self.symbols = [symbol for symbol, freq in enumerate(freqs) for _ in range(freq)]
        self.ideal_bits = [SCALE_BITS - math.log2(freq) if freq else math.inf for freq in freqs]


class Table(NamedTuple):
    """One quantizer table: K magnitudes, their alphabet and their centroid offsets."""

    K: int
    alphabet: Alphabet
    offsets: Floats  # in steps; by magnitude, the last one for all above K
    golomb_order: int


# Names of frequencies and offsets: of plain symbols, of a trellis' quantizers 0 and 1.
TABLE_NAMES = {
    None: ("kFreqs", "kCentroidOffsets"),
    0: ("kWholeFreqs", "kWholeOffsets"),
    1: ("kHalfFreqs", "kHalfOffsets"),
}


@functools.cache
def quantizer_table(index: int, quantizer: int | None = None) -> Table:
    place = slice(TABLES["kTableStart"][index], TABLES["kTableStart"][index + 1])
    of_freqs, of_offsets = TABLE_NAMES[quantizer]
    freqs = TABLES[of_freqs][place]
    both_signs = [freq for freq in freqs[1:-1] for _ in "+-"]
    offsets = np.array(TABLES[of_offsets][place]).astype(np.float32) * np.float32(2.0**-12)
    alphabet = Alphabet([freqs[0], *both_signs, freqs[-1]])
    return Table(len(freqs) - 2, alphabet, offsets, TABLES["kGolombOrders"][index])


def shape_table(shape: int, t: int, quantizer: int | None = None) -> Table:
    index = shape * TABLES["kTablesPerShape"] + t - TABLES["kTableMin"]
    return quantizer_table(index, quantizer)


@functools.cache
def class_model(index: int) -> Alphabet:
    return Alphabet(TABLES["kClassFreqs"][17 * index : 17 * (index + 1)])


# ---- bits


def unzigzag(u: int) -> int:
    return -(u + 1) // 2 if u & 1 else u // 2


class BitReader:
    def __init__(self, data: bytes) -> None:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        self._bits = (bits + ord("0")).tobytes().decode("ascii")
        self._at = 0

    def read(self, count: int) -> int:
        text = self._bits[self._at : self._at + count]
        require(len(text) == count, "bits end too early")
        self._at += count
        return int(text[::-1], 2) if text else 0

    def read_exp_golomb(self, order: int) -> int:
        one = self._bits.find("1", self._at)
        require(one >= 0, "bits end too early")
        length = order + one - self._at
        require(length <= 31, "an exp-Golomb number has at most 31 bits")
        self._at = one + 1
        return (1 << length) + self.read(length) - (1 << order)

    @property
    def used(self) -> int:
        return self._at

    def check_end(self) -> None:
        rest = self._bits[self._at :]
        require(len(rest) < 8 and "1" not in rest, "fewer than 8 zero bits of padding end the bits")


class Lanes:
    """The 32 interleaved rANS states of a piece of kind gg and the words that they share."""

    def __init__(self, states: bytes, words: bytes) -> None:
        self._states: list[int] = list(struct.unpack(f"<{LANES}I", states))
        self._words = iter(struct.unpack(f"<{len(words) // 2}H", words))
        self.ideal_bits = 0.0
        require(
            all(STATE_MIN <= state < STATE_END for state in self._states),
            "a lane's state is from 2^15 to 2^31 - 1",
        )

    def decode(self, alphabet: Alphabet, lane: int) -> int:
        state = self._states[lane]
        remainder = state & ((1 << SCALE_BITS) - 1)
        symbol = alphabet.symbols[remainder]
        start = alphabet.starts[symbol]
        state = alphabet.freqs[symbol] * (state >> SCALE_BITS) + remainder - start
        if state < STATE_MIN:
            state = state << 16 | self._next_word()
        self._states[lane] = state
        self.ideal_bits += alphabet.ideal_bits[symbol]
        return symbol

    @property
    def empty_bits(self) -> float:
        """Of the stored states: a state x holds log2(x / 2^15) bits of symbols."""
        return sum(32 - math.log2(state / STATE_MIN) for state in self._states)

    def _next_word(self) -> int:
        for word in self._words:
            return int(word)
        raise MalformedError("a piece's words end too early")

    def check_end(self) -> None:
        require(self._states == [STATE_MIN] * LANES, "every lane ends in state 2^15")
        require(next(self._words, None) is None, "a piece uses all its words")


# ---- headers


def _check_segment(segment: Segment, length: int) -> None:
    require(segment.magic == b"GCT1", "magic is GCT1")
    require(segment.version in (1, 2, 3), "version is 1, 2 or 3")
    require(segment.kind <= FIXED, "kind is 0 to 3")
    form = segment.flags & (STOCHASTIC | TRELLIS | UNIT_GAIN)
    exclusive = form in (0, STOCHASTIC, TRELLIS, UNIT_GAIN)
    require(exclusive, "flag bits 0, 2 and 3 exclude each other")
    version, table_id = VERSIONS[form & ~STOCHASTIC]
    require(segment.version == version, "version is 2 with flag bit 2, 3 with bit 3, else 1")
    require(segment.kind == GG or not segment.trellis, "flag bit 2 is 0 but in kind gg")
    known = STOCHASTIC | TRELLIS | (LOW_RANK | UNIT_GAIN if segment.kind in (GG, EG) else 0)
    require(segment.flags & ~known == 0, "flag bits 1 and 3 are 0 but in kinds gg and eg")
    require(segment.raw_type < len(RAW_TYPES), "raw type is 0 to 2")
    require(segment.table_id == TABLES[table_id], "table id is the tables' own")
    require(segment.numel <= MAX_NUMEL, "numel is at most 2^48")
    require(segment.size <= length, "size is at most what was received")
    require(segment.piece_log2 <= 16, "p is at most 16")
    require(segment.zero == 0, "the header's last two bytes are 0")
    if segment.kind == FIXED:
        require(1 <= segment.bits <= 8, "kind fixed: bits is 1 to 8")
    else:
        require(segment.bits == 0, "bits is 0 in kinds other than fixed")
    headers = SEGMENT_HEADER.size + RUN_HEADER.size * segment.num_runs
    require(headers <= segment.size, "size has room for the run headers")


def _check_run(segment: Segment, run: Run) -> None:
    require(run.numel <= MAX_NUMEL, "numel of a run is at most 2^48")
    require(run.mode <= CODED_RUN, "mode is 0 to 3")
    if run.mode != CODED_RUN or segment.kind not in (GG, EG):
        require(run.columns == 0, "columns is 0 but in coded runs of kinds gg and eg")
    require(run.columns <= min(MAX_COLUMNS, run.numel), "columns is at most 2^16 and numel")
    if run.mode != CODED_RUN:
        return
    require(segment.kind != RAW, "kind raw has no coded runs")
    require(run.shape < TABLES["kNumShapes"], "shape is an index into kShapes")
    if segment.kind == FIXED:
        return
    require(math.isfinite(run.step) and run.step > 0, "step is finite and above 0")
    require(CLASS_MIN <= run.base_class <= CLASS_MAX, "base class is -200 to 248")
    require(run.allocation <= 8, "allocation is 0 to 8")
    models = TABLES["kNumClassModels"] if segment.kind == GG else 1
    require(run.model < models, "class model is below kNumClassModels, 0 in kinds other than gg")


def read_headers(wire: bytes) -> tuple[Segment, list[Run]]:
    require(len(wire) >= SEGMENT_HEADER.size, "a segment has 40 bytes of header")
    segment = Segment._make(SEGMENT_HEADER.unpack_from(wire))
    _check_segment(segment, len(wire))
    headers = wire[SEGMENT_HEADER.size :][: RUN_HEADER.size * segment.num_runs]
    runs = [Run._make(fields) for fields in RUN_HEADER.iter_unpack(headers)]
    for run in runs:
        _check_run(segment, run)
    require(sum(run.numel for run in runs) == segment.numel, "numel is the sum over the runs")
    return segment, runs


Profile = tuple[int, ...]  # by column


def read_profiles(runs: list[Run], data: bytes) -> tuple[list[Profile], int]:
    """The profiles of all runs, empty where there is none, and the bytes that they take."""
    if not any(run.columns for run in runs):
        return [() for _ in runs], 0
    require(len(data) >= 4, "the segment has room for the profiles' length")
    [length] = struct.unpack_from("<I", data)
    require(4 + length <= len(data), "the segment has room for its profiles")
    bits = BitReader(data[4 : 4 + length])
    profiles = [tuple(_read_offset(bits) for _ in range(run.columns)) for run in runs]
    bits.check_end()
    return profiles, 4 + length


def _read_offset(bits: BitReader) -> int:
    offset = unzigzag(bits.read_exp_golomb(0))
    require(OFFSET_MIN <= offset <= OFFSET_MAX, "a column's offset is -12 to 8")
    return offset


# ---- low-rank parts


class LowRankPart(NamedTuple):
    run: int
    columns: int
    first: int
    rank: int
    gains: Floats
    rows: int

    @property
    def factor_numel(self) -> int:
        return (self.rows + self.columns) * self.rank

    def product(self, factors: Floats, numel: int) -> Floats:
        """For each element of the run; factors: the right one, then the left one."""
        right = factors[: self.columns * self.rank].reshape(self.columns, self.rank)
        left = factors[self.columns * self.rank :].reshape(self.rows, self.rank)
        product = np.zeros((self.rows, self.columns), np.float32)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for k, gain in enumerate(self.gains):
                c = right[:, k] * gain
                product = product + left[:, k, np.newaxis] * c
        return product.reshape(-1)[self.first : self.first + numel]


def _read_part(runs: list[Run], data: bytes) -> LowRankPart:
    require(len(data) >= PART_HEADER.size, "the segment has room for its low-rank parts")
    run, columns, first, rank = PART_HEADER.unpack_from(data)
    require(run < len(runs), "a part's run is one of the segment's")
    require(runs[run].mode in (ZERO_RUN, CODED_RUN), "a part's run is coded or zero")
    require(columns >= 1, "a part has a column at least")
    require(first < columns, "a part's first column is one of its columns")
    require(1 <= rank <= MAX_RANK, "a part's rank is 1 to 64")
    require(len(data) >= PART_HEADER.size + 4 * rank, "the segment has room for a part's gains")
    gains = np.frombuffer(data, "<f4", rank, PART_HEADER.size).astype(np.float32)
    rows = -(-(first + runs[run].numel) // columns)
    part = LowRankPart(run, columns, first, rank, gains, rows)
    require(part.factor_numel <= runs[run].numel, "factors have no more elements than their run")
    return part


class LowRankSection(NamedTuple):
    parts: list[LowRankPart]
    factors: bytes  # a segment
    size: int  # of the section


def read_low_rank(segment: Segment, runs: list[Run], data: bytes) -> LowRankSection:
    """The section at the begin of data, empty where the flags say that there is none."""
    if not segment.low_rank:
        return LowRankSection([], b"", 0)
    require(len(data) >= 4, "the segment has room for the number of parts")
    [count] = struct.unpack_from("<I", data)
    require(count >= 1, "there is at least one part")
    parts: list[LowRankPart] = []
    at = 4
    for _ in range(count):
        parts.append(_read_part(runs, data[at:]))
        at += PART_HEADER.size + 4 * parts[-1].rank
    require(
        all(a.run < b.run for a, b in itertools.pairwise(parts)), "the parts' runs rise strictly"
    )
    require(len(data) >= at + 4, "the segment has room for the factors' length")
    [length] = struct.unpack_from("<I", data, at)
    require(len(data) >= at + 4 + length, "the segment has room for the factors")
    return LowRankSection(parts, data[at + 4 : at + 4 + length], at + 4 + length)


def _decode_factors(section: LowRankSection) -> list[Floats]:
    """The factors of each part, both in one."""
    if not section.parts:
        return []
    numels = [part.factor_numel for part in section.parts]
    segment, _ = read_headers(section.factors)
    require(not segment.low_rank, "factors have no low-rank parts of their own")
    require(segment.size == len(section.factors), "the factors' segment has their length")
    require(segment.numel == sum(numels), "numel of the factors is the sum over the parts")
    values = decode(section.factors).values
    return np.split(values, np.cumsum(numels)[:-1])


# ---- values


def bfloat16(data: bytes) -> Floats:
    return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def raw_values(segment: Segment, data: bytes) -> Floats:
    if RAW_TYPES[segment.raw_type] == "bfloat16":
        return bfloat16(data)
    return np.frombuffer(data, "<f4" if segment.raw_bytes == 4 else "<f2").astype(np.float32)


class BlockRule(NamedTuple):
    """How the symbols of a block of some class become values."""

    table: Table
    t: int
    shift: int
    step: np.float32
    levels: str
    shape: int
    above: int

    def at_column(self, offset: int) -> BlockRule:
        """The rule of the elements of a column."""
        if offset == 0:
            return self
        t = min(max(self.t + 2 * offset, TABLES["kTableMin"]), TABLES["kTableMax"])
        return self._replace(table=shape_table(self.shape, t), t=t)

    def of_quantizer(self, quantizer: int) -> BlockRule:
        """The rule of an element that the trellis gives to this quantizer."""
        return self._replace(table=shape_table(self.shape, self.t, quantizer))

    @property
    def gain(self) -> np.float32:
        lowest, highest = 4 * TABLES["kTableMin"], 4 * TABLES["kTableMax"]
        at = min(max(4 * self.t + self.above, lowest), highest) - lowest
        index = self.shape * TABLES["kGainsPerShape"] + at
        return np.float32(TABLES["kGains"][index]) * np.float32(2.0**-12)

    def values(self, signed: list[int]) -> Floats:
        k = np.array(signed, np.int64)
        level = np.abs(k).astype(np.float32)
        if self.levels != "integers":
            level = level - self.table.offsets[np.minimum(np.abs(k), self.table.K + 1)]
        if self.levels == "unit gain":
            level = level * self.gain
        with np.errstate(over="ignore"):  # a step near float32's largest number and a high level
            value = self.step * level
        return np.where(k < 0, -value, np.where(k > 0, value, np.float32(0)))


def element_values(rules: list[BlockRule], signed: list[int]) -> Floats:
    """Values of a block, each by the rule of its own element."""
    values = np.zeros(len(signed), np.float32)
    places: dict[int, list[int]] = {}
    for i, rule in enumerate(rules):
        places.setdefault(id(rule), []).append(i)
    for group in places.values():
        values[group] = rules[group[0]].values([signed[i] for i in group])
    return values


def step_ratio(step: float) -> int:
    """-16 log2(step), rounded, by the bits of the float."""
    [bits] = struct.unpack("<I", struct.pack("<f", step))
    sixteenths = sum(bits & 0x7FFFFF >= mantissa for mantissa in TABLES["kSixteenthMantissas"])
    return -(16 * ((bits >> 23) - 127) + sixteenths)


@functools.lru_cache(maxsize=4096)
def block_rule(run: Run, levels: str, block_class: int) -> BlockRule:
    require(CLASS_MIN <= block_class <= CLASS_MAX, "a block's class is -200 to 248")
    ratio = run.ratio + (8 - run.allocation) * block_class
    t = (ratio + 2) // 4
    shift = max(0, -((TABLES["kTableMax"] - t) // 4))
    require(shift <= 18, "shift is at most 18")
    t = max(t - 4 * shift, TABLES["kTableMin"])
    exact = step_ratio(run.step) + (8 - run.allocation) * block_class
    above = min(max(exact - 4 * t, ABOVE_MIN), ABOVE_MAX)
    octaves, sixteenths = divmod(run.allocation * block_class, 16)
    with np.errstate(over="ignore", under="ignore"):
        step = np.float32(run.step) * np.float32(TABLES["kExp2Sixteenths"][sixteenths])
        step = step * np.float32(2.0**octaves)
    normal = np.isfinite(step) and step >= SMALLEST_NORMAL
    require(bool(normal), "a block's step is a normal number")
    table = shape_table(run.shape, t)
    return BlockRule(table, t, shift, step, "integers" if shift > 0 else levels, run.shape, above)


# ---- pieces


class Block(NamedTuple):
    run: Run
    run_index: int
    numel: int
    offsets: tuple[int, ...] = ()  # by element, where the run has a column profile

    def element_rules(self, rule: BlockRule) -> list[BlockRule]:
        """From the block's own rule."""
        if not self.offsets:
            return [rule] * self.numel
        by_offset = {offset: rule.at_column(offset) for offset in set(self.offsets)}
        return [by_offset[offset] for offset in self.offsets]


def blocks_of(runs: list[Run], profiles: list[Profile] | None = None) -> Iterator[Block]:
    for index, run in enumerate(runs):
        if run.mode != CODED_RUN:
            continue
        profile = profiles[index] if profiles else ()
        for first in range(0, run.numel, BLOCK):
            numel = min(BLOCK, run.numel - first)
            elements = range(first, first + numel) if profile else ()
            offsets = tuple(profile[e % run.columns] for e in elements)
            yield Block(run, index, numel, offsets)


class ClassPredictor:
    """A block's class is predicted by the one before it, zero blocks left out."""

    def __init__(self) -> None:
        self._run_index = -1
        self._last = 0

    def add(self, block: Block, difference: int) -> int:
        if block.run_index != self._run_index:
            self._run_index, self._last = block.run_index, block.run.base_class
        self._last += difference
        require(CLASS_MIN <= self._last <= CLASS_MAX, "a block's class is -200 to 248")
        return self._last


class Trellis:
    """The state of each lane in a piece."""

    def __init__(self) -> None:
        self._states = [0] * LANES

    def quantizer(self, lane: int) -> int:
        return self._states[lane] % 2

    def move(self, lane: int, symbol: int, K: int) -> None:
        parity = (symbol + 1) // 2 % 2 if symbol <= 2 * K else 0
        self._states[lane] = TABLES["kTrellisNext"][2 * self._states[lane] + parity]


class GGPiece:
    """Classes of all blocks first, then symbols; escapes and low bits beside them."""

    def __init__(self, segment: Segment, states: bytes, words: bytes, extra: bytes) -> None:
        self._levels = segment.levels
        self._trellis = Trellis() if segment.trellis else None
        self._lanes = Lanes(states, words)
        self._extra = BitReader(extra)
        self.counts: Counter[str] = Counter()

    def decode(self, blocks: list[Block]) -> Iterator[Floats]:
        classes = self._read_classes(blocks)
        for block, block_class in zip(blocks, classes, strict=True):
            if block_class is None:
                yield np.zeros(block.numel, np.float32)
            else:
                rule = block_rule(block.run, self._levels, block_class)
                self.counts["blocks with shift"] += rule.shift > 0
                self.counts["blocks at kTableMin"] += rule.t == TABLES["kTableMin"]
                self.counts["blocks with offsets"] += any(block.offsets)
                rules = block.element_rules(rule)
                if self._trellis is not None and rule.shift == 0:
                    self.counts["trellis blocks"] += 1
                    yield element_values(*self._read_trellis_block(rules))
                else:
                    yield element_values(rules, self._read_block(rules))
        self._lanes.check_end()
        self._extra.check_end()

    @property
    def ideal_bits(self) -> float:
        return self._lanes.ideal_bits + self._extra.used

    def _read_classes(self, blocks: list[Block]) -> list[int | None]:
        predictor = ClassPredictor()
        return [self._read_class(i % LANES, block, predictor) for i, block in enumerate(blocks)]

    def _read_class(self, lane: int, block: Block, predictor: ClassPredictor) -> int | None:
        symbol = self._lanes.decode(class_model(block.run.model), lane)
        if symbol == 0:
            self.counts["zero blocks"] += 1
            return None
        difference = symbol - 2 - TABLES["kClassDeltaMax"]
        if symbol == 1:
            u = self._extra.read_exp_golomb(3)
            require(u <= 2048, "a class escape is at most 2048")
            difference = unzigzag(u)
            self.counts["class escapes"] += 1
        return predictor.add(block, difference)

    def _read_block(self, rules: list[BlockRule]) -> list[int]:
        symbols = [
            self._lanes.decode(rule.table.alphabet, i % LANES) for i, rule in enumerate(rules)
        ]
        return [self._finish(rule, symbol) for rule, symbol in zip(rules, symbols, strict=True)]

    def _read_trellis_block(self, rules: list[BlockRule]) -> tuple[list[BlockRule], list[int]]:
        assert self._trellis is not None
        used: list[BlockRule] = []
        symbols: list[int] = []
        # One object for each rule: element_values() puts elements of the same together.
        of_both = {id(rule): (rule.of_quantizer(0), rule.of_quantizer(1)) for rule in rules}
        for i, rule in enumerate(rules):
            used.append(of_both[id(rule)][self._trellis.quantizer(i % LANES)])
            symbols.append(self._lanes.decode(used[-1].table.alphabet, i % LANES))
            self._trellis.move(i % LANES, symbols[-1], used[-1].table.K)
        return used, [self._finish(rule, s) for rule, s in zip(used, symbols, strict=True)]

    def _finish(self, rule: BlockRule, symbol: int) -> int:
        """Signed magnitude of a symbol, with its extra bits."""
        h = (symbol + 1) // 2 if symbol & 1 else -(symbol // 2)
        if symbol == 2 * rule.table.K + 1:
            h = self._read_escape(rule)
        if rule.shift == 0:
            return h
        return (h << rule.shift) + self._extra.read(rule.shift) - (1 << (rule.shift - 1))

    def _read_escape(self, rule: BlockRule) -> int:
        self.counts["escapes"] += 1
        negative = self._extra.read(1)
        g = self._extra.read_exp_golomb(max(0, rule.t // 4))
        require(g <= 1 << 30, "an escape is at most 2^30")
        h = rule.table.K + 1 + g
        return -h if negative else h


class EGPiece:
    """One sequence of exp-Golomb numbers: a block's class, then its elements."""

    def __init__(self, levels: str, extra: bytes) -> None:
        self._levels = levels
        self._extra = BitReader(extra)
        self.counts: Counter[str] = Counter()

    def decode(self, blocks: list[Block]) -> Iterator[Floats]:
        predictor = ClassPredictor()
        for block in blocks:
            u = self._extra.read_exp_golomb(1)
            require(u <= 4096, "a class difference is at most 4096")
            if u == 0:
                self.counts["zero blocks"] += 1
                yield np.zeros(block.numel, np.float32)
                continue
            block_class = predictor.add(block, unzigzag(u - 1))
            rule = block_rule(block.run, self._levels, block_class)
            self.counts["blocks with shift"] += rule.shift > 0
            self.counts["blocks with offsets"] += any(block.offsets)
            rules = block.element_rules(rule)
            yield element_values(rules, self._read_block(rules))
        self._extra.check_end()

    @property
    def ideal_bits(self) -> float:
        return self._extra.used

    def _read_block(self, rules: list[BlockRule]) -> list[int]:
        orders = [rule.table.golomb_order + rule.shift for rule in rules]
        signed = [unzigzag(self._extra.read_exp_golomb(order)) for order in orders]
        require(max(map(abs, signed)) <= 1 << 30, "a magnitude is at most 2^30")
        return signed


# ---- segments


class Coded(NamedTuple):
    """Values of the coded runs, end to end, and what is to be added to them."""

    values: Floats
    ideal_bits: float
    counts: Counter[str]
    parts: list[LowRankPart]
    factors: list[Floats]


def _read_pieces(segment: Segment, runs: list[Run], data: bytes) -> list[GGPiece | EGPiece]:
    num_blocks = sum(run.num_blocks for run in runs if run.mode == CODED_RUN)
    expected = -(-num_blocks >> segment.piece_log2)
    require(segment.num_pieces == expected, "pieces is ceil(coded blocks / 2^p)")
    require(8 * expected <= len(data), "the segment has room for the piece table")
    pieces: list[GGPiece | EGPiece] = []
    at = 8 * expected
    for num_words, num_extra in struct.iter_unpack("<II", data[:at]):
        require(segment.kind == GG or num_words == 0, "words is 0 in kind eg")
        ends = [at, at + (4 * LANES if segment.kind == GG else 0)]
        ends += [ends[1] + 2 * num_words, ends[1] + 2 * num_words + num_extra]
        require(ends[-1] <= len(data), "pieces end where raw data begins")
        states, words, extra = (data[a:b] for a, b in itertools.pairwise(ends))
        if segment.kind == GG:
            pieces.append(GGPiece(segment, states, words, extra))
        else:
            pieces.append(EGPiece(segment.levels, extra))
        at = ends[-1]
    require(at == len(data), "raw data begins where the pieces end")
    return pieces


def _decode_pieces(segment: Segment, runs: list[Run], data: bytes) -> Coded:
    profiles, at = read_profiles(runs, data)
    section = read_low_rank(segment, runs, data[at:])
    at += section.size
    pieces = _read_pieces(segment, runs, data[at:])
    factors = _decode_factors(section)
    blocks = blocks_of(runs, profiles)
    values = [np.zeros(0, np.float32)]
    ideal_bits, counts = 8.0 * at, Counter[str]()
    for piece in pieces:
        values += piece.decode(list(itertools.islice(blocks, 1 << segment.piece_log2)))
        ideal_bits += piece.ideal_bits
        counts += piece.counts
    return Coded(np.concatenate(values), ideal_bits, counts, section.parts, factors)


def fixed_run_bytes(run: Run, bits: int) -> int:
    whole_blocks, rest = divmod(run.numel, BLOCK)
    return 2 * run.num_blocks + whole_blocks * bits * BLOCK // 8 - (-rest * bits // 8)


def _decode_fixed_block(run: Run, bits: int, scale: np.float32, data: bytes, numel: int) -> Floats:
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    codes = unpacked[: bits * numel].reshape(numel, bits) @ (1 << np.arange(bits))
    magnitudes = 1 << (bits - 1)
    first = 255 * run.shape + magnitudes - 1
    levels = np.array(TABLES["kFixedLevels"][first : first + magnitudes]).astype(np.float32)
    levels *= np.float32(2.0**-16)
    with np.errstate(over="ignore", invalid="ignore"):
        value = scale * levels[codes % magnitudes]
    signed: Floats = np.where(codes >= magnitudes, -value, value)
    return signed


def _decode_fixed(segment: Segment, runs: list[Run], data: bytes) -> Coded:
    require(segment.num_pieces == 0, "pieces is 0 in kind fixed")
    coded = [run for run in runs if run.mode == CODED_RUN]
    sizes = [fixed_run_bytes(run, segment.bits) for run in coded]
    require(sum(sizes) == len(data), "scales and codes fill the space before raw data")
    values = [np.zeros(0, np.float32)]
    at = 0
    for run, size in zip(coded, sizes, strict=True):
        scales = bfloat16(data[at : at + 2 * run.num_blocks])
        codes = data[at + 2 * run.num_blocks : at + size]
        for block, scale in zip(blocks_of([run]), scales, strict=True):
            num_bytes = -(-block.numel * segment.bits // 8)
            values.append(
                _decode_fixed_block(run, segment.bits, scale, codes[:num_bytes], block.numel)
            )
            codes = codes[num_bytes:]
        at += size
    return Coded(np.concatenate(values), 0.0, Counter(), [], [])


def _decode_coded(segment: Segment, runs: list[Run], data: bytes) -> Coded:
    if segment.kind in (GG, EG):
        return _decode_pieces(segment, runs, data)
    if segment.kind == FIXED:
        return _decode_fixed(segment, runs, data)
    require(segment.num_pieces == 0, "pieces is 0 in kind raw")
    require(not data, "raw data follows the run headers in kind raw")
    return Coded(np.zeros(0, np.float32), 0.0, Counter(), [], [])


def _join_runs(runs: list[Run], coded: Floats, raw: Floats) -> Floats:
    at = {CODED_RUN: 0, RAW_RUN: 0}
    values = []
    for run in runs:
        if run.mode in at:
            source = coded if run.mode == CODED_RUN else raw
            values.append(source[at[run.mode] :][: run.numel])
            at[run.mode] += run.numel
        else:
            filler = 0.0 if run.mode == ZERO_RUN else math.nan
            values.append(np.full(run.numel, filler, np.float32))
    return np.concatenate([np.zeros(0, np.float32), *values])


def _add_products(runs: list[Run], coded: Coded, values: Floats) -> None:
    begins = list(itertools.accumulate((run.numel for run in runs), initial=0))
    for part, factors in zip(coded.parts, coded.factors, strict=True):
        numel = runs[part.run].numel
        place = slice(begins[part.run], begins[part.run] + numel)
        with np.errstate(over="ignore", invalid="ignore"):
            values[place] = values[place] + part.product(factors, numel)


def decode(wire: bytes, max_numel: int = 1 << 28) -> Decoded:
    """Decodes one segment; what follows it is ignored. Refuses more than max_numel elements, which
    a few bytes can announce."""
    segment, runs = read_headers(wire)
    raw_numel = sum(run.numel for run in runs if run.mode == RAW_RUN)
    coded_begin = SEGMENT_HEADER.size + RUN_HEADER.size * segment.num_runs
    raw_begin = segment.size - raw_numel * segment.raw_bytes
    require(coded_begin <= raw_begin, "the segment has room for its raw data")
    require(segment.numel <= max_numel, f"this decoder stops at {max_numel} elements")
    coded = _decode_coded(segment, runs, wire[coded_begin:raw_begin])
    raw = raw_values(segment, wire[raw_begin : segment.size])
    values = _join_runs(runs, coded.values, raw)
    _add_products(runs, coded, values)
    return Decoded(segment, runs, values, coded.ideal_bits, coded.counts, coded.parts)


# ---- what the bytes of a segment are for


class Parts(NamedTuple):
    """Bytes of a segment of kind gg. Classes are what their code takes; symbols are the rest."""

    headers: int  # of segment and runs, column profiles, low-rank parts
    lanes: float  # piece table, and lane states but for what they hold
    classes: float
    symbols: float

    @property
    def overhead(self) -> float:
        """Share of the segment that is no symbol."""
        return 1 - self.symbols / sum(self)


def parts(wire: bytes) -> Parts:
    """What a segment of kind gg without raw runs consists of."""
    segment, runs = read_headers(wire)
    begin = SEGMENT_HEADER.size + RUN_HEADER.size * segment.num_runs
    data = wire[begin : segment.size]
    profiles, at = read_profiles(runs, data)
    at += read_low_rank(segment, runs, data[at:]).size
    blocks, class_bits, lane_bits = list(blocks_of(runs, profiles)), 0.0, 0.0
    pieces = _read_pieces(segment, runs, data[at:])
    for i, piece in enumerate(pieces):
        assert isinstance(piece, GGPiece)
        lane_bits += 64 + piece._lanes.empty_bits
        piece._read_classes(blocks[i << segment.piece_log2 : (i + 1) << segment.piece_log2])
        class_bits += piece.ideal_bits
    others = begin + at + (lane_bits + class_bits) / 8
    return Parts(begin + at, lane_bits / 8, class_bits / 8, segment.size - others)
