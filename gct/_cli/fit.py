"""`python -m gct fit`: shapes of a checkpoint's tensors, and how well they are described."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gct._cli import CommandError, check_folder, require
from gct._cli.checkpoint import tensors_of
from gct._cli.goodness import Fit, fit_tensor
from gct._cli.table import format_table
from gct._fit import shape_text
from gct._histogram import Histogram, histogram
from gct._patterns import matches

DESCRIPTION = """\
Fit a generalized Gaussian to the nonzero elements of every tensor of a checkpoint, print a table
and draw it. Pickles are loaded with weights_only; no code in them is run."""

COLUMNS = """\
columns:
  elements    number of elements
  zeros       share of elements that are exactly 0; they are set apart
  shape       exponent of the density: 1 is Laplace, 2 is normal, smaller means heavier tails;
              >=10 and <=0.1 are the fit's limits: uniform values come out as >=10
  in blocks   the shape after each block of 256 elements was divided by its mean magnitude; a *
              marks a tensor whose heavy tail is mostly a mixture of scales
  std         standard deviation of the fitted density
  bits        entropy of round(x / step), step half the root mean square, per nonzero element
  loss        bits that a coder adds to that if it knows only shape and scale: the goodness of
              fit. It doesn't grow with the number of elements n; chance alone gives about 20 / n.
  Laplace     the same with the likeliest Laplace density
  normal      the same with the likeliest normal density"""


_PLOT_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Row:
    name: str
    size: tuple[int, ...]
    fit: Fit
    histogram: Histogram | None


@dataclass
class Result:
    rows: list[Row] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # by reason


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = COLUMNS
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file, or one of torch.save")
    parser.add_argument(
        "--plot", type=Path, help="file of the plot; default: NAME-fit.png in the current folder"
    )
    parser.add_argument("--no-plot", action="store_true", help="only the table")
    parser.add_argument("--json", type=Path, help="also write the table as JSON")
    for option, what in (("--only", "look at nothing but"), ("--exclude", "leave out")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"{what} tensors with such names, as in '*.bias'; repeatable",
        )
    parser.add_argument(
        "--min-numel",
        type=int,
        default=2048,
        metavar="N",
        help="leave out smaller tensors (default: 2048; of n elements the shape is known to "
        "about 2 / sqrt(n))",
    )


def run(arguments: argparse.Namespace) -> int:
    plot = _plot_file(arguments)  # its errors come before the work
    if arguments.json is not None:
        check_folder(arguments.json)
    result = _fit_all(arguments)
    if not result.rows:
        reasons = _reasons(result.skipped) or "it holds no tensors"
        raise CommandError(f"nothing to fit in {arguments.checkpoint}: {reasons}")
    print(table(result.rows))
    print(_summary(result))
    try:
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(_as_json(result, arguments), indent=1) + "\n")
        if plot is not None:
            from gct._cli.fit_plot import plot_fits

            plot_fits(result.rows, plot, arguments.checkpoint.name)
            print(f"plot: {plot}")
    except OSError as error:
        raise CommandError(f"can't write {error.filename}: {error.strerror}") from error
    return 0


def _plot_file(arguments: argparse.Namespace) -> Path | None:
    """Where the plot goes, or None where it isn't wanted."""
    if arguments.no_plot:
        return None
    require("matplotlib", instead="or leave the plot out with --no-plot")
    path: Path = arguments.plot or Path(f"{arguments.checkpoint.stem}-fit.png")
    if path.suffix not in _PLOT_SUFFIXES:
        raise CommandError(f"--plot: expected a file {', '.join(_PLOT_SUFFIXES)}, got {path}")
    check_folder(path)
    return path


def _fit_all(arguments: argparse.Namespace) -> Result:
    result = Result()
    for name, tensor in tensors_of(arguments.checkpoint):
        chosen = not arguments.only or matches(name, arguments.only)
        if not chosen or matches(name, arguments.exclude):
            result.skipped["left out by name"] += 1
            continue
        row = _fit_one(name, tensor, arguments.min_numel)
        if isinstance(row, str):
            result.skipped[row] += 1
        else:
            result.rows.append(row)
    return result


def _fit_one(name: str, tensor: Tensor, min_numel: int) -> Row | str:
    """A row, or why there is none."""
    if not tensor.is_floating_point() or tensor.layout is not torch.strided or tensor.is_meta:
        return "not dense floating point"
    if tensor.numel() < max(1, min_numel):
        return f"fewer than {min_numel} elements"
    if tensor.element_size() == 1:
        tensor = tensor.float()  # gct.fit knows no 8-bit floats
    if not bool(tensor.isfinite().all()):
        return "with NaN or infinity"
    found = fit_tensor(tensor)
    if found is None:
        return "all zeros"
    return Row(name, tuple(tensor.shape), found, histogram(tensor))


def table(rows: Sequence[Row]) -> str:
    header = ["tensor", "elements", "zeros", "shape", "in blocks", "std", "bits", "loss"]
    header += ["Laplace", "normal"]
    return format_table([header, *(_cells(row.name, row.fit) for row in rows)])


def _cells(name: str, fit: Fit) -> list[str]:
    in_blocks = "-" if fit.block_shape is None else shape_text(fit.block_shape)
    return [
        name,
        f"{fit.numel:,}",
        _percent(fit.zero_fraction),
        shape_text(fit.shape),
        in_blocks + ("*" if fit.pooled else " "),
        f"{fit.std:.3g}",
        f"{fit.bits:.2f}",
        *(f"{loss:.3f}" for loss in (fit.loss, fit.laplace_loss, fit.normal_loss)),
    ]


def _percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{share:.1%}" if share else "0"


def _summary(result: Result) -> str:
    numel = sum(row.fit.numel for row in result.rows)
    shapes = sorted(row.fit.shape for row in result.rows)

    def mean(name: str) -> float:
        """Weighted by elements."""
        return sum(getattr(row.fit, name) * row.fit.numel for row in result.rows) / numel

    lines = [
        f"{len(result.rows)} tensors, {numel:,} elements: median shape "
        f"{shape_text(shapes[len(shapes) // 2])}, from {shape_text(shapes[0])} to "
        f"{shape_text(shapes[-1])}",
        f"loss, mean over elements: {mean('loss'):.4f} bits of {mean('bits'):.2f}; Laplace "
        f"{mean('laplace_loss'):.4f}, normal {mean('normal_loss'):.4f}",
    ]
    if any(row.fit.pooled for row in result.rows):
        lines.append("* the heavy tail is mostly a mixture of scales: python -m gct fit --help")
    if result.skipped:
        lines.append(f"skipped: {_reasons(result.skipped)}")
    return "\n".join(["", *lines])


def _reasons(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items())


def _as_json(result: Result, arguments: argparse.Namespace) -> dict[str, Any]:
    rows = [{"name": row.name, "size": row.size, **asdict(row.fit)} for row in result.rows]
    return {"checkpoint": str(arguments.checkpoint), "skipped": result.skipped, "tensors": rows}
