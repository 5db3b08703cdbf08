"""The build's facts, the messages of setup.py, and the rules that keep the floors apart."""

import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gct
from gct import _C, _build

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"


@pytest.fixture
def setup_py() -> ModuleType:
    """setup.py as a module; its setup() runs only when it is the main program."""
    spec = importlib.util.spec_from_file_location("gct_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nowhere(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment with no package in it, for setup.py's search; returns its site-packages."""
    packages = tmp_path / "lib" / f"python{setup_py.PYTHON}" / "site-packages"
    paths = {"purelib": str(packages), "platlib": str(packages)}
    monkeypatch.delenv("GCT_TORCH_DIR", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(setup_py.sysconfig, "get_paths", lambda: paths)
    monkeypatch.setattr(setup_py.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(setup_py, "caller_prefix", lambda: None)
    return packages


def fake_torch(packages: Path, version: str) -> Path:
    folder = packages / "torch"
    (folder / "lib").mkdir(parents=True)
    (folder / "version.py").write_text(f"from typing import Optional\n__version__ = '{version}'\n")
    return folder


# The extension and its package.


def test_extension_is_built_for_this_torch_and_this_version():
    info = _C.build_info()
    assert info["torch"] == torch.__version__
    assert info["version"] == gct.__version__


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 processor")
def test_extension_has_all_kernels_that_this_processor_runs() -> None:
    """A compiler that no longer gets their flags builds none, and all else would still pass."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split()
    needed = {
        "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vbmi2"},
        "avx2": {"avx2", "bmi2"},
        "scalar": set(),
    }
    expected = [name for name, instructions in needed.items() if instructions <= set(flags)]
    assert _C.implementations() == expected


def test_extension_for_another_torch_names_both_versions(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.1+cpu")
    with pytest.raises(ImportError, match=r"built for torch 2\.\S+, but torch 2\.99\.1\+cpu is"):
        _build.load_extension()


def test_patch_release_of_torch_is_accepted(monkeypatch):
    monkeypatch.setattr(torch, "__version__", ".".join([*torch.__version__.split(".")[:2], "99"]))
    assert _build.load_extension() is _C


def test_missing_extension_says_what_to_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"source folder.*make build"):
        _build.load_extension()


def test_version_stands_in_one_file():
    version = re.escape(gct.__version__)
    mention = re.compile(rf"(?<![\w.]){version}(?![\w.])")
    files = ["setup.py", "pyproject.toml", "CMakeLists.txt", "gct/__init__.py", "gct/_version.py"]
    assert [f for f in files if mention.search((ROOT / f).read_text())] == ["gct/_version.py"]


def test_public_names_exist_once_and_have_docstrings():
    assert len(gct.__all__) == len(set(gct.__all__))
    for name in gct.__all__:
        assert getattr(gct, name).__doc__, name


def test_stub_file_lists_what_the_extension_has():
    stub = (ROOT / "gct" / "_C.pyi").read_text()
    functions = set(re.findall(r"(?m)^def (\w+)", stub))
    classes = set(re.findall(r"(?m)^class (\w+)(?!.*TypedDict)", stub))
    present = {name for name in dir(_C) if not name.startswith("_")}
    assert functions | classes == present
    for name in classes:
        body = re.split(r"(?m)^\S", stub.partition(f"class {name}:\n")[2])[0]
        declared = set(re.findall(r"    def (\w+)", body)) - {"__init__"}
        assert declared == {member for member in vars(getattr(_C, name)) if member[0] != "_"}


def test_info_command_reports_build_and_machine():
    out = subprocess.run(
        [sys.executable, "-m", "gct", "info"], capture_output=True, text=True, check=True
    ).stdout
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines())
    assert facts["gct"] == gct.__version__
    assert facts["built for torch"] == torch.__version__
    build = _C.build_info()
    if build["cuda"] is None:
        assert facts["CUDA kernels"] == "not compiled"
        assert "no CUDA kernels: install" in _C.cuda_problem()
    else:
        assert facts["CUDA kernels"] == f"nvcc {build['cuda']}, for {build['cuda_architectures']}"
    if not torch.cuda.is_available():
        assert facts["GPU"].startswith("not usable: torch ")
        assert "gct: " in facts["GPU"]


@pytest.mark.parametrize("call", [["-m", "gct"], ["-mgct"], ["-um", "gct"]], ids=" ".join)
def test_commands_say_in_a_sentence_what_is_wrong_with_the_extension(call):
    env = {**os.environ, "GCT_FORCE_IMPL": "abacus"}
    command = [sys.executable, *call, "info", "-m", "other"]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert re.match(r"python -m gct: GCT_FORCE_IMPL must name .*scalar.*, got abacus", line)


def test_other_programs_get_the_exception(tmp_path):
    package = tmp_path / "program"
    package.mkdir()
    (package / "__init__.py").write_text("import gct\n")
    env = {**os.environ, "GCT_FORCE_IMPL": "abacus", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "program", "-m", "gct"]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 1
    assert "ImportError: gct: GCT_FORCE_IMPL must name" in result.stderr


def test_command_line_without_a_command_is_an_error():
    result = subprocess.run([sys.executable, "-m", "gct"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "usage: python -m gct" in result.stderr


# setup.py finds torch and never imports it.


def test_no_torch_is_one_sentence(setup_py, nowhere):
    with pytest.raises(SystemExit) as stop:
        setup_py.find_torch()
    message = str(stop.value.code)
    assert "PyTorch must be installed before gct is built" in message
    assert "pip install torch" in message
    assert str(nowhere.parents[2]) in message
    assert "\n" not in message


def test_torch_that_cannot_be_imported_is_found(setup_py, nowhere):
    folder = fake_torch(nowhere, "2.15.0a0+git123")
    assert setup_py.find_torch() == folder


def test_torch_of_the_calling_environment_is_found(setup_py, nowhere, monkeypatch, tmp_path):
    outer = tmp_path / "outer"
    folder = fake_torch(outer / "lib" / f"python{setup_py.PYTHON}" / "site-packages", "2.13.0")
    monkeypatch.setattr(setup_py, "caller_prefix", lambda: outer)
    assert setup_py.find_torch() == folder


def test_system_packages_count_only_where_the_environment_sees_them(
    setup_py, nowhere, monkeypatch, tmp_path
):
    base = tmp_path / "base"
    folder = fake_torch(base / "lib" / f"python{setup_py.PYTHON}" / "site-packages", "2.13.0")
    monkeypatch.setattr(setup_py.sys, "base_prefix", str(base))
    config = tmp_path / "pyvenv.cfg"
    config.write_text("include-system-site-packages = false\n")
    with pytest.raises(SystemExit):
        setup_py.find_torch()
    config.write_text("include-system-site-packages = true\n")
    assert setup_py.find_torch() == folder


def test_caller_is_the_python_that_started_this_one(setup_py):
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("gct_setup", {str(ROOT / "setup.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.caller_prefix())
"""
    program = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == str(Path(sys.executable).parent.parent)


@pytest.mark.parametrize("version", ["2.5.1", "1.13.0+cu117"])
def test_old_torch_is_refused_by_version(setup_py, nowhere, version):
    fake_torch(nowhere, version)
    wanted = rf"2\.6 or newer is needed, got {re.escape(version.rsplit('.', 1)[0])} in"
    with pytest.raises(SystemExit, match=wanted):
        setup_py.find_torch()


@pytest.mark.parametrize("version", ["2.6.0+cu124", "2.10.0", "3.0.0"])
def test_newer_torch_is_accepted(setup_py, nowhere, version):
    folder = fake_torch(nowhere, version)
    assert setup_py.find_torch() == folder


def test_explicit_folder_wins_and_must_be_a_torch(setup_py, nowhere, monkeypatch, tmp_path):
    fake_torch(nowhere, "2.13.0")
    other = fake_torch(tmp_path / "other", "2.12.0")
    monkeypatch.setenv("GCT_TORCH_DIR", str(other))
    assert setup_py.find_torch() == other
    monkeypatch.setenv("GCT_TORCH_DIR", str(other.parent))
    with pytest.raises(SystemExit, match=r"GCT_TORCH_DIR must be .*; got"):
        setup_py.find_torch()


def test_switches_take_zero_or_one(setup_py, monkeypatch):
    for value, expected in [("1", "ON"), ("0", "OFF"), ("", "OFF")]:
        monkeypatch.setenv("GCT_DEV", value)
        assert setup_py.switch("GCT_DEV") == expected
    monkeypatch.setenv("GCT_DEV", "yes")
    with pytest.raises(SystemExit, match="GCT_DEV must be 0 or 1, got 'yes'"):
        setup_py.switch("GCT_DEV")


# Imports go downward only: core <- cpu, cuda <- torch <- bindings.

STANDARD = re.compile(r"<[a-z_]+>")  # the standard library's headers have neither folder nor suffix
SYSTEM = re.compile(r"<(immintrin|cpuid|arm_neon|sys/auxv|unistd|pthread|cuda_runtime)\.h>")


def includes(source: str) -> list[str]:
    return re.findall(r'(?m)^\s*#\s*include\s+(<[^>]+>|"[^"]+")', source)


def violations(floor: str, source: str) -> list[str]:
    """The includes in `source` that a file of the floor `floor` may not have."""
    own = {
        "core": r'"core/',
        "cpu": r'"(core/|cpu/|codec\.h")',
        "cuda": r'"(core/|cpu/|cuda/|codec\.h")',
        "codec": r'"(core/|cpu/|codec\.h")',
    }[floor]
    allowed = [STANDARD, re.compile(own)] + ([] if floor in ("core", "codec") else [SYSTEM])
    return [name for name in includes(source) if not any(rule.match(name) for rule in allowed)]


def sources(floor: str) -> list[Path]:
    if floor == "codec":
        return sorted(CSRC.glob("codec.*"))
    return sorted(path for path in (CSRC / floor).rglob("*") if path.suffix != ".md")


@pytest.mark.parametrize("floor", ["core", "codec", "cpu", "cuda"])
def test_floor_includes_only_what_is_below(floor):
    found = {str(path): violations(floor, path.read_text()) for path in sources(floor)}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    ("floor", "line"),
    [
        ("core", "#include <torch/extension.h>"),
        ("core", '#include "codec.h"'),
        ("core", "#include <immintrin.h>"),
        ("cpu", "#include <ATen/ATen.h>"),
        ("cpu", '#  include "torch/ops.h"'),
        ("cuda", "#include <c10/cuda/CUDAStream.h>"),
        ("codec", '#include "torch/ops.h"'),
    ],
)
def test_upward_include_is_noticed(floor, line):
    assert violations(floor, f"#include <vector>\n{line}\n")
