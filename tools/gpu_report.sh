#!/usr/bin/env bash
# Everything that needs a GPU, in one go: tests, compute-sanitizer, benchmarks. Writes a report with device, versions and
# date to FILE (docs/gpu-report.md): tools/gpu_report.sh [FILE]. Needs gct installed, with its kernels, in the python on PATH.
set -uo pipefail
cd "$(dirname "$0")/.."
report=${1:-docs/gpu-report.md}
folder=build/gpu
mkdir -p "$folder"
failed=0

if ! problem=$(python -c 'import sys, torch; from gct import _C
reason = "" if torch.cuda.is_available() else "torch finds no GPU"
sys.exit(reason or _C.cuda_problem() or 0)' 2>&1); then
  echo "gpu_report.sh: nothing can run here: $problem" >&2
  exit 1
fi

# section NAME COMMAND...: runs it, keeps its output, puts the end of it into the report.
section() {
  local name=$1 status log
  shift
  log="$folder/${name// /_}.log"
  echo "== $name: $*" >&2
  timeout "${SECTION_SECONDS:-1500}" "$@" > "$log" 2>&1
  status=$?
  [ "$status" = 0 ] || failed=1
  {
    printf '\n## %s\n\n`%s`: %s\n\n```\n' "$name" "$*" "$([ "$status" = 0 ] && echo passed || echo "FAILED, status $status")"
    tail -n "${SECTION_LINES:-60}" "$log"
    printf '```\n'
  } >> "$report"
}

{
  printf '# Run on a GPU\n\nWritten by `make gpu` on %s, commit %s.\n\n```\n' \
    "$(date -u +%Y-%m-%dT%H:%MZ)" "$(git describe --always --dirty 2> /dev/null || echo unknown)"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>&1
  python -m gct info
  printf '```\n'
} > "$report"

few=(-k "tiny or damaged or a_gpu_decodes" -x -q -p no:cacheprovider)
section "tests" python -m pytest -q -m "long or not long" tests/gpu
section "compute-sanitizer memcheck" compute-sanitizer --tool memcheck --error-exitcode 9 \
  python -m pytest "${few[@]}" tests/gpu/test_codec_gpu.py
section "compute-sanitizer racecheck" compute-sanitizer --tool racecheck --error-exitcode 9 \
  python -m pytest "${few[@]}" tests/gpu/test_codec_gpu.py
section "codec" python benchmarks/codec.py --device cuda --json "$folder/codec.json"
section "all_reduce of two ranks on one GPU" python benchmarks/allreduce_bw.py --local 2 --device cuda \
  --schemes fp32 bf16 gct-2 gct-fixed-4 -b 1M -e 64M

echo "gpu_report.sh: wrote $report" >&2
exit "$failed"
