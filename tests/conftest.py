"""What several test files share."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from alone import room
from ranks import run_ranks
from small_run import WORLD, record

from gct import _C
from gct.__main__ import main


def pytest_configure() -> None:
    # What a script starts in the background ignores Ctrl-C, and so do all whom the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` runs while no other test does."""
    with room(item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite tests/golden with what this build encodes and decodes; review the diff",
    )


@pytest.fixture(params=_C.implementations())
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once with each of the codec's implementations that this machine has."""
    before = _C.implementation()
    assert _C.set_implementation(request.param)
    yield request.param
    _C.set_implementation(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small tensors: on a busy machine more threads just wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def recording_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the monitor of a real run of two processes wrote."""
    path = tmp_path_factory.mktemp("recording") / "run.jsonl"
    run_ranks(WORLD, record, str(path))
    return path


@pytest.fixture(scope="session")
def report_page(recording_file: Path) -> Path:
    """The page that python -m gct report makes of it."""
    path = recording_file.with_name("report.html")
    assert main(["report", str(recording_file), "-o", str(path)]) == 0
    return path
