"""What the results of a benchmark say of the machine that they were measured on."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

import gct

_ROOT = Path(__file__).resolve().parents[1]


def processor() -> str:
    """Its name; the operating system's where that doesn't tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.platform()


def run_facts() -> dict[str, str]:
    """For the head of a benchmark's results: where, when, of what and by which command."""
    git = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "processor": processor(),
        "torch": torch.__version__,
        "gct": gct.__version__,
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
    }
