"""Generate csrc/core/gain_tables.inc: what brings each table's levels to unit gain.

A level at the mean of its bin has the least error, and is smaller than what it stands for in one
way: E[x Q(x)] = E[Q(x)^2] = E[x^2] - D. Multiplied by E[x^2] / E[x Q(x)] the levels keep the size
of what was encoded, E[x Q(x)] = E[x^2], at an error of about D / (1 - D) in the place of D (both in
units of E[x^2]). It is the scale of DRIVE and EDEN (Vargaftik et al. 2021, 2022), there found for
each vector, here from the model.

    python tools/generate_gains.py            # rewrite csrc/core/gain_tables.inc
    python tools/generate_gains.py --check    # exit 1 if the committed file differs
"""

from __future__ import annotations

import functools
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # scripts beside each other, no package

import generate_tables as gg

OUTPUT = gg.OUTPUT.parent / "gain_tables.inc"

GAIN_UNIT = 4096
# Beyond it noise grows faster than gain helps: the variance of what is decoded is gain times the
# input's, and a block of which next to nothing is left is better left small.
MAX_GAIN = 4.0
COUNT = 2000  # magnitudes, the escape's among them, whose bins are summed up one by one


@functools.cache
def symbol_table(shape: float, t: int) -> dict[str, Any]:
    return gg.symbol_table(shape, t)


def deadzone(shape: float, ratio: int) -> float:
    """In steps, as the encoder interpolates it (csrc/core/quantize.h)."""
    below, share = divmod(ratio, 4)
    ends = [symbol_table(shape, min(t, gg.T_MAX))["deadzone"] for t in (below, below + 1)]
    return (ends[0] + share / 4 * (ends[1] - ends[0])) / gg.DEADZONE_UNIT


def gain(shape: float, ratio: int) -> int:
    """At log2(mean |x| / step) of ratio / 16, in 1/4096; levels are those of the nearest table."""
    table = symbol_table(shape, min((ratio + 2) // 4, gg.T_MAX))
    law, step = gg.UnitGG(shape), 2.0 ** (-ratio / 16)
    _, first, second = gg.bins(law, step, deadzone(shape, ratio), COUNT)
    offsets = np.full(COUNT - 1, table["offsets"][-1])
    offsets[: len(table["offsets"])] = table["offsets"]
    levels = step * (np.arange(1, COUNT) - offsets / gg.OFFSET_UNIT)
    correlation = float((first[1:-1] * levels).sum() + second[-1])
    return round(law.second / max(correlation, law.second / MAX_GAIN) * GAIN_UNIT)


def generate() -> str:
    ratios = range(4 * gg.T_MIN, 4 * gg.T_MAX + 1)
    gains = [gain(shape, ratio) for shape in gg.SHAPES for ratio in ratios]
    # Of the numbers from which on 16 log2(x) is rounded up, x from 1 to 2.
    mantissas = [math.ceil((2 ** ((i + 0.5) / 16) - 1) * 2**23) for i in range(16)]
    about = "// Of levels, in 1/4096: by shape, then by log2(mean |x| / step) in 1/16 octave.\n"
    body = f"constexpr int kGainsPerShape = {len(ratios)};\n" + about
    body += gg.c_array("kGains", "uint16_t", gains)
    body += "// Mantissas of 2^((i + 1/2) / 16), rounded up.\n"
    body += gg.c_array("kSixteenthMantissas", "uint32_t", mantissas)
    # Of both files: gains are of the other one's levels.
    plain = zlib.crc32(gg.OUTPUT.read_bytes())
    return gg.included(body, "tools/generate_gains.py", "gg_tables.h", "kGainTableId", plain)


if __name__ == "__main__":
    sys.exit(gg.run(__doc__, generate, OUTPUT))
