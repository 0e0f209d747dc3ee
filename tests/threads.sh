#!/usr/bin/env bash
# Races between the threads of the CPU backend, on request: the library and its native tests under the thread sanitizer
# (build/tsan), which sees two threads that share what each should have for itself whether or not they meet. Tests that
# limit the address space cannot run under it. It ends with the first race; arguments are a filter of tests.
#
#   tests/threads.sh                  every test of the CPU backend
#   tests/threads.sh '*FeedForward*'
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$root/build/tsan
mkdir -p "$build"
# Without Boost the layer that runs CUDA kernels is left out, whose fences the sanitizer does not know.
{
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Threads -DRFN_SANITIZE=thread \
    -DCMAKE_DISABLE_FIND_PACKAGE_Boost=ON \
    -DCMAKE_C_FLAGS_THREADS="-O1 -g1" -DCMAKE_CXX_FLAGS_THREADS="-O1 -g1" &&
    cmake --build "$build" --target reformer_native_tests --parallel "$(nproc)"
} >"$build/build.log" 2>&1 || { tail -n 40 "$build/build.log"; echo "the build failed: $build/build.log"; exit 1; }
TSAN_OPTIONS="halt_on_error=1 ${TSAN_OPTIONS-}" "$build/tests/native/reformer_native_tests" --gtest_brief=1 \
  --gtest_filter="${1-*}:-Process.*:CudaBackend.*:Plugins*"
