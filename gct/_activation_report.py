"""What the activation constraint reports of each module."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gct._fit import fit
from gct.codec import Codec, decode, encode

__all__ = ["ActivationReport", "report_on"]


@dataclass(frozen=True)
class ActivationReport:
    """One module's activation: the sample of its latest estimate, at most 65,536 elements.

    Two numbers of bits, since they answer two questions. At a fixed step any shrinking of the
    activation saves bits (log2 of the shrink per element), also one that the next layer undoes.
    At a step relative to the activation's own standard deviation only a change of the
    distribution's form saves any.
    """

    numel: int  # elements of the whole activation
    shape: float  # of the generalized Gaussian fitted to the nonzero elements
    scale: float  # in the activation's unit, like std, start_std and step
    std: float  # root mean square
    start_std: float  # of the first estimate
    zero_fraction: float  # exact zeros
    small_fraction: float  # below threshold times std, zeros included
    step: float  # the fixed step
    bits: float  # per element at ``step``: entropy of the fit, zeros included
    relative_bits: float  # per element at relative_step times std
    encoded_bits: float | None  # per element that gct.encode took at relative_step times std
    encoded_snr_db: float | None  # and the signal to noise ratio of what it decodes to


def report_on(
    sample: Tensor,
    numel: int,
    start_std: float,
    step: float | None,
    relative_step: float,
    threshold: float,
    encoded: bool,
) -> ActivationReport:
    """See :meth:`gct.ActivationConstraint.report`."""
    sample = sample.cpu().float()
    std = float(sample.double().square().mean().sqrt())
    fixed = relative_step * start_std if step is None else step
    fitted = fit(sample, warn_pooled=False)
    relative = relative_step * std
    size, snr_db = _encode(sample, relative) if encoded else (None, None)
    return ActivationReport(
        numel=numel,
        shape=fitted.shape,
        scale=fitted.scale,
        std=std,
        start_std=start_std,
        zero_fraction=fitted.zero_fraction,
        small_fraction=float((sample.abs() <= threshold * std).double().mean()),
        step=fixed,
        bits=fitted.entropy(fixed) if fixed > 0.0 else 0.0,
        relative_bits=fitted.entropy(relative) if relative > 0.0 else 0.0,
        encoded_bits=size,
        encoded_snr_db=snr_db,
    )


def _encode(sample: Tensor, step: float) -> tuple[float, float]:
    """Bits per element of the encoded sample, headers counted, and 10 log10(signal / error)."""
    if step == 0.0:
        return 0.0, math.inf
    wire = encode(sample, Codec(step=step, allocation="mse"))
    error = (decode(wire).double() - sample.double()).square().sum()
    ratio = sample.double().square().sum() / error
    return 8.0 * wire.numel() / sample.numel(), float(10.0 * torch.log10(ratio))
