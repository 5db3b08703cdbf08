"""Generate csrc/core/gg_tables.inc: all of the codec's numbers from the generalized Gaussian model.

The codec never evaluates a transcendental function at run time: ranks with another CPU, compiler or
GPU would compute other tables and decode garbage. So the tables are computed here once, in float64,
and committed. tests/test_tables.py runs this script and compares.

    python tools/generate_tables.py            # rewrite csrc/core/gg_tables.inc
    python tools/generate_tables.py --check    # exit 1 if the committed file differs

Model (arXiv 2506.00486): f(x) = b / (2 a Gamma(1/b)) exp(-(|x|/a)^b), here always with mean
|x| = 1, that is a = Gamma(1/b) / Gamma(2/b). Moments of |x| below t come from the regularised lower
incomplete gamma function P: E[|x|^r; |x| < t] = E|x|^r P((r+1)/b, (t/a)^b).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import gamma, gammainc, gammaincc, gammaincinv

OUTPUT = Path(__file__).resolve().parent.parent / "csrc" / "core" / "gg_tables.inc"

PROB_BITS = 12
TOTAL = 1 << PROB_BITS
# 16 shapes: the rate is flat in the shape (an error of 0.1 costs 0.005 bits near 0.87), so a coarse
# grid is enough.
SHAPES = [0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.87, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.5, 6.0]
# log2(mean |x| / step) in quarter octaves. Finer steps send low bits aside, coarser ones use the
# first table.
T_MIN, T_MAX = -16, 10
MAX_MAGNITUDE = 62  # so that 2 * 62 + 2 symbols fit 7 bits
# Deadzones and centroid offsets are integers over these units: exact in float32.
DEADZONE_UNIT = 256
OFFSET_UNIT = 4096
# Slope of the rate-distortion trade in units of step^2 per bit. D = step^2 / 12 and
# R = h - log2(step) at high rate give -dD/dR = ln(2)/6 step^2; holding it for all tables makes one
# step for all blocks least-error at its rate.
LAMBDA = np.log(2) / 6
MAX_DEADZONE = 0.30

FIXED_BITS = range(1, 9)
LEVEL_UNIT = 1 << 16

CLASS_DELTA_MAX = 7
CLASS_THETAS = [0.02, 0.08, 0.18, 0.30, 0.42, 0.55, 0.70, 0.85]
CLASS_ZERO_PROBS = [0.0, 0.05, 0.30, 0.80]


class UnitGG:
    """Generalized Gaussian of mean |x| = 1; `below` and `above` are partial moments of |x|."""

    def __init__(self, shape: float) -> None:
        self.shape = shape
        self.alpha = gamma(1 / shape) / gamma(2 / shape)
        self.median = self.alpha * gammaincinv(1 / shape, 0.5) ** (1 / shape)
        self.second = self.alpha**2 * gamma(3 / shape) / gamma(1 / shape)

    def moment_total(self, r: int) -> float:
        return [1.0, 1.0, self.second][r]

    def above(self, r: int, t: np.ndarray) -> np.ndarray:
        return self.moment_total(r) * gammaincc(
            (r + 1) / self.shape, (t / self.alpha) ** self.shape
        )

    def below(self, r: int, t: np.ndarray) -> np.ndarray:
        return self.moment_total(r) * gammainc((r + 1) / self.shape, (t / self.alpha) ** self.shape)

    def binned(self, edges: np.ndarray, orders: range) -> list[np.ndarray]:
        """Moments of these orders between ascending edges and, last, above them; both signs.

        Of the two differences that give a bin, the one that doesn't cancel: lower parts up to the
        median.
        """
        split = int((edges[:-1] <= self.median).sum())
        parts = []
        for r in orders:
            above = self.above(r, edges[split:])
            below = self.below(r, edges[: split + 1])
            parts.append(np.concatenate([np.diff(below), -np.diff(above), above[-1:]]))
        return parts


def bins(
    gg: UnitGG, step: float, deadzone: float, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mass, sum of |x| and of x^2, both signs, of the magnitudes 0..count-1 and, last, above."""
    edges = np.concatenate([[0.0], (np.arange(count) + 0.5 + deadzone) * step])
    mass, first, second = gg.binned(edges, range(3))
    return mass, first, second


def entropy_and_distortion(gg: UnitGG, step: float, deadzone: float) -> tuple[float, float]:
    """Ideal bits an element and mean squared error in units of step^2, levels at the centroids."""
    mass, first, second = bins(gg, step, deadzone, 400)
    # Beyond the last bin no centroid is worth computing: error as in a flat cell, step^2 / 12.
    mass, first, second, rest = mass[:-1], first[:-1], second[:-1], mass[-1]
    keep = mass > 1e-300
    mass, first, second = mass[keep], first[keep], second[keep]
    sign_bits = mass[1:].sum()
    rate = float(-(mass * np.log2(mass)).sum() + sign_bits)
    distortion = second.sum() - (first[1:] ** 2 / mass[1:]).sum()
    return rate, float(distortion) / step**2 + rest / 12


def best_deadzone(gg: UnitGG, step: float) -> int:
    """Deadzone, in 1/256 of a step, that minimizes D + lambda R for the fixed lambda of LAMBDA."""

    def cost(unit: int) -> float:
        rate, distortion = entropy_and_distortion(gg, step, unit / DEADZONE_UNIT)
        return distortion + LAMBDA * rate

    last = int(MAX_DEADZONE * DEADZONE_UNIT)
    coarse = min(range(0, last + 1, 12), key=cost)
    return min(range(max(0, coarse - 10), min(last, coarse + 10) + 1, 2), key=cost)


def support(gg: UnitGG, step: float, deadzone: float) -> int:
    """Largest magnitude with a symbol of its own: beyond it lies less than half a slot."""
    k = 1
    while k < MAX_MAGNITUDE and gg.above(0, (k + 0.5 + deadzone) * step) > 0.5 / TOTAL:
        k += 1
    return k


def integer_freqs(mass: np.ndarray) -> list[int]:
    """Frequencies [zero, each sign of 1..K, escape]: at least 1, f0 + 2 sum + escape = TOTAL."""
    pairs = np.maximum(1, np.rint(mass[1:-1] / 2 * TOTAL)).astype(int)
    escape = max(1, round(mass[-1] * TOTAL))
    zero = TOTAL - 2 * int(pairs.sum()) - escape
    if not 1 <= zero < TOTAL:
        raise AssertionError(f"frequency of zero out of range: {zero}")
    return [zero, *pairs.tolist(), escape]


def golomb_bits(excess: np.ndarray, order: int) -> np.ndarray:
    """Length of the exp-Golomb code of this order (csrc/core/bit_io.h)."""
    return 2 * np.floor(np.log2(excess / 2**order + 1)) + 1 + order


def best_golomb_order(mass: np.ndarray) -> int:
    """Order of the exp-Golomb code that is shortest for zigzagged magnitudes of these masses."""
    k = np.arange(1, len(mass))

    def length(order: int) -> float:
        both_signs = golomb_bits(2 * k - 1, order) + golomb_bits(2 * k, order)
        return float(
            mass[0] * golomb_bits(np.zeros(1), order)[0] + (mass[1:] / 2 * both_signs).sum()
        )

    return min(range(8), key=length)


def symbol_table(shape: float, t: int) -> dict[str, object]:
    gg = UnitGG(shape)
    step = 2.0 ** (-t / 4)
    deadzone_units = best_deadzone(gg, step)
    deadzone = deadzone_units / DEADZONE_UNIT
    count = support(gg, step, deadzone)
    mass, first, _ = bins(gg, step, deadzone, count + 1)
    freqs = integer_freqs(mass)
    centroids = first[1:-1] / np.maximum(mass[1:-1], 1e-300) / step
    offsets = np.rint((np.arange(1, count + 1) - centroids) * OFFSET_UNIT).astype(int)
    offsets = np.clip(offsets, -OFFSET_UNIT // 2, OFFSET_UNIT // 2)
    code = -np.log2(np.array(freqs) / TOTAL)
    order = max(0, t // 4)
    wide_mass, _, _ = bins(gg, step, deadzone, 1000)
    tail = wide_mass[count + 1 : 1000]
    escape_bits = float((tail * (1 + golomb_bits(np.arange(len(tail)), order))).sum())
    rate = float((mass * np.concatenate([code[:1], code[1:-1], code[-1:]])).sum()) + escape_bits
    _, distortion = entropy_and_distortion(gg, step, deadzone)
    return {
        "golomb": best_golomb_order(wide_mass[:1000]),
        "deadzone": deadzone_units,
        "freqs": freqs,
        "offsets": offsets.tolist(),
        "rate": round(rate * 4096),
        "distortion": round(distortion * 16384),
    }


def lloyd_max(shape: float, magnitudes: int) -> list[int]:
    """Positive levels of the least-error symmetric quantizer of 2 * magnitudes levels, in 1/65536.

    Starts from the asymptotically optimal point density f^(1/3), a GG of the same shape and a wider
    scale.
    """
    gg = UnitGG(shape)
    p = (np.arange(magnitudes) + 0.5) / magnitudes
    levels = gg.alpha * 3 ** (1 / shape) * gammaincinv(1 / shape, p) ** (1 / shape)
    for _ in range(2000):
        edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2])
        mass, first = gg.binned(edges, range(2))
        new = first / mass
        done = np.max(np.abs(new - levels) / new) < 1e-6
        levels = new
        if done:
            break
    return np.rint(levels * LEVEL_UNIT).astype(np.float32).astype(int).tolist()  # exact in float32


def class_freqs(theta: float, zero: float) -> list[int]:
    """Frequencies of [zero block, escape, deltas -7..7]; deltas are two-sided geometric."""
    deltas = np.arange(-CLASS_DELTA_MAX, CLASS_DELTA_MAX + 1)
    p = theta ** np.abs(deltas)
    tail = 2 * theta ** (CLASS_DELTA_MAX + 1) / (1 - theta)
    p, tail = p / (p.sum() + tail), tail / (p.sum() + tail)
    zero_freq = max(1, round(zero * TOTAL))
    rest = TOTAL - zero_freq
    freqs = np.maximum(1, np.rint(p * rest)).astype(int)
    escape = max(1, round(tail * rest))
    freqs[CLASS_DELTA_MAX] += rest - escape - int(freqs.sum())
    return [zero_freq, escape, *freqs.tolist()]


def rho(shape: float) -> float:
    """E x^2 / (E|x|)^2 of a GG (Mallat 1989)."""
    return float(gamma(1 / shape) * gamma(3 / shape) / gamma(2 / shape) ** 2)


def c_array(name: str, ctype: str, values: list[object]) -> str:
    lines, line = [], "   "
    for value in values:
        item = f" {value},"
        if len(line) + len(item) > 118:
            lines.append(line)
            line = "   "
        line += item
    lines.append(line)
    return f"constexpr {ctype} {name}[] = {{\n" + "\n".join(lines) + "\n};\n"


def float_literal(x: float) -> str:
    """Hexadecimal, so that every compiler reads the same float32."""
    return float(np.float32(x)).hex() + "f"


def generate() -> str:
    tables = [symbol_table(shape, t) for shape in SHAPES for t in range(T_MIN, T_MAX + 1)]
    starts = np.concatenate([[0], np.cumsum([len(t["freqs"]) for t in tables])]).tolist()
    flat_freqs = [f for t in tables for f in t["freqs"]]
    # One entry per frequency, so that one index serves both: zero's offset is 0, the escape repeats
    # the last one.
    flat_offsets = [o for t in tables for o in [0, *t["offsets"], t["offsets"][-1]]]
    levels = [v for shape in SHAPES for b in FIXED_BITS for v in lloyd_max(shape, 2 ** (b - 1))]
    class_tables = [class_freqs(theta, zero) for zero in CLASS_ZERO_PROBS for theta in CLASS_THETAS]
    rhos = [rho(s) for s in SHAPES]
    limits = [float_literal((a * b) ** 0.5) for a, b in itertools.pairwise(rhos)]
    body = "\n".join(
        [
            f"constexpr int kNumShapes = {len(SHAPES)};",
            f"constexpr int kTableMin = {T_MIN};",
            f"constexpr int kTableMax = {T_MAX};",
            f"constexpr int kTablesPerShape = {T_MAX - T_MIN + 1};",
            f"constexpr int kMaxMagnitude = {MAX_MAGNITUDE};",
            f"constexpr int kNumClassModels = {len(class_tables)};",
            f"constexpr int kClassDeltaMax = {CLASS_DELTA_MAX};",
            "",
            c_array("kShapes", "float", [float_literal(s) for s in SHAPES]),
            "// Shape i is chosen while E x^2 / (E|x|)^2 is above kRhoLimits[i]; "
            "the last one below all.",
            c_array("kRhoLimits", "float", limits),
            "// 2^(i/16).",
            c_array("kExp2Sixteenths", "float", [float_literal(2 ** (i / 16)) for i in range(16)]),
            "// Table (shape, t) is entry shape * kTablesPerShape + t - kTableMin of the arrays "
            "below.",
            "// Its frequencies are kFreqs[kTableStart[i]..kTableStart[i + 1]): zero, one sign of "
            "1..K, escape.",
            c_array("kTableStart", "uint16_t", starts),
            c_array("kDeadzones", "uint8_t", [t["deadzone"] for t in tables]),
            "// Best order of an exp-Golomb code of the zigzagged symbols.",
            c_array("kGolombOrders", "uint8_t", [t["golomb"] for t in tables]),
            "// Bits a symbol in 1/4096, squared error in 1/16384 of step^2, both under the model.",
            c_array("kModelRate", "uint16_t", [min(65535, t["rate"]) for t in tables]),
            c_array("kModelDistortion", "uint32_t", [t["distortion"] for t in tables]),
            c_array("kFreqs", "uint16_t", flat_freqs),
            "// Magnitude minus centroid, in 1/4096 of a step.",
            c_array("kCentroidOffsets", "int16_t", flat_offsets),
            "// Lloyd-Max levels in 1/65536 of mean |x|: shape-major, then 1, 2, 4, ... 128 "
            "magnitudes for 1..8 bits.",
            c_array("kFixedLevels", "uint32_t", levels),
            "// Class models: [zero block, escape, deltas -7..7] each.",
            c_array("kClassFreqs", "uint16_t", [f for table in class_tables for f in table]),
        ]
    )
    return included(body, "tools/generate_tables.py", "gg_tables.h", "kTableId", 0)


def included(body: str, script: str, header: str, ident: str, checksum: int) -> str:
    """The file: who wrote it, an identity that continues a checksum, and the body."""
    identity = zlib.crc32(body.encode(), checksum)
    return (
        f"// Generated by {script}; do not edit. Included by {header} inside namespace gct.\n"
        f"// clang-format off\nconstexpr uint32_t {ident} = 0x{identity:08x}u;\n{body}"
    )


def run(doc: str, generate: Callable[[], str], output: Path) -> int:
    """The command line of a generator: write its file, or compare with it."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed file instead of writing"
    )
    text = generate()
    if parser.parse_args().check:
        same = output.read_text() == text
        print("tables are up to date" if same else f"{output} differs: run {sys.argv[0]}")
        return 0 if same else 1
    output.write_text(text)
    print(f"wrote {output} ({len(text)} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(run(__doc__, generate, OUTPUT))
