"""Checkpoint and resume: the same bits as a run that went on, whatever the file is made by."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from log_capture import captured_log
from ranks import assert_same_on_all_ranks, run_ranks
from resumable import END, SAVED, Run

import gct
from gct._regroup import Regroup
from gct._state_dict import flatten, unflatten

SCALES = {"element_scales": True, "error_feedback": False}  # they don't go together

# ---- ways to save, each a function (state, folder) -> a function that loads

Load = Callable[[gct.GCTState], None]


def by_torch_save(state: gct.GCTState, folder: Path) -> Load:
    path = folder / f"gct-{dist.get_rank()}.pt"
    torch.save(state.state_dict(), path)
    return lambda state: state.load_state_dict(torch.load(path, weights_only=True))


def by_safetensors(state: gct.GCTState, folder: Path) -> Load:
    path = folder / f"gct-{dist.get_rank()}.safetensors"
    safetensors.torch.save_file(state.state_dict(flat=True), path)
    return lambda state: state.load_state_dict(safetensors.torch.load_file(path))


def by_distributed_checkpoint(state: gct.GCTState, folder: Path) -> Load:
    import torch.distributed.checkpoint as dcp  # some of its parts warn that they are deprecated

    name = f"gct-{dist.get_rank()}"  # residuals are each rank's own
    dcp.save({name: state}, checkpoint_id=folder)
    return lambda state: dcp.load({name: state}, checkpoint_id=folder)


def by_pickle(state: gct.GCTState, folder: Path) -> Load:
    pickled = pickle.dumps(state)

    def load(state: gct.GCTState) -> None:
        state.__dict__.update(pickle.loads(pickled).__dict__)

    return load


def resumed(rank: int, world: int, folder: str, way: str, settings: dict[str, Any]) -> None:
    save = globals()[way]
    first = Run(**settings)
    first.steps(0, SAVED)
    load, rest = save(first.state, Path(folder)), first.rest()
    first.steps(SAVED, END)
    assert_same_on_all_ranks(first.result(), world)

    second = Run(**settings)
    second.load_rest(rest)
    load(second.state)
    assert second.state.step == SAVED
    second.steps(SAVED, SAVED + 1)
    # Once more, before DDP has its final buckets.
    again, rest = second.state.state_dict(), second.rest()
    second.steps(SAVED + 1, END)
    assert torch.equal(second.result(), first.result())

    third = Run(**settings)
    third.load_rest(rest)
    third.state.load_state_dict(again)
    third.steps(SAVED + 1, END)
    assert torch.equal(third.result(), first.result())


@pytest.mark.parametrize(
    ("world", "way", "settings"),
    [
        (2, "by_torch_save", {}),
        (3, "by_torch_save", {"named": False, "algorithm": "two_shot"}),
        (4, "by_torch_save", {"hierarchy": 2}),
        (2, "by_torch_save", {"start_step": 100}),
        (2, "by_torch_save", {"ddp": {"static_graph": True, "bucket_cap_mb": 0.005}}),
        (2, "by_torch_save", {"ddp": {"find_unused_parameters": True, "bucket_cap_mb": 0.005}}),
        (2, "by_safetensors", {}),
        (2, "by_distributed_checkpoint", {"rate_weight": 0.0}),
        (2, "by_distributed_checkpoint", {"rate_weight": 0.0, "error_feedback": False}),
        (2, "by_pickle", {"named": False}),
        (2, "by_pickle", {}),
        (2, "by_torch_save", SCALES),
        (3, "by_torch_save", {**SCALES, "named": False}),
        (2, "by_torch_save", {**SCALES, "ddp": {"static_graph": True, "bucket_cap_mb": 0.005}}),
        (2, "by_safetensors", SCALES),
        (2, "by_distributed_checkpoint", {**SCALES, "rate_weight": 0.0}),
        (2, "by_pickle", SCALES),
    ],
)
def test_a_resumed_run_has_the_same_bits(
    world: int, way: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    run_ranks(world, resumed, str(tmp_path), way, settings)


def what_matters(
    rank: int, world: int, settings: dict[str, Any], parts: list[dict[str, Any]]
) -> None:
    """Each part of a checkpoint, left out, would show in the result."""
    first = Run(**settings)
    first.steps(0, SAVED)
    saved, rest = first.state.state_dict(), first.rest()
    first.steps(SAVED, END)
    for without in parts:
        second = Run(**settings)
        second.load_rest(rest)
        second.state.load_state_dict({**saved, **without})
        second.steps(SAVED, END)
        assert not torch.equal(second.result(), first.result()), without


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, [{"step": SAVED + 1}, {"residuals": {}}, {"rate_term": {}}, {"buckets": []}]),
        (SCALES, [{"element_scales": {}}]),
    ],
)
def test_the_parts_of_a_checkpoint_matter(
    settings: dict[str, Any], parts: list[dict[str, Any]]
) -> None:
    run_ranks(2, what_matters, settings, parts)


def in_one_process(rank: int, world: int, settings: dict[str, Any]) -> None:
    """Back to an earlier step without a new DDP."""
    run = Run(**settings)
    run.steps(0, SAVED)
    saved, rest = run.state.state_dict(), run.rest()
    run.steps(SAVED, END)
    result = run.result()
    run.load_rest(rest)
    run.state.load_state_dict(saved)
    run.steps(SAVED, END)
    assert torch.equal(run.result(), result)


def in_one_process_compiled(rank: int, world: int) -> None:
    """The same where gradients come one by one: nobody says which is a pass' last one."""
    parameter = torch.nn.Parameter(torch.zeros(64, 64))
    state = gct.GCTState(bits=2.0, min_numel=0, start_step=0, rounding="stochastic")

    def reduced(step: int) -> torch.Tensor:
        torch.manual_seed(10 * step + rank)
        gradient = torch.randn(64, 64)
        gct.hook(state, (gradient, parameter)).wait()  # type: ignore[arg-type]
        return gradient

    for step in range(3):
        reduced(step)
    saved = {**state.state_dict(), "step": 3}  # the third pass ends with the fourth's gradient
    expected = [reduced(step) for step in range(3, 5)]
    state.load_state_dict(saved)
    for step, value in enumerate(expected, 3):
        assert torch.equal(reduced(step), value)


def test_back_to_an_earlier_step_with_compiled_ddp() -> None:
    run_ranks(2, in_one_process_compiled)


@pytest.mark.parametrize("settings", [{}, SCALES])
def test_back_to_an_earlier_step(settings: dict[str, Any]) -> None:
    run_ranks(2, in_one_process, settings)


def lost_at_the_resume(rank: int, world: int) -> str:
    first = Run()
    first.steps(0, SAVED)
    second = Run()
    second.load_rest(first.rest())
    second.state.load_state_dict(first.state.state_dict())
    if rank == 1:  # while buckets wait to be regrouped
        second.state._reduce_held = lambda: os._exit(1)
    with pytest.raises(RuntimeError) as caught:
        second.steps(SAVED, SAVED + 1)
    return str(caught.value)


def test_a_rank_that_is_lost_at_the_resume_is_an_exception() -> None:
    error, _ = run_ranks(2, lost_at_the_resume, group_timeout=5.0, lost={1})
    assert f"bucket 0 of step {SAVED} failed on rank 0 of 2" in error


# ---- another place


def logged(body: Callable[[], object]) -> str:
    with captured_log() as messages:
        body()
    return "".join(f"{message}\n" for message in messages)


def save_some(rank: int, world: int, folder: str) -> None:
    run = Run()
    run.steps(0, SAVED)
    torch.save([run.state.state_dict(), run.rest()], Path(folder, f"{rank}.pt"))


def load_from(rank: int, world: int, folder: str, whose: int) -> str:
    """What is said, and the residuals before the next step."""
    saved, rest = torch.load(Path(folder, f"{whose}.pt"), weights_only=False)
    run = Run()
    run.load_rest(rest)
    text = logged(lambda: run.state.load_state_dict(saved))
    assert not any(r.any() for r in run.state.state_dict()["residuals"].values())
    run.steps(SAVED, END)
    assert_same_on_all_ranks(run.result(), world)
    return text


def test_another_number_of_ranks_drops_residuals_and_says_so(tmp_path: Path) -> None:
    run_ranks(3, save_some, str(tmp_path))
    first, second = run_ranks(2, load_from, str(tmp_path), 0)
    assert first == "gct: residuals of rank 0 of 3 are dropped on rank 0 of 2\n"
    assert second == "gct: residuals of rank 0 of 3 are dropped on rank 1 of 2\n"


def name_otherwise(rank: int, world: int, named: bool) -> str:
    """Saved with model= or without, loaded the other way; what is said."""
    first = Run(named=named)
    first.steps(0, SAVED)
    saved, rest = first.state.state_dict(), first.rest()
    first.steps(SAVED, END)
    second = Run(named=not named)
    second.load_rest(rest)

    def go_on() -> None:
        second.state.load_state_dict(saved)
        second.steps(SAVED, END)

    text = logged(go_on)
    assert torch.equal(second.result(), first.result()) == named
    return text


def test_without_model_a_resumed_run_takes_the_names_of_the_saved_one() -> None:
    assert run_ranks(2, name_otherwise, True) == ["", ""]


def test_residuals_saved_without_names_are_missed_where_there_are_names() -> None:
    for text in run_ranks(2, name_otherwise, False):
        assert re.search(r"residuals of \d parameters have no parameter here, such as '\d'", text)
        assert "was its state made with model= and this one without" in text


def grow(rank: int, world: int, folder: str, saved_world: int) -> str:
    """By the recipe of docs/reliability.md: ranks that are new load what another one has saved."""
    import torch.distributed.checkpoint as dcp  # some of its parts warn that they are deprecated

    run = Run(rate_weight=0.0)
    name = f"gct-{rank % saved_world}"
    if world == saved_world:
        run.steps(0, SAVED)
        dcp.save({name: run.state}, checkpoint_id=folder)
        return ""
    text = logged(lambda: dcp.load({name: run.state}, checkpoint_id=folder))
    assert run.state.step == SAVED
    assert not any(r.any() for r in run.state.state_dict()["residuals"].values())
    run.steps(SAVED, END)
    return text


def test_more_ranks_load_a_distributed_checkpoint(tmp_path: Path) -> None:
    run_ranks(2, grow, str(tmp_path), 2)
    texts = run_ranks(3, grow, str(tmp_path), 2)
    for rank, whose in enumerate([0, 1, 0]):
        expected = f"gct: residuals of rank {whose} of 2 are dropped on rank {rank} of 3\n"
        assert expected in texts[rank]


def forgotten_rate_term(rank: int, world: int, folder: str) -> str:
    import torch.distributed.checkpoint as dcp

    run = Run()
    run.steps(0, SAVED)
    dcp.save({f"gct-{rank}": run.state}, checkpoint_id=folder)
    return logged(lambda: dcp.load({f"gct-{rank}": Run().state}, checkpoint_id=folder))


def test_a_lost_memory_of_the_rate_term_is_said(tmp_path: Path) -> None:
    """A distributed checkpoint loads what is there already: before the first pass, nothing."""
    for text in run_ranks(2, forgotten_rate_term, str(tmp_path)):
        assert "gct: the checkpoint has no memory of the rate term" in text


def before_the_group(rank: int, world: int, folder: str) -> str:
    """A checkpoint of rank 0, loaded where nobody knows yet who this is going to be."""
    default = dist.distributed_c10d._get_default_group()
    dist.distributed_c10d.GroupMember.WORLD = None
    assert not dist.is_initialized()
    state = pickle.loads(Path(folder, "state.pkl").read_bytes())
    dist.distributed_c10d.GroupMember.WORLD = default
    assert any(r.any() for r in state.state_dict()["residuals"].values())
    run = Run(named=False)
    run.state.__dict__.update(state.__dict__)
    return logged(lambda: run.steps(SAVED, SAVED + 1))


def save_pickle(rank: int, world: int, folder: str) -> None:
    run = Run(named=False)
    run.steps(0, SAVED)
    if rank == 0:
        Path(folder, "state.pkl").write_bytes(pickle.dumps(run.state))


def test_a_pickle_of_another_rank_keeps_its_residuals_to_that_rank(tmp_path: Path) -> None:
    run_ranks(2, save_pickle, str(tmp_path))
    first, second = run_ranks(2, before_the_group, str(tmp_path))
    assert "dropped" not in first
    assert "residuals of rank 0 of 2 are dropped on rank 1 of 2" in second


def different_checkpoints(rank: int, world: int) -> None:
    """A rank that forgot to load would reduce other buckets with another codec."""
    first = Run()
    first.steps(0, SAVED)
    second = Run()
    if rank == 0:
        second.state.load_state_dict(first.state.state_dict())
    with pytest.raises(RuntimeError, match=r"at step 5 .* on rank 0 and at step 0 .* on rank 1"):
        second.steps(SAVED, SAVED + 1)


def test_ranks_must_resume_at_the_same_step() -> None:
    run_ranks(2, different_checkpoints)


# ---- without processes


def test_other_settings_are_said() -> None:
    saved = gct.GCTState(bits=2.0, hierarchy=[[0, 1], [2, 3]])
    same = gct.GCTState(bits=2.0, hierarchy=[[0, 1], [2, 3]])
    for flat in (False, True):
        assert logged(lambda flat=flat: same.load_state_dict(saved.state_dict(flat=flat))) == ""
    old = saved.state_dict()
    del old["settings"]["reconstruction"]  # as before there were two
    assert logged(lambda: same.load_state_dict(old)) == (
        "gct: other settings than the checkpoint's: "
        "reconstruction is 'unit_gain' and was 'centroid'\n"
    )
    plain = gct.GCTState(bits=2.0, hierarchy=[[0, 1], [2, 3]], reconstruction="centroid")
    assert logged(lambda: plain.load_state_dict(old)) == ""
    other = gct.GCTState(bits=3.0, min_numel=1, hierarchy=[[0, 1], [2, 3]])
    assert logged(lambda: other.load_state_dict(saved.state_dict())) == (
        "gct: other settings than the checkpoint's: "
        "bits is 3.0 and was 2.0, min_numel is 1 and was 1024\n"
    )


def test_flat_form() -> None:
    nested = {
        "a": {"x.y": torch.arange(3), "z": [torch.ones(2), {"w": torch.zeros(())}]},
        "n": 1,
        "none": None,
        "list": [[1, "two"], []],
        "empty": {},
    }
    flat = flatten(nested)
    assert set(flat) == {"a/x.y", "a/z/0", "a/z/1/w", "gct"}
    back = unflatten(flat)
    assert torch.equal(back["a"].pop("x.y"), torch.arange(3))
    assert torch.equal(back["a"]["z"][0], torch.ones(2))
    assert back["a"]["z"][1]["w"].shape == ()
    assert {key: back[key] for key in ("n", "none", "list", "empty")} == {
        key: nested[key] for key in ("n", "none", "list", "empty")
    }


def held(buckets: list[list[str]], came: list[list[str]]) -> list[list[str]]:
    """In which groups buckets are reduced, those before that passed first."""
    parameters = {key: torch.full((2,), float(ord(key))) for key in "abcdef"}
    regroup = Regroup(buckets)
    groups = []
    for index, keys in enumerate(came):
        buffer = torch.cat([parameters[key] for key in keys])
        if regroup.passes(keys, buffer):
            groups.append(keys)
        else:
            regroup.hold(index, keys, [parameters[key] for key in keys], buffer)
    return groups + [[chr(int(g[0])) for g in group.gradients] for group in regroup.groups()]


@pytest.mark.parametrize(
    ("buckets", "came", "expected"),
    [
        (["ab", "cd"], ["ab", "cd"], ["ab", "cd"]),
        (["ab", "cd"], ["a", "bc", "d"], ["ab", "cd"]),
        (["a", "bcd"], ["a", "dc", "b"], ["a", "bcd"]),
        (["ab", "cd"], ["ab", "dc"], ["ab", "cd"]),
        (["ab"], ["ab", "c"], ["ab", "c"]),
        (["ab", "cd"], ["ba", "ce"], ["ba", "ce"]),  # another model: as they come
    ],
)
def test_buckets_are_those_of_the_saved_run(
    buckets: list[str], came: list[str], expected: list[str]
) -> None:
    groups = held([list(bucket) for bucket in buckets], [list(bucket) for bucket in came])
    assert ["".join(group) for group in groups] == expected
