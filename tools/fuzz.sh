#!/usr/bin/env bash
# Runs the fuzz targets of tests/fuzz for SECONDS each, under ASan and UBSan: tools/fuzz.sh SECONDS [TARGET...]
# Where clang has libFuzzer (Debian: clang and libclang-rt-dev, or those of one version), it starts from the committed inputs
# and from what earlier runs found, which stays in build/fuzz/corpus. Elsewhere the committed inputs, and damaged copies of
# them, are replayed by the system's compiler. CLANG: clang++ to use, or none.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
shift
folder=build/fuzz
seeds=tests/fuzz/corpus

find_clang() {
  local name
  [[ ${CLANG:-} != none ]] || return 0
  for name in "${CLANG:-}" clang++ clang++-{22,21,20,19,18,17,16,15,14}; do
    if [[ -n $name ]] && command -v "$name" > /dev/null &&
      echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
      "$name" -x c++ -fsanitize=fuzzer,address -o /dev/null - 2> /dev/null; then
      echo "$name"
      return
    fi
  done
  return 0
}

clang=$(find_clang)
[[ -n $clang ]] || folder=build/replay
mkdir -p "$folder"
CXX=${clang:-${CXX:-c++}} cmake -S . -B "$folder" -G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v ninja)" -DGCT_CUDA=0 \
  -DGCT_DEV=ON -DGCT_SANITIZE=ON -DGCT_BUILD_FUZZERS=ON > "$folder/configure.log" || { cat "$folder/configure.log"; exit 1; }

targets=("$@")
if ((${#targets[@]} == 0)); then
  for source in tests/fuzz/fuzz_*.cpp; do targets+=("$(basename "$source" .cpp)"); done
fi
cmake --build "$folder" --target "${targets[@]}" > "$folder/build.log" || { cat "$folder/build.log"; exit 1; }

run_target() { # its output only where it fails, but for the last lines
  local target=$1 name=${1#fuzz_} log=$folder/$1.log
  mkdir -p "$folder/corpus/$name" "$folder/finds"
  local command=("$folder/$target")
  # -rss_limit_mb: the tables alone take a good part of ASan's memory. -timeout: seconds
  # for one input; effort high takes 6 here, alone on the machine.
  [[ -z $clang ]] || command+=(-max_total_time="$seconds" -max_len="$([[ $name == decode ]] && echo 2000 || echo 256)" -timeout=60
    -rss_limit_mb=4096 -artifact_prefix="$folder/finds/$name-" "$folder/corpus/$name")
  if ! "${command[@]}" "$seeds/$name" > "$log" 2>&1; then
    tail -n 60 "$log"
    echo "$target: failed" >&2
    return 1
  fi
  echo "$target: $(tail -n 1 "$log")"
}

# Two at a time: CI has two cores.
failed=0
for ((i = 0; i < ${#targets[@]}; i += 2)); do
  pids=()
  for target in "${targets[@]:i:2}"; do
    run_target "$target" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
done
[[ -n $clang ]] || echo 'no clang with libFuzzer: committed inputs replayed, nothing searched for' >&2
exit $failed
