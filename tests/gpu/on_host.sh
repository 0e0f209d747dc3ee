#!/usr/bin/env bash
# The kit from end to end on the layer that runs kernels on the CPU: staged from a build, run, and its results read.
#
#   on_host.sh BUILD PLUG_IN
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$1 plugin=$2 kit=$1/gpu_kit
"$here/stage.sh" "$kit" "$build"

wrong=0
expect() { # expect WHAT COMMAND...
  "${@:2}" >/dev/null || { echo "FAILED: $1"; wrong=1; }
}

# What must fail: a device that is not there, which the tests would skip.
if "$kit/run.sh" --seconds 400 --on-host "$build/libreformer_native.so" >"$kit/refused"; then
  echo "FAILED: a plug-in that is none passed"
  wrong=1
fi
for stage in cublaslt large conformance; do
  expect "the skip of $stage is counted and fails" grep -E "^failed +$stage .* [1-9][0-9]* skipped" "$kit/refused"
done

# cuBLASLt is found in Python's packages, where the toolkit has none of that major version.
python=$kit/python
mkdir -p "$python/bin" "$python"/nvidia/cu{98,99}/{include,lib}
: >"$python/nvidia/cu99/lib/libcublasLt.so.99"
for major in 98 99; do echo "#define CUBLAS_VER_MAJOR $major" >"$python/nvidia/cu$major/include/cublas_api.h"; done
printf '#!/bin/sh\necho "%s"\n' "$python/nvidia" >"$python/bin/python3"
chmod +x "$python/bin/python3"
expect "cuBLASLt in Python's packages" [ "$(PATH=$python/bin:$PATH "$kit/run.sh" --cublaslt 99 | tr '\n' ' ')" = \
  "$python/nvidia/cu99/lib $python/nvidia/cu99/include " ]
if PATH=$python/bin:$PATH "$kit/run.sh" --cublaslt 98 >/dev/null; then
  echo "FAILED: another major version was taken"
  wrong=1
fi

# Too little time: what was there before it ran out stays, and the rest says so.
if "$kit/run.sh" --seconds 1 --on-host "$plugin" >"$kit/stopped"; then
  echo "FAILED: a run without time passed"
  wrong=1
fi
expect "a stage without time fails" grep -E '^failed +times-f32 .*nothing was left of 1 s' "$kit/stopped"
expect "what was there stays" grep '"stage": "starts", "outcome": "passed"' "$kit/results/results.json"

"$kit/run.sh" --seconds 400 --on-host "$plugin"
results=$kit/results

# JSON: a list of flat objects, a line for each, with a comma after all but the last.
string='"([^"\\]|\\.)*"'
field="$string: ($string|-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?)"
others=$(sed '1d;$d' "$results/results.json" | sed '$s/$/,/' | grep -vE "^\{$field(, $field)*\},\$" || true)
expect "objects alone in results.json, found $others" [ -z "$others" ]
expect "a list in results.json" [ "$(sed -n '1p;$p' "$results/results.json" | tr -d '\n')" = "[]" ]
for stage in starts cublaslt lost-device large conformance times-f32 times-bf16; do
  expect "$stage passed, in results.json" grep "\"stage\": \"$stage\", \"outcome\": \"passed\"" "$results/results.json"
  expect "$stage passed, in results.md" grep "^| $stage | passed |" "$results/results.md"
done
for time in 'lsh_attention/forward/causal/.* \| bf16' 'step/.* \| f32'; do
  expect "a time of $time" grep -E "^\| $time \| [0-9.]+ \|" "$results/results.md"
done

exit "$wrong"
