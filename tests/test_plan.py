"""gct.plan: its formulas, its picture of the real engine, and `python -m gct plan`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from laboratory import BENCHMARKS, needs_hosts
from plan_check import Check, StepCheck, verdict
from ranks import run_ranks

from gct import plan
from gct.__main__ import main
from gct._channel import Channel
from gct.codec import Codec

CSRC = Path(__file__).resolve().parents[1] / "csrc"
MILLION = 1_000_000
FREE = plan.Speed.from_rates(1e18, 1e18)


def link(gigabits: float, latency: float = 0.0, message: float = 0.0) -> plan.Link:
    return plan.Link(gigabits * 1e9, latency, message, efficiency=1.0)


def one_bucket(numel: int) -> plan.Step:
    return plan.Step(numel, bucket_numel=numel)


# ---- formulas


@pytest.mark.parametrize("world", [2, 3, 256])
def test_a_ring(world: int) -> None:
    """2 (W-1)/W times the bytes; a segment's latency hides behind the one before it."""
    cluster = plan.Cluster(world, link(8, latency=1e-3))  # a gigabyte a second
    fp32 = plan.predict("fp32", cluster, one_bucket(MILLION), FREE)
    sent = 4 * MILLION * 2 * (world - 1) / world
    assert fp32.sent_bytes == fp32.host_bytes == pytest.approx(sent)
    segment = 4 * MILLION / world / 2 / 1e9  # a message of up to 2 MiB is two of them
    each = max(segment, (1e-3 + segment) / 2)  # two on the way
    assert fp32.seconds == pytest.approx(2 * (world - 1) * 2 * each)
    fast = plan.Cluster(world, link(80, latency=1e-3))
    long = plan.predict("fp32", fast, one_bucket(world * 10 * MILLION), FREE)
    # 39 segments of at most 1 MiB, together 4 ms on the wire.
    assert long.seconds == pytest.approx(2 * (world - 1) * (39e-3 + 4e-3) / 2)
    bf16 = plan.predict("bf16", cluster, one_bucket(MILLION), FREE)
    assert bf16.sent_bytes == pytest.approx(sent / 2)


def test_low_rank() -> None:
    """PowerSGD's P and Q; what it would not make twice as small goes whole."""
    cluster = plan.Cluster(4, link(8))
    numel = 10 * 1000 * 500
    step, matrix = one_bucket(numel), (1000, 500)
    low = plan.predict("powersgd", cluster, step, FREE, powersgd_rank=4, matrix=matrix)
    assert low.sent_bytes == pytest.approx(1.5 * 4 * 10 * 4 * (1000 + 500))
    whole = plan.predict("powersgd", cluster, step, FREE, powersgd_rank=200, matrix=matrix)
    assert whole.sent_bytes == pytest.approx(1.5 * 4 * numel)


def test_two_shots() -> None:
    """Bytes are flat in the number of ranks; time is the wire's when the codec costs nothing."""
    for world in (4, 16, 256):
        cluster = plan.Cluster(world, link(8))
        flow = plan.predict("gct", cluster, one_bucket(6 * MILLION), FREE, bits=2.0)
        sent = 2 * (world - 1) / world * 6 * MILLION * 2 / 8
        assert flow.sent_bytes == pytest.approx(sent)
        assert flow.seconds == pytest.approx(sent / 1e9)
        assert flow.limit == "wire"


def test_the_codec_is_the_limit_where_the_link_is_fast() -> None:
    """One slice, two ranks: encode it, decode both segments; on half a core twice as long."""
    numel = 500_000
    speed = plan.Speed.from_rates(encode_rate=1e8, decode_rate=4e8)
    for cores, factor in ((1.0, 1.0), (0.5, 2.0)):
        cluster = plan.Cluster(2, link(1e6), cores=cores)
        flow = plan.predict("gct", cluster, one_bucket(numel), speed)
        assert flow.seconds == pytest.approx(factor * (numel / 1e8 + 2 * numel / 4e8), rel=1e-3)
        assert flow.limit == "encode"


def test_slices_overlap() -> None:
    """Ten slices on one core: encoding and decoding take turns, the wire hides behind them."""
    numel = 10 * 1024 * 1024
    speed = plan.Speed.from_rates(1e8, 4e8)
    wide = plan.Cluster(2, link(1e6), cores=1.0)
    alone = plan.predict("gct", wide, one_bucket(numel), speed).seconds
    assert alone == pytest.approx(numel / 1e8 + 2 * numel / 4e8, rel=1e-3)
    # On two cores the threads do not wait for each other: the slower one, encoding, is left, and
    # the last slice's decoding.
    both = plan.predict("gct", plan.Cluster(2, link(1e6), cores=2.0), one_bucket(numel), speed)
    assert both.seconds < 0.75 * alone
    # Slow: the bytes of all slices, before them one encoding, behind them one decoding.
    slow = plan.predict("gct", plan.Cluster(2, link(0.1)), one_bucket(numel), speed)
    wire = numel * 2 / 1e8
    assert slow.seconds == pytest.approx(wire + (1 / 1e8 + 2 / 4e8) * numel / 10, rel=1e-3)


def test_few_slices_are_on_their_way_over_a_long_link() -> None:
    """A second of latency: three buffers, so at least a third of a second for each slice."""
    cluster = plan.Cluster(2, link(1000, latency=1.0))
    flow = plan.predict("gct", cluster, one_bucket(30 * 1024 * 1024), FREE)
    assert flow.seconds == pytest.approx(1 + 29 / 3, rel=0.01)
    assert flow.limit == "latency"


def test_hosts_of_several_ranks() -> None:
    """2 hosts x 2 ranks: the hierarchy halves what crosses the link, as the issue asks."""
    cluster = plan.Cluster(4, link(1), local_ranks=2, local_link=link(100))
    step = one_bucket(6 * MILLION)
    flat = plan.predict("gct", cluster, step, FREE)
    split = plan.predict("gct-hierarchical", cluster, step, FREE)
    segment = 6 * MILLION * 2 / 8
    # Flat: each of 4 chunks goes to 2 ranks of the other host, in each shot, from 2 ranks.
    assert flat.host_bytes == pytest.approx(2 * 2 * 2 * segment / 4)
    assert split.host_bytes == pytest.approx(segment)
    # Of 4 N bytes a rank sends half to its neighbour, twice.
    assert split.sent_bytes == pytest.approx(4 * 6 * MILLION + segment / 2)
    ring = plan.predict("fp32", cluster, step, FREE)
    assert ring.host_bytes == pytest.approx(1.5 * 4 * 6 * MILLION), "one edge of the ring"


def test_moving_bytes_on_a_host_takes_its_processors() -> None:
    cluster = plan.Cluster(4, link(1), local_ranks=2, local_link=link(100))
    many = plan.Step(60 * MILLION, bucket_numel=6 * MILLION)
    slow = dataclasses.replace(FREE, byte_seconds=1e-9)
    moved = 4 * 6 * MILLION  # bytes inside the host, of a rank and bucket
    fast, busy = (plan.predict("gct-hierarchical", cluster, many, s) for s in (FREE, slow))
    assert busy.limit == "local link"
    assert busy.seconds - fast.seconds > 10 * 0.9 * moved * 1e-9


def test_one_host_is_no_network() -> None:
    cluster = plan.Cluster(4, link(1e-3), local_ranks=4, local_link=link(8))
    predictions = plan.predict_all(cluster, one_bucket(MILLION), FREE)
    assert [p.scheme for p in predictions] == ["fp32", "bf16", "powersgd", "gct"]
    assert all(p.host_bytes == 0 for p in predictions)
    assert predictions[0].seconds == pytest.approx(1.5 * 4 * MILLION / 1e9)


def test_one_rank_sends_nothing() -> None:
    for p in plan.predict_all(plan.Cluster(1, link(1)), one_bucket(MILLION), FREE):
        assert (p.sent_bytes, p.host_bytes) == (0, 0)
        assert p.seconds == pytest.approx(0)


def test_what_hides_behind_backward() -> None:
    """Ten buckets of 1 s each: behind a backward of 5 s half of the first nine."""
    cluster = plan.Cluster(2, link(8))
    step = plan.Step(10 * 250 * MILLION, seconds=10, backward=0.5, bucket_numel=250 * MILLION)
    p = plan.predict("fp32", cluster, step, FREE)
    assert p.seconds == pytest.approx(10)
    assert p.exposed_seconds == pytest.approx(1 + 9 * (1 - 0.5))
    assert p.step_seconds == pytest.approx(10 + p.exposed_seconds)
    # However long backward is, the last bucket comes at its end.
    long = plan.Step(step.numel, seconds=1000, bucket_numel=step.bucket_numel)
    assert plan.predict("fp32", cluster, long, FREE).exposed_seconds == pytest.approx(1)
    nothing = plan.Step(step.numel, bucket_numel=step.bucket_numel)
    assert plan.predict("fp32", cluster, nothing, FREE).exposed_seconds == pytest.approx(10)


@pytest.mark.parametrize("scheme", plan.SCHEMES)
def test_better_machines_are_not_slower(scheme: str) -> None:
    speed = plan.Speed(
        encode=((16e3, 1.5e-3), (64e3, 1.6e-3), (512e3, 2.4e-3)),
        decode=((64e3, 0.1e-3), (512e3, 0.6e-3)),
        cast_rate=1e9,
        powersgd=((1e6, 4e-3), (4e6, 14e-3)),
    )
    step = plan.Step(350 * MILLION, seconds=0.5)

    def seconds(gigabits: float, latency: float, cores: float) -> float:
        cluster = plan.Cluster(64, link(gigabits, latency), local_ranks=4, cores=cores)
        return plan.predict(scheme, cluster, step, speed).exposed_seconds

    base = seconds(10, 1e-4, 1)
    assert seconds(20, 1e-4, 1) <= base
    assert seconds(10, 5e-5, 1) <= base
    assert seconds(10, 1e-4, 2) <= base


def test_a_curve_is_followed() -> None:
    curve = ((100.0, 1.0), (200.0, 2.0), (400.0, 6.0))
    speed = plan.Speed(encode=curve, decode=curve)
    for numel, seconds in ((0, 0), (50, 0.5), (100, 1), (150, 1.5), (300, 4), (500, 8)):
        assert speed.encode_seconds(numel) == pytest.approx(seconds)
    assert speed.decode_seconds(300, cores=0.5) == pytest.approx(8)
    # Cores share what lies beyond the first piece of 64 Ki elements.
    rates = plan.Speed.from_rates(1e6, 2e6)
    numel = 10 * 65536
    assert rates.encode_seconds(numel, cores=3) == pytest.approx(0.065536 * (1 + 9 / 3))
    assert rates.decode_seconds(numel) == pytest.approx(numel / 2e6)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="full hosts"):
        plan.Cluster(6, link(1), local_ranks=4)
    with pytest.raises(ValueError, match="cores"):
        plan.Cluster(4, link(1), cores=0)
    with pytest.raises(ValueError, match="fp32, bf16"):
        plan.predict("zip", plan.Cluster(2, link(1)), one_bucket(8), FREE)


# ---- the real engine


def sent(rank: int, world: int, sizes: list[int], bits: float) -> list[int]:
    """Bytes that this rank's engine handed over for one all-reduce of each size."""
    group = dist.group.WORLD
    assert group is not None
    channel = Channel(group)
    result = []
    for numel in sizes:
        before = channel.stats()["wire_bytes"]
        values = torch.randn(numel, generator=torch.Generator().manual_seed(rank))
        channel.submit("all_reduce", values, Codec(bits=bits)._params, name="a test").wait()
        result.append(channel.stats()["wire_bytes"] - before)
    channel.close()
    return result


@pytest.mark.parametrize("bits", [1.5, 3.0])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_bytes_are_the_engines(world: int, bits: float) -> None:
    """Both sides of the border between one shot and two, and more than one slice."""
    border = int(16 * 1024 * 8 / bits / (world - 1) / (1 - 2 / world)) if world > 2 else 65536
    sizes = [border - 2048, border + 2048, 700_001]
    counted = run_ranks(world, sent, sizes, bits)
    for index, numel in enumerate(sizes):
        cluster = plan.Cluster(world, link(1))
        predicted = plan.predict("gct", cluster, one_bucket(numel), FREE, bits=bits).sent_bytes
        # Ranks' chunks end at multiples of 256 elements; slots are whole multiples of 16 bytes.
        # The other algorithm would be off by W/2 at least: 50 % for 3 ranks.
        assert sum(each[index] for each in counted) / world == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("layout.cpp", "kSliceNumel", plan._SLICE_NUMEL),
        ("layout.cpp", "kMaxSliceNumel", plan._MAX_SLICE_NUMEL),
        ("layout.cpp", "kFewSlices", plan._FEW_SLICES),
        ("layout.cpp", "kMinChunkNumel", plan._LEAST_CHUNK_NUMEL),
        ("job.cpp", "kLatencyBytes", plan._LATENCY_BYTES),
        ("engine.cpp", "kFirstExchanges", plan._FIRST_EXCHANGES),
        ("engine.cpp", "kSecondExchanges", plan._SECOND_EXCHANGES),
    ],
)
def test_constants_are_the_engines(file: str, name: str, value: int) -> None:
    text = (CSRC / "torch" / file).read_text()
    match = re.search(rf"constexpr \w+ {name} = ([\d *]+);", text)
    assert match, f"{name} is no longer in {file}: bring gct/plan.py up to date"
    assert math.prod(int(factor) for factor in match[1].split("*")) == value


def test_calibration_is_of_this_machine() -> None:
    threads = torch.get_num_threads()
    speed = plan.calibrate(bits=2.0)
    assert torch.get_num_threads() == threads
    for curve in (speed.encode, speed.decode, speed.powersgd):
        assert len(curve) >= 3
        assert all(a[0] < b[0] and 0 < a[1] <= b[1] for a, b in pairwise(curve))
    # Any processor that can run this; a wrong unit would be off by a thousand.
    for rate in (524288 / speed.encode_seconds(524288), speed.cast_rate):
        assert 1e6 < rate < 1e11


# ---- benchmarks/plan_check.py


def check_of(kind: type[Check | StepCheck], predicted: float, measured: float) -> Check | StepCheck:
    what = "exposed" if kind is StepCheck else "seconds"
    others = dict.fromkeys([field.name for field in dataclasses.fields(kind)], 0)
    return kind(**{**others, f"predicted_{what}": predicted, f"measured_{what}": measured})


@pytest.mark.parametrize("kind", [Check, StepCheck])
@pytest.mark.parametrize(
    ("predicted", "status", "largest"),
    [
        ([4.0], 0, 0),
        ([5.0, 4.0, 3.0], 0, 25),  # at the tolerance itself
        ([4.0, 5.04, 4.0], 1, 26),
        ([4.0, 2.96, 4.0], 1, 26),
        ([4.4, 2.0, 5.2], 1, 50),
    ],
)
def test_a_prediction_that_is_too_far_off_is_status_1(
    predicted: list[float],
    status: int,
    largest: int,
    kind: type[Check | StepCheck],
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = [check_of(other, 4.0, measured=4.0) for other in (Check, StepCheck)]
    checks = [check_of(kind, seconds, measured=4.0) for seconds in predicted]
    assert verdict([*right, *checks], tolerance=0.25) == status
    assert f"largest error {largest} %, allowed 25 %" in capsys.readouterr().out


@needs_hosts
@pytest.mark.long
def test_a_short_check_of_the_plan(tmp_path: Path) -> None:
    """On a machine that others use the errors are what they are: only that all is there."""
    words = ["--layouts=2x2", "--rates=1gbit", "--seconds=0.3", f"--out={tmp_path}"]
    command = [sys.executable, str(BENCHMARKS / "plan_check.py"), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode in (0, 1), ended.stderr
    content = json.loads((tmp_path / "plan.json").read_text())
    rows, steps = content["rows"], content["steps"]
    worst = max(abs(check["error"]) for check in [*rows, *steps])
    assert f"largest error {100 * worst:.0f} %, allowed 25 %" in ended.stdout
    assert ended.returncode == int(worst > 0.25)
    assert (len(rows), len(steps)) == (3 * 4, 4)
    assert {check["layout"] for check in [*rows, *steps]} == {"2x2"}
    assert any("hierarchy" in row["scheme"] for row in rows)
    for row in rows:
        # Barriers and message headers.
        assert 0 <= row["counted_bytes"] - row["predicted_bytes"] < 0.01 * row["size"]
        # A unit or a factor of the ranks that is wrong would be off by more.
        assert 1 / 8 < row["predicted_seconds"] / row["measured_seconds"] < 8, row
    assert "Largest error" in (tmp_path / "plan.md").read_text()


# ---- command line

BASE = ["plan", "--params", "350m", "--ranks", "16", "--link", "10gbit", "--step-ms", "500"]
RATES = ["--encode-rate", "350m", "--decode-rate", "1g"]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, *RATES, "--local-ranks", "4"]) == 0
    out = capsys.readouterr().out
    assert "16 ranks on 4 hosts, 10 Gbit/s" in out
    assert "350,000,000 elements in 54 buckets" in out
    assert "350 M elements/s to encode, 1,000 to decode" in out
    *rows, _, verdict = out[out.index("---") :].splitlines()[1:]
    assert [row.split("  ")[0] for row in rows] == [
        "fp32", "bf16", "PowerSGD, rank 4", "gct, 2 bits", "gct, 2 bits, hierarchical",
    ]  # fmt: skip
    assert "2.62 GB" in rows[0]  # 2 * 15/16 * 1.4 GB
    assert verdict.startswith("Shortest step, PowerSGD aside: gct, 2 bits, hierarchical, 1/")


@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        (["--link", "100gbit"], "PowerSGD aside: bf16; gct, 2 bits: "),
        (["--link", "7gbit"], "PowerSGD aside: bf16; gct, 2 bits: much the same (encode)."),
        (
            ["--link", "6.6gbit"],
            "PowerSGD aside: gct, 2 bits, 1/1.9 of fp32's; bf16: much the same.",
        ),
        (["--link", "100mbit"], "PowerSGD aside: gct, 2 bits, 1/1"),
        (["--ranks", "1", "--step-ms", "0"], "One rank has nobody"),
    ],
)
def test_the_verdict(
    arguments: list[str], verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BASE, *RATES, "--cores", "1", *arguments]) == 0
    assert verdict in capsys.readouterr().out.splitlines()[-1]


def test_the_head_says_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, *RATES, "--cores", "1"]) == 0
    given = capsys.readouterr().out
    assert "a step of 500 ms, 333 of them backward\n" in given
    assert "1 core(s) for each rank\n" in given
    assert main([*BASE[:-2], *RATES]) == 0
    left_out = capsys.readouterr().out
    assert "nothing hides behind backward" in left_out
    assert "(this machine's: see --cores)" in left_out


def test_a_reader_that_has_seen_enough() -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "gct", *BASE, *RATES]
    ended = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert ended.returncode == 1
    assert not ended.stderr


def test_the_table_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, *RATES, "--json", "--bits", "1.5"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["cluster"]["ranks"] == 16
    assert content["speed"]["cast_rate"] is None, "free where only the codec's rates are given"
    rows = {row["scheme"]: row for row in content["predictions"]}
    assert rows["gct"]["sent_bytes"] == pytest.approx(2 * 15 / 16 * 350e6 * 1.5 / 8)


def test_rates_are_measured_unless_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(BASE) == 0
    assert "measured here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("25gbit", 25e9),
        ("100mbit", 1e8),
        ("2.5Gbit/s", 2.5e9),
        ("10Gbps", 1e10),
        ("10 Gb/s", 1e10),
        ("3GB/s", 24e9),
        ("100MBps", 8e8),
    ],
)
def test_units_of_links(text: str, bits: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, *RATES, "--link", text, "--json"]) == 0
    link = json.loads(capsys.readouterr().out)["cluster"]["link"]
    assert link["bits_per_second"] == pytest.approx(bits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--link", "25"], "expected a rate such as 25gbit"),
        (["--link", "25gb"], "expected a rate such as 25gbit"),
        (["--link", "0gbit"], "expected a rate such as 25gbit"),
        (["--params", "many"], "expected a number such as 7e9"),
        (["--ranks", "0"], "expected a whole number from 1 on"),
        (["--ranks", "6", "--local-ranks", "4"], "no multiple of 4"),
        (["--matrix", "4096"], "rows x columns"),
        (["--backward", "2"], "share from 0 to 1"),
        (["--step-ms", "-1"], "from 0 on"),
        (["--bits", "99"], "bits must be from 0.1 to 12"),
        (["--encode-rate", "350m"], "give both"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*BASE, *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_documented_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = (CSRC.parent / "docs" / "planning.md").read_text()
    match = re.search(r"```\n\$ python -m gct (plan .*)\n([^`]*)```", text)
    assert match
    assert main(match[1].split()) == 0
    assert capsys.readouterr().out == match[2]
