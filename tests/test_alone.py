"""Tests that measure time have the machine to themselves, as far as pytest-xdist's workers go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import alone
import pytest
from alone import room

PATIENCE = 20.0  # seconds, for what must happen; a busy machine needs milliseconds
BLINK = 0.2  # seconds, for what must not


@pytest.fixture(autouse=True)
def other_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that this very test runs under."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    for name in ("GATE", "ROOM"):
        (tmp_path / name).touch()
        monkeypatch.setattr(alone, name, tmp_path / name)


def visitor(is_alone: bool, done: threading.Event) -> tuple[threading.Event, Callable[[], None]]:
    """A thread that enters and stays until `done`: when it is in, and how to wait for its end."""
    inside = threading.Event()

    def visit() -> None:
        with room(is_alone):
            inside.set()
            assert done.wait(PATIENCE)

    thread = threading.Thread(target=visit, daemon=True)
    thread.start()
    return inside, lambda: thread.join(PATIENCE)


def test_others_are_in_together() -> None:
    done = threading.Event()
    visitors = [visitor(False, done) for _ in range(2)]
    assert all(inside.wait(PATIENCE) for inside, _ in visitors)
    done.set()
    for _, join in visitors:
        join()


@pytest.mark.parametrize("first_is_alone", [False, True])
def test_one_is_in_alone(first_is_alone: bool) -> None:
    first_done, second_done = threading.Event(), threading.Event()
    first, join_first = visitor(first_is_alone, first_done)
    assert first.wait(PATIENCE)
    second, join_second = visitor(not first_is_alone, second_done)
    assert not second.wait(BLINK)
    first_done.set()
    assert second.wait(PATIENCE)
    second_done.set()
    join_first()
    join_second()


def test_who_waits_to_be_alone_is_next() -> None:
    """Those who come later wait behind it, though they could be in together with the first."""
    done = [threading.Event() for _ in range(3)]
    first, join_first = visitor(False, done[0])
    assert first.wait(PATIENCE)
    waiting, join_waiting = visitor(True, done[1])
    assert not waiting.wait(BLINK)
    late, join_late = visitor(False, done[2])
    assert not late.wait(BLINK)
    done[0].set()
    assert waiting.wait(PATIENCE)
    assert not late.wait(BLINK)
    done[1].set()
    assert late.wait(PATIENCE)
    done[2].set()
    for join in (join_first, join_waiting, join_late):
        join()
