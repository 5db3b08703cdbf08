"""Callbacks that complete other futures, whatever happens to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch.futures import Future

T = TypeVar("T")


def then_complete(
    future: Future[T], callback: Callable[[Future[T]], object], waiting: Iterable[Future[str]]
) -> None:
    """After ``future`` call ``callback``, which completes those who are ``waiting``, or has others
    complete them; if it raises, they get its message.

    Ctrl-C raises wherever the main thread is, and a callback of what is done already runs there: it
    may end before its first line, where no ``try`` of its own is. torch keeps the exception.
    """

    def check(called: Future[object]) -> None:
        try:
            called.value()
        except RuntimeError as error:
            for other in waiting:
                if not other.done():
                    other.set_result(f"gct: {error}")

    future.then(callback).add_done_callback(check)
