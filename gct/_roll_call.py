"""Which ranks are silent after a failure: Gloo's own errors name a connection at best."""

from __future__ import annotations

import threading
import time

import torch.distributed as dist
from torch.distributed import distributed_c10d

SECONDS = (
    2.0  # the others fail at nearly the same time: they lose the same peer or time out together
)
_POLL_SECONDS = 0.05


def call_the_roll(group: dist.ProcessGroup | None) -> str:
    """What an error message says about ranks that are silent, on a line of its own, or nothing."""
    silent = silent_ranks(group) if group is not None else []
    return f"\nDead, stuck or still waiting: rank {', '.join(map(str, silent))}." if silent else ""


def silent_ranks(group: dist.ProcessGroup) -> list[int]:
    """Ranks of ``group`` that do not report within SECONDS that they have failed too.

    Every rank that calls this reports itself, through the store that the group was made with.
    Empty if all reported, or if the store cannot be reached: then nothing is known. Where it is
    lost on the way, because the rank that holds it has failed and left, what was known after half
    of the time is better than nothing.
    """
    silent: list[int] = []

    def call_roll() -> None:
        store = distributed_c10d._get_process_group_store(group)
        keys = [f"gct/failed/{group.group_name}/{rank}" for rank in range(group.size())]
        store.set(keys[group.rank()], "1")
        deadline = time.monotonic() + SECONDS
        missing = list(range(group.size()))
        while missing and time.monotonic() <= deadline:
            try:
                missing = [rank for rank in missing if not store.check([keys[rank]])]
            except RuntimeError:
                if time.monotonic() < deadline - SECONDS / 2:
                    raise
                break
            time.sleep(_POLL_SECONDS)
        silent.extend(missing)

    def quietly() -> None:
        try:
            call_roll()
        except Exception:  # the store is gone too: its host has failed
            return

    # In a thread of its own: a store whose host has vanished may block for minutes.
    thread = threading.Thread(target=quietly, name="gct roll call", daemon=True)
    thread.start()
    thread.join(2 * SECONDS)
    return list(silent)
