"""What gradients and activations cost, counted in ways that can and can't be fooled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import gct

from .coders import exp_golomb_bits

SNR_DB = 15.0  # a relative squared error of 3.2 %
# The authors' published code quantizes gradients so: q = round(2^16 g).
AUTHORS_STEP = 2.0**-16


@dataclass(frozen=True)
class Cost:
    """Of the matrices of a model together; bits are per element."""

    mean_abs: float
    bits: float  # gct.encode, headers counted, at SNR_DB in every tensor
    fixed_entropy: float  # zero-order entropy at a fixed step
    fixed_golomb: float  # exp-Golomb codes at that step, as the authors count them


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """What the hook compresses and the rate term acts on, where it is trained."""
    return [p for p in model.parameters() if p.dim() >= 2 and p.requires_grad]


def cost_of(tensors: Iterable[Tensor], step: float) -> Cost:
    kept = [tensor.detach().float().contiguous() for tensor in tensors]
    together = torch.cat([tensor.flatten() for tensor in kept])
    entropy, golomb = fixed_step_bits(together, step)
    return Cost(
        mean_abs=float(together.abs().double().mean()),
        bits=sum(encoded_bits(tensor) for tensor in kept) / together.numel(),
        fixed_entropy=entropy,
        fixed_golomb=golomb,
    )


def encoded_bits(tensor: Tensor) -> float:
    """Bits of the whole tensor at SNR_DB; scaling it changes nothing.

    Without low-rank factors, as the hook's default is: whether they pay is a choice between two
    estimates, which on matrices of very low rank falls differently for x and x / 16.
    """
    codec = gct.Codec(snr_db=SNR_DB, allocation="mse", low_rank=0)
    return 8.0 * gct.encode(tensor, codec).numel()


def fixed_step_bits(x: Tensor, step: float) -> tuple[float, float]:
    """Entropy and exp-Golomb length per element of round(x / step).

    The latter is the authors': order 0, on the symbols numbered from 0 on by falling frequency;
    what the list of symbols costs is not counted.
    """
    symbols = (x.double() / step).round().long()
    _, counts = symbols.unique(return_counts=True)
    counts = counts.sort(descending=True).values.double()
    share = counts / counts.sum()
    lengths = exp_golomb_bits(torch.arange(len(counts)), order=0)
    return float(-(share * share.log2()).sum()), float((share * lengths).sum())


def mean_cost(costs: list[Cost]) -> dict[str, float]:
    return {
        name: sum(getattr(cost, name) for cost in costs) / len(costs)
        for name in ("mean_abs", "bits", "fixed_entropy", "fixed_golomb")
    }
