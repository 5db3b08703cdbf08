"""A training run that can be saved and resumed; of several tests, and by itself under torchrun.

    torchrun --nproc-per-node 2 --max-restarts 1 tests/resumable.py FOLDER

Rank 1 dies in the middle of a backward pass, at its first attempt. Writes FOLDER/result-RANK.pt.
"""

from __future__ import annotations

import copy
import datetime
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gct

WIDTH = 64
SAVED, END = 5, 9  # steps
# Whatever a resumed run could get wrong shows: the counter of random bits, residuals, the number of
# steps without compression, the order and size of buckets.
SETTINGS: dict[str, Any] = {
    "bits": 2.0,
    "rounding": "stochastic",
    "error_feedback": True,
    "min_numel": 0,
    "rate_weight": 1e-3,
}


class Run:
    """Model, optimizer, state."""

    def __init__(self, named: bool = True, ddp: Any = None, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, 8)
        )
        model = self.model if named else None
        self.state = gct.GCTState(**{**SETTINGS, **settings}, model=model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.ddp = DistributedDataParallel(self.model, **{"bucket_cap_mb": 0.02, **(ddp or {})})
        self.ddp.register_comm_hook(self.state, gct.hook)

    def steps(self, begin: int, end: int) -> None:
        for step in range(begin, end):
            self.step(step)

    def step(self, step: int, die: bool = False) -> None:
        generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
        x = torch.randn(16, WIDTH, generator=generator)
        self.optimizer.zero_grad()
        output = self.ddp(x)
        if die:
            self.model[1].register_full_backward_hook(
                lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            )
            output = self.ddp(x)
        (output - x[:, :8]).square().mean().backward()
        self.optimizer.step()

    def result(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def rest(self) -> Any:
        """What isn't gct's."""
        return copy.deepcopy([self.model.state_dict(), self.optimizer.state_dict()])

    def load_rest(self, rest: Any) -> None:
        model, optimizer = copy.deepcopy(rest)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)


def file_of(folder: Path, step: int, rank: int) -> Path:
    return folder / f"step-{step}-rank-{rank}.pt"


def last_step(folder: Path, world: int) -> int:
    """The last one that all ranks have saved; 0 if there is none."""
    steps = [0]
    while all(file_of(folder, steps[-1] + 1, rank).exists() for rank in range(world)):
        steps.append(steps[-1] + 1)
    return steps[-1]


def wait_for_all(folder: Path, step: int, world: int) -> None:
    """Until all have saved it: torchrun ends those who are still writing once one has died."""
    while last_step(folder, world) < step:
        time.sleep(0.01)


def join() -> tuple[int, int, int]:
    """Rank, world size and attempt.

    Torch 2.13's torchrun keeps one store over all attempts: without a prefix ranks may find the
    addresses of the attempt before in it, and fail to connect.
    """
    rank, world, attempt, port = (
        int(os.environ[name])
        for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
    )
    store = dist.TCPStore(os.environ["MASTER_ADDR"], port, world, is_master=False)
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=30),
    )
    return rank, world, attempt


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    rank, world, attempt = join()
    run = Run()
    begin = last_step(folder, world)
    print(f"rank {rank} begins at step {begin}", flush=True)
    if begin:
        state, rest = torch.load(file_of(folder, begin, rank), weights_only=True)
        run.state.load_state_dict(state)
        run.load_rest(rest)
    for step in range(begin, END):
        die = attempt == 0 and rank == 1 and step == SAVED
        if die:
            wait_for_all(folder, step, world)
        run.step(step, die)
        torch.save([run.state.state_dict(), run.rest()], folder / f"half-{rank}")
        (folder / f"half-{rank}").rename(file_of(folder, step + 1, rank))
    torch.save(run.result(), folder / f"result-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
