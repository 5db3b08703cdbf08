"""What effort="high" gains on real gradients, and what it costs.

    python examples/collect_gradients.py --out build/gradients    # needs pip install '.[examples]'
    python benchmarks/effort.py build/gradients/grad_step*.pt

For each file, allocation and target in bits: SNR over all tensors of two and more dimensions, each
encoded alone, all headers counted; "gain" is that of effort="high" at the size of effort="normal"
(sizes differ by up to 1.5 %: the difference is taken out by the slope between two targets).
Low-rank parts are off, so that the quantizers alone are compared. For targets in dB the worst miss
over the tensors. At the end the speed on one core with each implementation, on noise as
benchmarks/codec.py has it. Every SNR is of bytes that were decoded again.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from codec import gradient, measure
from gradient_rate import achieved, load_tensors
from machine import run_facts
from multihost.arguments import Parser, check_writable, whole_number
from multihost.errors import WRONG_ARGUMENT, UserError, exits_with_sentence

import gct
from gct import _C
from gct.codec import Effort

BITS = (1.0, 1.2, 1.5, 2.0, 3.0)
SLOPE_OVER = 1.1  # of the bits
SNR_DB = (10.0, 15.0)
EFFORTS: tuple[Effort, ...] = ("normal", "high")


def compare(path: Path, allocation: str) -> dict[str, dict[str, float]]:
    """By target."""
    tensors = load_tensors(path)

    def at(effort: Effort, bits: float | None, snr_db: float | None = None) -> dict[str, float]:
        codec = gct.Codec(
            bits=bits, snr_db=snr_db, allocation=allocation, low_rank=0, effort=effort
        )
        return achieved(tensors, codec)

    result = {}
    for bits in BITS:
        normal, more, high = at("normal", bits), at("normal", SLOPE_OVER * bits), at("high", bits)
        slope = (more["snr_db"] - normal["snr_db"]) / (more["bits"] - normal["bits"])
        expected = normal["snr_db"] + slope * (high["bits"] - normal["bits"])
        result[f"{bits} bits"] = {
            "normal_snr_db": normal["snr_db"],
            "high_snr_db": high["snr_db"],
            "gain_db": high["snr_db"] - expected,
            "saved_bits": (high["snr_db"] - expected) / slope,
        }
    for snr_db in SNR_DB:
        result[f"{snr_db} dB"] = {
            f"{effort}_worst_snr_error_db": at(effort, None, snr_db)["worst_snr_error_db"]
            for effort in EFFORTS
        }
    return result


def speed(numel: int, repeats: int) -> dict[str, dict[str, float]]:
    """Elements a second on this thread, in millions. All implementations must write the same."""
    x = gradient(numel)
    result = {}
    written: dict[tuple[str, float], torch.Tensor] = {}
    before = _C.implementation()
    for name in _C.implementations():
        _C.set_implementation(name)
        for effort in EFFORTS:
            for bits in (1.2, 2.0, 4.0):
                codec = gct.Codec(bits=bits, effort=effort)
                wire = gct.encode(x, codec)
                if not torch.equal(wire, written.setdefault((effort, bits), wire)):
                    raise AssertionError(f"{name} writes other bytes: effort {effort}, {bits} bits")
                encode = measure(lambda codec=codec: gct.encode(x, codec), repeats)
                decode = measure(lambda wire=wire: gct.decode(wire), repeats)
                result[f"{name}, {effort}, {bits} bits"] = {
                    "encode": numel / encode["median"] / 1e6,
                    "decode": numel / decode["median"] / 1e6,
                }
    _C.set_implementation(before)
    return result


def show(name: str, figures: dict[str, float]) -> None:
    print(
        f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True
    )


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Raises UserError for files that can't be read or written, before anything is measured."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("files", type=Path, nargs="*", help="grad_step*.pt; without them only the speed test")
    add("--numel", type=whole_number(1), default=1 << 20, help="elements of the speed test")
    add("--repeats", type=whole_number(0), default=5, help="of the speed test (5); 0: leave it out")
    add("--json", type=Path, help="also write the results here")
    args = parser.parse_args(words)
    if not args.files and not args.repeats:
        raise UserError(
            "without files and with --repeats 0 there is nothing to measure: "
            "name files of gradients (see --help), or leave --repeats out."
        )
    for path in args.files:
        load_tensors(path)
    check_writable(args.json)
    return args


def main() -> None:
    with exits_with_sentence("effort.py", WRONG_ARGUMENT):
        args = parse_arguments()
    torch.set_num_threads(1)
    about = run_facts()
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for path in args.files:
        for allocation in ("relative", "mse"):
            name = f"{path.parent.name}/{path.stem}, {allocation}"
            results[name] = compare(path, allocation)
            for target, figures in results[name].items():
                show(f"{name}, {target}", figures)
    if args.repeats:
        results["speed, M elements/s"] = speed(args.numel, args.repeats)
        for case, figures in results["speed, M elements/s"].items():
            show(case, figures)
    bad = [
        case
        for case, by in results.items()
        for f in by.values()
        if not all(map(math.isfinite, f.values()))
    ]
    if bad:
        raise SystemExit(f"not finite: {bad}")
    if args.json:
        args.json.write_text(json.dumps({"about": about} | results, indent=1))


if __name__ == "__main__":
    main()
