"""What each rank does while a link is slowed down and cut; see test_network_faults.py.

    python tests/netlab_faults.py FOLDER

Run by root on a laboratory's hosts, one rank each. Writes FOLDER/RANK.json.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import assert_same_on_all_ranks
from torch import nn

import gct

NUMEL = 1 << 18
TIMEOUT = 10.0
SLOW = "1mbit"
UNLUCKY = 1  # the rank whose link it is


def tc(*words: str) -> None:
    subprocess.run(["tc", "qdisc", *words], check=True)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=TIMEOUT))
    rank, world = dist.get_rank(), dist.get_world_size()
    state = gct.GCTState(start_step=0)
    parameter = nn.Parameter(torch.zeros(NUMEL, 1))
    torch.manual_seed(rank)
    values = torch.randn(NUMEL, 1)

    def reduce() -> tuple[torch.Tensor, float]:
        began = time.monotonic()
        result = gct.hook(state, (values.clone(), parameter)).wait()
        return result, time.monotonic() - began

    reduce()
    exact, fast = reduce()
    assert_same_on_all_ranks(exact, world)
    if rank == UNLUCKY:
        limit = ["rate", SLOW, "burst", "16kb", "limit", "1mb"]
        tc("replace", "dev", "eth0", "root", "tbf", *limit)
    slowed, slow = reduce()
    results: dict[str, Any] = {
        "same": torch.equal(slowed, exact),
        "fast_seconds": fast,
        "slow_seconds": slow,
        "errors": [],
    }
    dist.barrier()
    if rank == UNLUCKY:
        time.sleep(1.0)  # what it has sent last may still be in its slow queue
        subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)
    began = time.monotonic()
    while len(results["errors"]) < 2:
        try:
            reduce()
        except RuntimeError as error:
            results["errors"].append(str(error))
            results.setdefault("error_seconds", time.monotonic() - began)
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(results))
    # Rank 0 holds the store that the others ask who is missing.
    while rank == 0 and len(list(Path(sys.argv[1]).glob("*.json"))) < world:
        time.sleep(0.05)


if __name__ == "__main__":
    main()
