// Device functions that several kernels share.
#pragma once
#include "core/philox.h"
#include "cuda/device.cuh"
#include "reformer_native.h"

namespace rfn::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;

// Sum and maximum over the lanes of a group of `width` (a power of two) neighbouring lanes; every lane gets the same
// bits.
template <int width = 32, class T>
RFN_DEVICE T group_sum(T x) {
#pragma unroll
  for (int step = width / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}
template <int width = 32>
RFN_DEVICE float group_maximum(float x) {
#pragma unroll
  for (int step = width / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, step));
  return x;
}

// Sum over a block of whole warps, in float64 and in an order that depends on the block's size alone; every thread gets
// it. All threads call it.
RFN_DEVICE double block_sum(double x) {
  RFN_SHARED(parts, double[32]);
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  x = group_sum(x);
  __syncthreads();  // the call before this one has been read
  if (lane == 0) parts[warp] = x;
  __syncthreads();
  return group_sum(lane < blockDim.x / 32 ? parts[lane] : 0.0);
}

RFN_DEVICE float activation_value(int32_t activation, float x) {
  switch (activation) {
    case RFN_ACTIVATION_RELU:
      return x > 0.0f ? x : 0.0f;
    case RFN_ACTIVATION_GELU_ERF:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case RFN_ACTIVATION_GELU_TANH:
      return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case RFN_ACTIVATION_SILU:
      return x / (1.0f + expf(-x));
    case RFN_ACTIVATION_TANH:
      return tanhf(x);
    default:
      return x;
  }
}
// d activation / dx.
RFN_DEVICE float activation_slope(int32_t activation, float x) {
  switch (activation) {
    case RFN_ACTIVATION_RELU:
      return x > 0.0f ? 1.0f : 0.0f;
    case RFN_ACTIVATION_GELU_ERF:
      return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * 0.39894228040143268f * expf(-0.5f * x * x);
    case RFN_ACTIVATION_GELU_TANH: {
      const float t = tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x));
      return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.79788456080286536f * (1.0f + 0.134145f * x * x);
    }
    case RFN_ACTIVATION_SILU: {
      const float s = 1.0f / (1.0f + expf(-x));
      return s + x * s * (1.0f - s);
    }
    case RFN_ACTIVATION_TANH: {
      const float t = tanhf(x);
      return 1.0f - t * t;
    }
    default:
      return 1.0f;
  }
}

// Blocks for n elements, `each` of them a block; grids stay under the limit of 2^31 - 1 blocks, which 2^31 * 256
// elements would need.
inline unsigned blocks_for(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

}  // namespace rfn::cuda
