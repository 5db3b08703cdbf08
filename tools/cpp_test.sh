#!/usr/bin/env bash
# Builds the codec and its C++ tests without torch and runs them: tools/cpp_test.sh FOLDER [CMAKE OPTION...]
# TESTS: only those of these names, a regular expression.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
shift

mkdir -p "$folder"
cmake -S . -B "$folder" -G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v ninja)" -DGCT_BUILD_TESTS=ON -DGCT_CUDA=0 "$@" \
  > "$folder/configure.log" || { cat "$folder/configure.log"; exit 1; }
# With TESTS only the wanted ones are built: targets have the tests' names.
targets=()
[[ -z ${TESTS-} ]] || read -ra targets <<< "--target ${TESTS//|/ }"
cmake --build "$folder" "${targets[@]}"
ctest --test-dir "$folder" --parallel "$(nproc)" --output-on-failure --no-tests=error --tests-regex "^(${TESTS-.*})$"
