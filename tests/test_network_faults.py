"""A link that gets slow, and one that is cut, between hosts of the laboratory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from laboratory import needs_hosts, netlab
from netlab_faults import NUMEL, TIMEOUT, UNLUCKY

HOSTS = 3


@needs_hosts
def test_slowed_and_cut_links(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("netlab_faults.py"))
    hosts = [f"--name=gct-fault-{os.getpid()}", f"--hosts={HOSTS}", "--rate=200mbit"]
    result = netlab("run", *hosts, "--no-probe", "--", sys.executable, script, str(tmp_path))
    assert result.returncode == 0, result.stderr
    for rank in range(HOSTS):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        # Before it is done, a rank has a third of the gradient, 2 bits an element, twice from the
        # slow one; that one waits until both others have one. At 1 Mbit/s, after a burst of 16 KB.
        assert seen["slow_seconds"] > (2 * NUMEL * 2 / 3 - 8 * 16384) / 1e6
        assert seen["slow_seconds"] > seen["fast_seconds"]
        assert seen["same"], "slower, and nothing else"
        # Behind it torch puts the stack of the thread that ran the callback: this one or its own.
        first, second = (error.partition("\n\nAt:\n")[0] for error in seen["errors"])
        assert second == first
        assert f"failed on rank {rank} of {HOSTS} while" in first
        # Those who can reach the store, which rank 0 holds, know who is missing.
        if rank != UNLUCKY:
            assert f"Dead, stuck or still waiting: rank {UNLUCKY}." in first
        # A job under way ends with the timeout, and the roll call takes up to 4 s.
        assert seen["error_seconds"] < TIMEOUT + 4.0 + 5.0
