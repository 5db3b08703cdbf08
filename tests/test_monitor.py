"""The monitor on real training of two processes: what it records is true and changes nothing."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from log_capture import captured_log
from ranks import run_ranks
from small_run import ELEMENTS, STEPS, WORLD, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import gct
from gct import _C
from gct._channel import Run
from gct._histogram import histogram, spread
from gct._recording import read_recording
from gct._sinks import JsonLines, TensorBoard

INTERVAL = 3


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- what a run leaves behind


def without_and_with(rank: int, world: int, folder: str) -> tuple[list[float], list[float]]:
    _, plain = train(rank)
    monitor = gct.Monitor(f"{folder}/run.jsonl", interval=INTERVAL, histograms=["0.weight", "4.*"])
    state, watched = train(rank, monitor=monitor)
    state.monitor.close()
    return plain, watched


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Path]:
    folder = tmp_path_factory.mktemp("run")
    return run_ranks(WORLD, without_and_with, str(folder)), folder / "run.jsonl"


def test_training_is_the_same_to_the_last_bit(run: Any) -> None:
    for plain, watched in run[0]:
        assert plain == watched


def test_only_rank_0_writes_one_file(run: Any) -> None:
    assert list(run[1].parent.iterdir()) == [run[1]]
    assert [line["rank"] for line in lines_of(run[1]) if line["kind"] == "run"] == [0]


def test_records_come_at_the_interval(run: Any) -> None:
    lines = lines_of(run[1])
    assert (lines[0]["world_size"], lines[0]["settings"]["bits"]) == (WORLD, 2.0)
    assert [line["step"] for line in lines if line["kind"] == "sample"] == [2, 5, 8]  # start_step 2
    logged = [line for line in lines if line["kind"] == "values"]
    assert [line["step"] for line in logged] == list(range(STEPS))
    assert all(line["values"]["learning_rate"] == 1e-3 for line in logged)
    assert logged[-1]["values"]["loss"] < logged[0]["values"]["loss"]


def test_time_of_the_start_is_exact(run: Any) -> None:
    [header] = [line for line in lines_of(run[1]) if line["kind"] == "run"]
    # Before the file's last line, and not by more than the run took.
    assert 0 < run[1].stat().st_mtime - header["time"] < 60


def test_numbers_keep_six_digits_and_large_ones_three_decimals(tmp_path: Path) -> None:
    numbers = [123456.78912, -98765432.1, 999.98765, 1.23456789e-5, 0.0, math.inf]
    sink = JsonLines(tmp_path / "out.jsonl", append=False)
    sink.write({"numbers": numbers})
    sink.close()
    [line] = lines_of(tmp_path / "out.jsonl")
    assert line["numbers"] == [123456.789, -98765432.1, 999.988, 1.23457e-5, 0.0, None]


def test_parameters_are_the_compressed_ones_in_the_models_order(run: Any) -> None:
    [names] = [line["names"] for line in lines_of(run[1]) if line["kind"] == "parameters"]
    assert names == ["0.weight", "3.weight", "4.weight"]  # DDP hands them over in another order


def test_numbers_of_every_sample_add_up(run: Any) -> None:
    for sample in read_recording(run[1]).samples:
        for name in sample.numel:
            shape, scale, bits, nmse = (
                sample.columns[column][name] for column in ("shape", "scale", "bits", "nmse")
            )
            assert 0.1 <= shape <= 10
            assert scale > 0
            # 2 bits allow 12 dB on Gaussian data and more on others; all runs share one step.
            assert 1.0 < bits < 3.0
            # Of centroids a quarter at most; D becomes D / (1 - D) with levels of unit gain.
            assert 10**-2 < nmse < 1 / 3
        total = sum(sample.numel.values())
        coded = sum(sample.columns["bits"][name] * sample.numel[name] for name in sample.numel)
        steps = sample.interval.encoded_numel / ELEMENTS  # those that were compressed
        raw = 32 * (ELEMENTS - total)  # biases, norm
        sent = 8 * sample.interval.encoded_bytes / steps
        # On top: 40 + 24 * 6 bytes of headers, 128 of lane states, some for tables, 2.8 % padding.
        assert coded + raw < sent < 1.03 * (coded + raw) + 8 * 350


def test_counters_are_those_of_the_interval(run: Any) -> None:
    first, second, third = (sample.interval for sample in read_recording(run[1]).samples)
    assert (first.steps, second.steps, third.steps) == (3, INTERVAL, INTERVAL)
    assert first.plain_bytes > 0  # two steps before start_step
    assert second.plain_bytes == 0
    assert second.wire_bytes == 3 * first.wire_bytes  # one compressed step, then three
    assert 0 < second.encode_seconds < second.seconds
    assert second.ratio == pytest.approx(32 / second.bits_per_element, rel=0.01)


def test_histograms_are_those_asked_for(run: Any) -> None:
    recording = read_recording(run[1])
    assert set(recording.histograms) == {"0.weight", "4.weight"}
    for name, numel in (("0.weight", 48 * 160), ("4.weight", 8 * 96)):
        assert [step for step, _ in recording.histograms[name]] == [2, 5, 8]
        for _, shown in recording.histograms[name]:
            assert sum(shown.counts) + shown.outside == round(numel * (1 - shown.zero_fraction))


# ---- the probe against encoding by hand


def probe_one(rank: int, world: int, folder: str) -> list[tuple[Any, ...]]:
    """By codec: the monitor's bits and NMSE, and those of encoding the same gradient by itself."""
    torch.manual_seed(3)
    results = []
    codecs = [
        {"bits": 2.0},
        {"bits": 3.0, "allocation": "mse"},
        {"snr_db": 14.0, "codec": "eg"},
        {"bits": 4, "codec": "fixed"},
        {"codec": "raw"},
    ]
    for i, codec in enumerate(codecs):
        model = nn.Linear(300, 200, bias=False)
        path = f"{folder}/{i}.jsonl"
        state = gct.GCTState(start_step=0, model=model, monitor=path, **codec)
        ddp = DistributedDataParallel(model)
        ddp.register_comm_hook(state, gct.hook)
        x = torch.randn(64, 300) * torch.logspace(-1, 1, 300)
        own = torch.autograd.grad(model(x).square().mean(), model.weight)[0]
        ddp(x).square().mean().backward()
        state.monitor.close()
        wire, report = _C.encode_report(own, state.codec._params)
        error = (gct.decode(wire).double() - own.flatten()).square().sum()
        nmse = float(error / own.double().square().sum())
        bits = (report["model_bits"] or 8 * (wire.numel() - 64)) / own.numel()
        seen = lines_of(Path(path)) if rank == 0 else []
        [sample] = [line for line in seen if line["kind"] == "sample"] or [None]
        results.append((state.codec.kind, sample, bits, nmse))
    return results


def test_bits_and_error_are_those_of_encoding_the_gradient(tmp_path: Path) -> None:
    results, _ = run_ranks(WORLD, probe_one, str(tmp_path))
    assert len(results) == 5
    for kind, sample, bits, nmse in results:
        # A segment of one run: 40 + 24 bytes of headers are not the parameter's. 6 digits are kept.
        assert sample["nmse"] == [pytest.approx(nmse, rel=1e-5)], kind
        assert sample["bits"] == [pytest.approx(bits, rel=1e-3)], kind
        assert (nmse == 0) == (kind == "raw")


def many_ways(rank: int, world: int, folder: str) -> None:
    """Where the values come from the residual, in two shots, from halves or from nothing."""
    monitor = gct.Monitor(f"{folder}/{world}.jsonl", interval=1, rank=None)
    state, _ = train(
        rank, 5, monitor=monitor, algorithm="two_shot", error_feedback=True, start_step=1
    )
    state.monitor.close()


@pytest.mark.parametrize("world", [2, 3])
def test_two_shots_with_error_feedback_on_every_rank(world: int, tmp_path: Path) -> None:
    run_ranks(world, many_ways, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == world
    for rank in range(world):
        recording = read_recording(tmp_path / f"{world}.rank{rank}.jsonl")
        assert [sample.step for sample in recording.samples] == [1, 2, 3, 4]
        for sample in recording.samples:
            for name in sample.numel:
                assert 0.5 < sample.columns["bits"][name] < 3.5
                assert 0 < sample.columns["nmse"][name] < 0.5


def with_infinity(rank: int, world: int, path: str) -> None:
    model = nn.Linear(64, 64, bias=False)
    state = gct.GCTState(start_step=0, model=model, monitor=gct.Monitor(path, interval=1))
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gct.hook)
    for factor in (math.inf, 0.0, 1.0):
        ddp(torch.ones(4, 64) * factor if rank == 0 else torch.ones(4, 64)).sum().backward()
        ddp.zero_grad()
    state.monitor.close()


def test_infinite_and_zero_gradients_are_recorded_as_such(tmp_path: Path) -> None:
    run_ranks(WORLD, with_infinity, str(tmp_path / "run.jsonl"))
    infinite, zero, usual = read_recording(tmp_path / "run.jsonl").samples
    assert infinite.columns["nmse"] == {"weight": None}
    assert zero.columns["nmse"] == {"weight": 0.0}
    assert zero.columns["shape"] == {"weight": None}
    assert usual.columns["shape"]["weight"] is not None


def in_a_world_of_one(rank: int, world: int, path: str) -> None:
    state, _ = train(rank, 4, monitor=path)
    state.monitor.close()


def test_one_process_sends_nothing_and_records_that(tmp_path: Path) -> None:
    run_ranks(1, in_a_world_of_one, str(tmp_path / "run.jsonl"))
    [sample] = read_recording(tmp_path / "run.jsonl").samples
    assert set(sample.columns["bits"].values()) == {None}
    assert sample.interval.wire_bytes == 0


def test_numpy_scalars_are_numbers(tmp_path: Path) -> None:
    monitor = gct.Monitor(tmp_path / "run.jsonl", interval=np.int64(5), histograms=np.int32(2))
    assert (type(monitor.interval), monitor.interval) == (int, 5)
    assert type(monitor._histograms) is int
    for interval in (True, np.bool_(True), 2.0):
        with pytest.raises(ValueError, match="interval must be a whole number"):
            gct.Monitor(tmp_path / "run.jsonl", interval=interval)


# ---- files


def interrupted(rank: int, world: int, path: str) -> None:
    monitor = gct.Monitor(path, interval=2)
    state, _ = train(rank, 5, monitor=monitor)
    saved = state.state_dict()
    train_on, _ = train(rank, 2, resume=saved, monitor=gct.Monitor(path, interval=2))
    train_on.monitor.close()
    monitor.close()
    again, _ = train(rank, 4, resume=saved, monitor=gct.Monitor(path, interval=2))
    again.monitor.close()


def test_resumed_run_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run_ranks(WORLD, interrupted, str(path))
    recording = read_recording(path)
    assert [line["step"] for line in lines_of(path) if line["kind"] == "run"] == [0, 5, 5]
    assert [sample.step for sample in recording.samples] == [2, 4, 6, 8]
    assert [step for step, _ in recording.values["loss"]] == list(range(9))  # the last to do it
    assert all(sample.interval.wire_bytes > 0 for sample in recording.samples)
    assert [sample.interval.steps for sample in recording.samples] == [3, 2, 2, 2]


def test_new_run_begins_the_file_anew(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for _ in range(2):
        run_ranks(1, in_a_world_of_one, str(path))
    assert [line["kind"] for line in lines_of(path)].count("run") == 1


FULL = 200_000  # more than the file that the process group's store is in


def full_disk(rank: int, world: int, folder: str) -> tuple[str, list[float], list[float]]:
    """One file is full from the start, one as soon as it has FULL bytes."""
    _, plain = train(rank)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with captured_log() as messages:
        _, full = train(rank, monitor="/dev/full")
        monitor = gct.Monitor(f"{folder}/run.jsonl", interval=2)
        for step in range(FULL // 50):  # a line has more than 50 bytes
            monitor.log(step, before=step)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))
        _, filled = train(rank, monitor=monitor)
        monitor.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert full == plain
    return "".join(f"{message}\n" for message in messages), plain, filled


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_does_not_end_training(tmp_path: Path) -> None:
    [(text, plain, filled), _] = run_ranks(WORLD, full_disk, str(tmp_path))
    assert filled == plain
    path = tmp_path / "run.jsonl"
    assert text.splitlines() == [
        "gct: the monitor stops writing to /dev/full: [Errno 28] No space left on device",
        f"gct: the monitor stops writing to {path}: [Errno 27] File too large",
    ]
    assert path.stat().st_size == FULL
    whole = path.read_text().count("\n")
    assert len(read_recording(path).values["before"]) == whole - 1, "all but the header"


def lines_before_training(rank: int, world: int, path: str) -> list[str]:
    monitor = gct.Monitor(path)
    monitor.log(parameters=12)
    assert not Path(path).exists()
    state, _ = train(rank, 1, monitor=monitor)
    assert state.step == 1
    monitor.log(after=torch.tensor(1.5))
    failures = []
    for bad in ("high", torch.ones(2), None):
        try:
            monitor.log(loss=bad)  # type: ignore[arg-type]
        except TypeError as error:
            failures.append(str(error))
    try:
        gct.GCTState(monitor=monitor)
    except ValueError as error:
        failures.append(str(error))
    monitor.close()
    monitor.log(late=1.0)
    return failures


def test_values_before_and_after_training(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    [failures] = run_ranks(1, lines_before_training, str(path))
    names = [list(line.get("values", {})) for line in lines_of(path)]
    assert names == [[], ["parameters"], ["loss", "learning_rate"], ["after"]]
    assert failures == [
        "loss must be a number, got str",
        "loss must be a number, got Tensor",
        "loss must be a number, got NoneType",
        "this monitor already serves another GCTState: make one for each",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "values", "step": 1, "val', r"line 2: expected a JSON object, but at column 35"),
        ("[1, 2]", r'line 2: expected a JSON object with a "kind"'),
        ('{"kind": "values", "step": 1}', r"line 2: not a record of format 1 \(KeyError: 'values'"),
        ('{"kind": "run", "format": 9}', r"line 2: expected format 1, got 9"),
    ],
)
def test_corrupt_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    header = json.dumps({"kind": "run", "format": 1, "step": 0})
    path.write_text(f"{header}\n{line}\n{header}\n")
    with pytest.raises(ValueError, match=message):
        read_recording(path)


def test_last_line_of_a_killed_run_is_left_out(run: Any, tmp_path: Path) -> None:
    text = run[1].read_text()
    cut = tmp_path / "cut.jsonl"
    cut.write_text(text[: text.rindex('"kind": "histogram"') + 40])
    assert len(read_recording(cut).samples) == 3


def test_file_that_is_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match="got no line"):
        read_recording(path)
    path.write_text('{"kind": "config"}\n')
    with pytest.raises(ValueError, match='line 1: expected a record of kind "run" first'):
        read_recording(path)


def test_files_that_could_not_be_written_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match="it is a folder; give the monitor another path"):
        gct.Monitor(tmp_path)
    with pytest.raises(OSError, match=r"can't write .*run\.jsonl: .*file is no folder"):
        gct.GCTState(monitor=tmp_path / "file" / "deep" / "run.jsonl")
    gct.Monitor(tmp_path / "file").close()
    gct.Monitor(tmp_path / "new" / "run.jsonl").close()
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is made"
    assert (tmp_path / "file").read_text() == "kept"
    monkeypatch.setenv("RANK", "1")
    gct.Monitor(tmp_path)  # another rank writes, maybe on another host
    with pytest.raises(OSError, match="it is a folder"):
        gct.Monitor(tmp_path, rank=None)
    with pytest.raises(OSError, match="it is a folder"):
        gct.Monitor(tmp_path, rank=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_files_without_permission_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o400)
    with pytest.raises(OSError, match="no permission to write this file"):
        gct.Monitor(tmp_path / "file")
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OSError, match=r"no permission to write in .*closed"):
        gct.Monitor(tmp_path / "closed" / "run.jsonl")


class SourceOfOne:
    """What a state tells of a model with one parameter."""

    start_step = 0

    def counters(self) -> dict[str, float]:
        return {}

    def parameter_order(self) -> list[str]:
        return ["w"]

    compressible_names = parameter_order


@pytest.mark.parametrize("ending", ["next", "close"])
def test_dropped_sample_is_said(
    ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a pass whose statistics never come, as when a peer died in it."""
    path = tmp_path / "run.jsonl"
    monitor = gct.Monitor(path, interval=2)
    source = SourceOfOne()
    monitor.attach(source, {})
    x = torch.ones(4)
    stats = torch.tensor([[1.0, 1.0, 2.0, 0.1]])
    arrivals = []
    for step in range(3 if ending == "next" else 2):
        monitor.begin_step(step, 0, 2)
        if monitor.sampling:
            for _ in range(2):
                arrivals.append(monitor.watch(["w"], [Run(4, raw=False)], x))
            arrivals[-1](stats)
        monitor.end_step()
    if ending == "next":
        arrivals[-2](stats)  # the second sample comes whole
    monitor.close()
    kinds = [(line["kind"], line.get("step")) for line in lines_of(path)]
    dropped = {"kind": "dropped", "step": 0, "arrived": 1, "expected": 2}
    assert dropped in lines_of(path)
    assert kinds.count(("dropped", 0)) == 1
    assert kinds.count(("sample", 2)) == (ending == "next")
    assert "drops its sample of step 0: statistics of 1 of 2 buckets came" in caplog.text
    assert len(read_recording(path).samples) == (ending == "next")


def test_histogram_is_that_of_its_own_parameter(tmp_path: Path) -> None:
    """Where others come before it in the bucket, of which one is not compressed."""
    source = SourceOfOne()
    monitor = gct.Monitor(tmp_path / "run.jsonl", histograms=["w"])
    monitor.attach(source, {})
    generator = torch.Generator().manual_seed(4)
    sizes = [3000, 40, 2000, 1000]
    parts = [torch.randn(n, generator=generator) * 10.0**i for i, n in enumerate(sizes)]
    runs = [Run(n, raw=n == 40) for n in sizes]
    monitor.begin_step(0, 0, 2)
    arrived = monitor.watch(["a", None, "w", "b"], runs, torch.cat(parts))
    arrived(torch.ones(4, 4))
    monitor.end_step()
    monitor.close()
    [line] = [line for line in lines_of(tmp_path / "run.jsonl") if line["kind"] == "histogram"]
    expected = histogram(parts[2])
    assert expected is not None
    assert line["name"] == "w"
    assert line["counts"] == expected.counts
    assert line["high"] == pytest.approx(expected.high, rel=1e-5)  # six digits are kept


class Dispatched(TorchDispatchMode):
    """Counts torch's operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_pass_that_is_not_measured_costs_nothing_but_a_look_at_the_step(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    source, monitor = SourceOfOne(), gct.Monitor(path)
    monitor.attach(source, {})
    measured = []
    for step in range(300):
        before = path.stat().st_size if path.exists() else 0
        with Dispatched() as operations:
            monitor.begin_step(step, 0, 2)
            if monitor.sampling:
                measured.append(step)
                monitor.watch(["w"], [Run(4, raw=False)], torch.ones(4))(torch.ones(1, 4))
            monitor.end_step()
        if step % 100 > 1:  # the measured ones are 0, 100, 200 and are written in the next pass
            assert (operations.count, path.stat().st_size) == (0, before)
    monitor.close()
    assert measured == [0, 100, 200]


@pytest.mark.parametrize("interval", [0, -1, 1.5, True])
def test_interval_must_be_a_whole_number(interval: Any) -> None:
    with pytest.raises(ValueError, match="interval must be a whole number from 1 on"):
        gct.Monitor("run.jsonl", interval=interval)


def test_monitor_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"monitor must be a gct\.Monitor or a path, got int"):
        gct.GCTState(monitor=1)  # type: ignore[arg-type]


# ---- histograms


def test_histogram_has_the_shape_of_its_data() -> None:
    generator = torch.Generator().manual_seed(1)
    for shape in (0.6, 1.0, 2.0):
        x = gct.GeneralizedGaussian(shape, 3e-5).sample(20_000, generator).float()
        x[::10] = 0
        shown = histogram(x, limit=1 << 20)
        assert shown.zero_fraction == pytest.approx(0.1, abs=1e-3)
        # The standard error of the shape is 1.9 / sqrt(n) at shape 1, 4.5 at 2: 5 of them.
        assert shown.shape == pytest.approx(shape, abs=5 * 4.5 / 18_000**0.5)
        edges = torch.linspace(shown.low, shown.high, len(shown.counts) + 1, dtype=torch.float64)
        expected = 18_000 * shown.fitted.cdf(edges).diff()
        # Counts vary by the square root of what is expected; the fit's own error is below that.
        assert ((torch.tensor(shown.counts) - expected).abs() < 6 * (expected + 1).sqrt()).all()


def test_histogram_of_nothing_is_none() -> None:
    assert histogram(torch.zeros(100)) is None
    assert histogram(torch.tensor([1.0, math.nan])) is None


def test_spread_takes_windows_from_all_over() -> None:
    x = torch.arange(1_000_000.0)
    part = spread(x, 4096)
    assert part.numel() == 4096
    assert part[0] == 0
    assert part[-1] > 0.9e6
    assert torch.equal(spread(x[:100], 4096), x[:100])


def test_spread_takes_all_columns() -> None:
    """Also where parts of the flat matrix begin at the same column."""
    rows, columns = 2048, 1024
    part = spread(torch.arange(columns).float().repeat(rows, 1), 1 << 14)
    counts = torch.bincount(part.long(), minlength=columns)
    # 16 expected; evenly spread windows of a quarter of a row vary by a few.
    assert counts.min() >= 12
    assert counts.max() <= 20


# ---- TensorBoard


def to_tensorboard(rank: int, world: int, folder: str) -> None:
    monitor = gct.Monitor(f"{folder}/run.jsonl", interval=3, tensorboard=f"{folder}/board")
    state, _ = train(rank, monitor=monitor)
    state.monitor.close()


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the package tensorboard is not installed (extra 'dev')",
    )
    run_ranks(WORLD, to_tensorboard, str(tmp_path))
    events = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    recording = read_recording(tmp_path / "run.jsonl")
    written = [(event.step, event.value) for event in events.Scalars("gct_shape/3.weight")]
    expected = [(sample.step, sample.columns["shape"]["3.weight"]) for sample in recording.samples]
    assert written == [(step, pytest.approx(shape)) for step, shape in expected]
    assert len(events.Scalars("loss")) == STEPS
    assert events.Histograms("gct_histogram/0.weight")


def test_every_number_gets_to_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the package tensorboard is not installed (extra 'dev')",
    )
    columns = {"shape": [0.5, 2.0], "scale": [3.0, 4.0], "bits": [1.0, 8.0], "nmse": [0.25, 0.75]}
    shown = {"low": -4.0, "high": 4.0, "counts": [5, 1, 2, 7]}
    board = TensorBoard(tmp_path)
    board.write({"kind": "parameters", "names": ["a", "b"], "numel": [9, 9]})
    board.write({"kind": "sample", "step": 6, "counters": {"steps": 7}, **columns})
    board.write({"kind": "histogram", "step": 6, "name": "b", **shown})
    board.write({"kind": "values", "step": 8, "values": {"loss": 1.5}})
    board.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    expected = {
        f"gct_{c}/{n}": (6, v) for c in columns for n, v in zip("ab", columns[c], strict=True)
    }
    expected |= {"gct/steps": (6, 7.0), "loss": (8, 1.5)}
    assert set(events.Tags()["scalars"]) == set(expected)
    for tag, point in expected.items():
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [point], tag
    [event] = events.Histograms("gct_histogram/b")
    found = event.histogram_value
    assert (event.step, found.min, found.max, found.num) == (6, -4.0, 4.0, 15)
    # A bin's limit is its upper end.
    assert (found.bucket_limit, found.bucket) == ([-2, 0, 2, 4], [5, 1, 2, 7])
    middles = [(-3, 5), (-1, 1), (1, 2), (3, 7)]
    assert found.sum == sum(x * n for x, n in middles)
    assert found.sum_squares == sum(x * x * n for x, n in middles)
