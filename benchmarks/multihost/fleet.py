"""One command on every host of a laboratory at once, as mpirun or srun would start it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from multihost import lab as labs
from multihost.errors import UserError
from multihost.lab import Lab
from multihost.rendezvous import LAUNCHER_VARIABLE

MASTER_PORT = 29400
GRACE_SECONDS = 10.0  # for the others, once one has failed
_POLL_SECONDS = 0.05
_GATE = 'read -r line && exec "$@" < /dev/null'


@dataclass(frozen=True)
class Process:
    """One of a run's processes, which waits for a line on its stdin before it does anything.

    On its way there it gets a UTS namespace (the one of host names) of its own. All that it starts
    inherits that, daemons with another session and environment too: so they are found again.
    """

    host: str
    rank: int
    popen: subprocess.Popen[bytes]


def run_everywhere(
    lab: Lab,
    command: Sequence[str],
    per_host: int = 1,
    timeout: float | None = None,
    quiet: bool = False,
) -> int:
    """Run ``command`` ``per_host`` times on every host and wait; 0, or the first failure's status.

    Several may run in one laboratory at once. Each process finds torch's ``env://`` variables and
    may use them or not. In the command's words ``{host}``, ``{rank}`` (of the host), ``{hosts}``
    (their number) and ``{head}`` (the first host) are replaced. Rank 0's output passes through;
    other ranks' lines go to stderr with the rank before them, or nowhere with ``quiet``. Whatever
    way this ends, none of its processes is left.

    Raises:
        UserError: not done within ``timeout`` seconds.
    """
    marks: list[int] = []
    started: list[Process] = []
    threads: list[threading.Thread] = []
    try:
        for node, host in enumerate(lab.hosts):
            words = [_fill(word, lab, node) for word in command]
            for local in range(per_host):
                process = _start(lab, host, words, environment(lab, node, local, per_host))
                started.append(process)
                threads += _forward(process, quiet)
        for process in started:
            _release(process, marks)
        return _wait(started, timeout)
    finally:
        with labs.uninterrupted():  # a second interrupt must not cut this short
            for process in started:
                _close_gate(process)
            labs.end_processes(lambda: _marked(marks))
            for process in started:
                process.popen.wait()
            for mark in marks:
                os.close(mark)
            for thread in threads:
                thread.join(timeout=2.0)


def environment(lab: Lab, node: int, local: int, per_host: int) -> dict[str, str]:
    """Variables for one process: torch's rendezvous, and this machine's cores divided fairly."""
    ranks = len(lab.hosts) * per_host
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    return {
        "OMP_NUM_THREADS": threads,
        "GCT_NUM_THREADS": threads,
        "MASTER_PORT": str(MASTER_PORT),  # a second run at the same time needs another one
        **os.environ,
        "RANK": str(node * per_host + local),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(per_host),
        "GROUP_RANK": str(node),
        "MASTER_ADDR": lab.hosts[0],
        "GLOO_SOCKET_IFNAME": labs.INTERFACE,  # whatever was right on this machine
        # What would make the same hosts and start the same processes.
        LAUNCHER_VARIABLE: f"python benchmarks/netlab.py run --hosts {len(lab.hosts)} "
        f"--rate {labs.rate_of(lab)} --per-host {per_host} --",
    }


def _fill(word: str, lab: Lab, node: int) -> str:
    values = {
        "{host}": lab.hosts[node],
        "{rank}": str(node),
        "{hosts}": str(len(lab.hosts)),
        "{head}": lab.hosts[0],
    }
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _start(lab: Lab, host: str, words: Sequence[str], variables: Mapping[str, str]) -> Process:
    popen = subprocess.Popen(
        lab.command(host, ["sh", "-c", _GATE, "sh", *words]),
        env=dict(variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # the terminal's interrupt is for the one who cleans up
    )
    return Process(host, int(variables["RANK"]), popen)


def _release(process: Process, marks: list[int]) -> None:
    """Let a process go on as soon as its mark is among ``marks``: open files of UTS namespaces."""
    here = os.stat("/proc/self/ns/uts").st_ino
    while process.popen.poll() is None:
        with suppress(OSError):  # it has just ended
            # Open, or the kernel could give the number to a namespace of somebody else.
            mark = os.open(f"/proc/{process.popen.pid}/ns/uts", os.O_RDONLY)
            if os.fstat(mark).st_ino != here:
                marks.append(mark)
                break
            os.close(mark)
        time.sleep(0.001)
    assert process.popen.stdin is not None
    with suppress(BrokenPipeError):  # it has ended: _wait says so
        process.popen.stdin.write(b"go\n")
        process.popen.stdin.flush()
    _close_gate(process)


def _close_gate(process: Process) -> None:
    """A process that still waits for its line ends."""
    assert process.popen.stdin is not None
    with suppress(BrokenPipeError):
        process.popen.stdin.close()


def _marked(marks: Sequence[int]) -> set[int]:
    """Ids of the processes with one of these marks."""
    wanted = {os.fstat(mark).st_ino for mark in marks}
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # ended in between
            if os.stat(f"/proc/{pid}/ns/uts").st_ino in wanted:
                found.add(int(pid))
    return found


def _forward(process: Process, quiet: bool) -> list[threading.Thread]:
    assert process.popen.stdout is not None
    assert process.popen.stderr is not None
    if process.rank == 0:
        ways = [
            (process.popen.stdout, sys.stdout.buffer, b""),
            (process.popen.stderr, sys.stderr.buffer, b""),
        ]
    else:
        sink = None if quiet else sys.stderr.buffer
        prefix = f"[{process.host} rank {process.rank}] ".encode()
        ways = [(process.popen.stdout, sink, prefix), (process.popen.stderr, sink, prefix)]
    threads = [threading.Thread(target=_copy, args=way, daemon=True) for way in ways]
    with labs.uninterrupted():  # theirs for good: or they would take what the main thread blocks
        for thread in threads:
            thread.start()
    return threads


def _copy(source: IO[bytes], sink: IO[bytes] | None, prefix: bytes) -> None:
    # On a terminal whatever is there, so that progress bars move; else whole lines, or those of
    # stdout and stderr would run into each other.
    whole = prefix or sink is None or not sink.isatty()
    read = source.readline if whole else lambda: source.read1(1 << 16)  # type: ignore[attr-defined]
    with source:
        while data := read():
            if sink is not None:
                sink.write(prefix + data)
                sink.flush()


def _wait(started: Sequence[Process], timeout: float | None) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    status = 0
    while running := [p for p in started if p.popen.poll() is None]:
        failed = [p for p in started if p.popen.poll() not in (None, 0)]
        if failed and not status:
            status = failed[0].popen.returncode
            grace = time.monotonic() + GRACE_SECONDS
            deadline = grace if deadline is None else min(deadline, grace)
        if deadline is not None and time.monotonic() > deadline:
            if status:
                break
            hosts = ", ".join(f"{p.host} (rank {p.rank})" for p in running)
            raise UserError(f"Not done within {timeout:g} s on {hosts}: raise --timeout.")
        time.sleep(_POLL_SECONDS)
    codes = [p.popen.poll() for p in started]
    status = status or next((code for code in codes if code), 0)
    return status if status >= 0 else 128 - status  # ended by a signal, as a shell says it
