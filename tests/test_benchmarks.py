"""What benchmarks say of arguments that they can't use: one sentence, before they measure."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gct
from gct import _C

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import codec
import effort
import gradient_rate


def sentence_of(
    main: Callable[[], None],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What the program says to these words, before it prints anything else."""
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{main.__module__}.py", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{main.__module__}.py: ")
    assert err.count("\n") == 1
    return err


# ---- benchmarks/codec.py


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--kinds fixed --bits 2.5", ["from 1 to 8", "2.5", "--kinds"]),
        ("--bits 99", ["from 0.1 to 12", "99", "--kinds"]),
        ("--bits nan", ["from 0.1 to 12", "nan"]),
        ("--bits two", ["--bits", "'two'"]),
        ("--kinds gg eg --bits 1", ["from 1.5 to 12", "leave eg out"]),
        ("--repeats 0", ["--repeats", "from 1 on", "'0'"]),
        ("--repeats 1.5", ["--repeats", "a whole number", "'1.5'"]),
        ("--sizes 1024 0", ["--sizes", "from 1 on", "'0'"]),
        ("--threads 0", ["--threads", "from 1 to 1024", "'0'"]),
        ("--threads 4096", ["--threads", "from 1 to 1024", "'4096'"]),
        ("--peer-bits 0", ["--peer-bits", "from 0.1 to 6", "'0'"]),
        ("--implementations sse9", ["'sse9'", *_C.implementations()]),
        ("--json /proc/nothing/x.json", ["/proc/nothing/x.json", "can't be written"]),
        ("--csv /proc/nothing/x.csv", ["/proc/nothing/x.csv", "can't be written"]),
        ("--scaling", ["--threads", "2 or more", "got 1"]),
        ("--scaling --threads 2 --repeats 1", ["--repeats", "2 or more", "got 2 and 1"]),
        ("--scaling --threads 2 --csv x.csv", ["--csv", "use --json"]),
    ],
)
def test_codec_refuses(
    words: str,
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = sentence_of(codec.main, words.split(), monkeypatch, capsys)
    for part in parts:
        assert part in said


def test_codec_takes_what_it_can(tmp_path: Path) -> None:
    """The limits themselves, and raw beside kinds whose bits were chosen."""
    path = tmp_path / "new" / "x.json"
    words = f"--bits 8 1 --kinds gg fixed raw --threads 2 --json {path} --repeats 1 --sizes 1"
    options = codec.parse_options(words.split())
    assert (options.threads, options.repeats, options.sizes) == (2, 1, [1])
    assert codec.bits_of("fixed", options) == [8, 1]
    assert codec.bits_of("raw", options) == [32]
    assert path.exists()
    assert codec.bits_of("eg", codec.parse_options([])) == codec.KINDS["eg"]


def test_codec_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        codec.parse_options(["--help"])
    said = capsys.readouterr().out
    for word in ("Columns:", "elements", "dB", "+ add", "GB/s", "constriction", *codec.KINDS):
        assert word in said
    assert ",".join(_C.implementations()) in said


@pytest.mark.parametrize(("snr_db", "cell"), [(999, "exact"), (float("nan"), "-"), (9.5, "9.50")])
def test_codec_prints_no_false_decibels(
    snr_db: float, cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {"median": 1e-3, "best": 1e-3}
    result = {"name": "raw", "bytes": 4096, "snr_db": snr_db, "encode": seconds}
    codec.print_row(codec.row_of(result, "float32", 1024, 32))
    said = capsys.readouterr().out
    assert said.split("|")[0].split()[-1] == cell
    assert "999" not in said


# ---- benchmarks/effort.py and gradient_rate.py


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of gradients, sound and not, which are named in the tests."""
    torch.save({"weight": torch.randn(64, 64)}, tmp_path / "sound.pt")
    torch.save({"bias": torch.randn(8000), "weight": torch.randn(8, 8)}, tmp_path / "vectors.pt")
    torch.save({"weight": torch.full((64, 64), torch.nan)}, tmp_path / "nan.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no gradients\nat all")
    return tmp_path


WRONG_FILES = [
    ("missing.pt", ["expected a file", "found none", "collect_gradients.py", "'.[examples]'"]),
    ("vectors.pt", ["two dimensions", "4096 elements", "found none"]),
    ("nan.pt", ["NaN or Inf"]),
    ("list.pt", ["expected a dict of tensors"]),
    ("text.pt", ["expected a dict of tensors"]),
]


@pytest.mark.parametrize(("name", "parts"), WRONG_FILES)
def test_effort_reads_all_files_first(
    name: str,
    parts: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(folder / "sound.pt"), str(folder / name)]
    said = sentence_of(effort.main, words, monkeypatch, capsys)
    for part in (name, *parts):
        assert part in said


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--repeats 0", ["nothing to measure", "name files"]),
        ("--repeats -1", ["--repeats", "from 0 on", "'-1'"]),
        ("--numel 0", ["--numel", "from 1 on", "'0'"]),
        ("--json /proc/nothing/x.json", ["/proc/nothing/x.json", "can't be written"]),
    ],
)
def test_effort_refuses(
    words: str,
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = sentence_of(effort.main, words.split(), monkeypatch, capsys)
    for part in parts:
        assert part in said


@pytest.mark.parametrize(("name", "parts"), WRONG_FILES[1:])
def test_gradient_rate_reads_all_files_first(
    name: str,
    parts: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "sound.pt").rename(folder / "grad_step0.pt")
    (folder / name).rename(folder / "grad_step10.pt")
    said = sentence_of(gradient_rate.main, [str(folder)], monkeypatch, capsys)
    for part in ("grad_step10.pt", *parts):
        assert part in said


def test_gradient_rate_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": torch.randn(64, 64)}, folder / "grad_step_last.pt")
    for none in (folder, folder / "missing", folder / "sound.pt"):
        said = sentence_of(gradient_rate.main, [str(none)], monkeypatch, capsys)
        assert f"{none}: expected a folder with files grad_step*.pt, found none" in said
        assert "'.[examples]'" in said
    (folder / "sound.pt").rename(folder / "grad_step0.pt")
    words = [str(folder), "--json", "/proc/nothing/x.json"]
    said = sentence_of(gradient_rate.main, words, monkeypatch, capsys)
    assert "can't be written" in said


def test_snapshots_are_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (100, 0, 20):
        torch.save({"weight": torch.ones(64, 64)}, tmp_path / f"grad_step{step}.pt")
    names = [path.stem for path in gradient_rate.snapshots(tmp_path)]
    assert names == ["grad_step0", "grad_step20", "grad_step100"]


@pytest.mark.usefixtures("one_thread")
def test_tensors_that_are_sent_exactly_are_no_miss(tmp_path: Path) -> None:
    torch.manual_seed(1)
    gradients = {"a": torch.randn(64, 64), "b": torch.randn(2, 2), "c": torch.zeros(64, 64)}
    torch.save(gradients, tmp_path / "some.pt")
    tensors = gradient_rate.load_tensors(tmp_path / "some.pt")
    assert [x.numel() for x in tensors] == [4096, 4]
    found = gradient_rate.achieved(tensors, gct.Codec(snr_db=15, allocation="mse"))
    assert 0 < found["worst_snr_error_db"] < 1
