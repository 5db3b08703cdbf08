"""Scales of single elements: element_scales=True."""

from __future__ import annotations

import threading
from typing import Any, Literal

import pytest
import torch
from log_capture import captured_log
from ranks import assert_same_on_all_ranks, run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gct
from gct import _C
from gct._element_scales import DECAY, ElementScales, _weight, factor_of, finish_after
from gct._parameters import ParameterKeys

ROWS, COLUMNS = 64, 256
STEPS = 60  # until scales are nearly those of the elements alone
LARGE = 10.0  # times the other columns


class Product(nn.Module):
    """A linear map whose gradient is whatever the batch is: d/dW of sum(W * x)."""

    def __init__(self, shape: tuple[int, ...] = (ROWS, COLUMNS), dtype: Any = torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(shape[-1], dtype=dtype))  # travels uncompressed

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum() + (self.bias * x[0]).sum()


def uneven(step: int, rank: int) -> Tensor:
    """Every eighth column is LARGE times the others, in every step."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(ROWS, COLUMNS, generator=generator)
    x[:, ::8] *= LARGE
    return x


# Errors are what is looked at, and levels of unit gain would hide in theirs what is lost.
LEAST_ERROR: dict[str, Any] = {"bits": 1.2, "min_numel": 0, "reconstruction": "centroid"}


def train(state: gct.GCTState, model: Product, steps: range, rank: int) -> None:
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gct.hook)
    for step in steps:
        ddp.zero_grad()
        ddp(uneven(step, rank)).backward()


def gradients_after(rank: int, world: int, steps: int, **settings: Any) -> tuple[Tensor, Tensor]:
    """Of the last step: as reduced with gct, and the exact mean."""
    model = Product()
    state = gct.GCTState(**{**LEAST_ERROR, "start_step": 2, **settings})
    train(state, model, range(steps), rank)
    exact = sum(uneven(steps - 1, r) for r in range(world)) / world
    assert model.weight.grad is not None
    return model.weight.grad, exact


def errors(reduced: Tensor, exact: Tensor) -> tuple[float, float]:
    """Relative, of the small columns and of the large ones."""
    large = torch.arange(COLUMNS) % 8 == 0
    small, large = (
        float((reduced - exact)[:, part].norm() / exact[:, part].norm()) for part in (~large, large)
    )
    return small, large


def errors_by_rank(rank: int, world: int, settings: dict[str, Any]) -> list[tuple[float, float]]:
    """Without scales and with them."""
    both = []
    for scaled in (False, True):
        reduced, exact = gradients_after(rank, world, STEPS, element_scales=scaled, **settings)
        assert_same_on_all_ranks(reduced, world)
        both.append(errors(reduced, exact))
    return both


@pytest.mark.parametrize(
    ("world", "settings"),
    [
        (2, {}),
        (3, {"algorithm": "two_shot"}),
        (4, {"hierarchy": 2}),
        (2, {"codec": "fixed", "bits": 2}),
    ],
)
def test_small_elements_get_through(world: int, settings: dict[str, Any]) -> None:
    """Beside columns that are always ten times as large they are nearly lost."""
    for (small, large), (scaled_small, scaled_large) in run_ranks(world, errors_by_rank, settings):
        # Measured: small columns 0.95 to 0.99 (codes of 2 bits: 0.68), scaled 0.66 to 0.76 (0.36);
        # large ones 0.11 to 0.14 (0.41), scaled 0.49 to 0.60 (0.42): same inputs on all machines.
        assert scaled_small < 0.85 * small
        assert max(large, scaled_large) < 0.65


# Each of up to ten steps rounds four times, by 2^-24, and its mean square is a sum in float32.
TOLERANCE = 120 * 2**-24


def after(average: Tensor, gradient: Tensor) -> Tensor:
    """The memory after one more step."""
    square = gradient.double().square()
    return DECAY * average + (1 - DECAY) * square / square.mean()


def learned(rank: int, world: int) -> None:
    """The moving average of squares over each step's mean square; plain steps count as well."""
    model = Product()
    state = gct.GCTState(bits=2.0, min_numel=0, element_scales=True, model=model)
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gct.hook)
    expected = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    for step in range(6):
        ddp.zero_grad()
        ddp(uneven(step, rank)).backward()
        expected = after(expected, model.weight.grad)
        memory = state.state_dict()["element_scales"]
        assert list(memory) == ["weight"]
        assert memory["weight"]["steps"] == step + 1
        torch.testing.assert_close(
            memory["weight"]["averages"].double(), expected.flatten(), rtol=TOLERANCE, atol=0
        )


def test_what_is_learned() -> None:
    run_ranks(2, learned)


def overflow(rank: int, world: int, start_step: int) -> None:
    """A gradient with NaN or infinity makes a step that is skipped: nothing is learned from it."""
    model = Product()
    state = gct.GCTState(
        bits=2.0, min_numel=0, element_scales=True, start_step=start_step, model=model
    )
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gct.hook)
    for step, bad in enumerate([None, None, float("nan"), float("inf"), None]):
        before = state.state_dict()["element_scales"]["weight"]
        x = uneven(step, rank)
        if bad is not None and rank == 1:
            x[3, 5] = bad
        ddp.zero_grad()
        ddp(x).backward()
        assert bool(model.weight.grad.isfinite().all()) == (bad is None)
        memory = state.state_dict()["element_scales"]["weight"]
        assert (memory["steps"] == before["steps"]) == (bad is not None)
        assert torch.equal(memory["averages"], before["averages"]) == (bad is not None)
        assert_same_on_all_ranks(memory["averages"], world)


@pytest.mark.parametrize("start_step", [1, 100])
def test_an_overflow_leaves_no_trace(start_step: int) -> None:
    run_ranks(2, overflow, start_step)


def half_width(rank: int, world: int, dtype: torch.dtype) -> None:
    """As large as float16 goes, so that a quotient larger than the gradient would be infinite."""
    model = Product(dtype=dtype)
    state = gct.GCTState(bits=3.0, min_numel=0, element_scales=True, start_step=1)
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gct.hook)
    unit = 1000.0  # the largest of 16,384 normal values is 4 to 5
    for step in range(STEPS):
        ddp.zero_grad()
        ddp((unit * uneven(step, rank)).to(dtype)).backward()
    exact = sum((unit * uneven(STEPS - 1, r)).to(dtype).double() for r in range(world)) / world
    assert_same_on_all_ranks(model.weight.grad, world)
    small, large = errors(model.weight.grad.double(), exact)
    # Measured: 0.22 and 0.16; without scales 0.46 and 0.04.
    assert small < 0.3
    assert large < 0.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    run_ranks(2, half_width, dtype)


def other_default(rank: int, world: int) -> None:
    torch.set_default_dtype(torch.float64)
    test = Product(dtype=torch.float64)
    state = gct.GCTState(bits=2.0, min_numel=0, element_scales=True, start_step=1, model=test)
    assert state.state_dict()["element_scales"]["weight"]["averages"].dtype == torch.float32
    ddp = DistributedDataParallel(test)
    ddp.register_comm_hook(state, gct.hook)
    for step in range(3):
        ddp(uneven(step, rank)).backward()
    assert state.state_dict()["element_scales"]["weight"]["steps"] == 3


def test_another_default_dtype() -> None:
    run_ranks(2, other_default)


def unused(rank: int, world: int) -> None:
    """A step without a gradient, zeros under find_unused_parameters, leaves the scales alone."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Product(), Product()

        def forward(self, x: Tensor, both: bool) -> Tensor:
            return self.first(x) + (self.second(x) if both else 0)

    model = Sometimes()
    state = gct.GCTState(bits=2.0, min_numel=0, element_scales=True, model=model)
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    ddp.register_comm_hook(state, gct.hook)
    for step in range(9):
        ddp.zero_grad()
        ddp(uneven(step, rank), both=step < 3 or step == 8).backward()
        memory = state.state_dict()["element_scales"]["second.weight"]
        if step == 2:
            before = memory
        if step == 7:
            assert memory["steps"] == before["steps"] == 3
            assert torch.equal(memory["averages"], before["averages"])
    exact = sum(uneven(8, r) for r in range(world)) / world
    # 2 bits are 10 dB and more, once: there are two ranks.
    assert (model.second.weight.grad - exact).norm() < 0.4 * exact.norm()


def test_parameters_that_take_no_part() -> None:
    run_ranks(2, unused)


def channels_last(rank: int, world: int) -> None:
    """Gradients lie in memory as their parameters do, and so do the scales."""
    torch.manual_seed(0)
    model = nn.Conv2d(8, 32, 3).to(memory_format=torch.channels_last)
    state = gct.GCTState(bits=8.0, min_numel=0, element_scales=True, start_step=1, model=model)
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gct.hook)
    expected = torch.zeros(model.weight.numel(), dtype=torch.float64)
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        ddp.zero_grad()
        ddp(torch.randn(4, 8, 6, 6)).square().mean().backward()
        assert model.weight.grad.is_contiguous(memory_format=torch.channels_last)
        expected = after(expected, model.weight.grad.permute(0, 2, 3, 1).flatten())
    averages = state.state_dict()["element_scales"]["weight"]["averages"].double()
    torch.testing.assert_close(averages, expected, rtol=TOLERANCE, atol=0)


def test_channels_last() -> None:
    run_ranks(2, channels_last)


def from_other_memories(rank: int, world: int, change: str, fresh: bool) -> str:
    """Scales that differ would make results that differ: it has to be said before."""
    model = Product()
    state = gct.GCTState(bits=2.0, min_numel=0, element_scales=True, model=model)
    train(state, model, range(3), rank)
    saved = state.state_dict()
    of_weight = saved["element_scales"]["weight"]
    if rank == 1 and change == "values":
        of_weight["averages"][7] *= 1.001
    elif rank == 1 and change == "steps":
        of_weight["steps"] += 1
    elif rank == 1:  # another model's
        of_weight["averages"] = of_weight["averages"][:5]
    if fresh:
        model = Product()
        state = gct.GCTState(bits=2.0, min_numel=0, element_scales=True, model=model)
    state.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="scales of elements") as caught:
        train(state, model, range(3, 4), rank)
    return str(caught.value)


@pytest.mark.parametrize("change", ["values", "steps", "size"])
@pytest.mark.parametrize("fresh", [True, False])
def test_other_scales_on_another_rank_are_an_error(change: str, fresh: bool) -> None:
    for text in run_ranks(2, from_other_memories, change, fresh):
        assert "rank 0" in text
        assert "rank 1" in text


def copies(rank: int, world: int) -> None:
    """A state_dict stays what it was while training goes on, also one of what was just loaded."""
    model = Product()
    state = gct.GCTState(bits=2.0, min_numel=0, element_scales=True, model=model)
    train(state, model, range(3), rank)
    saved = state.state_dict()
    averages = saved["element_scales"]["weight"]["averages"].clone()
    state.load_state_dict(saved)
    again = state.state_dict()
    train(state, model, range(3, 6), rank)
    for kept in (saved, again):
        assert torch.equal(kept["element_scales"]["weight"]["averages"], averages)
    assert not torch.equal(state.state_dict()["element_scales"]["weight"]["averages"], averages)


def test_state_dicts_are_copies() -> None:
    run_ranks(2, copies)


@pytest.mark.parametrize("error", [None, RuntimeError("a wrong checksum")])
def test_what_is_still_to_be_learned_is_waited_for(error: Exception | None) -> None:
    """DDP raises the first bucket's error while later ones are on their way."""
    parameter = nn.Parameter(torch.zeros(4, 8))
    keys = ParameterKeys(None)
    keys.add(parameter)
    scales = ElementScales(keys, min_numel=0)
    gradient = torch.arange(32.0)
    reduced: torch.futures.Future[Tensor] = torch.futures.Future()
    finish_after(reduced, scales.begin([parameter], gradient, coded=True))

    def complete() -> None:
        if error is None:
            reduced.set_result(gradient)
        else:
            reduced.set_exception(error)

    timer = threading.Timer(0.2, complete)
    timer.start()
    [part] = scales.begin([parameter], gradient.clone(), coded=True)
    assert reduced.done()
    assert part.divided == (error is None)
    timer.join()


def aborted(rank: int, world: int) -> None:
    """A resumed run's first pass ends in the middle: a checkpoint can still be written."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Product(), Product(dtype=torch.bfloat16)  # two buckets

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.second(x.bfloat16()).float()

    model = Two()
    state = gct.GCTState(bits=2.0, min_numel=0, element_scales=True, model=model)
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gct.hook)
    for step in range(3):
        ddp.zero_grad()
        ddp(uneven(step, rank)).backward()
    saved = state.state_dict()
    # Another order: held back until the pass is over.
    saved["buckets"] = [[key for bucket in saved["buckets"] for key in bucket][::-1]]
    model = Two()
    state = gct.GCTState(bits=2.0, min_numel=0, element_scales=True, model=model)
    state.load_state_dict(saved)
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gct.hook)
    gradients = []

    def fail_at_the_third(gradient: Tensor) -> None:
        gradients.append(gradient)
        if len(gradients) == 3:
            raise ArithmeticError

    for parameter in model.parameters():
        parameter.register_hook(fail_at_the_third)
    with pytest.raises(ArithmeticError):
        ddp(uneven(3, rank)).backward()
    assert state._regroup is not None
    assert state._regroup._held, "the test's bucket was not held back"
    again = state.state_dict()
    for key, item in saved["element_scales"].items():
        assert torch.equal(again["element_scales"][key]["averages"], item["averages"])


def test_a_pass_that_is_broken_off() -> None:
    run_ranks(2, aborted)


def log_of_loading(state: gct.GCTState, saved: dict[str, Any]) -> str:
    with captured_log() as messages:
        state.load_state_dict(saved)
    return "\n".join(messages)


def without_loss(rank: int, world: int, codec: Literal["gg", "raw"]) -> str:
    """The mean is exact, and nothing is learned; what a state says that loads what it saved."""
    model = Product()
    state = gct.GCTState(codec=codec, min_numel=0, element_scales=True, model=model)
    train(state, model, range(4), rank)
    expected = sum(uneven(3, other) for other in range(world)) / world
    assert torch.equal(model.weight.grad, expected)
    assert [saved["steps"] for saved in state.state_dict()["element_scales"].values()] == [0]
    return log_of_loading(state, state.state_dict())


@pytest.mark.parametrize(("world", "codec"), [(1, "gg"), (2, "raw")])
def test_nothing_is_learned_where_nothing_is_lost(world: int, codec: str) -> None:
    """One rank has nobody to send to; "raw" sends the values as they are."""
    for text in run_ranks(world, without_loss, codec):
        assert "scales" not in text


def with_rate_term(rank: int, world: int) -> None:
    """The rate term is added to the gradient as it is, and nothing is learned from it."""
    averages, gradients = [], []
    for weight in (0.0, 1e-3):
        model = Product()
        state = gct.GCTState(
            bits=2.0, min_numel=0, element_scales=True, rate_weight=weight, model=model
        )
        ddp = DistributedDataParallel(model)
        ddp.register_comm_hook(state, gct.hook)
        for step in range(5):
            ddp.zero_grad()
            ddp(uneven(step, rank)).backward()
            with torch.no_grad():
                model.weight.add_(uneven(100 + step, 0), alpha=0.01)
        averages.append(state.state_dict()["element_scales"]["weight"]["averages"])
        gradients.append(model.weight.grad)
    assert torch.equal(*averages)
    assert not torch.equal(*gradients)


def test_beside_a_rate_term() -> None:
    run_ranks(2, with_rate_term)


def plain_choice(rank: int, world: int) -> None:
    """Where codec="auto" has turned coding off there is nothing to remember."""
    model = Product()
    state = gct.GCTState(codec="auto", min_numel=0, element_scales=True, model=model)
    state.load_state_dict({**state.state_dict(), "choice": "bf16"})
    train(state, model, range(4), rank)
    assert state.stats()["codec"] == "bf16"
    assert state.state_dict()["element_scales"]["weight"]["steps"] == 0
    exact = sum(uneven(3, r) for r in range(world)) / world
    assert (model.weight.grad - exact).norm() < 0.01 * exact.norm()


def test_where_coding_is_off() -> None:
    run_ranks(2, plain_choice)


def of_another_model(rank: int, world: int) -> str:
    state = gct.GCTState(bits=2.0, min_numel=0, element_scales=True, model=(model := Product()))
    scales = {"weight": {"averages": torch.ones(5), "steps": 3}}
    saved = state.state_dict() | {"step": 3, "element_scales": scales}
    state.load_state_dict(saved)
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gct.hook)
    with pytest.raises(ValueError, match="belong to another model"):
        ddp(uneven(3, rank)).backward()
    return log_of_loading(state, saved | {"element_scales": {}})


def test_scales_of_another_model_or_none() -> None:
    for text in run_ranks(2, of_another_model):
        assert "gct: the checkpoint has no scales of elements: they are learned anew" in text


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="element_scales must be True or False, got 1"):
        gct.GCTState(element_scales=1)
    with pytest.raises(ValueError, match="element_scales and error_feedback don't go together"):
        gct.GCTState(element_scales=True, error_feedback=True)
    values, averages = torch.ones(8), torch.ones(8)
    for gradient, memory in (
        (values, averages[:7]),
        (values, averages.double()),
        (values[::2], averages[:4]),
        (values.int(), averages),
    ):
        for call in (_C.divide_by_scales, _C.multiply_by_scales, _C.learn_squares):
            with pytest.raises(ValueError, match=r"gct: the (gradient|averages) must"):
                call(gradient, memory, 0.5)


def test_what_tells_nothing() -> None:
    """Zeros, next to zeros, an overflow, nothing at all."""
    averages = torch.ones(4)
    for values in ([0.0] * 4, [1e-20] * 4, [1.0, 1.0, 1e30, 1.0], [1.0, float("nan"), 1.0, 1.0]):
        assert not _C.learn_squares(torch.tensor(values), averages, 0.5)
    assert not _C.learn_squares(torch.empty(0), torch.empty(0), 0.5)
    assert torch.equal(averages, torch.ones(4))
    assert _C.learn_squares(torch.tensor([0.0, 0.0, 2.0, 2.0]), averages, 0.5)
    assert averages.tolist() == [0.5, 0.5, 1.5, 1.5]


def test_trust_grows() -> None:
    """The element's mean square beside the tensor's: as many steps' to four, fifty at the most."""
    trusts = [factor_of(steps) * _weight(steps) for steps in (0, 1, 2, 49, 50, 51, 5000)]
    assert trusts == pytest.approx([0, 0.25, 0.5, 12.25, 12.5, 12.5, 12.5])
    assert _weight(1) == pytest.approx(0.02)
    assert _weight(2000) == pytest.approx(1.0)
    assert factor_of(1000) == factor_of(1001) == pytest.approx(12.5)


def compiled(rank: int, world: int) -> None:
    """A single gradient with its parameter, as compiled DDP hands them over."""
    parameter = nn.Parameter(torch.zeros(ROWS, COLUMNS))
    state = gct.GCTState(**LEAST_ERROR, element_scales=True)
    for step in range(STEPS):
        gradient = uneven(step, rank)
        gct.hook(state, (gradient, parameter)).wait()  # type: ignore[arg-type]
    assert_same_on_all_ranks(gradient, world)
    in_bucket, exact = gradients_after(rank, world, STEPS, element_scales=True)
    for reduced in (gradient, in_bucket):
        small, large = errors(reduced, exact)
        assert small < 0.8  # without scales: 0.96
        assert large < 0.65


def test_compiled_ddp() -> None:
    run_ranks(2, compiled)
