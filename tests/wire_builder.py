"""Sound segments with random contents, written from docs/wire-format.md like wire_decoder.py.

They hold what the library's encoder seldom or never writes: several runs in a piece and several
pieces in a run, every mode beside every other, any p, any class model, the largest shifts, escapes
up to their limit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import wire_decoder as wd
from wire_decoder import Alphabet, Block, BlockRule, Run, Segment

Random = np.random.Generator
Step = tuple[Alphabet, int, int]  # one rANS step: alphabet, lane, symbol

MAX_RUN_NUMEL = 600
ESCAPE_LIMITS = (4, 1000, 1 << 30)  # near, as the encoder writes them, and up to the rule's end
CLASS_TRIES = 100


# ---- bits, as text of "0" and "1"


def bits_text(value: int, count: int) -> str:
    return format(value, f"0{count}b")[::-1] if count else ""


def exp_golomb_text(value: int, order: int) -> str:
    shifted = value + (1 << order)
    n = shifted.bit_length() - 1
    return "0" * (n - order) + "1" + bits_text(shifted - (1 << n), n)


def pack_bits(text: str) -> bytes:
    return np.packbits(
        np.frombuffer(text.encode(), np.uint8) - ord("0"), bitorder="little"
    ).tobytes()


def zigzag(v: int) -> int:
    return 2 * v if v >= 0 else -2 * v - 1


def rans_encode(steps: list[Step]) -> tuple[list[int], list[int]]:
    """Lane states and words from which a decoder takes these steps."""
    states, words = [wd.STATE_MIN] * wd.LANES, []
    for alphabet, lane, symbol in reversed(steps):
        x, freq = states[lane], alphabet.freqs[symbol]
        if x >= freq << (31 - wd.SCALE_BITS):
            words.append(x & 0xFFFF)
            x >>= 16
        states[lane] = ((x // freq) << wd.SCALE_BITS) + x % freq + alphabet.starts[symbol]
    return states, words[::-1]


# ---- random contents


def _integer(rng: Random, low: int, high: int) -> int:
    """From low to high, both included."""
    return int(rng.integers(low, high + 1))


def _random_symbol(rng: Random, alphabet: Alphabet) -> int:
    """Half of them as the frequencies say, half from anywhere in the alphabet."""
    if rng.random() < 0.5:
        return alphabet.symbols[_integer(rng, 0, 4095)]
    return _integer(rng, 0, len(alphabet.freqs) - 1)


def _random_run(rng: Random, mode: int, kind: int) -> Run:
    numel = int(rng.choice([0, 1, 255, 256, 257, _integer(rng, 2, MAX_RUN_NUMEL)]))
    if mode != wd.CODED_RUN:  # whatever the fields hold
        return Run(numel, float("nan"), 7, 30000, mode, 255, 255, 255, 0)
    step = float(np.float32(2.0 ** rng.uniform(-20, 20)))
    model = _integer(rng, 0, 31) if kind == wd.GG else 0
    ratio, base = _integer(rng, -300, 300), _integer(rng, -200, 248)
    return Run(numel, step, ratio, base, mode, _integer(rng, 0, 15), _integer(rng, 0, 8), model, 0)


def _random_class(rng: Random, run: Run, last: int) -> int | None:
    """A class that the run's step allows, or None for a zero block."""
    for attempt in range(CLASS_TRIES):
        near = attempt < CLASS_TRIES // 2 and rng.random() < 0.7
        block_class = last + _integer(rng, -7, 7) if near else _integer(rng, -200, 248)
        try:
            wd.block_rule(run, False, block_class)
        except wd.MalformedError:
            continue
        return block_class
    return None


class _ClassWriter:
    """Chooses the classes of a piece's blocks; gives each with its difference to the prediction."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._run_index, self._last = -1, 0

    def next(self, block: Block) -> tuple[int, int] | None:
        if block.run_index != self._run_index:
            self._run_index, self._last = block.run_index, block.run.base_class
        block_class = _random_class(self._rng, block.run, self._last)
        if block_class is None or self._rng.random() < 0.1:
            return None
        difference, self._last = block_class - self._last, block_class
        return block_class, difference


def _class_symbol(difference: int | None) -> tuple[int, str]:
    if difference is None:
        return 0, ""
    if abs(difference) <= 7:
        return difference + 9, ""
    return 1, exp_golomb_text(zigzag(difference), 3)


def _element(rng: Random, rule: BlockRule) -> tuple[int, str]:
    """Symbol and extra bits of one element."""
    symbol = _random_symbol(rng, rule.table.alphabet)
    text = ""
    if symbol == 2 * rule.table.K + 1:
        excess = _integer(rng, 0, int(rng.choice(ESCAPE_LIMITS)))
        text = bits_text(_integer(rng, 0, 1), 1) + exp_golomb_text(excess, max(0, rule.t // 4))
    return symbol, text + bits_text(_integer(rng, 0, (1 << rule.shift) - 1), rule.shift)


def _gg_piece(rng: Random, blocks: list[Block], header: Segment) -> tuple[int, int, bytes]:
    trellis = wd.Trellis()
    writer, steps, extra = _ClassWriter(rng), list[Step](), ""
    classes = [writer.next(block) for block in blocks]
    for b, (block, found) in enumerate(zip(blocks, classes, strict=True)):
        symbol, text = _class_symbol(found[1] if found else None)
        steps.append((wd.class_model(block.run.model), b % wd.LANES, symbol))
        extra += text
    for block, found in zip(blocks, classes, strict=True):
        if found is None:
            continue
        rule = wd.block_rule(block.run, header.levels, found[0])
        for i, element_rule in enumerate(block.element_rules(rule)):
            follows = header.trellis and rule.shift == 0
            if follows:
                element_rule = element_rule.of_quantizer(trellis.quantizer(i % wd.LANES))
            symbol, text = _element(rng, element_rule)
            if follows:
                trellis.move(i % wd.LANES, symbol, element_rule.table.K)
            steps.append((element_rule.table.alphabet, i % wd.LANES, symbol))
            extra += text
    states, words = rans_encode(steps)
    packed = pack_bits(extra)
    body = struct.pack(f"<{len(states)}I{len(words)}H", *states, *words) + packed
    return len(words), len(packed), body


def _eg_piece(rng: Random, blocks: list[Block], header: Segment) -> tuple[int, int, bytes]:
    writer, extra = _ClassWriter(rng), ""
    for block in blocks:
        found = writer.next(block)
        extra += exp_golomb_text(zigzag(found[1]) + 1 if found else 0, 1)
        if found is None:
            continue
        rule = wd.block_rule(block.run, header.levels, found[0])
        limit = int(rng.choice(ESCAPE_LIMITS))
        magnitudes = rng.integers(-limit, limit + 1, block.numel)
        for k, element_rule in zip(magnitudes, block.element_rules(rule), strict=True):
            order = element_rule.table.golomb_order + rule.shift
            extra += exp_golomb_text(zigzag(int(k)), order)
    packed = pack_bits(extra)
    return 0, len(packed), packed


def profile_section(profiles: list[wd.Profile]) -> bytes:
    if not any(profiles):
        return b""
    offsets = [offset for profile in profiles for offset in profile]
    bits = pack_bits("".join(exp_golomb_text(zigzag(offset), 0) for offset in offsets))
    return struct.pack("<I", len(bits)) + bits


def low_rank_section(parts: list[wd.LowRankPart], factors: bytes) -> bytes:
    written = [
        wd.PART_HEADER.pack(part.run, part.columns, part.first, part.rank)
        + part.gains.astype("<f4").tobytes()
        for part in parts
    ]
    head = struct.pack("<I", len(parts)) + b"".join(written)
    return head + struct.pack("<I", len(factors)) + factors


def _random_gains(rng: Random, rank: int) -> wd.Floats:
    """Most of them of either sign and over many octaves; one in ten is any float32."""
    gains = (rng.standard_normal(rank) * 2.0 ** rng.uniform(-40, 40, rank)).astype(np.float32)
    anything = rng.integers(0, 1 << 32, rank, np.uint32).view(np.float32)
    return np.where(rng.random(rank) < 0.1, anything, gains)


def _random_part(rng: Random, index: int, numel: int) -> wd.LowRankPart | None:
    """None where the factors would be larger than the run."""
    columns = _integer(rng, 1, max(1, numel // 2))
    first = _integer(rng, 0, columns - 1)
    rows = -(-(first + numel) // columns)
    most = min(wd.MAX_RANK, numel // (rows + columns))
    if most == 0:
        return None
    rank = _integer(rng, 1, most)
    return wd.LowRankPart(index, columns, first, rank, _random_gains(rng, rank), rows)


def _random_factors(rng: Random, numel: int) -> bytes:
    """A segment of so many elements: half of the time of any kind and with anything in it, which
    is seldom finite; else values of a normal distribution."""
    header = plain_header(wd.RAW)
    if rng.random() < 0.5:
        values = rng.standard_normal(numel).astype("<f4").tobytes()
        return join(header, [Run(numel, 0.0, 0, 0, wd.RAW_RUN, 0, 0, 0, 0)], values)
    kind = _integer(rng, wd.RAW, wd.FIXED)
    cuts = np.sort(rng.integers(0, numel + 1, 2))
    numels = np.diff([0, *cuts, numel])
    modes = rng.choice([wd.ZERO_RUN, wd.RAW_RUN] if kind == wd.RAW else [wd.CODED_RUN], 3)
    runs = [
        _random_run(rng, int(mode), kind)._replace(numel=int(n))
        for mode, n in zip(modes, numels, strict=True)
    ]
    return _fill(rng, _random_header(rng, kind), runs)


def _low_rank_parts(rng: Random, runs: list[Run]) -> bytes:
    """The section for about two of three runs that may have a part; nothing if none does."""
    parts = []
    for index, run in enumerate(runs):
        if run.mode in (wd.ZERO_RUN, wd.CODED_RUN) and run.numel > 1 and rng.random() < 0.67:
            part = _random_part(rng, index, run.numel)
            parts += [part] if part else []
    if not parts:
        return b""
    return low_rank_section(parts, _random_factors(rng, sum(part.factor_numel for part in parts)))


def _pieces(rng: Random, header: Segment, runs: list[Run], low_rank: bytes) -> tuple[int, bytes]:
    write: Callable[[Random, list[Block], Segment], tuple[int, int, bytes]]
    write = _gg_piece if header.kind == wd.GG else _eg_piece
    p = header.piece_log2
    profiles = [
        tuple(_integer(rng, wd.OFFSET_MIN, wd.OFFSET_MAX) for _ in range(run.columns))
        for run in runs
    ]
    blocks = list(wd.blocks_of(runs, profiles))
    parts = [blocks[i : i + (1 << p)] for i in range(0, len(blocks), 1 << p)]
    pieces = [write(rng, part, header) for part in parts]
    table = b"".join(struct.pack("<II", words, extra) for words, extra, _ in pieces)
    section = profile_section(profiles) + low_rank
    return len(pieces), section + table + b"".join(body for _, _, body in pieces)


def join(segment: Segment, runs: list[Run], payload: bytes) -> bytes:
    """The bytes of a segment whose header counts are filled in from its parts."""
    size = wd.SEGMENT_HEADER.size + wd.RUN_HEADER.size * len(runs) + len(payload)
    numel = sum(run.numel for run in runs)
    segment = segment._replace(num_runs=len(runs), numel=numel, size=size)
    headers = [wd.RUN_HEADER.pack(*run) for run in runs]
    return wd.SEGMENT_HEADER.pack(*segment) + b"".join(headers) + payload


def plain_header(kind: int) -> Segment:
    bits = 3 if kind == wd.FIXED else 0
    return Segment(b"GCT1", 1, kind, 0, 0, wd.TABLES["kTableId"], 0, 0, 0, 0, 8, bits, 0)


def of_form(header: Segment, form: int) -> Segment:
    """The same with this flag, TRELLIS or UNIT_GAIN, and its version."""
    version, table_id = wd.VERSIONS[form]
    flags = header.flags & ~wd.STOCHASTIC | form
    return header._replace(version=version, flags=flags, table_id=wd.TABLES[table_id])


def _with_columns(rng: Random, runs: list[Run]) -> list[Run]:
    """The same runs, half of the coded ones with a column profile."""
    return [
        run._replace(columns=_integer(rng, 1, run.numel))
        if run.mode == wd.CODED_RUN and run.numel > 0 and rng.random() < 0.5
        else run
        for run in runs
    ]


def _random_header(rng: Random, kind: int) -> Segment:
    return plain_header(kind)._replace(
        flags=_integer(rng, 0, 1), raw_type=_integer(rng, 0, 2), piece_log2=_integer(rng, 0, 3)
    )


def _fill(rng: Random, header: Segment, runs: list[Run], low_rank: bytes = b"") -> bytes:
    """The segment with random contents in its runs, and this section."""
    payload = b""
    if header.kind in (wd.GG, wd.EG):
        if low_rank:
            header = header._replace(flags=header.flags | wd.LOW_RANK)
        count, payload = _pieces(rng, header, runs, low_rank)
        header = header._replace(num_pieces=count)
    elif header.kind == wd.FIXED:
        header = header._replace(bits=_integer(rng, 1, 8))
        coded = [run for run in runs if run.mode == wd.CODED_RUN]
        payload = rng.bytes(sum(wd.fixed_run_bytes(run, header.bits) for run in coded))
    raw_numel = sum(run.numel for run in runs if run.mode == wd.RAW_RUN)
    return join(header, runs, payload + rng.bytes(raw_numel * header.raw_bytes))


def random_segment(
    kind: int,
    seed: int,
    num_runs: int = 4,
    profiles: bool = False,
    low_rank: bool = False,
    form: int = 0,
) -> bytes:
    """With `profiles` about half of the coded runs have one, with `low_rank` most coded and zero
    runs a low-rank part, with `form` (kind gg: TRELLIS or UNIT_GAIN, kind eg: UNIT_GAIN) symbols
    stand for something else; without, the bytes are as ever."""
    rng = np.random.default_rng([kind, seed])
    modes = rng.integers(0, wd.CODED_RUN if kind == wd.RAW else 4, num_runs)
    if kind != wd.RAW:
        modes[rng.integers(num_runs)] = wd.CODED_RUN  # at least one
    runs = [_random_run(rng, int(mode), kind) for mode in modes]
    header = _random_header(rng, kind)
    header = of_form(header, form) if form else header
    section = b""
    if kind in (wd.GG, wd.EG):
        runs = _with_columns(rng, runs) if profiles else runs
        section = _low_rank_parts(rng, runs) if low_rank else b""
    return _fill(rng, header, runs, section)
