"""Several hosts on this machine, for tests: benchmarks/netlab.py needs root on Linux."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NETLAB = [sys.executable, str(BENCHMARKS / "netlab.py")]
sys.path.insert(0, str(BENCHMARKS))

from multihost import lab as labs  # noqa: E402
from multihost.errors import UnavailableError, UserError  # noqa: E402

NAME = f"gct-test-{os.getpid()}"


def why_not() -> str:
    """Why hosts can't be made on this machine; empty if they can, or if that is our fault."""
    try:
        labs.create(f"{NAME}-try", 2, "1gbit")
    except UnavailableError as error:
        return f"no network namespaces here: {error}"
    except UserError:
        return ""  # a broken laboratory: the tests that need one run, and fail with this error
    labs.destroy(f"{NAME}-try")
    return ""


_REASON = why_not()
needs_hosts = pytest.mark.skipif(bool(_REASON), reason=_REASON)


def netlab(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NETLAB, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
