#!/usr/bin/env bash
# Tries the CUDA backend on this machine, which needs a GPU, nvcc, CMake and a C++ compiler: compiles the plug-in for
# the GPU, runs the tests, and times every op. Lives in the folder that stage.sh made; README.md says more.
#
#   run.sh [--seconds N] [--out FOLDER] [--on-host PLUG_IN]
#   run.sh --cublaslt MAJOR     only says in which folders that version's library and headers are
#
# --seconds: for everything, 350. --out: for results and logs, `results` beside this file. --on-host: instead of a GPU,
# the layer that runs kernels on the CPU; few cases, small. Exit 0: everything ran and passed, nothing was skipped.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
limit=350 out=$here/results device=cuda
# in_packages NAME: files of that name in Python's nvidia packages.
in_packages() {
  python3 -c 'import nvidia; print(*nvidia.__path__, sep="\n")' 2>/dev/null | while read -r folder; do
    find -L "$folder" -maxdepth 3 -name "$1" 2>/dev/null
  done
}

toolkit() { dirname "$(dirname "$(realpath "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")"; }

# cublaslt MAJOR: the folder of libcublasLt.so.MAJOR: the loader's own (nothing to say), the toolkit's, or that of
# Python's packages.
cublaslt() {
  local name=libcublasLt.so.$1 own=${LD_LIBRARY_PATH:-} toolkit folder file
  PATH=$PATH:/sbin ldconfig -p 2>/dev/null | grep -F "$name" >/dev/null && return 0
  toolkit=$(toolkit)
  for folder in ${own//:/ } "$toolkit"/lib64 "$toolkit"/lib "$toolkit"/targets/*/lib; do
    [ -e "$folder/$name" ] && echo "$folder" && return 0
  done
  file=$(in_packages "$name" | head -n 1)
  [ -n "$file" ] && dirname "$file"
}

# cublaslt_headers MAJOR: the folder of that version's headers in Python's packages, where the toolkit has none.
cublaslt_headers() {
  local toolkit folder file
  toolkit=$(toolkit)
  for folder in "$toolkit"/include "$toolkit"/targets/*/include; do
    grep -qsE "define +CUBLAS_VER_MAJOR +$1\\b" "$folder/cublas_api.h" && return 0
  done
  file=$(in_packages cublas_api.h | while read -r file; do
    grep -lE "define +CUBLAS_VER_MAJOR +$1\\b" "$file"
  done | head -n 1)
  [ -n "$file" ] && dirname "$file"
}

while [ $# -gt 0 ]; do
  case $1 in
    --cublaslt) cublaslt "${2:?}" && cublaslt_headers "$2"; exit ;;
    --seconds) limit=${2:?} ;;
    --out) out=${2:?} ;;
    --on-host) device=cuda_on_host; RFN_CUDA_ON_HOST_PLUGIN=$(realpath -e "${2:?}") || exit 2 ;;
    *) echo "run.sh: expected --seconds N, --out FOLDER or --on-host PLUG_IN, got $1" >&2; exit 2 ;;
  esac
  shift 2
done
export RFN_CUDA_ON_HOST_PLUGIN RFN_TEST_DEVICE=$device
on_host() { [ "$device" = cuda_on_host ]; }
rm -rf "$out/logs"
mkdir -p "$out/logs" || exit 2
lines=$out/results.jsonl
: >"$lines"
failed=0

# ---- results ----

quoted() { # quoted TEXT: as a string of JSON
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "$(tr '\000-\037' ' ' <<<"$text" | sed 's/ *$//')"
}

# What there is so far, so that it stays when a later stage, or this script, dies.
report() {
  { echo '['; sed '$!s/$/,/' "$lines"; echo ']'; } >"$out/results.json"
  awk -f "$here/report.awk" "$lines" >"$out/results.md"
}
trap report EXIT
trap 'exit 130' INT TERM

machine() { # machine TEXT: a line about where this runs
  echo "$1"
  printf '{"stage": "machine", "text": %s}\n' "$(quoted "$1")" >>"$lines"
}

begin() { stage=$1 started=$EPOCHREALTIME; }
ended() { # ended passed|failed|"left out" TEXT
  local seconds
  seconds=$(awk -v a="$started" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
  printf '{"stage": %s, "outcome": "%s", "stage_seconds": %s, "text": %s}\n' \
    "$(quoted "$stage")" "$1" "$seconds" "$(quoted "$2")" >>"$lines"
  printf '%-9s %-18s %6s s  %s\n' "$1" "$stage" "$seconds" "$2"
  [ "$1" != failed ] || failed=$((failed + 1))
  report
}

box() { # box SECONDS LOG COMMAND...: runs it for that long, or for what is left of the whole; 124 where it was stopped
  local seconds=$1 log=$2 left=$((limit - SECONDS))
  shift 2
  # The execution layer shares its processors with whatever else is tested: there only the whole is limited.
  if on_host || [ "$seconds" -gt "$left" ]; then seconds=$left; fi
  if [ "$seconds" -lt 1 ]; then echo "nothing was left of $limit s" >"$log"; return 124; fi
  timeout --kill-after=5 "$seconds" "$@" >"$log" 2>&1
}

last_lines() { tail -n "$1" "$2" | tr '\n' ' ' | cut -c 1-600; }

# judge STATUS LOG...: the stage's outcome from what GoogleTest printed. A skipped test is a failure: here is what it
# waited for.
judge() {
  local status=$1 passed bad skipped text
  shift
  passed=$(cat "$@" | grep -c '^\[       OK \]')
  bad=$(cat "$@" | grep -c '^\[  FAILED  \].* ms)$')
  skipped=$(cat "$@" | grep -cE '^\[  SKIPPED \] .*( ms\)$|not available)')
  text="$passed passed, $bad failed, $skipped skipped"
  [ "$status" -ne 124 ] || text+=", stopped for time in: $(grep -h '^\[ RUN' "$@" | tail -n 1 | cut -c 14-)"
  if [ "$status" -eq 0 ] && [ "$bad" -eq 0 ] && [ "$skipped" -eq 0 ] && [ "$passed" -gt 0 ]; then
    ended passed "$text"
    return
  fi
  text+="; exit status $status"
  [ "$bad" -eq 0 ] || text+=": $(grep -hE '^\[  FAILED  \].* ms\)$' "$@" | cut -c 14- | head -n 5 | tr '\n' ' ')"
  [ "$skipped" -eq 0 ] || text+=": $(grep -hE -B 1 '^\[  SKIPPED \]' "$@" | head -n 4 | tr '\n' ' ')"
  [ "$bad" -gt 0 ] || [ "$skipped" -gt 0 ] || text+=": $(last_lines 5 "${!#}")"
  ended failed "$text"
}

tests() { # tests STAGE SECONDS FILTER
  begin "$1"
  box "$2" "$out/logs/$1" "$here/reformer_native_tests" --gtest_color=no "--gtest_filter=$3"
  judge $? "$out/logs/$1"
}

# ---- this machine ----

begin starts
log=$out/logs/starts
: >"$log"
for program in "reformer_native_tests --gtest_list_tests" "reformer_native_benchmarks --version" lost_device; do
  name=${program%% *}
  # lost_device says that there is no device yet, which is a start too.
  # shellcheck disable=SC2086 # a program and its argument
  if ! (cd "$here" && RFN_CUDA_PLUGIN=/none timeout 60 ./$program) >"$log.one" 2>&1 &&
    ! grep -qE '^FAILED|^expected --device' "$log.one"; then
    echo "$name does not start here ($(getconf GNU_LIBC_VERSION)): $(last_lines 2 "$log.one")" >>"$log"
    grep "^$name " "$here/needs" >>"$log"
  fi
done
if [ -s "$log" ]; then
  ended failed "$(last_lines 8 "$log")"
  exit 1
fi
ended passed "the programs of $(cat "$here/commit") start with $(getconf GNU_LIBC_VERSION)"

command -v nvcc >/dev/null 2>&1 || PATH=$PATH:/usr/local/cuda/bin
command -v nvidia-smi >/dev/null 2>&1 || PATH=$PATH:/usr/local/nvidia/bin
nvcc=$(nvcc --version 2>/dev/null | sed -nE 's/.*release ([0-9.]+).*/\1/p')
architecture=80-real
if on_host; then
  machine "the execution layer, no GPU; nvcc ${nvcc:-absent}, $(nproc) processors"
else
  gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader 2>&1 | head -n 1)
  machine "$gpu; nvcc ${nvcc:-absent}, $(cmake --version | head -n 1), $(nproc) processors"
  capability=$(sed -nE 's/.*, ([0-9]+)\.([0-9]+)$/\1\2/p' <<<"$gpu")
  # An older nvidia-smi does not say; then CMake asks the device.
  if [ -n "$capability" ]; then architecture=$capability-real; else architecture=native; fi
fi

# PyTorch, while the compiler has the processors and nobody the GPU.
torch=
if ! on_host; then
  box 100 "$out/logs/torch" python3 "$here/attention_torch.py" &
  torch=$!
fi

# ---- the plug-in ----

begin plug-in
log=$out/logs/plug-in
if ! on_host && headers=$(cublaslt_headers "${nvcc%%.*}") && [ -n "$headers" ]; then
  machine "headers of cuBLASLt: $headers"
  export CPLUS_INCLUDE_PATH=$headers
fi
configure=(cmake -S "$here/source" -B "$out/build" -DRFN_CPU=OFF -DRFN_TESTS=OFF -DRFN_CUDA=ON
  "-DCMAKE_CUDA_ARCHITECTURES=$architecture")
if on_host && [ -z "$nvcc" ]; then
  ended "left out" "no nvcc to configure it with"
elif ! box 60 "$log" "${configure[@]}"; then
  ended failed "CMake: $(last_lines 12 "$log")"
elif on_host; then
  ended passed "configured, not compiled"
else
  # The rest needs two and a half minutes.
  box $((limit > 300 ? limit - 150 : limit / 2)) "$log" \
    cmake --build "$out/build" --target reformer_native_cuda --parallel "$(nproc)"
  case $? in
    0) ended passed "compiled for $architecture by nvcc $nvcc" ;;
    124) ended failed "stopped for time at $(grep -E '^\[ *[0-9]+%\]' "$log" | tail -n 1); run it again to go on" ;;
    *) ended failed "$(grep -iE 'error|warning' "$log" | head -n 3 | tr '\n' ' ') $(last_lines 5 "$log")" ;;
  esac
fi

if [ -n "$torch" ]; then # nothing else may use the GPU while something is timed
  begin torch
  log=$out/logs/torch
  wait "$torch"
  status=$?
  sed -n 's/^{"name"/{"stage": "torch", "name"/p' "$log" >>"$lines"
  count=$(grep -c '^{"name"' "$log")
  case $status in
    0) ended passed "$count times" ;;
    3 | 127) ended "left out" "$(last_lines 1 "$log")" ;; # says that it is not there
    *) ended failed "$count times, exit status $status: $(last_lines 3 "$log")" ;;
  esac
fi

if ! on_host; then
  export RFN_CUDA_PLUGIN=$out/build/libreformer_native_cuda.so
  [ -e "$RFN_CUDA_PLUGIN" ] || exit 1
fi

begin cublaslt
if on_host; then
  box 60 "$out/logs/cublaslt" "$here/reformer_native_tests" --gtest_color=no '--gtest_filter=LinearOp.NoGradX*'
  judge $? "$out/logs/cublaslt"
elif ! folder=$(cublaslt "${nvcc%%.*}"); then
  ended failed "expected libcublasLt.so.${nvcc%%.*}, as nvcc $nvcc asks for, in the loader's folders, the toolkit's or \
Python's nvidia packages, found none"
else
  [ -z "$folder" ] || export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  machine "cuBLASLt: ${folder:-where the loader looks}"
  box 60 "$out/logs/cublaslt" "$here/reformer_native_tests" --gtest_color=no '--gtest_filter=LinearOp.NoGradX*'
  judge $? "$out/logs/cublaslt"
fi

# ---- tests ----

begin lost-device
if box 30 "$out/logs/lost-device" "$here/lost_device" "$device"; then
  ended passed "reported, and nothing crashed"
else
  ended failed "exit status $?: $(last_lines 5 "$out/logs/lost-device")"
fi

tests large 90 'Large.*'

# The whole suite twice, with odd and with aligned tensors, in as many processes as there are processors for the float64
# that it compares with.
begin conformance
shards=$(($(nproc) / 2))
[ "$shards" -ge 1 ] || shards=1
[ "$shards" -le 8 ] || shards=8
filter="$(cat "$here/not_for_devices"):Large.*"
if on_host; then
  shards=2
  filter='LayerNormOp.Rows*:HeadLoss.EveryPrecision*:AdamWOp.S*:*AttentionTest.ForwardAndBackward*/LshCausal'
fi
processes=() logs=()
for ((i = 0; i < shards; ++i)); do
  logs+=("$out/logs/conformance-$i")
  GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$i box 110 "$out/logs/conformance-$i" \
    "$here/reformer_native_tests" --gtest_color=no --gtest_repeat=2 "--gtest_filter=$filter" &
  processes+=($!)
done
status=0
for process in "${processes[@]}"; do wait "$process" || status=$?; done
judge "$status" "${logs[@]}"

# ---- times ----

products='ceiling/sgemm|lsh_attention/.*/rounds:4/|dense_attention/.*/causal/|linear|feed_forward|head_loss|block|step'
others='ceiling/copy|lsh_hash|lsh_sort|layer_norm|final_norm|embedding|ada|global_norm|random_normal|sample'
for precision in f32 bf16 tf32 f16; do
  begin "times-$precision"
  log=$out/logs/times-$precision
  filter=$products arguments=(--benchmark_min_time=0.02)
  [ "$precision" != f32 ] || filter+="|$others"
  if on_host; then
    [ "$precision" = f32 ] || [ "$precision" = bf16 ] || continue
    filter='ceiling|lsh_attention/.*/rounds:1/|linear|layer_norm|adamw|step' arguments=(--smoke)
  fi
  box 45 "$log" "$here/reformer_native_benchmarks" "--device=$device" "--precision=$precision" --lines \
    "--benchmark_filter=$filter" "${arguments[@]}"
  status=$?
  described=$(sed -n 's/^{"device": \(.*\), "library": .*/\1/p' "$log")
  if [ "$precision" = f32 ] && [ -n "$described" ]; then machine "$described"; fi
  sed -n 's/^{"name"/{"stage": "times", "name"/p' "$log" >>"$lines"
  count=$(grep -c '"seconds": ' "$log")
  if [ "$status" -eq 0 ] && [ "$count" -gt 0 ]; then ended passed "$count times"; else
    ended failed "$count times, exit status $status: $(grep -v '"seconds"' "$log" | tail -n 3 | cut -c 1-300 |
      tr '\n' ' ')"
  fi
done

# ---- compute-sanitizer ----

if ! on_host; then
  sanitizer=$(PATH=$PATH:$(toolkit)/bin:$(toolkit)/compute-sanitizer command -v compute-sanitizer)
  cases='LayerNormOp.Rows*:AdamWOp.S*:*AttentionTest.ForwardAndBackward*/LshCausal:LshSortOp.Small*'
  for tool in memcheck racecheck; do
    begin "$tool"
    if [ -z "$sanitizer" ]; then
      ended "left out" "this machine has no compute-sanitizer"
      continue
    fi
    log=$out/logs/$tool
    box 45 "$log" "$sanitizer" --tool "$tool" --error-exitcode 99 \
      "$here/reformer_native_tests" --gtest_color=no "--gtest_filter=$cases"
    status=$?
    # It needs the driver's debugging interface, which virtual machines may lack.
    why=$(grep -iE '^=+ .*(not supported|internal sanitizer error|unable to)' "$log" | head -n 2 | tr '\n' ' ')
    if [ "$status" -ne 0 ] && [ -n "$why" ]; then
      ended "left out" "compute-sanitizer does not work here: $why"
    elif [ "$status" -eq 99 ]; then
      ended failed "$(grep -E '^=+ ' "$log" | head -n 6 | tr '\n' ' ' | cut -c 1-600)"
    else
      judge "$status" "$log"
    fi
  done
fi

report
echo "$out/results.md, $out/results.json, after $SECONDS s; $failed stages failed"
[ "$failed" -eq 0 ]
