#!/usr/bin/env bash
# Builds sdist and wheel and installs them in fresh environments, with build isolation, as a user would.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/dist-test
torch=${TORCH:-torch==2.13.0}
# make build has compiled the kernels for all GPUs; here one is enough to see that the sdist has them.
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0}

pip_in() { "$work/$1/bin/pip" --quiet --disable-pip-version-check "${@:2}"; }

# The build environment has no torch: setup.py has to find the one of the Python that runs this line.
build() {
  rm -rf "$work"
  mkdir -p "$work"
  python -m build --outdir "$work/dist" . > "$work/log" 2>&1 || { tail -n 40 "$work/log"; exit 1; }
  sdist=$(echo "$work"/dist/gct-*.tar.gz)
  wheel=$(echo "$work"/dist/gct-*.whl)
}

sdist_is_complete() {
  local listing file
  listing=$(tar -tf "$sdist")
  for file in csrc/{bindings.cpp,codec.h} cmake/cuda.cmake {tests,tools,docs,examples}/ CMakeLists.txt Makefile LICENSE; do
    grep -q "/$file" <<< "$listing" || { echo "missing in the sdist: $file"; exit 1; }
  done
  ! grep -E '\.so$|__pycache__' <<< "$listing"
}

# Outside of the source folder, so that the installed package is imported.
works_in() { (cd "$work" && "$1/bin/python" -m gct info); }

wheel_installs() {
  python -m venv "$work/with-torch"
  pip_in with-torch install "$torch" "$wheel"
  works_in with-torch
}

# Without kernels: the wheel came from the same sdist and has them, where nvcc is.
sdist_installs() {
  pip_in with-torch uninstall --yes gct
  GCT_CUDA=0 pip_in with-torch install "$sdist"
  works_in with-torch
}

# A dry run reads the metadata and builds nothing: it has to stop there already, or pip would fetch a torch next.
refuses_without_torch() {
  python -m venv "$work/without-torch"
  if pip_in without-torch install --dry-run --no-deps "$sdist" > "$work/refused.log" 2>&1; then
    echo "the build went on without torch"
    exit 1
  fi
  grep 'PyTorch must be installed before gct is built' "$work/refused.log" ||
    { cat "$work/refused.log"; exit 1; }
}

# With nothing installed but torch and gct: what the README promises must not need the developers' packages.
readme_example_runs() {
  python - README.md > "$work/train.py" <<'PYTHON'
import re, sys
blocks = re.findall(r"```python\n(.*?)```", open(sys.argv[1]).read(), re.DOTALL)
print(next(block for block in blocks if "init_process_group" in block))
PYTHON
  (cd "$work" && with-torch/bin/torchrun --standalone --nproc-per-node 2 train.py)
}

for step in build sdist_is_complete wheel_installs sdist_installs readme_example_runs refuses_without_torch; do
  echo "dist-test: $step"
  SECONDS=0
  $step
  echo "dist-test: $step took $SECONDS s"
done
