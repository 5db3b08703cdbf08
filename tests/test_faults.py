"""Ranks that die, stop, or aren't like the others: every survivor raises, in time, and says what.

The table in docs/reliability.md is made of these and of tests/test_network_faults.py.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
import torch.distributed as dist
from one_bucket import Reductions
from ranks import run_ranks
from resumable import END, SAVED, Run
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

import gct
from gct import _C, _agreement, _roll_call
from gct._confirmation import Confirmation
from gct._reducer import Reducer

TIMEOUT = 3.0  # the process group's, in seconds
# A wait ends with the group's timeout, then the roll is called for at most 2 s; the rest is for a
# busy machine.
IN_TIME = TIMEOUT + 2.0 + 5.0
VICTIM = 2


class Watched(Reductions):
    """Reductions in two shots, and how far the one under way has come."""

    def __init__(self, numel: int) -> None:
        super().__init__(gct.GCTState(start_step=0, algorithm="two_shot"), numel)
        self.before = self.counters()
        self.start().wait()
        first = self.counters()
        # What one of them takes, of each counter.
        self.whole = {name: first[name] - self.before[name] for name in first}
        self.running: Future[Tensor] | None = None

    def counters(self) -> dict[str, int]:
        now = self.state.counters()
        return {name: int(now.get(name, 0)) for name in ("encoded_numel", "wire_bytes")}

    def start(self) -> Future[Tensor]:
        self.before = self.counters()
        return super().start()

    def done(self, counter: str) -> float:
        """How much of the running reduction's total is done."""
        return (self.counters()[counter] - self.before[counter]) / self.whole[counter]

    def in_encode(self) -> bool:
        return 0.0 < self.done("encoded_numel") < 0.5

    def in_all_to_all(self) -> bool:
        """Both of the first shot's segments are sent, none of the second's two.

        Segments of three chunks are of nearly the same size.
        """
        return 0.4 < self.done("wire_bytes") < 0.6

    def in_all_gather(self) -> bool:
        return self.done("wire_bytes") == 1.0


# Eight slices of 1/3 for each rank, or a single one: then each shot is one exchange.
PHASES: dict[str, tuple[int, Callable[[Watched], bool]]] = {
    "encode": (8 << 19, Watched.in_encode),
    "all-to-all": (1 << 19, Watched.in_all_to_all),
    "all-gather": (1 << 19, Watched.in_all_gather),
}


def signal_in(
    reduction: Watched, reached: Callable[[Watched], bool], sign: int, mark: Path
) -> None:
    """Send this process a signal as soon as a reduction under way has come to a phase.

    Not a word to the store: stopped in the midst of it, this rank would keep the lock of the file
    that the survivors look into.
    """
    while True:
        running = reduction.running
        if running is not None and reached(reduction) and not running.done():
            mark.touch()
            os.kill(os.getpid(), sign)
            return
        time.sleep(1e-4)  # the other threads want the GIL, and other ranks this core


def lost_in_phase(rank: int, world: int, phase: str, sign: int, mark: Path) -> tuple[str, float]:
    """The survivors' error, and seconds that it took from the last sound reduction on."""
    numel, reached = PHASES[phase]
    reduction = Watched(numel)
    if rank == VICTIM:
        threading.Thread(
            target=signal_in, args=(reduction, reached, sign, mark), daemon=True
        ).start()
    while True:
        began = time.monotonic()
        reduction.running = reduction.start()
        try:
            reduction.running.wait()
        except RuntimeError as error:
            seconds = time.monotonic() - began
            assert mark.exists()
            return str(error), seconds


@pytest.mark.parametrize(
    ("phase", "sign"),
    [
        ("encode", signal.SIGKILL),
        ("all-to-all", signal.SIGKILL),
        ("all-gather", signal.SIGKILL),
        ("all-to-all", signal.SIGSTOP),
    ],
)
def test_a_rank_that_is_lost_in_a_phase(phase: str, sign: signal.Signals, tmp_path: Path) -> None:
    mark = tmp_path / "reached"
    results = run_ranks(
        3, lost_in_phase, phase, sign, mark, group_timeout=TIMEOUT, timeout=40.0, lost={VICTIM}
    )
    for rank, (error, seconds) in enumerate(results[:VICTIM]):
        assert f"failed on rank {rank} of 3 while" in error
        assert "of bucket 0 of step " in error
        assert f"Dead, stuck or still waiting: rank {VICTIM}." in error
        assert seconds < IN_TIME


class Asking(NamedTuple):
    """What the roll call asks of a group; its store is real."""

    group_name: str = "asking"

    def rank(self) -> int:
        return 1

    def size(self) -> int:
        return 3


@pytest.mark.parametrize(("seconds", "silent"), [(0.2, []), (1.5, [2])])
def test_the_store_may_be_lost_while_the_roll_is_called(
    seconds: float, silent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0, which holds it, has reported and left: whom it missed until then is told."""
    limit = {"timeout": datetime.timedelta(seconds=5), "wait_for_workers": False}
    served = [dist.TCPStore("127.0.0.1", 0, 3, is_master=True, **limit)]
    store = dist.TCPStore("127.0.0.1", served[0].port, 3, is_master=False, **limit)
    served[0].set("gct/failed/asking/0", "1")
    monkeypatch.setattr(distributed_c10d, "_get_process_group_store", lambda group: store)
    threading.Timer(seconds, served.clear).start()
    assert _roll_call.silent_ranks(cast(Any, Asking())) == silent


def lost_elsewhere(rank: int, world: int, owner: Any, name: str, calls: int) -> str:
    """The survivors' error where the victim is killed in its ``calls``-th call of a function.

    All have come to theirs by then: a victim that is quicker than the others' setting up would be
    missed there.
    """
    call, left = getattr(owner, name), [calls]
    store = distributed_c10d._get_default_store()

    def last(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and rank != VICTIM:
            store.set(f"there {rank}", "1")
        elif left[0] == 0:
            store.wait([f"there {other}" for other in range(VICTIM)])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)

    setattr(owner, name, last)
    reductions = Reductions(gct.GCTState(start_step=0, checksum=True), 1 << 12)
    while True:
        try:
            reductions.start().wait()
        except RuntimeError as error:
            return str(error)


@pytest.mark.parametrize(
    ("owner", "name", "calls", "doing"),
    [(Confirmation, "_tell", 3, "confirming"), (Reducer, "agree", 1, "comparing")],
    ids=["confirmation", "comparison of a layout"],
)
def test_a_rank_that_is_lost_outside_of_a_collective(
    owner: Any, name: str, calls: int, doing: str
) -> None:
    errors = run_ranks(
        3, lost_elsewhere, owner, name, calls, group_timeout=TIMEOUT, timeout=40.0, lost={VICTIM}
    )
    for rank, error in enumerate(errors[:VICTIM]):
        assert f"gct: {doing} bucket 0 of step {calls - 1} failed on rank {rank} of 3" in error
        assert f"Dead, stuck or still waiting: rank {VICTIM}." in error


# ---- ranks that aren't like the others


def first_pass(state: gct.GCTState | None, width: int = 64) -> None:
    ddp = DistributedDataParallel(nn.Sequential(nn.Linear(64, width), nn.Linear(width, 64)))
    if state is not None:
        ddp.register_comm_hook(state, gct.hook)
    ddp(torch.ones(4, 64)).square().mean().backward()


def other_version(last: bool) -> None:
    if last:
        _agreement.__version__ = "0.0.7"
    first_pass(gct.GCTState())


def other_tables(last: bool) -> None:
    if last:
        _C.wire_format = lambda: "wire format 1, tables 01234567"
    first_pass(gct.GCTState())


def other_settings(last: bool) -> None:
    first_pass(gct.GCTState(bits=3.0 if last else 2.0))


def other_debug(last: bool) -> None:
    os.environ["GCT_DEBUG"] = "hash" if last else ""
    first_pass(gct.GCTState())


def wrong_debug(last: bool) -> None:
    os.environ["GCT_DEBUG"] = "hashes" if last else "hash"
    first_pass(gct.GCTState())


def unknown_debug(last: bool) -> None:
    os.environ["GCT_DEBUG"] = "hashes"
    first_pass(gct.GCTState())


def other_shape(last: bool) -> None:
    """As many elements as the others', which Gloo would not notice."""
    reduce_one(torch.zeros((32, 128) if last else (64, 64)))


def other_dtype(last: bool) -> None:
    reduce_one(torch.zeros(64, 64, dtype=torch.bfloat16 if last else torch.float32))


def reduce_one(gradient: Tensor) -> None:
    gct.hook(gct.GCTState(), (gradient, nn.Parameter(torch.zeros_like(gradient))))


# What all ranks are told.
STARTS: dict[str, tuple[Callable[[bool], None], str]] = {
    "version": (other_version, r"gct's version is '.*' on rank 0 and '0\.0\.7' on rank 2"),
    "tables": (other_tables, r"gct's format is 'wire .*' on rank 0 and '.* 01234567' on rank 2"),
    "settings": (other_settings, r"bits is 2\.0 on rank 0 and 3\.0 on rank 2"),
    "debug": (other_debug, r"GCT_DEBUG is '' on rank 0 and 'hash' on rank 2"),
    "wrong debug": (wrong_debug, r"GCT_DEBUG is 'hash' on rank 0 and 'hashes' on rank 2"),
    "unknown debug": (unknown_debug, r"GCT_DEBUG must be unset or hash, got 'hashes'"),
    "shape": (other_shape, r"holds .*64x64 float32.* on rank 0 and .*32x128 .* on rank 2"),
    "dtype": (other_dtype, r"holds .*64x64 float32.* on rank 0 and .*64x64 bfloat16.* on rank 2"),
}


def start(rank: int, world: int, what: str) -> float:
    body, message = STARTS[what]
    began = time.monotonic()
    with pytest.raises((RuntimeError, ValueError), match=message):
        body(rank == world - 1)
    return time.monotonic() - began


@pytest.mark.parametrize("what", STARTS)
def test_a_rank_that_is_unlike_the_others(what: str) -> None:
    for seconds in run_ranks(3, start, what, group_timeout=TIMEOUT, timeout=40.0):
        assert seconds < IN_TIME


def start_unlike(rank: int, world: int, what: str) -> tuple[str, float]:
    began = time.monotonic()
    last = rank == world - 1
    state = None if last and what == "no hook" else gct.GCTState()
    with pytest.raises(RuntimeError) as caught:
        first_pass(state, width=32 if last and what == "model" else 64)
    return str(caught.value), time.monotonic() - began


def test_a_rank_with_another_model() -> None:
    """DDP itself refuses it, on that rank; the others lose their peer."""
    *others, (last, _) = run_ranks(3, start_unlike, "model", group_timeout=TIMEOUT, timeout=40.0)
    assert "not to match" in last or "sizes" in last
    for error, seconds in others:
        assert seconds < IN_TIME
        # Not whose model differs: that is DDP's own check, which that rank alone hears of. Whoever
        # has come to its first pass by then is told by gct, the others by Gloo.
        assert "is every rank at its first backward pass?" in error or "onnection" in error, error


def test_a_rank_without_the_hook() -> None:
    *others, (last, _) = run_ranks(3, start_unlike, "no hook", group_timeout=TIMEOUT, timeout=60.0)
    for error, seconds in others:
        assert "is every rank at its first backward pass?" in error
        assert seconds < 2 * IN_TIME, "private groups are made one after the other"
    assert last


# ---- restarts


def uninterrupted(rank: int, world: int) -> list[float]:
    run = Run()
    run.steps(0, END)
    return run.result().tolist()


def test_torchrun_restarts_from_the_checkpoint(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("resumable.py"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    options = ["--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1"]
    result = subprocess.run(
        [*torchrun, *options, script, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    begins = sorted(re.findall(r"rank \d begins at step \d", result.stdout))
    expected = [f"rank {rank} begins at step {step}" for rank in range(2) for step in (0, SAVED)]
    assert begins == expected
    assert (
        "Signal 9" in result.stderr or "SIGKILL" in result.stderr or "exitcode: -9" in result.stderr
    )
    for rank, exact in enumerate(run_ranks(2, uninterrupted)):
        assert torch.load(tmp_path / f"result-{rank}.pt").tolist() == exact
