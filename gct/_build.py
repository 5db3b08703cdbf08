"""Loads the native extension, or says what is wrong with it."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import torch

_REBUILD = "run `pip install --force-reinstall --no-deps .` in gct's source folder"


def load_extension() -> ModuleType:
    """gct._C, checked to be built for the torch that is imported.

    A command, ``python -m gct``, says in a sentence what is wrong and ends: this runs before it.
    """
    try:
        return _load()
    except ImportError as error:
        if not _is_command(sys.argv, sys.orig_argv):
            raise
        print(f"python -m gct: {str(error).removeprefix('gct: ')}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_command(argv: list[str], command: list[str]) -> bool:
    """Whether Python is looking for gct.__main__: ``argv`` begins with "-m" until it is found."""
    before_arguments = command[: len(command) - len(argv) + 1]
    return argv[:1] == ["-m"] and " ".join(before_arguments).endswith(("m gct", "mgct"))


def _load() -> ModuleType:
    spec = importlib.util.find_spec("gct._C")
    if spec is None or spec.origin is None:
        if (Path(__file__).parent.parent / "setup.py").exists():
            raise ImportError(
                "this is gct's source folder, where Python finds the sources before the installed "
                "package: change to another folder (developers: `make build`)"
            )
        raise ImportError(
            f"gct's native extension is not in {Path(__file__).parent}: {_REBUILD} (developers: "
            "`make build`), or leave that folder if gct is installed elsewhere"
        )
    built_for = _built_for(Path(spec.origin))
    if _minor(built_for) != _minor(torch.__version__):
        raise ImportError(
            f"gct was built for torch {built_for}, but torch {torch.__version__} is installed: "
            f"{_REBUILD}"
        )
    return importlib.import_module("gct._C")


def _built_for(extension: Path) -> str:
    """The torch version that csrc/bindings.cpp leaves in the file.

    Read as bytes, because loading an extension made for another torch may fail with no more than an
    undefined symbol.
    """
    found = re.search(rb"gct-built-for-torch=([^\0]*)\0", extension.read_bytes())
    return found[1].decode() if found else "unknown"


def _minor(version: str) -> list[str]:
    """["2", "13"] of 2.13.0+cpu: torch keeps its C++ interface within a minor version."""
    return version.split(".")[:2]
