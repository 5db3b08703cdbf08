"""Shapes measured on one model initialize another alike."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import seeded
from torch import nn

import gct
from gct.init import Statistics, TensorStatistics


def make_model(width: int = 48, layers: int = 2) -> nn.Module:
    """A transformer's names without its forward pass."""

    def block() -> nn.Module:
        attention = nn.ModuleDict(
            {"q_proj": nn.Linear(width, width), "o_proj": nn.Linear(width, width)}
        )
        mlp = nn.ModuleDict(
            {"up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width)}
        )
        return nn.ModuleDict({"attn": attention, "mlp": mlp, "norm": nn.LayerNorm(width)})

    return nn.ModuleDict(
        {
            "wte": nn.Embedding(300, width),
            "h": nn.ModuleList(block() for _ in range(layers)),
            "patch": nn.Conv2d(3, width, 8),
            "lm_head": nn.Linear(width, 300, bias=False),
        }
    )


SHAPES = {"embedding": 0.5, "attention": 0.8, "mlp": 1.2, "conv": 2.0, "linear": 1.0}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Not trained in truth, but with shapes that are known."""
    model = make_model()
    gct.init.apply(model, SHAPES, generator=seeded(1))
    return model


def standard_error(shape: float, n: int) -> float:
    """Of a fitted shape: ``gct.fit`` states 0.8, 1.9, 4.5 / sqrt(n) at 0.5, 1, 2: a power law."""
    return 1.9 * shape**1.25 / math.sqrt(n)


def test_measured_shapes_are_those_drawn(trained: nn.Module) -> None:
    drawn = gct.init.apply(make_model(), SHAPES)
    measured = gct.init.from_statistics(trained).tensors
    assert list(measured) == list(drawn)
    for name, row in measured.items():
        assert row.shape == pytest.approx(
            drawn[name].shape, abs=5 * standard_error(row.shape, row.numel)
        )
        assert SHAPES[row.role] == drawn[name].shape
        # A sample's standard deviation is off by sqrt((kurtosis - 1) / 4 n): 2.45 / sqrt(n) at
        # shape 0.5, where the kurtosis is 25, and less at the others and for the fit.
        assert row.std == pytest.approx(drawn[name].std, rel=5 * 2.5 / math.sqrt(row.numel))
        assert row.numel == trained.get_parameter(name).numel()


def test_same_model_is_initialized_alike(trained: nn.Module) -> None:
    measured = gct.init.from_statistics(trained)
    twin = make_model()
    drawn = gct.init.apply(twin, measured, std=measured, generator=seeded(2))
    for name, row in measured.tensors.items():
        assert drawn[name].shape == row.shape
        assert drawn[name].std == pytest.approx(row.std, rel=1e-12)  # no depth scaling on top
    again = gct.init.from_statistics(twin)
    for name, row in again.tensors.items():
        error = standard_error(row.shape, row.numel)
        assert row.shape == pytest.approx(measured.tensors[name].shape, abs=5 * error)
    assert not torch.equal(twin["lm_head"].weight, trained["lm_head"].weight)


def test_shapes_alone_leave_the_variance_to_the_rule(trained: nn.Module) -> None:
    measured = gct.init.from_statistics(trained)
    drawn, rule = gct.init.apply(make_model(), measured), gct.init.apply(make_model())
    for name, distribution in drawn.items():
        assert distribution.shape == measured.tensors[name].shape
        assert distribution.std == pytest.approx(rule[name].std, rel=1e-12)


def test_another_model_takes_names_that_match_and_roles_for_the_rest(trained: nn.Module) -> None:
    measured = gct.init.from_statistics(trained)
    other = make_model(width=64, layers=4)
    other["extra"] = nn.Conv1d(3, 4, 5)
    drawn = gct.init.apply(other, measured, std=measured)
    by_rule = gct.init.apply(make_model(width=64, layers=4))
    name = "h.1.mlp.down.weight"
    assert drawn[name].shape == measured.tensors[name].shape
    # Another width has another fan: what was measured would be wrong.
    assert drawn[name].std == pytest.approx(by_rule[name].std, rel=1e-12)
    assert drawn["h.3.mlp.up.weight"].shape == measured.roles["mlp"]
    assert drawn["extra.weight"].shape == measured.roles["conv"]


def test_role_medians() -> None:
    def row(role: str, shape: float) -> TensorStatistics:
        return TensorStatistics(role, 5000, shape, 0.1)

    measured = Statistics(
        {"a": row("mlp", 0.5), "b": row("mlp", 3.0), "c": row("mlp", 0.7), "d": row("conv", 1.0)}
    )
    assert measured.roles == {"mlp": 0.7, "conv": 1.0}


# ---- what it reads


def save(kind: str, state: dict[str, torch.Tensor], folder: Path) -> Any:
    save_file = pytest.importorskip("safetensors.torch").save_file
    if kind == "state dict":
        return state
    if kind == "nested":
        return {"step": 7, "model": {f"module.{name}": value for name, value in state.items()}}
    if kind == "model_state_dict":  # torch's tutorial on checkpoints
        return {"epoch": 3, kind: state, "optimizer_state_dict": {"param_groups": []}}
    if kind == "compiled":
        return {f"_orig_mod.{name}": value for name, value in state.items()}
    if kind == "folder":
        names = sorted(state)
        for part in range(2):
            save_file({n: state[n] for n in names[part::2]}, folder / f"m-{part}.safetensors")
        return folder
    path = folder / f"checkpoint{kind}"
    if kind == ".safetensors":
        save_file(state, path)
    else:
        content = {"state_dict": state, "epoch": 3} if kind == ".ckpt" else state
        torch.save(content, path, _use_new_zipfile_serialization=kind != ".bin")
    return str(path) if kind == ".pt" else path


KINDS = ["state dict", "nested", "model_state_dict", "compiled"]
KINDS += [".pt", ".ckpt", ".bin", ".safetensors", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_give_what_the_model_gives(
    kind: str, trained: nn.Module, tmp_path: Path
) -> None:
    source = save(kind, trained.state_dict(), tmp_path)
    measured = gct.init.from_statistics(source).tensors
    assert measured == gct.init.from_statistics(trained).tensors


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("transformer.wte.weight", "embedding"),
        ("transformer.wpe.weight", "embedding"),
        ("model.embed_tokens.weight", "embedding"),
        ("token.weight", "embedding"),
        ("tokens.weight", "embedding"),
        ("position.weight", "embedding"),
        ("positions.weight", "embedding"),
        ("tokenizer.weight", "linear"),
        ("layers.0.w1.weight", "mlp"),
        ("layers.0.wo.weight", "mlp"),
        ("moe.experts.1.inner.weight", "mlp"),
        ("lm_head.weight", "linear"),
    ],
)
def test_roles_of_a_checkpoints_tensors_are_guessed_by_name(name: str, role: str) -> None:
    weight = torch.randn(40, 40, generator=seeded(4))
    assert gct.init.from_statistics({name: weight}).tensors[name].role == role


def test_all_zero_small_and_integer_tensors_are_left_out() -> None:
    state = {
        "zero.weight": torch.zeros(50, 50),
        "small.weight": torch.randn(30, 30),
        "codes.weight": torch.ones(50, 50, dtype=torch.int8),
        "norm.weight": torch.randn(5000),
        "head.weight": torch.randn(50, 50),
        "mask": torch.randn(50, 50),
    }
    assert list(gct.init.from_statistics(state).tensors) == ["head.weight"]
    both = gct.init.from_statistics(state, min_numel=900).tensors
    assert list(both) == ["small.weight", "head.weight"]


def test_exact_zeros_do_not_bend_the_shape() -> None:
    w = gct.init.generalized_gaussian_(torch.empty(400, 300), 1.5, generator=seeded(3))
    w[::2] = 0.0  # rows of tokens that never came
    row = gct.init.from_statistics({"emb.weight": w}).tensors["emb.weight"]
    assert row.shape == pytest.approx(1.5, abs=5 * standard_error(1.5, 60_000))
    assert row.std == pytest.approx(1 / math.sqrt(300), rel=5 * 1.0 / math.sqrt(60_000))


def test_large_tensors_are_sampled_over_all_their_columns() -> None:
    w = torch.empty(3000, 1024)
    gct.init.generalized_gaussian_(w, 0.8, generator=seeded(4))
    w[:, ::2] *= 3.0  # what a stride of two, or of any even number, would not see
    measured = gct.init.from_statistics({"w.weight": w}).tensors["w.weight"]
    exact = gct.fit(w, warn_pooled=False)
    assert measured.numel == w.numel()
    assert measured.shape == pytest.approx(
        exact.shape, abs=5 * standard_error(exact.shape, 1 << 20)
    )
    assert measured == gct.init.from_statistics({"w.weight": w}).tensors["w.weight"]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (3, TypeError, "state dict or the path of a checkpoint, got int"),
        ({"step": 3}, ValueError, "expected names and tensors.* got dict step"),
        ({"a.weight": torch.full((40, 40), math.nan)}, ValueError, r"a\.weight: .*1600 NaN"),
        ({"a.weight": torch.empty(40, 40, device="meta")}, ValueError, r"a\.weight: .* meta"),
        ({"x._flat_param": torch.ones(4000)}, ValueError, "summon_full_params"),
        ("model.onnx", ValueError, r"ending in \.safetensors, \.pt"),
        ("missing.pt", FileNotFoundError, r"missing\.pt"),
    ],
)
def test_sources_that_cannot_be_read(source: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        gct.init.from_statistics(source)


def test_folder_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \.safetensors files in this folder"):
        gct.init.from_statistics(tmp_path)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(make_model(), path)
    with pytest.raises(ValueError, match="whose loading would run code"):
        gct.init.from_statistics(path)


# ---- what it writes


def test_json_and_back(trained: nn.Module, tmp_path: Path) -> None:
    measured = gct.init.from_statistics(trained)
    path = tmp_path / "shapes.json"
    measured.save(path)
    assert Statistics.load(path) == measured
    row = json.loads(path.read_text())["tensors"]["wte.weight"]
    assert row == dataclasses.asdict(measured.tensors["wte.weight"])
    assert row["role"] == "embedding"
    assert row["numel"] == 300 * 48


@pytest.mark.parametrize("content", ["[]", "{}", '{"kind": "gct statistics", "format": 99}'])
def test_other_json_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="expected gct statistics of format 1, got"):
        Statistics.load(path)


@pytest.mark.parametrize("content", [b"no JSON", b"\x80\x04\x95"])
def test_file_that_is_no_json_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.json: expected the JSON of Statistics\.save"):
        Statistics.load(tmp_path / "other.json")


def test_statistics_of_nothing_are_refused_and_of_other_roles_leave_the_default() -> None:
    for argument in ("shape", "std"):
        with pytest.raises(ValueError, match=f"{argument}: these statistics are of no tensor"):
            gct.init.apply(make_model(), **{argument: Statistics({})})
    only = Statistics({"x.weight": TensorStatistics("mlp", 5000, 0.7, 0.1)})
    drawn = gct.init.apply(make_model(), only)
    assert drawn["h.0.mlp.up.weight"].shape == 0.7
    assert drawn["lm_head.weight"].shape == 1.0


def test_table() -> None:
    measured = Statistics(
        {
            "wte.weight": TensorStatistics("embedding", 14400, 0.512, 0.1443),
            "h.0.mlp.up.weight": TensorStatistics("mlp", 9216, 1.2, 0.02),
        }
    )
    assert str(measured).splitlines() == [
        "tensor             role       elements  shape    std",
        "wte.weight         embedding    14,400  0.512  0.144",
        "h.0.mlp.up.weight  mlp           9,216  1.200   0.02",
        "(median)           embedding            0.512",
        "(median)           mlp                  1.200",
    ]
    assert repr(measured) == "<Statistics of 2 tensors, shapes by role: embedding 0.51, mlp 1.20>"
    assert str(Statistics({})) == "tensor  role  elements  shape  std"
