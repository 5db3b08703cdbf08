"""Is gct.plan right? Its predictions against what is measured over netlab's links (root).

    python benchmarks/plan_check.py                    # 20 minutes; --seconds 2: 12
    python benchmarks/plan_check.py --layouts 2 --rates 1gbit --seconds 1

For each layout (4: hosts with a rank each; 2x2: hosts x ranks on each) and rate it makes the hosts,
measures each scheme at each size with allreduce_bw.py and what is left of the exchange after
backward with exposed.py, and predicts the same from the codec's speed on this machine. Writes
plan.json and plan.md. Needs a machine on which nothing else runs. All ranks share its cores, and
the model is told so: what the codec takes of a core is measured in as many processes at once as
there are ranks, and what a message and a byte take with float32 all-reduces between them over links
without a limit. Each time is the median of several seconds' worth: such a machine may be three
times slower for one of them. Exit status 1 if a prediction is further off than --tolerance.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multihost import lab as labs
from multihost.arguments import Parser, number
from multihost.calibrated import (
    BITS,
    POWERSGD_RANK,
    Layout,
    Machine,
    calibrate,
    measure,
    predict,
    run_tool,
)
from multihost.errors import UserError, exit_on_signals, exits_with_sentence

from gct import plan

ROOT = Path(__file__).resolve().parents[1]
_SIZES = ("1M", "16M", "4")  # -b, -e, -f: 1, 4 and 16 MiB
# The benchmarks' names of schemes, and the model's; without and with several ranks on a host.
_SCHEMES = {
    "fp32": "fp32",
    "bf16": "bf16",
    f"powersgd-{POWERSGD_RANK}": "powersgd",
    f"gct-{BITS:g}": "gct",
}
_SCHEMES_OF_GROUPS = {
    "fp32": "fp32",
    "bf16": "bf16",
    f"gct-{BITS:g}:hierarchy=off": "gct",
    f"gct-{BITS:g}:hierarchy=auto": "gct-hierarchical",
}
_LEAST_SECONDS = 1e-3  # a difference of two medians that the scheduler alone can make
_COLUMNS = 1024  # of the benchmarks' random gradients, in 1024 rows or as many as there are


@dataclass(frozen=True)
class Check:
    """One scheme at one size: what was predicted and what was measured."""

    layout: str
    rate: str
    size: int
    scheme: str
    predicted_bytes: float
    counted_bytes: float | None
    predicted_seconds: float
    measured_seconds: float
    measured_seconds_min: float
    measured_seconds_max: float
    calls: int  # that were measured
    limit: str

    @property
    def error(self) -> float:
        return self.predicted_seconds / self.measured_seconds - 1


@dataclass(frozen=True)
class StepCheck:
    """Steps of one scheme: what of the exchange is left after backward."""

    layout: str
    rate: str
    scheme: str
    buckets: int
    bucket_numel: int
    steps: int  # that were measured
    base_seconds: float  # of a step that exchanges nothing, measured
    predicted_exposed: float
    measured_exposed: float
    measured_exposed_min: float
    limit: str

    @property
    def error(self) -> float:
        """Of the measured time; of a millisecond where next to nothing, or less, was measured."""
        difference = self.predicted_exposed - self.measured_exposed
        return difference / max(self.measured_exposed, _LEAST_SECONDS)


def schemes_of(place: Layout) -> dict[str, str]:
    return _SCHEMES if place.per_host == 1 else _SCHEMES_OF_GROUPS


def layout(text: str) -> Layout:
    match = re.fullmatch(r"([1-9]\d?)(?:x([1-9]\d?))?", text)
    found = Layout(int(match[1]), int(match[2] or 1)) if match else None
    if found is None or found.hosts < 2:
        raise argparse.ArgumentTypeError(
            f"expected 2 hosts or more, or hosts x ranks on each, such as 4 or 2x2; got {text!r}"
        )
    return found


def limit(text: str) -> str:
    try:
        known = labs.bits_per_second(text) is not None
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error
    if not known:
        raise argparse.ArgumentTypeError(f"the model needs a rate, such as 1gbit; got {text!r}")
    return text


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    default = [Layout(2), Layout(4), Layout(2, 2)]
    parser.add_argument("--layouts", type=layout, nargs="+", default=default, metavar="HOSTS[xN]")
    parser.add_argument("--rates", type=limit, nargs="+", default=["100mbit", "1gbit"])
    parser.add_argument(
        "--seconds", type=number(0.01, 3600), default=10.0, help="for each scheme and size"
    )
    parser.add_argument("--tolerance", type=number(0.0, 10.0), default=0.25)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "plan")
    return parser.parse_args()


def check(
    place: Layout, rate: str, rows: Sequence[dict[str, Any]], machine: Machine
) -> list[Check]:
    """allreduce_bw's rows."""
    result = []
    for row in rows:
        numel = int(row["numel"])
        step = plan.Step(numel, bucket_numel=numel)
        matrix = (min(_COLUMNS, numel // _COLUMNS), _COLUMNS)
        prediction = predict(place, rate, machine, schemes_of(place)[row["scheme"]], step, matrix)
        result.append(
            Check(
                layout=str(place),
                rate=rate,
                size=row["size"],
                scheme=row["scheme"],
                predicted_bytes=prediction.sent_bytes,
                counted_bytes=row["wire_bytes"],
                predicted_seconds=prediction.seconds,
                measured_seconds=row["seconds"],
                measured_seconds_min=row["seconds_min"],
                measured_seconds_max=row["seconds_max"],
                calls=row["calls"],
                limit=prediction.limit,
            )
        )
    return result


def check_steps(
    place: Layout, rate: str, rows: Sequence[dict[str, Any]], machine: Machine
) -> list[StepCheck]:
    """exposed.py's rows."""
    result = []
    for row in rows:
        step = plan.Step(
            row["buckets"] * row["bucket_numel"],
            seconds=row["base"],
            backward=1.0,
            bucket_numel=row["bucket_numel"],
        )
        matrix = (row["bucket_numel"] // _COLUMNS, _COLUMNS)
        prediction = predict(place, rate, machine, schemes_of(place)[row["scheme"]], step, matrix)
        result.append(
            StepCheck(
                layout=str(place),
                rate=rate,
                scheme=row["scheme"],
                buckets=row["buckets"],
                bucket_numel=row["bucket_numel"],
                steps=row["steps"],
                base_seconds=row["base"],
                predicted_exposed=prediction.exposed_seconds,
                measured_exposed=row["exposed"],
                measured_exposed_min=row["step_min"] - row["base"],
                limit=prediction.limit,
            )
        )
    return result


def line(c: Check) -> list[str]:
    counted = "-" if c.counted_bytes is None else f"{c.counted_bytes:,.0f}"
    milliseconds = (c.predicted_seconds, c.measured_seconds, c.measured_seconds_min)
    return [
        c.layout,
        c.rate,
        f"{c.size / (1 << 20):g} MiB",
        c.scheme,
        f"{c.predicted_bytes:,.0f}",
        counted,
        *(f"{1e3 * seconds:,.1f}" for seconds in milliseconds),
        f"{100 * c.error:+.0f} %",
        c.limit,
    ]


def step_line(c: StepCheck) -> list[str]:
    milliseconds = (c.predicted_exposed, c.measured_exposed, c.measured_exposed_min)
    return [
        c.layout,
        c.rate,
        c.scheme,
        f"{1e3 * c.base_seconds:,.1f}",
        *(f"{1e3 * seconds:,.1f}" for seconds in milliseconds),
        f"{100 * c.error:+.0f} %",
        c.limit,
    ]


_HEADER = ["hosts", "link", "size", "scheme", "bytes predicted", "bytes counted", "ms predicted",
           "ms measured", "least ms", "error", "limit"]  # fmt: skip
_STEP_HEADER = ["hosts", "link", "scheme", "ms of a step without", "exposed ms predicted",
                "measured", "least", "error", "limit"]  # fmt: skip


def described(place: Layout, machine: Machine) -> str:
    speed = machine.speed
    encode = ", ".join(f"{1e6 * t:,.0f} us for {n:,.0f}" for n, t in speed.encode)
    decode = ", ".join(f"{1e6 * t:,.0f} us for {n:,.0f}" for n, t in speed.decode)
    products = ", ".join(f"{1e3 * t:,.1f} ms for {n:,.0f}" for n, t in speed.powersgd)
    return (
        f"{place}: on a core, of which each of {place.ranks} ranks has {place.cores:g}: encode "
        f"{encode} elements; decode {decode}; bfloat16 and back {speed.cast_rate / 1e6:,.0f} M "
        f"elements/s; PowerSGD's products {products}; a message's latency "
        f"{1e6 * machine.message:,.0f} us, in a ring {1e6 * machine.ring_message:,.0f} us, "
        f"bytes {1e9 * speed.byte_seconds:.2f} ns each."
    )


@dataclass
class Report:
    """All that was checked so far."""

    checks: list[Check]
    steps: list[StepCheck]
    machines: dict[Layout, Machine]
    facts: dict[str, Any]

    def markdown(self) -> str:
        first = self.steps[0]
        backward = (
            f"{first.buckets} buckets of {4 * first.bucket_numel / (1 << 20):g} MiB, ready evenly "
            "over a backward that leaves the processor alone. Exposed: what a step takes more than "
            "one that exchanges nothing; median over the steps of the slowest rank."
        )
        return "\n".join(
            [
                "# gct.plan against what is measured",
                "",
                "## All-reduces",
                "",
                *_table(_HEADER, [line(c) for c in self.checks]),
                "",
                "Bytes: sent by each rank in a call; measured: median over the calls of the "
                f"slowest rank. {_largest(self.checks)}",
                "",
                "## Steps",
                "",
                *_table(_STEP_HEADER, [step_line(c) for c in self.steps]),
                "",
                f"{backward} {_largest(self.steps)}",
                "",
                "## Machine",
                "",
                *(described(place, machine) for place, machine in self.machines.items()),
                "",
                f"Machine: {self.facts['machine']}; torch {self.facts['torch']}; "
                f"gct {self.facts['gct']}; {self.facts['date']}.",
                "",
                f"    {self.facts['command']}",
                "",
            ]
        )

    def write(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        content = {
            "facts": self.facts,
            "machine": {str(place): asdict(m) for place, m in self.machines.items()},
            "rows": [{**asdict(c), "error": c.error} for c in self.checks],
            "steps": [{**asdict(c), "error": c.error} for c in self.steps],
        }
        (out / "plan.json").write_text(json.dumps(content, indent=1) + "\n")
        (out / "plan.md").write_text(self.markdown())


def _table(header: list[str], lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---:"] * len(header), *lines)]


def _largest(checks: Sequence[Check | StepCheck]) -> str:
    c = max(checks, key=lambda c: abs(c.error))
    return f"Largest error: {100 * c.error:+.0f} % ({c.scheme}, {c.layout} hosts, {c.rate})."


def verdict(checks: Sequence[Check | StepCheck], tolerance: float) -> int:
    """Says how far off the worst prediction is; the exit status."""
    worst = max(abs(c.error) for c in checks)
    beyond = sum(abs(c.error) > tolerance for c in checks)
    print(
        f"largest error {100 * worst:.0f} %, allowed {100 * tolerance:.0f} %: beyond that "
        f"{beyond} of {len(checks)}"
    )
    return int(beyond > 0)


def run(args: argparse.Namespace) -> int:
    report = Report([], [], {}, {})
    for place in args.layouts:
        machine = report.machines[place] = calibrate(place, args.seconds)
        names = list(schemes_of(place))
        for rate in args.rates:
            print(f"{place} hosts, {rate}", file=sys.stderr, flush=True)
            measured = measure(place, rate, args.seconds, _SIZES, names)
            report.checks += check(place, rate, measured["rows"], machine)
            with_steps = [name for name in names if not name.startswith("powersgd")]
            words = ["--seconds", str(args.seconds), "--schemes", *with_steps]
            steps = run_tool(place, rate, "exposed.py", words)
            report.steps += check_steps(place, rate, steps["rows"], machine)
            report.facts = {k: measured["facts"][k] for k in ("machine", "torch", "gct", "date")}
            command = ["python", "benchmarks/plan_check.py", *sys.argv[1:]]
            report.facts["command"] = shlex.join(command)
            report.write(args.out)
    print((args.out / "plan.md").read_text())
    return verdict([*report.checks, *report.steps], args.tolerance)


def main() -> int:
    args = parse_arguments()
    exit_on_signals()
    with exits_with_sentence("plan_check.py"):
        try:
            labs.check_requirements()
            return run(args)
        except KeyboardInterrupt:
            return 130
    raise AssertionError("exits_with_sentence ends the program")


if __name__ == "__main__":
    sys.exit(main())
