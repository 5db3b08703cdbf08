"""Save gradients of models other than the example's GPT, for benchmarks/gradient_rate.py.

    python benchmarks/task_gradients.py digits --out build/gradients-digits
    python benchmarks/task_gradients.py finetune --out build/gradients-finetune

digits: a convolutional net on scikit-learn's digits, SGD with momentum. finetune: all-MiniLM-L6-v2
(22 M parameters, word embeddings fixed) learns to tell plays apart, AdamW. The files are those of
examples/collect_gradients.py. Needs the extra experiments.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # scripts beside each other, not a package

from collect_gradients import save_gradients  # noqa: E402
from experiments.finetune import FinetuneSizes, PassagesTask, finetune_schedule  # noqa: E402
from experiments.tasks import DigitsSizes, DigitsTask, digits_schedule  # noqa: E402
from experiments.training_loop import Schedule, Task, train  # noqa: E402
from runlog import RunLog  # noqa: E402

_STEPS = {"digits": [10, 100, 300], "finetune": [10, 50, 100]}
_CHANNELS = 64  # 0.37 M parameters: with fewer, tensors are too short to say anything of rates


def make_task(name: str, seed: int, steps: int) -> tuple[Task, Schedule]:
    if name == "finetune":
        return PassagesTask(FinetuneSizes(), seed), finetune_schedule(steps)
    task = DigitsTask(DigitsSizes(channels=_CHANNELS), seed, initialize=_as_torch_does)
    return task, digits_schedule(steps)


def _as_torch_does(model: nn.Module) -> None:
    """Leave the initial weights as they are."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=tuple(_STEPS))
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--at", type=int, nargs="+", help=f"steps ({_STEPS})")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    at = args.at or _STEPS[args.task]
    torch.manual_seed(args.seed)
    task, schedule = make_task(args.task, args.seed, max(at) + 1)

    def on_gradient(step: int) -> None:
        if step in at:
            path = args.out / f"grad_step{step}.pt"
            save_gradients(task.model, path)
            print(f"step {step}: wrote {path}", flush=True)

    print(train(task, schedule, RunLog(args.out / "run.jsonl"), on_gradient))


if __name__ == "__main__":
    main()
