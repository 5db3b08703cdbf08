#!/usr/bin/env bash
# Everything that needs a GPU, with the python on PATH: tools/gpu_report.sh [SECTION...]
# Sections: tests memcheck racecheck codec allreduce; all of them without an argument. Builds the extension in place where there is
# none. Writes docs/gpu-report.md (or $GPU_REPORT) with device, versions and date; named sections are added to what is there.
set -uo pipefail
cd "$(dirname "$0")/.."
report=${GPU_REPORT:-docs/gpu-report.md}
folder=build/gpu
mkdir -p "$folder"
failed=0

if ! python -c 'from gct import _C' 2> /dev/null; then
  echo "gpu_report.sh: building the extension, output in $folder/build.log" >&2
  GCT_CUDA=1 GCT_BUILD_DIR=build/ext python setup.py build_ext --inplace > "$folder/build.log" 2>&1 ||
    { tail -n 40 "$folder/build.log" >&2; exit 1; }
fi
if ! problem=$(python -c 'import sys, torch; from gct import _C
reason = "" if torch.cuda.is_available() else "torch finds no GPU"
sys.exit(reason or _C.cuda_problem() or 0)' 2>&1); then
  echo "gpu_report.sh: nothing can run here: $problem" >&2
  exit 1
fi

# section TITLE COMMAND...: runs it, keeps its output, puts the end of it into the report.
section() {
  local title=$1 status log outcome=passed
  shift
  log="$folder/${title//[^a-z0-9]/-}.log"
  echo "== $title: $*" >&2
  timeout "${SECTION_SECONDS:-1500}" "$@" > "$log" 2>&1
  status=$?
  [ "$status" = 0 ] || { failed=1; outcome="FAILED, status $status"; }
  {
    printf '\n## %s\n\n`%s`: %s\n\n```\n' "$title" "$*" "$outcome"
    tail -n "${SECTION_LINES:-60}" "$log"
    printf '```\n'
  } >> "$report"
}

few=(python -m pytest -q -x -p no:cacheprovider -k "tiny or damaged or a_gpu_decodes" tests/gpu/test_codec_gpu.py)
run() {
  case $1 in
    tests) section "tests" python -m pytest -q -m "long or not long" tests/gpu ;;
    memcheck) section "memcheck" compute-sanitizer --tool memcheck --error-exitcode 9 "${few[@]}" ;;
    racecheck) section "racecheck" compute-sanitizer --tool racecheck --error-exitcode 9 "${few[@]}" ;;
    codec) section "codec" python benchmarks/codec.py --device cuda --json "$folder/codec.json" ;;
    allreduce)
      section "all-reduce of two ranks on one GPU" python benchmarks/allreduce_bw.py --local 2 --device cuda \
        --schemes fp32 bf16 gct-2 gct-fixed-4 -b 25M -e 100M
      ;;
    *)
      echo "gpu_report.sh: no such section: $1" >&2
      exit 2
      ;;
  esac
}

if [ $# = 0 ]; then
  {
    printf '# Run on a GPU\n\nWritten by tools/gpu_report.sh on %s, commit %s.\n\n```\n' \
      "$(date -u +%Y-%m-%dT%H:%MZ)" "$(git describe --always --dirty 2> /dev/null || echo unknown)"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>&1
    python -m gct info
    printf '```\n'
  } > "$report"
  set -- tests memcheck racecheck codec allreduce
fi
for name in "$@"; do run "$name"; done

echo "gpu_report.sh: wrote $report" >&2
exit "$failed"
