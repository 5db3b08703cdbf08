"""python -m gct report: what the page says, and what happens where there is nothing to say."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gct.__main__ import main
from gct._recording import read_recording

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra 'report')")
pytest.importorskip("jinja2", reason="jinja2 is not installed (extra 'report')")

FIGURES = ["loss", "others", "wire", "shape", "columns", "histograms", "times"]
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Texts, ids, references of a page; fails on an element that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: Counter[str] = Counter()
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def report(recording: Path, output: Path) -> str:
    assert main(["report", str(recording), "-o", str(output)]) == 0
    return output.read_text()


@pytest.fixture(scope="module")
def text(report_page: Path) -> str:
    return report_page.read_text()


def record(path: Path, *lines: dict[str, Any], **header: Any) -> Path:
    first = {"kind": "run", "format": 1, "gct": "0", "step": 0, "rank": 0, "world_size": 2}
    first |= {"interval": 10, "settings": {}, **header}
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, *lines)))
    return path


def sample(step: int, names: list[str], shape: float = 0.8) -> dict[str, Any]:
    counters = {
        "steps": step + 1,
        "seconds": 0.1 * (step + 1),
        "encoded_numel": 1000 * (step + 1),
        "encoded_bytes": 250 * (step + 1),
        "raw_bytes": 4000 * (step + 1),
        "wire_bytes": 250 * (step + 1),
        "encode_seconds": 0.001 * (step + 1),
    }
    columns = {"shape": shape, "scale": 1e-4, "bits": 2.0, "nmse": 0.03}
    values = {column: [value] * len(names) for column, value in columns.items()}
    return {"kind": "sample", "step": step, "counters": counters, **values}


# ---- the page


def test_page_is_whole_and_refers_to_nothing_outside(text: str) -> None:
    page = Page(text)
    assert page.tags["script"] == 0
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    inside = re.sub(r'xmlns(:\w+)?="http[^"]*"', "", text)
    assert "http:" not in inside
    assert "https:" not in inside
    assert not re.search(r"@import|url\((?!#)", inside)


def test_ids_are_unique_and_references_have_their_target(text: str) -> None:
    page = Page(text)
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    targets = {reference[1:] for reference in page.references if reference[0] == "#"}
    targets |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert targets <= set(page.ids)
    assert targets


def test_every_figure_is_there_with_a_description(text: str) -> None:
    for name in FIGURES:
        [svg] = re.findall(rf'<figure id="{name}">\s*(<svg.*?>)', text, re.DOTALL)
        assert 'role="img"' in svg
        assert re.search(r'aria-label="[^"]{20,}"', svg)
    assert Page(text).tags["svg"] == len(FIGURES)


def test_table_holds_the_last_sample(recording_file: Path, text: str) -> None:
    last = read_recording(recording_file).samples[-1]
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", text)
    assert [name for name, _ in rows] == list(last.numel) == ["0.weight", "3.weight", "4.weight"]
    for name, cells in rows:
        numel, shape, scale, bits, nmse = re.findall("<td>(.*?)</td>", cells)
        assert int(numel.replace(",", "")) == last.numel[name]
        values = {"shape": shape, "scale": scale, "bits": bits, "nmse": nmse}
        for column, value in values.items():
            # Two decimals or three digits are shown.
            exact = last.columns[column][name]
            assert float(value) == pytest.approx(exact, rel=5e-3, abs=5.1e-3)


def test_head_sums_the_run_up(recording_file: Path, text: str) -> None:
    recording = read_recording(recording_file)
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    intervals = [sample.interval for sample in recording.samples]
    raw, wire = (sum(getattr(i, k) for i in intervals) for k in ("raw_bytes", "wire_bytes"))
    assert float(shown["fewer bytes"].rstrip("\u00d7")) == pytest.approx(raw / wire, abs=0.051)
    bits = 8 * sum(i.encoded_bytes for i in intervals) / sum(i.encoded_numel for i in intervals)
    assert float(shown["bits per element"]) == pytest.approx(bits, abs=6e-4)
    assert float(shown["loss"]) == pytest.approx(recording.values["loss"][-1][1], rel=1e-3)
    assert shown["recorded up to step"] == "8"
    assert shown["ranks"] == "2"
    assert shown["bits"] == "2.0"


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", 'a"b&c', "$x^2$ and $y$"]
    lines = [
        {"kind": "parameters", "names": names, "numel": [5, 6, 7]},
        sample(2, names),
        {"kind": "values", "step": 2, "values": {"<b>loss</b>": 1.0, "$rate$": 2.0}},
    ]
    recording = record(tmp_path / "a<b>.jsonl", *lines, settings={"codec": "<i>"})
    page = Page(report(recording, tmp_path / "out.html"))
    assert page.tags["script"] == page.tags["b"] == page.tags["i"] == 0
    for name in [*names, "<b>loss</b>", "$rate$", "<i>", "a<b>.jsonl"]:
        assert name in page.texts, name
    # In the heat maps (two have names), and in the table.
    assert all(page.texts.count(name) == 3 for name in names)


def test_what_is_not_a_number_is_left_blank(tmp_path: Path) -> None:
    lines = [
        {"kind": "parameters", "names": ["a", "b"], "numel": [5, 6]},
        {**sample(2, ["a", "b"]), "shape": [None, None], "nmse": [0.0, None]},
        {**sample(12, ["a", "b"]), "shape": [None, None], "nmse": [None, None]},
    ]
    page = Page(report(record(tmp_path / "run.jsonl", *lines), tmp_path / "out.html"))
    assert page.texts.count("-") == 4  # of the last sample's table
    assert "NaN" not in page.texts
    assert "nan" not in page.texts


def test_values_alone_are_drawn_with_a_note(tmp_path: Path) -> None:
    """A run before its first compressed pass."""
    logged = [{"kind": "values", "step": i, "values": {"loss": 1 / (i + 1)}} for i in range(3)]
    page = Page(report(record(tmp_path / "run.jsonl", *logged), tmp_path / "out.html"))
    assert page.tags["svg"] == 1
    assert any("No backward pass was measured yet" in text for text in page.texts)


def test_samples_alone_of_one_process_are_drawn(tmp_path: Path) -> None:
    """Nothing is sent and nothing encoded."""
    measured = sample(2, ["a"])
    measured["counters"] = {"steps": 3, "seconds": 1.0}
    measured["bits"] = measured["nmse"] = [None]
    lines = [{"kind": "parameters", "names": ["a"], "numel": [5]}, measured]
    page = Page(report(record(tmp_path / "run.jsonl", *lines), tmp_path / "out.html"))
    assert page.tags["svg"] == 2
    assert "fewer bytes" not in page.texts


def test_long_run_of_a_large_model_gives_a_page_of_modest_size(tmp_path: Path) -> None:
    names = [f"transformer.layers.{i // 4}.part{i % 4}.projection.weight" for i in range(400)]
    lines: list[dict[str, Any]] = [{"kind": "parameters", "names": names, "numel": [9] * 400}]
    lines += [sample(step, names, shape=1 + math.sin(step)) for step in range(2, 2000, 20)]
    chance = random.Random(1)
    for step in range(20_000):
        spike = 50.0 if step == 7_777 else 0.0
        loss = {"loss": chance.gauss(3, 0.1) + spike}
        lines.append({"kind": "values", "step": step, "values": loss})
    text = report(record(tmp_path / "run.jsonl", *lines), tmp_path / "out.html")
    assert len(text) < 1_500_000
    page = Page(text)
    labels = [t for t in page.texts if t.startswith("transformer") or "…" in t]
    assert len(labels) == 400 + 2 * 80  # the table, and two heat maps with every fifth name
    # The spike stands out though 20 steps share one point: 50 is a tick of the loss axis.
    assert "50" in page.texts


# ---- errors: one sentence, status 2


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("python -m gct: ")
    return err


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(["report", str(tmp_path / "none.jsonl")], capsys)
    assert message.endswith("none.jsonl: No such file or directory\n")


def test_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "log.jsonl"
    other.write_text('{"loss": 1}\n')
    assert "line 1: expected a JSON object with a" in failure(["report", str(other)], capsys)
    other.write_bytes(b"\x80\x04\x95\n")
    assert "line 1: expected a JSON object" in failure(["report", str(other)], capsys)
    assert not (tmp_path / "log.html").exists()


def test_nothing_recorded_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(["report", str(record(tmp_path / "run.jsonl"))], capsys)
    assert "nothing was recorded yet" in message


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A recording of which little is drawn."""
    return record(tmp_path / "my.run.jsonl", {"kind": "values", "step": 0, "values": {"loss": 1}})


def test_output_that_cannot_be_written(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "no" / "report.html"
    message = failure(["report", str(short), "-o", str(target)], capsys)
    assert message == f"python -m gct: can't write {target}: there is no folder {target.parent}\n"
    message = failure(["report", str(short), "-o", str(tmp_path)], capsys)
    assert message == f"python -m gct: can't write {tmp_path}: Is a directory\n"


def test_page_stands_beside_the_recording_by_default(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(short)]) == 0
    assert (tmp_path / "my.run.html").exists()
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'my.run.html'}: 0 samples")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_missing_package_is_named(
    package: str, short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    message = failure(["report", str(short)], capsys)
    assert f"this needs the package {package}: pip install {package}" in message
