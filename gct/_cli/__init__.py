"""What `python -m gct report` and `python -m gct fit` do; gct/__main__.py registers them."""

import importlib
from pathlib import Path


class CommandError(Exception):
    """A command can't do what it was asked; the message is for the person who called it."""


def require(*packages: str, instead: str = "") -> None:
    """Raise CommandError where one of these packages can't be imported.

    ``instead``: what to do without it, such as "or use --no-plot".
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            advice = f"pip install {package}" + (f", {instead}" if instead else "")
            raise CommandError(f"this needs the package {package}: {advice} ({error})") from error


def check_folder(file: Path) -> None:
    """Raise CommandError, before the work, where a file could not be written for lack of folder."""
    if not file.parent.is_dir():
        raise CommandError(f"can't write {file}: there is no folder {file.parent}")
