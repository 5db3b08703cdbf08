"""The rate term on gradients: against exact Hessian-vector products, and on all ranks alike."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ranks import assert_same_on_all_ranks, run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gct
from gct import _rate_term
from gct._rate_term import _mean_of_nonzero, _power, _shape_of

W = 1e-3
FORMS: list[dict[str, Any]] = [
    {"curvature": "raw"},
    {"curvature": "damped"},
    {"curvature": "ema"},
    {"curvature": "damped", "shape": "gg"},
]


class Quadratic(nn.Module):
    """(p - c)' H (p - c) / 2 in float64; H may be given by its diagonal."""

    def __init__(self, hessian: Tensor) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        size = hessian.size(0)
        self.hessian = hessian.double()
        self.center = torch.randn(size, 1, generator=generator, dtype=torch.float64)
        start = torch.randn(size, 1, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(start)  # a matrix of one column, so not exempt

    def forward(self) -> Tensor:
        away = self.weight - self.center
        if self.hessian.dim() == 1:
            return 0.5 * (self.hessian[:, None] * away * away).sum()
        return 0.5 * (away * (self.hessian @ away)).sum()


def diagonal(size: int = 400) -> Tensor:
    return torch.logspace(-2, 0, size, dtype=torch.float64)


def exact_rate_gradient(
    loss: Tensor,
    parameters: Sequence[Tensor],
    rate: Callable[[Tensor], Tensor] = lambda g: g.abs().sum(),
) -> list[Tensor]:
    """The oracle: the gradient of the rate of the gradients, by a second backward pass."""
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    return list(torch.autograd.grad(sum(map(rate, gradients)), parameters))


def term(constraint: gct.GradientConstraint, parameters: Sequence[Tensor]) -> list[Tensor]:
    """What one apply() adds, over rate_weight; the gradients stay changed."""
    before = [p.grad.clone() for p in parameters]
    constraint.apply()
    weight = constraint._term.settings.rate_weight
    return [(p.grad - b) / weight for p, b in zip(parameters, before, strict=True)]


def mean(x: Tensor) -> float:
    """Of |x|, the way the term takes it."""
    return _mean_of_nonzero([x.abs()])


def backward(model: nn.Module, *inputs: Tensor) -> Tensor:
    model.zero_grad()
    loss = model(*inputs)
    loss.backward()
    return loss


def two_steps(
    model: Quadratic, move: Callable[[Tensor], Tensor], **settings: Any
) -> tuple[Tensor, Tensor]:
    """The term after one step of `move(g)` from the start, and the move."""
    # max_curvature far away: these tests look at the estimate, others at the clipping.
    unclipped = {} if settings["curvature"] == "raw" else {"max_curvature": 1e9}
    constraint = gct.GradientConstraint(model, rate_weight=1.0, **unclipped, **settings)
    backward(model)
    [nothing] = term(constraint, [model.weight])
    assert not nothing.any(), "one gradient says nothing of curvature"
    step = move(model.weight.grad)
    with torch.no_grad():
        model.weight += step
    backward(model)
    [added] = term(constraint, [model.weight])
    return added, step


# ---- the estimate against the oracle


def test_raw_ratio_is_exact_where_the_hessian_is_diagonal() -> None:
    model = Quadratic(diagonal())
    added, _ = two_steps(model, lambda g: -0.5 * g, curvature="raw")
    [exact] = exact_rate_gradient(model(), [model.weight])
    # A difference of two gradients that are 0.5 % apart or more loses 2 to 3 of 16 digits.
    torch.testing.assert_close(added, exact, rtol=1e-11, atol=0)


@pytest.mark.parametrize("curvature", ["damped", "ema"])
@pytest.mark.parametrize("damping", [0.1, 1.0])
def test_damping_shrinks_by_the_square_of_the_step(curvature: str, damping: float) -> None:
    model = Quadratic(diagonal())
    added, dp = two_steps(model, lambda g: -0.5 * g, curvature=curvature, damping=damping)
    [exact] = exact_rate_gradient(model(), [model.weight])
    shrunk = exact * dp**2 / (dp**2 + damping**2 * (dp**2).mean())
    # The mean square is kept to 7 bits: half of the last one is 2^-7 of it at most.
    torch.testing.assert_close(added, shrunk, rtol=2**-7, atol=0)


def test_ema_weighs_the_past_by_its_moves() -> None:
    """h = sum w dg dp / sum w dp^2, with the weights of an exponential average."""
    layer = nn.Linear(8, 8, bias=False).double()
    constraint = gct.GradientConstraint(
        layer, rate_weight=1.0, curvature="ema", decay=0.75, damping=1e-6, max_curvature=1e9
    )
    # Growing gradients and parameters: no curvature is negative, so none is clipped.
    gradients = torch.rand(3, 8, 8, dtype=torch.float64).cumsum(0)
    values = torch.rand(3, 8, 8, dtype=torch.float64).cumsum(0)
    for gradient, value in zip(gradients, values, strict=True):
        layer.weight.data.copy_(value)
        layer.weight.grad = gradient.clone()
        [added] = term(constraint, [layer.weight])
    dg, dp = gradients.diff(dim=0), values.diff(dim=0)
    expected = (0.75 * dg[0] * dp[0] + dg[1] * dp[1]) / (0.75 * dp[0] ** 2 + dp[1] ** 2)
    # The damping is 1e-12 of the mean square, the smallest of 64 squares some 1e-4 of it.
    torch.testing.assert_close(added, expected, rtol=1e-6, atol=0)


def test_raw_ratio_is_exact_after_a_step_along_the_signs() -> None:
    """With dp = -a sign(g), dg = H dp, so dg / dp * sign(g) = H sign(g), while no sign turns.

    So the ratio is more than a diagonal there: it has all of H. Adam at full batch comes near.
    """
    torch.manual_seed(0)
    root = torch.randn(60, 60, dtype=torch.float64)
    model = Quadratic(root @ root.T / 60)
    added, _ = two_steps(model, lambda g: -1e-6 * g.sign(), curvature="raw")
    [exact] = exact_rate_gradient(model(), [model.weight])
    off_diagonal = exact - torch.diagonal(model.hessian)[:, None] * model.weight.grad.sign()
    assert off_diagonal.norm() > 0.5 * exact.norm(), "the diagonal alone would not do"
    # Moves of 1e-6 leave 10 of 16 digits.
    torch.testing.assert_close(added, exact, rtol=0, atol=1e-7 * float(exact.abs().max()))


def test_along_the_last_move_the_estimate_has_the_sign_of_the_curvature() -> None:
    """sum h dp^2 = dp' dg = dp' H dp for the raw ratio: positive, whatever is off the diagonal."""
    torch.manual_seed(1)
    root = torch.randn(60, 60, dtype=torch.float64)
    model = Quadratic(root @ root.T / 60)
    added, dp = two_steps(model, lambda g: -0.1 * g, curvature="raw")
    h = added * model.weight.grad.add(-added).sign()
    along = float((dp * (model.hessian @ dp)).sum())
    assert float((h * dp * dp).sum()) == pytest.approx(along, rel=1e-10)  # sums of 60 terms


@pytest.mark.parametrize("shape", [0.5, 1.25, 2.0])
def test_other_shapes_against_the_oracle(shape: float) -> None:
    model = Quadratic(diagonal())
    added, _ = two_steps(model, lambda g: -0.5 * g, curvature="raw", shape=shape)
    size = mean((diagonal()[:, None] * (model.weight - model.center)).detach())

    def rate(g: Tensor) -> Tensor:
        """Sum of (|g| / size + 0.1)^v in units of |g|."""
        return size * (g.abs() / size + 0.1).pow(shape).sum()

    [exact] = exact_rate_gradient(model(), [model.weight], rate)
    torch.testing.assert_close(added, exact, rtol=1e-11, atol=0)


class Net(nn.Module):
    """A small network and its loss on one full batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5)).double()
        self.x = torch.randn(64, 20, dtype=torch.float64)
        self.y = torch.randint(0, 5, (64,))

    def forward(self) -> Tensor:
        return nn.functional.cross_entropy(self.layers(self.x), self.y)


def cosines(curvature: str, optimizer: Callable[[Any], torch.optim.Optimizer]) -> list[float]:
    """Of the term with the oracle, over ten steps of training at full batch."""
    model = Net()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    constraint = gct.GradientConstraint(model, rate_weight=1e-6, curvature=curvature)
    step = optimizer(model.parameters())
    result = []
    for _ in range(10):
        exact = torch.cat([e.flatten() for e in exact_rate_gradient(model(), matrices)])
        backward(model)
        added = torch.cat([t.flatten() for t in term(constraint, matrices)])
        result.append(float(nn.functional.cosine_similarity(added, exact, dim=0)))
        step.step()
    return result[1:]


def test_on_a_network_the_damped_forms_point_the_right_way() -> None:
    """The oracle's direction, roughly; the raw ratio has it after small steps along the signs."""
    sgd = {c: cosines(c, lambda p: torch.optim.SGD(p, lr=0.5)) for c in ("raw", "damped", "ema")}
    # Found: 0.58 to 0.67 damped, 0.43 to 0.67 ema, -0.01 to 0.14 raw. A direction at random in 800
    # dimensions has a cosine of 0.035.
    for curvature in ("damped", "ema"):
        assert min(sgd[curvature]) > 0.3, curvature
    assert max(sgd["raw"]) < min(sgd["damped"])

    class SignDescent(torch.optim.SGD):
        def step(self) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                parameter.data -= 1e-7 * parameter.grad.sign()

    # Curvature is that of the point to 1e-7, and hardly a sign turns.
    assert min(cosines("raw", lambda p: SignDescent(p, lr=1.0))) > 0.99


def test_numpy_scalars_are_numbers() -> None:
    numpy = {"rate_weight": np.float32(0.5), "shape": np.float32(0.75), "decay": np.float16(0.5)}
    plain = {name: float(value) for name, value in numpy.items()}
    assert descend(5, curvature="ema", **numpy) == descend(5, curvature="ema", **plain)


def descend(steps: int = 150, **settings: Any) -> float:
    """Loss of the quadratic after gradient descent with noise, as minibatches have it."""
    model = Quadratic(diagonal(1000))
    constraint = gct.GradientConstraint(model, **settings)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        backward(model)
        noise = torch.randn(model.weight.shape, generator=generator, dtype=torch.float64)
        model.weight.grad += 0.1 * noise
        constraint.apply()
        with torch.no_grad():
            model.weight -= 0.5 * model.weight.grad
    return float(model().detach())


def test_noise_wrecks_the_raw_form_and_no_other() -> None:
    without = descend(rate_weight=0.0)
    assert descend(rate_weight=0.1, curvature="raw") > 10 * without
    for curvature in ("damped", "ema"):
        # The clipped term at most doubles the mean |g|. Found: 1.16 and 1.36 times, raw 13,000.
        assert descend(rate_weight=0.1, curvature=curvature) < 2 * without


# ---- clipping


@pytest.mark.parametrize("curvature", ["damped", "ema"])
def test_clipped_at_both_ends(curvature: str) -> None:
    model = Quadratic(torch.cat([diagonal(50), -diagonal(50)]))
    constraint = gct.GradientConstraint(model, rate_weight=1e3, curvature=curvature)
    backward(model)
    constraint.apply()
    with torch.no_grad():
        model.weight += 0.1
    backward(model)
    gradient = model.weight.grad.clone()
    [added] = term(constraint, [model.weight])
    assert not added[50:].any(), "negative curvature adds nothing"
    # size is kept to 7 bits; at this weight all of the positive ones reach it
    bound = 1e-3 * mean(gradient)
    torch.testing.assert_close(added[:50], bound * gradient[:50].sign(), rtol=1e-9, atol=0)

    limited = Quadratic(diagonal(50))
    limit = gct.GradientConstraint(
        limited, rate_weight=1.0, curvature=curvature, max_curvature=0.02, damping=1e-3
    )
    for _ in range(2):
        backward(limited)
        [added] = term(limit, [limited.weight])
        with torch.no_grad():
            limited.weight += 0.1
    assert float(added.abs().max()) == pytest.approx(0.02, rel=1e-9)  # of a difference
    assert float(added.abs().min()) == pytest.approx(0.01, rel=1e-4)  # and of the damping


# ---- the same bits everywhere


def test_means_do_not_depend_on_the_order_of_their_sums() -> None:
    torch.manual_seed(0)
    x = torch.randn(100_003, dtype=torch.float64).abs()
    shuffled = [x[torch.randperm(x.numel())] for _ in range(20)]
    assert len({float(s.sum(dtype=torch.float64)) for s in shuffled}) > 1, "so this can fail"
    assert len({mean(s) for s in shuffled}) == 1
    assert mean(x) == pytest.approx(float(x.mean()), rel=2**-7)
    padded = torch.cat([x.new_zeros(77_777), x])
    assert mean(padded) == mean(x)
    assert mean(torch.zeros(3)) == 0.0


@pytest.mark.parametrize("settings", FORMS)
def test_pieces_do_not_show(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(chunk: int) -> Tensor:
        monkeypatch.setattr(_rate_term, "CHUNK", chunk)
        layer = nn.Conv2d(8, 12, 5, bias=False).to(memory_format=torch.channels_last)
        constraint = gct.GradientConstraint(layer, rate_weight=W, **settings)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            with torch.no_grad():
                layer.weight.copy_(torch.randn(12, 8, 5, 5, generator=generator))
            layer.weight.grad = torch.randn(12, 8, 5, 5, generator=generator)
            constraint.apply()
        return layer.weight.grad

    whole = run(10**6)
    for chunk in (1, 700):  # a row each, and three with a rest
        assert torch.equal(run(chunk), whole)


@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_powers(exponent: float) -> None:
    x = torch.linspace(0.01, 50, 1000, dtype=torch.float64)
    torch.testing.assert_close(_power(x, exponent), x**exponent, rtol=1e-15 * 4, atol=0)


@pytest.mark.parametrize("shape", [0.5, 1.0, 1.5, 2.0])
def test_shape_is_the_distributions(shape: float) -> None:
    x = gct.GeneralizedGaussian(shape, 3e-5).sample(200_000, torch.Generator().manual_seed(0))
    x[::3] = 0.0
    # 1/4 is 20 standard errors and more, and means to 7 bits move the shape by under 0.1.
    assert _shape_of(x, mean(x)) == shape


# ---- what is left alone


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.Tanh(), nn.Linear(24, 4))


def train(
    model: nn.Module,
    constraint: gct.GradientConstraint | None,
    steps: range = range(8),
    optimizer: torch.optim.Optimizer | None = None,
) -> Tensor:
    """All parameters after some steps on data that depends on the step alone."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in steps:
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        if constraint is not None:
            constraint.apply()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_off_by_default() -> None:
    model = small_model()
    constraint = gct.GradientConstraint(model)
    assert torch.equal(train(model, constraint), train(small_model(), None))
    assert constraint.state_dict()["past"] == {}
    state = gct.GCTState()
    assert state._rate_term is None
    assert state.state_dict()["rate_term"] == {}


@pytest.mark.parametrize("settings", FORMS)
def test_on_it_changes_the_training(settings: dict[str, Any]) -> None:
    model = small_model()
    constraint = gct.GradientConstraint(model, rate_weight=W, **settings)
    assert not torch.equal(train(model, constraint), train(small_model(), None))
    past = constraint.state_dict()["past"]
    assert set(past) == {"0.weight", "3.weight"}, "vectors are exempt"
    held = sum(
        tensor.numel()
        for one in past.values()
        for tensor in (one["gradient"], one["parameter"], *one["moments"])
    )
    copies = 4 if settings["curvature"] == "ema" else 2
    assert held == copies * (16 * 24 + 24 * 4)


@pytest.mark.parametrize("exclude", ["3.*", ["3.weight"]])
def test_excluded_parameters(exclude: str | list[str]) -> None:
    model = small_model()
    constraint = gct.GradientConstraint(model, rate_weight=W, exclude=exclude)
    train(model, constraint)
    assert set(constraint.state_dict()["past"]) == {"0.weight"}


def apply_to(
    constraint: gct.GradientConstraint,
    parameter: nn.Parameter,
    gradient: Tensor | None,
    move: float = 0.01,
) -> Tensor | None:
    """Apply to this gradient, then move on; what was added."""
    parameter.grad = gradient if gradient is None else gradient.clone()
    constraint.apply()
    added = None if gradient is None else parameter.grad - gradient
    with torch.no_grad():
        parameter += move
    return added


@pytest.mark.parametrize("curvature", ["raw", "damped", "ema"])
def test_gradients_that_say_nothing(curvature: str) -> None:
    layer = nn.Linear(8, 8, bias=False)
    constraint = gct.GradientConstraint(layer, rate_weight=W, curvature=curvature)
    weight = layer.weight
    torch.manual_seed(0)
    first, second, third, fourth = torch.rand(4, 8, 8).cumsum(0)
    assert not apply_to(constraint, weight, first).any()
    for nothing in (None, torch.zeros(8, 8)):
        apply_to(constraint, weight, nothing)
        saved = constraint.state_dict()["past"]["weight"]
        assert torch.equal(saved["gradient"], first), "a step without a gradient is no step"
    assert apply_to(constraint, weight, second, move=0.0).any()
    assert not apply_to(constraint, weight, third).any(), "the optimizer skipped its step"

    broken = third.clone()
    broken[3, 3] = float("nan")
    added = apply_to(constraint, weight, broken)
    assert not added.nan_to_num().any(), "it stays what it is"
    assert constraint.state_dict()["past"] == {}
    assert not apply_to(constraint, weight, third).any(), "no difference from NaN"
    assert apply_to(constraint, weight, fourth).any()


def test_sparse_gradients_are_left_alone() -> None:
    table = nn.Embedding(8, 4, sparse=True)
    constraint = gct.GradientConstraint(table, rate_weight=W)
    for _ in range(2):
        table.zero_grad()
        table(torch.tensor([1, 3])).sum().backward()
        constraint.apply()
        assert table.weight.grad.is_sparse
    assert constraint.state_dict()["past"] == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_float32_rounded(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    narrow = nn.Linear(64, 64, bias=False).to(dtype)
    wide = nn.Linear(64, 64, bias=False)
    wide.load_state_dict(narrow.state_dict())
    added = []
    for layer in (narrow, wide):
        generator = torch.Generator().manual_seed(1)
        constraint = gct.GradientConstraint(layer, rate_weight=1.0)
        for _ in range(2):
            gradient = torch.randn(64, 64, generator=generator).to(dtype).to(layer.weight.dtype)
            layer.weight.grad = gradient.clone()
            constraint.apply()
            with torch.no_grad():
                layer.weight.copy_((layer.weight.float() + 0.125).to(dtype))
        added.append(layer.weight.grad)
    assert torch.equal(added[0], added[1].to(dtype))
    assert not torch.equal(added[0], gradient.to(dtype))


def test_grad_scaler_with_unscale_is_as_without() -> None:
    def run(scaler: torch.amp.GradScaler) -> Tensor:
        model = small_model()
        constraint = gct.GradientConstraint(model, rate_weight=W)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(6):
            x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            scaler.scale((model(x) - x[:, :4]).square().mean()).backward()
            scaler.unscale_(optimizer)
            constraint.apply()
            scaler.step(optimizer)
            scaler.update()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    changing = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2)
    # Powers of 2 change no bit.
    assert torch.equal(run(changing), run(torch.amp.GradScaler("cpu", enabled=False)))
    assert changing.get_scale() == 128.0


# ---- going on from a checkpoint


@pytest.mark.parametrize("settings", FORMS)
def test_resumed_to_the_last_bit(settings: dict[str, Any]) -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer, gct.GradientConstraint]:
        model = small_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return model, optimizer, gct.GradientConstraint(model, rate_weight=W, **settings)

    model, optimizer, constraint = begin()
    train(model, constraint, range(5), optimizer)
    # The model's and the optimizer's change as training goes on; the constraint's must not.
    saved = [*copy.deepcopy([model.state_dict(), optimizer.state_dict()]), constraint.state_dict()]
    without_break = train(model, constraint, range(5, 9), optimizer)

    again = begin()
    for part, one in zip(again, saved, strict=True):
        part.load_state_dict(one)
    loaded = again[2].state_dict()["past"]
    assert torch.equal(loaded["0.weight"]["gradient"], saved[2]["past"]["0.weight"]["gradient"])
    assert torch.equal(train(again[0], again[2], range(5, 9), again[1]), without_break)

    forgetful = begin()
    for part, one in zip(forgetful[:2], saved[:2], strict=True):
        part.load_state_dict(one)
    without_memory = train(forgetful[0], forgetful[2], range(5, 9), forgetful[1])
    assert not torch.equal(without_memory, without_break), "so the memory matters"


def test_what_is_no_state_dict_of_this_model_is_refused() -> None:
    constraint = gct.GradientConstraint(small_model(), rate_weight=W)
    with pytest.raises(ValueError, match="version 1, got None"):
        constraint.load_state_dict({"past": {}})
    with pytest.raises(ValueError, match="'past' by parameter in the state_dict, got None"):
        constraint.load_state_dict({"version": 1})
    with pytest.raises(ValueError, match=r"got that of module\.0\.weight: load it into the same"):
        constraint.load_state_dict({"version": 1, "past": {"module.0.weight": {}}})
    wider = nn.Sequential(nn.Linear(17, 24))
    other = gct.GradientConstraint(wider, rate_weight=W)
    wider(torch.ones(1, 17)).sum().backward()
    other.apply()
    with pytest.raises(ValueError, match=r"0\.weight has shape \(24, 17\).*\(24, 16\)"):
        constraint.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="GradientConstraint's state_dict, got list"):
        constraint.load_state_dict([1])
    ones = torch.ones(24, 16)
    whole = {"gradient": ones, "parameter": ones, "moments": []}
    for bad in (3, {}, {**whole, "gradient": 3}, {**whole, "moments": [ones]}):
        with pytest.raises(ValueError, match=r"moments of parameter 0\.weight in the state_dict"):
            constraint.load_state_dict({"version": 1, "past": {"0.weight": bad}})
    assert constraint.state_dict()["past"] == {}, "nothing was loaded"
    constraint.load_state_dict({"version": 1, "past": {"0.weight": whole}})
    assert torch.equal(constraint.state_dict()["past"]["0.weight"]["gradient"], ones)


def test_it_belongs_to_its_model_and_its_weight_stays() -> None:
    constraint = gct.GradientConstraint(small_model(), rate_weight=W)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="belongs to one model and is not copied or pickled"):
            copied(constraint)
    assert constraint.rate_weight == W
    with pytest.raises(AttributeError, match="rate_weight"):
        constraint.rate_weight = 1.0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rate_weight": -1.0}, "rate_weight must be"),
        ({"rate_weight": float("nan")}, "rate_weight must be"),
        ({"shape": 0.8}, "multiple of 1/4"),
        ({"shape": 2.25}, "from 0.25 to 2"),
        ({"shape": "l1"}, "shape must be"),
        ({"curvature": "exact"}, "curvature must be"),
        ({"damping": 0.0}, "damping must be"),
        ({"decay": 1.0}, "decay must be"),
        ({"max_curvature": -1.0}, "max_curvature must be"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        gct.GradientConstraint(nn.Linear(2, 2), **settings)


def test_excluded_are_names() -> None:
    with pytest.raises(TypeError, match="exclude: expected names or patterns of names, got int"):
        gct.GradientConstraint(nn.Linear(2, 2), exclude=3)


@pytest.mark.parametrize("name", ["rate_weight", "damping", "decay", "max_curvature"])
def test_settings_must_be_numbers(name: str) -> None:
    for value in ("a", True, [1.0]):
        with pytest.raises(TypeError, match=f"{name} must be a number, got "):
            gct.GradientConstraint(nn.Linear(2, 2), **{name: value})
    with pytest.raises(TypeError, match="rate_weight must be a number, got str"):
        gct.GCTState(rate_weight="a")  # type: ignore[arg-type]


# ---- in the hook, on real processes


def ddp_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(32, 96), nn.LayerNorm(96), nn.Tanh(), nn.Linear(96, 96), nn.Linear(96, 4))
    return nn.Sequential(*layers).to(dtype)


def wrap(model: nn.Module, state: gct.GCTState, **options: Any) -> DistributedDataParallel:
    # Several buckets, and DDP regroups them after the first step.
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.02, **options)
    ddp.register_comm_hook(state, gct.hook)
    return ddp


def passes(
    ddp: nn.Module, rank: int, steps: int, micro: int = 1, dtype: torch.dtype = torch.float32
) -> Iterator[int]:
    """Backward passes with this rank's data, each of `micro` batches; yields after each."""
    generator = torch.Generator().manual_seed(100 + rank)
    for step in range(steps):
        ddp.zero_grad()
        for part in range(micro):
            x = torch.randn(16, 32, generator=generator).to(dtype)
            with ddp.no_sync() if part < micro - 1 else contextlib.nullcontext():
                (ddp(x) - x[:, :4]).square().mean().backward()
        yield step


Way = tuple[dict[str, Any], int, torch.dtype, dict[str, Any]]
WAYS: list[Way] = [  # settings, micro-batches, dtype, DDP's options
    ({"start_step": 0}, 1, torch.float32, {}),
    ({"start_step": 3}, 1, torch.float32, {"gradient_as_bucket_view": True}),
    ({"start_step": 2, "error_feedback": True}, 2, torch.float32, {}),
    ({"start_step": 2, "algorithm": "two_shot"}, 1, torch.bfloat16, {}),
    ({"start_step": 0}, 1, torch.float64, {"static_graph": True}),
]


def both_ways(rank: int, world: int, ways: list[Way]) -> None:
    """GCTState(rate_weight=w) does what apply() after backward does, and all ranks agree."""
    for settings, micro, dtype, options in ways:
        common: dict[str, Any] = {"bits": 3.0, "min_numel": 0, **settings}
        inside, outside = (ddp_model(dtype) for _ in range(2))
        constraint = gct.GradientConstraint(outside, rate_weight=W)
        states = [gct.GCTState(**common, rate_weight=W), gct.GCTState(**common)]
        ddps = [
            wrap(model, state, **options)
            for model, state in zip((inside, outside), states, strict=True)
        ]
        optimizers = [torch.optim.AdamW(ddp.parameters(), lr=1e-2) for ddp in ddps]
        runs = [passes(ddp, rank, 5, micro, dtype) for ddp in ddps]
        for _ in zip(*runs, strict=True):
            reduced = outside[0].weight.grad.clone()
            constraint.apply()
            for mine, other in zip(inside.parameters(), outside.parameters(), strict=True):
                assert torch.equal(mine.grad, other.grad)
            for optimizer in optimizers:
                optimizer.step()
            for parameter in inside.parameters():
                assert_same_on_all_ranks(parameter, world)
        assert not torch.equal(reduced, outside[0].weight.grad), "the term is not nothing"


@pytest.mark.parametrize(("world", "ways"), [(2, WAYS), (3, WAYS[:1])])
def test_hook_and_apply_are_the_same_bits_on_all_ranks(world: int, ways: list[Way]) -> None:
    run_ranks(world, both_ways, ways)


def overflow(rank: int, world: int) -> None:
    """One rank's overflow: all skip the step, forget, and go on with the same bits."""
    model = ddp_model()
    state = gct.GCTState(bits=4.0, start_step=1, min_numel=0, rate_weight=W, model=model)
    ddp = wrap(model, state)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(6):
        x = torch.randn(16, 32)
        optimizer.zero_grad()
        loss = scaler.scale((ddp(x) - x[:, :4]).square().mean())
        (loss * float("inf") if step == 3 and rank == 1 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bool(state.state_dict()["rate_term"]) == (step != 3)
        for parameter in model.parameters():
            assert parameter.isfinite().all()
            assert_same_on_all_ranks(parameter, world)
    assert scaler.get_scale() == 4.0


def test_overflow_of_one_rank() -> None:
    run_ranks(2, overflow)


def compiled(rank: int, world: int) -> None:
    """Compiled DDP's way, hook(state, (gradient, parameter)), against apply()."""
    parameters = [nn.Parameter(torch.zeros(64, 64)), nn.Parameter(torch.zeros(64))]
    twins = copy.deepcopy(parameters)
    holder = nn.ParameterList(twins)
    constraint = gct.GradientConstraint(holder, rate_weight=W)
    inside = gct.GCTState(bits=4.0, start_step=1, min_numel=0, rate_weight=W)
    outside = gct.GCTState(bits=4.0, start_step=1, min_numel=0)
    torch.manual_seed(rank)
    for step in range(4):
        for parameter, twin in zip(parameters, twins, strict=True):
            gradient = torch.randn_like(parameter) + parameter.detach()
            twin.grad = gradient.clone()
            gct.hook(outside, (twin.grad, twin))
            gct.hook(inside, (gradient, parameter))
            parameter.grad = gradient
        before = twins[0].grad.clone()
        constraint.apply()
        assert torch.equal(before, twins[0].grad) == (step == 0)
        for parameter, twin in zip(parameters, twins, strict=True):
            assert torch.equal(parameter.grad, twin.grad)
            assert_same_on_all_ranks(parameter.grad, world)
            with torch.no_grad():
                for one in (parameter, twin):
                    one -= 0.1 * one.grad


def test_compiled_tuple() -> None:
    run_ranks(2, compiled)


def checkpoint(rank: int, world: int) -> None:
    """Without compression, whose runs follow the buckets, a resumed run has the same bits."""
    settings: dict[str, Any] = {"start_step": 100, "rate_weight": W}

    def begin() -> tuple[nn.Module, torch.optim.Optimizer, gct.GCTState, DistributedDataParallel]:
        model = ddp_model()
        state = gct.GCTState(**settings, model=model)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2), state, wrap(model, state)

    model, optimizer, state, ddp = begin()
    for _ in passes(ddp, rank, 4):
        optimizer.step()
    saved = copy.deepcopy([part.state_dict() for part in (model, optimizer, state)])
    assert set(saved[2]["rate_term"]) == {"0.weight", "3.weight", "4.weight"}
    again = begin()
    for part, one in zip(again, saved, strict=False):
        part.load_state_dict(one)
    for one, change in ((model, optimizer), (again[0], again[1])):
        for _ in passes(ddp if one is model else again[3], rank, 3):
            change.step()
    for mine, other in zip(model.parameters(), again[0].parameters(), strict=True):
        assert torch.equal(mine, other)

    before_this = {key: value for key, value in saved[2].items() if key != "rate_term"}
    fresh = gct.GCTState(**settings)
    fresh.load_state_dict(before_this)
    assert fresh.step == 4
    copied = pickle.loads(pickle.dumps(state))
    mine, other = copied.state_dict()["rate_term"], state.state_dict()["rate_term"]
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[key]["gradient"], other[key]["gradient"]) for key in other)


def test_checkpoint_of_the_state() -> None:
    run_ranks(2, checkpoint)


def uneven(rank: int, world: int) -> None:
    ddp = wrap(ddp_model(), gct.GCTState(bits=4.0, start_step=1, min_numel=0, rate_weight=W))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    with ddp.join():
        for _ in passes(ddp, rank, 3 + 2 * rank):
            optimizer.step()
    for parameter in ddp.parameters():
        assert_same_on_all_ranks(parameter, world)


def test_join_with_uneven_inputs() -> None:
    run_ranks(2, uneven)
