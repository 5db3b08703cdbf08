"""Join the process group, after making sure that everybody is there and of one mind."""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from multihost.errors import UserError
from multihost.rendezvous import Place

BACKENDS = ("gloo", "nccl", "mpi")


@contextmanager
def process_group(
    place: Place, backend: str, timeout: float, facts: Mapping[str, Any]
) -> Iterator[None]:
    """The default process group of ``place.world`` ranks; ``facts`` must be the same on all.

    Raises:
        UserError: a backend that is not there, ranks that do not show up within ``timeout``
            seconds, or ranks with other facts.
    """
    device = _device(backend, place)
    store = _meet(place, timeout)
    _compare(store, place, timeout, facts)
    # torch's own variables: libraries ask for them, whatever the launcher was.
    os.environ.setdefault("LOCAL_RANK", str(place.local_rank))
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(place.local_world))
    try:
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=place.rank,
            world_size=place.world,
            timeout=datetime.timedelta(seconds=timeout),
            device_id=device,
        )
    except RuntimeError as error:
        raise UserError(
            f"Rank {place.rank} can't connect to the others over {backend} "
            f"({_first_line(error)}): if this host has several networks, set GLOO_SOCKET_IFNAME or "
            "NCCL_SOCKET_IFNAME to the interface that leads to the others."
        ) from error
    try:
        yield
        dist.barrier()  # rank 0 holds the store: it must not leave before the others
    finally:
        dist.destroy_process_group()


def _device(backend: str, place: Place) -> torch.device | None:
    if backend == "nccl":
        if not (dist.is_nccl_available() and torch.cuda.is_available()):
            raise UserError("The nccl backend needs a CUDA build of torch and a GPU: use gloo.")
        if place.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"This host has {torch.cuda.device_count()} GPU(s) and NCCL needs one for each "
                f"rank: start fewer ranks here than {place.local_world}, or use gloo."
            )
        torch.cuda.set_device(place.local_rank)
        return torch.device("cuda", place.local_rank)
    if backend == "mpi" and not dist.is_mpi_available():
        raise UserError(
            "This torch was built without MPI: use --backend gloo (under mpirun, too), or a torch "
            "built from source with MPI."
        )
    return None


def _meet(place: Place, timeout: float) -> dist.Store:
    serves = place.rank == 0 and not place.server_elsewhere
    if not serves and not _reachable(place, timeout):
        raise UserError(
            f"Rank {place.rank} of {place.world}: nobody answers at {place.address}:{place.port} "
            f"within {timeout:g} s: start rank 0, check that this name and port can be reached "
            "from here (MASTER_ADDR, MASTER_PORT, firewall), or raise --timeout."
        )
    try:
        return dist.TCPStore(
            place.address,
            place.port,
            is_master=serves,
            timeout=datetime.timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        raise UserError(
            f"Rank {place.rank} of {place.world} can't use {place.address}:{place.port} as the "
            f"meeting place ({_first_line(error)}): set MASTER_PORT to another port."
        ) from error


def _reachable(place: Place, timeout: float) -> bool:
    """Whether somebody listens. Asked before c10d asks, whose failure takes pages on stderr."""
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((place.address, place.port), timeout=left).close()
            return True
        except OSError:
            time.sleep(0.1)  # rank 0 is still starting
    return False


def _compare(store: dist.Store, place: Place, timeout: float, facts: Mapping[str, Any]) -> None:
    """Every rank writes its facts and reads all others'."""
    store.set(f"facts/{place.rank}", json.dumps(dict(facts)))
    keys = [f"facts/{rank}" for rank in range(place.world)]
    deadline = time.monotonic() + timeout
    while missing := [rank for rank, key in enumerate(keys) if not store.check([key])]:
        if time.monotonic() > deadline:
            ranks = ", ".join(map(str, missing))
            raise UserError(
                f"Rank {ranks} of {place.world} did not come to {place.address}:{place.port} "
                f"within {timeout:g} s: start every rank, look at the missing one's messages, or "
                "raise --timeout."
            )
        time.sleep(0.02)
    first = json.loads(store.get(keys[0]))
    for rank, key in enumerate(keys):
        other = json.loads(store.get(key))
        for name in first.keys() | other.keys():
            if first.get(name) != other.get(name):
                raise UserError(
                    f"{name} is {first.get(name)!r} on rank 0 and {other.get(name)!r} on rank "
                    f"{rank}: give all ranks the same command and install the same versions on "
                    "all hosts."
                )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
