"""Start one training run under torchrun and return what its log's last line says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from runlog import read_summary

_SCRIPT = Path(__file__).with_name("train_gpt.py")


def launch(options: list[str], log: Path, processes: int) -> dict[str, Any]:
    """Run train_gpt.py; its progress bar goes to this process's stderr."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(_SCRIPT), f"--log-file={log}", *options]
    log.unlink(missing_ok=True)  # an old log must not be taken for this run's
    result = subprocess.run(command, env=_environment(processes), check=False)
    summary = read_summary(log)
    if result.returncode != 0 or summary is None:
        raise SystemExit(
            f"The run failed with exit status {result.returncode}; its messages are above. "
            f"Command: {' '.join(command)}"
        )
    return summary


def _environment(processes: int) -> dict[str, str]:
    environment = dict(os.environ)
    # More threads than cores make every process wait for the others.
    threads = max(1, min(4, (os.cpu_count() or 1) // processes))
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    if Path("/sys/class/net/lo").exists():
        # All ranks are on this machine: don't depend on how its host name resolves.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment
