// Kernels that break the rules whatever budgets.txt says, for self_test.sh. Compiled, never run.
#include "cuda/device.cuh"

namespace rfn::cuda {
namespace {

// A local array with an index that only the device knows: a stack frame.
__global__ void stack_kernel(float* x, const int* index) {
  float values[64] = {};
  for (int i = 0; i < 256; ++i) values[index[i] & 63] += x[i];
  x[threadIdx.x] = values[threadIdx.x];
}

// 96 values alive through a loop, where 1024 threads leave 64 registers to each: spills.
__global__ void __launch_bounds__(1024) spill_kernel(float* x, int steps) {
  float values[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) values[i] = x[1024 * i + threadIdx.x];
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int i = 0; i < 96; ++i) values[i] = values[i] * values[(i + 7) % 96] + 1.0f;
  }
#pragma unroll
  for (int i = 0; i < 96; ++i) x[1024 * i + threadIdx.x] = values[i];
}

}  // namespace

void launch_offenders(float* x, const int* index) {
  RFN_LAUNCH(stack_kernel, 1, 32, 0, nullptr, x, index);
  RFN_LAUNCH(spill_kernel, 1, 1024, 0, nullptr, x, 3);
}

}  // namespace rfn::cuda
