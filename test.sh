#!/usr/bin/env bash
# Sets the machine up, builds everything and runs every test: native with each instruction set, the CUDA plug-in where
# nvcc is found, native under sanitizers, managed. The last line has the totals.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$root" || exit 1
source cmake/setup.sh
rfn_check_sdk || exit 1
rfn_need_library
rfn_need_tests
rfn_install || exit 1

jobs=$(nproc)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
passed=0 failed=0 skipped=0

add() { # add PASSED FAILED SKIPPED
  passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
}

step() { echo "== $* (after $((SECONDS / 60)) min $((SECONDS % 60)) s)"; }

skip_reasons() { # of ctest's JUnit file: a line for each, with the number of tests
  awk '/<testcase / { skipped = /status="disabled"/; reason = skipped ? "disabled in this build" : "" }
    /<skipped message="SKIP_/ { skipped = 1 }
    skipped && reason == "" && /SKIPPED|: Skipped$/ {
      if (/: Skipped$/) getline  # GoogleTest: place, reason
      reason = $0
      sub(/.*SKIPPED[] :]*/, "", reason)
    }
    /<\/testcase>/ && skipped { ++count[reason == "" ? "no reason given" : reason] }
    END { for (reason in count) print "skipped " count[reason] ": " reason }' |
    sed "s/&quot;/\"/g; s/&apos;/'/g; s/&lt;/</g; s/&gt;/>/g; s/&amp;/\&/g" | sort
}

native() { # native PRESET: builds it and runs its tests
  step "native tests, preset $1"
  cmake --preset "$1" -DRFN_BENCHMARKS=ON >"$logs/cmake" 2>&1 &&
    cmake --build --preset "$1" --parallel "$jobs" >"$logs/build" 2>&1 ||
    { cat "$logs/cmake" "$logs/build" 2>/dev/null; echo "the native build of preset $1 failed"; add 0 1 0; return; }
  ctest --preset "$1" --parallel "$jobs" --progress --output-junit "$logs/junit.xml" >"$logs/ctest" 2>&1
  local ok=$?
  tr '\r' '\n' <"$logs/ctest" | grep -vE '^Test project|^ *\[?[0-9]+/[0-9]+\]? |^$|^ *Start +[0-9]+:' | tail -n 200
  skip_reasons <"$logs/junit.xml"
  # "98% tests passed, 2 tests failed out of 120" (skipped ones count as passed there, disabled ones not at all), then a
  # list.
  local total bad skips disabled
  total=$(sed -nE 's/.*tests failed out of ([0-9]+)$/\1/p' "$logs/ctest" | tail -n 1)
  bad=$(sed -nE 's/.* ([0-9]+) tests failed out of [0-9]+$/\1/p' "$logs/ctest" | tail -n 1)
  skips=$(grep -cE '^\s*[0-9]+ - .*\(Skipped\)' "$logs/ctest")
  disabled=$(grep -cE '^\s*[0-9]+ - .*\(Disabled\)' "$logs/ctest")
  if [ -z "$total" ]; then echo "ctest of preset $1 ran nothing"; add 0 1 0; return; fi
  [ "$ok" -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
  add $((total - bad - skips)) "$bad" $((skips + disabled))
}

managed() {
  step "managed tests"
  # The native libraries are those that the native tests ran with.
  # A shell that was started in the background ignores SIGINT, and so would every process it starts; some tests send it.
  env --default-signal=HUP,INT,QUIT \
    dotnet test ReformerNative.sln --configuration Release "-p:RfnNativePreset=$preset" --nologo --verbosity quiet \
    --logger "console;verbosity=normal" >"$logs/dotnet" 2>&1
  local ok=$?
  grep -vE '^\s*Passed |^$' "$logs/dotnet" | tail -n 200
  # A summary per test project: "Total tests: 120", "     Passed: 119", "     Failed: 1", "    Skipped: 0".
  local good bad skips
  sum() { sed -nE "s/^ *$1: ([0-9]+)\$/\\1/p" "$logs/dotnet" | awk '{ n += $1 } END { print n + 0 }'; }
  good=$(sum Passed) bad=$(sum Failed) skips=$(sum Skipped)
  if [ "$good" -eq 0 ]; then echo "dotnet test ran nothing"; bad=1; fi
  [ "$ok" -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
  add "$good" "$bad" "$skips"
}

# The preset cuda is the preset cpu with the plug-in, and the tests of what nvcc made of it.
preset=cuda
command -v nvcc >/dev/null 2>&1 || PATH=$PATH:/usr/local/cuda/bin
if ! command -v nvcc >/dev/null 2>&1 && [ -z "${CUDACXX:-}" ]; then
  preset=cpu
  echo "skipped 1: nvcc was not found, so the CUDA plug-in is neither built nor checked (docs/building-cuda.md)"
  add 0 0 1
fi
native "$preset"
managed
native cpu-asan

[ "$skipped" -gt 0 ] && echo "skipped tests are named above, with the reason"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
