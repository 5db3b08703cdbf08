"""Builds gct._C with CMake; everything else about the package stands in pyproject.toml.

Environment:
  GCT_CUDA=auto|0|1            CUDA kernels: if nvcc is there (default), never, always
  GCT_TORCH_DIR                folder of the torch package to build for, if the search finds none or
                               the wrong one
  GCT_DEV=1                    warnings are errors
  GCT_SANITIZE=1               AddressSanitizer and UndefinedBehaviorSanitizer
  GCT_BUILD_DIR                keep CMake's build folder here: the next build is incremental
  CMAKE_ARGS                   further arguments for CMake
  CMAKE_BUILD_PARALLEL_LEVEL   number of compiler processes
  TORCH_CUDA_ARCH_LIST         GPUs to build for, such as "8.0;9.0+PTX"
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 6)  # stands in the messages below and in pyproject.toml too
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


# Where torch is. Under build isolation it cannot be imported, but its headers and libraries are all
# that a build needs. Nothing here ever installs a torch: another version than the one at run time
# gives an extension that does not load.


def find_torch() -> Path:
    """The folder of the torch package to build for; exits with one sentence if there is none."""
    explicit = os.environ.get("GCT_TORCH_DIR")
    if explicit:
        if not is_torch(Path(explicit)):
            sys.exit(
                "gct: GCT_TORCH_DIR must be the folder of an installed torch package (it holds "
                f"version.py and lib/); got {explicit}"
            )
        return check_version(Path(explicit).resolve())
    for folder in torch_candidates():
        if is_torch(folder):
            return check_version(folder.resolve())
    sys.exit(
        "gct: PyTorch must be installed before gct is built, and none was found for Python "
        f"{PYTHON} in {sys.prefix}: run `pip install torch` there first (2.6 or newer), or set "
        "GCT_TORCH_DIR to the folder of the torch package."
    )


def is_torch(folder: Path) -> bool:
    return (folder / "version.py").is_file() and (folder / "lib").is_dir()


def torch_candidates() -> Iterator[Path]:
    """Where the torch of the environment that is being built for may be, best first."""
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        yield Path(spec.origin).parent
    # pip's isolation runs the environment's own Python and only hides its packages from import.
    for key in ("purelib", "platlib"):
        yield Path(sysconfig.get_paths()[key]) / "torch"
    for prefix in (Path(sys.prefix), caller_prefix()):
        if prefix:
            yield from (folder / "torch" for folder in package_folders(prefix))


def package_folders(prefix: Path) -> Iterator[Path]:
    """Folders that the Python environment at `prefix` imports packages from."""
    for lib in ("lib", "lib64", "local/lib"):
        for packages in ("site-packages", "dist-packages"):
            yield prefix / lib / f"python{PYTHON}" / packages
    if prefix == Path(sys.base_prefix):
        yield Path(site.getusersitepackages())
    elif sees_system_packages(prefix):
        yield from package_folders(Path(sys.base_prefix))


def sees_system_packages(prefix: Path) -> bool:
    config = prefix / "pyvenv.cfg"
    pattern = r"(?im)^include-system-site-packages\s*=\s*true"
    return config.is_file() and re.search(pattern, config.read_text()) is not None


def caller_prefix() -> Path | None:
    """The environment of the Python that started this one, where the system tells.

    `python -m build` makes an environment of its own to build in, which knows nothing of the one
    that it was called from. Only the direct parent counts: with pip that is the environment that is
    being installed to, and one further up may be unrelated.
    """
    caller = Path(f"/proc/{os.getppid()}")
    try:
        program = caller.joinpath("cmdline").read_bytes().split(b"\0")[0].decode()
        environ = caller.joinpath("environ").read_bytes().decode(errors="replace")
        folder = os.readlink(caller / "cwd")
    except OSError:
        return None
    if not Path(program).name.startswith("python"):
        return None
    if "/" not in program:
        path = re.search(r"(?:^|\0)PATH=([^\0]*)", environ)
        program = shutil.which(program, path=path[1] if path else None) or program
    # Not resolved: bin/python of a virtual environment is a link to the Python it was made with.
    return Path(folder, program).parent.parent


def check_version(torch: Path) -> Path:
    """`torch` itself, if it is new enough; torch/version.py is read as text, never imported."""
    text = (torch / "version.py").read_text()
    found = re.search(r"(?m)^__version__[^=]*= *['\"](\d+)\.(\d+)", text)
    if not found:
        sys.exit(f"gct: found no version number in {torch / 'version.py'}: reinstall PyTorch")
    if (int(found[1]), int(found[2])) < OLDEST_TORCH:
        sys.exit(
            f"gct: PyTorch 2.6 or newer is needed, got {found[1]}.{found[2]} in {torch}: upgrade "
            "it, then build gct again"
        )
    return torch


# The build.


class CMakeExtension(Extension):
    """An extension whose sources CMakeLists.txt knows."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = os.environ.get("GCT_BUILD_DIR")
        build = Path(kept or self.build_temp).resolve()
        if not kept:  # an earlier build's cache names tools in a build environment that is gone
            (build / "CMakeCache.txt").unlink(missing_ok=True)
        run("cmake", "-S", ROOT, "-B", build, *self.cmake_arguments(torch))
        jobs = ["--parallel", str(self.parallel)] if self.parallel else []
        run("cmake", "--build", build, *jobs)
        self.copy_file(str(build / target.name), str(target))

    def cmake_arguments(self, torch: Path) -> list[str]:
        import pybind11  # a build requirement, unlike for the commands that compile nothing

        in_place = self.inplace or getattr(self, "editable_mode", False)
        arguments = [
            f"-DGCT_TORCH_DIR={torch}",
            f"-DGCT_CUDA={os.environ.get('GCT_CUDA') or 'auto'}",
            f"-DGCT_DEV={switch('GCT_DEV')}",
            f"-DGCT_SANITIZE={switch('GCT_SANITIZE')}",
            f"-DGCT_EDITABLE={'ON' if in_place else 'OFF'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        if "CMAKE_GENERATOR" not in os.environ and shutil.which("ninja"):
            arguments.append("-GNinja")
        return arguments + shlex.split(os.environ.get("CMAKE_ARGS", ""))


class DistInfo(dist_info):
    """Looks for torch before pip resolves dependencies: without it pip would fetch one first."""

    def run(self) -> None:
        find_torch()
        super().run()


def switch(variable: str) -> str:
    """ON or OFF for CMake from an environment variable that is 1, 0, empty or missing."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        sys.exit(f"gct: {variable} must be 0 or 1, got {value!r}")
    return "ON" if value == "1" else "OFF"


def run(*command: str | Path) -> None:
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        sys.exit(f"gct: {command[0]} is needed to build and was not found: run `pip install cmake`")
    except subprocess.CalledProcessError as error:
        line = shlex.join(str(word) for word in command)
        sys.exit(f"gct: the build stopped (status {error.returncode}, reason above) in: {line}")


if __name__ == "__main__":
    setup(
        ext_modules=[CMakeExtension("gct._C")],
        cmdclass={"build_ext": CMakeBuild, "dist_info": DistInfo},
    )
