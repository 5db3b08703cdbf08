"""The soak run of benchmarks/soak.py, and that it would notice what it looks for."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from laboratory import BENCHMARKS, needs_hosts, netlab
from soak import Usage, faults


def usage_of(resident: list[int], files: list[int]) -> dict[str, object]:
    usage = Usage(resident, files, [7] * len(files))
    return {"differing_steps": 0, **usage.summary()}


def test_growth_and_leaks_are_noticed() -> None:
    flat = [1000 * (i >= 10) + 10**6 for i in range(100)]  # the first steps don't count
    assert not faults([usage_of(flat, [5] * 100)])
    growing = [10**6 + 200 * i for i in range(100)]
    [fault] = faults([usage_of(growing, [5] * 100)])
    assert fault.startswith("rank 0: memory has grown by 1.3")
    leaking = [5 + (i > 95) for i in range(100)]
    assert faults([usage_of(flat, leaking)]) == ["rank 0: 5 files have become 6"]
    differing = {**usage_of(flat, [5] * 100), "differing_steps": 3}
    assert faults([differing]) == ["rank 0: other results at 3 steps"]


@pytest.mark.long
@needs_hosts
def test_soak(tmp_path: Path) -> None:
    script, output = str(BENCHMARKS / "soak.py"), tmp_path / "soak.json"
    hosts = [f"--name=gct-soak-{os.getpid()}", "--hosts=4", "--rate=1gbit", "--no-probe"]
    command = [sys.executable, script, "--steps", "2000", "-o", str(output)]
    result = netlab("run", *hosts, "--", *command, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(output.read_text())["faults"] == []
