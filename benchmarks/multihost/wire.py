"""The example's counter of bytes that this process's TCP sockets sent."""

import sys
from pathlib import Path

# The examples are scripts beside each other, not a package.
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))

from wire import SocketCounter

__all__ = ["SocketCounter"]
