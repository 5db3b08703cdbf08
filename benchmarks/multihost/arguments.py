"""What the options of several programs take: a wrong value is one sentence, before all work."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from multihost.errors import WRONG_ARGUMENT, UserError


class Parser(argparse.ArgumentParser):
    """Shows the whole docstring as help, and of a wrong argument one sentence without the usage."""

    def __init__(self, doc: str | None = None, **options: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, formatter_class=formatter, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_ARGUMENT, f"{self.prog}: {message}: see --help.\n")


def whole_number(least: int, most: float = math.inf) -> Callable[[str], int]:
    """For ``type=`` of an option."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            upto = "on" if most == math.inf else f"to {most}"
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} {upto}, got {text!r}"
            )
        return value

    return parse


def number(least: float, most: float) -> Callable[[str], float]:
    """For ``type=`` of an option."""

    def parse(text: str) -> float:
        value = _float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"expected a number from {least:g} to {most:g}, got {text!r}"
            )
        return value

    return parse


def positive(text: str) -> float:
    """For ``type=`` of an option."""
    value = _float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_writable(*paths: Path | None) -> None:
    """Raise UserError for a file that could not be written at the end; makes its folder."""
    for path in paths:
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror}): name another.") from error
