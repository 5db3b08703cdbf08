"""What gct.GradientConstraint's rate term does to a training: loss, gradients and their bits.

One process trains the demo's GPT; no communication. Per run:

- loss: training loss, mean of the last 50 steps, and loss on the first 256 held-out windows;
- mean |g|: of the matrices' gradients before the term, mean of the last 50 steps;
- bits: of these gradients at 15 dB, gct.encode on each, mean weighted by size, every 25 steps of
  the second half. At equal relative error, because at a fixed quantizer step anything that shrinks
  gradients, a smaller learning rate too, "saves" bits;
- cosine: of what was added (over all matrices) with the exact gradient of sum |g| on the same
  batch, by a second backward pass, and the two's ratio in norm; mean of the same steps.

    python benchmarks/rate_term.py --json docs/results/rate_term.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import gct

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # scripts beside each other, not a package

from demo import DEMO_SETTINGS as DEMO  # noqa: E402
from model import GPT, GPTConfig, loss_per_byte  # noqa: E402
from text import Corpus, load_corpus  # noqa: E402
from training import Batches, learning_rate, make_optimizer, set_learning_rate  # noqa: E402

LAST = 50  # steps that means are taken over
EVERY = 25  # steps between two measurements of bits and cosine
HELD_OUT_WINDOWS = 256


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--weights", type=float, nargs="+", default=[1e-4, 1e-3])
    parser.add_argument("--curvatures", nargs="+", default=["raw", "damped", "ema"])
    parser.add_argument("--json", type=Path, help="results, written after every run")
    return parser.parse_args()


def exact_rate_gradient(model: GPT, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Gradient of sum |g| over the matrices, in one flat tensor."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        loss = loss_per_byte(model(batch[0]), batch[1])
        gradients = torch.autograd.grad(loss, matrices, create_graph=True)
        rate = sum(g.abs().sum() for g in gradients)
        return flat(torch.autograd.grad(rate, matrices))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def bits_per_element(gradients: Sequence[Tensor]) -> float:
    codec = gct.Codec(snr_db=15.0)
    encoded = sum(gct.encode(gradient, codec).numel() for gradient in gradients)
    return 8 * encoded / sum(gradient.numel() for gradient in gradients)


@torch.no_grad()
def held_out_loss(model: GPT, corpus: Corpus) -> float:
    length = model.config.context
    rows = corpus.held_out[: HELD_OUT_WINDOWS * length + 1].long()
    inputs, targets = rows[:-1].view(-1, length), rows[1:].view(-1, length)
    return loss_per_byte(model(inputs), targets).item()


def train(corpus: Corpus, seed: int, steps: int, peak: float, **constraint: Any) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(DEMO["width"], DEMO["layers"], DEMO["heads"], DEMO["context"]))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    batches = Batches(corpus.train, DEMO["batch-size"], DEMO["context"], seed)
    optimizer = make_optimizer(model, peak, weight_decay=0.1)
    rate_term = gct.GradientConstraint(model, **constraint)
    losses, sizes, bits, cosines, ratios = [], [], [], [], []
    began = time.perf_counter()
    for step in range(1, steps + 1):
        batch = batches.next()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_per_byte(model(batch[0]), batch[1])
        loss.backward()
        before = [p.grad.clone() for p in matrices]
        rate_term.apply()
        losses.append(loss.item())
        sizes.append(float(flat(before).abs().mean()))
        if step % EVERY == 0 and step > steps // 2:
            bits.append(bits_per_element(before))
            added = flat([p.grad for p in matrices]) - flat(before)
            exact = exact_rate_gradient(model, batch)
            cosines.append(float(torch.nn.functional.cosine_similarity(added, exact, dim=0)))
            ratios.append(float(added.norm() / exact.norm()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_learning_rate(optimizer, learning_rate(step - 1, steps, peak, DEMO["warmup"]))
        optimizer.step()
    weight = constraint.get("rate_weight", 0.0)
    return {
        "train_loss": statistics.fmean(losses[-LAST:]),
        "held_out_loss": held_out_loss(model, corpus),
        "mean_abs_gradient": statistics.fmean(sizes[-LAST:]),
        "bits_at_15_db": statistics.fmean(bits),
        "cosine": statistics.fmean(cosines) if weight else None,
        "norm_ratio": statistics.fmean(ratios) / weight if weight else None,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    args = parse_arguments()
    lr = DEMO["lr"]
    runs: list[tuple[str, float, dict[str, Any]]] = [
        ("off", lr, {}),
        ("off, half the learning rate", lr / 2, {}),
        ("off, twice the learning rate", 2 * lr, {}),
    ]
    for curvature in args.curvatures:
        for weight in args.weights:
            settings = {"curvature": curvature, "rate_weight": weight}
            runs.append((f"{curvature}, {weight:g}", lr, settings))
    corpus = load_corpus()
    results: list[dict[str, Any]] = []
    for seed in args.seeds:
        for name, peak, constraint in runs:
            measured = train(corpus, seed, args.steps, peak, **constraint)
            results.append({"run": name, "seed": seed, **measured})
            print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in results[-1].items()})
            sys.stdout.flush()
            if args.json:
                args.json.write_text(json.dumps({"steps": args.steps, "runs": results}, indent=1))


if __name__ == "__main__":
    main()
