"""``--local N``: this program again, N times, on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from multihost.errors import UserError, exit_on_signals
from multihost.rendezvous import LAUNCHER_VARIABLE, free_port

_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05
_INTERRUPTED = 130


_LAUNCHER = "--local"


def is_local_rank() -> bool:
    """Whether run_locally started this process."""
    return os.environ.get(LAUNCHER_VARIABLE) == _LAUNCHER


def run_locally(ranks: int, arguments: Sequence[str]) -> int:
    """Start this script ``ranks`` times and wait; 0, or 1 where a rank has said what failed.

    Raises:
        UserError: a rank ended without a word, by a signal for example.
    """
    exit_on_signals()  # the ranks must not outlive this process
    port = free_port("127.0.0.1")
    command = [sys.executable, sys.argv[0], *arguments]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            processes.append(subprocess.Popen(command, env=_environment(rank, ranks, port)))
        return _wait(processes)
    except KeyboardInterrupt:
        return _INTERRUPTED  # the terminal has told the ranks, too
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    environment = {
        # More threads than cores make every process wait for the others.
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // ranks)),
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER_VARIABLE: _LAUNCHER,
    }
    if Path("/sys/class/net/lo").exists():
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # however the host name resolves
    return environment


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    failed: dict[int, int] = {}  # status by rank, the first to fail first
    deadline = None
    while True:
        codes = [process.poll() for process in processes]
        failed = {**failed, **{r: c for r, c in enumerate(codes) if c and r not in failed}}
        if failed and deadline is None:
            deadline = time.monotonic() + _GRACE_SECONDS
        if None not in codes or (deadline is not None and time.monotonic() > deadline):
            break
        time.sleep(_POLL_SECONDS)
    # A rank that exits with 1 has said why; that others are lost says less than how one was.
    for rank, code in failed.items():
        if code != 1:
            raise UserError(_how_it_ended(rank, len(processes), code))
    return 1 if failed else 0


def _how_it_ended(rank: int, ranks: int, code: int) -> str:
    what = f"Rank {rank} of {ranks} ended"
    if code == -signal.SIGKILL:
        return (
            f"{what} by SIGKILL: if nobody killed it, memory ran out (see dmesg); choose a smaller "
            "-e or fewer ranks."
        )
    if code < 0:
        return f"{what} by signal {-code}: see its messages above, and report a crash."
    return f"{what} with status {code}: see its messages above."
