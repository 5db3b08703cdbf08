"""What gct says in the log, in processes where pytest's caplog isn't."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def captured_log(level: int = logging.NOTSET) -> Iterator[list[str]]:
    """Messages of this level and above, as they come."""
    messages: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("gct")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
