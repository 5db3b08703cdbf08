"""Communication schemes of the example: how the gradients of a DDP model are averaged."""

# No "from __future__ import annotations": DDP compares a hook's annotations with the types.

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

SCHEMES = ("fp32", "bf16", "powersgd", "gct")
_SWITCH = {"auto": "auto", "on": True, "off": False}


def add_comm_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--comm`` and the options of its schemes; what is not given is left to the scheme."""
    parser.add_argument("--comm", choices=SCHEMES, default="gct", help="default: gct")
    own = parser.add_argument_group("gct (defaults are the library's)")
    own.add_argument("--bits", type=float, help="target bits per element, headers counted")
    own.add_argument("--snr-db", type=float, help="target signal-to-noise ratio instead of bits")
    own.add_argument("--quantizer-step", type=float, help="fixed quantizer step instead of bits")
    own.add_argument("--codec", help="gg, eg, fixed or raw")
    own.add_argument("--allocation", type=_number_or_word, help="auto, mse, relative or 0..1")
    own.add_argument("--rounding", help="deterministic or stochastic")
    own.add_argument("--error-feedback", choices=tuple(_SWITCH))
    own.add_argument("--start-step", type=int, help="first compressed step")
    # Not "--monitor": torchrun would take that for an abbreviation of its own options.
    own.add_argument("--gct-monitor", type=Path, help="JSON lines file for python -m gct report")
    own.add_argument("--gct-monitor-every", type=int, default=100, help="steps between its samples")
    own.add_argument(
        "--gct-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other argument of gct.GCTState; the value is JSON or a word; repeatable",
    )
    other = parser.add_argument_group("powersgd")
    other.add_argument("--powersgd-rank", type=int, default=4)
    other.add_argument("--powersgd-start", type=int, default=10, help="first compressed step")


def register_comm(model: DistributedDataParallel, args: argparse.Namespace) -> Any:
    """Install the hook that ``args.comm`` names; return gct's state, or None for the others."""
    if args.comm == "bf16":
        model.register_comm_hook(None, cast_to_bf16)
    elif args.comm == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            process_group=None,
            matrix_approximation_rank=args.powersgd_rank,
            start_powerSGD_iter=args.powersgd_start,
        )
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif args.comm == "gct":
        return _register_gct(model, args)
    return None  # fp32: DDP's own all-reduce


def cast_to_bf16(
    state: Any,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Torch's bf16_compress_hook, under a name that DDP does not tie to CUDA and NCCL.

    DDP refuses that hook by its name on other backends, although Gloo sums bfloat16 (torch 2.13).
    """
    return default_hooks.bf16_compress_hook(state, bucket)


def gct_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments for gct.GCTState that the command line gave."""
    named = {
        "bits": args.bits,
        "snr_db": args.snr_db,
        "step": args.quantizer_step,
        "codec": args.codec,
        "allocation": args.allocation,
        "rounding": args.rounding,
        "error_feedback": _SWITCH.get(args.error_feedback),
        "start_step": args.start_step,
    }
    options = {name: value for name, value in named.items() if value is not None}
    for item in args.gct_option:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise SystemExit(f"--gct-option: expected NAME=VALUE, got {item!r}")
        options[name] = _json_or_word(value)
    return options


def _register_gct(model: DistributedDataParallel, args: argparse.Namespace) -> Any:
    try:
        import gct
    except ImportError as error:
        raise SystemExit(
            f"--comm gct needs the package gct, which can't be imported ({error}). "
            "Run 'pip install .' in the repository, or choose another --comm."
        ) from error
    monitor = (
        gct.Monitor(args.gct_monitor, interval=args.gct_monitor_every) if args.gct_monitor else None
    )
    state = gct.GCTState(model=model.module, monitor=monitor, **gct_options(args))
    model.register_comm_hook(state, gct.hook)
    return state


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _json_or_word(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
