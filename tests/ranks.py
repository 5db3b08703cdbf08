"""Runs a function on several ranks: one process each, joined by a Gloo process group."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

# A server process that has imported torch once and forks the ranks: each is fresh, and starts in
# a few hundredths of a second instead of seconds.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed", "gct"])

GRACE_SECONDS = 5.0  # for the others, once one rank has failed


class RankError(AssertionError):
    """Tracebacks of the ranks that failed."""


def run_ranks(
    world: int,
    body: Callable[..., Any],
    *args: Any,
    timeout: float = 60.0,
    group_timeout: float = 30.0,
    lost: Collection[int] = (),
) -> list[Any]:
    """Call body(rank, world, *args) on `world` ranks; what each returned, in rank order.

    `body` is a module-level function and its result can be pickled. `group_timeout` is the process
    group's. Ranks in `lost` are expected to end without a result; theirs is None. Raises RankError
    if a rank fails, or is not done within `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        ranks = [_start(rank, world, body, args, store, group_timeout) for rank in range(world)]
        try:
            results = _collect([connection for _, connection in ranks], timeout, lost)
            _join([process for process, _ in ranks], lost)
            return results
        finally:
            for process, _ in ranks:
                process.kill()
                process.join()


def _start(
    rank: int, world: int, body: Callable[..., Any], args: tuple[Any, ...], store: str, limit: float
) -> tuple[BaseProcess, Connection]:
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(
        target=_main, args=(rank, world, body, args, store, limit, theirs), daemon=True
    )
    process.start()
    theirs.close()
    return process, ours


def _main(
    rank: int,
    world: int,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    store: str,
    limit: float,
    connection: Connection,
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=limit),
        )
        connection.send((body(rank, world, *args), None))
    except BaseException:
        connection.send((None, traceback.format_exc()))
        raise


def _collect(connections: list[Connection], timeout: float, lost: Collection[int]) -> list[Any]:
    """What the ranks that aren't lost sent; raises once one failed and the rest had time to."""
    results: list[Any] = [None] * len(connections)
    failures: dict[int, str] = {}
    waiting = {rank: c for rank, c in enumerate(connections) if rank not in lost}
    deadline = time.monotonic() + timeout
    while waiting and (left := deadline - time.monotonic()) > 0:
        ready = wait(list(waiting.values()), left)
        for rank in [rank for rank, connection in waiting.items() if connection in ready]:
            try:
                results[rank], failure = waiting.pop(rank).recv()
            except (EOFError, ConnectionResetError):
                failure = "ended without a result"
            if failure is not None:
                failures[rank] = failure
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    for rank in waiting:
        failures.setdefault(rank, f"not done within {timeout} s")
    if failures:
        raise RankError(
            "\n".join(f"--- rank {rank}:\n{failure}" for rank, failure in sorted(failures.items()))
        )
    return results


def _join(processes: list[BaseProcess], lost: Collection[int]) -> None:
    """A rank that has delivered its result must also come to its end."""
    for rank, process in enumerate(processes):
        if rank in lost:
            continue
        process.join(20.0)
        if process.exitcode != 0:
            raise RankError(f"rank {rank} ended with status {process.exitcode} after its result")


def gather_bits(tensor: torch.Tensor, world: int) -> list[torch.Tensor]:
    """The tensor of every rank, without a change of its bits."""
    mine = tensor.detach().contiguous().view(-1).view(torch.uint8)
    everyone = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(everyone, mine)
    return everyone


def assert_same_on_all_ranks(tensor: torch.Tensor, world: int) -> None:
    if tensor.numel() == 0:
        return
    everyone = gather_bits(tensor, world)
    for rank, other in enumerate(everyone):
        assert torch.equal(other, everyone[0]), f"rank {rank} and rank 0 differ"
