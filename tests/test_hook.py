"""The DDP hook, on real processes: training with and without it, and what binds hook authors."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import assert_same_on_all_ranks, run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gct
from gct._parameters import ParameterKeys, make_layout
from gct._residuals import Residuals

INPUTS, HIDDEN, OUTPUTS = 64, 192, 8
SMALL_BUCKETS = 0.05  # MB: several buckets, and DDP regroups them after the first step


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        nn.GELU(),
        nn.LayerNorm(HIDDEN),
        nn.Linear(HIDDEN, HIDDEN),
        nn.GELU(),
        nn.Linear(HIDDEN, OUTPUTS),
    )


def wrap(model: nn.Module, state: Any = None, **options: Any) -> DistributedDataParallel:
    """DDP with the hook; state "off" leaves DDP as it is."""
    ddp = DistributedDataParallel(model, bucket_cap_mb=SMALL_BUCKETS, **options)
    if state != "off":
        ddp.register_comm_hook(state, gct.hook)
    return ddp


def batches(
    rank: int, world: int, steps: int, dtype: torch.dtype = torch.float32, seed: int = 7
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's part of a regression that has something to learn."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(INPUTS, OUTPUTS, generator=generator) / INPUTS**0.5
    for _ in range(steps):
        x = torch.randn(32 * world, INPUTS, generator=generator)
        yield x[rank::world].to(dtype), (x @ teacher)[rank::world].to(dtype)


def train(
    ddp: DistributedDataParallel,
    rank: int,
    world: int,
    steps: int = 12,
    dtype: torch.dtype = torch.float32,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[float]:
    """Losses of this rank; the parameters of all ranks are the same bits afterwards."""
    optimizer = optimizer or torch.optim.AdamW(ddp.parameters(), lr=2e-3)
    losses = []
    for x, y in batches(rank, world, steps, dtype):
        loss = (ddp(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert_same_parameters(ddp, world)
    return losses


def assert_same_parameters(module: nn.Module, world: int) -> None:
    for parameter in module.parameters():
        assert_same_on_all_ranks(parameter, world)


def gradients(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().float() for p in module.parameters() if p.grad is not None])


# ---- training


def trains_like_plain(rank: int, world: int) -> None:
    steps = 40
    plain = train(wrap(make_model(), "off"), rank, world, steps)
    assert plain[-1] < 0.5 * plain[0], "there is something to learn"

    def final(**settings: Any) -> float:
        return train(wrap(make_model(), gct.GCTState(**settings)), rank, world, steps)[-1]

    assert final(codec="raw") == pytest.approx(plain[-1], rel=1e-3)
    progress = plain[0] - plain[-1]
    for settings in (
        {"bits": 4.0},
        {"codec": "fixed", "bits": 4},
        {"codec": "eg", "bits": 4.0},
        {"snr_db": 20.0},
        {"bits": 4.0, "rounding": "stochastic"},
        {"bits": 4.0, "effort": "high"},
        {"bits": 4.0, "allocation": 0.5, "low_rank": 4},
        {"bits": 4.0, "reconstruction": "centroid"},
        {"bits": 4.0, "algorithm": "two_shot"},
        {"bits": 3.0, "error_feedback": True},
    ):
        # Gradients are right to 1 or 10 % in norm: the loss has to come nearly as far down.
        assert final(**settings) < plain[-1] + 0.1 * progress, settings


@pytest.mark.parametrize("world", [2, 3])
def test_training_comes_as_far_as_without(world: int) -> None:
    run_ranks(world, trains_like_plain)


def plain_at_first(rank: int, world: int) -> None:
    """Before start_step the hook does what DDP does, to the last bit; afterwards it does not."""
    state = gct.GCTState(bits=2.0, start_step=3, min_numel=0)
    ddp, reference = wrap(make_model(), state), wrap(make_model(), "off")
    for step, (x, y) in enumerate(batches(rank, world, 5)):
        for module in (ddp, reference):
            module.zero_grad()
            (module(x) - y).square().mean().backward()
        assert torch.equal(gradients(ddp), gradients(reference)) == (step < 3)
    assert state.stats()["steps"] == 5


def test_first_steps_are_plain() -> None:
    run_ranks(2, plain_at_first)


def exempt_parameters(rank: int, world: int) -> None:
    """1-D parameters come through exactly; matrices carry the codec's error and no more."""
    state = gct.GCTState(bits=2.0, start_step=0, min_numel=0)
    ddp, reference = wrap(make_model(), state), wrap(make_model(), "off")
    for x, y in batches(rank, world, 3):  # the second and third with regrouped buckets
        for module in (ddp, reference):
            module.zero_grad()
            (module(x) - y).square().mean().backward()
        for mine, exact in zip(ddp.parameters(), reference.parameters(), strict=True):
            error = (mine.grad - exact.grad).norm() / exact.grad.norm()
            if exact.dim() < 2:
                assert error < 1e-6, "sums in another order, nothing else"
            else:
                assert 1e-3 < error < 0.5, "10 dB at 2 bits is an error of 0.3 in norm"


def test_one_dimensional_parameters_are_exempt() -> None:
    run_ranks(2, exempt_parameters)


def statistics(rank: int, world: int) -> dict[str, Any]:
    model = make_model()
    state = gct.GCTState(bits=2.0, model=model)
    train(wrap(model, state), rank, world, steps=10)
    return {**state.stats(), "names": [name for name, p in model.named_parameters() if p.dim() > 1]}


def test_stats() -> None:
    numel = sum(p.numel() for p in make_model().parameters())
    for world in (2, 4):
        for stats in run_ranks(world, statistics):
            assert stats["steps"] == 10
            assert stats["raw_bytes"] == pytest.approx(8 * 2 * 4 * numel * (world - 1) / world)
            assert stats["plain_bytes"] == pytest.approx(
                2 * 2 * 4 * numel * (world - 1) / world, rel=1e-3
            )
            assert stats["ratio"] == stats["raw_bytes"] / stats["wire_bytes"] > 7
            # Small chunks, and every vector at 32 bits: above the target, far below 32.
            assert 1.8 < stats["bits_per_element"] < 3.5
            assert stats["nonfinite_runs"] == 0
            assert set(stats["parameters"]) == set(stats["names"])
            for parameter in stats["parameters"].values():
                assert 0.1 < parameter["shape"] < 10
                assert parameter["scale"] > 0


# ---- what DDP does with a hook


def ddp_modes(rank: int, world: int) -> None:
    settings: dict[str, Any] = {"bits": 4.0, "start_step": 1, "min_numel": 0}
    for options in (
        {"find_unused_parameters": True},
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"broadcast_buffers": False},
    ):
        train(wrap(make_model(), gct.GCTState(**settings), **options), rank, world)
    for dtype in (torch.bfloat16, torch.float64):
        model = make_model().to(dtype)
        losses = train(wrap(model, gct.GCTState(**settings)), rank, world, 30, dtype)
        assert losses[-1] < losses[0]
    for state in (None, dist.group.WORLD):
        train(wrap(make_model(), state), rank, world)


def test_ddp_modes() -> None:
    run_ranks(2, ddp_modes)


class Unused(nn.Module):
    """Half of it takes part in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = nn.ModuleList([nn.Linear(INPUTS, OUTPUTS), nn.Linear(INPUTS, OUTPUTS)])

    def forward(self, x: Tensor, half: int) -> Tensor:
        return self.halves[half](x)


def unused_parameters(rank: int, world: int) -> None:
    torch.manual_seed(0)
    state = gct.GCTState(bits=4.0, start_step=0, min_numel=0)
    ddp = wrap(Unused(), state, find_unused_parameters=True)
    for step, (x, y) in enumerate(batches(rank, world, 6)):
        ddp.zero_grad(set_to_none=True)
        (ddp(x, step % 2) - y).square().mean().backward()
        for parameter in ddp.parameters():
            if parameter.grad is not None:
                assert_same_on_all_ranks(parameter.grad, world)
    assert state.stats()["steps"] == 6


def test_unused_parameters() -> None:
    run_ranks(2, unused_parameters)


def accumulation(rank: int, world: int) -> None:
    """no_sync leaves gradients local; the next pass reduces their sum, once."""
    state = gct.GCTState(codec="raw", start_step=0, min_numel=0)
    ddp, reference = wrap(make_model(), state), wrap(make_model(), "off")
    for module in (ddp, reference):
        for i, (x, y) in enumerate(batches(rank, world, 6)):
            with module.no_sync() if i % 3 < 2 else contextlib.nullcontext():
                (module(x) - y).square().mean().backward()
    torch.testing.assert_close(gradients(ddp), gradients(reference), rtol=1e-5, atol=1e-7)
    assert state.stats()["steps"] == 2


def test_gradient_accumulation() -> None:
    run_ranks(2, accumulation)


def uneven_inputs(rank: int, world: int) -> None:
    """Ranks that have run out shadow the others with all-zero buckets."""
    ddp = wrap(make_model(), gct.GCTState(bits=4.0, start_step=1, min_numel=0))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    with ddp.join():
        for x, y in batches(rank, world, 3 + 2 * rank):
            optimizer.zero_grad()
            (ddp(x) - y).square().mean().backward()
            optimizer.step()
    assert all(torch.isfinite(p).all() for p in ddp.parameters())
    assert_same_parameters(ddp, world)


def test_join_with_uneven_inputs() -> None:
    run_ranks(3, uneven_inputs)


def two_models(rank: int, world: int) -> None:
    """Each with its own state, in one backward; a shared state is refused."""
    states = [gct.GCTState(bits=4.0, start_step=1) for _ in range(2)]
    models = [wrap(make_model(seed), state) for seed, state in enumerate(states)]
    for x, y in batches(rank, world, 4):
        sum((model(x) - y).square().mean() for model in models).backward()
    for model, state in zip(models, states, strict=True):
        assert_same_on_all_ranks(gradients(model), world)
        assert state.stats()["steps"] == 4

    defaults = [wrap(make_model(seed)) for seed in range(2)]
    for x, y in batches(rank, world, 4):
        for model in defaults:
            (model(x) - y).square().mean().backward()
    assert_same_on_all_ranks(gradients(defaults[1]), world)

    shared = gct.GCTState()
    first, second = wrap(make_model(), shared), wrap(make_model(), shared)
    [(x, y)] = batches(rank, world, 1)
    (first(x) - y).square().mean().backward()
    with pytest.raises(RuntimeError, match="already serves another model"):
        (second(x) - y).square().mean().backward()


def test_two_models() -> None:
    run_ranks(2, two_models)


def nonfinite(rank: int, world: int, bad: float, hierarchy: Any = "off") -> None:
    """One rank's overflow is everybody's, so that all of them skip the step."""
    for algorithm in ("one_shot", "two_shot"):
        for settings in ({"bits": 2.0}, {"codec": "fixed", "bits": 4}, {"error_feedback": True}):
            state = gct.GCTState(
                start_step=0, min_numel=0, algorithm=algorithm, hierarchy=hierarchy, **settings
            )
            ddp = wrap(make_model(), state)
            optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
            before = copy.deepcopy(list(ddp.parameters()))
            for step, (x, y) in enumerate(batches(rank, world, 3)):
                optimizer.zero_grad()
                loss = scaler.scale((ddp(x) - y).square().mean())
                loss.backward() if step != 1 or rank != world - 1 else (loss * bad).backward()
                finite = bool(torch.isfinite(gradients(ddp)).all())
                assert finite == (step != 1), "on every rank"
                scaler.step(optimizer)
                scaler.update()
                if step == 0:
                    before = copy.deepcopy(list(ddp.parameters()))
                elif step == 1:
                    pairs = zip(ddp.parameters(), before, strict=True)
                    assert all(torch.equal(a, b) for a, b in pairs), "the step is skipped"
            assert scaler.get_scale() == 4.0
            assert all(torch.isfinite(p).all() for p in ddp.parameters())
            assert_same_parameters(ddp, world)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_gradients_reach_all_ranks(bad: float) -> None:
    run_ranks(3, nonfinite, bad)


def test_nonfinite_gradients_reach_other_hosts() -> None:
    run_ranks(4, nonfinite, float("nan"), 2)


def compiled_tuple(rank: int, world: int) -> None:
    """Compiled DDP calls hook(state, (gradient, parameter)) and ignores what it returns."""
    state = gct.GCTState(bits=8.0, start_step=1, error_feedback=True)
    matrix, vector = nn.Parameter(torch.zeros(64, 64)), nn.Parameter(torch.zeros(64))
    torch.manual_seed(rank)
    for _ in range(4):
        for parameter in (vector, matrix):
            gradient = torch.randn_like(parameter)
            exact = gradient.clone()
            dist.all_reduce(exact)
            done = gct.hook(state, (gradient, parameter))
            torch.testing.assert_close(gradient, exact / world, rtol=0, atol=0.1)
            assert done.value() is gradient
            assert_same_on_all_ranks(gradient, world)
    assert state.step == 3
    assert state.stats()["wire_bytes"] > 0
    gct.hook(None, (torch.ones(3), nn.Parameter(torch.zeros(3))))


def test_compiled_tuple() -> None:
    run_ranks(2, compiled_tuple)


def settings_differ(rank: int, world: int) -> None:
    efforts: tuple[gct.codec.Effort, ...] = ("normal", "high")
    for state, text in (
        (gct.GCTState(bits=2.0 + rank), r"bits is 2\.0 on rank 0 and 3\.0 on rank 1"),
        (gct.GCTState(effort=efforts[rank]), "effort is 'normal' on rank 0 and 'high' on rank 1"),
    ):
        ddp = wrap(make_model(), state)
        [(x, y)] = batches(rank, world, 1)
        with pytest.raises(ValueError, match=text):
            (ddp(x) - y).square().mean().backward()


def test_settings_must_agree() -> None:
    run_ranks(2, settings_differ)


def peer_dies(rank: int, world: int, settings: dict[str, Any]) -> str:
    ddp = wrap(make_model(), gct.GCTState(min_numel=0, **settings))
    for step, (x, y) in enumerate(batches(rank, world, 3)):
        if step == 2 and rank == 1:
            raise SystemExit(0)
        try:
            (ddp(x) - y).square().mean().backward()
        except RuntimeError as error:
            return str(error)
    raise AssertionError("a step without a peer has succeeded")


@pytest.mark.parametrize(
    "settings", [{"start_step": 0}, {"start_step": 10}, {"start_step": 0, "rate_weight": 1e-3}]
)
def test_a_dead_peer_fails_backward(settings: dict[str, Any]) -> None:
    message, _ = run_ranks(2, peer_dies, settings, group_timeout=5.0, lost={1})
    assert "bucket 0 of step 2 failed on rank 0 of 2" in message


# ---- error feedback


def residual_identities(rank: int, world: int, algorithm: str, per_host: int) -> None:
    """Nothing is lost: what all ranks received plus what they still owe is what they had.

    Summed over ranks, W * (received means) + residuals = gradients, over any number of steps. With
    L ranks on a host each of them owes the error of its share of the host's mean: L times as much.
    """
    state = gct.GCTState(
        bits=2.0,
        error_feedback=True,
        start_step=0,
        min_numel=0,
        algorithm=algorithm,
        hierarchy=per_host,
    )
    ddp = wrap(make_model(), state)
    parameters = list(ddp.module.parameters())
    owed = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for x, y in batches(rank, world, 4):  # buckets are regrouped after the first
        with ddp.no_sync():
            ddp.zero_grad()
            (ddp(x) - y).square().mean().backward()
            exact = [p.grad.double().clone() for p in parameters]
        ddp.zero_grad()
        (ddp(x) - y).square().mean().backward()
        for debt, parameter, gradient in zip(owed, parameters, exact, strict=True):
            dist.all_reduce(gradient)
            debt += gradient - world * parameter.grad.double()
    residuals = state.state_dict()["residuals"]
    keys = [state._keys.key(p) for p in parameters]
    for key, debt in zip(keys, owed, strict=True):
        left = residuals[key].double() * per_host
        dist.all_reduce(left)
        scale = debt.abs().max().item()
        # float32 sums of a handful of terms, against the largest of them
        torch.testing.assert_close(left.view_as(debt), debt, rtol=0, atol=1e-5 * scale + 1e-6)
    largest = max(float(r.abs().max()) for r in residuals.values())
    assert largest > 0, "2 bits leave something over"


@pytest.mark.parametrize("algorithm", ["one_shot", "two_shot"])
@pytest.mark.parametrize(("world", "per_host"), [(3, 1), (4, 2)])
def test_error_feedback_loses_nothing(algorithm: str, world: int, per_host: int) -> None:
    run_ranks(world, residual_identities, algorithm, per_host)


def resumed(rank: int, world: int) -> None:
    """state_dict, load: the same bits as without a break."""

    def run(
        ddp: DistributedDataParallel, state: gct.GCTState, data: list[tuple[Tensor, Tensor]]
    ) -> None:
        for x, y in data:
            ddp.zero_grad()
            (ddp(x) - y).square().mean().backward()

    settings: dict[str, Any] = {
        "bits": 2.0,
        "error_feedback": True,
        "start_step": 1,
        "min_numel": 0,
        "rounding": "stochastic",
        "codec": "gg",
        "algorithm": "two_shot",
    }
    data = list(batches(rank, world, 6))
    state = gct.GCTState(**settings)
    ddp = wrap(make_model(), state)
    run(ddp, state, data[:4])
    saved = pickle.loads(pickle.dumps(state.state_dict()))
    assert saved["step"] == 4
    assert saved["rank"] == rank

    again = gct.GCTState(**settings)
    again.load_state_dict(saved)
    assert again.step == 4
    loaded = again.state_dict()["residuals"]
    assert loaded.keys() == saved["residuals"].keys()
    assert any(residual.count_nonzero() > 0 for residual in loaded.values())
    for key, residual in saved["residuals"].items():
        assert torch.equal(loaded[key], residual)
    resumed_ddp = wrap(make_model(), again)
    run(resumed_ddp, again, data[4:5])
    run(ddp, state, data[4:5])
    # DDP's first buckets are cut otherwise, so only the debts carried over can be compared.
    assert again.step == state.step == 5

    stranger = gct.GCTState(**settings)
    stranger.load_state_dict({**saved, "world_size": world + 1})
    assert not stranger.state_dict()["residuals"], "an error of another world is dropped"

    copied = pickle.loads(pickle.dumps(state))
    assert copied.step == state.step
    assert copied.codec == state.codec
    deep = copy.deepcopy(state)
    for key, residual in state.state_dict()["residuals"].items():
        assert torch.equal(deep.state_dict()["residuals"][key], residual)


def test_state_dict_and_pickle() -> None:
    run_ranks(2, resumed)


# ---- without processes


def test_registration_rules_of_ddp() -> None:
    """DDP reads these; see torch/nn/parallel/distributed.py, _check_comm_hook."""
    import inspect

    signature = inspect.signature(gct.hook)
    assert list(signature.parameters) == ["state", "bucket"]
    assert signature.parameters["bucket"].annotation is dist.GradBucket
    assert signature.return_annotation == torch.futures.Future[torch.Tensor]
    assert gct.hook.__name__ == gct.hook.__qualname__ == "hook"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bits": 0.05}, "bits must be from"),
        ({"bits": 2.0, "snr_db": 20.0}, "at most one of"),
        ({"codec": "zip"}, 'codec must be one of .*"gg".*"auto", got .zip'),
        ({"codec": "fixed", "bits": 2.5}, "whole number"),
        ({"codec": "fixed", "snr_db": 20.0}, "whole number"),
        ({"codec": "fixed", "bits": 4, "rounding": "stochastic"}, "deterministic"),
        ({"step": -1.0}, "step must be"),
        ({"snr_db": float("nan")}, "snr_db must be"),
        ({"allocation": 0.3}, "multiple of 1/8"),
        ({"allocation": "best"}, "allocation must be"),
        ({"rounding": "up"}, "rounding must be"),
        ({"effort": "highest"}, "effort must be"),
        ({"effort": "high", "codec": "eg"}, "effort.*kind"),
        ({"reconstruction": "mean"}, "reconstruction must be"),
        (
            {"reconstruction": "unit_gain", "error_feedback": True},
            "unit_gain.*error_feedback don't go together",
        ),
        ({"error_feedback": "yes"}, "error_feedback"),
        ({"start_step": -1}, "start_step"),
        ({"min_numel": 1.5}, "min_numel"),
        ({"algorithm": "ring"}, "algorithm"),
        ({"rate_weight": -0.1}, "rate_weight must be"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        gct.GCTState(**settings)


@pytest.mark.parametrize(
    ("codec", "name", "value"),
    [
        ("fixed", "allocation", "mse"),
        ("fixed", "allocation", 0.5),
        ("raw", "allocation", "mse"),
        ("raw", "rounding", "stochastic"),
        ("raw", "error_feedback", True),
    ],
)
def test_settings_without_effect_are_refused(codec: Any, name: str, value: Any) -> None:
    message = f'{name}={value!r} has no effect with codec="{codec}", .*: leave it out, or take'
    with pytest.raises(ValueError, match=message):
        gct.GCTState(codec=codec, **{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"codec": "raw", "element_scales": True},
            'element_scales=True has no effect with .*"raw"',
        ),
        ({"codec": "raw", "seed": 1}, 'seed=1 has no effect with codec="raw"'),
        ({"seed": 1}, 'seed=1 has no effect with rounding="deterministic"'),
    ],
    ids=str,
)
def test_settings_without_effect_are_warned_about(settings: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=f"{message}, .*: leave it out, or take") as warnings:
        gct.GCTState(**settings)
    assert [warning.filename for warning in warnings] == [__file__]


@pytest.mark.parametrize(
    "settings",
    [
        {"codec": "fixed", "bits": {0: 3, 9: 2}, "allocation": "relative"},
        {"codec": "fixed", "allocation": np.float32(1), "element_scales": True},
        {"codec": "fixed", "error_feedback": True, "reconstruction": "centroid"},
        {"codec": "raw", "allocation": 1.0, "error_feedback": False, "reconstruction": "centroid"},
        {"codec": "raw", "rounding": "deterministic", "element_scales": False, "seed": 0},
        {"codec": "eg", "allocation": "mse", "rounding": "stochastic", "seed": 1},
        {"codec": "auto", "allocation": "mse", "element_scales": True},
    ],
    ids=str,
)
def test_settings_that_mean_something_or_no_more_than_the_default(settings: dict[str, Any]) -> None:
    gct.GCTState(**settings)  # a warning is an error here, too


@pytest.mark.parametrize(
    ("settings", "reconstruction"),
    [
        ({}, "unit_gain"),
        ({"codec": "eg", "step": 0.5}, "unit_gain"),
        ({"codec": "auto", "bits": {0: 2.0, 9: 1.0}}, "unit_gain"),
        ({"reconstruction": "centroid"}, "centroid"),
        ({"error_feedback": True}, "centroid"),
        ({"codec": "fixed", "bits": 2}, "centroid"),
        ({"codec": "raw"}, "centroid"),
        ({"snr_db": 12.0}, "centroid"),
        ({"rounding": "stochastic"}, "centroid"),
        ({"effort": "high"}, "centroid"),
    ],
    ids=str,
)
def test_levels_have_unit_gain_where_they_can(
    settings: dict[str, Any], reconstruction: str
) -> None:
    assert gct.GCTState(**settings).codec.reconstruction == reconstruction


def test_a_codec_is_no_name_of_one() -> None:
    with pytest.raises(TypeError, match=r'codec must be .*"auto", got Codec: bits.*own arguments'):
        gct.GCTState(codec=gct.Codec(bits=2))


def test_numpy_scalars_are_settings() -> None:
    """As Python's own: ranks compare settings as JSON, and checkpoints keep them."""
    state = gct.GCTState(
        bits=np.float32(1.5),
        allocation=np.float64(0.5),
        low_rank=np.int64(2),
        start_step=np.int64(3),
        min_numel=np.int32(10),
        rate_weight=np.float32(0.5),
        rounding="stochastic",
        seed=np.uint8(7),
        hierarchy=np.int64(2),
    )
    settings = json.loads(json.dumps(state.state_dict()["settings"]))
    assert (settings["bits"], settings["rate_weight"]) == (1.5, 0.5)
    assert [settings[name] for name in ("low_rank", "seed", "hierarchy")] == [2, 7, 2]
    assert (state.start_step, state.min_numel, state.seed) == (3, 10, 7)
    with pytest.raises(ValueError, match="start_step"):
        gct.GCTState(start_step=True)


def other_default_dtype(rank: int, world: int, settings: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float64)
    state = gct.GCTState(start_step=0, min_numel=0, **settings)
    ddp = wrap(make_model(), state)
    for x, y in batches(rank, world, 2):
        (ddp(x.double()) - y.double()).square().mean().backward()
    for parameter in ddp.parameters():
        assert_same_on_all_ranks(parameter.grad, world)
    assert all(r.dtype == torch.float32 for r in state.state_dict()["residuals"].values())


@pytest.mark.parametrize(
    ("world", "settings"), [(2, {"error_feedback": True}), (4, {"hierarchy": 2, "bits": 3.0})]
)
def test_float64_as_default_dtype(world: int, settings: dict[str, Any]) -> None:
    run_ranks(world, other_default_dtype, settings)


def test_hook_refuses_other_states() -> None:
    with pytest.raises(TypeError, match=r"gct\.GCTState"):
        gct.hook({"bits": 2}, (torch.ones(3), nn.Parameter(torch.zeros(3))))


def test_state_dict_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        gct.GCTState().load_state_dict({"step": 3})


def test_gradients_on_other_devices_are_refused() -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        state = gct.GCTState(start_step=0)
        with pytest.raises(ValueError, match="CPU"):
            gct.hook(state, (torch.ones(3, device="meta"), nn.Parameter(torch.zeros(3))))
    finally:
        dist.destroy_process_group()


def test_odd_dtypes_go_plain_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        state = gct.GCTState(start_step=0)
        gradient = torch.ones(3000, dtype=torch.complex64)
        with caplog.at_level(logging.WARNING, logger="gct"):
            for _ in range(2):
                gct.hook(state, (gradient, nn.Parameter(torch.zeros(3000, dtype=torch.complex64))))
        assert [r.message for r in caplog.records if "complex64" in r.message] == [
            "gct: torch.strided torch.complex64 gradients are reduced without compression"
        ]
    finally:
        dist.destroy_process_group()


def parameters_of(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [nn.Parameter(torch.zeros(shape)) for shape in shapes]


def test_layout_merges_exempt_neighbours() -> None:
    keys = ParameterKeys(None)
    parameters = parameters_of((8,), (4,), (8, 4), (), (70_000,), (3, 5, 2), (0, 4))
    for parameter in parameters:
        keys.add(parameter)
    layout = make_layout(parameters, keys)
    assert layout.runs == (
        (12, True, 0),
        (32, False, 4),
        (1, True, 0),
        (70_000, False, 0),
        (30, False, 10),
        (0, False, 0),
    )
    assert layout.keys == (None, "2", None, "4", "5", "6")


def test_residuals_follow_parameters_into_other_buckets() -> None:
    keys = ParameterKeys(None)
    a, b, c = parameters_of((4, 2), (3, 3), (5, 1))
    for parameter in (a, b, c):
        keys.add(parameter)
    residuals = Residuals(keys)
    first: Callable[[int, list[Tensor]], Tensor] = residuals.for_bucket
    first(0, [a, b]).copy_(torch.arange(17.0))
    first(1, [c]).copy_(torch.arange(5.0) + 100)
    assert residuals.for_bucket(0, [a, b])[3] == 3
    regrouped = residuals.for_bucket(0, [c, a])
    assert regrouped.tolist() == [100, 101, 102, 103, 104, 0, 1, 2, 3, 4, 5, 6, 7]
    assert residuals.for_bucket(1, [b]).tolist() == list(range(8, 17))
    assert set(residuals.state_dict()) == {"0", "1", "2"}
    wrong = Residuals(keys)
    wrong.load_state_dict({"0": torch.ones(7)})
    with pytest.raises(ValueError, match="another model"):
        wrong.for_bucket(0, [a])


def only_large_buckets(rank: int, world: int) -> gct.state.Stats:
    state = gct.GCTState(start_step=0, min_numel=10**6)
    ddp = wrap(make_model(), state)
    for x, y in batches(rank, world, 2):
        (ddp(x) - y).square().mean().backward()
    return state.stats()


def test_min_numel_leaves_small_buckets_uncompressed() -> None:
    for stats in run_ranks(2, only_large_buckets):
        assert stats["wire_bytes"] == 0
        assert stats["plain_bytes"] > 0
        assert stats["bits_per_element"] == 32


def end_groups_in_a_row(rank: int, world: int) -> None:
    """Each group ends while Gloo's thread may still hold what waited for its last all-reduce."""
    dist.destroy_process_group()
    parameter = nn.Parameter(torch.zeros(3000))
    for _ in range(100):
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        state = gct.GCTState()
        gct.hook(state, (torch.ones(3000), parameter))
        dist.destroy_process_group()
        del state
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())


def test_groups_can_end_right_after_a_plain_all_reduce() -> None:
    run_ranks(1, end_groups_in_a_row)


def drop_states_in_a_row(rank: int, world: int) -> None:
    """Model and state go while their last callbacks may still be on the engine's thread."""
    for seed in range(6):
        ddp = wrap(make_model(seed), gct.GCTState(start_step=0))
        for inputs, targets in batches(rank, world, 2):
            nn.functional.mse_loss(ddp(inputs), targets).backward()
        del ddp


def test_states_can_be_dropped_right_after_backward() -> None:
    run_ranks(2, drop_states_in_a_row)
