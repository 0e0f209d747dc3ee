#include "cuda/device.cuh"
#include <gtest/gtest.h>
#include "cuda_on_host/control.h"
__global__ void k(float* a) { RFN_SHARED(s, float[32]); s[threadIdx.x] = a[threadIdx.x]; __syncthreads(); a[threadIdx.x] = s[31 - threadIdx.x]; }
TEST(A, B) {
  float* p; ASSERT_EQ(cudaMalloc(&p, 128), cudaSuccess);
  float h[32]; for (int i = 0; i < 32; ++i) h[i] = i;
  ASSERT_EQ(cudaMemcpy(p, h, 128, cudaMemcpyHostToDevice), cudaSuccess);
  ASSERT_EQ(RFN_LAUNCH(k, 1, 32, 0, nullptr, p), cudaSuccess) << rfn::cuda_on_host::last_report();
  ASSERT_EQ(cudaMemcpy(h, p, 128, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(h[0], 31);
}
