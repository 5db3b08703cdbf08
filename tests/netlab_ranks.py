"""What each rank does in the laboratory of hosts; see test_hierarchy.py.

    python tests/netlab_ranks.py FOLDER

Writes FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import assert_same_on_all_ranks
from torch import nn

import gct
from gct._hosts import own_place

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from wire import interface_bytes

NUMEL = 1 << 19
CALLS = 2


def sent_bytes() -> int:
    """By this host so far, while nobody sends."""
    dist.barrier()
    sent = interface_bytes("eth0")
    dist.barrier()
    assert sent is not None
    return sent


def reduce(**settings: Any) -> dict[str, Any]:
    """Bytes that this host sends to others in CALLS all-reduces, and what came out."""
    state = gct.GCTState(bits=2.0, start_step=0, **settings)
    parameter = nn.Parameter(torch.zeros(NUMEL, 1))
    torch.manual_seed(dist.get_rank())
    values = torch.randn(NUMEL, 1)
    began = time.perf_counter()
    result = gct.hook(state, (values.clone(), parameter)).wait()
    first_seconds = time.perf_counter() - began
    before = sent_bytes()
    for _ in range(CALLS):
        result = gct.hook(state, (values.clone(), parameter)).wait()
    sent = sent_bytes() - before
    assert_same_on_all_ranks(result, dist.get_world_size())
    stats = state.stats()
    state.close()
    return {
        "sent": sent,
        "checksum": float(result.double().square().sum()),
        "first_seconds": first_seconds,
        "codec": stats["codec"],
        "codec_seconds": stats["codec_seconds"],
        "local_bytes": stats["local_bytes"],
    }


def take_open_mpis() -> None:
    """As docs/benchmarks.md tells a training script; where to meet is told by who starts it."""
    for name, theirs in {"RANK": "RANK", "WORLD_SIZE": "SIZE", "LOCAL_RANK": "LOCAL_RANK"}.items():
        os.environ[name] = os.environ[f"OMPI_COMM_WORLD_{theirs}"]


def main() -> None:
    torch.set_num_threads(1)
    of_mpirun = "OMPI_COMM_WORLD_RANK" in os.environ
    if of_mpirun:
        take_open_mpis()
    dist.init_process_group("gloo")
    results = {"place": own_place(), "flat": reduce(hierarchy="off"), "found": reduce()}
    if not of_mpirun:
        results["codec auto"] = reduce(codec="auto")
        del os.environ["GROUP_RANK"]
        results["by names"] = reduce()
    path = Path(sys.argv[1]) / f"{dist.get_rank()}.json"
    path.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
