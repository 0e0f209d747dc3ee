#!/usr/bin/env bash
# Lines that the tests reach, on request: native (gcov over native/core, native/cpu and native/cuda, the suite run once
# on the CPU backend and once with the CUDA kernels on the CPU) and managed (coverlet over both managed test projects).
# The native tests run in a build of their own (build/coverage, -O1), the managed ones with the library of preset cpu.
#
#   tests/coverage.sh            both, with a line per folder
#   tests/coverage.sh native     one of the two
#   tests/coverage.sh managed
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$root/build/coverage
results=$build/results
collector=6.0.4 # coverlet.collector

# Sums "folder covered(0 or 1)" lines into a table; the last line is the figure for all of them together.
table() { # table NAME
  sort | awk -v name="$1" '
    { lines[$1]++; covered[$1] += $2; all++; reached += $2; if (!($1 in seen)) { seen[$1] = 1; order[++n] = $1 } }
    END {
      for (i = 1; i <= n; i++) {
        f = order[i]
        printf "  %-44s %6d of %6d lines  %5.1f %%\n", f, covered[f], lines[f], 100 * covered[f] / lines[f]
      }
      if (all == 0) { print name ": nothing was measured"; exit 1 }
      printf "%s: %d of %d lines, %.2f %%\n", name, reached, all, 100 * reached / all
    }'
}

native() {
  local flags="-O1 --coverage" log=$results/native.log
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Coverage -DRFN_RACES=OFF -DCMAKE_C_FLAGS_COVERAGE="$flags" \
    -DCMAKE_CXX_FLAGS_COVERAGE="$flags" >"$log" 2>&1 &&
    cmake --build "$build" --target reformer_native_tests --parallel "$(nproc)" >>"$log" 2>&1 ||
    { tail -n 40 "$log"; echo "the native build for coverage failed"; return 1; }
  find "$build" -name '*.gcda' -delete # of earlier runs
  # What ctest runs for these two: the tests of CUDA's own runtime run on that backend, and those of the library's door
  # on the CPU. Other schedules of threads and deeper stacks run the same lines. Failing tests are said, and their lines
  # count.
  local not_for_devices
  not_for_devices=$(sed -nE '/^string\(CONCAT not_for_devices/,/\)$/ { s/^string\(CONCAT not_for_devices//; p }' \
    "$root/tests/native/CMakeLists.txt" | tr -d '" )\n')
  RFN_SIMD=avx512 "$build/tests/native/reformer_native_tests" --gtest_brief=1 --gtest_filter='-CudaBackend.*' \
    >"$results/cpu.log" 2>&1 || echo "native tests on the CPU backend failed: $results/cpu.log"
  RFN_TEST_DEVICE=cuda_on_host "$build/tests/native/reformer_native_tests" --gtest_brief=1 \
    --gtest_filter="$not_for_devices:*Schedule*:ReversibleStackTest.Deep*" >"$results/cuda.log" 2>&1 ||
    echo "native tests on the CUDA backend failed: $results/cuda.log"
  # A line counts when some object has code for it, and as reached when some object ran it. The plug-in whose races are
  # checked is not run.
  find "$build" -name '*.gcno' ! -path '*races*' -print0 |
    (cd "$build" && xargs -0 -n 20 gcov --stdout 2>/dev/null) | # sources are named from there
    awk -F: '
      $2 + 0 == 0 && $3 == "Source" {
        file = match($4, /native\/(core|cpu|cuda)\/[^\/]*$/) ? substr($4, RSTART) : ""
        next
      }
      file == "" || $1 ~ /^ *-$/ || $2 !~ /^ *[0-9]+$/ { next }
      { line = file ":" $2 + 0; if (!(line in reached)) reached[line] = 0; if ($1 ~ /[0-9]/) reached[line] = 1 }
      END {
        for (line in reached) {
          folder = line
          sub(/\/[^\/]*$/, "", folder)
          print folder, reached[line]
          print line, reached[line] >"'"$results"'/native.lines"
        }
      }' | table "native lines covered"
}

managed() {
  local store log=$results/managed.log status=0
  # The collector comes from the registry, but no project of ours needs it.
  mkdir -p "$results/collector"
  cat >"$results/collector/collector.csproj" <<EOF
<Project Sdk="Microsoft.NET.Sdk">
  <ItemGroup><PackageDownload Include="coverlet.collector" Version="[$collector]" /></ItemGroup>
</Project>
EOF
  dotnet restore "$results/collector/collector.csproj" >"$log" 2>&1 || { cat "$log"; return 1; }
  store=$(dotnet nuget locals global-packages --list | sed 's/^global-packages: //')
  cmake --preset cpu -S "$root" >>"$log" 2>&1 && cmake --build "$root/build/cpu" --parallel "$(nproc)" >>"$log" 2>&1 ||
    { tail -n 40 "$log"; echo "the native build failed"; return 1; }
  rm -rf "$results/managed"
  # A shell in the background ignores SIGINT, and so would every process it starts; some tests send it.
  (cd "$root" && env --default-signal=HUP,INT,QUIT dotnet test ReformerNative.sln --configuration Release \
    -p:RfnNativePreset=cpu --nologo --verbosity quiet --logger "console;verbosity=normal" \
    --collect "XPlat Code Coverage" \
    --test-adapter-path "$store/coverlet.collector/$collector/build/netstandard2.0" \
    --results-directory "$results/managed" -- \
    'DataCollectionRunSettings.DataCollectors.DataCollector.Configuration.Include=[reformer]*,[ReformerNative*]*' \
    'DataCollectionRunSettings.DataCollectors.DataCollector.Configuration.Exclude=[*Tests]*,[*Oracle*]*' \
    >>"$log" 2>&1) || echo "managed tests failed: $log"
  # Cobertura: a class names its file, under one of the sources; its lines follow, once by method and once by class.
  find "$results/managed" -name coverage.cobertura.xml -print0 | xargs -0 cat | tr '>' '>\n' |
    awk -v root="$root/" '
      function attribute(name,    from) {
        from = index($0, " " name "=\"")
        if (from == 0) return ""
        from += length(name) + 3
        return substr($0, from, index(substr($0, from), "\"") - 1)
      }
      /<source[> ]/ { if (split($0, part, /[<>]/) >= 3) source = part[3] }
      /<class / {
        file = attribute("filename")
        if (file !~ /^\//) file = source "/" file
        sub(/^.*\/managed\//, "managed/", file)
        if (file !~ /^managed\// || file ~ /\/obj\//) file = ""
      }
      /<line / && file != "" {
        line = file ":" attribute("number")
        if (!(line in reached)) reached[line] = 0
        if (attribute("hits") + 0 > 0) reached[line] = 1
      }
      END {
        for (line in reached) {
          folder = line
          sub(/\/[^\/]*$/, "", folder)
          print folder, reached[line]
          print line, reached[line] >"'"$results"'/managed.lines"
        }
      }' | table "managed lines covered"
}

mkdir -p "$results"
case ${1-all} in
  native) native ;;
  managed) managed ;;
  all) native; first=$?; managed && [ "$first" -eq 0 ] ;;
  *) echo "usage: tests/coverage.sh [native|managed]" >&2; exit 2 ;;
esac
