"""Is gct.plan right? Its predictions against all-reduces measured over netlab's links (root).

    python benchmarks/plan_check.py                                 # about 6 minutes
    python benchmarks/plan_check.py --layouts 2 --rates 1gbit --seconds 1

For each layout (4: hosts with a rank each; 2x2: hosts x ranks on each) and rate it makes the hosts,
measures each scheme at each size with allreduce_bw.py, and predicts the same from the codec's speed
on this machine. Writes plan.json and plan.md. Needs a machine on which nothing else runs. All ranks
share its cores, and the model is told so: what the codec takes of a core is measured in as many
processes at once as there are ranks, and what a message and a byte take with float32 all-reduces
between them over links without a limit. Each time is the median of several seconds' worth: such a
machine may be three times slower for one of them. Exit status 1 if a prediction is further off than
--tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multihost import lab as labs
from multihost.arguments import Parser, number
from multihost.errors import UserError, exit_on_signals, exits_with_sentence
from multihost.fleet import run_everywhere
from multihost.inputs import make_source

from gct import plan

ROOT = Path(__file__).resolve().parents[1]
_TOOL = Path(__file__).with_name("allreduce_bw.py")
_SIZES = ("1M", "16M", "4")  # -b, -e, -f: 1, 4 and 16 MiB
_RING_SIZES = ("4K", "16M", "4096")  # the time of messages, and that of bytes
_ROUNDS, _PAUSE_SECONDS = 11, 0.5  # of the codec's measurement
_BITS, _RANK = 2.0, 4
# allreduce_bw's names of schemes, and the model's; without and with several ranks on a host.
_SCHEMES = {
    "fp32": "fp32",
    "bf16": "bf16",
    f"powersgd-{_RANK}": "powersgd",
    f"gct-{_BITS:g}": "gct",
}
_SCHEMES_OF_GROUPS = {
    "fp32": "fp32",
    "bf16": "bf16",
    f"gct-{_BITS:g}:hierarchy=off": "gct",
    f"gct-{_BITS:g}:hierarchy=auto": "gct-hierarchical",
}
# tc counts frames of up to 1,514 bytes for 1,448 of payload; no preamble, no gap between frames.
_EFFICIENCY = 1448 / 1514
_COLUMNS = 1024  # of allreduce_bw's random gradients, in 1024 rows or as many as there are


@dataclass(frozen=True)
class Layout:
    hosts: int
    per_host: int = 1

    def __str__(self) -> str:
        return f"{self.hosts}" if self.per_host == 1 else f"{self.hosts}x{self.per_host}"

    @property
    def ranks(self) -> int:
        return self.hosts * self.per_host

    @property
    def schemes(self) -> dict[str, str]:
        return _SCHEMES if self.per_host == 1 else _SCHEMES_OF_GROUPS

    @property
    def cores(self) -> float:
        """Of each rank: all of them share this machine's."""
        return min(1.0, len(os.sched_getaffinity(0)) / self.ranks)


@dataclass(frozen=True)
class Machine:
    """What each of so many ranks needs of this machine's cores, and how long a message takes."""

    speed: plan.Speed
    message: float  # seconds in an exchange
    ring_message: float  # in a ring, where all wait for the rank that gets a core last


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


def measure(
    place: Layout, rate: str, seconds: float, sizes: Sequence[str], schemes: Sequence[str]
) -> dict[str, Any]:
    """allreduce_bw's facts and rows on these hosts; sizes are its -b, -e and -f."""
    smallest, largest, factor = sizes
    lab = labs.create(f"plan-check-{os.getpid()}", place.hosts, rate)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.json"
            command = [sys.executable, str(_TOOL), "-b", smallest, "-e", largest, "-f", factor]
            # Only the time ends it: 20 calls, the default, are 0.1 s of a small bucket.
            command += ["--iters", "1000000", "--seconds", str(seconds), "--json", str(path)]
            command += ["--schemes", *schemes]
            status = run_everywhere(lab, command, per_host=place.per_host, quiet=True)
            if status:
                raise UserError(f"allreduce_bw.py ended with status {status}: see above.")
            content: dict[str, Any] = json.loads(path.read_text())
            return content
    finally:
        labs.destroy(lab.name)


def calibrate(place: Layout, seconds: float) -> Machine:
    """The codec's speed in as many processes at once, and the time of a message and of a byte from
    rings over links without a limit."""
    ranks = place.ranks
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(ranks)
    with context.Pool(ranks, initializer=_keep, initargs=(barrier,)) as pool:
        speeds = [s for of_rank in pool.map(_calibrate, range(ranks), chunksize=1) for s in of_rank]

    def curve(name: str) -> plan.Curve:
        columns = zip(*(getattr(speed, name) for speed in speeds), strict=True)
        return tuple((c[0][0], statistics.median(seconds for _, seconds in c)) for c in columns)

    small, large = measure(place, labs.UNLIMITED, seconds, _RING_SIZES, ["fp32"])["rows"]
    messages = 2 * (ranks - 1)
    message = small["seconds_min"] / messages
    moved = 2 * (ranks - 1) / ranks * (large["size"] - small["size"])
    speed = plan.Speed(
        encode=curve("encode"),
        decode=curve("decode"),
        cast_rate=statistics.median(speed.cast_rate for speed in speeds),
        powersgd=curve("powersgd"),
        # While a ring without a limit moves bytes, all its ranks' cores are busy.
        message_seconds=message * place.cores,
        byte_seconds=(large["seconds"] - small["seconds"]) / moved * place.cores,
    )
    return Machine(speed, message, ring_message=small["seconds"] / messages)


_barrier: Any = None


def _keep(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _calibrate(_: int) -> list[plan.Speed]:
    """What one of the processes found in each round; all begin a round together.

    In time on a core: a call shorter than the scheduler's slices rarely sees on the clock that
    others want the core too.
    """
    values = make_source("gg", 0, 1).values  # those of allreduce_bw
    plan.calibrate(bits=_BITS, powersgd_rank=_RANK, values=values)  # memory is fetched once
    found = []
    for _ in range(_ROUNDS):
        _barrier.wait()
        found.append(plan.calibrate(bits=_BITS, powersgd_rank=_RANK, values=values))
        time.sleep(_PAUSE_SECONDS)
    return found


def check(
    place: Layout, rate: str, rows: Sequence[dict[str, Any]], machine: Machine
) -> list[Check]:
    bits_per_second = labs.bits_per_second(rate)
    assert bits_per_second is not None  # limit() has seen to it
    result = []
    for row in rows:
        numel = int(row["numel"])
        scheme = place.schemes[row["scheme"]]
        # These links have no latency of their own.
        in_ring = not scheme.startswith("gct")
        latency = machine.ring_message if in_ring else machine.message
        link = plan.Link(bits_per_second, latency, message=latency, efficiency=_EFFICIENCY)
        # On a host bytes are moved by its processor, which speed.byte_seconds counts.
        inside = plan.Link(math.inf, machine.ring_message, message=latency)
        prediction = plan.predict(
            scheme,
            plan.Cluster(
                place.ranks,
                link,
                local_ranks=place.per_host,
                local_link=inside,
                cores=place.cores,
            ),
            plan.Step(numel, bucket_numel=numel),
            machine.speed,
            bits=_BITS,
            powersgd_rank=_RANK,
            matrix=(min(_COLUMNS, numel // _COLUMNS), _COLUMNS),
        )
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


_HEADER = ["hosts", "link", "size", "scheme", "bytes predicted", "bytes counted", "ms predicted",
           "ms measured", "least ms", "error", "limit"]  # fmt: skip


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


def markdown(
    checks: Sequence[Check], machines: dict[Layout, Machine], facts: dict[str, Any]
) -> str:
    rows = [_HEADER, ["---:"] * len(_HEADER), *(line(c) for c in checks)]
    table = ["| " + " | ".join(row) + " |" for row in rows]
    largest = max(checks, key=lambda c: abs(c.error))
    return "\n".join(
        [
            "# gct.plan against measured all-reduces",
            "",
            *table,
            "",
            "Bytes: sent by each rank in a call; measured: median over the calls of the slowest "
            f"rank. Largest error: {100 * largest.error:+.0f} % ({largest.scheme}, "
            f"{largest.layout} hosts, {largest.rate}).",
            "",
            *(described(place, machine) for place, machine in machines.items()),
            "",
            f"Machine: {facts['machine']}; torch {facts['torch']}; gct {facts['gct']}; "
            f"{facts['date']}.",
            "",
            f"    {facts['command']}",
            "",
        ]
    )


def write(
    checks: Sequence[Check], machines: dict[Layout, Machine], facts: dict[str, Any], out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "facts": facts,
        "machine": {str(place): asdict(machine) for place, machine in machines.items()},
        "rows": [{**asdict(c), "error": c.error} for c in checks],
    }
    (out / "plan.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "plan.md").write_text(markdown(checks, machines, facts))


def run(args: argparse.Namespace) -> int:
    checks: list[Check] = []
    machines: dict[Layout, Machine] = {}
    for place in args.layouts:
        machines[place] = calibrate(place, args.seconds)
        for rate in args.rates:
            print(f"{place} hosts, {rate}", file=sys.stderr, flush=True)
            measured = measure(place, rate, args.seconds, _SIZES, list(place.schemes))
            checks += check(place, rate, measured["rows"], machines[place])
            names = ("machine", "torch", "gct", "date")
            facts = {name: measured["facts"][name] for name in names}
            facts["command"] = shlex.join(["python", "benchmarks/plan_check.py", *sys.argv[1:]])
            write(checks, machines, facts, args.out)
    print((args.out / "plan.md").read_text())
    worst = max(abs(c.error) for c in checks)
    print(f"largest error {100 * worst:.0f} %, allowed {100 * args.tolerance:.0f} %")
    return int(worst > args.tolerance)


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
