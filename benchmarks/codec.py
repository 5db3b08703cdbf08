"""Speed of the codec on one core: kinds x bits x implementations x dtypes x sizes, and its peers.

    python benchmarks/codec.py
    python benchmarks/codec.py --sizes 1024 6500000 67108864 --kinds gg fixed --dtypes float32
    python benchmarks/codec.py --kinds gg --bits 6 8 --allocation mse --peers off
    python benchmarks/codec.py --threads 2 --peers off --json build/codec.json --csv build/codec.csv
    python benchmarks/codec.py --scaling --threads 2 --kinds gg --bits 2 --sizes 1048576 16777216
    python benchmarks/codec.py --device cuda       # the kernels; benchmarks/codec_gpu.py

Values are generalized Gaussian of shape 0.8 with log-normal block scales, as gradients are. A small
program (benchmarks/peers/codec_speed.cpp, built with CMake at the first run) calls the codec with a
workspace and buffers that are reused, as the collectives do; gct.encode and gct.decode allocate
their results on top. Every timed result is checked in the same run: all implementations give the
same bytes and decode them to the same bits, adding to nothing gives the decoded values, and the
error is below what that many bits must reach.

Columns:
    (name)        the kind and its bits, or the peer and the entropy of its codes; then the
                  implementation and the dtype
    elements      of a call
    bits          on the wire, by element, all headers counted
    dB            signal over error after decoding; exact: no error; -: not measured
    encode, decode, + add
                  million elements a second, from the median of the repeats, and from their best;
                  + add: decoding that adds to what is there, as a reduction does
    GB/s          bytes of input that encode takes a second (median), and as a share of "read"

Peers, on the same values in the same run:
    read          reading 256 MiB: the bandwidth that the last column's share refers to
    htscodecs     32-way order-0 rANS (Debian: libhtscodecs2) on ready int8 codes, made with one
                  step so that their entropy is the bits; the same codes for the next two
    constriction  its ANS coder with the codes' own frequencies, which aren't counted as bits
    zstd -1       zstandard level 1
    torch int8    torch.quantize_per_tensor with one absmax scale, and dequantize: no coder
Those that aren't installed are left out.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import codec_gpu
import codec_scaling
import numpy as np
import torch
from machine import run_facts
from multihost.arguments import Parser, check_writable, number, whole_number
from multihost.errors import WRONG_ARGUMENT, UserError, exits_with_sentence
from torch import Tensor

import gct
from gct import _C

try:
    import zstandard
except ImportError:
    zstandard = None
try:
    import constriction
except ImportError:
    constriction = None

ROOT = Path(__file__).resolve().parent.parent
KINDS: dict[str, list[float]] = {"gg": [1, 2, 3, 4], "eg": [2, 4], "fixed": [2, 4, 8], "raw": [32]}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_SIZES = [1 << 10, 1 << 14, 1 << 20, 1 << 23]
GPU_SIZES = [1 << 20, 6_553_600, 1 << 26]  # 25 MB is DDP's bucket
CALL_SECONDS = 0.005  # a repeat calls as often as this takes, so that the clock doesn't matter
ALLOCATIONS = {"relative": 8, "mse": 0}
MOST_THREADS = 1024
EXACT_DB = 999  # the program's word for no error


@dataclass(frozen=True)
class Row:
    """One line: times are seconds of a call, 0 where there is no such call."""

    name: str
    implementation: str
    dtype: str
    numel: int
    target_bits: float
    bits: float
    snr_db: float  # nan: not defined; EXACT_DB: no error
    encode: float
    encode_best: float
    decode: float
    decode_best: float
    decode_add: float
    decode_add_best: float
    read_share: float = 0.0  # of the measured read bandwidth, by encode


def gradient(numel: int) -> Tensor:
    torch.manual_seed(1)
    shape = 0.8  # |x|^shape is Gamma(1 / shape) distributed
    magnitudes = torch.distributions.Gamma(1 / shape, 1.0).sample((numel,)).pow_(1 / shape)
    signs = torch.randint(0, 2, (numel,)).mul_(2).sub_(1)
    scales = torch.randn(-(-numel // 256)).mul_(0.5).exp_().mul_(1e-4)
    return magnitudes.mul_(signs).mul_(scales.repeat_interleave(256)[:numel])


def least_snr_db(kind: str, bits: float) -> float:
    """6 dB a bit, less 4 dB, and less 3 dB where steps follow the blocks' scales; codebooks without
    a coder gain 5 dB a bit on such heavy tails. Zeros (0 dB) and misplaced values (below 0 dB) fail
    from 2 bits on."""
    return 5 * bits - 5.5 if kind == "fixed" else 6 * bits - 7


def bits_of(kind: str, options: argparse.Namespace) -> list[float]:
    """raw has no other than its own."""
    return KINDS[kind] if kind == "raw" or options.bits is None else options.bits


def codes_of(x: Tensor, bits: float) -> tuple[Tensor, float]:
    """x as int8 codes whose entropy is `bits`, and their step."""
    low, high = 1e-9, float(x.abs().max())
    for _ in range(30):
        step = math.sqrt(low * high)
        codes = (x / step).round_().clamp_(-127, 127).to(torch.int8)
        counts = torch.bincount(codes.int() + 128).double()
        shares = counts[counts > 0] / counts.sum()
        if float(-(shares * shares.log2()).sum()) > bits:
            low = step
        else:
            high = step
    return codes, step


# ---- the program


@functools.cache
def program() -> Path:
    """Builds benchmarks/peers/codec_speed.cpp where it isn't up to date."""
    folder = ROOT / "build" / "benchmark"
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-DGCT_CUDA=0"]
    subprocess.run([*configure, "-DGCT_BUILD_BENCHMARKS=ON"], check=True, stdout=subprocess.DEVNULL)
    build = [cmake, "--build", str(folder), "--target", "codec_speed", "--parallel", "2"]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return folder / "codec_speed"


def run_program(
    x: Tensor,
    codes: Tensor | None,
    lines: list[str],
    repeats: int,
    threads: int,
    *words: str,
) -> Iterator[dict[str, Any]]:
    binary = program()
    with tempfile.TemporaryDirectory() as folder:
        values = Path(folder) / "values"
        x.view(torch.uint8).numpy().tofile(values)
        dtype = next(name for name, dtype in DTYPES.items() if dtype == x.dtype)
        command = [str(binary), str(values), dtype, str(repeats), str(threads), *words]
        if codes is not None:
            codes.numpy().tofile(Path(folder) / "codes")
            command.append(str(Path(folder) / "codes"))
        result = subprocess.run(
            command, input="\n".join(lines), capture_output=True, text=True, check=False
        )
    if result.returncode != 0:
        why = result.stderr.strip() or "it said nothing"
        raise AssertionError(f"codec_speed ended with status {result.returncode}: {why}")
    yield from map(json.loads, result.stdout.splitlines())


def codec_rows(
    x: Tensor, dtype: str, codes: Tensor | None, options: argparse.Namespace
) -> list[Row]:
    """Of all kinds, bits and implementations, then of reading and htscodecs."""
    configs = [
        (kind, bits, name)
        for kind in options.kinds
        for bits in bits_of(kind, options)
        for name in options.implementations
    ]
    allocation8 = ALLOCATIONS[options.allocation]
    lines = [f"{kind} {bits:g} {allocation8} {name}" for kind, bits, name in configs]
    results = list(run_program(x.to(DTYPES[dtype]), codes, lines, options.repeats, options.threads))
    digests: dict[tuple[str, float], str] = {}
    rows = []
    for result, (kind, bits, name) in zip(results, configs, strict=False):
        if digests.setdefault((kind, bits), result["digest"]) != result["digest"]:
            raise AssertionError(f"implementations differ: {kind} at {bits:g} bits, {name}")
        if x.numel() >= 4096 and not result["snr_db"] > least_snr_db(kind, min(bits, 8)):
            raise AssertionError(f"{kind} at {bits:g} bits: {result['snr_db']:.2f} dB")
        rows.append(row_of(result, dtype, x.numel(), bits))
    for result in results[len(configs) :]:
        numel = result["bytes"] // 4 if result["name"] == "read" else x.numel()
        rows.append(row_of(result, "float32", numel, options.peer_bits))
    return rows


def scaling_rows(x: Tensor, options: argparse.Namespace) -> Iterator[codec_scaling.Scaling]:
    """With the best implementation."""
    allocation8, best = ALLOCATIONS[options.allocation], options.implementations[0]
    for kind in options.kinds:
        for bits in bits_of(kind, options):
            line = f"{kind} {bits:g} {allocation8} {best}"
            threads = options.threads
            for result in run_program(x, None, [line], options.repeats, threads, "--scaling"):
                yield from codec_scaling.rows(result, bits, x.numel())


def row_of(result: dict[str, Any], dtype: str, numel: int, target_bits: float) -> Row:
    none = {"median": 0.0, "best": 0.0}
    encode, decode, add = (result.get(key, none) for key in ("encode", "decode", "decode_add"))
    return Row(
        name=result["name"],
        implementation=result.get("implementation", ""),
        dtype=dtype,
        numel=numel,
        target_bits=target_bits,
        bits=8 * result["bytes"] / numel,
        snr_db=result.get("snr_db", math.nan),
        encode=encode["median"],
        encode_best=encode["best"],
        decode=decode["median"],
        decode_best=decode["best"],
        decode_add=add["median"],
        decode_add_best=add["best"],
    )


# ---- peers in Python


def measure(call: Callable[[], object], repeats: int) -> dict[str, float]:
    start = time.perf_counter()
    call()
    calls = max(1, int(CALL_SECONDS / max(time.perf_counter() - start, 1e-7)))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        seconds.append((time.perf_counter() - start) / calls)
    return {"median": statistics.median(seconds), "best": min(seconds)}


def python_peer(
    name: str,
    x: Tensor,
    options: argparse.Namespace,
    encode: Callable[[], object],
    decode: Callable[[], object],
    wire_bytes: int,
) -> Row:
    result = {
        "name": name,
        "bytes": wire_bytes,
        "encode": measure(encode, options.repeats),
        "decode": measure(decode, options.repeats),
    }
    return row_of(result, "float32", x.numel(), options.peer_bits)


def python_peers(x: Tensor, codes: Tensor, options: argparse.Namespace) -> Iterator[Row]:
    def quantize() -> Tensor:
        return torch.quantize_per_tensor(x, float(x.abs().max()) / 127, 0, torch.qint8)

    quantized = quantize()
    yield python_peer("torch int8", x, options, quantize, quantized.dequantize, x.numel() + 8)
    data = codes.numpy()
    if zstandard is not None:
        compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
        wire = compressor.compress(data)
        if decompressor.decompress(wire) != data.tobytes():
            raise AssertionError("zstd gives other bytes back")
        yield python_peer(
            "zstd -1",
            x,
            options,
            lambda: compressor.compress(data),
            lambda: decompressor.decompress(wire),
            len(wire),
        )
    if constriction is not None:
        yield constriction_peer(x, data, options)


def constriction_peer(x: Tensor, data: np.ndarray[Any, Any], options: argparse.Namespace) -> Row:
    symbols = data.astype(np.int32) + 128
    shares = np.bincount(symbols, minlength=256).astype(np.float64) + 1e-9
    model = constriction.stream.model.Categorical(shares / shares.sum(), perfect=False)

    def encode() -> np.ndarray[Any, Any]:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model)
        return coder.get_compressed()

    wire = encode()

    def decode() -> np.ndarray[Any, Any]:
        return constriction.stream.stack.AnsCoder(wire).decode(model, len(symbols))

    if not np.array_equal(decode(), symbols):
        raise AssertionError("constriction gives other symbols back")
    return python_peer("constriction", x, options, encode, decode, wire.nbytes)


# ---- the report


def with_read_share(rows: list[Row]) -> list[Row]:
    """Input bytes a second of encode over those of plain reading in the same process."""
    read = next(row for row in rows if row.name == "read")
    bandwidth = 4 * read.numel / read.encode
    return [
        Row(**{**asdict(row), "read_share": item_bytes(row) * row.numel / row.encode / bandwidth})
        for row in rows
    ]


def item_bytes(row: Row) -> int:
    return 4 if row.dtype == "float32" else 2


def print_row(row: Row) -> None:
    def rate(median: float, best: float) -> str:
        """Millions of elements a second."""
        if median == 0:
            return f"{'':16}"
        return f"{row.numel / median / 1e6:8.0f}{row.numel / best / 1e6:8.0f}"

    def decibels() -> str:
        if math.isnan(row.snr_db):
            return "-"
        return "exact" if row.snr_db == EXACT_DB else f"{row.snr_db:.2f}"

    name = row.name if row.name in ("raw", "read") else f"{row.name} {row.target_bits:g}"
    gigabytes = item_bytes(row) * row.numel / row.encode / 1e9
    print(
        f"{name:15} {row.implementation:7} {row.dtype:8} {row.numel:9} {row.bits:6.3f}"
        f" {decibels():>6} |{rate(row.encode, row.encode_best)}"
        f" |{rate(row.decode, row.decode_best)} |{rate(row.decode_add, row.decode_add_best)}"
        f" |{gigabytes:7.2f} {100 * row.read_share:4.0f} %",
        flush=True,
    )


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def parse_options(words: list[str] | None = None) -> argparse.Namespace:
    """Raises UserError for what argparse can't see."""
    parser = Parser(__doc__)
    add = parser.add_argument
    count = whole_number(1)
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: only --sizes, --repeats")
    add("--sizes", type=count, nargs="+", metavar="N", help="elements")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    bits_help = "of all kinds but raw, in the place of each one's own; fixed: 1, 2, ... 8"
    add("--bits", type=float, nargs="+", help=bits_help)
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    here = _C.implementations()
    add("--implementations", nargs="+", choices=here, default=here, help="all of this machine")
    allocation_help = "relative: steps follow the blocks' scales; mse: one step for all"
    add("--allocation", choices=ALLOCATIONS, default="relative", help=allocation_help)
    threads = whole_number(1, MOST_THREADS)
    add("--threads", type=threads, default=1, metavar="N", help="of the codec; peers have one")
    add("--scaling", action="store_true", help="one thread against --threads: codec_scaling.py")
    add("--peers", choices=["on", "off"], default="on")
    peer_help = "entropy of the codes that peers get (2)"
    add("--peer-bits", type=number(0.1, 6), default=2.0, metavar="BITS", help=peer_help)
    add("--repeats", type=count, default=7, metavar="K", help="of each measurement (7)")
    add("--json", type=Path, help="also write the results here, times in seconds of a call")
    add("--csv", type=Path, help="the same; not with --scaling or --device cuda")
    options = parser.parse_args(words)
    if options.sizes is None:
        options.sizes = GPU_SIZES if options.device == "cuda" else CPU_SIZES
    check_options(options)
    return options


def check_options(options: argparse.Namespace) -> None:
    """Before anything is measured."""
    for kind in options.kinds:
        for bits in bits_of(kind, options):
            try:
                gct.Codec(kind, bits=None if kind == "raw" else bits, allocation=options.allocation)
            except ValueError as error:
                raise UserError(
                    f"--bits: {error}; change it, or leave {kind} out with --kinds."
                ) from error
    if options.scaling and (options.threads < 2 or options.repeats < 2):
        raise UserError(
            "--scaling compares one thread with more, over some repeats: expected --threads and "
            f"--repeats of 2 or more, got {options.threads} and {options.repeats}."
        )
    if options.csv is not None and (options.scaling or options.device == "cuda"):
        raise UserError("--csv: not with --scaling or --device cuda; use --json there.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU; leave the option out.")
    check_writable(options.json, options.csv)


def write_json(path: Path | None, environment: dict[str, str], rows: list[dict[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps({**environment, "rows": rows}, indent=1) + "\n")


def main() -> None:
    with exits_with_sentence("codec.py", WRONG_ARGUMENT):
        options = parse_options()
    torch.set_num_threads(1)
    environment = run_facts()
    for name, value in environment.items():
        print(f"{name}: {value}")
    if options.device == "cuda":
        on_device = codec_gpu.rows([gradient(n).cuda() for n in options.sizes], options.repeats)
        write_json(options.json, environment, [asdict(row) for row in on_device])
        return
    print(f"threads: {options.threads}, allocation: {options.allocation}")
    if options.scaling:
        print(codec_scaling.HEAD)
        measured: list[codec_scaling.Scaling] = []
        for numel in options.sizes:
            for scaling in scaling_rows(gradient(numel), options):
                print(scaling, flush=True)
                measured.append(scaling)
        write_json(options.json, environment, [asdict(scaling) for scaling in measured])
        return
    print("\nM elements/s: median and best; GB/s of input to encode; share of reading")
    print(
        f"{'':15} {'':7} {'':8} {'elements':>9} {'bits':>6} {'dB':>6} |  encode    best"
        " |  decode    best |   + add    best |   GB/s"
    )
    rows: list[Row] = []
    for numel in options.sizes:
        x = gradient(numel)
        for dtype in options.dtypes:
            peers = options.peers == "on" and dtype == "float32"
            codes = codes_of(x, options.peer_bits)[0] if peers else None
            part = codec_rows(x, dtype, codes, options)
            if codes is not None:
                part += python_peers(x, codes, options)
            part = with_read_share(part)
            for row in part:
                print_row(row)
            rows += part
    write_json(options.json, environment, [asdict(row) for row in rows])
    if options.csv is not None:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
