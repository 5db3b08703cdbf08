"""Every feature of DDP with the hook, against the same without it, on the same seed.

With codec="raw" and two ranks the results are the same bits: halving is exact and a + b is b + a.
With 8 bits they are as close as the codec's error allows. docs/reliability.md has a table of the
features and their scenarios.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import assert_same_on_all_ranks, run_ranks
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as post_local
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import gct

WIDTH = 32
# 8 bits an element are an error of about 0.5 % of a gradient's norm (46 dB); over the steps of a
# scenario it also changes the gradients that follow. Half of the values, or one rank's alone, or
# the sum in the place of the mean would be an error of tens of percent.
TOLERANCE = 0.03


class Ways:
    """How a scenario wraps its models: plain DDP, or with the hook and one of two codecs."""

    def __init__(self, codec: str) -> None:
        self.codec = codec

    def state(self, **settings: Any) -> gct.GCTState:
        target = {"codec": "raw"} if self.codec == "raw" else {"bits": 8.0}
        return gct.GCTState(start_step=0, min_numel=0, **target, **settings)

    def wrap(self, model: nn.Module, **options: Any) -> DistributedDataParallel:
        """Several buckets, which DDP regroups after the first step."""
        ddp = DistributedDataParallel(model, **{"bucket_cap_mb": 0.01, **options})
        if self.codec != "off":
            ddp.register_comm_hook(self.state(process_group=options.get("process_group")), gct.hook)
        return ddp


Scenario = Callable[[int, int, Ways], Tensor]


def make_model(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, 2 * WIDTH),
        nn.GELU(),
        nn.LayerNorm(2 * WIDTH),
        nn.Linear(2 * WIDTH, WIDTH),
        *more,
    )


def batches(rank: int, steps: int) -> Iterator[Tensor]:
    """Each rank has its own data, alike in what there is to learn."""
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(steps):
        yield torch.randn(16, WIDTH, generator=generator)


def loss_of(output: Tensor, x: Tensor) -> Tensor:
    return (output - x.roll(1, dims=1)).float().square().mean()


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().float() for p in module.parameters()])


def gradients(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().float() for p in module.parameters() if p.grad is not None])


def descend(
    ddp: DistributedDataParallel,
    rank: int,
    optimizer: torch.optim.Optimizer,
    steps: int = 4,
    after_backward: Callable[[], object] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """How far the parameters have come."""
    start = flat(ddp)
    for x in batches(rank, steps):
        optimizer.zero_grad()
        loss_of(ddp(x), x).backward()
        after_backward()
        optimizer.step()
        after_step()
    return flat(ddp) - start


def compare(
    rank: int, world: int, scenario: Scenario, group: Any = None, order: float = 0.0
) -> None:
    """``order``: what another order of additions may change in what is not compressed."""
    plain = scenario(rank, world, Ways("off"))
    assert plain.abs().max() > 0, "the scenario does nothing"
    raw = scenario(rank, world, Ways("raw"))
    coded = scenario(rank, world, Ways("gg"))
    off = (raw - plain).abs().max() / plain.abs().max()
    assert off <= order, f"off by {off}"
    error = float((coded - plain).norm() / plain.norm())
    assert 0 < error < TOLERANCE
    if group is None:
        assert_same_on_all_ranks(coded, world)


# ---- what DDP offers


def accumulation(rank: int, world: int, ways: Ways) -> Tensor:
    """no_sync leaves gradients local; the third pass reduces their sum."""
    ddp = ways.wrap(make_model())
    optimizer = SGD(ddp.parameters(), lr=0.1)
    start = flat(ddp)
    for i, x in enumerate(batches(rank, 9)):
        with ddp.no_sync() if i % 3 < 2 else contextlib.nullcontext():
            loss_of(ddp(x), x).backward()
        if i % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    return flat(ddp) - start


class Halves(nn.Module):
    """One of two layers takes part in a step, and a third one never does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.halves = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])

    def forward(self, x: Tensor, half: int) -> Tensor:
        return self.halves[half](x)


def unused_parameters(rank: int, world: int, ways: Ways) -> Tensor:
    """Ranks may differ in what they use: the mean counts the others' zeros."""
    ddp = ways.wrap(Halves(), find_unused_parameters=True)
    optimizer = SGD(ddp.parameters(), lr=0.1)
    start = flat(ddp)
    for step, x in enumerate(batches(rank, 4)):
        optimizer.zero_grad()
        half = step % 2 if step < 2 else (step + rank) % 2
        loss_of(ddp(x, half), x).backward()
        optimizer.step()
    assert all(p.grad is None for p in ddp.module.halves[2].parameters())
    return flat(ddp) - start


def static_graph(rank: int, world: int, ways: Ways) -> Tensor:
    """A layer that is used twice, and recomputed: what static_graph is for."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = make_model()

        def forward(self, x: Tensor) -> Tensor:
            once: Tensor = torch.utils.checkpoint.checkpoint(self.layers, x, use_reentrant=False)
            return self.layers(once)

    ddp = ways.wrap(Twice(), static_graph=True)
    return descend(ddp, rank, SGD(ddp.parameters(), lr=0.1))


def bucket_views(rank: int, world: int, ways: Ways) -> Tensor:
    """Gradients live in the buckets that the hook reduces in place."""
    ddp = ways.wrap(make_model(), gradient_as_bucket_view=True)
    optimizer = SGD(ddp.parameters(), lr=0.1)
    start = flat(ddp)
    for step, x in enumerate(batches(rank, 4)):
        optimizer.zero_grad(set_to_none=step == 2)
        loss_of(ddp(x), x).backward()
        optimizer.step()
    return flat(ddp) - start


def bucket_rebuild(rank: int, world: int, ways: Ways) -> Tensor:
    ddp = ways.wrap(make_model())
    moved = descend(ddp, rank, SGD(ddp.parameters(), lr=0.1))
    assert ddp._get_ddp_logging_data()["has_rebuilt_buckets"]
    return moved


def uneven_inputs(rank: int, world: int, ways: Ways) -> Tensor:
    """Ranks that have run out answer with buckets of zeros."""
    ddp = ways.wrap(make_model())
    optimizer = SGD(ddp.parameters(), lr=0.1)
    start = flat(ddp)
    with ddp.join():
        for x in batches(rank, 3 + 2 * rank):
            optimizer.zero_grad()
            loss_of(ddp(x), x).backward()
            optimizer.step()
    return flat(ddp) - start


def buffers_and_convolutions(rank: int, world: int, ways: Ways) -> Tensor:
    """Buffers travel as ever; gradients of channels-last weights aren't contiguous."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
    model.to(memory_format=torch.channels_last)
    ddp = ways.wrap(model)
    optimizer = SGD(ddp.parameters(), lr=0.1)
    start = flat(ddp)
    for x in batches(rank, 4):
        optimizer.zero_grad()
        images = x.view(4, 8, 4, 4).repeat(1, 1, 2, 2).to(memory_format=torch.channels_last)
        (ddp(images) - images[:, :, 2:-2, 2:-2]).square().mean().backward()
        optimizer.step()
    moved = flat(ddp) - start
    ddp(images)  # sends rank 0's buffers round
    assert_same_on_all_ranks(model[1].num_batches_tracked, world)
    return moved


# ---- what models are like


def frozen_and_shared(rank: int, world: int, ways: Ways) -> Tensor:
    """Input and output embedding are one parameter; the middle doesn't learn."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(64, WIDTH)
            self.middle = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
            self.head = nn.Linear(WIDTH, 64, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.middle(self.embedding(tokens))))

    ddp = ways.wrap(Tied())
    optimizer = SGD(ddp.parameters(), lr=0.1)
    start = flat(ddp)
    for x in batches(rank, 4):
        optimizer.zero_grad()
        tokens = (8 * x).long() % 64
        nn.functional.cross_entropy(ddp(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
    return flat(ddp) - start


def sparse_gradients(rank: int, world: int, ways: Ways) -> Tensor:
    """They go uncompressed, beside others that don't."""

    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(64, WIDTH, sparse=True)
            self.layers = make_model()

        def forward(self, tokens: Tensor) -> Tensor:
            return self.layers(self.embedding(tokens))

    ddp = ways.wrap(Sparse())
    optimizer = SGD(ddp.parameters(), lr=0.1)
    start = flat(ddp)
    for x in batches(rank, 4):
        optimizer.zero_grad()
        loss_of(ddp((8 * x).long() % 64), x[:, :, None]).backward()
        optimizer.step()
    return flat(ddp) - start


def two_models(rank: int, world: int, ways: Ways) -> Tensor:
    """Each with a state of its own, in one backward."""
    first, second = ways.wrap(make_model()), ways.wrap(make_model(nn.Tanh()))
    optimizer = SGD([*first.parameters(), *second.parameters()], lr=0.1)
    start = torch.cat([flat(first), flat(second)])
    for x in batches(rank, 4):
        optimizer.zero_grad()
        loss_of(second(first(x)), x).backward()
        optimizer.step()
    return torch.cat([flat(first), flat(second)]) - start


def first_gradients(model: nn.Module, rank: int, ways: Ways, dtype: torch.dtype) -> Tensor:
    """Not the parameters' way: updates of the size of their last bit would come out by chance."""
    ddp = ways.wrap(model.to(dtype))
    total = torch.zeros(1)
    for x in batches(rank, 2):  # the second one in regrouped buckets
        ddp.zero_grad()
        (64 * loss_of(ddp(x.to(dtype)), x)).backward()  # float16: above its subnormal numbers
        assert all(p.grad.dtype == dtype for p in ddp.parameters())
        total = total + gradients(ddp)
    return total


def bfloat16_parameters(rank: int, world: int, ways: Ways) -> Tensor:
    return first_gradients(make_model(), rank, ways, torch.bfloat16)


def half_parameters(rank: int, world: int, ways: Ways) -> Tensor:
    return first_gradients(make_model().half(), rank, ways, torch.float16)


def double_parameters(rank: int, world: int, ways: Ways) -> Tensor:
    """Sums are float32: with codec="raw" as exact as that."""
    result = first_gradients(make_model(), rank, ways, torch.float64)
    # To 16 bits of the largest: float32 keeps 24 of each element.
    unit = float(result.abs().max()) * 2**-16 if ways.codec != "gg" else 0.0
    return (result / unit).round() * unit if unit else result


# ---- what training loops do


def autocast_and_scaler(rank: int, world: int, ways: Ways) -> Tensor:
    """An overflow on one rank skips the step on both."""
    ddp = ways.wrap(make_model())
    optimizer = SGD(ddp.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    start = flat(ddp)
    for step, x in enumerate(batches(rank, 4)):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(ddp(x), x)
        before = flat(ddp)
        scaler.scale(loss * float("inf") if (step, rank) == (1, 1) else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(flat(ddp), before) == (step == 1)
    assert scaler.get_scale() == 4.0
    return flat(ddp) - start


def gradient_clipping(rank: int, world: int, ways: Ways) -> Tensor:
    ddp = ways.wrap(make_model())

    def clip() -> None:
        assert nn.utils.clip_grad_norm_(ddp.parameters(), 0.02) > 0.02, "it has to do something"

    return descend(ddp, rank, SGD(ddp.parameters(), lr=1.0), after_backward=clip)


def learning_rate_schedule(rank: int, world: int, ways: Ways) -> Tensor:
    ddp = ways.wrap(make_model())
    optimizer = SGD(ddp.parameters(), lr=0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    return descend(ddp, rank, optimizer, after_step=schedule.step)


def gradient_penalty(rank: int, world: int, ways: Ways) -> Tensor:
    """Double backward in its supported form: the parameters' gradients are taken once."""
    ddp = ways.wrap(make_model())
    optimizer = SGD(ddp.parameters(), lr=0.1)
    start = flat(ddp)
    for x in batches(rank, 4):
        optimizer.zero_grad()
        x = x.requires_grad_()
        loss = loss_of(ddp(x), x)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + slope.square().sum()).backward()
        optimizer.step()
    return flat(ddp) - start


def zero_redundancy(rank: int, world: int, ways: Ways) -> Tensor:
    # Here and below: not for those who only collect tests, whom its deprecated parts would warn.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    ddp = ways.wrap(make_model())
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), SGD, lr=0.1, momentum=0.9)
    return descend(ddp, rank, optimizer)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        accumulation,
        unused_parameters,
        static_graph,
        bucket_views,
        bucket_rebuild,
        uneven_inputs,
        buffers_and_convolutions,
        frozen_and_shared,
        sparse_gradients,
        two_models,
        bfloat16_parameters,
        half_parameters,
        double_parameters,
        autocast_and_scaler,
        gradient_clipping,
        learning_rate_schedule,
        gradient_penalty,
        zero_redundancy,
    )
}


def compare_named(rank: int, world: int, name: str) -> None:
    compare(rank, world, SCENARIOS[name])


# Torch's distributed optimizers take seconds to import, in each rank.
SLOW = {"zero_redundancy"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n in SLOW else ()) for n in SCENARIOS]
)
def test_as_without_the_hook(name: str) -> None:
    run_ranks(2, compare_named, name)


# ---- groups of ranks


def in_pairs(rank: int, world: int, ways: Ways) -> Tensor:
    """DDP within pairs of four ranks."""
    pair, _ = dist.new_subgroups_by_enumeration([[0, 2], [1, 3]])
    ddp = ways.wrap(make_model(), process_group=pair)
    return descend(ddp, rank, SGD(ddp.parameters(), lr=0.1))


def post_local_sgd(rank: int, world: int, ways: Ways) -> Tensor:
    """After two steps gradients are reduced within pairs, and parameters averaged now and then."""
    from torch.distributed.optim import PostLocalSGDOptimizer

    pair, _ = dist.new_subgroups_by_enumeration([[0, 1], [2, 3]])
    ddp = DistributedDataParallel(make_model(), bucket_cap_mb=0.01)
    if ways.codec == "off":
        state = post_local.PostLocalSGDState(None, pair, start_localSGD_iter=2)
        ddp.register_comm_hook(state, post_local.post_localSGD_hook)
    else:
        states = ways.state(), ways.state(process_group=pair)
        ddp.register_comm_hook(states, all_then_pairs)
    averager = PeriodicModelAverager(period=2, warmup_steps=2)
    optimizer = PostLocalSGDOptimizer(SGD(ddp.parameters(), lr=0.1), averager)
    return descend(ddp, rank, optimizer, steps=6)


def all_then_pairs(states, bucket):
    """By the recipe of docs/reliability.md. DDP refuses annotations that are texts, as here."""
    among_all, in_pairs = states
    return gct.hook(among_all if among_all.step < 2 else in_pairs, bucket)


def compare_in_pairs(rank: int, world: int) -> None:
    compare(rank, world, in_pairs, group="pairs")


def test_pairs_as_without_the_hook() -> None:
    run_ranks(4, compare_in_pairs)


def compare_post_local_sgd(rank: int, world: int) -> None:
    # Sums of four in float32 differ by roundings, 6e-8 of a parameter, and each of six steps adds
    # some; the change that is compared is a hundredth of the parameters. Seen: 6e-6. A wrong group
    # would be tens of percent.
    compare(rank, world, post_local_sgd, group="pairs", order=2e-5)


@pytest.mark.long
def test_post_local_sgd_as_without_the_hook() -> None:
    run_ranks(4, compare_post_local_sgd)


# ---- compiled


def compiled_model(rank: int, world: int, ways: Ways) -> Tensor:
    # Dynamo's way of cutting graphs at buckets needs those of usual size.
    ddp = ways.wrap(torch.compile(make_model(), backend="aot_eager"), bucket_cap_mb=25)
    return descend(ddp, rank, SGD(ddp.parameters(), lr=0.1))


def compiled_ddp(rank: int, world: int, ways: Ways) -> Tensor:
    ddp = ways.wrap(make_model(), bucket_cap_mb=25)
    compiled = torch.compile(ddp, backend="aot_eager")
    return descend(compiled, rank, SGD(ddp.parameters(), lr=0.1))


def compiled_backward(rank: int, world: int, ways: Ways) -> Tensor:
    """Compiled autograd reduces gradients one by one, without buckets."""
    torch._dynamo.reset()
    with (
        torch._dynamo.config.patch(optimize_ddp="python_reducer"),
        torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")),
    ):
        return compiled_ddp(rank, world, ways)


def compare_compiled(rank: int, world: int) -> None:
    for scenario in (compiled_model, compiled_ddp, compiled_backward):
        compare(rank, world, scenario)


@pytest.mark.long
def test_compiled_as_without_the_hook() -> None:
    run_ranks(2, compare_compiled, timeout=120.0)


# ---- refused


def double_backward(rank: int, world: int) -> None:
    """DDP itself refuses to keep a graph of what it has reduced, with the hook as without."""
    for codec in ("off", "raw"):
        ddp = Ways(codec).wrap(make_model())
        [x] = batches(rank, 1)
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            loss_of(ddp(x), x).backward(create_graph=True)


def test_double_backward_is_refused() -> None:
    run_ranks(2, double_backward)


def mixed_precision(rank: int, world: int) -> None:
    """DDP's own mixed precision takes the hook's place."""
    precision = torch.distributed.fsdp.MixedPrecision(param_dtype=torch.float16)
    ddp = DistributedDataParallel(make_model(), mixed_precision=precision)
    with pytest.raises(RuntimeError, match="hook"):
        ddp.register_comm_hook(gct.GCTState(), gct.hook)


def test_mixed_precision_of_ddp_is_refused() -> None:
    run_ranks(2, mixed_precision)


# ---- their list


def test_the_table_of_features_is_complete() -> None:
    page = Path(__file__).parents[1] / "docs" / "reliability.md"
    others = (in_pairs, post_local_sgd, compiled_model, compiled_ddp, compiled_backward)
    names = {*SCENARIOS, *(scenario.__name__ for scenario in others)}
    table = page.read_text().split("| feature | scenario |")[1].split("\n\n")[0]
    listed = set(
        re.findall(r"`(\w+)`", "".join(row.split("|")[-2] for row in table.splitlines() if row))
    )
    assert listed == names
