"""Errors that a user sees: one sentence that says what is wrong, and the cure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What is wrong and what to do about it, in one or two sentences."""


@contextmanager
def exits_with_sentence(program: str) -> Iterator[None]:
    """Turn a UserError into ``program: sentence`` on stderr and exit status 1."""
    try:
        yield
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
