"""Join the process group, after making sure that everybody is there and of one mind."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from multihost.errors import UserError
from multihost.rendezvous import Place

BACKENDS = ("gloo", "nccl", "mpi")
# Rank 0 holds the store: it gives up after the others, so that they can say who is missing, too.
_GRACE_SECONDS = 2.0


def shared_facts(args: argparse.Namespace, own: Sequence[str]) -> dict[str, Any]:
    """What must be the same on all ranks, or their messages would not fit together.

    ``own``: options that may differ. ``args`` has the schemes, too.
    """
    facts = {f"--{k.replace('_', '-')}": v for k, v in vars(args).items() if k not in own}
    facts["the version of torch"] = torch.__version__
    if any(scheme.startswith("gct") for scheme in args.schemes):
        import gct

        facts["the version of gct"] = gct.__version__
    return facts


@contextmanager
def process_group(
    place: Place, backend: str, timeout: float, facts: Mapping[str, Any]
) -> Iterator[None]:
    """The default process group of ``place.world`` ranks; ``facts`` must be the same on all.

    Raises:
        UserError: a backend that is not there, ranks that do not show up within ``timeout``
            seconds, ranks with other facts, or one that is lost later.
    """
    device = _device(backend, place)
    store = _meet(place, timeout)
    try:
        _compare(store, place, timeout, facts)
    except RuntimeError as error:
        raise UserError(
            f"Rank {place.rank} of {place.world} lost rank 0 while waiting for the others "
            f"({_first_line(error)}): see why rank 0 ended."
        ) from error
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
    except (RuntimeError, MemoryError) as error:
        if is_memory_error(error):
            raise UserError(
                f"Rank {place.rank} of {place.world} has too little memory "
                f"({_first_line(error)}): choose a smaller -e, or fewer ranks on a host."
            ) from error
        raise UserError(
            f"Rank {place.rank} of {place.world} lost another rank ({_first_line(error)}): see "
            "whether that one said why it ended; if the network is only slow, raise --timeout from "
            f"{timeout:g} s."
        ) from error
    finally:
        dist.destroy_process_group()


def is_memory_error(error: BaseException) -> bool:
    """Torch raises a RuntimeError of no class of its own for the CPU's memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        text in str(error) for text in ("DefaultCPUAllocator", "std::bad_alloc")
    )


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
    if serves:
        _resolve(place)
    if not serves and not _reachable(place, timeout):
        raise UserError(
            f"Rank {place.rank} of {place.world}: nobody answers at {place.address}:{place.port} "
            f"within {timeout:g} s: start rank 0, check that this name and port can be reached "
            "from here (MASTER_ADDR, MASTER_PORT, firewall), or raise --timeout."
        )
    store = _store(place, serves, timeout)
    if store is None:
        raise UserError(
            f"Rank {place.rank} of {place.world}: what listens at {place.address}:{place.port} is "
            "not rank 0 of this run: set MASTER_PORT to a free port, the same on all ranks."
        )
    return store


def _store(place: Place, serves: bool, timeout: float) -> dist.Store | None:
    """The store, or None if it does not answer.

    TCPStore waits for its first answer without a limit: hence the thread.
    """
    answer: queue.SimpleQueue[dist.Store | RuntimeError] = queue.SimpleQueue()

    def connect() -> None:
        try:
            store = dist.TCPStore(
                place.address,
                place.port,
                is_master=serves,
                timeout=datetime.timedelta(seconds=timeout),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except RuntimeError as error:
            answer.put(error)
        else:
            answer.put(store)

    threading.Thread(target=connect, daemon=True).start()
    try:
        result = answer.get(timeout=timeout)
    except queue.Empty:
        return None
    if isinstance(result, RuntimeError):
        raise UserError(
            f"Rank {place.rank} of {place.world} can't use {place.address}:{place.port} as the "
            f"meeting place ({_first_line(result)}): set MASTER_PORT to another port."
        ) from result
    return result


def _resolve(place: Place) -> None:
    try:
        socket.getaddrinfo(place.address, place.port)
    except socket.gaierror as error:
        raise UserError(
            f"Rank {place.rank} of {place.world}: the name {place.address!r} has no address "
            f"({error.strerror}): set MASTER_ADDR to a name or address of rank 0's host."
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
    grace = _GRACE_SECONDS if place.rank == 0 else 0.0
    deadline = time.monotonic() + timeout + grace
    while missing := [rank for rank, key in enumerate(keys) if not store.check([key])]:
        if time.monotonic() > deadline:
            ranks = ", ".join(map(str, missing))
            raise UserError(
                f"Rank {ranks} of {place.world} did not come to {place.address}:{place.port} "
                f"within {timeout:g} s: start every rank, look at the missing one's messages, or "
                "raise --timeout."
            )
        time.sleep(0.02)
    read = [json.loads(store.get(key)) for key in keys]
    _let_all_read(store, place)
    first = read[0]
    for rank, other in enumerate(read):
        for name in first.keys() | other.keys():
            if first.get(name) != other.get(name):
                raise UserError(
                    f"{name} is {first.get(name)!r} on rank 0 and {other.get(name)!r} on rank "
                    f"{rank}: give all ranks the same command and install the same versions on "
                    "all hosts."
                )


def _let_all_read(store: dist.Store, place: Place) -> None:
    """Rank 0 may serve the store: if it left at once, others would lose it before they have read
    what differs."""
    store.set(f"read/{place.rank}", "")
    if place.rank != 0:
        return
    deadline = time.monotonic() + _GRACE_SECONDS
    keys = [f"read/{rank}" for rank in range(place.world)]
    while not store.check(keys) and time.monotonic() < deadline:
        time.sleep(0.02)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
