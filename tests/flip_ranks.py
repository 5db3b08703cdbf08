"""What each of four ranks does while bits flip on the wire; see test_checksum.py.

LD_PRELOAD=flip_bits.so python tests/flip_ranks.py RANK STORE RESULT
"""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import assert_same_on_all_ranks, gather_bits
from torch import Tensor, nn

import gct

WORLD = 4
NUMEL = 1 << 16
SEGMENT = (2000, 1 << 30)  # bytes: longer than any other message
SIZE = (24, 24)  # of a segment, three times
SENDER = 2
# Settings of a state, and which of the segments that rank 2 sends for a bucket are damaged, in
# turn: of each shot, which goes to three ranks, or of each step in and between hosts, to one.
CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "one shot": ({"bits": 2.0, "algorithm": "one_shot"}, [1]),
    "two shots": ({"bits": 2.0, "algorithm": "two_shot"}, [0, 4]),
    "sizes unknown": ({"snr_db": 10.0, "algorithm": "two_shot"}, [2, 3]),
    "hosts": ({"bits": 2.0, "hierarchy": 2}, [0, 1, 2]),
    "feedback": ({"bits": 2.0, "error_feedback": True, "algorithm": "two_shot"}, [5]),
}

CODED = [("gg", 2.0), ("eg", 3.0), ("fixed", 4.0)]
PLACES = (0, 1, 500)  # thousandths of the message: headers come first, lanes follow


class Flipper:
    """What flip_bits.c offers."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)

    def arm(
        self, skip: int = 0, message: tuple[int, int] = SEGMENT, thousandths: int = 500
    ) -> None:
        if dist.get_rank() == SENDER:
            self._library.flip_message(*map(ctypes.c_long, (*message, skip, thousandths)))

    def flipped(self) -> int:
        return int(self._library.flipped_bits())


def gradient() -> Tensor:
    torch.manual_seed(dist.get_rank())
    return torch.randn(NUMEL, 1)


class Case:
    def __init__(self, **settings: Any) -> None:
        self.state = gct.GCTState(start_step=0, min_numel=0, **settings)
        self.parameter = nn.Parameter(torch.zeros(NUMEL, 1))
        self.reduce()

    def reduce(self) -> Tensor:
        return gct.hook(self.state, (gradient(), self.parameter)).wait()

    def error(self) -> str:
        try:
            self.reduce()
        except RuntimeError as error:
            return str(error)
        return ""


def with_checksum(settings: dict[str, Any], messages: list[int], flipper: Flipper) -> Any:
    """The errors of damaged reductions, with sound ones before, between and after; more bytes."""
    plain, case = Case(**settings), Case(checksum=True, **settings)
    more_bytes = case.state.stats()["wire_bytes"] - plain.state.stats()["wire_bytes"]
    errors = []
    for message in messages:
        flipper.arm(message)
        errors.append(case.error())
        assert_same_on_all_ranks(case.reduce(), WORLD)
    case.state.close()
    plain.state.close()
    return {"errors": errors, "more_bytes": more_bytes}


def without_checksum(flipper: Flipper) -> bool:
    """Uncompressed, a flipped bit is just another value: do all ranks have the same?"""
    case = Case(codec="raw", algorithm="one_shot")
    flipper.arm()
    bits = gather_bits(case.reduce(), WORLD)
    case.state.close()
    return all(torch.equal(other, bits[0]) for other in bits)


def coded_without_checksum(flipper: Flipper) -> dict[str, str]:
    """What a flipped bit in a header, a table or a payload does: values that differ, or an error.

    Empty texts where this rank got values.
    """
    errors = {}
    for codec, bits in CODED:
        for algorithm in ("one_shot", "two_shot"):
            for place in PLACES:
                case = Case(codec=codec, bits=bits, algorithm=algorithm)
                flipper.arm(thousandths=place)
                errors[f"{codec}, {algorithm}, {place}"] = case.error()
                case.state.close()
    return errors


def with_a_wrong_size(flipper: Flipper) -> bool:
    """Without a checksum: is the result that of other calls? Gloo would end the process."""
    case = Case(snr_db=10.0, algorithm="two_shot")
    expected = case.reduce()
    flipper.arm(message=SIZE)
    same = torch.equal(case.reduce(), expected)
    case.state.close()
    return same


def with_hashes(flipper: Flipper) -> str:
    os.environ["GCT_DEBUG"] = "hash"
    case = Case(codec="raw", algorithm="one_shot")
    case.reduce()
    flipper.arm()
    error = case.error()
    del os.environ["GCT_DEBUG"]
    return error


def main() -> None:
    rank, store, result = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=20),
    )
    flipper = Flipper()
    results: dict[str, Any] = {
        name: with_checksum(settings, messages, flipper)
        for name, (settings, messages) in CASES.items()
    }
    results["without"] = without_checksum(flipper)
    before = flipper.flipped()
    results["coded"] = coded_without_checksum(flipper)
    results["flipped in coded"] = flipper.flipped() - before
    before = flipper.flipped()
    results["size"] = with_a_wrong_size(flipper)
    results["flipped in sizes"] = flipper.flipped() - before
    results["hashes"] = with_hashes(flipper)
    results["flipped"] = flipper.flipped()
    result.write_text(json.dumps(results))
    dist.barrier()


if __name__ == "__main__":
    main()
