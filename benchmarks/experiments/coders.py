"""(d) Exp-Golomb codes, the paper's, against gct's entropy coder on the same symbols.

Every matrix of every snapshot of examples/collect_gradients.py is encoded by itself with
``allocation="mse", low_rank=0``: one step for the whole tensor, a multiple of its standard
deviation, and no low-rank part sent beside the symbols. What gct decodes lies inside the
quantizer's bins, so rounding it by the step gives back the very symbols that its coder coded; that
they are is checked against the tensor. All columns are bits per element for these symbols, so the
error is the same in all of a row:

- gct: all bytes of the segment: headers, scale classes and column profiles of its blocks, padding;
- entropy: zero-order, each tensor with its own frequencies: the least for any code with one table
  for the tensor; what sending that table costs is not counted;
- EG0: exp-Golomb of order 0 on the zigzag 0, 1, -1, 2, -2, ...;
- EG best: the best of orders 0 to 3 for each tensor;
- EG0 rank: order 0 on the symbols numbered by falling frequency, as the authors count; the list of
  symbols, which a decoder needs, is not counted;
- zstd -1: of the symbols as bytes (as two bytes where one doesn't hold them), where installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gct

from .jobs import commit

try:
    import zstandard
except ImportError:
    zstandard = None

ROOT = Path(__file__).resolve().parents[2]
STEPS = (2.0, 1.0, 0.5, 0.25, 0.125)  # in standard deviations of the tensor
ORDERS = (0, 1, 2, 3)
# Deadzones are below half a step: a value is at most one step from its symbol's multiple.
_REACH = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gradients",
        type=Path,
        default=ROOT / "build" / "gradients",
        help="folder that examples/collect_gradients.py wrote (default: build/gradients)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--name", default="methods_coders", help="file name of the results")


def run(args: argparse.Namespace) -> None:
    rows = []
    for name, tensors in _snapshots(args.gradients).items():
        for step in STEPS:
            rows.append({"snapshot": name, "step": step, **measure(tensors, step)})
            print(rows[-1], file=sys.stderr, flush=True)
    _write(rows, args)


def _snapshots(folder: Path) -> dict[str, list[Tensor]]:
    """Matrices of each snapshot, in the order of steps: vectors travel uncompressed."""
    paths = {int(p.stem.removeprefix("grad_step")): p for p in folder.glob("grad_step*.pt")}
    if not paths:
        raise SystemExit(
            f"no grad_step*.pt in {folder}: run examples/collect_gradients.py --out {folder} first"
        )
    return {
        f"step {number}": [
            gradient.contiguous()
            for gradient in torch.load(paths[number], weights_only=True).values()
            if gradient.dim() > 1
        ]
        for number in sorted(paths)
    }


def measure(tensors: Sequence[Tensor], step: float) -> dict[str, float]:
    """Bits per element over all tensors, and what they have in common: the error."""
    totals: dict[str, float] = {}
    error = signal = 0.0
    for x in tensors:
        size = step * float(x.double().std())
        wire = gct.encode(x, gct.Codec(step=size, allocation="mse", low_rank=0))
        decoded = gct.decode(wire)
        symbols = symbols_of(x, decoded, size)
        costs = {"gct": 8.0 * wire.numel(), **code_lengths(symbols)}
        for name, bits in costs.items():
            totals[name] = totals.get(name, 0.0) + bits
        error += float((x.flatten().double() - decoded.double()).square().sum())
        signal += float(x.double().square().sum())
    numel = sum(x.numel() for x in tensors)
    return {"nmse": error / signal, **{name: bits / numel for name, bits in totals.items()}}


def symbols_of(x: Tensor, decoded: Tensor, step: float) -> Tensor:
    """The integers that were coded.

    A bin's centroid is less than half a step from its symbol's multiple of the step: the bin, moved
    outwards by a deadzone below half a step, holds that multiple or begins just beyond it.
    """
    symbols = (decoded.double() / step).round()
    away = (x.flatten().double() / step - symbols).abs().max()
    if not away < _REACH:
        raise AssertionError(f"a value is {away:.3f} steps from what should be its symbol")
    return symbols.long()


def code_lengths(symbols: Tensor) -> dict[str, float]:
    """Bits of all symbols together, by code."""
    values, counts = symbols.unique(return_counts=True)
    weight = counts.double()
    zigzag = torch.where(values > 0, 2 * values - 1, -2 * values)
    golomb = [float((weight * exp_golomb_bits(zigzag, order)).sum()) for order in ORDERS]
    rank = weight.argsort(descending=True).argsort()
    lengths = {
        "entropy": -float((weight * (weight / weight.sum()).log2()).sum()),
        "EG0": golomb[0],
        "EG best": min(golomb),
        "EG0 rank": float((weight * exp_golomb_bits(rank, 0)).sum()),
    }
    if zstandard is not None:
        kind = torch.int8 if int(values.abs().max()) < 128 else torch.int16
        data = symbols.to(kind).numpy().tobytes()
        lengths["zstd -1"] = 8.0 * len(zstandard.ZstdCompressor(level=1).compress(data))
    return lengths


def exp_golomb_bits(n: Tensor, order: int) -> Tensor:
    """Length of the code of n >= 0: m - order zeros, then n + 2^order, of m + 1 bits, in binary."""
    m = (n + (1 << order)).double().log2().floor()
    return 2 * m + 1 - order


def _write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    parts = [(__doc__ or "").strip(), "## Mean over the snapshots", _table(_means(rows))]
    parts += ["## Each snapshot", _table(rows), _facts()]
    text = "\n\n".join(parts) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.name}.md").write_text(text)
    (args.out / f"{args.name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


def _means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    means = []
    for step in STEPS:
        same = [row for row in rows if row["step"] == step]
        numbers = [name for name in same[0] if name != "snapshot"]
        means.append({name: sum(row[name] for row in same) / len(same) for name in numbers})
    return means


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Bits, and what exp-Golomb needs more than gct."""
    codes = [name for name in rows[0] if name not in ("snapshot", "step", "nmse")]
    header = ["step / std", "NMSE", *codes, "EG best / gct"]
    lines = [
        [
            f"{row['step']:g}",
            f"{row['nmse']:.4f}",
            *(f"{row[code]:.3f}" for code in codes),
            f"{row['EG best'] / row['gct']:.2f}",
        ]
        for row in rows
    ]
    if "snapshot" in rows[0]:
        header.insert(0, "snapshot")
        for line, row in zip(lines, rows, strict=True):
            line.insert(0, row["snapshot"])
    rule = ["---:"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def _facts() -> str:
    command = shlex.join(["python", "benchmarks/methods.py", *sys.argv[1:]])
    compressor = f"zstandard {zstandard.__version__}" if zstandard is not None else "no zstandard"
    return (
        f"gct {gct.__version__}, commit {commit()}, torch {torch.__version__}, {compressor}; "
        f"{os.cpu_count()} cores. The bytes don't depend on the machine.\n\n    {command}"
    )
