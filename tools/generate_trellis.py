"""Generate csrc/core/trellis_tables.inc: symbol tables of the trellis quantizer (effort "high").

The trellis is that of dependent quantization in video coding (Schwarz et al. 2019; the code is
Ungerboeck's of 8 states, 1982): a quantizer with levels at whole steps and one with levels at half
steps and zero, and a state that says which of the two an element uses and moves by the parity of
its magnitude. Which symbol an element gets depends on its neighbours, so there is no closed form:
the tables are found by quantizing a fixed sample of the generalized Gaussian, counting, and doing
it again with the tables that the counts give (entropy-constrained design, Chou, Lookabaugh and Gray
1989). The sample and the order of all operations are fixed; tests/test_trellis.py compares.

    python tools/generate_trellis.py            # rewrite csrc/core/trellis_tables.inc
    python tools/generate_trellis.py --check    # exit 1 if the committed file differs
"""

from __future__ import annotations

import functools
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent))  # scripts beside each other, no package

import generate_tables as gg
from scipy.special import gammaincinv

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

OUTPUT = gg.OUTPUT.parent / "trellis_tables.inc"

# Next state by (state, parity of the magnitude). A state's lowest bit is its quantizer.
NEXT = np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]])
STATES = len(NEXT)
# D + lambda R in units of step^2. 0.8 * ln(2) / 6 = 0.09 would be the slope of the error, which is
# 0.9 dB below the plain quantizer's; but at 1 bit the tables that it leads to hold little else than
# zeros and lose 0.1 dB, and the rate falls too steeply with the step. Less costs 0.03 dB at 3 bits.
LAMBDA = 0.06

SEQUENCES, LENGTH = 64, 256  # of a table's sample
SETTLING = 16  # elements at a sequence's begin that don't count: it starts in state 0
ROUNDS = 5
SAMPLE_SEED = 2486
ENOUGH = 32  # with fewer counts a symbol's number comes from the one before it


class Design(NamedTuple):
    """Tables of one shape for all t: by t, quantizer and magnitude; the last magnitude escapes."""

    freqs: list[list[list[int]]]
    offsets: list[list[list[int]]]  # in 1/4096 step: magnitude minus level


def _predecessors() -> Ints:
    """For each state its two (state, parity) before, by rising state."""
    found = [[(s, p) for s in range(STATES) for p in (0, 1) if NEXT[s, p] == d] for d in range(8)]
    return np.array(found)


PREDECESSORS = _predecessors()


@functools.cache
def sample(shape: float) -> Floats:
    """Magnitudes at evenly spaced quantiles, shuffled; mean 1. Rounded, so that the last bits of
    another scipy don't matter."""
    count = SEQUENCES * LENGTH
    law = gg.UnitGG(shape)
    quantiles = (np.arange(count) + 0.5) / count
    magnitudes = law.alpha * gammaincinv(1 / shape, quantiles) ** (1 / shape)
    order = np.argsort(np.random.PCG64(SAMPLE_SEED).random_raw(count), kind="stable")
    return np.round(magnitudes * 2**24)[order] / 2**24


class Tables:
    """Those of all t of one shape while they are being found; arrays by [t, quantizer, k]."""

    def __init__(self, shape: float) -> None:
        self.law = gg.UnitGG(shape)
        self.steps = 2.0 ** (-np.arange(gg.T_MIN, gg.T_MAX + 1) / 4)
        plain = [gg.symbol_table(shape, t) for t in range(gg.T_MIN, gg.T_MAX + 1)]
        self.deadzones = [table["deadzone"] / gg.DEADZONE_UNIT for table in plain]
        self.magnitudes = np.array([len(table["freqs"]) - 2 for table in plain])
        width = int(self.magnitudes.max()) + 2
        self.bits = np.full((len(plain), 2, width), 1e3)
        self.offsets = np.zeros((len(plain), 2, width), np.int64)
        self.freqs = [[table["freqs"]] * 2 for table in plain]
        self.offsets[:, 1, 1:] = gg.OFFSET_UNIT // 2
        for i, table in enumerate(plain):
            self.offsets[i, :, 1:-1][:, : len(table["offsets"])] += np.array(table["offsets"])
            self.offsets[i, :, self.magnitudes[i] + 1] = self.offsets[i, :, self.magnitudes[i]]
        self.price()

    def price(self) -> None:
        """Code lengths from the frequencies."""
        for i, pair in enumerate(self.freqs):
            for q, freqs in enumerate(pair):
                lengths = gg.PROB_BITS - np.log2(np.array(freqs))
                # A grid that hides the last bits of another log2.
                self.bits[i, q, : len(freqs)] = np.round(lengths * 2**20) / 2**20

    def levels(self) -> Floats:
        k = np.arange(self.offsets.shape[2])
        return k - self.offsets / gg.OFFSET_UNIT

    def count(self, x: Floats, quantizer: Ints, k: Ints) -> None:
        """New frequencies and levels from a quantized sample, x in steps."""
        for i, magnitudes in enumerate(self.magnitudes):
            for q in (0, 1):
                of_q = quantizer[i] == q
                self._count_one(i, q, int(magnitudes), x[i][of_q], k[i][of_q])
        self.price()

    def _count_one(self, i: int, q: int, last: int, x: Floats, k: Ints) -> None:
        if len(x) < ENOUGH:
            return
        counts = np.bincount(k, minlength=last + 1).astype(float)
        sums = np.bincount(k, weights=x, minlength=last + 1)
        # What the plain quantizer's cells hold: the form of the tail, and all of the escape.
        cells, _, _ = gg.bins(self.law, self.steps[i], self.deadzones[i], last + 1)
        masses = counts / len(x)
        offsets = self.offsets[i, q]
        for m in range(1, last + 1):
            if counts[m] >= ENOUGH:
                offsets[m] = int(np.rint((m - sums[m] / counts[m]) * gg.OFFSET_UNIT))
            elif m > 1:
                masses[m] = masses[m - 1] * cells[m] / max(cells[m - 1], 1e-300)
                offsets[m] = offsets[m - 1]
        offsets[last + 1] = offsets[last]
        self.freqs[i][q : q + 1] = [gg.integer_freqs(np.append(masses, cells[-1]))]


def candidates(tables: Tables, x: Floats) -> tuple[Floats, Ints]:
    """Least cost of each element, [t, element, 2 * quantizer + parity], and its magnitude."""
    costs = np.empty((*x.shape, 4))
    chosen = np.empty((*x.shape, 4), np.int64)
    levels, rows = tables.levels(), np.arange(len(x))[:, np.newaxis]
    for q in (0, 1):
        for parity in (0, 1):
            top = tables.magnitudes[:, np.newaxis]
            top = top - (top - parity) % 2
            below = 2 * np.floor((x + q / 2 - parity) / 2).astype(np.int64) + parity
            below = np.minimum(np.maximum(below, parity), top)
            above = np.minimum(below + 2, top)

            def cost(k: Ints, q: int = q) -> Floats:
                return (x - levels[rows, q, k]) ** 2 + LAMBDA * tables.bits[rows, q, k]

            low, high = cost(below), cost(above)
            costs[..., 2 * q + parity] = np.minimum(low, high)
            chosen[..., 2 * q + parity] = np.where(high < low, above, below)
    return costs, chosen


def best_path(costs: Floats) -> tuple[Ints, Ints]:
    """Quantizer and parity of each element on the cheapest way through the trellis (Viterbi 1967).

    costs: [t, sequence, element, 2 * quantizer + parity].
    """
    came, moved = PREDECESSORS[..., 0], PREDECESSORS[..., 1]
    branch = 2 * (came & 1) + moved
    total = np.full((*costs.shape[:2], STATES), 1e9)
    total[..., 0] = 0
    second = np.empty((costs.shape[2], *total.shape), bool)
    for i in range(costs.shape[2]):
        both = total[..., came] + costs[:, :, i, branch]
        second[i] = both[..., 1] < both[..., 0]
        total = np.minimum(both[..., 0], both[..., 1])
    state = total.argmin(axis=2)
    quantizer = np.empty(costs.shape[:3], np.int64)
    parity = np.empty_like(quantizer)
    for i in reversed(range(costs.shape[2])):
        way = np.take_along_axis(second[i], state[..., np.newaxis], axis=2)[..., 0].astype(int)
        parity[:, :, i] = moved[state, way]
        state = came[state, way]
        quantizer[:, :, i] = state & 1
    return quantizer, parity


def design(shape: float) -> Design:
    tables = Tables(shape)
    # Past the alphabet everything is one symbol; it is rare by the alphabet's choice.
    x = sample(shape) / tables.steps[:, np.newaxis]
    x = np.minimum(x, tables.magnitudes[:, np.newaxis] + 0.5)
    for _ in range(ROUNDS):
        costs, chosen = candidates(tables, x)
        form = (len(x), SEQUENCES, LENGTH)
        quantizer, parity = best_path(costs.reshape(*form, 4))
        branch = (2 * quantizer + parity).reshape(len(x), -1, 1)
        k = np.take_along_axis(chosen, branch, axis=2).reshape(form)
        counted = (len(x), -1)
        tables.count(
            x.reshape(form)[..., SETTLING:].reshape(counted),
            quantizer[..., SETTLING:].reshape(counted),
            k[..., SETTLING:].reshape(counted),
        )
    lengths = tables.magnitudes + 2
    offsets = [[tables.offsets[i, q, :n].tolist() for q in (0, 1)] for i, n in enumerate(lengths)]
    return Design(tables.freqs, offsets)


def generate() -> str:
    designs = [design(shape) for shape in gg.SHAPES]
    body = "\n".join(
        [
            "// Next state by 2 * state + parity of the magnitude.",
            gg.c_array("kTrellisNext", "uint8_t", NEXT.reshape(-1).tolist()),
            "// As kFreqs and kCentroidOffsets, at the same places (kTableStart): first those of "
            "the quantizer with",
            "// levels at whole steps, then those of the one at half steps, whose offsets hold "
            "the half.",
            *(
                gg.c_array(
                    name,
                    kind,
                    [v for d in designs for pair in getattr(d, field) for v in pair[q]],
                )
                for name, kind, field, q in [
                    ("kWholeFreqs", "uint16_t", "freqs", 0),
                    ("kHalfFreqs", "uint16_t", "freqs", 1),
                    ("kWholeOffsets", "int16_t", "offsets", 0),
                    ("kHalfOffsets", "int16_t", "offsets", 1),
                ]
            ),
        ]
    )
    # Of both files: a trellis segment's classes and its finest blocks use the other one's tables.
    plain = zlib.crc32(gg.OUTPUT.read_bytes())
    return gg.included(body, "tools/generate_trellis.py", "trellis.h", "kTrellisTableId", plain)


if __name__ == "__main__":
    sys.exit(gg.run(__doc__, generate, OUTPUT))
