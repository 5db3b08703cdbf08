"""Generalized Gaussian initialization against scipy's gennorm, counted fans and whole models."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import scipy.special
import torch
from drawn import P_VALUE, assert_drawn, p_value, seeded, variance_tolerance
from torch import nn

import gct
from gct.distribution import CHUNK

SHAPES = [0.3, 0.5, 1.0, 1.7, 2.0, 4.0]
EXACT = 1e-12  # both sides are the same formula in float64


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make_gpt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's GPT, small; fresh at each call."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "examples"))
    from model import GPT, GPTConfig

    return lambda **sizes: GPT(GPTConfig(**{"width": 64, "layers": 3, "heads": 2} | sizes))


def gennorm_scale(shape: float, variance: float) -> float:
    """The scale of scipy's gennorm with that variance, from its published moments."""
    gamma = scipy.special.gamma
    return math.sqrt(variance * gamma(1.0 / shape) / gamma(3.0 / shape))


# ---- generalized_gaussian_


@pytest.mark.parametrize("shape", SHAPES)
def test_distribution_is_scipys(shape: float) -> None:
    w = torch.empty(500, 400)  # several blocks
    gct.init.generalized_gaussian_(w, shape, gain=2.0, generator=seeded(1))
    scale = gennorm_scale(shape, 4.0 / 400.0)
    assert p_value(w, shape, scale) > P_VALUE
    # Negative controls: 5 % in scale or 20 % in shape do not pass.
    assert p_value(w, shape, 1.05 * scale) < 1e-6
    assert p_value(w, 1.2 * shape, gennorm_scale(1.2 * shape, 0.01)) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 500), ("fan_out", 300), ("fan_avg", 400)])
def test_variance_is_gain_squared_over_fan(shape: float, mode: Any, fan: int) -> None:
    w = torch.empty(300, 500)
    gct.init.generalized_gaussian_(w, shape, 1.5, mode, seeded(2))
    tolerance = variance_tolerance(shape, w.numel())
    assert tolerance < 0.22  # shape 0.3 has a kurtosis of 271; the fans are 20 % apart and more
    assert float(w.double().square().mean()) == pytest.approx(1.5**2 / fan, rel=tolerance)


def test_fans_of_kernels_are_torchs() -> None:
    w = torch.empty(64, 32, 3, 5)
    for mode, fan in (("fan_in", 32 * 15), ("fan_out", 64 * 15), ("fan_avg", 48 * 15)):
        gct.init.generalized_gaussian_(w, 2.0, mode=mode, generator=seeded(3))
        assert p_value(w, 2.0, gennorm_scale(2.0, 1.0 / fan)) > P_VALUE


def test_defaults_are_laplace_with_gain_one_and_fan_in() -> None:
    w = gct.init.generalized_gaussian_(torch.empty(100, 300), generator=seeded(4))
    assert p_value(w, 1.0, math.sqrt(0.5 / 300.0)) > P_VALUE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_get_the_rounded_values_of_float64(dtype: torch.dtype) -> None:
    wide, narrow = torch.empty(300, 300, dtype=torch.float64), torch.empty(300, 300, dtype=dtype)
    for w in (wide, narrow):
        gct.init.generalized_gaussian_(w, 0.7, generator=seeded(5))
    assert torch.equal(narrow, wide.to(dtype))


def test_one_seed_gives_one_tensor() -> None:
    def draw(seed: int) -> torch.Tensor:
        return gct.init.generalized_gaussian_(torch.empty(70, 40), generator=seeded(seed))

    assert torch.equal(draw(6), draw(6))
    assert not torch.equal(draw(6), draw(7))


def test_a_generator_goes_on_from_tensor_to_tensor() -> None:
    generator = seeded(6)
    first, second = (
        gct.init.generalized_gaussian_(torch.empty(70, 40), generator=generator) for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_blocks_depend_on_their_place_alone() -> None:
    """What shards rely on; and no block repeats another."""
    rows = CHUNK // 64
    small = torch.empty(2 * rows, 64)
    large = torch.empty(3 * rows + 5, 64)
    for w in (small, large):
        gct.init.generalized_gaussian_(w, generator=seeded(8))
    assert torch.equal(large[: 2 * rows], small)
    blocks = large[: 3 * rows].view(3, -1)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        # Independent float32 draws of 64 Ki elements agree in a few places by chance.
        assert int((blocks[i] == blocks[j]).sum()) < 100


def test_default_generator_is_torchs() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(9)
        draws.append(gct.init.generalized_gaussian_(torch.empty(8, 8)))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], gct.init.generalized_gaussian_(torch.empty(8, 8)))


def test_order_of_draws_is_that_of_indices_not_of_memory() -> None:
    straight = gct.init.generalized_gaussian_(torch.empty(30, 50), generator=seeded(10))
    base = torch.empty(50, 30)
    assert (
        gct.init.generalized_gaussian_(base.T, generator=seeded(10)).data_ptr() == base.data_ptr()
    )
    assert torch.equal(base.T, straight)
    kernel = torch.empty(8, 6, 3, 3).to(memory_format=torch.channels_last)
    same = torch.empty(8, 6, 3, 3)
    for w in (kernel, same):
        gct.init.generalized_gaussian_(w, generator=seeded(11))
    assert torch.equal(kernel, same)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_parameter_is_filled_in_place_and_stays_a_leaf() -> None:
    parameter = nn.Parameter(torch.zeros(4, 4))
    assert gct.init.generalized_gaussian_(parameter) is parameter
    assert parameter.is_leaf
    assert parameter.grad_fn is None
    assert bool((parameter != 0).all())


def test_meta_tensor_and_generator_stay_as_they_are() -> None:
    generator = seeded(12)
    before = generator.get_state()
    w = torch.empty(4, 4, device="meta")
    assert gct.init.generalized_gaussian_(w, generator=generator) is w
    assert torch.equal(generator.get_state(), before)


def test_zero_elements_are_a_no_op_with_torchs_warning() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        gct.init.generalized_gaussian_(torch.empty(0, 4))


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (torch.empty(4), ValueError, "fewer than 2 dimensions"),
        (torch.empty(4, 4, dtype=torch.int32), TypeError, "float32 or float64, got torch.int32"),
        (torch.empty(4, 4, dtype=torch.complex64), TypeError, "complex64"),
        (torch.empty(4, 4).to_sparse(), TypeError, "dense tensor"),
        (nn.parameter.UninitializedParameter(), ValueError, "run the model once"),
        ([[1.0]], TypeError, "got list"),
    ],
)
def test_tensors_that_cannot_be_filled(tensor: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        gct.init.generalized_gaussian_(tensor)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "fan_both"}, ValueError, "fan_in, fan_out, fan_avg, got 'fan_both'"),
        ({"shape": 0.05}, ValueError, "shape: expected a number from 0.1 to 10"),
        ({"gain": -1.0}, ValueError, "gain: expected a finite number >= 0"),
        ({"gain": "relu"}, TypeError, "gain: expected a real number, got str"),
    ],
)
def test_arguments_that_make_no_sense(arguments: Any, error: type, message: str) -> None:
    w = torch.ones(4, 4)
    with pytest.raises(error, match=message):
        gct.init.generalized_gaussian_(w, **arguments)
    assert bool((w == 1).all())


# ---- apply: which weights, and their fans


class Conv1D(nn.Module):
    """What transformers call Conv1D: a linear layer whose weight has the inputs first."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_())
        self.bias = nn.Parameter(torch.ones(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class OwnLinear(nn.Module):
    """A linear layer of an unknown class."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs).normal_())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


LAYERS = {
    "linear": (lambda: nn.Linear(40, 25), "linear"),
    "Conv1D": (lambda: Conv1D(25, 40), "linear"),
    "own linear": (lambda: OwnLinear(40, 25), "linear"),
    "conv1d": (lambda: nn.Conv1d(8, 6, 5), "conv"),
    "conv2d": (lambda: nn.Conv2d(8, 6, (3, 5), dilation=(1, 2)), "conv"),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), "conv"),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4), "conv"),
    "depthwise": (lambda: nn.Conv1d(8, 8, 7, groups=8), "conv"),
    "transposed1d": (lambda: nn.ConvTranspose1d(8, 6, 5), "conv"),
    "transposed2d": (lambda: nn.ConvTranspose2d(8, 6, 3), "conv"),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, 3), "conv"),
    "transposed grouped": (lambda: nn.ConvTranspose2d(8, 12, 3, groups=4), "conv"),
}


def counted_fans(layer: nn.Module) -> tuple[float, float]:
    """Weights that feed one output, and that one input feeds, in the middle of a long input."""
    layer = layer.double()
    nn.init.ones_(layer.weight)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    if hasattr(layer, "kernel_size"):
        x = torch.ones(layer.in_channels, *[25] * len(layer.kernel_size), dtype=torch.float64)
        channel = (0, *[12] * len(layer.kernel_size))
    else:
        x, channel = torch.ones(40, dtype=torch.float64), (0,)
    x.requires_grad_()
    y = layer(x[None])[0]
    y.sum().backward()
    return float(y.detach()[channel]), float(x.grad[channel])


@pytest.mark.parametrize("name", LAYERS)
def test_fans_are_those_that_can_be_counted(name: str) -> None:
    make, role = LAYERS[name]
    fan_in, fan_out = counted_fans(make())
    for mode, fan in (
        ("fan_in", fan_in),
        ("fan_out", fan_out),
        ("fan_avg", (fan_in + fan_out) / 2),
    ):
        layer = make()
        model = nn.Sequential(layer)
        settings: Any = {"shape": {role: 0.8}, "gain": 1.5, "mode": mode}
        result = gct.init.apply(model, generator=seeded(20), **settings)
        assert list(result) == ["0.weight"]
        assert result["0.weight"].shape == 0.8
        assert result["0.weight"].std == pytest.approx(1.5 / math.sqrt(fan), rel=EXACT)
        assert_drawn(layer.weight, result["0.weight"])
        if getattr(layer, "bias", None) is not None:
            assert not layer.bias.any()


def test_forward_pass_keeps_the_variance() -> None:
    """What fan_in is for: outputs of unit variance from inputs of unit variance."""
    torch.manual_seed(21)
    layer = nn.ConvTranspose1d(64, 200, 5, groups=2)
    gct.init.apply(nn.Sequential(layer), shape=0.5, generator=seeded(21))
    y = layer(torch.randn(20, 64, 40))[..., 8:-8]
    # 32,000 weights of shape 0.5 and 20 x 24 outputs of each: 5 standard deviations of the first
    # are 14 %, of the second less.
    assert float(y.detach().square().mean()) == pytest.approx(1.0, rel=0.14)


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_embedding_has_its_width_for_fan_and_a_zero_padding_row(make: Any, mode: Any) -> None:
    model = nn.Sequential(make(300, 16, padding_idx=7))
    result = gct.init.apply(model, shape={"embedding": 0.6}, mode=mode, generator=seeded(22))
    weight = model[0].weight
    assert result["0.weight"].shape == 0.6
    assert result["0.weight"].std == pytest.approx(0.25, rel=EXACT)
    assert not weight[7].any()
    rows = torch.arange(300) != 7
    assert_drawn(weight[rows], result["0.weight"])


def test_multihead_attention() -> None:
    same, apart = nn.MultiheadAttention(32, 2), nn.MultiheadAttention(32, 2, kdim=8, vdim=8)
    model = nn.ModuleDict({"same": same, "apart": apart})
    nn.init.ones_(same.in_proj_bias)
    result = gct.init.apply(model, shape={"attention": 0.7}, generator=seeded(23))
    stds = dict.fromkeys(("same.in_proj_weight", "apart.q_proj_weight"), 32 ** (-0.5))
    stds |= dict.fromkeys(("apart.k_proj_weight", "apart.v_proj_weight"), 8 ** (-0.5))
    stds |= {f"{name}.out_proj.weight": 32**-0.5 for name in model}
    assert set(result) == set(stds)
    for name, std in stds.items():
        assert result[name].shape == 0.7
        assert result[name].std == pytest.approx(std, rel=EXACT)
        assert_drawn(model.get_parameter(name), result[name])
    assert not same.in_proj_bias.any()


def test_everything_else_stays_as_it_is() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm((6, 6))  # a weight of two dimensions that is none
            self.batch = nn.BatchNorm2d(6)
            self.recurrent = nn.GRU(6, 6)
            self.scaled = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6, bias=False))
            self.table = nn.Parameter(torch.full((6, 6), 3.0))
            self.codes = OwnLinear(6, 6)
            self.codes.weight = nn.Parameter(torch.ones(6, 6, dtype=torch.int8), False)

    model = Holder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert gct.init.apply(model) == {}
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_weight_that_cannot_be_filled_is_named_and_nothing_is_changed() -> None:
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "lazy": nn.LazyLinear(3)})
    before = model["first"].weight.clone()
    with pytest.raises(ValueError, match=r"lazy\.weight has no shape yet"):
        gct.init.apply(model)
    assert torch.equal(model["first"].weight, before)
    gct.init.apply(model, exclude="lazy.*")
    assert not torch.equal(model["first"].weight, before)


def test_biases_and_exclusions() -> None:
    def make() -> nn.Module:
        torch.manual_seed(24)
        return nn.ModuleDict({"a": nn.Linear(9, 9), "b": nn.Linear(9, 9)})

    def changed(**settings: Any) -> set[str]:
        model = make()
        gct.init.apply(model, **settings)
        before = make().state_dict()
        return {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}

    weights, biases = {"a.weight", "b.weight"}, {"a.bias", "b.bias"}
    assert changed() == weights | biases
    assert changed(zero_biases=False) == weights
    assert changed(exclude="b.*") == {"a.weight", "a.bias"}
    assert changed(exclude=["b.weight", "a.b*"]) == {"a.weight", "b.bias"}


# ---- apply: settings by name and role


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("transformer.h.0.attn.c_attn.weight", "attention"),
        ("transformer.h.0.mlp.c_fc.weight", "mlp"),
        ("model.layers.3.self_attn.q_proj.weight", "attention"),
        ("model.layers.3.mlp.gate_proj.weight", "mlp"),
        ("layers.0.attention.wo.weight", "attention"),
        ("layers.0.feed_forward.w2.weight", "mlp"),
        ("encoder.layer.2.attention.output.dense.weight", "attention"),
        ("encoder.layer.2.output.dense.weight", "mlp"),
        ("encoder.layers.0.linear1.weight", "mlp"),
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight", "mlp"),
        ("encoder.block.0.layer.0.SelfAttention.o.weight", "attention"),
        ("layers.0.w2.weight", "mlp"),
        ("moe.experts.1.inner.weight", "mlp"),
        ("blocks.1.down.weight", "mlp"),
        ("lm_head.weight", "linear"),
        ("classifier.2.weight", "linear"),
        ("upsample.weight", "linear"),
    ],
)
def test_roles_of_common_names(name: str, role: str) -> None:
    model = linear_layers([name.removesuffix(".weight")])
    shapes = {r: 0.5 + i for i, r in enumerate(gct.init.ROLES)}
    assert gct.init.apply(model, shapes)[name].shape == shapes[role]


def linear_layers(names: Iterable[str]) -> nn.Module:
    """A model with these linear layers, of width 4."""
    model = nn.Module()
    for name in names:
        *path, last = name.split(".")
        inner = model
        for part in path:
            if part not in inner._modules:
                inner.add_module(part, nn.Module())
            inner = inner.get_submodule(part)
        inner.add_module(last, nn.Linear(4, 4))
    return model


def test_full_name_first_then_the_first_key_that_fits(make_gpt: Any) -> None:
    shapes = {
        "blocks.0.*": 0.5,
        "attention": 0.8,
        "*.up.weight": 1.2,
        "mlp": 1.4,
        "blocks.0.up.weight": 3.0,
    }
    result = gct.init.apply(make_gpt(), shapes, gain={"head.weight": 0.5, "embedding": 2.0})
    assert result["blocks.0.attention.qkv.weight"].shape == 0.5
    assert result["blocks.0.up.weight"].shape == 3.0
    assert result["blocks.1.attention.qkv.weight"].shape == 0.8
    assert result["blocks.1.up.weight"].shape == 1.2
    assert result["blocks.1.down.weight"].shape == 1.4
    assert result["token.weight"].shape == 1.0  # the default, where nothing fits
    assert result["token.weight"].std == pytest.approx(2.0 / 8.0, rel=EXACT)
    assert result["head.weight"].std == pytest.approx(0.5 / 8.0, rel=EXACT)
    assert result["blocks.0.up.weight"].std == pytest.approx(1.0 / 8.0, rel=EXACT)


def test_given_std_replaces_the_fan_rule(make_gpt: Any) -> None:
    result = gct.init.apply(make_gpt(), std={"embedding": 1.0, "head.weight": 0.02})
    assert result["position.weight"].std == pytest.approx(1.0, rel=EXACT)
    assert result["head.weight"].std == pytest.approx(0.02, rel=EXACT)
    assert result["blocks.0.up.weight"].std == pytest.approx(1.0 / 8.0, rel=EXACT)
    gpt2 = gct.init.apply(make_gpt(), std=0.02)  # what the model's own initialization has
    residual = {n for n in gpt2 if n.endswith(("attention.out.weight", "down.weight"))}
    for name, distribution in gpt2.items():
        std = 0.02 / math.sqrt(6.0) if name in residual else 0.02
        assert distribution.std == pytest.approx(std, rel=EXACT)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"shape": {"attenton": 0.8}}, ValueError, r"shape: 'attenton' fits no .* token\.weight"),
        ({"gain": {"*.left.weight": 1.0}}, ValueError, r"gain: '\*\.left\.weight' fits no"),
        ({"std": {"x": 1.0}}, ValueError, "roles are embedding, attention, mlp, conv, linear"),
        ({"exclude": ["lm_head.*"]}, ValueError, "exclude: 'lm_head"),
        ({"exclude": 3}, TypeError, "exclude: expected names or patterns of names, got int"),
        ({"exclude": [nn.Linear(2, 2)]}, TypeError, "exclude: expected .*, got Linear"),
        ({"gain": 2.0, "std": 0.02}, ValueError, "std=0.02 is that of every weight"),
        ({"residual_depth_scaling": ["*.proj"]}, ValueError, "residual_depth_scaling: '"),
        ({"residual_depth_scaling": "head.weight"}, ValueError, "pass layers="),
        ({"layers": 0}, ValueError, "layers: expected at least 1, got 0"),
        ({"shape": {"mlp": "1"}}, TypeError, r"shape\['mlp'\]: expected a real number, got str"),
        ({"shape": {"mlp": 11.0}}, ValueError, "shape: expected a number from 0.1 to 10"),
        ({"gain": math.inf}, ValueError, "gain: expected a finite number >= 0, got inf"),
        ({"mode": "fan"}, ValueError, "mode: expected one of"),
    ],
)
def test_settings_that_fit_nothing(make_gpt: Any, settings: Any, error: type, message: str) -> None:
    model = make_gpt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        gct.init.apply(model, **settings)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_wrappers_leave_the_names_as_they_are() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert list(gct.init.apply(torch.compile(net), {"0.weight": 0.5})) == ["0.weight", "1.weight"]
    wrapped = nn.ModuleDict({"module": net})  # what DistributedDataParallel makes of names
    result = gct.init.apply(wrapped, {"0.weight": 0.5, "module.1.weight": 0.6})
    assert {name: d.shape for name, d in result.items()} == {"0.weight": 0.5, "1.weight": 0.6}


# ---- apply: depth and ties


def stds_times_width(result: dict[str, gct.GeneralizedGaussian], width: int) -> dict[str, float]:
    return {name: d.std * math.sqrt(width) for name, d in result.items()}


def test_gpt_with_depth_scaling_draws_what_it_returns(make_gpt: Any) -> None:
    model = make_gpt()
    result = gct.init.apply(model, {"attention": 0.6, "mlp": 1.4}, generator=seeded(30))
    assert set(result) == {n for n, p in model.named_parameters() if p.dim() == 2}
    shrunk = 1.0 / math.sqrt(2 * 3)
    for name, distribution in result.items():
        assert_drawn(model.get_parameter(name), distribution)
        fan = 256 if name.endswith("down.weight") else 64
        expected = shrunk if name.endswith(("attention.out.weight", "down.weight")) else 1.0
        assert distribution.std * math.sqrt(fan) == pytest.approx(expected, rel=EXACT)
    assert bool((model.norm.weight == 1).all())


def test_depth_scaling_off_named_and_counted_by_hand(make_gpt: Any) -> None:
    def scaled(**settings: Any) -> dict[str, float]:
        result = stds_times_width(gct.init.apply(make_gpt(), **settings), 64)
        names = ("head.weight", "blocks.1.up.weight", "blocks.1.attention.out.weight")
        return {name: pytest.approx(1 / result[name] ** 2, rel=1e-9) for name in names}

    head, up, out = "head.weight", "blocks.1.up.weight", "blocks.1.attention.out.weight"
    assert scaled(residual_depth_scaling=False) == {head: 1, up: 1, out: 1}
    assert scaled(residual_depth_scaling="*.up.weight") == {head: 1, up: 6, out: 1}
    assert scaled(residual_depth_scaling=["*.up.weight", "head.*"], layers=5) == {
        head: 10,
        up: 10,
        out: 1,
    }
    # Blocks that are excluded are still there and add to the stream.
    assert scaled(exclude="blocks.0.*")[out] == 6


def test_each_stack_counts_its_own_layers() -> None:
    kinds = {"encoder": (nn.TransformerEncoderLayer, 2), "decoder": (nn.TransformerDecoderLayer, 3)}
    model = nn.ModuleDict()
    for name, (kind, count) in kinds.items():
        layers = nn.ModuleList(kind(16, 2, 32, norm_first=True) for _ in range(count))
        model[name] = nn.ModuleDict({"layers": layers})
    result = gct.init.apply(model)
    for stack, layers in (("encoder", 2), ("decoder", 3)):
        for name, fan in (("self_attn.out_proj", 16), ("linear2", 32)):
            std = result[f"{stack}.layers.1.{name}.weight"].std
            assert std == pytest.approx(1 / math.sqrt(fan * 2 * layers), rel=EXACT)
        assert result[f"{stack}.layers.1.linear1.weight"].std == pytest.approx(0.25, rel=EXACT)


# Of each family the block's prefix, the layers that write to the residual stream, and others.
FAMILIES = {
    "GPT-2": ("h.{}", ["attn.c_proj", "mlp.c_proj"], ["attn.c_attn", "mlp.c_fc"]),
    "Llama": (
        "model.layers.{}",
        ["self_attn.o_proj", "mlp.down_proj"],
        ["self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"],
    ),
    "Llama's own code": (
        "layers.{}",
        ["attention.wo", "feed_forward.w2"],
        ["attention.wq", "attention.wv", "feed_forward.w1", "feed_forward.w3"],
    ),
    "OPT": ("model.decoder.layers.{}", ["self_attn.out_proj", "fc2"], ["self_attn.k_proj", "fc1"]),
    "torch": ("encoder.layers.{}", ["self_attn.out_proj", "linear2"], ["linear1"]),
    "timm": ("blocks.{}", ["attn.proj", "mlp.fc2"], ["attn.qkv", "mlp.fc1"]),
    "GPT-NeoX": (
        "gpt_neox.layers.{}",
        ["attention.dense", "mlp.dense_4h_to_h"],
        ["attention.query_key_value", "mlp.dense_h_to_4h"],
    ),
    "BERT": (
        "bert.encoder.layer.{}",
        ["attention.output.dense", "output.dense"],
        ["attention.self.query", "intermediate.dense"],
    ),
    "T5's encoder": (
        "encoder.block.{}",
        ["layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"],
        ["layer.0.SelfAttention.q", "layer.1.DenseReluDense.wi"],
    ),
    "T5's decoder": (
        "decoder.block.{}",
        ["layer.0.SelfAttention.o", "layer.1.EncDecAttention.o", "layer.2.DenseReluDense.wo"],
        ["layer.1.EncDecAttention.v", "layer.2.DenseReluDense.wi_0"],
    ),
    "examples/model.py": ("blocks.{}", ["attention.out", "down"], ["attention.qkv", "up"]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_writes_to_the_residual_stream(family: str) -> None:
    prefix, writers, others = FAMILIES[family]
    blocks = [prefix.format(i) for i in range(3)]
    names = [f"{block}.{layer}" for block in blocks for layer in (*writers, *others)]
    result = gct.init.apply(linear_layers([*names, "lm_head"]))
    scaled = {name for name, drawn in result.items() if drawn.std < 0.49}  # of 1 / sqrt(4)
    assert scaled == {f"{block}.{layer}.weight" for block in blocks for layer in writers}
    for name in scaled:
        assert result[name].std == pytest.approx(0.5 / math.sqrt(6.0), rel=EXACT)


def test_every_pattern_of_residual_outputs_is_some_familys() -> None:
    names = [f"{p.format(0)}.{w}.weight" for p, writers, _ in FAMILIES.values() for w in writers]
    patterns = set(gct.init.RESIDUAL_OUTPUTS)
    fits = [{p for p in patterns if fnmatch.fnmatchcase(name, p)} for name in names]
    assert set().union(*(found for found in fits if len(found) == 1)) == patterns


def test_experts_and_numbers_inside_a_block_are_no_layers() -> None:
    def block() -> nn.Module:
        experts = nn.ModuleList(nn.ModuleDict({"w2": nn.Linear(4, 4)}) for _ in range(5))
        return nn.ModuleDict({"experts": experts})

    blocks = {f"layer_{i}": block() for i in range(3)}
    result = gct.init.apply(nn.ModuleDict(blocks))
    assert len(result) == 15
    for distribution in result.values():
        assert distribution.std == pytest.approx(0.5 / math.sqrt(6.0), rel=EXACT)


def test_tied_embedding_is_drawn_once_and_as_an_embedding(make_gpt: Any) -> None:
    model = make_gpt(tied=True)
    result = gct.init.apply(model, {"embedding": 0.5, "linear": 2.0}, generator=seeded(31))
    assert model.head.weight is model.token.weight
    assert "head.weight" not in result
    assert result["token.weight"].shape == 0.5
    assert_drawn(model.token.weight, result["token.weight"])
    # Each of its names counts.
    assert gct.init.apply(model, {"head.weight": 3.0})["token.weight"].shape == 3.0
    before = model.token.weight.clone()
    gct.init.apply(model, exclude="head.*")
    assert torch.equal(model.token.weight, before)


def test_tied_embedding_that_comes_second() -> None:
    head, token = nn.Linear(8, 50, bias=False), nn.Embedding(50, 8, padding_idx=0)
    token.weight = head.weight
    model = nn.ModuleDict({"head": head, "token": token})
    result = gct.init.apply(model, {"embedding": 0.5}, mode="fan_out")
    assert list(result) == ["head.weight"]
    assert result["head.weight"].shape == 0.5
    assert result["head.weight"].std == pytest.approx(8**-0.5, rel=EXACT)
    assert not head.weight[0].any()


def test_one_seed_gives_one_model(make_gpt: Any) -> None:
    models = [make_gpt(), make_gpt(), make_gpt()]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        gct.init.apply(model, generator=seeded(seed))
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])
    # Tensors of one size don't get the same draws.
    assert not torch.equal(first["blocks.0.up.weight"], first["blocks.1.up.weight"])


# ---- apply: the meta device


def test_meta_model_stays_and_can_be_filled_after_to_empty(make_gpt: Any) -> None:
    with torch.device("meta"):
        model = make_gpt()
    generator = seeded(40)
    planned = gct.init.apply(model, generator=generator)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert gct.init.apply(model, generator=generator) == planned
    direct = make_gpt()
    gct.init.apply(direct, generator=seeded(40))
    expected = direct.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


# ---- apply: the authors' rule


class Mixture(nn.Module):
    """Everything on which the authors' rule and ours differ."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(200, 30, padding_idx=3)
        self.conv = nn.Conv2d(3, 5, 3)
        self.conv1 = nn.Conv1d(3, 5, 3)
        self.recurrent = nn.GRU(30, 20)
        self.norm = nn.LayerNorm((40, 30))
        self.c_proj = Conv1D(70, 30)
        self.head = nn.Linear(30, 200)
        self.head.weight = self.token.weight
        self.gate = nn.Parameter(torch.full((7,), 5.0))
        self.table = nn.Parameter(torch.full((60, 50), 5.0))
        self.position_bias = nn.Parameter(torch.full((3, 4, 5), 5.0))
        self.weighted_bias = nn.Parameter(torch.full((7,), 5.0))  # both words: the first counts


@pytest.mark.parametrize(("shape", "xi"), [(None, None), (0.8, 1.0), (2.0, 2.0 / (1.0 + 0.2**2))])
def test_paper_rule(shape: float | None, xi: float | None) -> None:
    """The published rule, written down again from its description (docs/methods.md)."""
    torch.manual_seed(50)
    model = Mixture()
    settings: Any = {} if shape is None else {"shape": shape, "gain": math.sqrt(xi)}
    result = gct.init.apply(model, paper=True, generator=seeded(50), **settings)
    b, xi = (shape, xi) if shape is not None else (2.0, 2.0)
    matrices = set()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            matrices.add(name)
            alpha = gennorm_scale(b, xi / parameter.shape[0])
            assert result[name].scale == pytest.approx(alpha, rel=EXACT)
            assert p_value(parameter, b, alpha) > P_VALUE, name
        elif "weight" in name:
            assert bool((parameter == 1).all()), name
        elif "bias" in name:
            assert not parameter.any(), name
        else:
            assert bool((parameter == 5).all()), name
    assert set(result) == matrices
    assert {"norm.weight", "table", "recurrent.weight_hh_l0"} <= matrices
    assert bool((model.conv.weight == 1).all())  # the pitfall that the docstring warns of
    assert bool((model.position_bias == 0).all())
    assert bool((model.weighted_bias == 1).all())


@pytest.mark.parametrize(
    "settings",
    [
        {"std": 0.02},
        {"mode": "fan_out"},
        {"residual_depth_scaling": False},
        {"layers": 2},
        {"exclude": "head.*"},
        {"zero_biases": False},
    ],
)
def test_paper_rule_takes_nothing_else(settings: Any) -> None:
    with pytest.raises(ValueError, match="paper=True takes shape, gain and generator"):
        gct.init.apply(Mixture(), paper=True, **settings)


def test_paper_rule_takes_numbers_only() -> None:
    with pytest.raises(TypeError, match="shape: expected a real number, got dict"):
        gct.init.apply(Mixture(), {"linear": 2.0}, paper=True)


# ---- the documentation


def test_documented_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "methods.md").read_text()
    section = re.search(r"## GG initialization\n(.*?)(?=\n## |\Z)", page, re.DOTALL)[1]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["drawn"]["3.weight"].shape == 0.5
    assert gct.init.Statistics.load("shapes.json") == names["shapes"]
    assert all(bool(p.isfinite().all()) for p in names["large"].parameters())
