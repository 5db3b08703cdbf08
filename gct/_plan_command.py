"""`python -m gct plan`: the command line of gct.plan."""

import argparse
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from gct import plan
from gct._channel import _MAX_DEFAULT_THREADS
from gct.codec import Codec

__all__ = ["add_plan"]

_DESCRIPTION = """\
Predict bytes and time of a training step's gradient exchange on a cluster that isn't here.

    python -m gct plan --params 7e9 --ranks 256 --local-ranks 8 --link 25gbit --step-ms 900

The codec's speed is measured on this machine in under a second, unless both rates are given.
docs/planning.md says what is assumed.
"""
_LEAST_DIFFERENCE = 1.05  # rates that are measured differ by more from call to call
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_COUNT_SUFFIXES = {**_PREFIXES, "b": 1e9}  # "7b", as models are called


def add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `python -m gct`."""
    parser = commands.add_parser(
        "plan",
        help="predict bytes and time of gradient exchange on a cluster",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda arguments: _plan(parser, arguments))
    what = parser.add_argument_group("training")
    what.add_argument("--params", type=_count, required=True, help="gradient elements: 7e9, 350m")
    what.add_argument(
        "--step-ms",
        type=_at_least_zero,
        default=0.0,
        help="of a step without communication (default: 0, nothing to hide behind)",
    )
    what.add_argument(
        "--backward", type=_share, default=2 / 3, help="share of the step (default: 2/3)"
    )
    what.add_argument("--bucket-mb", type=_above_zero, default=25.0, help="DDP's (default: 25)")
    where = parser.add_argument_group("cluster")
    where.add_argument("--ranks", type=_whole, required=True)
    where.add_argument("--link", type=_rate, required=True, help="of a host: 25gbit, 3GB/s")
    where.add_argument("--local-ranks", type=_whole, default=1, help="on each host (default: 1)")
    where.add_argument(
        "--local-link", type=_rate, default=100e9, help="of a rank on its host (default: 100gbit)"
    )
    where.add_argument(
        "--latency-us", type=_at_least_zero, default=50.0, help="between hosts (default: 50)"
    )
    schemes = parser.add_argument_group("schemes")
    schemes.add_argument("--bits", type=_above_zero, default=2.0, help="of gct (default: 2)")
    schemes.add_argument("--powersgd-rank", type=_whole, default=4, help="(default: 4)")
    schemes.add_argument(
        "--matrix", type=_matrix, default=(4096, 4096), help="for PowerSGD (default: 4096x4096)"
    )
    speed = parser.add_argument_group("speed of the codec")
    speed.add_argument("--encode-rate", type=_count, help="elements a second on one core: 350m")
    speed.add_argument("--decode-rate", type=_count)
    speed.add_argument(
        "--cores", type=_above_zero, help="for each rank (default: as gct would use this machine's)"
    )
    parser.add_argument("--json", action="store_true", help="instead of the table")


def _plan(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if (arguments.encode_rate is None) != (arguments.decode_rate is None):
        parser.error("--encode-rate and --decode-rate: give both, or none to measure them here")
    try:
        cluster = _cluster(arguments)
        speed = _speed(arguments)
    except ValueError as error:
        parser.error(str(error))
    step = plan.Step(
        numel=round(arguments.params),
        seconds=arguments.step_ms / 1e3,
        backward=arguments.backward,
        bucket_numel=max(1, round(arguments.bucket_mb * (1 << 20) / 4)),
    )
    predictions = plan.predict_all(
        cluster,
        step,
        speed,
        bits=arguments.bits,
        powersgd_rank=arguments.powersgd_rank,
        matrix=arguments.matrix,
    )
    if arguments.json:
        print(json.dumps(_as_json(cluster, step, speed, predictions, arguments), indent=1))
    else:
        print(_head(cluster, step, speed, arguments))
        print(_table(predictions, arguments))
        print(_verdict(predictions, arguments))
    return 0


def _cluster(arguments: argparse.Namespace) -> plan.Cluster:
    cores = arguments.cores
    if cores is None:
        mine = len(os.sched_getaffinity(0)) // arguments.local_ranks
        cores = min(max(1, mine), _MAX_DEFAULT_THREADS)
    cluster = plan.Cluster(
        ranks=arguments.ranks,
        link=plan.Link(arguments.link, latency=arguments.latency_us / 1e6),
        local_ranks=arguments.local_ranks,
        cores=cores,
    )
    local_link = replace(cluster.local_link, bits_per_second=arguments.local_link)
    return replace(cluster, local_link=local_link)


def _speed(arguments: argparse.Namespace) -> plan.Speed:
    Codec(bits=arguments.bits)  # refuses what can't be
    if arguments.encode_rate is not None:
        return plan.Speed.from_rates(arguments.encode_rate, arguments.decode_rate)
    return plan.calibrate(bits=arguments.bits, powersgd_rank=arguments.powersgd_rank)


def _head(
    cluster: plan.Cluster, step: plan.Step, speed: plan.Speed, arguments: argparse.Namespace
) -> str:
    source = "measured here" if arguments.encode_rate is None else "given"
    # Of a segment as two ranks exchange it; small ones take longer for each element.
    numel = 1 << 19
    encode = numel / speed.encode_seconds(numel) / 1e6
    decode = numel / speed.decode_seconds(numel) / 1e6
    backward = 1e3 * step.seconds * step.backward
    hides = (
        f"a step of {1e3 * step.seconds:,.0f} ms, {backward:,.0f} of them backward"
        if step.seconds
        else "a step of no time (--step-ms): nothing hides behind backward"
    )
    cores = " (this machine's: see --cores)" if arguments.cores is None else ""
    return "\n".join(
        [
            f"{step.numel:,} elements in {step.buckets:,} buckets; {hides}",
            f"{cluster.ranks} ranks on {cluster.hosts} hosts, "
            f"{cluster.link.bits_per_second / 1e9:g} Gbit/s and "
            f"{1e6 * cluster.link.latency:g} us between hosts",
            f"codec at {arguments.bits:g} bits, {source}: {encode:,.0f} M elements/s to encode, "
            f"{decode:,.0f} to decode on one core; {cluster.cores:g} core(s) for each "
            f"rank{cores}",
            "",
        ]
    )


def _table(predictions: Sequence[plan.Prediction], arguments: argparse.Namespace) -> str:
    """Of a step: bytes that a rank sends and that leave a host, and times."""
    header = ("", "a rank sends", "leave a host", "exchange", "exposed", "step", "limit")
    rows: list[tuple[str, ...]] = [header]
    for p in predictions:
        times = (p.seconds, p.exposed_seconds, p.step_seconds)
        cells = [_name(p.scheme, arguments), _bytes(p.sent_bytes), _bytes(p.host_bytes)]
        rows.append((*cells, *(f"{1e3 * seconds:,.1f} ms" for seconds in times), p.limit))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _verdict(predictions: Sequence[plan.Prediction], arguments: argparse.Namespace) -> str:
    """The shortest step, and how long gct's is beside it."""
    known = [p for p in predictions if p.scheme != "powersgd"]  # which ends at another loss
    ours = min((p for p in known if p.scheme.startswith("gct")), key=lambda p: p.step_seconds)
    theirs = min((p for p in known if not p.scheme.startswith("gct")), key=lambda p: p.step_seconds)
    if not ours.seconds:
        return "\nOne rank has nobody to exchange anything with."
    best, other = sorted((theirs, ours), key=lambda p: p.step_seconds)
    times = other.step_seconds / best.step_seconds
    same = f"; {_name(other.scheme, arguments)}: much the same" if times < _LEAST_DIFFERENCE else ""
    text = f"\nShortest step, PowerSGD aside: {_name(best.scheme, arguments)}"
    if best is ours:
        return f"{text}, 1/{known[0].step_seconds / best.step_seconds:.2g} of fp32's{same}."
    compared = same or f"; {_name(ours.scheme, arguments)}: {times:.2f} times that"
    return f"{text}{compared} ({ours.limit})."


def _name(scheme: str, arguments: argparse.Namespace) -> str:
    if scheme.startswith("gct"):
        return scheme.replace("gct", f"gct, {arguments.bits:g} bits").replace("-", ", ")
    return f"PowerSGD, rank {arguments.powersgd_rank}" if scheme == "powersgd" else scheme


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _as_json(
    cluster: plan.Cluster,
    step: plan.Step,
    speed: plan.Speed,
    predictions: Sequence[plan.Prediction],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    rates = {name: None if value == math.inf else value for name, value in asdict(speed).items()}
    return {
        "cluster": asdict(cluster),
        "step": asdict(step),
        "speed": rates,
        "bits": arguments.bits,
        "powersgd_rank": arguments.powersgd_rank,
        "matrix": arguments.matrix,
        "predictions": [asdict(p) for p in predictions],
    }


# What options take. argparse shows the message of an ArgumentTypeError.


def _rate(text: str) -> float:
    """Bits a second: ``"25gbit"``, ``"100mbit/s"``, ``"10gbps"``, ``"3GB/s"``."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kmgt]?)(bit|bit/s|bps|b/s)", text.lower())
    in_bytes = re.search(r"B(ps|/s)$", text) is not None
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(
            f"expected a rate such as 25gbit, 100mbit or 3GB/s, got {text!r}"
        )
    return float(match[1]) * _PREFIXES[match[2]] * (8 if in_bytes else 1)


def _count(text: str) -> float:
    """``"7e9"``, ``"7b"``, ``"350m"``."""
    match = re.fullmatch(r"(\d+\.?\d*(?:e\d+)?)([kmgtb]?)", text.lower())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a number such as 7e9, 7b or 350m, got {text!r}")
    return float(match[1]) * _COUNT_SUFFIXES[match[2]]


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _number(text: str, what: str, low: float, high: float, low_too: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (low <= value <= high) or (value == low and not low_too) or value == math.inf:
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    return value


def _above_zero(text: str) -> float:
    return _number(text, "a number above 0", 0.0, math.inf, low_too=False)


def _at_least_zero(text: str) -> float:
    return _number(text, "a number from 0 on", 0.0, math.inf, low_too=True)


def _share(text: str) -> float:
    return _number(text, "a share from 0 to 1", 0.0, 1.0, low_too=True)


def _matrix(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if match is None or not int(match[1]) * int(match[2]):
        raise argparse.ArgumentTypeError(f"expected rows x columns such as 4096x1024, got {text!r}")
    return int(match[1]), int(match[2])
