"""Which ranks share a host."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gct._checks import plain_number

HierarchySetting = Literal["auto", "off"] | int | Sequence[Sequence[int]]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# torchrun's, Open MPI's, and that of MPICH's and Intel's launcher.
_LOCAL_SIZE_VARIABLES = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


class Place(NamedTuple):
    """Where a rank runs, as it tells the others."""

    host: str  # the same text on all ranks of a host, and on no other
    local_size: int | None  # ranks that the launcher started there, if it says so


def local_size(environ: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks the launcher has started on this host; None where it does not say."""
    for name in _LOCAL_SIZE_VARIABLES:
        if environ.get(name, "").isdigit():
            return max(1, int(environ[name]))
    return None


def own_place(environ: Mapping[str, str] = os.environ) -> Place:
    """This rank's place.

    torchrun numbers the hosts. MPI's launchers say how many ranks share one but not which, and
    Slurm's numbers are those of mpirun's helpers where mpirun runs inside of it; the host itself
    is never wrong: its name, and the boot that Linux numbers, because names may repeat.
    """
    if {"GROUP_RANK", "LOCAL_WORLD_SIZE"} <= environ.keys():
        return Place(f"torchrun's host {environ['GROUP_RANK']}", local_size(environ))
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    return Place(f"{socket.gethostname()} {boot}", local_size(environ))


def find_hosts(places: Sequence[Place]) -> tuple[list[list[int]], str]:
    """The ranks of each host, from every rank's place; the same on all ranks.

    Returns:
        The hosts, none where nothing is gained (one host, or one rank on each) or hosts differ in
        size; and what to tell the user in the latter case, else "".
    """
    by_host: dict[str, list[int]] = {}
    for rank, place in enumerate(places):
        by_host.setdefault(place.host, []).append(rank)
    hosts = list(by_host.values())
    for host in hosts:
        started = places[host[0]].local_size
        if started is not None and len(host) > started:
            return [], (
                f"ranks {host} seem to share a host on which the launcher has started {started}"
            )
    if len({len(host) for host in hosts}) > 1:
        return [], f"hosts have different numbers of ranks: {[len(host) for host in hosts]}"
    return _worth_it(hosts), ""


def given_hosts(hierarchy: int | Sequence[Sequence[int]], world: int) -> list[list[int]]:
    """The user's hosts; none where there is one, or one rank on each.

    Raises:
        ValueError: they don't cover ranks 0 to ``world`` - 1.
    """
    if isinstance(hierarchy, int):
        if world % hierarchy:
            raise ValueError(
                f"hierarchy={hierarchy} ranks on each host don't divide the group's {world}"
            )
        return _worth_it([list(range(i, i + hierarchy)) for i in range(0, world, hierarchy)])
    hosts = [list(host) for host in hierarchy]
    if sorted(rank for host in hosts for rank in host) != list(range(world)):
        raise ValueError(
            f"hierarchy must name each of the group's ranks 0 to {world - 1} once, got {hosts}"
        )
    return _worth_it(hosts)


def check_hierarchy(value: Any) -> HierarchySetting:
    """The setting in a form that JSON keeps.

    Raises:
        ValueError: something else, or hosts of different sizes.
    """
    value = plain_number(value)
    if value in ("auto", "off") or (type(value) is int and value > 0):
        return value
    try:
        hosts = [] if isinstance(value, str) else [[int(rank) for rank in host] for host in value]
    except (TypeError, ValueError):
        hosts = []
    if not hosts or len({len(host) for host in hosts}) != 1 or not hosts[0]:
        raise ValueError(
            'hierarchy must be "auto", "off", the number of ranks on each host, or each host\'s '
            f"ranks in lists of equal length, got {value!r}"
        )
    return hosts


def _worth_it(hosts: list[list[int]]) -> list[list[int]]:
    return hosts if len(hosts) > 1 < len(hosts[0]) else []
