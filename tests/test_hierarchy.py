"""Ranks that share a host add up first: on real processes, against a model, and over netlab.

The model is that of tests/test_collectives.py between hosts, on top of exact sums inside each.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from laboratory import needs_hosts, netlab
from log_capture import captured_log
from netlab_ranks import CALLS, NUMEL
from open_mpi import mpirun_on, needs_open_mpi_5, two_hosts
from ranks import assert_same_on_all_ranks, run_ranks
from test_collectives import DTYPES, MODELS, SLICE, laplace
from test_hook import batches, gradients, make_model, train, wrap
from torch import Tensor, nn

import gct
from gct._channel import Run
from gct._hosts import Place, find_hosts, given_hosts, local_size, own_place
from gct._parameters import Layout
from gct._recording import read_recording

TWO_BY_TWO = [[0, 1], [2, 3]]


# ---- the model


def model_host(inputs: list[Tensor], shard: slice, owner: int) -> Tensor:
    """The mean of one host's values of a shard: its owner adds the others to its own, in order."""
    total = inputs[owner][shard].float().clone()
    for local, other in enumerate(inputs):
        if local != owner:
            total += other[shard].float()
    return total / len(inputs)


def shards(numel: int, count: int) -> list[slice]:
    share = -(-numel // count)
    return [slice(min(numel, share * i), min(numel, share * (i + 1))) for i in range(count)]


def model_hierarchy(
    inputs: list[Tensor], hosts: list[list[int]], codec: gct.Codec, algorithm: str
) -> Tensor:
    result = torch.empty(inputs[0].numel())
    for local, shard in enumerate(shards(result.numel(), len(hosts[0]))):
        means = [model_host([inputs[rank] for rank in host], shard, local) for host in hosts]
        if means[0].numel():
            result[shard] = MODELS[algorithm](means, codec, float(len(hosts)))
    return result


# ---- against the model


def hook_on(state: gct.GCTState, gradient: Tensor, parameter: nn.Parameter) -> Tensor:
    """Through the hook, as compiled DDP calls it: one gradient at a time."""
    return gct.hook(state, (gradient, parameter)).wait()


def sweep(
    rank: int,
    world: int,
    hosts: list[list[int]],
    numels: list[int],
    codecs: list[gct.Codec],
    dtypes: tuple[torch.dtype, ...],
) -> int:
    """Every combination through the hook of one state for each codec; how many there were."""
    parameters = []  # they stay: the hook knows them by identity
    for codec in codecs:
        for algorithm in ("one_shot", "two_shot"):
            state = gct.GCTState(
                bits=codec.bits,
                snr_db=codec.snr_db,
                codec=codec.kind,
                reconstruction=codec.reconstruction,
                start_step=0,
                min_numel=0,
                algorithm=algorithm,
                hierarchy=hosts,
            )
            for numel in numels:
                for dtype in dtypes:
                    inputs = [laplace(numel, 1000 * numel + r, dtype) for r in range(world)]
                    parameters.append(nn.Parameter(torch.zeros(numel, 1, dtype=dtype)))
                    gradient = inputs[rank].clone().view(numel, 1)
                    result = hook_on(state, gradient, parameters[-1])
                    assert result is gradient
                    assert_same_on_all_ranks(result, world)
                    expected = model_hierarchy(inputs, hosts, codec, algorithm).to(dtype)
                    message = f"{numel} {dtype} {codec} {algorithm}"
                    assert torch.equal(result.view(-1), expected), message
            state.close()
    return len(parameters)


CODECS = [gct.Codec(bits=3.0), gct.Codec("raw"), gct.Codec(snr_db=15.0)]


@pytest.mark.parametrize(
    ("hosts", "numels", "codecs"),
    [
        (TWO_BY_TWO, [1, 3, 7, 257, 1009], CODECS),
        ([[0, 1, 2], [3, 4, 5]], [1, 2, 5, 6, 1009], CODECS[:2]),
        ([[3, 0], [1, 4], [2, 5]], [1, 257, 3000], CODECS[:1]),
    ],
    ids=["2x2", "2x3", "3x2 in another order"],
)
def test_the_hook_gives_what_the_model_gives(
    hosts: list[list[int]], numels: list[int], codecs: list[gct.Codec]
) -> None:
    world = sum(map(len, hosts))
    counts = run_ranks(world, sweep, hosts, numels, codecs, DTYPES)
    assert counts == [len(codecs) * 2 * len(numels) * len(DTYPES)] * world


def test_buckets_of_several_slices() -> None:
    """Odd, so that they are padded, and even; the second one is reduced in place."""
    numels = [2 * SLICE + 12_345, 2 * SLICE + 12_346]
    run_ranks(4, sweep, TWO_BY_TWO, numels, CODECS[:1], DTYPES[:1])


def test_the_model_notices_what_it_should() -> None:
    """Negative control: other hosts, another order inside one, a rank taken twice."""
    inputs = [laplace(5000, seed) for seed in range(4)]
    codec = gct.Codec(bits=3.0)
    for algorithm in MODELS:

        def model(inputs: list[Tensor], hosts: list[list[int]], how: str = algorithm) -> Tensor:
            return model_hierarchy(inputs, hosts, codec, how)

        right = model(inputs, TWO_BY_TWO)
        assert not torch.equal(model(inputs, [[0, 2], [1, 3]]), right)
        assert not torch.equal(
            model([inputs[0], inputs[1], inputs[2], inputs[2]], TWO_BY_TWO), right
        )
        assert not torch.equal(MODELS[algorithm](inputs, codec, 4.0), right), "the flat form"


# ---- with DDP


def ddp_modes(rank: int, world: int) -> None:
    settings: dict[str, Any] = {"bits": 4.0, "start_step": 1, "min_numel": 0, "hierarchy": 2}
    for options in ({"find_unused_parameters": True}, {"static_graph": True}):
        losses = train(wrap(make_model(), gct.GCTState(**settings), **options), rank, world, 20)
        assert losses[-1] < 0.9 * losses[0]
    for more in ({"error_feedback": True}, {"rounding": "stochastic"}, {"codec": "raw"}):
        if "codec" in more:
            settings.pop("bits")
        train(wrap(make_model(), gct.GCTState(**settings, **more)), rank, world, 5)
    model = make_model().to(torch.bfloat16)
    state = gct.GCTState(**settings)
    train(wrap(model, state), rank, world, 5, torch.bfloat16)
    assert state.stats()["local_bytes"] > 0


def test_ddp_modes() -> None:
    run_ranks(4, ddp_modes)


def first_gradients(rank: int, world: int, settings: dict[str, Any]) -> Tensor:
    """Of a model's first backward pass, the same on all ranks."""
    state = gct.GCTState(start_step=0, min_numel=0, **settings)
    ddp = wrap(make_model(), state)
    [(x, y)] = batches(rank, world, 1)
    (ddp(x) - y).square().mean().backward()
    assert_same_on_all_ranks(gradients(ddp), world)
    return gradients(ddp)


def hosts_by_variables(rank: int, world: int, per_host: list[int]) -> list[str]:
    """torchrun's variables make the same hosts as lists do, or none. What the log warns of."""
    ends = torch.tensor(per_host).cumsum(0)
    host = int((ends <= rank).sum())
    os.environ.update(
        GROUP_RANK=str(host),
        LOCAL_WORLD_SIZE=str(per_host[host]),
        LOCAL_RANK=str(rank - int(ends[host]) + per_host[host]),
    )
    with captured_log(logging.WARNING) as messages:
        found = first_gradients(rank, world, {})
        flat = first_gradients(rank, world, {"hierarchy": "off"})
        hosts = first_gradients(rank, world, {"hierarchy": 2})
    assert not torch.equal(hosts, flat)
    assert torch.equal(found, hosts if per_host == [2, 2] else flat)
    return messages


def test_hosts_are_found_by_torchruns_variables() -> None:
    assert run_ranks(4, hosts_by_variables, [2, 2]) == [[]] * 4


def test_hosts_of_different_sizes_are_no_hierarchy() -> None:
    [[message], *others] = run_ranks(4, hosts_by_variables, [1, 3])
    assert message == (
        'gct: hierarchy="auto" is off: hosts have different numbers of ranks: [1, 3]'
    )
    assert others == [[]] * 3


def subgroup(rank: int, world: int) -> None:
    """Hosts are numbered by the group's ranks."""
    members = [1, 2, 3, 4]
    group = dist.new_group(members)
    if rank == 0:
        return
    state = gct.GCTState(group, bits=3.0, start_step=0, hierarchy=2, algorithm="one_shot")
    inputs = [laplace(5000, r) for r in members]
    gradient = laplace(5000, rank).view(5000, 1)
    result = hook_on(state, gradient, nn.Parameter(torch.zeros(5000, 1)))
    expected = model_hierarchy(inputs, TWO_BY_TWO, state.codec, "one_shot")
    assert torch.equal(result.view(-1), expected)


def test_subgroups() -> None:
    run_ranks(5, subgroup)


def one_machine(rank: int, world: int) -> None:
    """Without a launcher's variables all ranks here share a host."""
    found = first_gradients(rank, world, {})
    assert torch.equal(found, first_gradients(rank, world, {"hierarchy": "off"}))
    assert not torch.equal(found, first_gradients(rank, world, {"hierarchy": 2}))


def test_one_host_is_no_hierarchy() -> None:
    run_ranks(4, one_machine)


def counted(rank: int, world: int, numel: int) -> dict[str, Any]:
    result = {}
    for hierarchy in ("off", 2):
        state = gct.GCTState(bits=2.0, start_step=0, hierarchy=hierarchy)
        parameter = nn.Parameter(torch.zeros(numel, 1))
        for _ in range(3):
            hook_on(state, laplace(numel, rank).view(numel, 1), parameter)
        result[hierarchy] = state.stats()
    return result


def test_bytes_and_memory() -> None:
    numel = 1 << 20
    for stats in run_ranks(4, counted, numel):
        flat, hierarchy = stats["off"], stats[2]
        assert flat["local_bytes"] == 0
        # Two hosts: each rank sends its half of the bucket once, at 2 bits an element.
        assert hierarchy["wire_bytes"] == 3 * (numel // 2) * 2 // 8
        assert flat["wire_bytes"] == 3 * 2 * numel * 3 // 4 * 2 // 8
        assert hierarchy["raw_bytes"] == 3 * 2 * 4 * (numel // 2) // 2
        # To the other rank of the host, the half that it adds up and the own one when it is done.
        # As it is, without a header.
        assert hierarchy["local_bytes"] == 3 * 2 * 4 * numel // 2
        assert hierarchy["bits_per_element"] == pytest.approx(2.0, rel=1e-3)
        # docs/architecture.md: three slices of float32 in step 1, half of each from the other
        # rank; the codec's own is less than in the flat form.
        slices = 3 * 4 * SLICE // 2
        assert hierarchy["scratch_bytes"] <= flat["scratch_bytes"] + slices
        assert hierarchy["scratch_bytes"] >= slices // 3, "one slice of three at least"


def with_checksums(rank: int, world: int) -> None:
    """Inside a host the values are in segments then, else as they are: the bits are the same."""
    for numel in (1, 5, 5001, 3 << 19):
        parameter = nn.Parameter(torch.zeros(numel, 1))
        gradient = laplace(numel, rank).view(numel, 1)
        plain, checked = (
            hook_on(
                gct.GCTState(bits=3.0, start_step=0, hierarchy=2, min_numel=0, checksum=checksum),
                gradient,
                parameter,
            )
            for checksum in (False, True)
        )
        assert torch.equal(plain, checked)


def test_checksums_change_no_bit() -> None:
    run_ranks(4, with_checksums)


def with_hashes(rank: int, world: int) -> None:
    os.environ["GCT_DEBUG"] = "hash"
    train(wrap(make_model(), gct.GCTState(start_step=1, hierarchy=2)), rank, world, 4)


def test_debug_hashes_agree() -> None:
    run_ranks(4, with_hashes)


def monitored(rank: int, world: int, folder: str) -> tuple[set[str], set[str]]:
    monitor = gct.Monitor(f"{folder}/run.jsonl", interval=1, rank=None, histograms=["*"])
    model = make_model()
    state = gct.GCTState(start_step=1, model=model, monitor=monitor, hierarchy=2)
    train(wrap(model, state), rank, world, 4)
    monitor.close()
    recording = read_recording(f"{folder}/run.rank{rank}.jsonl")
    assert recording.samples
    return set(recording.samples[-1].numel), set(recording.histograms)


def test_ranks_of_a_host_monitor_their_shares(tmp_path: Path) -> None:
    seen = run_ranks(4, monitored, str(tmp_path))
    names = {name for name, p in make_model().named_parameters() if p.dim() > 1}
    for i in range(2):
        assert seen[0][i] | seen[1][i] == names == seen[2][i] | seen[3][i]


def other_hosts(rank: int, world: int) -> None:
    """Residuals mean another thing with other hosts."""
    settings: dict[str, Any] = {"error_feedback": True, "start_step": 0, "min_numel": 0}
    state = gct.GCTState(hierarchy=2, **settings)
    parameter = nn.Parameter(torch.zeros(64, 64))
    hook_on(state, laplace(4096, rank).view(64, 64), parameter)
    saved = state.state_dict()
    assert saved["hosts"] == 2
    assert saved["residuals"]["0"].count_nonzero() > 0
    for hierarchy in (2, "off"):
        again = gct.GCTState(hierarchy=hierarchy, **settings)
        again.load_state_dict(saved)
        assert again.state_dict()["hosts"] == 2
        again._open_reducer()
        assert bool(again.state_dict()["residuals"]) == (hierarchy == 2)


def test_residuals_of_other_hosts_are_dropped() -> None:
    run_ranks(4, other_hosts)


def drop_states_in_a_row(rank: int, world: int) -> None:
    """Model and state go while their last callbacks may still be on an engine's thread."""
    for seed in range(4):
        ddp = wrap(make_model(seed), gct.GCTState(start_step=0, hierarchy=2))
        for x, y in batches(rank, world, 2):
            (ddp(x) - y).square().mean().backward()
        del ddp


def test_states_can_be_dropped_right_after_backward() -> None:
    run_ranks(4, drop_states_in_a_row)


# ---- what goes wrong


def refused(rank: int, world: int) -> None:
    parameter = nn.Parameter(torch.zeros(64, 64))
    for hierarchy, text in (
        (3, "don't divide the group's 4"),
        ([[0, 1], [2, 4]], "ranks 0 to 3 once"),
        ([[0, 1]], "ranks 0 to 3 once"),
        (2 + 2 * (rank == 3), "hierarchy is 2 on rank 0 and 4 on rank 3"),
    ):
        state = gct.GCTState(hierarchy=hierarchy)
        for _ in range(2):
            with pytest.raises(ValueError, match=text):
                hook_on(state, torch.ones(64, 64), parameter)


def test_hosts_that_do_not_fit_are_refused_on_all_ranks() -> None:
    run_ranks(4, refused)


def losing_a_rank(rank: int, world: int, step: str, how: str) -> str:
    """Rank 3 is lost as it is about to start a step of a bucket."""
    state = gct.GCTState(start_step=0, hierarchy=2)
    parameter = nn.Parameter(torch.zeros(1000, 1000))
    hook_on(state, torch.ones(1000, 1000), parameter)
    channel = getattr(state._reducer._hierarchy._channels, step)
    if rank == 3:

        def lose(*args: Any, **kwargs: Any) -> None:
            if how == "stuck":
                time.sleep(30)
            os._exit(3)

        channel.submit = lose
        hook_on(state, torch.ones(1000, 1000), parameter)
    began = time.monotonic()
    error = ""
    while not error:
        try:
            hook_on(state, torch.ones(1000, 1000), parameter)
        except RuntimeError as caught:
            error = f"step {state.step}: {caught}"
    # A step waits 2 s for the group's timeout and 2 s for others' reports at most, and so may the
    # one that follows; the rest is for a busy machine.
    assert time.monotonic() - began < 12
    return error


DOING = {
    "scatter": "adding up inside the host",
    "cross": "reducing between hosts",
    "gather": "sending round inside the host",
}


@pytest.mark.parametrize(
    ("step", "how"),
    [("scatter", "killed"), ("cross", "killed"), ("gather", "killed"), ("cross", "stuck")],
)
def test_a_lost_rank_is_an_exception_on_the_others(step: str, how: str) -> None:
    ranks = run_ranks(4, losing_a_rank, step, how, group_timeout=2.0, timeout=30.0, lost={3})
    for rank, error in enumerate(ranks[:3]):
        # Lost at the last step, rank 3 is missed by the other host in the bucket after it.
        number = 2 if step == "gather" and rank < 2 else 1
        assert error.startswith(f"step {number}: ")
        assert f"parameter 0 of step {number} failed on rank {rank} of 4 while" in error
        assert any(doing in error for doing in DOING.values())
        # The others may not have given up yet.
        assert re.search(r"Dead, stuck or still waiting: rank (\d, )*3\.", error)
    # Rank 2 shares the host, rank 1 the shard: they are the ones to see it at the step itself.
    assert DOING[step] in ranks[1 if step == "cross" else 2]


# ---- between hosts


RANKS = str(Path(__file__).with_name("netlab_ranks.py"))


def assert_half_the_bytes(results: dict[str, Any]) -> None:
    flat, found = results["flat"], results["found"]
    # In the flat form a rank sends 3/2 of a bucket, 2/3 of it to the other host; with two on a
    # host that is two buckets. Here each sends its half. Headers and acknowledgements are the
    # same share of both.
    assert found["sent"] <= 0.55 * flat["sent"]
    assert flat["sent"] > CALLS * 2 * NUMEL * 2 // 8
    assert found["checksum"] != flat["checksum"]
    assert found["local_bytes"] > 0 == flat["local_bytes"]


@needs_hosts
@pytest.mark.alone
def test_half_the_bytes_leave_each_of_two_hosts(tmp_path: Path) -> None:
    hosts = [f"--name=gct-hier-{os.getpid()}", "--hosts=2", "--rate=100mbit", "--per-host=2"]
    result = netlab("run", *hosts, "--no-probe", "--", sys.executable, RANKS, str(tmp_path))
    assert result.returncode == 0, result.stderr
    for rank in range(4):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        found = results["found"]
        assert_half_the_bytes(results)
        assert results["by names"]["checksum"] == found["checksum"]
        # 100 Mbit/s take 0.3 s for 4 MB in float32 from each host.
        assert results["codec auto"]["codec"] == "gg"
        assert results["codec auto"]["checksum"] == found["checksum"]
        # Making groups and the first all-reduce are in it, and other work on this machine may be.
        assert results["codec auto"]["first_seconds"] < 2.0


@needs_hosts
@needs_open_mpi_5
def test_hosts_under_mpirun(tmp_path: Path) -> None:
    """Ranks dealt to the hosts in turn: who shares one isn't told by their numbers."""
    meet = {"MASTER_ADDR": "h0", "MASTER_PORT": "29513"}
    with two_hosts() as lab:
        words = [RANKS, str(tmp_path)]
        result = mpirun_on(lab, tmp_path, *words, map_by="node", environment=meet)
    assert result.returncode == 0, result.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    places = [Place(*results["place"]) for results in ranks]
    assert find_hosts(places) == ([[0, 2], [1, 3]], "")
    assert [place.local_size for place in places] == [2, 2, 2, 2], "Open MPI says so"
    for results in ranks:
        assert_half_the_bytes(results)
        assert results["found"]["checksum"] == ranks[0]["found"]["checksum"]


# ---- who shares a host


def test_hosts_from_places() -> None:
    def find(*places: tuple[str, int | None]) -> tuple[list[list[int]], str]:
        return find_hosts([Place(*place) for place in places])

    assert find(("a", 2), ("a", 2), ("b", 2), ("b", 2)) == (TWO_BY_TWO, "")
    assert find(("a", None), ("b", None), ("a", None), ("b", None)) == ([[0, 2], [1, 3]], "")
    for nothing_gained in ([("a", 2)] * 2, [("a", 1), ("b", 1)], [("a", None)], []):
        assert find(*nothing_gained) == ([], "")
    hosts, doubt = find(("a", 2), ("a", 2), ("b", 1))
    assert not hosts
    assert "[2, 1]" in doubt
    hosts, doubt = find(("a", 1), ("a", 1), ("b", 1), ("b", 1))
    assert not hosts
    assert "[0, 1] seem to share a host on which the launcher has started 1" in doubt


def test_places_from_variables() -> None:
    torchrun = {"GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "2"}
    assert own_place(torchrun) == own_place({**torchrun, "LOCAL_RANK": "3"})
    assert own_place(torchrun) != own_place({**torchrun, "GROUP_RANK": "0"})
    assert own_place(torchrun).local_size == 4
    by_name = own_place({})
    assert socket.gethostname() in by_name.host
    assert by_name.local_size is None
    for name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "LOCAL_WORLD_SIZE"):
        assert own_place({name: "2"}) == Place(by_name.host, 2)
    assert local_size({"LOCAL_WORLD_SIZE": "many"}) is None


def test_given_hosts() -> None:
    assert given_hosts(2, 4) == TWO_BY_TWO
    assert given_hosts([[3, 0], [2, 1]], 4) == [[3, 0], [2, 1]]
    for nothing_gained in (4, 1, [[0, 1, 2, 3]], [[0], [1], [2], [3]]):
        assert given_hosts(nothing_gained, 4) == []


@pytest.mark.parametrize(
    "value", ["on", "12", 0, -2, True, 1.5, None, [], [[]], [[0, 1], [2]], [0, 1], [["a", "b"]]]
)
def test_what_is_no_hierarchy_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="hierarchy must be"):
        gct.GCTState(hierarchy=value)


def test_layouts_are_cut_where_shards_are() -> None:
    layout = Layout(
        (1, 2, 3),
        (Run(10, True), Run(12, False, 4), Run(0, False), Run(5, False)),
        (None, "a", "b", "c"),
    )
    assert layout.cut(slice(0, 27)) is layout
    assert layout.cut(slice(0, 12)).runs == (Run(10, True), Run(2, False, 4))
    assert layout.cut(slice(12, 27)) == Layout(
        (1, 2, 3), (Run(10, False, 4), Run(5, False)), ("a", "c")
    )
    assert layout.cut(slice(27, 27)).runs == ()
