"""docs/codec.md: its code runs as it stands, and does what the text around it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "codec.md"

pytestmark = pytest.mark.usefixtures("one_thread")


class Run(NamedTuple):
    names: dict[str, Any]  # that the blocks have defined
    printed: str


@pytest.fixture
def page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The page's blocks, run one after the other in an empty folder."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 9
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return Run(names, capsys.readouterr().out)


def test_code_runs(page: Run) -> None:
    printed = page.printed
    [bits, error] = re.search(r"(\S+) bits per element, error (\S+)", printed).groups()
    assert 2.9 <= float(bits) <= 3.0
    # The best scalar quantizer of a normal variable has 16.5 dB at 3 bits: 0.022.
    assert 0.02 < float(error) < 0.03
    # Errors of 16 seeds are independent; what to-nearest centroids would bias is small beside.
    [ratio] = re.search(r"16 seeds: (\S+) times", printed).groups()
    assert 14 < float(ratio) < 18
    assert printed.count("times fewer") == 5
    assert "x must be float32, bfloat16, float16 or float64, got torch.int64" in printed


def test_files_hold_what_was_stored(page: Run) -> None:
    tensors, restored = page.names["tensors"], page.names["restored"]
    assert list(restored) == list(tensors)
    for name, tensor in tensors.items():
        other = restored[name]
        assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype)
        ratio = tensor.float().square().sum() / (tensor.float() - other.float()).square().sum()
        assert 19.5 < 10 * torch.log10(ratio) < 20.5
    total = sum(size for _, size, _, _ in page.names["index"])
    assert Path("all.gct").stat().st_size == total
