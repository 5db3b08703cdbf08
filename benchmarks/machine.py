"""What the results of a benchmark say of the machine that they were measured on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Its name; the operating system's where that doesn't tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.platform()
