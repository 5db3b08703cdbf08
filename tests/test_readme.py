"""The README's example runs as it stands, and prints what the text around it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [script] = [block for block in blocks if "init_process_group" in block]
    return str(script)


def test_example_trains_over_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(example())
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*run, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    [loss, bits] = map(float, re.search(r"loss (\S+), (\S+) bits", done.stdout).groups())
    ratio = float(re.search(r"(\S+) times fewer", done.stdout).group(1))
    # A model that outputs zeros has loss 2: mean (0 - x)^2 + mean x^2 would be 1 + 1.
    assert loss < 1.5
    assert bits == pytest.approx(2.0, abs=0.1)
    assert ratio == pytest.approx(32 / bits, rel=0.02)
