"""benchmarks/exposed.py: real steps over a link whose rate is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from laboratory import BENCHMARKS, needs_hosts, netlab

TOOL = str(BENCHMARKS / "exposed.py")


@needs_hosts
@pytest.mark.alone
def test_what_a_link_lets_through_is_left(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    words = ["--schemes", "fp32", "gct-2", "--buckets", "2", "--backward-ms", "60"]
    words += ["--seconds", "0.1", "--json", str(out)]
    ended = netlab("run", "--hosts=2", "--rate=100mbit", "--", sys.executable, TOOL, *words)
    assert ended.returncode == 0, ended.stderr
    content = json.loads(out.read_text())
    assert content["facts"]["ranks"] == 2
    fp32, gct = content["rows"]
    assert [fp32["scheme"], gct["scheme"]] == ["fp32", "gct-2"]
    for row in (fp32, gct):
        assert row["steps"] >= 5
        assert row["base"] >= 0.06, "backward takes the time that was asked for"
        assert row["step_min"] <= row["step"] <= row["step_max"]
        assert row["exposed"] == pytest.approx(row["step"] - row["base"])
    # A ring among two ranks sends each byte once; the link's frames are larger than their payload.
    payload = 4 * fp32["buckets"] * fp32["bucket_numel"]
    wire = 8 * payload / 100e6
    # The first bucket is ready after half of backward, the rest of which can hide 30 ms of it;
    # tbf lets 16 KiB through at once, and the median of the base may be 20 ms late.
    assert fp32["exposed"] >= wire - 0.05
    # 1/16 of the bytes; 60 ms for the codec and a machine that others use.
    assert gct["exposed"] <= wire / 16 + 0.06
    assert all(f"{row['scheme']} " in ended.stdout for row in (fp32, gct))


def test_two_ranks_of_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    words = ["--local", "2", "--buckets", "3", "--bucket-mb", "1", "--backward-ms", "90"]
    words += ["--schemes", "gct-2", "--seconds", "0.1", "--json", str(out)]
    command = [sys.executable, TOOL, *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "3 buckets of 1 MiB ready over 90 ms" in ended.stdout
    [row] = json.loads(out.read_text())["rows"]
    assert (row["buckets"], row["bucket_numel"]) == (3, 1 << 18)
    assert min(row["base"], row["step_min"]) >= 0.09


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--schemes", "powersgd-4"], "never ends with several buckets over Gloo"),
        (["--bucket-mb", "0"], "expected a whole number from 1 to 1024"),
        (["--buckets", "0"], "expected a whole number from 1 on"),
        (["--backward-ms", "-1"], "expected a number above 0"),
    ],
)
def test_wrong_arguments(words: list[str], message: str) -> None:
    command = [sys.executable, TOOL, *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
