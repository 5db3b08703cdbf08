"""Ends of programs, in every way that a user may end one; see test_threads.py.

    python tests/exit_ranks.py FOLDER [--all]

Forks the ranks of each trial, so that torch is imported once and yet each ends as a program does,
by the interpreter's own shutdown. Writes FOLDER/results.json: how each rank of each trial ended.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from one_bucket import Reductions
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gct

LIMIT = 20.0  # seconds for a rank to end; the process group's timeout is 5
_EARLY = 20.0  # times the pause, of up to 0.05 s
# How the ranks end, their number, settings of the state, how many times.
Trial = tuple[str, int, dict[str, Any], int]
FEW: list[Trial] = [
    ("interrupt all", 2, {"checksum": True}, 2),
    ("interrupt early", 2, {"checksum": True}, 1),
    ("interrupt one", 2, {}, 1),
    ("leave", 2, {"checksum": True}, 1),
]
ALL: list[Trial] = [
    *FEW,
    ("interrupt all", 2, {}, 5),
    ("interrupt all", 2, {"checksum": True, "error_feedback": True}, 5),
    ("interrupt all", 4, {"hierarchy": 2}, 3),
    ("interrupt early", 2, {"checksum": True}, 5),
    ("interrupt early", 4, {"hierarchy": 2}, 3),
    ("interrupt one", 2, {}, 3),
    ("leave", 2, {}, 2),
    ("leave", 4, {"hierarchy": 2}, 2),
]


def train(rank: int, world: int, folder: Path, settings: dict[str, Any], leave: bool) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=5),
    )
    state = gct.GCTState(start_step=1, min_numel=0, **settings)
    if leave:
        reductions = Reductions(state, 1 << 20)
        for _ in range(2):
            reductions.start().wait()
        for _ in range(3 if rank == 0 else 0):
            reductions.start()  # nobody answers
        (folder / f"ready-{rank}").touch()
        return
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256))
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.2)
    ddp.register_comm_hook(state, gct.hook)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for step in range(10**9):
        optimizer.zero_grad()
        ddp(torch.randn(8, 256)).square().mean().backward()
        optimizer.step()
        if step == 3:
            (folder / f"ready-{rank}").touch()


def fork_rank(rank: int, world: int, folder: Path, settings: dict[str, Any], leave: bool) -> int:
    """The parent gets the child's id. The child never returns: it ends as a script does."""
    # Ctrl-C may come as soon as it lives: not before its output has a place.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return pid
    output = os.open(folder / f"output-{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    train(rank, world, folder, settings, leave)
    sys.exit(0)


def wait(pid: int, deadline: float) -> int | None:
    """Its status, as subprocess has it; None if it had to be killed."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def wait_until_ready(files: list[Path]) -> None:
    deadline = time.monotonic() + 30.0
    while not all(file.exists() for file in files):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not ready: {[file.name for file in files if not file.exists()]}")
        time.sleep(0.01)


def trial(how: str, world: int, settings: dict[str, Any], folder: Path, pause: float) -> Any:
    folder.mkdir()
    pids = [fork_rank(rank, world, folder, settings, how == "leave") for rank in range(world)]
    if how == "interrupt early":  # while they meet, set up, or take their first steps
        time.sleep(pause * _EARLY)
    else:
        wait_until_ready([folder / f"ready-{rank}" for rank in range(world)])
        time.sleep(pause)
    if how != "leave":
        for pid in pids[:1] if how == "interrupt one" else pids:
            os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + LIMIT
    statuses = [wait(pid, deadline) for pid in pids]
    outputs = [(folder / f"output-{rank}").read_text()[-3000:] for rank in range(world)]
    return {
        "how": how,
        "settings": settings,
        "pause": pause,
        "seconds": time.monotonic() - deadline + LIMIT,
        "statuses": statuses,
        "outputs": outputs,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    pauses = random.Random(0)
    results = []
    for how, world, settings, times in ALL if sys.argv[2:] == ["--all"] else FEW:
        for _ in range(times):
            place = folder / str(len(results))
            results.append(trial(how, world, settings, place, pauses.uniform(0.0, 0.05)))
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
