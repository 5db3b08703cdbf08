"""Bits that gct needs on real gradients, against the 4-bit quantizers that others send.

For every snapshot of examples/collect_gradients.py:

1. Equal error: each tensor alone is quantized as a peer does it (absmax scale and 15 uniform
   levels per block of 512, what torch_cgx sends at 4 bits; NF4 with an absmax scale per block of
   64, arXiv 2305.14314) and then encoded by gct with ``allocation="mse"`` and the coarsest step
   whose error is no larger. Mean wire bits over the tensors, weighted by size, all headers
   counted. Beside it what an ideal coder would need that knows every block's half-octave scale
   class and each tensor's own symbol statistics for each class, at the same error; it doesn't know
   the columns, whose scales gct uses where a tensor is a matrix. Without and with low-rank parts.
2. Overhead: size over the ideal code length under gct's static tables.
3. At 2 bits: the error, and that of an ideal zero-order entropy coder.
4. Rate control: achieved rate for ``bits=``, achieved SNR for ``snr_db=``.

    python examples/collect_gradients.py --out build/gradients    # needs pip install '.[examples]'
    python benchmarks/gradient_rate.py build/gradients --json build/gradient_rate.json

Tensors of one dimension are left out: the hook sends them uncompressed. Every figure of gct is of
bytes that were decoded again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from machine import run_facts
from multihost.arguments import Parser, check_writable
from multihost.errors import WRONG_ARGUMENT, UserError, exits_with_sentence
from torch import Tensor

import gct
from gct import _C

# Quantiles of a normal distribution, as bitsandbytes ships them.
_NF4_NEGATIVE = (-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004)
_NF4_POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
NF4 = torch.tensor([*_NF4_NEGATIVE, 0.0, *_NF4_POSITIVE])


def in_blocks(x: Tensor, block: int) -> Tensor:
    padding = -x.numel() % block
    return torch.nn.functional.pad(x.flatten(), (0, padding)).view(-1, block)


def absmax_4bit(x: Tensor) -> Tensor:
    """15 uniform levels between -max and max of each block of 512: 4 + 32 / 512 bits."""
    rows = in_blocks(x, 512)
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-38) / 7
    return (torch.round(rows / scale) * scale).flatten()[: x.numel()]


def nf4(x: Tensor) -> Tensor:
    """NF4 of each block of 64: 4 + 32 / 64 bits."""
    rows = in_blocks(x, 64)
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-38)
    middles = (NF4[1:] + NF4[:-1]) / 2
    return (NF4[torch.bucketize(rows / scale, middles)] * scale).flatten()[: x.numel()]


PEERS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "absmax4/512": (4 + 32 / 512, absmax_4bit),
    "nf4/64": (4 + 32 / 64, nf4),
}


def error_of(x: Tensor, y: Tensor) -> float:
    return float((x.flatten().double() - y.double()).square().sum())


def encode_at_error(x: Tensor, error: float, low_rank: int) -> tuple[Tensor, float]:
    """The smallest segment whose error is at most this one, by bisection; with its ideal bits."""
    low, high = (
        math.log2(math.sqrt(error / x.numel())) - 1,
        math.log2(float(x.abs().max()) + 1e-38) + 1,
    )
    best: tuple[Tensor, float] | None = None
    for _ in range(14):
        middle = (low + high) / 2
        codec = gct.Codec(step=2**middle, allocation="mse", low_rank=low_rank)
        wire, report = _C.encode_report(x, codec._params)
        if error_of(x, gct.decode(wire)) <= error:
            best, low = (wire, report["model_bits"]), middle
        else:
            high = middle
    if best is None:
        raise RuntimeError("no step reached the peer's error: is the codec broken?")
    return best


def entropy_bits(labels: Tensor) -> float:
    """Total bits of an ideal zero-order code of these labels with their own frequencies."""
    _, counts = labels.unique(return_counts=True)
    return float((counts * (counts.sum().double() / counts).log2()).sum())


def ideal_bits_at_error(x: Tensor, error: float) -> float:
    """Entropy of the symbols given their block's class, and of the classes, at this error.

    Round to nearest and centroids per class and magnitude: what remains is the coder's share.
    """
    rows = in_blocks(x.double(), 256)
    scale = rows.abs().mean(dim=1, keepdim=True)
    classes = torch.where(scale > 0, (2 * scale.log2()).round(), -9999.0)
    low, high = math.log2(math.sqrt(error / x.numel())) - 1, math.log2(float(x.abs().max())) + 1
    best = math.inf
    for _ in range(14):
        middle = (low + high) / 2
        symbols = (rows / 2**middle).round()
        _, cell = (classes * 2**24 + symbols).unique(return_inverse=True)
        cell = cell.flatten()
        counts = torch.bincount(cell)
        sums = torch.bincount(cell, rows.flatten())
        missed = float((rows.flatten() - (sums / counts)[cell]).square().sum())
        if missed <= error:
            given_class = entropy_bits(cell) - entropy_bits(classes.expand_as(rows))
            best, low = given_class + entropy_bits(classes), middle
        else:
            high = middle
    return best


def zero_order_error_at_bits(x: Tensor, bits: float) -> float:
    """Squared error of a zero-order entropy coder at this size.

    Round to nearest, centroids, one ideal table of the tensor's own symbol frequencies, nothing
    counted for it.
    """
    flat = x.flatten().double()
    low, high = math.log2(float(flat.abs().max())) - 20, math.log2(float(flat.abs().max())) + 1
    best = math.inf
    for _ in range(16):
        middle = (low + high) / 2
        _, cell = (flat / 2**middle).round().unique(return_inverse=True)
        if entropy_bits(cell) <= bits:
            centroids = torch.bincount(cell, flat) / torch.bincount(cell)
            best, high = float((flat - centroids[cell]).square().sum()), middle
        else:
            low = middle
    return best


def compare_with_peer(
    tensors: list[Tensor], quantize: Callable[[Tensor], Tensor], low_rank: int
) -> dict[str, float]:
    wire_bits = ideal_bits = model_bits = error = signal = 0.0
    for x in tensors:
        target = error_of(x, quantize(x))
        if target == 0:
            continue
        wire, model = encode_at_error(x, target, low_rank)
        wire_bits += 8 * wire.numel()
        model_bits += model
        if not low_rank:
            ideal_bits += ideal_bits_at_error(x, target)
        error += error_of(x, gct.decode(wire))
        signal += float(x.double().square().sum())
    numel = sum(x.numel() for x in tensors)
    result = {
        "bits": wire_bits / numel,
        "size_over_model": wire_bits / model_bits,
        "snr_db": 10 * math.log10(signal / error),
    }
    return result if low_rank else {**result, "ideal_coder_bits": ideal_bits / numel}


def compare_with_zero_order(tensors: list[Tensor], low_rank: int) -> dict[str, float]:
    """2 bits, each tensor alone, against a zero-order coder of the same size."""
    own = other = signal = 0.0
    for x in tensors:
        wire = gct.encode(x, gct.Codec(bits=2.0, allocation="mse", low_rank=low_rank))
        own += error_of(x, gct.decode(wire))
        other += zero_order_error_at_bits(x, 8 * wire.numel())
        signal += float(x.double().square().sum())
    return {
        "snr_db": 10 * math.log10(signal / own),
        "zero_order_snr_db": 10 * math.log10(signal / other),
    }


def achieved(tensors: list[Tensor], codec: gct.Codec) -> dict[str, float]:
    bits = error = signal = 0.0
    worst_rate = worst_snr = 0.0
    for x in tensors:
        wire = gct.encode(x, codec)
        rate, e, s = (
            8 * wire.numel() / x.numel(),
            error_of(x, gct.decode(wire)),
            float(x.double().square().sum()),
        )
        bits, error, signal = bits + 8 * wire.numel(), error + e, signal + s
        if codec.bits is not None:
            worst_rate = max(worst_rate, abs(rate / codec.bits - 1))
        if codec.snr_db is not None and e > 0:  # tiny tensors may be sent as they are
            worst_snr = max(worst_snr, abs(10 * math.log10(s / e) - codec.snr_db))
    numel = sum(x.numel() for x in tensors)
    return {
        "bits": bits / numel,
        "snr_db": 10 * math.log10(signal / error),
        "worst_rate_error": worst_rate,
        "worst_snr_error_db": worst_snr,
    }


LEAST_NUMEL = 4096  # of the largest tensor
_HOW_TO_MAKE = (
    "python examples/collect_gradients.py --out FOLDER writes them (it needs the extra 'examples': "
    "pip install '.[examples]' in the repository's folder)"
)


def load_tensors(path: Path) -> list[Tensor]:
    """Matrices and more, in float32; zeros, which an unused parameter has, say nothing.

    Raises:
        UserError: no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file of gradients, found none; {_HOW_TO_MAKE}.")
    try:
        gradients = torch.load(path, map_location="cpu", weights_only=True)
        tensors = [g.float().contiguous() for g in gradients.values() if g.dim() > 1 and g.any()]
    except Exception as error:
        raise UserError(
            f"{path}: expected a dict of tensors from torch.save, got something else "
            f"({type(error).__name__}); {_HOW_TO_MAKE}."
        ) from error
    if not any(x.numel() >= LEAST_NUMEL for x in tensors):
        raise UserError(
            f"{path}: expected a tensor of two dimensions or more and {LEAST_NUMEL} elements or "
            "more, found none: headers would be all that is compared."
        )
    if not all(bool(x.isfinite().all()) for x in tensors):
        raise UserError(f"{path}: expected finite gradients, found NaN or Inf; leave it out.")
    return tensors


def snapshots(folder: Path) -> list[Path]:
    """In the order of steps; all were read.

    Raises:
        UserError: there are none, or one holds something else.
    """
    found = {
        int(path.stem.removeprefix("grad_step")): path
        for path in folder.glob("grad_step*.pt")
        if path.stem.removeprefix("grad_step").isdecimal()
    }
    if not found:
        raise UserError(
            f"{folder}: expected a folder with files grad_step*.pt, found none; {_HOW_TO_MAKE}."
        )
    for path in found.values():
        load_tensors(path)
    return [found[step] for step in sorted(found)]


def measure(path: Path) -> dict[str, object]:
    tensors = load_tensors(path)
    result: dict[str, object] = {"tensors": len(tensors), "numel": sum(x.numel() for x in tensors)}
    for name, (peer_bits, quantize) in PEERS.items():
        for low_rank in (0, 4, 16):
            key = f"{name}, low_rank={low_rank}"
            found = compare_with_peer(tensors, quantize, low_rank)
            result[key] = {"peer_bits": peer_bits, **found}
            print(f"{path.name}: error of {key} ({peer_bits:.2f} bits): {found}", flush=True)
    for low_rank in (0, 16):
        key = f"2 bits and a zero-order coder, low_rank={low_rank}"
        result[key] = compare_with_zero_order(tensors, low_rank)
        print(f"{path.name}: {key}: {result[key]}", flush=True)
    for allocation in ("relative", "mse"):
        for bits in (1.0, 1.2, 1.5, 2.0, 3.0, 4.0):
            key = f"bits={bits} {allocation}"
            result[key] = achieved(tensors, gct.Codec(bits=bits, allocation=allocation))
            print(f"{path.name}: {key}: {result[key]}", flush=True)
    for snr_db in (10.0, 15.0, 20.0):
        key = f"snr_db={snr_db} mse"
        result[key] = achieved(tensors, gct.Codec(snr_db=snr_db, allocation="mse"))
        print(f"{path.name}: {key}: {result[key]}", flush=True)
    return result


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of grad_step*.pt")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    with exits_with_sentence("gradient_rate.py", WRONG_ARGUMENT):
        paths = snapshots(args.folder)
        check_writable(args.json)
    results = {path.stem: measure(path) for path in paths}
    if args.json:
        args.json.write_text(json.dumps({**run_facts(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
