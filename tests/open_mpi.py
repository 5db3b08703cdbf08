"""Ranks that a real mpirun starts, here or on the hosts of a laboratory."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from laboratory import NAME, NETLAB, labs

_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def _mpirun() -> str | None:
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


def _is_open_mpi_5() -> bool:
    words = [str(_mpirun()), "--version"]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = re.search(r"\(Open MPI\) (\d+)", said)
    return found is not None and int(found[1]) >= 5


needs_mpirun = pytest.mark.skipif(_mpirun() is None, reason="mpirun is not installed (extra 'mpi')")


# Its agent in the place of ssh has another name in earlier ones.
needs_open_mpi_5 = pytest.mark.skipif(
    _mpirun() is None or not _is_open_mpi_5(), reason="mpirun is not that of Open MPI 5 or later"
)


def mpirun(
    ranks: int, *words: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """python with these words, on so many ranks of this machine."""
    command = [str(_mpirun()), "--oversubscribe", "-n", str(ranks), sys.executable, *words]
    return _run(command, environment or {})


@contextmanager
def two_hosts() -> Iterator[labs.Lab]:
    lab = labs.create(f"{NAME}-mpi", 2, labs.UNLIMITED)
    try:
        yield lab
    finally:
        labs.destroy(lab.name)


def mpirun_on(
    lab: labs.Lab,
    folder: Path,
    *words: str,
    map_by: str = "slot",
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """python with these words, two ranks on each host, started by mpirun on the first one.

    What mpirun does through ssh goes through netlab, to the hosts' own networks and names; the
    disk is the same, as on many clusters.
    """
    agent = folder / "instead-of-ssh"
    enter = shlex.join([*NETLAB, "exec", f"--name={lab.name}"])
    agent.write_text(f'#!/bin/sh\nhost=$1\nshift\nexec {enter} "$host" -- sh -c "$*"\n')
    agent.chmod(0o755)
    given = {"GLOO_SOCKET_IFNAME": labs.INTERFACE, **(environment or {})}
    options = ["--prtemca", "plm_ssh_agent", str(agent), "--map-by", map_by, "--bind-to", "none"]
    options += ["--host", ",".join(f"{host}:2" for host in lab.hosts)]
    options += [word for name in given for word in ("-x", name)]
    command = [str(_mpirun()), *options, sys.executable, *words]
    return _run(lab.command(lab.hosts[0], command), given)


def _run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **_AS_ROOT, **environment}
    return subprocess.run(
        command, capture_output=True, text=True, env=variables, timeout=90, check=False
    )
