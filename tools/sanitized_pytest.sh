#!/usr/bin/env bash
# Runs pytest on a copy of the package whose extension has ASan and UBSan in it: tools/sanitized_pytest.sh FILE...
set -euo pipefail
cd "$(dirname "$0")/.."
package=$PWD/build/sanitize

log=build/sanitize.log
# The folder of the sanitized C++ tests: the codec in it is the same.
GCT_SANITIZE=1 GCT_DEV=1 GCT_CUDA=0 GCT_BUILD_DIR=build/cpp-sanitize \
  python setup.py --quiet build --build-lib "$package" > "$log" 2>&1 || { tail -n 60 "$log"; exit 1; }

# Python itself is not instrumented, so the runtime has to be there before it; libstdc++ too, or exceptions are not seen.
export LD_PRELOAD="$("${CXX:-c++}" -print-file-name=libasan.so) $("${CXX:-c++}" -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0 # what Python leaves at exit is not ours
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=$package

files=()
for file in "$@"; do files+=("$PWD/$file"); done
cd "$package" # not the source folder, whose gct would be imported first
python -c 'from gct import _C; assert _C.build_info()["sanitize"], "not the sanitized extension"'
pytest -q -n 2 "${files[@]}" # by pytest-xdist: two at a time
