"""benchmarks/experiments/coders.py: the code lengths that it compares are those of real codes."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch

import gct

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

from experiments.coders import (  # noqa: E402
    code_lengths,
    exp_golomb_bits,
    measure,
    symbols_of,
)


def exp_golomb(n: int, order: int) -> str:
    """The code word itself: n + 2^order in binary after as many zeros as it has bits beyond."""
    binary = bin(n + (1 << order))[2:]
    return "0" * (len(binary) - 1 - order) + binary


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_lengths_are_those_of_code_words(order: int) -> None:
    words = [exp_golomb(n, order) for n in range(500)]
    assert words[:3] == {0: ["1", "010", "011"], 3: ["1000", "1001", "1010"]}.get(order, words[:3])
    assert exp_golomb_bits(torch.arange(500), order).tolist() == [len(word) for word in words]
    # A prefix code: no word begins another.
    ordered = sorted(words)
    assert not any(b.startswith(a) for a, b in itertools.pairwise(ordered))


def test_totals_over_symbols() -> None:
    symbols = torch.tensor([0, 0, 0, 0, -3, 1, -3, -3])
    found = code_lengths(symbols)
    zigzag = {0: 0, 1: 1, -3: 6}
    words = [[exp_golomb(zigzag[int(k)], order) for k in symbols] for order in range(4)]
    totals = [sum(map(len, row)) for row in words]
    assert found["EG0"] == totals[0]
    assert found["EG best"] == min(totals)
    assert found["EG0 rank"] == 4 * 1 + 3 * 3 + 1 * 3  # 0, then -3, then 1
    assert found["entropy"] == pytest.approx(4 * 1 + 3 * 1.4150375 + 3, rel=1e-6)


@pytest.mark.parametrize("step", [2.0, 0.5, 0.125])
def test_symbols_are_those_that_were_coded(step: float) -> None:
    """Encoded again as exact multiples of the step, they come back."""
    generator = torch.Generator().manual_seed(1)
    x = gct.GeneralizedGaussian(0.6, 1.0).sample((60, 500), generator).float()
    size = step * float(x.double().std())
    codec = gct.Codec(step=size, allocation="mse", low_rank=0)
    symbols = symbols_of(x, gct.decode(gct.encode(x, codec)), size)
    again = gct.decode(gct.encode((symbols * size).float().view(60, 500), codec))
    assert torch.equal(symbols_of(symbols * size, again, size), symbols)
    with pytest.raises(AssertionError, match="steps from what should be its symbol"):
        symbols_of(x + 2 * size, again, size)


def test_matrix_of_low_rank_is_coded_as_symbols() -> None:
    """As gradients are: gct.encode's default would send a low-rank part and code the rest."""
    generator = torch.Generator().manual_seed(3)
    low = torch.randn(60, 2, generator=generator) @ torch.randn(2, 500, generator=generator)
    noise = gct.GeneralizedGaussian(0.6, 1.0).sample((60, 500), generator).float()
    x = 3 * low + noise
    size = 0.5 * float(x.double().std())
    decoded = gct.decode(gct.encode(x, gct.Codec(step=size, allocation="mse")))
    with pytest.raises(AssertionError, match="steps from what should be its symbol"):
        symbols_of(x, decoded, size)
    measure([x], 0.5)  # raises where that happens


def test_gct_is_below_exp_golomb_on_heavy_tails() -> None:
    generator = torch.Generator().manual_seed(2)
    x = gct.GeneralizedGaussian(0.6, 1.0).sample((200, 512), generator).float()
    found = measure([x], 1.0)
    assert found["entropy"] < found["EG best"]
    # One scale throughout: within 3 % of the entropy, headers counted; exp-Golomb is not.
    assert found["gct"] < 1.03 * found["entropy"] < found["EG best"]
    assert 0.01 < found["nmse"] < 0.2
