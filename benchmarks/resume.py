"""Runs that aren't repeated: a training log that was finished with the same command stands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# The examples are scripts beside each other, not a package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

from runlog import read_summary


def finished(log: Path, command: str) -> dict[str, Any] | None:
    """The summary of the run in ``log`` if it came to its end and was made by ``command``."""
    note = _note(log)
    if not note.is_file() or note.read_text() != command:
        return None
    return read_summary(log)


def begin(log: Path, command: str) -> None:
    """Forget what ``log`` held, and note the command that is going to write it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    _note(log).write_text(command)


def _note(log: Path) -> Path:
    """The command is kept beside the log: other options must not reuse an old result."""
    return log.with_suffix(".command")
