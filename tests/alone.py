"""Keeps tests that measure time apart from what pytest-xdist runs beside them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# Locks on files that are there anyway, so that nothing is left behind.
GATE, ROOM = FOLDER / "alone.py", FOLDER / "conftest.py"


@contextmanager
def _locked(file: Path, how: int) -> Iterator[None]:
    with file.open() as opened:
        fcntl.flock(opened, how)
        try:
            yield
        finally:
            # Closing is not enough where a test's child still has the file open.
            fcntl.flock(opened, fcntl.LOCK_UN)


@contextmanager
def room(alone: bool) -> Iterator[None]:
    """Held while a test runs: together with others, or alone. Without pytest-xdist it does nothing.

    Who waits to be alone keeps the gate shut meanwhile, or others would come in for ever.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with ExitStack() as held:
        with _locked(GATE, fcntl.LOCK_EX):
            held.enter_context(_locked(ROOM, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield
