"""Other threads, other processes, and the end of the program: no crash, no wait for ever."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from one_bucket import Reductions
from ranks import assert_same_on_all_ranks, run_ranks
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import gct
from gct._channel import _channels
from gct._confirmation import Confirmation
from gct._hierarchy import _Bucket
from gct._regroup import Group, Regroup

# ---- threads

CODECS = [
    gct.Codec(bits=2.0),
    gct.Codec("eg", bits=3.0),
    gct.Codec("fixed", bits=4),
    gct.Codec(bits=1.5, allocation="mse"),
    gct.Codec(snr_db=15.0, rounding="stochastic"),
]


def test_threads_that_encode_and_decode_at_once() -> None:
    """They give the bytes and values that one alone gives."""
    torch.manual_seed(0)
    work = [(torch.randn(300, 257), codec) for codec in CODECS for _ in range(4)]

    def code(item: tuple[Tensor, gct.Codec]) -> tuple[Tensor, Tensor]:
        wire = gct.encode(*item)
        return wire, gct.decode(wire)

    alone = [code(item) for item in work]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(code, work * 3))
    for (wire, values), (expected_wire, expected) in zip(together, alone * 3, strict=True):
        assert torch.equal(wire, expected_wire)
        assert torch.equal(values, expected)


def threads_with_groups(rank: int, world: int) -> None:
    """Each thread has a group of its own; in a group, calls come in one order."""
    groups = [dist.new_group() for _ in range(4)]
    for group in groups:  # the first call makes groups, which all ranks do in one order
        gct.all_reduce(torch.ones(3), group=group)
    torch.manual_seed(rank)
    inputs = [torch.randn(50_000) for _ in groups]

    def reduce(number: int) -> list[Tensor]:
        return [gct.all_reduce(inputs[number].clone(), group=groups[number]) for _ in range(5)]

    with ThreadPoolExecutor(len(groups)) as threads:
        results = list(threads.map(reduce, range(len(groups))))
    for x, several in zip(inputs, results, strict=True):
        exact = x.clone()
        dist.all_reduce(exact)
        for result in several:
            assert torch.equal(result, several[0])
            assert_same_on_all_ranks(result, world)
        # 2 bits: an error of a third in norm, of each rank's values.
        assert (several[0] - exact / world).norm() < 0.5 * exact.norm() / world


def test_threads_that_reduce_at_once() -> None:
    run_ranks(2, threads_with_groups)


# ---- other processes


class Rows(Dataset[Tensor]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(32, generator=torch.Generator().manual_seed(index))


def with_workers(rank: int, world: int, context: str, workers: int) -> None:
    """The same training whoever loads the data, with new workers in each epoch."""
    # Ranks of this test may have children, unlike others.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]

    def train(**options: Any) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        ddp = DistributedDataParallel(model)
        ddp.register_comm_hook(gct.GCTState(start_step=1, min_numel=0), gct.hook)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for _ in range(2):
            for x in DataLoader(Rows(), batch_size=8, **options):
                optimizer.zero_grad()
                (ddp(x) - x).square().mean().backward()
                optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    alone = train()
    assert torch.equal(train(num_workers=workers, multiprocessing_context=context), alone)


@pytest.mark.parametrize(
    ("context", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.long)]
)
def test_workers_of_a_data_loader(context: str, workers: int) -> None:
    run_ranks(2, with_workers, context, workers, timeout=120.0)


def fork_in_flight(rank: int, world: int) -> None:
    """A child that comes to be while the engine's threads hold whatever locks they hold."""
    reductions = Reductions(gct.GCTState(start_step=0, checksum=True), 1 << 20)
    expected = reductions.start().wait()
    for _ in range(20):
        future = reductions.start()
        child = os.fork()
        if child == 0:
            del future
            wire = gct.encode(torch.ones(1000))
            os._exit(0 if gct.decode(wire).numel() == 1000 else 1)
        assert torch.equal(future.wait(), expected)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_forks_while_a_bucket_is_on_its_way() -> None:
    run_ranks(2, fork_in_flight)


# ---- their number


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_a_bad_number_of_threads_is_refused_before_training(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCT_NUM_THREADS", text)
    message = f"GCT_NUM_THREADS must be a whole number from 1 to 1024, got '{text}': unset it"
    with pytest.raises(ValueError, match=message):
        gct.GCTState()


# ---- the end


@pytest.fixture(
    scope="module", params=[[], pytest.param(["--all"], marks=pytest.mark.long)], ids=["few", "all"]
)
def ends(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ends")
    script = str(Path(__file__).with_name("exit_ranks.py"))
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, str(folder), *request.param]
    subprocess.run(command, env=environ, check=True, timeout=300)
    results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return results


def test_control_c_at_any_moment(ends: list[dict[str, Any]]) -> None:
    """An interrupted rank says KeyboardInterrupt, one that loses its peer what it lost."""
    for end in ends:
        if end["how"] == "leave":
            continue
        heard = ["KeyboardInterrupt" in output for output in end["outputs"]]
        assert heard[0] if end["how"] == "interrupt one" else any(heard), end
        for rank, (status, output) in enumerate(zip(end["statuses"], end["outputs"], strict=True)):
            assert status in (1, -2), end
            if rank == 0 or end["how"] != "interrupt one":
                # A peer that is gone already may be noticed first.
                assert "KeyboardInterrupt" in output or "RuntimeError" in output, end
            else:
                assert "RuntimeError: gct: " in output or "Connection" in output, end


class SlowToReturn:
    """An engine whose jobs are done when submit() returns: what is attached later runs at once."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def submit(self, **options: Any) -> None:
        self._engine.submit(**options)
        time.sleep(0.1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def threads_that_go_on(rank: int, world: int, owner: Any, name: str) -> list[bool]:
    """Whether each call of a step that other ranks wait for is on the main thread."""
    settings: dict[str, Any] = {"hierarchy": 2} if world > 2 else {"checksum": True}
    state = gct.GCTState(start_step=0, **settings)
    reductions = Reductions(state, 1 << 12)
    reductions.start().wait()
    for channel in list(_channels):
        channel._engine = SlowToReturn(channel._engine)  # type: ignore[assignment]
    on_main = []
    call = getattr(owner, name)

    def watched(*arguments: Any) -> Any:
        on_main.append(threading.current_thread() is threading.main_thread())
        return call(*arguments)

    setattr(owner, name, watched)
    reductions.start().wait()
    return on_main


@pytest.mark.parametrize(
    ("world", "owner", "name", "calls"),
    [
        (2, Confirmation, "_tell", 1),
        (2, Confirmation, "_hear", 1),
        (4, _Bucket, "start", 3),
        (4, _Bucket, "_end", 3),
    ],
    ids=["tell", "hear", "start of a step", "end of a step"],
)
def test_control_c_does_not_interrupt_what_others_wait_for(
    world: int, owner: Any, name: str, calls: int
) -> None:
    """It is raised on the main thread, wherever that is."""
    first_is_callers = name == "start"
    for on_main in run_ranks(world, threads_that_go_on, owner, name):
        assert on_main == [first_is_callers, *[False] * (calls - 1)]


def interrupted(*_: object) -> Any:
    raise KeyboardInterrupt


def test_control_c_in_the_callback_of_what_was_held(monkeypatch: pytest.MonkeyPatch) -> None:
    regroup = Regroup([["a", "b"]])
    held = []
    for index, key in enumerate("ba"):
        parameter = nn.Parameter(torch.zeros(3))
        held.append(regroup.hold(index, [key], [parameter], torch.ones(3)))
    (group,) = regroup.groups()
    monkeypatch.setattr(Group, "take_over", interrupted)
    reduced: Future[Tensor] = Future()
    reduced.set_result(torch.ones(6))
    regroup.finish([(group, reduced)])
    for future in held:
        with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
            future.wait()


def test_leaving_with_work_in_flight(ends: list[dict[str, Any]]) -> None:
    left = [end for end in ends if end["how"] == "leave"]
    assert left
    for end in left:
        assert end["statuses"] == [0] * len(end["statuses"]), end


def test_no_end_is_a_crash(ends: list[dict[str, Any]]) -> None:
    for end in ends:
        for output in end["outputs"]:
            for sign in ("Fatal", "terminate called", "Segmentation", "core dumped"):
                assert sign not in output, end
