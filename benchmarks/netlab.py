"""Several hosts on one machine, with links of a chosen rate (Linux, root).

    python benchmarks/netlab.py up --hosts 4 --rate 1gbit
    python benchmarks/netlab.py exec h0 -- ip address
    python benchmarks/netlab.py run -- python benchmarks/allreduce_bw.py -b 1M -e 16M
    python benchmarks/netlab.py run -- torchrun --nnodes {hosts} --rdzv-backend c10d \\
        --rdzv-endpoint {head}:29500 examples/train_gpt.py
    python benchmarks/netlab.py down

``run --hosts 4 --rate 1gbit -- COMMAND`` does all of it: up, run, down. Hosts are called h0, h1,
... and find each other by these names. Each end of each link has its own limit, so that both
directions have the full rate. All hosts share this machine's processors, memory and files.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from multihost import lab as labs
from multihost.arguments import Parser, number, whole_number
from multihost.errors import UserError, exit_on_signals, exits_with_sentence
from multihost.fleet import run_everywhere
from multihost.lab import Lab

DEFAULT_NAME = "netlab"
_PROBE_PORT = 29399
_PROBE_SECONDS = 30.0


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options before ``--``, the command behind it."""
    cut = argv.index("--") if "--" in argv else len(argv)
    own, command = argv[:cut], argv[cut + 1 :]
    parser = Parser(__doc__, prog="netlab.py")
    commands = parser.add_subparsers(required=True, dest="action", metavar="ACTION")
    up = commands.add_parser("up", help="make hosts and links, and measure a link")
    execute = commands.add_parser("exec", help="exec HOST -- COMMAND: run a command on one host")
    execute.add_argument("host")
    run = commands.add_parser("run", help="run -- COMMAND: run a command on all hosts at once")
    probe = commands.add_parser("probe", help="measure a link")
    down = commands.add_parser("down", help="end what runs on the hosts and remove them")
    commands.add_parser("list", help="names, hosts and rates of all laboratories")
    for command_parser in (up, execute, run, probe, down):
        command_parser.add_argument("--name", help=f"of the laboratory (default: {DEFAULT_NAME})")
    for command_parser in (up, run):
        command_parser.add_argument("--rate", help="each way: 100mbit, 1gbit, ... or unlimited")
        command_parser.add_argument("--no-probe", action="store_true", help="don't measure a link")
    up.add_argument("--hosts", type=whole_number(1), required=True)
    run.add_argument(
        "--hosts", type=whole_number(1), help="make hosts for this run, and remove them after it"
    )
    run.add_argument(
        "--per-host", type=whole_number(1), default=1, help="processes on each host (default: 1)"
    )
    run.add_argument("--timeout", type=number(0.0, 1e9), help="seconds")
    run.add_argument("--quiet", action="store_true", help="only show what rank 0 prints")
    args = parser.parse_args(own)
    if (args.action in ("exec", "run")) != bool(command):
        parser.error(f"{args.action}: expected {'' if command else 'a command after '}--".rstrip())
    if args.action == "run" and args.rate and not args.hosts:
        parser.error("run: --rate needs --hosts; without it the rate is that of 'up'")
    return args, command


def probe(lab: Lab) -> dict[str, float]:
    """Measured payload rate and round trip from the second host to the first."""
    if len(lab.hosts) < 2:
        raise UserError("A link is measured between two hosts, and here is only one.")
    script = [sys.executable, str(Path(__file__).parent / "multihost" / "probe.py")]
    server = subprocess.Popen(lab.command(lab.hosts[0], [*script, "serve", str(_PROBE_PORT)]))
    try:
        result = subprocess.run(
            lab.command(lab.hosts[1], [*script, "measure", lab.hosts[0], str(_PROBE_PORT)]),
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"The probe of the link took more than {_PROBE_SECONDS} s.") from None
    finally:
        server.kill()
        server.wait()
    if result.returncode != 0:
        raise UserError(f"The probe of the link failed: {result.stderr.strip()[-300:]}")
    measured: dict[str, float] = json.loads(result.stdout)
    return measured


def describe(lab: Lab, measured: bool) -> str:
    hosts = ", ".join(lab.hosts)
    text = f"{lab.name}: hosts {hosts}; links of {labs.rate_of(lab)} each way"
    if measured and len(lab.hosts) > 1:
        link = probe(lab)
        rate, trip = link["bits_per_second"] / 1e6, link["round_trip_seconds"] * 1e6
        text += f", measured {rate:,.0f} Mbit/s of TCP payload, round trip {trip:.0f} us"
    return text


def up(args: argparse.Namespace) -> Lab:
    lab = labs.create(args.name or DEFAULT_NAME, args.hosts, args.rate or labs.UNLIMITED)
    try:
        print(describe(lab, not args.no_probe), file=sys.stderr, flush=True)
    except BaseException:
        labs.destroy(lab.name)
        raise
    return lab


def run(args: argparse.Namespace, command: list[str]) -> int:
    if not args.hosts:
        lab = labs.find(args.name or DEFAULT_NAME)
        return run_everywhere(lab, command, args.per_host, args.timeout, args.quiet)
    args.name = args.name or f"{DEFAULT_NAME}-{os.getpid()}"
    lab = up(args)
    try:
        return run_everywhere(lab, command, args.per_host, args.timeout, args.quiet)
    finally:
        labs.destroy(lab.name)


def act(args: argparse.Namespace, command: list[str]) -> int:
    if args.action == "up":
        up(args)
    elif args.action == "exec":
        words = labs.find(args.name or DEFAULT_NAME).command(args.host, command)
        os.execvp(words[0], words)
    elif args.action == "run":
        return run(args, command)
    elif args.action == "probe":
        print(describe(labs.find(args.name or DEFAULT_NAME), measured=True))
    elif args.action == "down":
        labs.check_requirements()
        name = args.name or DEFAULT_NAME
        print(f"{name}: " + ("removed" if labs.destroy(name) else "was not there"))
    else:
        labs.check_requirements()
        for name in labs.names():
            print(describe(labs.find(name), measured=False))
    return 0


def main() -> int:
    args, command = parse_arguments(sys.argv[1:])
    exit_on_signals()
    with exits_with_sentence("netlab.py"):
        try:
            return act(args, command)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    raise AssertionError("exits_with_sentence ends the program")


if __name__ == "__main__":
    sys.exit(main())
