"""All-reduce over real links: time, bandwidth, bytes and error of each compression scheme.

    python benchmarks/allreduce_bw.py --local 2
    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        benchmarks/allreduce_bw.py -b 64K -e 256M -f 2
    mpirun -n 4 --host a,b,c,d python benchmarks/allreduce_bw.py
    srun -N 4 --ntasks-per-node 1 python benchmarks/allreduce_bw.py

Sizes as in nccl-tests: -b smallest, -e largest, -f factor; K, M, G are powers of 1024. All sizes
and schemes that are the default take some minutes. Table on stdout, progress on stderr.
docs/benchmarks.md says what each column means.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from multihost import report
from multihost.arguments import Parser, positive, whole_number
from multihost.errors import UserError, exits_with_sentence
from multihost.inputs import make_source
from multihost.join import BACKENDS, is_memory_error, process_group, shared_facts
from multihost.measure import Bench, Effort, Row
from multihost.rendezvous import Place, find_place
from multihost.schemes import DEFAULT_SCHEMES, Reducer, check_schemes, make_reducer
from multihost.schemes import __doc__ as schemes_help
from multihost.spawn import is_local_rank, run_locally

_OWN = ("json", "csv", "plot", "local", "threads")  # options that may differ between ranks
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def byte_count(text: str) -> int:
    """``"64K"`` -> 65536; a whole number of float32."""
    match = re.fullmatch(r"(\d+)([KMG]?)B?", text.upper())
    count = int(match[1]) * _SUFFIXES[match[2]] if match else 0
    if count < 4:
        raise argparse.ArgumentTypeError(f"expected bytes such as 64K or 16M, got {text!r}")
    return count // 4 * 4


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__, epilog=f"Schemes. {schemes_help}", allow_abbrev=False)
    parser.add_argument(
        "--local", type=whole_number(1), metavar="N", help="start N ranks on this machine"
    )
    sizes = parser.add_argument_group("sizes, in bytes of float32 on each rank")
    sizes.add_argument(
        "-b", "--minbytes", type=byte_count, default="64K", help="(default: %(default)s)"
    )
    sizes.add_argument(
        "-e", "--maxbytes", type=byte_count, default="64M", help="(default: %(default)s)"
    )
    sizes.add_argument(
        "-f", "--stepfactor", type=positive, default=4.0, help="(default: %(default)s)"
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--schemes",
        nargs="+",
        default=list(DEFAULT_SCHEMES),
        metavar="SCHEME",
        help=f"(default: {' '.join(DEFAULT_SCHEMES)})",
    )
    what.add_argument("--backend", choices=BACKENDS, default="gloo", help="(default: %(default)s)")
    what.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda with nccl"
    )
    what.add_argument(
        "--input",
        default="gg",
        metavar="WHAT",
        help="gaussian, laplace, gg[:SHAPE] or a file (default: %(default)s)",
    )
    what.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    how = parser.add_argument_group("how long")
    how.add_argument(
        "-n", "--iters", type=whole_number(1), default=20, help="timed calls (default: %(default)s)"
    )
    how.add_argument(
        "-w",
        "--warmup-iters",
        type=whole_number(1),
        default=2,
        help="calls before them (default: %(default)s)",
    )
    how.add_argument(
        "--seconds",
        type=positive,
        default=5.0,
        help="fewer calls if they would take longer (default: %(default)s)",
    )
    how.add_argument(
        "--timeout",
        type=positive,
        default=120.0,
        help="seconds to wait for other ranks (default: %(default)s)",
    )
    how.add_argument("--threads", type=whole_number(1), help="torch's threads on each rank")
    out = parser.add_argument_group("results, written by rank 0")
    out.add_argument("--json", type=Path)
    out.add_argument("--csv", type=Path)
    out.add_argument("--plot", type=Path, help="PNG: time by size, error by bytes")
    args = parser.parse_args(argv)
    if args.stepfactor <= 1 or args.maxbytes < args.minbytes:
        parser.error("expected -f above 1 and -e not below -b")
    return args


def sizes(args: argparse.Namespace) -> Iterator[int]:
    """Each size once: small steps may round to the last one."""
    size, last = float(args.minbytes), 0
    while round(size) <= args.maxbytes:
        whole = round(size) // 4 * 4
        if whole != last:
            yield whole
        size, last = size * args.stepfactor, whole


def run_facts(args: argparse.Namespace, place: Place) -> dict[str, Any]:
    """For the head of the table and the JSON."""
    facts = {
        "command": shlex.join(["python", "benchmarks/allreduce_bw.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "ranks": place.world,
        "launcher": place.launcher,
        "backend": args.backend,
        "input": args.input,
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} thread(s)",
    }
    version = shared_facts(args, _OWN).get("the version of gct")
    if version:
        facts["gct"] = f"{version}, GCT_NUM_THREADS={os.environ.get('GCT_NUM_THREADS', 'unset')}"
    return facts


class Progress:
    """One line on rank 0's stderr; rewritten in place on a terminal."""

    def __init__(self, total: int, shown: bool) -> None:
        self._total, self._shown, self._done = total, shown, 0
        self._terminal = sys.stderr.isatty()

    def begin(self, what: str) -> None:
        self._done += 1
        if self._shown:
            text = f"{self._done}/{self._total} {what}"
            print(
                f"\r{text:<60}" if self._terminal else text,
                file=sys.stderr,
                flush=True,
                end="" if self._terminal else "\n",
            )

    def clear(self) -> None:
        if self._shown and self._terminal:
            print(f"\r{'':<60}\r", file=sys.stderr, flush=True, end="")


def device_of(args: argparse.Namespace) -> torch.device:
    """Where tensors are; with Gloo, ranks may share a GPU."""
    name = ("cuda" if args.backend == "nccl" else "cpu") if args.device == "auto" else args.device
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU; leave the option out.")
    return torch.device("cuda", torch.cuda.current_device())


def measure(args: argparse.Namespace, place: Place) -> list[Row]:
    """All rows; each is printed by rank 0 as soon as it is there."""
    device = device_of(args)
    effort = Effort(args.iters, args.warmup_iters, args.seconds)
    all_sizes = list(sizes(args))
    source = make_source(args.input, place.rank, args.seed, all_sizes[-1] // 4)
    bench = Bench(source, device, effort)
    reducers: dict[str, Reducer] = {scheme: make_reducer(scheme) for scheme in args.schemes}
    progress = Progress(len(all_sizes) * len(reducers), shown=place.rank == 0)
    rows = []
    if place.rank == 0:
        print(report.header(run_facts(args, place)), flush=True)
    for index, size in enumerate(all_sizes):
        bucket = bench.bucket(index, size // 4)
        for scheme, reducer in reducers.items():
            progress.begin(f"{size} bytes, {scheme}")
            try:
                rows.append(bench.run(scheme, reducer, bucket))
            except (RuntimeError, ValueError) as error:
                if is_memory_error(error):
                    raise  # process_group has the words
                raise UserError(explain(error, scheme, size, place, args)) from error
            progress.clear()
            if place.rank == 0:
                print(report.row_line(rows[-1]), flush=True)
    for scheme, reducer in reducers.items():
        if place.rank == 0 and (chosen := reducer.chosen()):
            print(f"# {scheme} chose {chosen}", flush=True)
        reducer.close()
    return rows


def explain(
    error: Exception, scheme: str, size: int, place: Place, args: argparse.Namespace
) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    what = f"Rank {place.rank} of {place.world}: {scheme} at {size} bytes failed ({first})"
    if isinstance(error, ValueError):
        return f"{what}: leave it out of --schemes, or choose another --backend."
    return (
        f"{what}: see whether another rank said why it ended; if the network is only slow, raise "
        f"--timeout from {args.timeout:g} s."
    )


def write(args: argparse.Namespace, place: Place, rows: list[Row]) -> None:
    facts = run_facts(args, place)
    if args.json:
        report.write_json(args.json, facts, rows)
    if args.csv:
        report.write_csv(args.csv, rows)
    if args.plot:
        title = f"All-reduce of {place.world} ranks, {args.backend}, input {args.input}"
        report.write_plot(args.plot, title, rows)


def run(argv: list[str]) -> int:
    args = parse_arguments(argv)
    check_schemes(args.schemes)
    if args.local and not is_local_rank():
        return run_locally(args.local, argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    place = find_place()
    if place.rank == 0:  # before hours of measuring
        report.check_outputs(args.json, args.csv, args.plot)
    with process_group(place, args.backend, args.timeout, shared_facts(args, _OWN)):
        rows = measure(args, place)
        if place.rank == 0:
            write(args, place, rows)
    wrong = [row for row in rows if row.wrong]
    if wrong:
        raise UserError(
            f"{wrong[0].scheme} left other bits on {wrong[0].wrong} rank(s) than on rank 0: a "
            "fault of the scheme or the network; leave it out of --schemes, and report it."
        )
    return 0


def main() -> int:
    with exits_with_sentence("allreduce_bw.py"):
        try:
            return run(sys.argv[1:])
        except KeyboardInterrupt:
            return 130
    raise AssertionError("exits_with_sentence ends the program")


if __name__ == "__main__":
    sys.exit(main())
