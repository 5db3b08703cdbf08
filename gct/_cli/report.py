"""`python -m gct report`: a monitor's file as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from gct._cli import CommandError, check_folder, require
from gct._recording import Recording, read_recording

DESCRIPTION = """\
Draw what GCTState(monitor=...) recorded: loss, bits, ratio, the shape of every parameter's gradient
over the steps, histograms with their fits, times. Writes one HTML file without any reference to the
network. The run may still be going on. docs/monitoring.md says what the figures mean."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recording", type=Path, help="a monitor's file, such as run.jsonl")
    parser.add_argument(
        "-o", "--output", type=Path, help="HTML file to write; default: run.html beside run.jsonl"
    )


def run(arguments: argparse.Namespace) -> int:
    source: Path = arguments.recording
    target: Path = arguments.output or source.with_suffix(".html")
    recording = _read(source)
    check_folder(target)
    require("jinja2", "matplotlib")
    from gct._cli.page import page

    html = page(recording, source.name)
    try:
        target.write_text(html, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"can't write {target}: {error.strerror}") from error
    print(f"{target}: {len(recording.samples)} samples, {len(html) / 1e6:.1f} MB")
    return 0


def _read(source: Path) -> Recording:
    try:
        recording = read_recording(source)
    except OSError as error:
        raise CommandError(f"can't read {source}: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    if not recording.samples and not recording.values:
        raise CommandError(
            f"{source}: nothing was recorded yet; the first backward pass that is compressed is "
            "the first one measured"
        )
    return recording
