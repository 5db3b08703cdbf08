"""Is gct.plan right? Its predictions against all-reduces measured over netlab's links (root).

    python benchmarks/plan_check.py                                 # about 4 minutes
    python benchmarks/plan_check.py --hosts 2 --rates 1gbit --seconds 1

For each number of hosts and rate it makes the hosts, measures each scheme at each size with
allreduce_bw.py, and predicts the same from the codec's speed on this machine. Writes plan.json and
plan.md. Needs a machine on which nothing else runs. All ranks share its cores: the codec's speed is
measured in as many processes at once as there are hosts, and what a message and a byte take is
measured with float32 all-reduces between as many hosts whose links have no limit. Exit status 1 if
a prediction is further off than --tolerance.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
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
from multihost.errors import UserError, exit_on_signals, exits_with_sentence
from multihost.fleet import run_everywhere
from multihost.inputs import make_source

from gct import plan

ROOT = Path(__file__).resolve().parents[1]
_TOOL = Path(__file__).with_name("allreduce_bw.py")
_SIZES = ("1M", "16M", "4")  # -b, -e, -f: 1, 4 and 16 MiB
_RING_SIZES = ("4K", "16M", "4096")  # the time of messages, and that of bytes
_BITS, _RANK = 2.0, 4
# allreduce_bw's names of schemes, and the model's.
_SCHEMES = {
    "fp32": "fp32",
    "bf16": "bf16",
    f"powersgd-{_RANK}": "powersgd",
    f"gct-{_BITS:g}": "gct",
}
# tc counts frames of up to 1,514 bytes for 1,448 of payload; no preamble, no gap between frames.
_EFFICIENCY = 1448 / 1514
_COLUMNS = 1024  # of allreduce_bw's random gradients, in 1024 rows or as many as there are


@dataclass(frozen=True)
class Check:
    """One scheme at one size: what was predicted and what was measured."""

    hosts: int
    rate: str
    size: int
    scheme: str
    predicted_bytes: float
    counted_bytes: float | None
    predicted_seconds: float
    measured_seconds: float
    measured_seconds_min: float
    measured_seconds_max: float
    limit: str

    @property
    def error(self) -> float:
        return self.predicted_seconds / self.measured_seconds - 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rates", nargs="+", default=["100mbit", "1gbit"])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each scheme and size")
    parser.add_argument("--tolerance", type=float, default=0.25)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "plan")
    return parser.parse_args()


def measure(
    hosts: int, rate: str, seconds: float, sizes: Sequence[str], schemes: Sequence[str]
) -> dict[str, Any]:
    """allreduce_bw's facts and rows on these hosts; sizes are its -b, -e and -f."""
    smallest, largest, factor = sizes
    lab = labs.create(f"plan-check-{os.getpid()}", hosts, rate)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.json"
            command = [sys.executable, str(_TOOL), "-b", smallest, "-e", largest, "-f", factor]
            command += ["--seconds", str(seconds), "--json", str(path)]
            status = run_everywhere(lab, [*command, "--schemes", *schemes], quiet=True)
            if status:
                raise UserError(f"allreduce_bw.py ended with status {status}: see above.")
            content: dict[str, Any] = json.loads(path.read_text())
            return content
    finally:
        labs.destroy(lab.name)


def calibrate(hosts: int, seconds: float) -> plan.Speed:
    """What each of the hosts' ranks has of this machine: the mean over as many processes at once,
    and the time of a message and of a byte from rings over links without a limit."""
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(hosts)
    with context.Pool(hosts, initializer=_keep, initargs=(barrier,)) as pool:
        speeds = pool.map(_calibrate, range(hosts), chunksize=1)

    def curve(name: str) -> plan.Curve:
        columns = zip(*(getattr(speed, name) for speed in speeds), strict=True)
        return tuple((c[0][0], statistics.fmean(seconds for _, seconds in c)) for c in columns)

    small, large = measure(hosts, labs.UNLIMITED, seconds, _RING_SIZES, ["fp32"])["rows"]
    # The least: in a ring all wait for the rank that gets a core last, in an exchange nobody does.
    message = small["seconds_min"] / (2 * (hosts - 1))
    moved = 2 * (hosts - 1) / hosts * (large["size"] - small["size"])
    return plan.Speed(
        encode=curve("encode"),
        decode=curve("decode"),
        cast_rate=statistics.fmean(speed.cast_rate for speed in speeds),
        powersgd=curve("powersgd"),
        message_seconds=message,
        byte_seconds=(large["seconds"] - small["seconds"]) / moved,
    )


_barrier: Any = None


def _keep(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _calibrate(_: int) -> plan.Speed:
    values = make_source("gg", 0, 1).values  # those of allreduce_bw
    plan.calibrate(bits=_BITS, powersgd_rank=_RANK, values=values)  # memory is fetched once
    _barrier.wait()
    return plan.calibrate(bits=_BITS, powersgd_rank=_RANK, values=values, clock=time.perf_counter)


def check(hosts: int, rate: str, rows: Sequence[dict[str, Any]], speed: plan.Speed) -> list[Check]:
    bits_per_second = labs.bits_per_second(rate)
    if bits_per_second is None:
        raise UserError("The model needs a rate: 'unlimited' can't be checked.")
    latency = speed.message_seconds  # these links have none of their own
    link = plan.Link(bits_per_second, latency, message=latency, efficiency=_EFFICIENCY)
    # The speeds are of as many processes as there are ranks: each has what it has of a core.
    cluster = plan.Cluster(hosts, link)
    result = []
    for row in rows:
        numel = int(row["numel"])
        prediction = plan.predict(
            _SCHEMES[row["scheme"]],
            cluster,
            plan.Step(numel, bucket_numel=numel),
            speed,
            bits=_BITS,
            powersgd_rank=_RANK,
            matrix=(min(_COLUMNS, numel // _COLUMNS), _COLUMNS),
        )
        result.append(
            Check(
                hosts=hosts,
                rate=rate,
                size=row["size"],
                scheme=row["scheme"],
                predicted_bytes=prediction.sent_bytes,
                counted_bytes=row["wire_bytes"],
                predicted_seconds=prediction.seconds,
                measured_seconds=row["seconds"],
                measured_seconds_min=row["seconds_min"],
                measured_seconds_max=row["seconds_max"],
                limit=prediction.limit,
            )
        )
    return result


def line(c: Check) -> list[str]:
    counted = "-" if c.counted_bytes is None else f"{c.counted_bytes:,.0f}"
    milliseconds = (c.predicted_seconds, c.measured_seconds, c.measured_seconds_min)
    return [
        f"{c.hosts}",
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


def described(hosts: int, speed: plan.Speed) -> str:
    encode = ", ".join(f"{1e6 * t:,.0f} us for {n:,.0f}" for n, t in speed.encode)
    decode = ", ".join(f"{1e6 * t:,.0f} us for {n:,.0f}" for n, t in speed.decode)
    products = ", ".join(f"{1e3 * t:,.1f} ms for {n:,.0f}" for n, t in speed.powersgd)
    return (
        f"Each of {hosts} ranks at once: encode {encode} elements; decode {decode}; bfloat16 and "
        f"back {speed.cast_rate / 1e6:,.0f} M elements/s; PowerSGD's products {products}; "
        f"a message {1e6 * speed.message_seconds:,.0f} us, its "
        f"bytes {1e9 * speed.byte_seconds:.2f} ns each."
    )


def markdown(checks: Sequence[Check], speeds: dict[int, plan.Speed], facts: dict[str, Any]) -> str:
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
            f"{largest.hosts} hosts, {largest.rate}).",
            "",
            *(described(hosts, speed) for hosts, speed in speeds.items()),
            "",
            f"Machine: {facts['machine']}; torch {facts['torch']}; gct {facts['gct']}; "
            f"{facts['date']}.",
            "",
            f"    {facts['command']}",
            "",
        ]
    )


def write(
    checks: Sequence[Check], speeds: dict[int, plan.Speed], facts: dict[str, Any], out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "facts": facts,
        "speed": {hosts: asdict(speed) for hosts, speed in speeds.items()},
        "rows": [{**asdict(c), "error": c.error} for c in checks],
    }
    (out / "plan.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "plan.md").write_text(markdown(checks, speeds, facts))


def run(args: argparse.Namespace) -> int:
    checks: list[Check] = []
    speeds: dict[int, plan.Speed] = {}
    for hosts in args.hosts:
        speeds[hosts] = calibrate(hosts, args.seconds)
        for rate in args.rates:
            print(f"{hosts} hosts, {rate}", file=sys.stderr, flush=True)
            measured = measure(hosts, rate, args.seconds, _SIZES, list(_SCHEMES))
            checks += check(hosts, rate, measured["rows"], speeds[hosts])
            names = ("machine", "torch", "gct", "date")
            facts = {name: measured["facts"][name] for name in names}
            facts["command"] = shlex.join(["python", "benchmarks/plan_check.py", *sys.argv[1:]])
            write(checks, speeds, facts, args.out)
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
