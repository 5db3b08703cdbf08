"""Activation-constrained training: gradients against the explicit loss, and every way of running.

Most comparisons are exact or within a few roundings: the constraint adds a closed formula to a
gradient, and the other side of the comparison is autograd's derivative of the formula's integral.
"""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import assert_same_on_all_ranks, run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import gct
from gct._activation_rate import blend, moments_of, shape_of
from gct._activation_schedule import Schedule
from gct._fit import shape_from_ratio

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ROUNDINGS = 1e-11  # a few hundred float64 roundings, relative to the largest gradient
FLOAT32_ROUNDINGS = 1e-5  # the same in float32


@pytest.fixture(autouse=True)
def _setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread (small tensors, busy machines), and the examples' model within reach."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Block(nn.Module):
    """Two constrained outputs: ``up`` after a ReLU, with exact zeros, and the block itself."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU())
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x))


def make_model(dtype: torch.dtype = torch.float32, blocks: int = 3) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(*(Block() for _ in range(blocks))).to(dtype)


def make_gpt() -> nn.Module:
    from model import GPT, GPTConfig

    torch.manual_seed(3)
    return GPT(GPTConfig(width=32, layers=2, heads=2, context=16))


def inputs(dtype: torch.dtype = torch.float32, rows: int = 32, seed: int = 5) -> Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss_of(output: Tensor) -> Tensor:
    return (output - 1.0).square().mean()


def gradient(model: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """All parameters' gradients of the loss, flat; ``run`` is another way through the model."""
    model.zero_grad()
    loss_of((model if run is None else run)(x)).backward()
    return flat_gradient(model)


def flat_gradient(model: nn.Module) -> Tensor:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([grad.flatten() for grad in grads])


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"error {error:.2e} of the largest gradient"


def constrain(model: nn.Module, strength: float = 0.5, **settings: Any) -> gct.ActivationConstraint:
    """Full strength from the start unless told otherwise."""
    return gct.ActivationConstraint(model, strength, **{"ramp_steps": 0, **settings})


def explicit_rate(a: Tensor, shape: float, eps: float, unit: str, cap: float) -> Tensor:
    """The rate as science has it, differentiable; its constants from this activation alone."""
    magnitude = a.abs()
    mean = scale = 1.0
    if unit == "relative":
        mean = float(magnitude.detach()[magnitude > 0].mean())
        scale = mean / gct.GeneralizedGaussian(shape, 1.0).mean_abs
    return ((magnitude.clamp(max=cap * mean) + eps * mean) / scale).pow(shape).mean()


def explicit_gradient(
    model: nn.Module, x: Tensor, modules: list[str], strength: float, rate: Callable[..., Tensor]
) -> Tensor:
    """Gradient of the loss plus the rates, with nothing of gct's in the backward pass."""
    total = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, _a, out: total.append(rate(out)))
        for name in modules
    ]
    model.zero_grad()
    (loss_of(model(x)) + strength * sum(total)).backward()
    for hook in hooks:
        hook.remove()
    return flat_gradient(model)


# ---- the gradient


@pytest.mark.parametrize("unit", ["relative", "absolute"])
@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("cap", [math.inf, 0.7])
def test_gradient_is_that_of_the_loss_plus_the_rate(unit: Any, shape: float, cap: float) -> None:
    model, x, names = make_model(torch.float64), inputs(torch.float64), ["0", "1.up", "2"]
    plain = gradient(model, x)
    expected = explicit_gradient(
        model, x, names, 0.5, lambda a: explicit_rate(a, shape, 0.1, unit, cap)
    )
    capped = {} if cap == math.inf else {"schedule": "threshold", "threshold": cap}
    with constrain(model, modules=names, unit=unit, shape=shape, eps=0.1, **capped):
        actual = gradient(model, x)
    assert_close(actual, expected, ROUNDINGS)
    # Negative control: the rate's part is far above the tolerance.
    assert (expected - plain).abs().max() > 1e-3 * plain.abs().max()


def test_shape_is_that_of_the_activation() -> None:
    """The same with each module's own shape, from the activation that is constrained."""
    model, x, names = make_model(torch.float64), inputs(torch.float64), ["0", "1.up"]

    def rate(a: Tensor) -> Tensor:
        return explicit_rate(a, float(shape_of(moments_of(a))), 0.1, "relative", math.inf)

    expected = explicit_gradient(model, x, names, 0.5, rate)
    with constrain(model, modules=names, eps=0.1):
        assert_close(gradient(model, x), expected, ROUNDINGS)


@pytest.mark.parametrize("shape", [0.3, 0.4, 0.87, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_shape_from_moments(shape: float, zeros: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = gct.GeneralizedGaussian(shape, 2.5, zeros).sample(40_000, generator)
    moments = moments_of(x)
    assert float(moments[0]) == pytest.approx(1.0 - zeros, abs=0.01)  # 6 standard errors
    exact = shape_from_ratio(float(moments[1] / moments[2].square()))
    # The table's interpolation; at the ends it is clamped.
    assert float(shape_of(moments)) == pytest.approx(min(max(exact, 0.3), 3.0), abs=1e-3)
    # Standard errors with 4,000 elements: 0.009 at 0.3, under 4 % up to 1, 12 % at 3; and the
    # same numbers in float32 differ by its roundings.
    assert float(shape_of(moments)) == pytest.approx(shape, rel=0.4)
    assert float(shape_of(moments_of(x.float()))) == pytest.approx(float(shape_of(moments)), 1e-3)


def test_rate_is_the_code_length_of_the_fit() -> None:
    """What R claims: nats per element under the fitted distribution, up to a constant."""
    fitted = gct.GeneralizedGaussian(0.8, 2.5)
    x = fitted.sample(50_000, torch.Generator().manual_seed(2))
    y = 0.5 * x.sign() * x.abs().pow(1.2)
    rates = [float(((t.abs() / fitted.scale) ** fitted.shape).mean()) for t in (x, y)]
    nats = [-fitted.log_likelihood(t) / t.numel() for t in (x, y)]
    assert rates[0] - rates[1] == pytest.approx(nats[0] - nats[1], rel=1e-9)


def test_exact_zeros_get_no_gradient_and_small_eps_is_finite() -> None:
    a = torch.tensor([0.0, -1e-30, 2.0, 0.0], requires_grad=True)
    model = nn.Identity()
    with constrain(model, modules="", shape=0.3, eps=1e-6):
        model(a).sum().backward()
    assert a.grad is not None
    added = a.grad - 1.0
    assert added[0] == 0.0
    assert added[3] == 0.0
    assert added[1] < -1.0
    assert 0.0 < added[2] < 1.0


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_useless_activation_leaves_the_moments_alone(bad: float) -> None:
    model = nn.Identity()
    with constrain(model, modules="") as act:
        model(torch.full((8,), bad, requires_grad=True)).sum().backward()
        good = torch.linspace(-1.0, 1.0, 8).requires_grad_()
        model(good).sum().backward()
        moments = act.state_dict()["moments"][""]
        assert torch.equal(moments, moments_of(good))
        assert torch.equal(act.state_dict()["start"][""], moments)
        dead = torch.full((8,), bad, requires_grad=True)
        model(dead).sum().backward()
        assert torch.equal(act.state_dict()["moments"][""], moments)
        assert dead.grad is not None
        assert bad != 0.0 or torch.equal(dead.grad, torch.ones(8))


# ---- ways of running


def test_outputs_that_hold_the_activation_first() -> None:
    Pair = namedtuple("Pair", "hidden rest")

    class Wrapped(nn.Module):
        def __init__(self, make: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.make = make

        def forward(self, x: Tensor) -> Any:
            return self.make(x)

    x = inputs(torch.float64)
    expected = x.clone().requires_grad_()
    with constrain(module := nn.Identity(), modules=[module]):
        module(expected).sum().backward()
    for make in (lambda t: (t, "rest"), lambda t: [t, "rest"], lambda t: Pair(t, "rest")):
        module = Wrapped(make)
        with constrain(module, modules=[module]):
            given = x.clone().requires_grad_()
            output = module(given)
            assert type(output) is type(make(x))
            assert output[1] == "rest"
            output[0].sum().backward()
            assert torch.equal(given.grad, expected.grad)
    module = Wrapped(lambda t: {"hidden": t})
    with (
        constrain(module, modules=[module]),
        pytest.raises(TypeError, match=r"expected .* a tensor.* got dict: choose other modules"),
    ):
        module(x)


def test_what_autograd_refuses() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True))
    with (
        constrain(model, modules="0"),
        pytest.raises(RuntimeError, match=r"GctActivationConstraint.*modified inplace"),
    ):
        model(inputs())


def test_second_derivatives_are_refused_and_right_in_a_pause() -> None:
    model, x = make_model(), inputs()
    parameters = list(model.parameters())

    def hessian_product() -> Tensor:
        grads = torch.autograd.grad(loss_of(model(x)), parameters, create_graph=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in grads), parameters)
        return torch.cat([g.flatten() for g in again])

    plain = hessian_product()
    with constrain(model) as act:
        with pytest.raises(RuntimeError, match=r"gct\.Act.* rate of 2 twice .*act\.paused"):
            hessian_product()
        with act.paused():
            assert torch.equal(hessian_product(), plain)
    assert torch.equal(hessian_product(), plain)


def test_a_module_that_runs_twice_has_two_rates() -> None:
    block = make_model(torch.float64, blocks=1)
    x = inputs(torch.float64)

    def twice(t: Tensor) -> Tensor:
        return block(block(t))

    twice_module = nn.Sequential(block, block)
    expected = explicit_gradient(
        twice_module, x, ["0"], 0.5, lambda a: explicit_rate(a, 1.0, 0.1, "absolute", math.inf)
    )
    with constrain(block, modules="", shape=1.0, eps=0.1, unit="absolute"):
        assert_close(gradient(block, x, twice), expected, ROUNDINGS)


def test_evaluation_and_no_grad_are_untouched() -> None:
    model, x = make_model(), inputs()
    plain = gradient(model, x)
    with constrain(model) as act:
        with torch.no_grad():
            assert model(x).grad_fn is None
        model.eval()
        assert torch.equal(gradient(model, x), plain)
        assert act.report() == {}
        model.train()
        assert not torch.equal(gradient(model, x), plain)


def test_strength_zero_only_watches() -> None:
    model, x = make_model(), inputs()
    plain = gradient(model, x)
    with constrain(model, strength=0.0) as act:
        assert torch.equal(gradient(model, x), plain)
        assert set(act.report()) == {"0", "1", "2"}


def test_paused() -> None:
    model, x = make_model(), inputs()
    plain = gradient(model, x)
    with constrain(model) as act:
        with act.paused(), act.paused():
            assert torch.equal(gradient(model, x), plain)
            act.step()  # no warning: it is known why nothing was seen
            act.step()  # nor the second time
        model.zero_grad()
        with act.paused():
            loss = loss_of(model(x))
        loss.backward()  # forward alone
        assert torch.equal(flat_gradient(model), plain)
        loss = loss_of(model(x))
        model.zero_grad()
        with act.paused():
            loss.backward()  # backward alone
        assert torch.equal(flat_gradient(model), plain)
        assert act.report() == {}
        assert not torch.equal(gradient(model, x), plain)


def test_removal_leaves_no_trace() -> None:
    model, x = make_model(), inputs()
    plain = gradient(model, x)
    before = {name: dict(m.__dict__) for name, m in model.named_modules()}
    keys = list(model.state_dict())
    act = constrain(model)
    assert list(model.state_dict()) == keys
    pending = loss_of(model(x))
    assert len(act.report()) == 0
    act.remove()
    act.remove()
    model.zero_grad()
    pending.backward()
    assert torch.equal(flat_gradient(model), plain), "a pending backward pass adds nothing"
    assert torch.equal(gradient(model, x), plain)
    assert {name: dict(m.__dict__) for name, m in model.named_modules()} == before
    assert all(m._forward_hooks == OrderedDict() for m in model.modules())
    act.step()  # the loop may go on calling it


def test_context_manager_removes_on_error() -> None:
    model = make_model()
    with pytest.raises(RuntimeError, match="theirs"), constrain(model):
        raise RuntimeError("theirs")
    assert not any(m._forward_hooks for m in model.modules())


def test_copies_of_the_model_are_not_constrained() -> None:
    model, x = make_model(), inputs()
    plain = gradient(model, x)
    with constrain(model) as act:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(gradient(other, x), plain)
        assert act.report() == {}, "the copies were not watched"
        assert not torch.equal(gradient(model, x), plain)
        for duplicate in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="save its state_dict"):
                duplicate(act)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_regions_count_once(reentrant: bool) -> None:
    model, x = make_model(), inputs().requires_grad_()

    def recomputing(t: Tensor) -> Tensor:
        for block in model:
            t = checkpoint(block, t, use_reentrant=reentrant)
        return t

    plain = gradient(model, x)
    inside = "[0-9]*"  # every module but the root, which checkpointing goes past
    with constrain(model, modules=inside) as act:
        expected = gradient(model, x)
        moments = act.state_dict()["moments"]
    with constrain(model, modules=inside) as act:
        assert torch.equal(gradient(model, x, recomputing), expected)
        assert act._control.passes == len(act.modules) == 3 * 5
        again = act.state_dict()["moments"]
        assert all(torch.equal(again[name], moments[name]) for name in moments)
        # A pause between forward and backward must not change what a recomputation saves.
        loss = loss_of(recomputing(x))
        model.zero_grad()
        with act.paused():
            loss.backward()
        assert torch.equal(flat_gradient(model), plain)


def test_autocast() -> None:
    """The rate meets a bfloat16 gradient with one rounding, from float32 arithmetic."""
    model, x = make_model(), inputs()
    raw: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
        output.retain_grad()
        raw.append(output)

    def run() -> Tensor:
        raw.clear()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        loss_of(output.float()).backward()
        assert raw[0].dtype is torch.bfloat16
        assert raw[0].grad is not None
        return raw[0].grad

    handle = model[1].down.register_forward_hook(keep)  # before the constraint's
    plain = run()
    with constrain(model, strength=20.0, modules="1.down", shape=0.5, eps=0.1):
        actual = run()
    handle.remove()
    a = raw[0].detach().float().requires_grad_()
    (20.0 * explicit_rate(a, 0.5, 0.1, "relative", math.inf)).backward()
    assert a.grad is not None
    expected = (plain.float() + a.grad).bfloat16()
    # Differences of a float32 rounding flip a bfloat16 rounding now and then: one unit, 2^-8.
    assert torch.allclose(actual, expected, rtol=2**-7, atol=0.0)
    assert (actual == expected).float().mean() > 0.98
    assert (actual - plain).abs().max() > 0.1 * plain.abs().max()


def test_grad_scaler() -> None:
    """The scale is a power of two, so unscaled gradients are the same bits as without a scaler."""
    x = inputs()
    plain_model, scaled_model, forgetful_model = (make_model() for _ in range(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1)
    acts = [
        constrain(plain_model),
        constrain(scaled_model, loss_scale=scaler),
        constrain(forgetful_model),
    ]
    models = [plain_model, scaled_model, forgetful_model]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    for step in range(3):  # the scale doubles at every step
        expected = gradient(plain_model, x)
        optimizers[0].step()
        assert scaler.get_scale() == 2.0 ** (12 + step)
        for model, optimizer in zip(models[1:], optimizers[1:], strict=True):
            optimizer.zero_grad()
            scaler.scale(loss_of(model(x))).backward()
            scaler.unscale_(optimizer)
        assert torch.equal(flat_gradient(scaled_model), expected)
        # Negative control: without loss_scale the rate all but disappears.
        assert not torch.allclose(flat_gradient(forgetful_model), expected, rtol=0.01)
        scaler.step(optimizers[1])
        scaler.update()
        forgetful_model.load_state_dict(plain_model.state_dict())
        for act in acts:
            act.step()


def test_accumulation() -> None:
    """Four batches whose losses are divided by 4, and the rates with them."""
    model, parts = make_model(torch.float64), inputs(torch.float64, rows=64).chunk(4)
    with constrain(model, shape=1.0, unit="absolute"):
        expected = sum(gradient(model, part) for part in parts) / 4.0
    for factor in (0.25, lambda: 0.25, lambda: torch.tensor(0.25)):
        with constrain(model, shape=1.0, unit="absolute", loss_scale=factor):
            model.zero_grad()
            for part in parts:
                (loss_of(model(part)) / 4.0).backward()
            assert_close(flat_gradient(model), expected, ROUNDINGS)


def ddp_trains_on_the_mean(rank: int, world: int) -> None:
    settings: dict[str, Any] = {"estimate_every": 2, "ramp_steps": 3, "strength": 0.3}
    shards = [inputs(rows=16, seed=100 + r) for r in range(world)]
    alone = [make_model() for _ in range(world)]
    alone_acts = [constrain(model, **settings) for model in alone]
    ddp = DistributedDataParallel(make_model())
    act = constrain(ddp, **settings)
    assert act.modules == ["0", "1", "2"], "DDP's prefix is not part of the names"
    for _ in range(6):
        expected = sum(gradient(m, x) for m, x in zip(alone, shards, strict=True)) / world
        actual = gradient(ddp, shards[rank])
        assert_close(actual, expected, FLOAT32_ROUNDINGS)
        for model in [ddp.module, *alone]:
            with torch.no_grad():
                start = 0
                for p in model.parameters():
                    p -= 0.1 * actual[start : start + p.numel()].view_as(p)
                    start += p.numel()
        for each in [act, *alone_acts]:
            each.step()
        for parameter in ddp.parameters():
            assert_same_on_all_ranks(parameter, world)
    plain = gradient(copy.deepcopy(ddp.module), shards[rank])
    assert not torch.allclose(plain, gradient(alone[rank], shards[rank]), rtol=0.01)


def test_ddp_trains_on_the_mean_of_the_ranks_rates() -> None:
    run_ranks(2, ddp_trains_on_the_mean)


def fsdp_trains_on_the_mean(rank: int, world: int) -> None:
    shards = [inputs(rows=16, seed=100 + r) for r in range(world)]
    alone = [make_model() for _ in range(world)]
    for model in alone:
        constrain(model)
    sharded = make_model()
    mesh = init_device_mesh("cpu", (world,))
    for block in sharded:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    act = constrain(sharded)
    assert act.modules == ["0", "1", "2"]
    for _ in range(2):  # the second with moments of both
        expected = sum(gradient(m, x) for m, x in zip(alone, shards, strict=True)) / world
        sharded.zero_grad()
        loss_of(sharded(shards[rank])).backward()
        whole = [p.grad.full_tensor().flatten() for p in sharded.parameters()]
        assert_close(torch.cat(whole), expected, FLOAT32_ROUNDINGS)
    plain = gradient(make_model(), shards[rank])
    assert not torch.allclose(plain, gradient(alone[rank], shards[rank]), rtol=0.01)


def test_fully_sharded_model_trains_on_the_mean_too() -> None:
    run_ranks(2, fsdp_trains_on_the_mean)


# torch's own code warns of what it has deprecated while it compiles.
TORCH_DEPRECATES = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@TORCH_DEPRECATES
def test_compiled() -> None:
    check_compiled("aot_eager")


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_operation_keeps_what_it_tells_the_compiler(strength: float) -> None:
    """Sizes, strides and aliasing of the compiled form, for gradients of any layout."""
    module = nn.Identity()
    with constrain(module, strength, modules="") as act:
        key = act._sites[0].key
        for grad in (torch.randn(6, 4), torch.randn(4, 6).T, torch.ones(()).expand(6, 4)):
            for activation in (torch.randn(6, 4), torch.randn(4, 6).T, torch.randn(6, 8)[:, ::2]):
                arguments = (grad, activation, key)
                tests = ("test_schema", "test_faketensor")
                torch.library.opcheck(torch.ops.gct.add_rate, arguments, test_utils=tests)
                added = torch.ops.gct.add_rate(*arguments) - grad
                assert bool(added.abs().max() > 1e-3) == (strength > 0.0)


@pytest.mark.long
@TORCH_DEPRECATES
def test_compiled_by_inductor() -> None:
    check_compiled("inductor")


def check_compiled(backend: str) -> None:
    """One graph without breaks; pause, schedule and removal work without a new compilation."""
    torch._dynamo.reset()
    model, x = make_model(), inputs()
    plain = gradient(model, x)
    act = constrain(model, ramp_steps=2)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    gradient(model, x, compiled)
    act.step()
    half = gradient(model, x, compiled)
    act.step()
    full = gradient(model, x, compiled)
    assert_close(full - plain, 2.0 * (half - plain), 10.0 * FLOAT32_ROUNDINGS)
    assert act._control.passes == 3, "since the last step"
    assert_close(full, gradient(model, x), FLOAT32_ROUNDINGS)
    with act.paused():
        assert_close(gradient(model, x, compiled), plain, FLOAT32_ROUNDINGS)
    assert set(act.report()) == {"0", "1", "2"}
    act.remove()
    assert_close(gradient(model, x, compiled), plain, FLOAT32_ROUNDINGS)


# ---- schedules


def test_schedules() -> None:
    ramp = Schedule("ramp", 10, 1.0)
    assert [ramp.factor(step, 1, 3) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert ramp.cap(5) is None
    layerwise = Schedule("layerwise", 12, 1.0)
    table = [[layerwise.factor(step, place, 3) for place in range(3)] for step in (0, 2, 4, 6, 12)]
    assert table == [[0, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 0.5, 0], [1, 1, 1]]
    threshold = Schedule("threshold", 10, 2.0)
    assert [threshold.cap(step) for step in (0, 5, 10, 99)] == [0.0, 1.0, 2.0, 2.0]
    assert threshold.factor(0, 2, 3) == 1.0
    for kind in ("ramp", "layerwise", "threshold"):
        at_once = Schedule(kind, 0, 2.0)
        assert at_once.factor(0, 2, 3) == 1.0
        assert at_once.cap(0) in (None, 2.0)


def test_layerwise_begins_at_the_front() -> None:
    model, x = make_model(), inputs()
    plain = gradient(model, x)
    act = gct.ActivationConstraint(model, 0.5, schedule="layerwise", ramp_steps=9)
    assert torch.equal(gradient(model, x), plain)
    for _ in range(3):
        act.step()
        changed = gradient(model, x) != plain
    assert changed[: len(changed) // 3].any(), "the first block"
    assert not changed[len(changed) // 3 :].any(), "and nothing behind it"
    for _ in range(6):
        act.step()
        changed = gradient(model, x) != plain
    assert changed[-len(changed) // 3 :].any(), "at last the last block"


def test_moments_are_estimated_at_intervals() -> None:
    model = make_model()
    with constrain(model, estimate_every=3) as act:
        seen = []
        for step in range(7):
            gradient(model, inputs(seed=step))
            seen.append(act.state_dict()["moments"]["0"].tolist())
            act.step()
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5] != seen[6]


def test_strength_can_be_set() -> None:
    model, x = make_model(torch.float64), inputs(torch.float64)
    plain = gradient(model, x)
    with constrain(model, strength=0.25) as act:
        quarter = gradient(model, x)
        act.strength = 0.5
        assert act.strength == 0.5
        assert_close(gradient(model, x) - plain, 2.0 * (quarter - plain), ROUNDINGS)


def test_forgotten_step_warns() -> None:
    model, x = make_model(), inputs(rows=2)

    def accumulate() -> None:
        for _ in range(201):
            gradient(model, x)

    with gct.ActivationConstraint(model) as act:
        for _ in range(3):
            for _ in range(150):
                gradient(model, x)
            act.step()
        with pytest.warns(UserWarning, match="200 backward passes without act.step"):
            accumulate()
        accumulate()  # once is enough
    with constrain(model):  # nothing to wait for
        accumulate()


def test_constraint_without_effect_warns() -> None:
    model = make_model()
    with constrain(model) as act:
        gradient(model, inputs())
        act.step()
        gradient(model.eval(), inputs())
        with pytest.warns(UserWarning, match="no backward pass went through 0"):
            act.step()


def test_state_dict_resumes() -> None:
    def train(model: nn.Module, act: gct.ActivationConstraint, steps: range) -> Tensor:
        for step in steps:
            gradient(model, inputs(seed=step))
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.05 * p.grad
            act.step()
        return flat_gradient(model)

    settings: dict[str, Any] = {"ramp_steps": 8, "estimate_every": 2, "schedule": "layerwise"}
    model = make_model()
    with constrain(model, **settings) as act:
        train(model, act, range(5))
        saved = copy.deepcopy((model.state_dict(), act.state_dict()))
        expected = train(model, act, range(5, 9))
        reported = act.report()
    resumed = make_model()
    resumed.load_state_dict(saved[0])
    with constrain(resumed, **settings) as act:
        act.load_state_dict(pickle.loads(pickle.dumps(saved[1])))
        assert torch.equal(train(resumed, act, range(5, 9)), expected)
        assert act.report() == reported
    with (
        constrain(make_model(blocks=2), **settings) as act,
        pytest.raises(ValueError, match="moments of modules 0, 1, got those of 0, 1, 2"),
    ):
        act.load_state_dict(saved[1])


def test_what_is_no_state_dict_is_refused_and_changes_nothing() -> None:
    with constrain(make_model()) as act:
        before = act.state_dict()
        with pytest.raises(ValueError, match="without moments, start, step"):
            act.load_state_dict({})
        with pytest.raises(ValueError, match="start of modules 0, 1, 2, got those of none"):
            act.load_state_dict({**before, "step": 7, "start": {}})
        with pytest.raises(TypeError, match="step must be a number, got str"):
            act.load_state_dict({**before, "step": "a"})
        for bad in (-5, 1.5):
            with pytest.raises(
                ValueError, match=f"step must be a whole number from 0 on, got {bad}"
            ):
                act.load_state_dict({**before, "step": bad})
        assert act.state_dict() == before


def test_running_moments_are_the_mean_of_old_and_new() -> None:
    old, new = torch.tensor([0.5, 2.0, 8.0]), torch.tensor([1.0, 4.0, 2.0])
    assert torch.equal(blend(old, new), torch.tensor([0.75, 3.0, 5.0]))


# ---- report


def test_report() -> None:
    source = gct.GeneralizedGaussian(0.8, 2.0, zero_fraction=0.3)
    x = source.sample(200_000, torch.Generator().manual_seed(4)).float()
    gain = nn.Parameter(torch.ones(()))
    model = nn.Identity()
    with constrain(model, strength=0.0, modules="") as act:
        model(x * gain).sum().backward()
        [first] = act.report(encoded=True).values()
        model(x * gain / 4.0).sum().backward()
        [second] = act.report(encoded=True).values()
        [absolute] = act.report(step=0.7).values()
        with pytest.raises(ValueError, match="step must be a finite number above 0"):
            act.report(step=0.0)
    assert first.numel == x.numel()
    # 65,536 of the elements are looked at; three standard errors of the fit and of the moments.
    assert first.shape == pytest.approx(source.shape, rel=0.03)
    assert first.std == pytest.approx(source.std, rel=0.03)
    assert first.start_std == pytest.approx(float(x.double().square().mean().sqrt()), rel=1e-5)
    assert first.zero_fraction == pytest.approx(0.3, abs=0.006)
    below = 2.0 * source.cdf(0.1 * source.std) - 1.0
    assert first.small_fraction == pytest.approx(below, abs=0.01)
    assert first.bits == pytest.approx(source.entropy(0.5 * source.std), abs=0.03)
    # A quarter of the scale: 2 bits less per nonzero element at the same fine step, but not one
    # bit less at the same relative error.
    assert second.relative_bits == pytest.approx(first.relative_bits, abs=1e-6)
    assert second.start_std == first.start_std
    assert second.bits < first.bits - 1.0
    assert absolute.bits == pytest.approx(source.entropy(4.0 * 0.7), abs=0.03)
    # The coder's deadzone and tables: at most 5 % from the ideal at its error.
    assert first.encoded_bits is not None
    assert first.encoded_snr_db == pytest.approx(source.snr_db(0.5 * source.std), abs=1.0)
    assert first.encoded_bits == pytest.approx(source.entropy(0.5 * source.std), rel=0.15)
    assert second.encoded_bits == pytest.approx(first.encoded_bits, rel=1e-3)


def test_report_of_dead_activations() -> None:
    model = nn.Identity()
    with constrain(model, modules="") as act:
        model(torch.zeros(64, requires_grad=True)).sum().backward()
        [dead] = act.report(encoded=True).values()
    assert (dead.bits, dead.relative_bits, dead.encoded_bits) == (0.0, 0.0, 0.0)
    assert (dead.zero_fraction, dead.small_fraction, dead.std) == (1.0, 1.0, 0.0)


def test_strength_moves_bits_and_sparsity() -> None:
    """On the example's model: what it is for. Same start, same data, 40 steps."""
    from model import loss_per_byte

    tokens = torch.randint(0, 8, (8, 17), generator=torch.Generator().manual_seed(6))

    def train(strength: float, schedule: Any) -> tuple[float, gct.activation.ActivationReport]:
        model = make_gpt()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        settings = {"modules": "*.up", "schedule": schedule, "ramp_steps": 10}
        with gct.ActivationConstraint(model, strength, **settings) as act:
            for _ in range(40):
                loss = loss_per_byte(model(tokens[:, :-1]), tokens[:, 1:])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                act.step()
            return loss.item(), act.report()["blocks.1.up"]

    free_loss, free = train(0.0, "ramp")
    losses = [free_loss]
    for schedule in ("ramp", "layerwise"):
        loss, whole = train(0.1, schedule)
        losses.append(loss)
        assert whole.bits < free.bits - 1.0, "the scale shrinks"
    loss, small = train(0.3, "threshold")
    losses.append(loss)
    assert small.relative_bits < free.relative_bits - 0.2, "the form changes"
    assert small.small_fraction > 2.0 * free.small_fraction
    assert max(losses) < free_loss + 0.3, "it still learns: the first loss is 5.5"


# ---- modules and arguments


def test_default_modules() -> None:
    class LlamaMLP(Block):
        pass

    class LlamaDecoderLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_layernorm = nn.LayerNorm(16)
            self.mlp = LlamaMLP()

    class DenseLayer(nn.Module):
        """One matrix: no block."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

    model = nn.Module()
    model.layers = nn.ModuleList([LlamaDecoderLayer(), LlamaDecoderLayer()])
    model.head = DenseLayer()
    with constrain(model) as act:
        assert act.modules == ["layers.0", "layers.0.mlp", "layers.1", "layers.1.mlp"]

    class PreNormBlock(Block):
        """A block, and no norm."""

    class PatchEmbedLayer(Block):
        """No block."""

    with constrain(nn.Sequential(PatchEmbedLayer(), PreNormBlock(), nn.LayerNorm(16))) as act:
        assert act.modules == ["1"]
    with constrain(make_gpt()) as act:
        assert act.modules == ["blocks.0", "blocks.1"]
    with constrain(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2)
    ) as act:
        assert act.modules == ["layers.0", "layers.1"]


def test_chosen_modules() -> None:
    model = make_model()
    for wanted, names in (
        ("?", ["0", "1", "2"]),
        (["2", "0.*"], ["0.up", "0.up.0", "0.up.1", "0.down", "2"]),
        (model[1], ["1"]),
        ([model[2].down, "0"], ["0", "2.down"]),
    ):
        with constrain(model, modules=wanted) as act:
            assert act.modules == names
    x = inputs(torch.float64)
    model = model.double()
    plain = gradient(model, x)
    with constrain(model, modules="0"):
        whole = gradient(model, x)
    with constrain(model, modules={"0": 0.5, "*": 0.0}):
        assert_close(gradient(model, x) - plain, 0.5 * (whole - plain), 1e3 * ROUNDINGS)


def test_wrong_modules_name_the_candidates() -> None:
    plain = nn.Sequential(OrderedDict(first=nn.Linear(2, 2), act=nn.GELU()))
    with pytest.raises(ValueError, match=r"found no .*modules=.*first \(Linear\), act \(GELU\)"):
        gct.ActivationConstraint(plain)
    with pytest.raises(ValueError, match=r"blocks\.\* is not in the model.*first \(Linear\)"):
        constrain(plain, modules="blocks.*")
    with pytest.raises(ValueError, match="this Linear is not in the model"):
        constrain(plain, modules=nn.Linear(2, 2))
    with pytest.raises(TypeError, match="names, patterns or modules, got int"):
        constrain(plain, modules=[3])
    with pytest.raises(TypeError, match=r"or a mapping.*, got int"):
        constrain(plain, modules=3)
    with pytest.raises(ValueError, match="at least one"):
        constrain(plain, modules=[])
    with pytest.raises(ValueError, match="weight from 0 on for 'first', got -1"):
        constrain(plain, modules={"first": -1.0})
    assert not any(m._forward_hooks for m in plain.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -1.0}, "strength must be"),
        ({"strength": math.nan}, "strength must be"),
        ({"eps": 0.0}, "eps must be"),
        ({"threshold": -1.0}, "threshold must be"),
        ({"shape": 0.2}, "shape must be from 0.3 to 3"),
        ({"unit": "other"}, "unit must be"),
        ({"schedule": "cosine"}, "schedule must be one of ramp, layerwise, threshold"),
        ({"ramp_steps": -1}, "ramp_steps must be"),
        ({"estimate_every": 0}, "estimate_every must be"),
        ({"estimate_every": True}, "estimate_every must be"),
        ({"loss_scale": -1.0}, "loss_scale .* must be a finite number above 0, got -1"),
        ({"loss_scale": math.nan}, "loss_scale .* must be a finite number above 0, got nan"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=message):
        constrain(model, **settings)
    assert not any(m._forward_hooks for m in model.modules())


def test_numpy_scalars_are_numbers() -> None:
    settings = {"strength": 0.5, "eps": 0.25, "threshold": 0.5, "shape": 0.5, "loss_scale": 2.0}
    model = make_model()
    act = constrain(
        model,
        **{name: np.float32(value) for name, value in settings.items()},
        ramp_steps=np.int64(2),
        estimate_every=np.int32(2),
        modules={"*": np.float32(0.5)},
    )
    assert (act.strength, type(act.strength)) == (0.5, float)
    model(torch.randn(4, 16)).sum().backward()
    act.step()


@pytest.mark.parametrize("name", ["strength", "eps", "threshold", "shape", "loss_scale"])
def test_arguments_must_be_numbers(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}.* must be a number, got str"):
        constrain(make_model(), **{name: "a"})


@pytest.mark.parametrize("bad", [None, True, "x", torch.ones(2)])
def test_loss_scale_returns_a_number(bad: Any) -> None:
    model = make_model()
    with constrain(model, loss_scale=lambda: bad), pytest.raises(TypeError, match="returns must"):
        gradient(model, inputs())
    with constrain(model, loss_scale=lambda: -2.0), pytest.raises(ValueError, match="got -2"):
        gradient(model, inputs())
    with pytest.raises(TypeError, match=r"loss_scale .* must be a number, got bool"):
        constrain(model, loss_scale=True)


def test_a_module_takes_one_constraint_at_a_time() -> None:
    model, x = make_model(), inputs()
    plain = gradient(model, x)
    constrain(model, modules="1")  # nobody keeps it, and it acts
    assert not torch.equal(gradient(model, x), plain)
    with pytest.raises(ValueError, match="1 has an ActivationConstraint already"):
        constrain(model)
    assert not model[0]._forward_hooks, "nothing is changed"
    with constrain(model, modules=["0", "2"]) as act:
        assert act.modules == ["0", "2"]
    copied = copy.deepcopy(model)
    with constrain(copied) as act:  # whose hooks are inert
        assert act.modules == ["0", "1", "2"]


# ---- the documentation


def test_documented_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (EXAMPLES.parent / "docs" / "methods.md").read_text()
    section = re.search(r"## ACT.*?\n(.*?)(?=\n## |\Z)", page, re.DOTALL)[1]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(code, {})
    assert re.findall(
        r"^(layers\.\S+): shape \S+, \S+ bits", capsys.readouterr().out, re.MULTILINE
    ) == ["layers.0", "layers.0.linear1", "layers.1", "layers.1.linear1"]
