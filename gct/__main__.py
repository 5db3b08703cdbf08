"""The command line: `python -m gct info`, `report`, `fit` and `plan`."""

import argparse
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch

import gct
from gct import _C
from gct._cli import CommandError, fit, report
from gct._plan_command import add_plan

# Instruction sets that the codec's implementations ask for.
_CPU_FEATURES = ("avx2", "bmi2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vbmi2", "asimd")

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gct", description=gct.__doc__)
    parser.add_argument("--version", action="version", version=f"gct {gct.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_info(commands)
    _add_report(commands)
    _add_fit(commands)
    add_plan(commands)
    arguments = parser.parse_args(argv)
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        return 1
    except CommandError as error:
        print(f"python -m gct: {error}", file=sys.stderr)
        return 2


def _add_report(commands: _Commands) -> None:
    parser = commands.add_parser(
        "report", help="draw a monitor's file as an HTML page", description=report.DESCRIPTION
    )
    report.add_arguments(parser)
    parser.set_defaults(run=report.run)


def _add_fit(commands: _Commands) -> None:
    parser = commands.add_parser(
        "fit", help="print the fitted shapes of a checkpoint's tensors", description=fit.DESCRIPTION
    )
    fit.add_arguments(parser)
    parser.set_defaults(run=fit.run)


def _add_info(commands: _Commands) -> None:
    info = commands.add_parser("info", help="print versions, build facts and what this machine has")
    info.set_defaults(run=_info)


def _info(_: argparse.Namespace) -> int:
    for name, value in _facts().items():
        print(f"{name:<18}{value}")
    return 0


def _facts() -> dict[str, str]:
    build = _C.build_info()
    sanitized = ", sanitized" if build["sanitize"] else ""
    return {
        "gct": gct.__version__,
        "built for torch": build["torch"],
        "built with": f"{build['compiler']}, {build['build_type']}{sanitized}",
        "CUDA kernels": _kernels(build),
        "torch": torch.__version__,
        "GPU": _gpu(),
        "Python": platform.python_version(),
        "codec": _implementation(),
        "CPU features": " ".join(_cpu_features()) or "unknown",
    }


def _kernels(build: "_C.BuildInfo") -> str:
    if build["cuda"] is None:
        return "not compiled"
    return f"nvcc {build['cuda']}, for {build['cuda_architectures']}"


def _gpu() -> str:
    """What gradients on a GPU could use here, and if nothing, why."""
    if not torch.cuda.is_available():
        built = "sees none" if torch.version.cuda else "is a build without CUDA"
        return f"not usable: torch {built}; gct: {_C.cuda_problem() or 'finds one'}"
    name = str(torch.cuda.get_device_name())
    problem = _C.cuda_problem()
    return f"{name}, not usable by gct: {problem}" if problem else name


def _implementation() -> str:
    """The codec implementation in use, and those that this machine could run."""
    return f"{_C.implementation()} (of {', '.join(_C.implementations())})"


def _cpu_features() -> list[str]:
    """Those of _CPU_FEATURES that the first processor has, where the system tells."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = re.search(r"(?m)^(?:flags|Features)\s*:(.*)$", cpuinfo)
    present = set(flags[1].split()) if flags else set()
    return [feature for feature in _CPU_FEATURES if feature in present]


if __name__ == "__main__":
    sys.exit(main())
