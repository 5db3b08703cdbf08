"""What SECURITY.md promises: nothing on the wire is code, and nothing is fetched."""

from __future__ import annotations

import ast
import builtins
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from test_hook import make_model, train, wrap

import gct
from gct._agreement import gather_text

PACKAGE = Path(gct.__file__).parent
# Names whose call would run what came from outside, or fetch something.
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"marshal", "shelve", "urllib", "http", "requests", "ftplib", "subprocess"}
FORBIDDEN_MODULES |= {"dill", "cloudpickle", "builtins", "runpy", "ctypes"}
FORBIDDEN_FUNCTIONS = {"os.system", "os.popen"}


def violations(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [name.name for name in node.names]
            for module in [node.module or ""] if isinstance(node, ast.ImportFrom) else names:
                # pickle's exceptions may be caught: the module is imported for them.
                pickles = module == "pickle" and isinstance(node, ast.ImportFrom)
                if pickles or module.split(".")[0] in FORBIDDEN_MODULES:
                    yield f"line {node.lineno}: imports {module}"
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: calls {node.func.id}"
        if isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            name = f"{owner}.{node.func.attr}"
            if owner == "pickle" or name in FORBIDDEN_FUNCTIONS:
                yield f"line {node.lineno}: calls {name}"
            if name.endswith(("_object", "_object_list")):
                yield f"line {node.lineno}: calls {name}"
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            safe = options.get("weights_only")
            if name == "torch.load" and not (isinstance(safe, ast.Constant) and safe.value is True):
                yield f"line {node.lineno}: torch.load without weights_only=True"


def test_the_package_runs_and_fetches_nothing() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    assert len(sources) > 30
    found = {path.name: list(violations(path.read_text())) for path in sources}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "import subprocess",
        "from urllib.request import urlopen",
        "pickle.loads(wire)",
        "from pickle import loads",
        "from builtins import eval as run",
        "import dill",
        "os.system(text)",
        "dist.all_gather_object(everyone, mine)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
    ],
)
def test_what_is_forbidden_is_noticed(line: str) -> None:
    assert len(list(violations(line))) == 1


def announce_too_much(rank: int, world: int) -> None:
    if rank == 1:  # as gather_text() does it, but for the number
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
        dist.all_gather(lengths, torch.tensor([2**45]))
        return
    with pytest.raises(RuntimeError, match=r"texts of .*35184372088832.* at most 16777216"):
        gather_text(dist.group.WORLD, "a text")


def test_a_peer_cannot_have_memory_reserved() -> None:
    run_ranks(2, announce_too_much)


def without_pickle(rank: int, world: int) -> None:
    """A whole training with everything that could be tempted, where unpickling is impossible."""
    ddp_state: dict[str, Any] = {"bits": 2.0, "checksum": True, "error_feedback": True}
    ddp = wrap(make_model(), gct.GCTState(**ddp_state, hierarchy=2))

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("something is pickled, or run from text")

    for module, name in (
        (pickle, "loads"),
        (pickle, "load"),
        (pickle, "dumps"),
        (pickle, "Unpickler"),
        (dist.distributed_c10d, "_unpickler"),
        (dist.distributed_c10d, "_pickler"),
        (builtins, "eval"),
        (builtins, "exec"),
    ):
        setattr(module, name, refuse)
    train(ddp, rank, world, steps=4)
    gct.all_reduce(torch.ones(1000))


def test_nothing_is_pickled_on_the_way() -> None:
    run_ranks(4, without_pickle)
