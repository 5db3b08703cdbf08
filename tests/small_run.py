"""A short training run of a small model with gct's hook, for tests of what is recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gct

WORLD = 2
STEPS = 9
ELEMENTS = 49 * 160 + 2 * 160 + 161 * 96 + 97 * 8  # of make_model()


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(48, 160), nn.GELU(), nn.LayerNorm(160), nn.Linear(160, 96), nn.Linear(96, 8)
    )


def train(rank: int, steps: int = STEPS, resume: dict[str, Any] | None = None, **settings: Any):
    """Train, logging the loss; returns the state and the parameters' values, all in one list."""
    model = make_model()
    state = gct.GCTState(bits=2.0, model=model, **settings)
    if resume is not None:
        state.load_state_dict(resume)
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gct.hook)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-3)
    torch.manual_seed(100 + rank)
    for _ in range(steps):
        x = torch.randn(32, 48)
        loss = (ddp(x) - x[:, :8]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if state.monitor is not None:
            state.monitor.log(loss=loss, learning_rate=1e-3)
    return state, torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def record(rank: int, world: int, path: str) -> None:
    """A run whose samples come at steps 2, 4, 6, 8."""
    monitor = gct.Monitor(path, interval=2)
    state, _ = train(rank, monitor=monitor)
    state.monitor.close()
