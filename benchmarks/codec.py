"""Speed of the codec on one core: kinds x bits x implementations, and what else could be done.

    python benchmarks/codec.py
    python benchmarks/codec.py --sizes 16777216 --repeats 15 --json build/codec.json
    python benchmarks/codec.py --device cuda       # the kernels; benchmarks/codec_gpu.py

Input is float32, generalized Gaussian of shape 0.8 with log-normal block scales, as gradients are.
Every timed result is checked in the same run: all implementations give the same bytes and decode
them to the same bits, and the error is below what that many bits must reach. Figures are the
median and the best of k repeats after one that isn't counted.

encode and decode are gct.encode and gct.decode with their allocation of the result; Python has no
call that decodes into a sum, so "decode + add" is acc.add_(gct.decode(wire)), which costs one more
pass over memory than the collectives need.

Only gg has vector kernels; the other kinds run the same code under each implementation's name.

Peers, on the same values:
    torch int8    torch.quantize_per_tensor with one absmax scale, and dequantize: 8 bits, no coder
    zstd -1       the same quantizer with gct's step at its bits, int8 codes through zstandard
                  level 1: what a general coder gives for the same symbols (quantizing is timed)
    copy          x.clone(): the memory's speed
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import codec_gpu
import torch
from torch import Tensor

import gct
from gct import _C
from gct.codec import Kind

try:
    import zstandard
except ImportError:
    zstandard = None

CODECS: list[tuple[Kind, float]] = [
    ("gg", 1.0),
    ("gg", 2.0),
    ("gg", 3.0),
    ("gg", 4.0),
    ("eg", 2.0),
    ("eg", 4.0),
    ("fixed", 2.0),
    ("fixed", 4.0),
    ("fixed", 8.0),
    ("raw", 32.0),
]
CPU_SIZES = [1 << 16, 1 << 20, 1 << 23]
GPU_SIZES = [1 << 20, 6_553_600, 1 << 26]  # 25 MB is DDP's bucket
CALL_SECONDS = 0.02  # a repeat calls as often as this takes, so that the clock doesn't matter


@dataclass(frozen=True)
class Times:
    """Seconds of one call."""

    median: float
    best: float


@dataclass(frozen=True)
class Row:
    name: str
    implementation: str
    numel: int
    bits: float
    snr_db: float
    encode: Times
    decode: Times
    decode_add: Times


def measure(call: Callable[[], object], repeats: int) -> Times:
    start = time.perf_counter()
    call()
    calls = max(1, int(CALL_SECONDS / max(time.perf_counter() - start, 1e-7)))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        seconds.append((time.perf_counter() - start) / calls)
    return Times(statistics.median(seconds), min(seconds))


def gradient(numel: int) -> Tensor:
    torch.manual_seed(1)
    shape = 0.8  # |x|^shape is Gamma(1 / shape) distributed
    magnitudes = torch.distributions.Gamma(1 / shape, 1.0).sample((numel,)).pow_(1 / shape)
    signs = torch.randint(0, 2, (numel,)).mul_(2).sub_(1)
    scales = torch.randn(-(-numel // 256)).mul_(0.5).exp_().mul_(1e-4)
    return magnitudes.mul_(signs).mul_(scales.repeat_interleave(256)[:numel])


def snr_db(x: Tensor, y: Tensor) -> float:
    error = float((x.double() - y.double()).square().sum())
    return 10 * math.log10(float(x.double().square().sum()) / error) if error > 0 else math.inf


def least_snr_db(kind: Kind, bits: float) -> float:
    """6 dB a bit, less 4 dB; codebooks without a coder gain 5 dB a bit on such heavy tails. Zeros
    (0 dB) and misplaced values (below 0 dB) fail both."""
    return 5 * bits - 5.5 if kind == "fixed" else 6 * bits - 4


def codec_of(kind: Kind, bits: float) -> gct.Codec:
    """One step for all, as the peers have it: otherwise equal bits wouldn't be comparable in dB."""
    return gct.Codec(kind) if kind == "raw" else gct.Codec(kind, bits=bits, allocation="mse")


def checked(x: Tensor, kind: Kind, bits: float) -> tuple[Tensor, float]:
    """The wire and its SNR, after comparing all implementations."""
    codec = codec_of(kind, bits)
    results = []
    for name in _C.implementations():
        _C.set_implementation(name)
        wire = gct.encode(x, codec)
        results.append((wire, gct.decode(wire)))
    wire, decoded = results[0]
    for other_wire, other in results[1:]:
        if not torch.equal(wire, other_wire) or not torch.equal(decoded, other):
            raise AssertionError(f"implementations differ: {kind} at {bits} bits")
    snr = snr_db(x, decoded)
    if not snr > least_snr_db(kind, bits):
        raise AssertionError(f"{kind} at {bits} bits: {snr:.2f} dB is too little")
    return wire, snr


def codec_rows(x: Tensor, kind: Kind, bits: float, repeats: int) -> list[Row]:
    wire, snr = checked(x, kind, bits)
    codec = codec_of(kind, bits)
    total = torch.zeros_like(x)
    rows = []
    for name in _C.implementations():
        _C.set_implementation(name)
        rows.append(
            Row(
                name=f"{kind} {bits:g}" if kind != "raw" else kind,
                implementation=name,
                numel=x.numel(),
                bits=8 * wire.numel() / x.numel(),
                snr_db=snr,
                encode=measure(lambda: gct.encode(x, codec), repeats),
                decode=measure(lambda: gct.decode(wire), repeats),
                decode_add=measure(lambda: total.add_(gct.decode(wire)), repeats),
            )
        )
    return rows


def peer_row(
    name: str,
    x: Tensor,
    repeats: int,
    encode: Callable[[], object],
    decode: Callable[[], Tensor],
    wire_bytes: int,
) -> Row:
    total = torch.zeros_like(x)
    return Row(
        name=name,
        implementation="",
        numel=x.numel(),
        bits=8 * wire_bytes / x.numel(),
        snr_db=snr_db(x, decode()),
        encode=measure(encode, repeats),
        decode=measure(decode, repeats),
        decode_add=measure(lambda: total.add_(decode()), repeats),
    )


def torch_int8(x: Tensor, repeats: int) -> Row:
    def encode() -> Tensor:
        return torch.quantize_per_tensor(x, float(x.abs().max()) / 127, 0, torch.qint8)

    quantized = encode()
    return peer_row("torch int8", x, repeats, encode, quantized.dequantize, x.numel() + 8)


def zstd(x: Tensor, bits: float, repeats: int) -> Row:
    """The step is found once, outside the clock, so that zstd's output has these bits."""
    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()

    def encode(step: float) -> bytes:
        codes = (x * (1 / step)).round_().clamp_(-127, 127).to(torch.int8)
        return bytes(compressor.compress(codes.numpy()))

    low, high = 1e-9, float(x.abs().max())
    for _ in range(20):
        step = math.sqrt(low * high)
        if 8 * len(encode(step)) > bits * x.numel():
            low = step
        else:
            high = step
    wire = encode(high)

    def decode() -> Tensor:
        codes = torch.frombuffer(bytearray(decompressor.decompress(wire)), dtype=torch.int8)
        return codes.float().mul_(high)

    return peer_row(f"zstd -1 at {bits:g}", x, repeats, lambda: encode(high), decode, len(wire))


def peers(x: Tensor, repeats: int) -> list[Row]:
    rows = [torch_int8(x, repeats)]
    if zstandard is not None:
        rows += [zstd(x, bits, repeats) for bits in (2.0, 4.0)]
    rows.append(peer_row("copy", x, repeats, x.clone, x.clone, 4 * x.numel()))
    return rows


def machine() -> dict[str, str]:
    processor = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s for s in info.read_text().splitlines() if s.startswith("model name")]
        processor = names[0].split(": ", 1)[1] if names else processor
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "processor": processor,
        "torch": torch.__version__,
        "gct": gct.__version__,
        "commit": commit or "unknown",
        "zstandard": zstandard.__version__ if zstandard is not None else "not installed",
        "command": " ".join(["python", *sys.argv]),
    }


def print_row(row: Row) -> None:
    def rate(times: Times) -> str:
        """Millions of elements a second, median and best."""
        return f"{row.numel / times.median / 1e6:7.0f} {row.numel / times.best / 1e6:7.0f}"

    gigabytes = 4 * row.numel / row.encode.median / 1e9
    print(
        f"{row.name:13} {row.implementation:8} {row.numel:9} {row.bits:6.3f} {row.snr_db:6.2f}"
        f" |{rate(row.encode)} |{rate(row.decode)} |{rate(row.decode_add)} |{gigabytes:7.2f}"
    )


def write_json(path: Path | None, environment: dict[str, str], rows: list[dict[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps({**environment, "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", help="elements")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    if options.sizes is None:
        options.sizes = GPU_SIZES if options.device == "cuda" else CPU_SIZES
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU")
    torch.set_num_threads(1)
    environment = machine()
    for name, value in environment.items():
        print(f"{name}: {value}")
    if options.device == "cuda":
        on_device = codec_gpu.rows([gradient(n).cuda() for n in options.sizes], options.repeats)
        write_json(options.json, environment, [asdict(row) for row in on_device])
        return
    print("\nM elements/s on one core: median and best; GB/s of float32 input to encode")
    print(
        f"{'':13} {'':8} {'elements':>9} {'bits':>6} {'dB':>6} | encode    best | decode    best"
        " |  + add    best |   GB/s"
    )
    before = _C.implementation()
    rows: list[Row] = []
    for numel in options.sizes:
        x = gradient(numel)
        for kind, bits in CODECS:
            rows += codec_rows(x, kind, bits, options.repeats)
            for row in rows[-len(_C.implementations()) :]:
                print_row(row)
        for row in peers(x, options.repeats):
            rows.append(row)
            print_row(row)
    _C.set_implementation(before)
    write_json(options.json, environment, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
