"""Errors that a user sees: one sentence that says what is wrong, and the cure."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

WRONG_ARGUMENT = 2  # the exit status that argparse has for it


class UserError(Exception):
    """What is wrong and what to do about it, in one or two sentences."""


class UnavailableError(UserError):
    """This machine or this user can't do it at all: it is not the program that is at fault."""


@contextmanager
def exits_with_sentence(program: str, status: int = 1) -> Iterator[None]:
    """Turn a UserError into ``program: sentence`` on stderr and this exit status."""
    try:
        yield
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(status) from None


def exit_on_signals() -> None:
    """Make an end by signal an exception, so that what was made is removed on the way out."""
    for sign in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sign) is not signal.SIG_IGN:  # nohup wants it ignored
            signal.signal(sign, lambda number, _: sys.exit(128 + number))
