"""Errors that a user sees: one sentence that says what is wrong, and the cure."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What is wrong and what to do about it, in one or two sentences."""


class UnavailableError(UserError):
    """This machine or this user can't do it at all: it is not the program that is at fault."""


@contextmanager
def exits_with_sentence(program: str) -> Iterator[None]:
    """Turn a UserError into ``program: sentence`` on stderr and exit status 1."""
    try:
        yield
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def exit_on_signals() -> None:
    """Make an end by signal an exception, so that what was made is removed on the way out."""
    for sign in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sign) is not signal.SIG_IGN:  # nohup wants it ignored
            signal.signal(sign, lambda number, _: sys.exit(128 + number))
