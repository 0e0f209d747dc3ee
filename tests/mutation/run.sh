#!/usr/bin/env bash
# Shows that the tests of the CUDA kernels bite: takes out of the kernels, one at a time, each barrier, __syncwarp,
# cp.async wait and mask predicate, and runs the conformance suite over the execution layer (native/cuda_on_host). A
# mutation that no test notices is a survivor; the ones that are known to change nothing that can be observed are
# explained in survivors.txt, every other one makes this script fail.
#
#   tests/mutation/run.sh            all mutations (an hour or so on two processors)
#   tests/mutation/run.sh TEXT ...   those whose name holds one of the texts, such as lsh_sort or barrier
#   tests/mutation/run.sh --list     their names
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$root/build/mutation
tree=$work/tree

# name TAB file TAB line TAB text to find TAB text to put there; names are file:kind:number within the file, so that
# they outlive other edits.
mutations() {
  local file
  for file in "$root"/native/cuda/*.cu "$root"/native/cuda/*.cuh; do
    [ "$(basename "$file")" = device.cuh ] && continue
    awk -v file="$(basename "$file")" '
      function emit(kind, from, to) { printf "%s:%s:%d\t%s\t%d\t%s\t%s\n", file, kind, ++number[kind], file, NR, from, to }
      /^ *\/\// { next }
      /__syncthreads\(\);/ { emit("barrier", "__syncthreads();", "static_cast<void>(0);") }
      /__syncthreads_or\(/ { emit("vote", "__syncthreads_or(", "(") }
      /__syncwarp\(\);/ { emit("warp", "__syncwarp();", "static_cast<void>(0);") }
      /cp_async_wait_all\(\);/ { emit("wait", "cp_async_wait_all();", "static_cast<void>(0);") }
      /^RFN_DEVICE bool visible\(/ { predicate = 1 }
      predicate && /return false;/ { emit("predicate", "return false;", "static_cast<void>(0);") }
      /^}/ { predicate = 0 }
    ' "$file"
  done
  # Predicates that a pattern does not find: file, text, replacement.
  local from to name
  local -A number
  while IFS=$'\t' read -r name from to; do
    [[ -z $name || $name == \#* ]] && continue
    number[$name]=$((${number[$name]:-0} + 1))
    local line
    line=$(grep -nF -- "$from" "$root/native/cuda/$name" | head -n 1 | cut -d: -f1)
    if [ -z "$line" ]; then echo "predicates.txt: '$from' is not in native/cuda/$name" >&2; exit 2; fi
    printf '%s:condition:%s\t%s\t%d\t%s\t%s\n' "$name" "${number[$name]}" "$name" "$line" "$from" "$to"
  done <"$here/predicates.txt"
}

# Tests that a file's mutations must fail: one filter for the plug-in that checks races, one for the plain one.
tests_of() {
  case $1 in
    attention* | lsh_*) race='All/AttentionTest.ForwardAndBackward*/LshMaskBucket:All/AttentionTest.ForwardAndBackward*/LshDuplicates:LshSortOp.SmallProblem*'
      plain='All/AttentionTest.ForwardAndBackward*:All/AttentionTest.Stages*:AttentionOpTest.*:*LshSort*' ;;
    layer_norm* | norm_rows*) race='*LayerNorm*:*FinalNorm*' plain='*LayerNorm*:*FinalNorm*:All/ReversibleBlockTest.Forward*' ;;
    final_norm*) race='*FinalNorm*' plain='*FinalNorm*' ;;
    embedding* | counting_sort*) race='*Embedding*' plain='*Embedding*:*LshSort*' ;;
    head_loss*) race='*HeadLoss*' plain='*HeadLoss*' ;;
    optimizers*) race='*GlobalNorm*:*AdamW*:*Adafactor*' plain='*GlobalNorm*:*AdamW*:*Adafactor*' ;;
    sample*) race='*Sample*' plain='*Sample*' ;;
    random*) race='*Random*' plain='*Random*' ;;
    *) race='*Linear*:*FeedForward*:*LayerNorm*:*HeadLoss*:*GlobalNorm*:*Adafactor*' plain='*Linear*:*FeedForward*:*ReversibleBlock*:*HeadLoss*:*Norm*:*Adafactor*' ;;
  esac
}

build() { cmake --build "$work/build" --target "$@" --parallel "$(nproc)" >"$work/log" 2>&1; }

run() { # run PLUGIN SEED FILTER [ALIGNED]
  env RFN_TEST_DEVICE=cuda_on_host RFN_CUDA_ON_HOST_PLUGIN="$work/build/$1" RFN_CUDA_ON_HOST_SEED="$2" ${4:+RFN_TEST_ALIGNED=1} \
    timeout 600 "$work/build/tests/native/reformer_native_tests" --gtest_fail_fast --gtest_brief=1 --gtest_filter="$3:-*Schedule*" >"$work/log" 2>&1
}

# How a mutation is noticed, or "survives".
verdict() {
  build reformer_native_cuda_on_host_races || { echo "does not compile"; return; }
  tests_of "$1"
  run libreformer_native_cuda_on_host_races.so 0 "$race" || { echo "race checker, schedule 0"; return; }
  build reformer_native_cuda_on_host || { echo "does not compile"; return; }
  local seed
  for seed in 0 1 3 4 5 7; do
    run libreformer_native_cuda_on_host.so "$seed" "$plain" || { echo "results, schedule $seed"; return; }
    run libreformer_native_cuda_on_host.so "$seed" "$plain" aligned || { echo "results with aligned tensors, schedule $seed"; return; }
  done
  echo survives
}

if [ "${1-}" = --list ]; then mutations | cut -f1; exit; fi
list=$(mutations) || exit 2
mkdir -p "$tree"
for part in native tests cmake CMakeLists.txt; do
  rm -rf "${tree:?}/$part"
  cp -r "$root/$part" "$tree/$part"  # with new times: what an interrupted run has built is built again
done
cmake -S "$tree" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" >"$work/log" 2>&1 &&
  build reformer_native_tests ||
  { cat "$work/log"; echo "the unmutated tree does not build"; exit 2; }

declare -A sound # files whose tests pass without a mutation

caught=0 known=0 unknown=0 broken=0
while IFS=$'\t' read -r name file line from to; do
  if [ $# -gt 0 ]; then
    wanted=
    for text in "$@"; do [[ $name == *"$text"* ]] && wanted=1; done
    [ -n "$wanted" ] || continue
  fi
  if [ -z "${sound[$file]-}" ]; then
    tests_of "$file"
    build reformer_native_cuda_on_host reformer_native_cuda_on_host_races &&
      run libreformer_native_cuda_on_host_races.so 0 "$race" && run libreformer_native_cuda_on_host.so 0 "$plain" ||
      { cat "$work/log"; echo "the tests for $file fail without a mutation"; exit 2; }
    sound[$file]=1
  fi
  awk -v line="$line" -v from="$from" -v to="$to" '
    NR == line { at = index($0, from); $0 = substr($0, 1, at - 1) to substr($0, at + length(from)) }
    { print }' "$root/native/cuda/$file" >"$tree/native/cuda/$file"
  result=$(verdict "$file")
  cp "$root/native/cuda/$file" "$tree/native/cuda/$file"
  if [ "$result" = "does not compile" ]; then
    broken=$((broken + 1))
  elif [ "$result" != survives ]; then
    caught=$((caught + 1))
  elif reason=$(grep -F -- "$name " "$here/survivors.txt"); then
    known=$((known + 1)) result="survives: ${reason#"$name "}"
  else
    unknown=$((unknown + 1)) result="SURVIVES without an explanation"
  fi
  printf '%-44s line %-5d %s\n' "$name" "$line" "$result"
done <<<"$list"
echo "$caught caught, $known explained survivors, $unknown other survivors, $broken that do not compile"
[ "$((unknown + broken))" -eq 0 ] && [ $((caught + known)) -gt 0 ]
