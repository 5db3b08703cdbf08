"""What is trained from scratch: the example's GPT, and a convolutional net on small images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from demo import DEMO_SETTINGS
from evaluation import HeldOut
from model import GPT, GPTConfig, loss_per_byte
from text import load_corpus
from torch import Tensor, nn
from torch.nn import functional
from training import Batches

from .training_loop import Schedule


@dataclass(frozen=True)
class GPTSizes:
    """The demo's model; one process sees half of the demo's batch."""

    width: int = DEMO_SETTINGS["width"]
    layers: int = DEMO_SETTINGS["layers"]
    heads: int = DEMO_SETTINGS["heads"]
    context: int = DEMO_SETTINGS["context"]
    batch: int = DEMO_SETTINGS["batch-size"]
    windows: int = 2048  # held out, of 64 bytes: 43 % of all there are


TINY_GPT = GPTSizes(width=32, layers=2, heads=2, context=16, batch=2, windows=64)
GPT_SECONDS = 0.075  # a step, evaluation included, on one core of an Intel Xeon with AVX-512


GPT_LR: float = DEMO_SETTINGS["lr"]


def gpt_schedule(steps: int, lr: float = GPT_LR, **changes: Any) -> Schedule:
    return Schedule(steps, lr, DEMO_SETTINGS["warmup"], eval_every=50, **changes)


class TextTask:
    """The example's GPT on Shakespeare's plays."""

    def __init__(
        self, sizes: GPTSizes, seed: int, initialize: Callable[[nn.Module], None] | None = None
    ) -> None:
        self._sizes = sizes
        corpus = load_corpus()
        self.model: nn.Module = GPT(
            GPTConfig(sizes.width, sizes.layers, sizes.heads, sizes.context)
        )
        if initialize:
            initialize(self.model)
        self._batches = Batches(corpus.train, sizes.batch, sizes.context, seed)
        self._held_out = HeldOut(corpus.held_out, sizes.context)

    def loss(self) -> Tensor:
        inputs, targets = self._batches.next()
        return loss_per_byte(self.model(inputs), targets)

    def evaluate(self, final: bool) -> dict[str, float]:
        windows = self._sizes.windows if final else min(self._sizes.windows, 256)
        return {"held_out_loss": self.held_out_loss(windows)}

    def held_out_loss(self, windows: int) -> float:
        return self._held_out.loss(self.model, windows)

    def held_out_windows(self, count: int) -> Tensor:
        return self._held_out.inputs(count)


@dataclass(frozen=True)
class DigitsSizes:
    channels: int = 16
    batch: int = 64


TINY_DIGITS = DigitsSizes(channels=4, batch=8)
DIGITS_SECONDS = 0.012


def digits_schedule(steps: int) -> Schedule:
    return Schedule(steps, lr=0.02, warmup=20, eval_every=20, momentum=True)


class DigitsTask:
    """Three convolutions and a linear layer on scikit-learn's digits, 8 x 8; a quarter held out."""

    def __init__(
        self, sizes: DigitsSizes, seed: int, initialize: Callable[[nn.Module], None]
    ) -> None:
        inputs, targets, self._test_inputs, self._test_targets = _digits()
        self.model: nn.Module = _convolutional_net(sizes.channels)
        initialize(self.model)
        self._inputs, self._targets, self._batch = inputs, targets, sizes.batch
        self._generator = torch.Generator().manual_seed(seed)

    def loss(self) -> Tensor:
        chosen = torch.randint(len(self._inputs), (self._batch,), generator=self._generator)
        return functional.cross_entropy(self.model(self._inputs[chosen]), self._targets[chosen])

    @torch.no_grad()
    def evaluate(self, final: bool) -> dict[str, float]:
        return classification(self.model(self._test_inputs), self._test_targets)


def classification(logits: Tensor, targets: Tensor) -> dict[str, float]:
    return {
        "held_out_loss": float(functional.cross_entropy(logits, targets)),
        "accuracy": float((logits.argmax(dim=1) == targets).double().mean()),
    }


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise SystemExit("The digits need scikit-learn: pip install '.[experiments]'") from error
    images, labels = load_digits(return_X_y=True)
    # The same split in every run: only initialization and batches follow the seed.
    split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    train, test, train_labels, test_labels = (torch.as_tensor(part) for part in split)

    def normal(pixels: Tensor) -> Tensor:  # 0 to 16
        return ((pixels - train.mean()) / train.std()).float().view(-1, 1, 8, 8)

    return normal(train), train_labels, normal(test), test_labels


def _convolutional_net(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * channels, 4 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels * 4, 10),
    )


def settings(sizes: Any, schedule: Schedule, **more: Any) -> dict[str, Any]:
    """A job's settings: what ``run`` needs to make sizes and schedule again."""
    return {"sizes": asdict(sizes), "schedule": asdict(schedule), **more}
