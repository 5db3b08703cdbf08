"""Bits that flip between real processes: found with checksum=True, survived without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flip_ranks import CASES, CODED, PLACES, SENDER, WORLD

import gct

HERE = Path(__file__).parent
TEXT_BYTES = 256  # what each rank tells each other one about a bucket
# Segments that rank 2 sends for a bucket between hosts.
SEGMENTS = {"one shot": 3, "two shots": 6, "sizes unknown": 6, "hosts": 1, "feedback": 6}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What four ranks have seen; each sends through a library that can flip bits."""
    folder = tmp_path_factory.mktemp("flip")
    library = folder / "flip_bits.so"
    compiler = [os.environ.get("CC", "cc"), "-O1", "-shared", "-fPIC"]
    subprocess.run([*compiler, str(HERE / "flip_bits.c"), "-o", str(library), "-ldl"], check=True)
    environ = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(HERE / "flip_ranks.py")]
    ranks = [
        subprocess.Popen(
            [*script, str(rank), str(folder / "store"), str(folder / f"{rank}.json")],
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        for rank in ranks:
            _, text = rank.communicate(timeout=120)
            assert rank.returncode == 0, text
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_a_flipped_bit_is_an_error_on_all_ranks(case: str, results: list[dict[str, Any]]) -> None:
    for number in range(len(CASES[case][1])):
        first, *others = (result[case]["errors"][number] for result in results)
        assert f"parameter 0 of step {1 + 2 * number} is lost on all ranks: rank " in first
        assert f"the checksum of rank {SENDER}'s segment of " in first
        assert all(first.split("\n\n")[0] == other.split("\n\n")[0] for other in others)


def test_each_step_between_and_inside_hosts_is_covered(results: list[dict[str, Any]]) -> None:
    scatter, cross, gather = results[0]["hosts"]["errors"]
    assert "while adding up inside the host (ranks 2, 3)" in scatter
    assert "while reducing between hosts (ranks 0, 2)" in cross
    assert "while sending round inside the host (ranks 2, 3)" in gather


@pytest.mark.parametrize("case", CASES)
def test_a_checksum_takes_four_bytes(case: str, results: list[dict[str, Any]]) -> None:
    expected = 4 * SEGMENTS[case] + TEXT_BYTES * (WORLD - 1)
    assert results[SENDER][case]["more_bytes"] == expected


def test_without_a_checksum_ranks_may_silently_differ(results: list[dict[str, Any]]) -> None:
    """So the bits do flip, and the next test has something to find."""
    assert not any(result["without"] for result in results)
    bits = sum(len(messages) for _, messages in CASES.values()) + 3
    flipped = [result["flipped"] for result in results]
    # More where the socket takes a message in parts: each part that begins with one is counted.
    assert flipped[2] >= bits
    assert flipped[:2] + flipped[3:] == [0, 0, 0]


def test_a_flipped_bit_in_a_coded_segment_never_crashes(results: list[dict[str, Any]]) -> None:
    """All four ended with their results, after values or an exception that says what's wrong."""
    coded = [result["coded"] for result in results]
    assert len(coded[0]) == len(CODED) * 2 * len(PLACES)
    flipped = [result["flipped in coded"] for result in results]
    assert flipped[2] >= len(coded[0])
    for name, errors in ((name, [result[name] for result in coded]) for name in coded[0]):
        for rank, error in enumerate(errors):
            assert not error or f"failed on rank {rank} of 4" in error, name
    # The first byte is of the magic: whoever receives it says so, and the others lose that rank.
    for codec, _ in CODED:
        assert any("can't be decoded" in result[f"{codec}, one_shot, 0"] for result in coded)


def test_a_wrong_size_is_outvoted(results: list[dict[str, Any]]) -> None:
    assert [result["flipped in sizes"] for result in results] == [0, 0, 1, 0]
    assert all(result["size"] for result in results)


def test_debug_hash_names_the_first_bucket_and_step(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        assert (
            f"parameter 0 of step 2 failed on rank {rank} of 4 while finishing" in result["hashes"]
        )
        assert "GCT_DEBUG=hash: rank " in result["hashes"]


@pytest.mark.parametrize("value", [1, "yes", None])
def test_checksum_is_on_or_off(value: Any) -> None:
    with pytest.raises(ValueError, match="checksum must be True or False"):
        gct.GCTState(checksum=value)
