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
from gct._agreement import agree_on_layout, gather_text
from gct._parameters import describe

PACKAGE = Path(gct.__file__).parent
# Names whose call would run what came from outside, or fetch something.
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"marshal", "shelve", "urllib", "http", "requests", "ftplib", "subprocess"}
FORBIDDEN_MODULES |= {"dill", "cloudpickle"}
FORBIDDEN_OS = ("system", "popen", "exec", "spawn", "posix_spawn")  # how names of os begin


def forbidden_name(module: str, name: str) -> bool:
    """Whether ``module.name`` must neither be called nor be imported."""
    if module == "os":
        return name.startswith(FORBIDDEN_OS)
    return module == "pickle" or (module == "builtins" and name in FORBIDDEN_CALLS)


def violations(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [name.name for name in node.names]
            for module in [node.module or ""] if isinstance(node, ast.ImportFrom) else names:
                if module.split(".")[0] in FORBIDDEN_MODULES:
                    yield f"line {node.lineno}: imports {module}"
            if isinstance(node, ast.ImportFrom):
                for name in names:
                    if forbidden_name(node.module or "", name):
                        yield f"line {node.lineno}: imports {name} from {node.module}"
            else:
                for alias in node.names:  # under another name its calls would not be recognized
                    if alias.asname and alias.name in {"pickle", "builtins", "os", "importlib"}:
                        yield f"line {node.lineno}: renames {alias.name}"
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: calls {node.func.id}"
        if ast.unparse(node.func) in {"importlib.import_module", "import_module"} and not (
            node.args and isinstance(node.args[0], ast.Constant)
        ):
            yield f"line {node.lineno}: imports a module whose name isn't written there"
        if isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            name = f"{owner}.{node.func.attr}"
            if forbidden_name(owner, node.func.attr) or name.endswith(("_object", "_object_list")):
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
        "import pickle as p",
        "builtins.eval(text)",
        "from builtins import exec",
        "os.system(text)",
        "os.execvp(text, [])",
        "from os import popen",
        "import dill",
        "from cloudpickle import loads",
        "importlib.import_module(text)",
        "import_module(name=text)",
        "dist.all_gather_object(everyone, mine)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
    ],
)
def test_what_is_forbidden_is_noticed(line: str) -> None:
    assert len(list(violations(line))) == 1


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


def too_long_a_text(rank: int, world: int) -> None:
    """Rank 1 announces more than a text can have, and sends nothing."""
    group = dist.group.WORLD
    assert group is not None
    if rank == 1:
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
        dist.all_gather(lengths, torch.tensor([2**24 + 1]), group=group)
        return
    with pytest.raises(RuntimeError, match=r"rank 1 announces a text of 16777217 bytes"):
        gather_text(group, "short")


def test_a_peer_does_not_say_how_much_memory_its_text_takes() -> None:
    run_ranks(2, too_long_a_text, group_timeout=5.0)


def large_model(rank: int, world: int) -> None:
    """A layout of 10,000 parameters in one bucket can be quoted, where ranks differ."""
    group = dist.group.WORLD
    assert group is not None
    layout = describe([torch.empty(12345, 6789, 3, 3, device="meta")] * 10_000)
    names = [[f"transformer.blocks.{i}.attention.projection.weight" for i in range(10_000)]]
    with pytest.raises(RuntimeError, match="need the same model"):
        agree_on_layout(group, "bucket 0", f"rank {rank}: {layout} with buckets {names}")


def test_the_layout_of_a_large_model_is_not_too_long() -> None:
    run_ranks(2, large_model)
