"""A small byte-level GPT: pre-norm blocks, causal attention, GELU MLP, learned positions.

Linear layers have no bias (as in nanoGPT), so 1-D parameters are a fraction of a percent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional

VOCABULARY = 256  # one symbol per byte value


@dataclass(frozen=True)
class GPTConfig:
    """Sizes. ``tied`` shares the token embedding with the output layer."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    context: int = 128
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads: got width {self.width}, heads {self.heads}"
            )


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged: torch.Tensor = self.out(y.transpose(1, 2).reshape(batch, length, width))
        return merged


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, bias=False)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, bias=False)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        changed: torch.Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + changed


class GPT(nn.Module):
    """``forward`` takes int64 tokens (batch, length) and returns logits (batch, length, 256)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(VOCABULARY, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, VOCABULARY, bias=False)
        self._initialize()
        if config.tied:
            self.head.weight = self.token.weight

    def _initialize(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            # Layers that write to the residual stream shrink with depth (GPT-2).
            residual = name.endswith(("attention.out.weight", "down.weight"))
            std = 0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02
            nn.init.normal_(parameter, std=std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        if length > self.config.context:
            raise ValueError(f"expected at most {self.config.context} tokens, got {length}")
        positions = torch.arange(length, device=tokens.device)
        x = self.token(tokens) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def loss_per_byte(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per byte."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
