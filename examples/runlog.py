"""A run's log: JSON lines, each with a ``kind``: config, step, evaluation, summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class RunLog:
    """Append lines to a file, or do nothing without a path (ranks other than 0)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    def write(self, kind: str, **fields: Any) -> None:
        if self._path is not None:
            # Opened for each line: a killed run keeps what it had measured.
            with self._path.open("a") as file:
                print(json.dumps({"kind": kind, **fields}), file=file)


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def read_summary(path: Path) -> dict[str, Any] | None:
    """Return the summary line; None if there is no log or the run did not finish."""
    if not path.is_file():
        return None
    try:
        lines = read_log(path)
    except json.JSONDecodeError:
        return None  # cut off in the middle of a line
    return next((line for line in lines if line["kind"] == "summary"), None)
