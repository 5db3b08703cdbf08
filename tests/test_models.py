"""Every interface takes a model as its user has it: wrapped or not, and nothing that is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from log_capture import captured_log
from ranks import run_ranks
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel

import gct

LAYERS = ["0", "2"]
WEIGHTS = [f"{layer}.weight" for layer in LAYERS]


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def with_checkpointing(model: nn.Module) -> nn.Module:
    return nn.Sequential(*(checkpoint_wrapper(layer) for layer in model.children()))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "ddp": DistributedDataParallel,
    "compiled": compiled,
    "ddp of compiled": lambda model: DistributedDataParallel(compiled(model)),
    "compiled ddp": lambda model: compiled(DistributedDataParallel(model)),
    "ddp of checkpointed": lambda model: DistributedDataParallel(with_checkpointing(model)),
}


def names_of(wrapped: nn.Module) -> dict[str, Any]:
    """By interface: the names that it gives to parts of the model."""
    constraint = gct.GradientConstraint(wrapped, rate_weight=1e-4, exclude="0.weight")
    (parameter,) = [p for p in wrapped.parameters() if p.shape == (32, 64)]
    parameter.grad = torch.ones_like(parameter)
    constraint.apply()
    parameter.grad = None
    with gct.ActivationConstraint(wrapped, modules=LAYERS) as act:
        return {
            "GradientConstraint": list(constraint.state_dict()["past"]),
            "ActivationConstraint": act.modules,
            "init": list(gct.init.apply(wrapped)),
        }


def all_wrappers(rank: int, world: int) -> dict[str, dict[str, Any]]:
    return {how: names_of(wrap(make_model())) for how, wrap in WRAPPERS.items()}


# torch's own code warns of what it has deprecated while it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_names_are_those_of_the_model_inside() -> None:
    [result] = run_ranks(1, all_wrappers)
    expected = {"GradientConstraint": ["2.weight"], "ActivationConstraint": LAYERS, "init": WEIGHTS}
    assert result == dict.fromkeys(WRAPPERS, expected)


def state_of_a_wrapped_model(rank: int, world: int, path: str) -> tuple[list[str], list[str]]:
    ddp = DistributedDataParallel(make_model())
    monitor = gct.Monitor(path, histograms="2.*")
    state = gct.GCTState(start_step=0, model=ddp, monitor=monitor)
    ddp.register_comm_hook(state, gct.hook)
    ddp(torch.ones(4, 32)).square().sum().backward()
    monitor.close()
    return list(state.stats()["parameters"]), monitor._names or []


def test_state_and_monitor_name_a_wrapped_models_parameters(tmp_path: Path) -> None:
    [(in_stats, in_file)] = run_ranks(1, state_of_a_wrapped_model, str(tmp_path / "run.jsonl"))
    assert sorted(in_stats) == in_file == WEIGHTS


# ---- no model


MAKERS: dict[str, Callable[[Any], object]] = {
    "gct.init.apply": gct.init.apply,
    "gct.init.apply, paper": lambda model: gct.init.apply(model, paper=True),
    "ActivationConstraint": gct.ActivationConstraint,
    "GradientConstraint": gct.GradientConstraint,
    "GCTState": lambda model: gct.GCTState(model=model),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_no_model_is_refused(maker: str) -> None:
    model = make_model()
    for wrong, name in (
        (model.state_dict(), "OrderedDict"),
        (model.parameters(), "generator"),
        (3, "int"),
    ):
        with pytest.raises(TypeError, match=f"model must be a torch.nn.Module, got {name}: pass"):
            MAKERS[maker](wrong)


# ---- patterns


def test_patterns_that_fit_nothing_are_refused() -> None:
    model = make_model()
    message = r"'\*\.query' fits no parameter of the model; there are 0\.weight, 0\.bias, "
    with pytest.raises(ValueError, match=r"exclude: " + message):
        gct.GradientConstraint(model, exclude=["2.*", "*.query"])
    with pytest.raises(ValueError, match=r"exclude: '\*\.query' fits no parameter that would"):
        gct.init.apply(model, exclude="*.query")


def test_histograms_of_nothing_are_refused() -> None:
    model = make_model()
    model[0].weight.requires_grad_(requires_grad=False)
    for pattern in ("*.query", "0.weight", "*.bias"):  # frozen; uncompressed
        monitor = gct.Monitor("run.jsonl", histograms=["2.weight", pattern])
        with pytest.raises(ValueError, match=r"fits no compressed parameter; there are 2\.weight$"):
            gct.GCTState(model=model, monitor=monitor)


def histograms_without_names(rank: int, world: int, path: str) -> list[str]:
    with captured_log() as messages:
        state = gct.GCTState(start_step=0, monitor=gct.Monitor(path, interval=1, histograms="2.*"))
        ddp = DistributedDataParallel(make_model())
        ddp.register_comm_hook(state, gct.hook)
        for _ in range(3):
            ddp(torch.ones(4, 32)).square().sum().backward()
        state.monitor.close()  # type: ignore[union-attr]
    return messages


def test_histograms_of_nothing_are_warned_of_where_names_come_late(tmp_path: Path) -> None:
    [[message]] = run_ranks(1, histograms_without_names, str(tmp_path / "run.jsonl"))
    assert "histograms: '2.*' fits no compressed parameter; there are 0, " in message
    assert "GCTState(model=...)" in message
