"""python -m gct fit: checkpoints of all kinds, and a goodness of fit that means something."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

import gct
from gct.__main__ import main
from gct._cli.goodness import fit_tensor

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(shape: float, n: int, scale: float = 1.0, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return gct.GeneralizedGaussian(shape, scale).sample(n, generator).float()


# ---- goodness of fit


def by_chance(n: int) -> float:
    """The loss of the right density, to expect at most: 45 symbols or fewer, doubled."""
    return 2 * 45 / (2 * n * math.log(2))


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_own_density_loses_nothing_but_chance(shape: float) -> None:
    n = 200_000
    found = fit_tensor(draw(shape, n))
    assert 0 <= found.loss < by_chance(n)
    model = gct.GeneralizedGaussian(found.shape, found.scale)
    # The step follows the sample's own root mean square, which at shape 0.5 varies by 0.5 %:
    # 0.007 bits. Entropies vary by 1 / sqrt(n) times 2 bits or so.
    assert found.bits == pytest.approx(model.rate(model.std / 2), abs=0.03)
    assert found.std == model.std


def test_losses_of_other_densities_are_relative_entropies() -> None:
    """Normal data under the Laplace density and the other way round, with scipy's functions."""
    n = 400_000
    edges = np.concatenate([[-np.inf], np.arange(-80, 0) / 2 + 0.25])

    def probabilities(model: Any) -> Any:
        below = np.diff(model.cdf(edges))  # upper tails are 1 less something
        return np.concatenate([below, [1 - 2 * below.sum()], below])

    def relative_entropy(p: Any, q: Any) -> float:
        p, q = probabilities(p), np.maximum(probabilities(q), 2.0**-32)
        return float(np.sum(p[p > 0] * np.log2(p[p > 0] / q[p > 0])))

    normal = scipy.stats.norm()  # root mean square 1 in all of these
    as_laplace = relative_entropy(normal, scipy.stats.laplace(scale=math.sqrt(2 / math.pi)))
    # Means over n symbols of a log ratio whose standard deviation is 0.4: 4 of their errors.
    assert fit_tensor(draw(2.0, n)).laplace_loss == pytest.approx(as_laplace, abs=1.6 / n**0.5)
    laplace = scipy.stats.laplace(scale=math.sqrt(0.5))
    as_normal = relative_entropy(laplace, normal)
    # A standard deviation of 0.67: 6 of the errors, since the step varies with the sample, too.
    assert fit_tensor(draw(1.0, n)).normal_loss == pytest.approx(as_normal, abs=4 / n**0.5)


def test_loss_of_a_misfit_does_not_depend_on_the_number_of_elements() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        x = torch.cat([torch.randn(200_000), torch.randn(200_000) + 4])
        x = x[torch.randperm(len(x))] - 2
    small, large = fit_tensor(x[:20_000]), fit_tensor(x)
    assert large.loss > 0.05  # two humps are no generalized Gaussian
    assert small.loss == pytest.approx(large.loss, abs=4 * 0.5 / math.sqrt(20_000))


def test_zeros_and_unit_change_nothing() -> None:
    x = draw(0.8, 50_000)
    plain = fit_tensor(x)
    mixed = fit_tensor(torch.cat([x * 1e-20, torch.zeros(150_000)]))
    assert mixed.zero_fraction == 0.75
    for name in ("shape", "bits", "loss", "laplace_loss", "normal_loss"):
        # Rounding of x * 1e-20 moves a symbol of 50,000 here and there, by less than 20 bits.
        assert getattr(mixed, name) == pytest.approx(getattr(plain, name), abs=2e-3), name
    assert mixed.std / 1e-20 == pytest.approx(plain.std, rel=1e-5)


def test_values_around_another_centre_are_a_misfit() -> None:
    """As a norm's gains, which are near 1: the density is centred at 0."""
    assert fit_tensor(1 + 0.01 * draw(2.0, 4096)).loss > 1


def test_outliers_cost_no_more_than_an_escape() -> None:
    x = draw(1.0, 100_000)
    x[7] = 1e30
    found = fit_tensor(x)
    for loss in (found.loss, found.laplace_loss, found.normal_loss):
        assert 0 <= loss < 32


def test_mixture_of_scales_is_marked() -> None:
    mixed = draw(2.0, 64 * 4096).view(64, 4096) * torch.logspace(-2, 2, 64)[:, None]
    found = fit_tensor(mixed)
    assert found.pooled
    assert found.shape < 0.7
    assert found.block_shape == pytest.approx(2.0, rel=0.05)
    assert not fit_tensor(draw(0.5, 64 * 4096)).pooled
    assert fit_tensor(draw(0.5, 2000)).block_shape is None


# ---- the command


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    """What the command printed: the table, or the error."""
    assert main(["fit", *map(str, arguments)]) == status
    out, err = capsys.readouterr()
    if status:
        assert out == ""
        assert err.count("\n") == 1
        return err
    assert err == ""
    return out


def names_in(table: str) -> list[str]:
    lines = table.split("\n\n")[0].splitlines()
    assert lines[0].split()[:3] == ["tensor", "elements", "zeros"]
    return [line.split()[0] for line in lines[1:]]


@pytest.fixture
def nested() -> dict[str, Any]:
    weight = draw(0.7, 6000, 1e-3).view(60, 100)
    return {
        "model": {"w": weight, "steps": torch.tensor(3), "bias": torch.zeros(5000)},
        "optimizer": {"state": {0: {"exp_avg": weight.bfloat16()}}, "lr": 0.1},
        "more": [draw(2.0, 4000).double(), (draw(1.0, 4000).to(torch.float8_e4m3fn),)],
        "bad": torch.full((3000,), math.nan),
        "small": torch.ones(3),
        "ids": torch.arange(5000),
        "empty": torch.empty(0),
        "sparse": torch.eye(100).to_sparse(),
    }


NESTED = ["model.w", "optimizer.state.0.exp_avg", "more.0", "more.1.0"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_nested_checkpoint(
    zipped: bool, nested: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not zipped:  # torch.load stumbles over 8-bit floats in the old format
        nested["more"][1] = (nested["more"][1][0].float(),)
    path = tmp_path / "checkpoint.pt"
    torch.save(nested, path, _use_new_zipfile_serialization=zipped)
    out = run(capsys, path, "--no-plot", "--json", tmp_path / "fits.json")
    assert names_in(out) == NESTED
    assert "4 tensors, 20,000 elements" in out
    skipped = out.split("skipped: ")[1].strip().split(", ")
    assert sorted(skipped) == [
        "1 all zeros",
        "1 with NaN or infinity",
        "2 fewer than 2048 elements",
        "3 not dense floating point",
    ]
    content = json.loads((tmp_path / "fits.json").read_text())
    rows = {row.pop("name"): row for row in content["tensors"]}
    assert list(rows) == NESTED
    first = rows["model.w"]
    assert first.pop("size") == [60, 100]
    assert first == dataclasses.asdict(fit_tensor(nested["model"]["w"]))
    assert first["shape"] == pytest.approx(0.7, abs=5 * 1.5 / 6000**0.5)  # 5 standard errors
    assert rows["optimizer.state.0.exp_avg"]["shape"] == pytest.approx(first["shape"], rel=0.02)


def test_safetensors_in_the_order_of_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {f"layer.{i}.w": draw(1.0, 3000, seed=i).half() for i in range(12)}
    tensors["layer.1.norm"] = torch.ones(3000, dtype=torch.bfloat16)
    path = tmp_path / "model.safetensors"
    safetensors_torch.save_file(tensors, path)
    out = run(capsys, path, "--no-plot", "--exclude", "*.norm")
    assert names_in(out) == [f"layer.{i}.w" for i in range(12)]
    assert "skipped: 1 left out by name" in out
    out = run(capsys, path, "--no-plot", "--only", "layer.1.*")
    assert names_in(out) == ["layer.1.norm", "layer.1.w"]


def test_single_tensor_and_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = draw(1.3, 40_000, 0.02)
    x[:10_000] = 0
    torch.save(x, tmp_path / "x.pt")
    out = run(capsys, tmp_path / "x.pt", "--no-plot")
    header, row = out.splitlines()[:2]
    assert len(header) == len(row)
    found = fit_tensor(x)
    assert row.split() == [
        "tensor",
        "40,000",
        "25.0%",
        f"{found.shape:.2f}",
        f"{found.block_shape:.2f}",
        f"{found.std:.3g}",
        f"{found.bits:.2f}",
        f"{found.loss:.3f}",
        f"{found.laplace_loss:.3f}",
        f"{found.normal_loss:.3f}",
    ]


def test_shapes_at_the_limits_are_shown_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(50_000, generator=generator) - 0.5
    spiky = uniform.pow(41)  # shape 0.1 or less: most of it is next to nothing
    torch.save({"uniform": uniform, "spiky": spiky}, tmp_path / "x.pt")
    out = run(capsys, tmp_path / "x.pt", "--no-plot")
    assert [line.split()[3] for line in out.splitlines()[1:3]] == [">=10", "<=0.1"]
    assert "from <=0.1 to >=10" in out
    assert ">=10" in str(gct.init.from_statistics({"fc.weight": uniform.view(500, 100)}))


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_shows_every_tensor(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    torch.save({f"w{i}$x$": draw(0.5 + i / 4, 3000) for i in range(8)}, tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    options = ["--plot", "plot.svg"] if suffix == "svg" else []
    name = "plot.svg" if options else "model-fit.png"
    assert f"plot: {name}" in run(capsys, "model.pt", *options)
    if suffix == "svg":
        text = Path("plot.svg").read_text()
        # Six of them have a histogram, too.
        assert [text.count(f">w{i}$x$<") for i in range(8)] == [2, 1, 2, 2, 2, 1, 2, 2]
    else:
        picture = matplotlib.image.imread("model-fit.png")[..., :3]
        assert picture.shape[1] == 1430  # 11 inches
        drawn = (picture < 0.9).any(axis=-1)
        for part in np.array_split(drawn, 4, axis=0):
            assert part.mean() > 0.01


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell command")
def test_code_in_a_pickle_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"w": draw(1.0, 3000), "evil": Evil(tmp_path / "run")}, tmp_path / "evil.pt")
    message = run(capsys, tmp_path / "evil.pt", "--no-plot", status=2)
    # Some Pythons know the function's module by another name.
    assert re.search(r"got \w+\.call, whose loading would run code; .* safetensors", message)
    assert "weights_only" not in message  # torch recommends to set it to False
    with pytest.raises(ValueError, match="whose loading would run code") as refused:
        gct.init.from_statistics(tmp_path / "evil.pt")
    assert "weights_only" not in "".join(traceback.format_exception(refused.value))
    assert not (tmp_path / "run").exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.call, (["touch", str(self.path)],)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"", "a.pt can't be loaded"),
        ("a.pt", b"no pickle", "a.pt: expected a file of torch.save"),
        ("a.pt", b"PK\x03\x04 no zip file", "a.pt"),
        ("a.safetensors", b"", "a.safetensors is no whole safetensors file"),
        ("a.safetensors", b"\x90" * 100, "a.safetensors is no whole safetensors file"),
    ],
)
def test_other_files(
    name: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in run(capsys, tmp_path / name, "--no-plot", status=2)


def test_cut_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.pt", "model.safetensors"):
        path = tmp_path / name
        tensors = {"w": draw(1.0, 30_000)}
        if name.endswith("pt"):
            torch.save(tensors, path)
        else:
            safetensors_torch.save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:60_000])
        assert name in run(capsys, path, "--no-plot", status=2)


def test_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no file" in run(capsys, tmp_path / "none.pt", "--no-plot", status=2)
    torch.save({"w": torch.ones(10), "n": 3}, tmp_path / "small.pt")
    message = run(capsys, tmp_path / "small.pt", "--no-plot", status=2)
    assert "nothing to fit in" in message
    assert "1 fewer than 2048 elements" in message
    message = run(capsys, tmp_path / "small.pt", "--plot", tmp_path / "x.bmp", status=2)
    assert "expected a file .png, .svg, .pdf" in message
    message = run(capsys, tmp_path / "small.pt", "--plot", tmp_path / "no" / "x.png", status=2)
    assert "there is no folder" in message


@pytest.mark.parametrize("package", ["matplotlib", "safetensors"])
def test_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    (tmp_path / "model.safetensors").write_bytes(b"")
    message = run(capsys, tmp_path / "model.safetensors", status=2)
    assert f"this needs the package {package}: pip install {package}" in message
    assert ("--no-plot" in message) == (package == "matplotlib")
