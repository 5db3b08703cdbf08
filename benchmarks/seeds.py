"""Final held-out loss and wire bytes of the demo's configuration over several seeds.

    python benchmarks/seeds.py                                  # fp32, gct, gct at 1.2 bits
    python benchmarks/seeds.py --seeds 1 2 3 --schemes fp32 gct powersgd bf16
    python benchmarks/seeds.py --set "ef=--error-feedback=on" --set "3bit=--bits=3"

Runs one after the other. A run whose log has its last line and was made with the same command
is not repeated, so an interrupted call is simply started again. Writes a markdown table and
JSON to build/seeds/ (--out) after every run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resume  # makes the examples importable
from demo import DEMO_SETTINGS, FP32, GCT, GCT_LOW, Scheme, common_options
from launch import launch
from runlog import read_log

ROOT = Path(__file__).resolve().parents[1]
BF16 = Scheme("bf16", "bf16", ("--comm=bf16",))
POWERSGD = Scheme("powersgd", "PowerSGD, rank 4", ("--comm=powersgd", "--powersgd-rank=4"))
_LEGEND = """\
Losses in nats per byte on the whole held-out text after the last step; spread: largest less
smallest over the seeds. Against: difference of the means over the seeds that both have. Bytes:
sent by each rank through its TCP sockets, counted by the kernel; mean of the steps after
compression has begun. Seconds per step: median, other loads on the machine included."""
KNOWN = {scheme.key: scheme for scheme in (FP32, GCT, GCT_LOW, BF16, POWERSGD)}


@dataclass(frozen=True)
class Result:
    scheme: Scheme
    runs: dict[int, dict[str, Any]]  # seed -> summary line

    @property
    def losses(self) -> list[float]:
        return [run["held_out_loss"] for run in self.runs.values()]

    def mean(self, field: str) -> float | None:
        values = [run[field] for run in self.runs.values()]
        return None if None in values else statistics.fmean(values)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--schemes", nargs="+", choices=tuple(KNOWN), default=["fp32", "gct", "gct-1.2"]
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=OPTIONS",
        help="one more gct row, with these options of train_gpt.py; repeatable",
    )
    parser.add_argument("--steps", type=int, default=DEMO_SETTINGS["steps"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "seeds")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "seeds")
    parser.add_argument("--name", default="seeds", help="file name of the results")
    return parser.parse_args()


def chosen_schemes(args: argparse.Namespace) -> list[Scheme]:
    schemes = [KNOWN[key] for key in args.schemes]
    for item in args.set:
        name, equals, options = item.partition("=")
        if not equals or not name.replace("-", "").replace(".", "").isalnum():
            raise SystemExit(f"--set: expected NAME=OPTIONS, got {item!r}")
        split = tuple(shlex.split(options))
        schemes.append(Scheme(f"set-{name}", f"gct: {' '.join(split)}", ("--comm=gct", *split)))
    keys = [scheme.key for scheme in schemes]
    if len(set(keys)) != len(keys):
        raise SystemExit(f"Each scheme may be named once, got {keys}.")
    return schemes


def options_of(scheme: Scheme, seed: int, args: argparse.Namespace) -> list[str]:
    return [*common_options(seed, steps=args.steps), *scheme.options]


def command_of(scheme: Scheme, seed: int, args: argparse.Namespace) -> str:
    """What decides a run's result, in words."""
    return shlex.join([f"--processes={args.processes}", *options_of(scheme, seed, args)])


def run_once(scheme: Scheme, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the run's summary, from its log if it is finished already."""
    log = args.logs / f"{scheme.key}-seed{seed}.jsonl"
    command = command_of(scheme, seed, args)
    finished = resume.finished(log, command)
    if finished is not None:
        print(f"{scheme.key}, seed {seed}: finished before, {log}")
        return finished
    print(f"{scheme.key}, seed {seed}: {command}", flush=True)
    resume.begin(log, command)
    return launch(options_of(scheme, seed, args), log, args.processes)


def run_all(args: argparse.Namespace) -> list[Result]:
    """Seeds outside, schemes inside: an interrupted call leaves comparable rows."""
    results = [Result(scheme, {}) for scheme in chosen_schemes(args)]
    failures = []
    for seed in args.seeds:
        for result in results:
            try:
                result.runs[seed] = run_once(result.scheme, seed, args)
            except SystemExit as error:
                # The other runs are still worth having; the exit status tells of this one.
                failures.append(f"{result.scheme.key}, seed {seed}: {error}")
                print(failures[-1], file=sys.stderr)
                continue
            write_results([r for r in results if r.runs], args)
    if failures:
        raise SystemExit("Failed runs:\n" + "\n".join(failures))
    return results


def write_results(results: list[Result], args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.name}.md").write_text(markdown(results, args))
    content = {"environment": environment(results, args), "schemes": [as_json(r) for r in results]}
    (args.out / f"{args.name}.json").write_text(json.dumps(content, indent=1) + "\n")


def as_json(result: Result) -> dict[str, Any]:
    return {
        "scheme": result.scheme.key,
        "options": list(result.scheme.options),
        "mean_held_out_loss": statistics.fmean(result.losses),
        "runs": {str(seed): run for seed, run in result.runs.items()},
    }


def environment(
    results: list[Result], args: argparse.Namespace, script: str = "seeds.py"
) -> dict[str, Any]:
    first = results[0]
    log = args.logs / f"{first.scheme.key}-seed{next(iter(first.runs))}.jsonl"
    config = read_log(log)[0]
    return {
        "command": shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "settings": {**DEMO_SETTINGS, "steps": args.steps},
        "processes": args.processes,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: config[name] for name in ("elements", "threads", "torch", "machine")},
    }


def markdown(results: list[Result], args: argparse.Namespace) -> str:
    base = results[0]
    about = environment(results, args)
    seeds = sorted({seed for result in results for seed in result.runs})
    header = ["scheme", *(f"seed {seed}" for seed in seeds), "mean", "spread"]
    header += [f"against {base.scheme.label}", "wire bytes/step", "ratio", "bits/element", "s/step"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    rows += [_row(result, base, seeds) for result in results]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    settings = ", ".join(f"{name} {value}" for name, value in about["settings"].items())
    return "\n".join(
        [
            "# Held-out loss and bytes on the wire, several seeds",
            "",
            *lines,
            "",
            f"{about['elements']:,} parameters, {args.processes} processes; {settings}.",
            _LEGEND,
            "",
            f"Machine: {about['cores']} cores, {about['threads']} thread(s) per process, "
            f"{about['machine']}, Python {about['python']}, torch {about['torch']}.",
            "",
            f"    {about['command']}",
            "",
        ]
    )


def _row(result: Result, base: Result, seeds: list[int]) -> list[str]:
    losses = {seed: run["held_out_loss"] for seed, run in result.runs.items()}
    shared = [seed for seed in losses if seed in base.runs]
    row = [result.scheme.label]
    row += [f"{losses[seed]:.4f}" if seed in losses else "-" for seed in seeds]
    row += [f"{statistics.fmean(result.losses):.4f}"]
    row += [f"{max(result.losses) - min(result.losses):.4f}"]
    if shared:
        mine = statistics.fmean(losses[seed] for seed in shared)
        other = statistics.fmean(base.runs[seed]["held_out_loss"] for seed in shared)
        row += [f"{100 * (mine / other - 1):+.2f} %"]
    else:
        row += ["-"]
    wire, base_wire = result.mean("wire_bytes_per_step"), base.mean("wire_bytes_per_step")
    bits, seconds = result.mean("bits_per_element"), result.mean("seconds_per_step")
    row += [f"{wire:,.0f}" if wire else "-"]
    row += [f"{base_wire / wire:.1f}" if wire and base_wire else "-"]
    row += [f"{bits:.2f}" if bits else "-", f"{seconds:.3f}" if seconds else "-"]
    return row


def main() -> None:
    args = parse_arguments()
    run_all(args)
    print((args.out / f"{args.name}.md").read_text())


if __name__ == "__main__":
    main()
