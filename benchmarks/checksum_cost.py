"""What GCTState(checksum=True) costs the encoder: one thread's time for both, on one slice.

python benchmarks/checksum_cost.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import gct
from gct import _C

SLICE = 512 * 1024  # elements: what is encoded and sent at one time
BITS = (1.0, 2.0, 4.0, 8.0)


def least_seconds(call: Callable[[], object], repeats: int) -> float:
    """The fastest of many: what else the machine does only makes it slower."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=100)
    args = parser.parse_args()
    torch.manual_seed(0)
    values = torch.randn(SLICE // 1024, 1024) * torch.rand(SLICE // 1024, 1)
    print(f"{SLICE} float32 in one thread, implementation {_C.implementation()}")
    for bits in BITS:
        codec = gct.Codec(bits=bits)
        wire = gct.encode(values, codec)
        encode = least_seconds(lambda codec=codec: gct.encode(values, codec), args.repeats)
        check = least_seconds(lambda wire=wire: _C.crc32c(wire), args.repeats)
        print(
            f"{bits:g} bits: encoding {1e6 * encode:.0f} us, checksum of {wire.numel()} bytes "
            f"{1e6 * check:.1f} us, {check / encode:.2%}"
        )


if __name__ == "__main__":
    main()
