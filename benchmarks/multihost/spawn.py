"""``--local N``: this program again, N times, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from multihost.rendezvous import LAUNCHER_VARIABLE, free_port

_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05
_INTERRUPTED = 130


_LAUNCHER = "--local"


def is_local_rank() -> bool:
    """Whether run_locally started this process."""
    return os.environ.get(LAUNCHER_VARIABLE) == _LAUNCHER


def run_locally(ranks: int, arguments: Sequence[str]) -> int:
    """Start this script ``ranks`` times and wait; 0, or the first failure's status."""
    port = free_port("127.0.0.1")
    command = [sys.executable, sys.argv[0], *arguments]
    processes = [
        subprocess.Popen(command, env=_environment(rank, ranks, port)) for rank in range(ranks)
    ]
    try:
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
    deadline = None
    while any(process.poll() is None for process in processes):
        if deadline is None and any(process.poll() for process in processes):
            deadline = time.monotonic() + _GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    return next((code for p in processes if (code := p.poll())), 0)
