#!/usr/bin/env bash
# The core as a build of its own (RFN_CPU=OFF): it configures and builds without looking for any library, says that it
# has no CPU backend, and the plug-in configures beside it.
#
#   check.sh core|plug_in FOLDER     builds there; nothing of an earlier build is used
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
what=$1 build=$2
rm -rf "$build"

configure() {
  cmake -S "$source" -B "$build" -DCMAKE_BUILD_TYPE=Debug -DRFN_CPU=OFF "$@"
  # A library that was looked for leaves its name in the cache, found or not. (CUDA's own are the toolkit's.)
  local sought
  sought=$(grep -iE '^[^#/]*(openblas|blas|cblas|highway|hwy|gtest|boost|benchmark)[^=]*:' "$build/CMakeCache.txt" |
    grep -vE '^(RFN_BENCHMARKS:|CUDA_)' || true)
  [ -z "$sought" ] || { echo "expected no search for other libraries, found in the cache:"; echo "$sought"; exit 1; }
}

case $what in
  core)
    configure -DRFN_CUDA=OFF -DRFN_TESTS=ON
    cmake --build "$build"
    ctest --test-dir "$build" --output-on-failure --no-tests=error
    ! LC_ALL=C readelf -d "$build/libreformer_native.so" | grep -iE 'NEEDED.*(blas|omp)'
    ;;
  plug_in)
    configure -DRFN_CUDA=ON -DRFN_TESTS=OFF -DCMAKE_CUDA_ARCHITECTURES=80-real
    cmake --build "$build" --target help | grep reformer_native_cuda
    ;;
  *) echo "check.sh: expected core or plug_in, got $what" >&2; exit 2 ;;
esac
