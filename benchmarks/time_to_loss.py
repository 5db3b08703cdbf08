"""Time to the same held-out loss over slow links: the example's training between hosts (root).

    python benchmarks/time_to_loss.py --list                   # all runs, and which are done
    python benchmarks/time_to_loss.py                          # all of them: hours
    python benchmarks/time_to_loss.py --hosts 2 --rates 1gbit --schemes fp32 gct-2 --minutes 30

The hosts are netlab's: namespaces on this machine whose links have the given rate, and which share
its cores. Every scheme gets the same data: the demo's model, 32 windows a step divided among the
hosts. Evaluation is not part of the time. Runs that are finished are not repeated: start an
interrupted call again, or use --minutes to spread it over sessions. After each run JSON, a table
and a plot are written to build/time-to-loss/ (--out). Needs a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import resume  # makes the examples importable
from demo import DEMO_SETTINGS, Scheme
from multihost import lab as labs
from multihost.arguments import Parser, whole_number
from multihost.errors import UserError, exit_on_signals, exits_with_sentence
from multihost.fleet import run_everywhere
from multihost.lab import Lab
from runlog import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
_TRAIN = ROOT / "examples" / "train_gpt.py"
_SCALES = "--gct-option=element_scales=true"
RATES = ("100mbit", "1gbit", "10gbit", labs.UNLIMITED)
SCHEMES = {
    scheme.key: scheme
    for scheme in (
        Scheme("fp32", "fp32", ("--comm=fp32",)),
        Scheme("bf16", "bf16 hook", ("--comm=bf16",)),
        Scheme("powersgd", "PowerSGD, rank 4", ("--comm=powersgd", "--powersgd-rank=4")),
        Scheme("gct-1.5", "gct, 1.5 bits", ("--comm=gct", "--bits=1.5")),
        Scheme("gct-2", "gct, 2 bits", ("--comm=gct", "--bits=2")),
        Scheme("gct-3", "gct, 3 bits", ("--comm=gct", "--bits=3")),
        Scheme("gct-1.5-scales", "gct, 1.5 bits, scales", ("--comm=gct", "--bits=1.5", _SCALES)),
        Scheme("gct-2-scales", "gct, 2 bits, scales", ("--comm=gct", "--bits=2", _SCALES)),
    )
}
# As many as the demo's two processes: more hosts share the same data.
_WINDOWS_PER_STEP = 32
MARGIN = 0.005  # the target is fp32's final loss and so much of it


@dataclass(frozen=True)
class Point:
    """An evaluation: loss on 256 windows, seconds and bytes of training until then."""

    step: int
    loss: float
    seconds: float
    sent_bytes: float | None


@dataclass(frozen=True)
class Case:
    hosts: int
    rate: str
    scheme: Scheme

    @property
    def key(self) -> str:
        return f"{self.hosts}-hosts-{self.rate}-{self.scheme.key}"


@dataclass(frozen=True)
class Result:
    case: Case
    summary: dict[str, Any]
    points: list[Point]

    def at(self, target: float, what: str) -> float | None:
        """Seconds or sent_bytes when the loss has fallen to ``target``; None: it has not.

        Linear between evaluations; before the first one nothing is known.
        """
        for before, after in pairwise(self.points):
            if before.loss > target >= after.loss:
                begin, end = getattr(before, what), getattr(after, what)
                if begin is None or end is None:
                    return None
                share = (before.loss - target) / (before.loss - after.loss)
                return float(begin + share * (end - begin))
        return None


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--hosts", type=whole_number(1), nargs="+", default=[2, 4])
    parser.add_argument("--rates", nargs="+", default=list(RATES))
    parser.add_argument("--schemes", nargs="+", choices=tuple(SCHEMES), default=list(SCHEMES))
    parser.add_argument("--steps", type=whole_number(1), default=DEMO_SETTINGS["steps"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another setting of train_gpt.py, such as width=64; repeatable",
    )
    parser.add_argument("--list", action="store_true", help="only say which runs are done")
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "time-to-loss")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "time-to-loss")
    args = parser.parse_args()
    for hosts in args.hosts:
        if hosts < 1 or _WINDOWS_PER_STEP % hosts:
            parser.error(f"--hosts: {_WINDOWS_PER_STEP} windows a step don't divide by {hosts}")
    for item in args.set:
        if "=" not in item:
            parser.error(f"--set: expected NAME=VALUE, got {item!r}")
    return args


def settings(args: argparse.Namespace, hosts: int) -> dict[str, Any]:
    own = dict(item.split("=", 1) for item in args.set)
    equal = {"batch-size": _WINDOWS_PER_STEP // hosts, "steps": args.steps, "seed": args.seed}
    return {**DEMO_SETTINGS, **equal, **own}


def options(case: Case, args: argparse.Namespace) -> list[str]:
    common = [f"--{name}={value}" for name, value in settings(args, case.hosts).items()]
    return [*common, *case.scheme.options]


def log_of(case: Case, args: argparse.Namespace) -> Path:
    return Path(args.logs) / f"{case.key}.jsonl"


def command_of(case: Case, args: argparse.Namespace) -> str:
    return shlex.join([f"--hosts={case.hosts}", f"--rate={case.rate}", *options(case, args)])


def result_of(case: Case, args: argparse.Namespace) -> Result | None:
    """None unless this run was finished with the same options."""
    log = log_of(case, args)
    summary = resume.finished(log, command_of(case, args))
    if summary is None:
        return None
    lines = [line for line in read_log(log) if line["kind"] == "evaluation"]
    points = [Point(p["step"], p["held_out_loss"], p["seconds"], p["wire_bytes"]) for p in lines]
    return Result(case, summary, points)


def cases(args: argparse.Namespace) -> list[Case]:
    return [
        Case(hosts, rate, SCHEMES[key])
        for hosts in args.hosts
        for rate in args.rates
        for key in args.schemes
    ]


@contextmanager
def laboratory(hosts: int, rate: str) -> Iterator[Lab]:
    lab = labs.create(f"time-to-loss-{os.getpid()}", hosts, rate)
    try:
        yield lab
    finally:
        labs.destroy(lab.name)


def train(case: Case, args: argparse.Namespace) -> None:
    """One process on each host; their logs are on the shared disk."""
    log = log_of(case, args)
    resume.begin(log, command_of(case, args))
    words = [sys.executable, str(_TRAIN), f"--log-file={log}", f"--name={case.key}"]
    with laboratory(case.hosts, case.rate) as lab:
        status = run_everywhere(lab, [*words, *options(case, args)], quiet=True)
    if status or result_of(case, args) is None:
        raise UserError(f"{case.key} ended with status {status}: see its messages above.")


def run_all(args: argparse.Namespace) -> None:
    began = time.monotonic()
    missing = [case for case in cases(args) if result_of(case, args) is None]
    for index, case in enumerate(missing):
        minutes = (time.monotonic() - began) / 60
        if args.minutes is not None and minutes >= args.minutes:
            left = len(missing) - index
            print(f"{minutes:.0f} minutes are over, {left} runs are left", file=sys.stderr)
            return
        print(f"{case.key}, {index + 1} of {len(missing)}", file=sys.stderr, flush=True)
        train(case, args)
        write(args)


# ---- results


def finished_groups(args: argparse.Namespace) -> dict[tuple[int, str], list[Result]]:
    """Results by hosts and rate, where at least one is there."""
    groups: dict[tuple[int, str], list[Result]] = {}
    for case in cases(args):
        result = result_of(case, args)
        if result is not None:
            groups.setdefault((case.hosts, case.rate), []).append(result)
    return groups


def _fp32(group: Sequence[Result]) -> Result | None:
    return next((r for r in group if r.case.scheme.key == "fp32"), None)


def target_of(group: Sequence[Result]) -> float | None:
    """fp32's loss at its last evaluation, and MARGIN more."""
    base = _fp32(group)
    return base.points[-1].loss * (1 + MARGIN) if base and base.points else None


def as_json(result: Result, target: float | None) -> dict[str, Any]:
    reached = {
        f"{what}_to_target": None if target is None else result.at(target, what)
        for what in ("seconds", "sent_bytes")
    }
    return {
        "hosts": result.case.hosts,
        "rate": result.case.rate,
        "scheme": result.case.scheme.key,
        "target": target,
        **reached,
        "summary": result.summary,
        "points": [vars(point) for point in result.points],
    }


def write(args: argparse.Namespace) -> None:
    groups = finished_groups(args)
    facts = environment(groups, args)
    rows = [as_json(r, target_of(group)) for group in groups.values() for r in group]
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"environment": facts, "runs": rows}
    (args.out / "time_to_loss.json").write_text(json.dumps(content, indent=1) + "\n")
    (args.out / "time_to_loss.md").write_text(markdown(groups, facts))
    plot(groups, args.out / "time_to_loss.png")


def environment(
    groups: dict[tuple[int, str], list[Result]], args: argparse.Namespace
) -> dict[str, Any]:
    first = next(iter(groups.values()))[0]
    config = read_log(log_of(first.case, args))[0]
    changed = {k: v for k, v in settings(args, first.case.hosts).items() if k != "batch-size"}
    return {
        "command": shlex.join(["python", "benchmarks/time_to_loss.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "settings": {**changed, "windows a step": _WINDOWS_PER_STEP},
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: config[name] for name in ("elements", "threads", "torch", "machine")},
    }


def markdown(groups: dict[tuple[int, str], list[Result]], facts: dict[str, Any]) -> str:
    header = ["hosts", "link", "scheme", "s to the loss", "fp32 / this", "MB to the loss",
              "final loss", "ms a step", "kB a step"]  # fmt: skip
    rows = [header, ["---:", "---", "---", *["---:"] * 6]]
    rows += [_row(r, group) for group in groups.values() for r in group]
    chosen = ", ".join(f"{name} {value}" for name, value in facts["settings"].items())
    return "\n".join(
        [
            "# Time to the same held-out loss",
            "",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"The loss to reach is fp32's at its last evaluation and {100 * MARGIN:g} % more, on "
            "the same 256 held-out windows; seconds and bytes between evaluations are "
            "interpolated. `fp32 / this`: fp32's seconds over this scheme's on the same link. "
            "Seconds are those of training, evaluation left out. Bytes: sent by each rank "
            "through its TCP sockets, counted by the kernel. Final loss: nats per byte on all "
            "held-out text after the last step. ms a step: median.",
            "",
            f"{facts['elements']:,} parameters, one process on each host; {chosen}.",
            "",
            f"Machine: {facts['cores']} cores shared by all hosts, {facts['threads']} thread(s) "
            f"per process, {facts['machine']}, Python {facts['python']}, torch {facts['torch']}; "
            f"{facts['date']}.",
            "",
            f"    {facts['command']}",
            "",
        ]
    )


def _row(result: Result, group: Sequence[Result]) -> list[str]:
    target = target_of(group)
    seconds = None if target is None else result.at(target, "seconds")
    sent = None if target is None else result.at(target, "sent_bytes")
    fp32 = _fp32(group)
    base = None if target is None or fp32 is None else fp32.at(target, "seconds")
    per_step = result.summary["wire_bytes_per_step"]
    missed = "-" if target is None else "not reached"
    return [
        f"{result.case.hosts}",
        result.case.rate,
        result.case.scheme.label,
        f"{seconds:.1f}" if seconds else missed,
        f"{base / seconds:.2f}" if seconds and base else "-",
        f"{sent / 1e6:,.1f}" if sent else "-",
        f"{result.summary['held_out_loss']:.4f}",
        f"{1e3 * result.summary['seconds_per_step']:.0f}",
        f"{per_step / 1e3:,.0f}" if per_step else "-",
    ]


def plot(groups: dict[tuple[int, str], list[Result]], path: Path) -> None:
    from multihost.plot import pyplot

    figure = draw(groups)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw(groups: dict[tuple[int, str], list[Result]]) -> Figure:
    """A panel for each link, loss against seconds; at the right, against bytes."""
    from multihost.plot import pyplot, style

    hosts = list(dict.fromkeys(hosts for hosts, _ in groups))
    rates = list(dict.fromkeys(rate for _, rate in groups))
    size = (3.4 * (len(rates) + 1), 3.4 * len(hosts) + 0.8)
    figure, grid = pyplot.subplots(
        len(hosts), len(rates) + 1, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    handles: dict[str, Any] = {}
    for (count, rate), group in groups.items():
        row = grid[hosts.index(count)]
        for result in group:
            look = {**style(list(SCHEMES).index(result.case.scheme.key)), "markersize": 3}
            losses = [point.loss for point in result.points]
            axes = row[rates.index(rate)]
            [handle] = axes.plot([point.seconds for point in result.points], losses, **look)
            handles[result.case.scheme.label] = handle
            sent = [point.sent_bytes for point in result.points]
            if rate == rates[0] and all(sent):  # the same on every link
                row[-1].plot(sent, losses, **look)
        target = target_of(group)
        if target is not None:
            row[rates.index(rate)].axhline(target, color="0.6", linewidth=0.8)
        row[rates.index(rate)].set_title(f"{count} hosts, {rate}", fontsize="medium")
    for row in grid:
        row[0].set_ylabel("held-out loss (nats per byte)")
        row[-1].set(xscale="log", xlabel="bytes sent by each rank")
        for axes in row[:-1]:
            axes.set_xlabel("seconds of training")
        for axes in row:
            axes.grid(True, alpha=0.3)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def main() -> int:
    args = parse_arguments()
    exit_on_signals()
    with exits_with_sentence("time_to_loss.py"):
        try:
            if args.list:
                for case in cases(args):
                    result = result_of(case, args)
                    took = "" if result is None else f"  {result.summary['seconds']:.0f} s"
                    print(f"{'-' if result is None else 'done':5}{case.key}{took}")
                return 0
            labs.check_requirements()
            run_all(args)
        except KeyboardInterrupt:
            return 130
        if finished_groups(args):
            write(args)
            print((args.out / "time_to_loss.md").read_text())
        return 0
    raise AssertionError("exits_with_sentence ends the program")


if __name__ == "__main__":
    sys.exit(main())
