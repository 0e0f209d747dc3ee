// Kernels that keep the rules of budgets.txt, for self_test.sh. Compiled, never run.
#include "cuda/device.cuh"

namespace rfn::cuda {
namespace {

template <int Size>
__global__ void fine_kernel(float* x) {
  RFN_SHARED(tile, float[Size]);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile[Size - 1 - threadIdx.x];
}

__global__ void tensor_kernel(const uint32_t* operands, float* x) {
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = operands[32 * i + threadIdx.x];
  for (int i = 0; i < 2; ++i) b[i] = operands[32 * (4 + i) + threadIdx.x];
  float d[4] = {};
  mma_m16n8k16_bf16(d, a, b);
  for (int i = 0; i < 4; ++i) x[32 * i + threadIdx.x] = d[i];
}

}  // namespace

void launch_keepers(float* x, const uint32_t* operands) {
  RFN_LAUNCH(fine_kernel<32>, 1, 32, 0, nullptr, x);
  RFN_LAUNCH(fine_kernel<64>, 1, 64, 0, nullptr, x);
  RFN_LAUNCH(tensor_kernel, 1, 32, 0, nullptr, operands, x);
}

}  // namespace rfn::cuda
