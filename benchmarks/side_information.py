"""What gct's side information costs on real gradients, and what other forms of it would save.

    python examples/collect_gradients.py --out build/pairs --at 99 100   # two steps in a row
    python benchmarks/side_information.py build/pairs/grad_step{99,100}.pt

Or of another model: benchmarks/task_gradients.py finetune --at 9 10, digits --at 99 100.

Entropies in bits per element of the second file's matrices, at a step that leaves --snr dB. No
tables, headers or lanes: what an ideal coder needs that knows the frequencies, so each saving is a
bound. A matrix' columns are taken as they are. Each block's scale class (half an octave of its mean
absolute value) is predicted

- by the block before it, as gct does; by that, given the difference that came before;
- by the same block in the step before; and by the block before it given what both of its
  neighbours, in the matrix and in time, say (the most that either can give).

Symbols are coded by generalized Gaussian tables of their class' scale: with one shape for a tensor,
as gct does; with a shape for each class; and with the class' own frequencies. Zero blocks are
counted one by one, as gct does, and as runs. Other sizes of blocks: symbols and classes together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from gradient_rate import entropy_bits, in_blocks, load_tensors
from machine import run_facts
from multihost.arguments import Parser, check_writable
from multihost.errors import WRONG_ARGUMENT, UserError, exits_with_sentence
from torch import Tensor

BLOCK = 256
BLOCKS = (64, 128, 256, 512, 1024)
SHAPES = tuple(2 ** (i / 4) for i in range(-7, 6))  # 0.3 to 2.4, as gct's tables
LARGEST = 400  # symbols beyond count as this one
_REACH = 7  # differences beyond count as one, as gct's escapes
_ZERO = -(2**20)


def classes_of(x: Tensor, block: int) -> Tensor:
    """Half octaves of the blocks' mean absolute values; _ZERO where all is zero."""
    mean = in_blocks(x.double(), block).abs().mean(dim=1)
    return torch.where(mean > 0, (2 * mean.clamp_min(1e-300).log2()).round(), _ZERO).long()


def conditional_bits(labels: Tensor, given: Tensor) -> float:
    """Total bits of an ideal code of the labels that knows what is given, and the frequencies."""
    return entropy_bits(given * 2**32 + labels) - entropy_bits(given)


def near(difference: Tensor) -> Tensor:
    return difference.clamp(-_REACH - 1, _REACH + 1)


def class_bits(classes: Tensor, last: Tensor) -> dict[str, float]:
    """Total bits of the classes of blocks that aren't zero, however they are predicted."""
    keep = (classes != _ZERO) & (last != _ZERO)
    now, then = classes[keep], last[keep]
    if now.numel() < 2:
        return dict.fromkeys(("block before", "two before", "step before", "both"), 0.0)
    step = near(now[1:] - now[:-1])
    before = torch.cat([step.new_zeros(1), step[:-1]])
    in_time = near(then[1:] - now[:-1])  # what the step before expects of this difference
    return {
        "block before": entropy_bits(step),
        "two before": conditional_bits(step, before),
        "step before": entropy_bits(near(now - then)),
        "both": conditional_bits(step, in_time),
    }


def zero_bits(classes: Tensor) -> dict[str, float]:
    """Total bits that say which blocks are zero: each by itself, and given the one before."""
    zero = (classes == _ZERO).long()
    before = torch.cat([zero.new_zeros(1), zero[:-1]])
    return {"each": entropy_bits(zero), "runs": conditional_bits(zero, before)}


def symbol_counts(x: Tensor, step: float, classes: Tensor) -> dict[int, Tensor]:
    """Of each class, how often each magnitude of x / step occurs."""
    symbols = (in_blocks(x.double(), BLOCK) / step).round().abs().clamp_max(LARGEST).long()
    return {
        int(c): torch.bincount(symbols[classes == c].flatten(), minlength=LARGEST + 1).double()
        for c in classes.unique()
        if c != _ZERO
    }


def table(shape: float, scale_class: int, step: float) -> Tensor:
    """-log2 of the probability of each magnitude, sign included."""
    mean = 2 ** (scale_class / 2) / step
    width = mean * math.exp(math.lgamma(1 / shape) - math.lgamma(2 / shape))
    edges = torch.arange(LARGEST + 1, dtype=torch.float64) + 0.5
    a = torch.tensor(1 / shape, dtype=torch.float64)
    below = torch.special.gammainc(a, (edges / width) ** shape)
    p = torch.diff(below, prepend=torch.zeros(1, dtype=torch.float64)).clamp_min(1e-12)
    bits = -p.log2()
    bits[1:] += 1
    return bits


def symbol_bits(x: Tensor, step: float, classes: Tensor) -> dict[str, float]:
    """Total bits of the symbols, given the classes."""
    counts = symbol_counts(x, step, classes)
    costs = {
        c: torch.tensor([float(n @ table(shape, c, step)) for shape in SHAPES])
        for c, n in counts.items()
    }
    own = sum(
        float((n[n > 0] * (n.sum() / n[n > 0]).log2()).sum() + n[1:].sum()) for n in counts.values()
    )
    return {
        "one shape": float(torch.stack(list(costs.values())).sum(0).min()),
        "a shape for each class": sum(float(cost.min()) for cost in costs.values()),
        "own frequencies": own,
    }


def bits_with_blocks(x: Tensor, step: float, block: int) -> float:
    """Total bits of symbols given their block's class, and of the classes by the one before."""
    classes = classes_of(x, block)
    symbols = (in_blocks(x.double(), block) / step).round().long()
    given = classes[:, None].expand_as(symbols)
    differences = near(torch.diff(classes, prepend=classes[:1]))
    return conditional_bits(symbols, given) + entropy_bits(differences)


def step_at(tensors: Sequence[Tensor], snr_db: float) -> float:
    """One step for all of them, as allocation="mse" has it: rounding's error is step^2 / 12."""
    power = sum(float(x.double().square().sum()) for x in tensors)
    target = power / 10 ** (snr_db / 10)
    low, high = -60.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        step = 2**middle
        error = sum(
            float((x.double() - (x.double() / step).round() * step).square().sum()) for x in tensors
        )
        low, high = (low, middle) if error > target else (middle, high)
    return float(2**low)


def measure(last: Sequence[Tensor], now: Sequence[Tensor], snr_db: float) -> dict[str, float]:
    """Bits per element of all tensors together."""
    step = step_at(now, snr_db)
    total: dict[str, float] = {}
    for before, x in zip(last, now, strict=True):
        classes = classes_of(x, BLOCK)
        found = {
            **{f"class: {k}": v for k, v in class_bits(classes, classes_of(before, BLOCK)).items()},
            **{f"zero blocks: {k}": v for k, v in zero_bits(classes).items()},
            **{f"symbols: {k}": v for k, v in symbol_bits(x, step, classes).items()},
            **{f"all, blocks of {b}": bits_with_blocks(x, step, b) for b in BLOCKS},
        }
        for name, bits in found.items():
            total[name] = total.get(name, 0.0) + bits
    numel = sum(x.numel() for x in now)
    return {name: bits / numel for name, bits in total.items()}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("last", type=Path, help="grad_step*.pt of a step")
    parser.add_argument("now", type=Path, help="of the step after it")
    parser.add_argument("--snr", type=float, nargs="+", default=[6.0, 9.0, 14.0], help="dB")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    with exits_with_sentence("side_information.py", WRONG_ARGUMENT):
        last, now = load_tensors(args.last), load_tensors(args.now)
        if [x.shape for x in last] != [x.shape for x in now]:
            raise UserError(f"{args.last} and {args.now}: expected gradients of the same model.")
        check_writable(args.json)
    results = {f"{snr:g} dB": measure(last, now, snr) for snr in args.snr}
    width = max(len(name) for name in next(iter(results.values())))
    print(" " * width, *(f"{snr:>9}" for snr in results))
    for name in next(iter(results.values())):
        print(f"{name:{width}}", *(f"{found[name]:9.4f}" for found in results.values()))
    if args.json:
        args.json.write_text(json.dumps({**run_facts(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
