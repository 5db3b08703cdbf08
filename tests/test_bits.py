"""Bits that change on the way: GCTState(bits={0: 3.0, 500: 1.0})."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from one_bucket import Reductions
from ranks import assert_same_on_all_ranks, run_ranks

import gct

NUMEL = 65536


def rates(rank: int, world: int, hierarchy: Any) -> list[float]:
    """Bits per element of each step."""
    state = gct.GCTState(
        bits={0: 4.0, 2: 1.0, 3: 2.0}, start_step=1, min_numel=0, hierarchy=hierarchy
    )
    reductions = Reductions(state, NUMEL)
    bits, before = [], (0, 0)
    for step in range(5):
        assert_same_on_all_ranks(reductions.start().wait(), world)
        counters = state.counters()
        now = counters["encoded_bytes"], counters["encoded_numel"]
        if step >= 1:
            bits.append(8 * (now[0] - before[0]) / (now[1] - before[1]))
        before = now
    return bits


@pytest.mark.parametrize(("world", "hierarchy"), [(2, "off"), (3, "off"), (4, 2)])
def test_each_step_has_its_bits(world: int, hierarchy: Any) -> None:
    """Step 0 is uncompressed, and each number holds until the next one."""
    for bits in run_ranks(world, rates, hierarchy):
        # Slots are what was asked for, rounded up to whole bytes of each segment.
        assert bits == pytest.approx([4.0, 1.0, 2.0, 2.0], rel=0.001)


def differ(rank: int, world: int) -> str:
    state = gct.GCTState(bits={0: 2.0, 10 + rank: 1.0}, start_step=0, min_numel=0)
    with pytest.raises(
        ValueError, match=r"bits is \[\[0, 2\.0\], \[10, 1\.0\]\] on rank 0"
    ) as error:
        Reductions(state, NUMEL).start()
    return str(error.value)


def test_ranks_must_agree() -> None:
    for text in run_ranks(2, differ):
        assert "[[0, 2.0], [11, 1.0]] on rank 1" in text


def resumed(rank: int, world: int) -> None:
    """The step decides, and it is in the checkpoint."""
    first = Reductions(gct.GCTState(bits={0: 3.0, 2: 1.0}, start_step=0, min_numel=0), NUMEL)
    first.start().wait()
    saved = json.loads(json.dumps(first.state.state_dict()))
    expected = [first.start().wait() for _ in range(2)]
    second = Reductions(gct.GCTState(bits={0: 3.0, 2: 1.0}, start_step=0, min_numel=0), NUMEL)
    second.state.load_state_dict(saved)
    for value in expected:
        assert torch.equal(second.start().wait(), value)
    assert not torch.equal(*expected)


def test_a_resumed_run_goes_on_with_its_bits() -> None:
    run_ranks(2, resumed)


def test_forms() -> None:
    """A mapping, or pairs, as JSON and a pickle have them; in any order, of NumPy's numbers."""
    asked = {100: 1.0, 0: 3.0}
    states = [
        gct.GCTState(bits=asked),
        gct.GCTState(bits=[[0, 3.0], [100, 1.0]]),
        gct.GCTState(bits=[(np.int64(100), np.float32(1)), (0, 3)]),
    ]
    states.append(copy.deepcopy(states[0]))
    for state in states:
        assert state.state_dict()["settings"]["bits"] == [[0, 3.0], [100, 1.0]]
        assert state.codec == gct.Codec(bits=3.0, reconstruction="unit_gain")
        state.step = 100
        assert state.codec == gct.Codec(bits=1.0, reconstruction="unit_gain")


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ({}, "what holds from backward pass 0 on"),
        ({5: 2.0}, "what holds from backward pass 0 on"),
        ([(0, 2.0), (0, 1.0)], "each pass once"),
        ({0.5: 2.0}, "a mapping from backward passes to numbers"),
        ({True: 2.0}, "a mapping from backward passes to numbers"),
        ([(0, 2.0, 3.0)], "a mapping from backward passes to numbers"),
        ([(0, None), (0, 2.0)], "a mapping from backward passes to numbers"),
        ({0: None}, "a mapping from backward passes to numbers"),
        ([2.0, 1.0], "a mapping from backward passes to numbers"),
        ({0: 2.0, 10: 99.0}, "bits must be from 0.1 to 12"),
    ],
)
def test_what_is_refused(bits: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        gct.GCTState(bits=bits)
    with pytest.raises(ValueError, match="at most one of"):
        gct.GCTState(bits={0: 2.0, 10: 1.0}, snr_db=10.0)
