"""Communication goes on beside everything else: backward, and other Python threads.

No times are compared. Each test makes one side wait for what only an overlap can bring about, so
without it nobody would get any further.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

import gct
from gct import collectives

WIDTH = 128
LAYERS = 3
PATIENCE = 10.0  # seconds; each wait takes milliseconds
WORLDS = pytest.mark.parametrize(("world", "per_host"), [(2, 1), (4, 2)])


def signal(name: str) -> None:
    distributed_c10d._get_default_store().set(name, "1")


def wait_for(name: str) -> None:
    store = distributed_c10d._get_default_store()
    store.wait([name], datetime.timedelta(seconds=PATIENCE))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


class Recording(gct.GCTState):
    """Keeps what the hook gives back."""

    futures: list[Future[Tensor]]

    def reduce_bucket(self, bucket: dist.GradBucket) -> Future[Tensor]:
        future = super().reduce_bucket(bucket)
        self.futures.append(future)
        return future


class Probed:
    """A model of one bucket a layer whose backward calls `first` before any gradient of it is
    there, and `late` when only the first layer's are missing."""

    def __init__(self, per_host: int) -> None:
        self.state = Recording(start_step=1, hierarchy=per_host)
        torch.manual_seed(0)
        self.layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
        self.ddp = DistributedDataParallel(nn.Sequential(*self.layers), bucket_cap_mb=0.001)
        self.ddp.register_comm_hook(self.state, gct.hook)
        for _ in range(2):  # the second pass is compressed, in the final buckets
            self.step()
        assert len(self.state.futures) == LAYERS

    def step(
        self, first: Callable[[], None] | None = None, late: Callable[[], None] | None = None
    ) -> None:
        self.state.futures = []

        def probe_late(module: nn.Module, args: object, output: Tensor) -> None:
            if late is not None:
                output.register_hook(lambda gradient: late())

        handle = self.layers[0].register_forward_hook(probe_late)
        output = self.ddp(torch.randn(8, WIDTH))
        handle.remove()
        if first is not None:
            output.register_hook(lambda gradient: first())
        output.square().mean().backward()


def backward_goes_on(rank: int, world: int, per_host: int) -> None:
    """The other ranks have no gradient before rank 0 is nearly through with its own."""
    probed = Probed(per_host)

    def late() -> None:
        assert len(probed.state.futures) == LAYERS - 1
        assert not probed.state.futures[0].done(), "the others have sent nothing yet"
        signal("nearly through")

    if rank == 0:
        probed.step(late=late)
    else:
        probed.step(first=lambda: wait_for("nearly through"))
    assert all(future.done() for future in probed.state.futures)


@WORLDS
def test_backward_does_not_wait_for_the_wire(world: int, per_host: int) -> None:
    run_ranks(world, backward_goes_on, per_host)


def reduction_goes_on(rank: int, world: int, per_host: int) -> None:
    """Backward goes no further before the result of its first bucket is there."""
    probed = Probed(per_host)

    def late() -> None:
        assert len(probed.state.futures) == LAYERS - 1, "backward is still under way"
        wait_until(probed.state.futures[0].done, "the first bucket waits for backward's end")

    probed.step(late=late)


@WORLDS
def test_results_arrive_during_backward(world: int, per_host: int) -> None:
    run_ranks(world, reduction_goes_on, per_host)


def other_threads_run(rank: int, world: int) -> None:
    """Rank 1 doesn't take part before another Python thread of rank 0 has run."""
    tensor = torch.ones(10_000)
    gct.all_reduce(tensor)
    if rank == 1:
        wait_for("another thread ran")
    else:
        channel = collectives._channel(dist.group.WORLD)
        jobs = channel.stats()["jobs"]

        def other() -> None:
            wait_until(lambda: channel.stats()["jobs"] > jobs, "the collective doesn't begin")
            time.sleep(0.1)  # by now the main thread waits
            signal("another thread ran")

        threading.Thread(target=other).start()
    gct.all_reduce(tensor)


def test_the_gil_is_free_while_a_collective_runs() -> None:
    run_ranks(2, other_threads_run)
