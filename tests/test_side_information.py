"""benchmarks/side_information.py's entropies, where they are known."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import side_information as side

pytestmark = pytest.mark.usefixtures("one_thread")


def test_classes_are_half_octaves() -> None:
    x = torch.cat([torch.full((256,), 1.0), torch.full((256,), -4.0), torch.zeros(256)])
    assert side.classes_of(x, 256).tolist() == [0, 4, side._ZERO]


def test_what_predicts_a_class_takes_its_bits_away() -> None:
    torch.manual_seed(1)
    classes = torch.randint(-3, 4, (100_000,))
    bits = {k: v / classes.numel() for k, v in side.class_bits(classes, classes).items()}
    # Independent and uniform: log2(7) bits as they are; as a difference, its triangle's entropy.
    triangle = [(7 - abs(d)) / 49 for d in range(-6, 7)]
    expected = -sum(p * math.log2(p) for p in triangle)
    assert bits["block before"] == pytest.approx(expected, rel=1e-3)
    assert bits["step before"] == 0
    assert bits["both"] == 0
    assert math.log2(7) - 0.01 < bits["two before"] < expected

    other = torch.randint(-3, 4, (100_000,))
    useless = side.class_bits(classes, other)
    # Given where the block before stood, which the other says next to nothing of.
    assert useless["both"] / classes.numel() > math.log2(7) - 0.02
    assert useless["step before"] == pytest.approx(useless["block before"], rel=1e-2)


def test_zero_blocks_in_one_run_cost_nothing_as_runs() -> None:
    classes = torch.zeros(10_000, dtype=torch.int64)
    classes[2_000:7_000] = side._ZERO
    bits = side.zero_bits(classes)
    assert bits["each"] == pytest.approx(10_000)
    assert bits["runs"] < 50  # two changes among 10,000


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
def test_symbols_of_one_shape_need_no_more_than_their_frequencies(shape: float) -> None:
    torch.manual_seed(2)
    magnitude = torch._standard_gamma(torch.full((1 << 20,), 1 / shape, dtype=torch.float64))
    signs = torch.randint(0, 2, magnitude.shape).mul(2).sub(1)
    x = magnitude.pow(1 / shape) * signs
    x *= 1 / x.abs().mean()  # every block is of class 0, or nearly
    bits = side.symbol_bits(x, step=1.0, classes=torch.zeros(1 << 12, dtype=torch.int64))
    # 400 frequencies that are counted gain some bits each from a million symbols, and the shape
    # stands on a grid of 2^(1/4).
    assert bits["own frequencies"] <= bits["one shape"] < 1.002 * bits["own frequencies"]
    assert bits["one shape"] == bits["a shape for each class"]


def test_tables_are_distributions() -> None:
    for shape in side.SHAPES:
        bits = side.table(shape, scale_class=3, step=1.5)
        probabilities = torch.pow(2.0, -bits)
        probabilities[1:] *= 2  # both signs
        assert float(probabilities.sum()) == pytest.approx(1, abs=1e-3)


def test_it_compares_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    scales = torch.randn(256, 1).exp()
    for name in ("last", "now"):
        torch.save({"weight": torch.randn(256, 256) * scales}, tmp_path / f"{name}.pt")
    paths = [str(tmp_path / f"{name}.pt") for name in ("last", "now")]
    words = [*paths, "--snr", "9", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["side_information.py", *words])
    side.main()
    found = json.loads((tmp_path / "out.json").read_text())["results"]["9 dB"]
    assert "class: step before" in capsys.readouterr().out
    # Rows keep their scales, which their neighbours don't know.
    assert found["class: step before"] < found["class: block before"] / 3
    assert found["all, blocks of 256"] < found["all, blocks of 1024"]

    torch.save({"weight": torch.randn(64, 64)}, tmp_path / "other.pt")
    monkeypatch.setattr(sys, "argv", ["side_information.py", paths[0], str(tmp_path / "other.pt")])
    with pytest.raises(SystemExit) as ended:
        side.main()
    assert ended.value.code == 2
    assert "expected gradients of the same model" in capsys.readouterr().err
