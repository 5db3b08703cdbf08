"""Held-out loss against bytes sent: which rate, allocation, feedback and rounding training needs.

    python benchmarks/rates.py                        # the demo's model, AdamW and SGD, one seed
    python benchmarks/rates.py --seeds 1 2 3 --only adamw-2-relative adamw-1.2-relative

For each optimizer float32; every rate with every allocation; every rate with error feedback, with
stochastic rounding, with both, with elements' scales and with levels at the means of their cells,
at the default allocation; and with low-rank parts at an exponent of 0.5, plain, with such levels,
and with scales. Two processes over Gloo, one run after the other; a run whose log was finished with
the same command is not repeated. Writes rates.md, .json and .png to build/rates (--out) after each
run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import resume  # makes the examples importable
import seeds
from demo import Scheme
from multihost.plot import pyplot, style

ROOT = Path(__file__).resolve().parents[1]
BITS = (0.8, 1.1, 1.5, 2.0, 3.0)
# The default's exponent (gct.Codec) is 1; 0.5 lies between the two names.
ALLOCATIONS = {"relative": "1", "half": "0.5", "mse": "0"}
CENTROIDS = "--gct-option=reconstruction=centroid"
LOW_RANK = ("--allocation=0.5", "--gct-option=low_rank=16")
VARIANTS = {
    "feedback": ("--error-feedback=on",),
    "stochastic": ("--rounding=stochastic",),
    "feedback-stochastic": ("--error-feedback=on", "--rounding=stochastic"),
    "scales": ("--gct-option=element_scales=true",),
    "centroids": (CENTROIDS,),
    "low-rank": LOW_RANK,
    "low-rank-centroids": (*LOW_RANK, CENTROIDS),
    "low-rank-scales": (*LOW_RANK, "--gct-option=element_scales=true"),
}
# SGD: after 300 steps of float32 rates of 0.1 and 0.3 end at 2.27, 1 at 2.55.
OPTIMIZERS = {"adamw": (), "sgd": ("--optimizer=sgd", "--lr=0.3", "--weight-decay=0")}


def schemes() -> Iterator[Scheme]:
    for optimizer, options in OPTIMIZERS.items():
        yield Scheme(f"{optimizer}-fp32", "float32", ("--comm=fp32", *options))
        for bits in BITS:
            coded = ("--comm=gct", f"--bits={bits}", *options)
            for name, allocation in ALLOCATIONS.items():
                label = f"{bits:g} bits, allocation {allocation}"
                # Low-rank parts are off by default; the other settings are what the row says.
                yield Scheme(
                    f"{optimizer}-{bits:g}-{name}", label, (*coded, f"--allocation={allocation}")
                )
            for name, variant in VARIANTS.items():
                label = f"{bits:g} bits, {name.replace('low-rank', 'low rank').replace('-', ', ')}"
                yield Scheme(f"{optimizer}-{bits:g}-{name}", label, (*coded, *variant))


def parse_arguments() -> argparse.Namespace:
    known = [scheme.key for scheme in schemes()]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=known, metavar="ROW", help=", ".join(known))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--finished", action="store_true", help="only write what is finished")
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "rates")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "rates")
    args = parser.parse_args()
    args.processes = 2
    return args


def results_so_far(args: argparse.Namespace) -> list[seeds.Result]:
    """All finished runs that are in the logs, whichever call has made them."""
    found = []
    for scheme in schemes():
        logs = sorted(args.logs.glob(f"{scheme.key}-seed*.jsonl"))
        runs = {}
        for log in logs:
            seed = int(log.stem.rpartition("seed")[2])
            summary = resume.finished(log, seeds.command_of(scheme, seed, args))
            if summary is not None:
                runs[seed] = summary
        if runs:
            found.append(seeds.Result(scheme, runs))
    return found


def optimizer_of(result: seeds.Result) -> str:
    return result.scheme.key.partition("-")[0]


def write(args: argparse.Namespace) -> None:
    results = results_so_far(args)
    groups = {name: [r for r in results if optimizer_of(r) == name] for name in OPTIMIZERS}
    groups = {name: group for name, group in groups.items() if group}
    about = seeds.environment(results, args, "rates.py")
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"environment": about, "schemes": [seeds.as_json(r) for r in results]}
    (args.out / "rates.json").write_text(json.dumps(content, indent=1) + "\n")
    (args.out / "rates.md").write_text(markdown(groups, about))
    plot(groups, args.out / "rates.png")


def markdown(groups: dict[str, list[seeds.Result]], about: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in about["settings"].items())
    parts = ["# Held-out loss against bytes sent"]
    for name, group in groups.items():
        options = " ".join(OPTIMIZERS[name]) or "the demo's"
        parts += [f"## {name} ({options})", table(group)]
    parts += [
        "![loss against bytes](rates.png)",
        "Loss: nats per byte on all held-out text after the last step; mean over the seeds, and "
        "largest less smallest. Against: of the means over the seeds that both have. Bytes: sent "
        "by each rank through its TCP sockets, counted by the kernel, after compression has begun.",
        f"{about['elements']:,} parameters, {about['processes']} processes; {settings}.",
        f"Machine: {about['cores']} cores, {about['threads']} thread(s) per process, "
        f"{about['machine']}, Python {about['python']}, torch {about['torch']}.",
        f"    {about['command']}",
    ]
    return "\n\n".join(parts) + "\n"


def table(group: list[seeds.Result]) -> str:
    rows = [["", "runs", "loss", "spread", "against float32", "bytes a step", "times fewer"]]
    rows += [["---", *["---:"] * 6]]
    base = next((result for result in group if result.scheme.label == "float32"), None)
    for result in group:
        sent = result.mean("wire_bytes_per_step")
        base_sent = base.mean("wire_bytes_per_step") if base else None
        more = change(result, base)
        rows.append(
            [
                result.scheme.label,
                str(len(result.runs)),
                f"{statistics.fmean(result.losses):.4f}",
                f"{max(result.losses) - min(result.losses):.4f}" if len(result.runs) > 1 else "-",
                f"{100 * more:+.2f} %" if more is not None else "-",
                f"{sent:,.0f}" if sent else "-",
                f"{base_sent / sent:.1f}" if sent and base_sent else "-",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def change(result: seeds.Result, base: seeds.Result | None) -> float | None:
    shared = [seed for seed in result.runs if base is not None and seed in base.runs]
    if base is None or not shared:
        return None
    own, other = (
        statistics.fmean(each.runs[seed]["held_out_loss"] for seed in shared)
        for each in (result, base)
    )
    return own / other - 1


def plot(groups: dict[str, list[seeds.Result]], path: Path) -> None:
    figure, axes = pyplot.subplots(
        1, len(groups), figsize=(5.2 * len(groups), 4.2), squeeze=False, layout="constrained"
    )
    curves = [*ALLOCATIONS, *VARIANTS]
    for axis, (name, group) in zip(axes[0], groups.items(), strict=True):
        by_key = {result.scheme.key: result for result in group}
        for index, curve in enumerate(curves):
            found = [by_key.get(f"{name}-{bits:g}-{curve}") for bits in BITS]
            points = [
                (result.mean("wire_bytes_per_step"), statistics.fmean(result.losses))
                for result in found
                if result is not None
            ]
            label = f"allocation {ALLOCATIONS[curve]}" if curve in ALLOCATIONS else curve
            if points:
                sent, losses = zip(*points, strict=True)
                axis.plot(sent, losses, **{**style(index), "label": label})
        if f"{name}-fp32" in by_key:
            axis.axhline(statistics.fmean(by_key[f"{name}-fp32"].losses), color="0.5", linewidth=1)
        axis.set(title=name, xlabel="bytes a step and rank", ylabel="held-out loss (nats per byte)")
        axis.set_xscale("log")
        axis.grid(True, alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    args = parse_arguments()
    chosen = [s for s in schemes() if args.only is None or s.key in args.only]
    for seed in args.seeds if not args.finished else []:
        for scheme in chosen:
            try:
                seeds.run_once(scheme, seed, args)
            except SystemExit as error:  # the other runs are still worth having
                print(f"{scheme.key}, seed {seed}: {error}", file=sys.stderr)
                continue
            write(args)
    write(args)
    print((args.out / "rates.md").read_text())


if __name__ == "__main__":
    main()
