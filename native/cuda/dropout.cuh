// Dropout of elements that lie in rows, for kernels whose warps walk along a row 32 columns at a time.
#pragma once
#include "cuda/device_math.cuh"

namespace rfn::cuda {

struct Dropout {
  Philox random;
  uint32_t threshold;  // 0: nothing is dropped
  float keep_inverse;
};
inline Dropout dropout_of(const Philox& random, float p) {
  return {random, dropout_threshold(p), static_cast<float>(1.0 / (1.0 - static_cast<double>(p)))};
}

RFN_DEVICE float dropout_at(const Dropout& d, uint64_t element) {
  return d.threshold == 0 ? 1.0f : dropout_multiplier(philox_word(d.random, element), d.threshold, d.keep_inverse);
}

// Bit i: element + i * stride is kept, i < kKeptItems. Called by whole warps, whose lanes have consecutive elements;
// stride is a multiple of 4. Philox gives four words at a time, so four neighbouring lanes share them: each draws for
// every fourth i and passes the bits on.
inline constexpr int kKeptItems = 8;
RFN_DEVICE uint32_t kept_items(const Dropout& d, uint64_t element, uint64_t stride) {
  if (d.threshold == 0) return ~0u;
  const int lane = threadIdx.x % 32, word = lane % 4;
  uint32_t kept = 0;
  if ((element - lane) % 4 == 0) {
    uint32_t drawn = 0;  // bit 4m + w: word w of the quad for i = 4m + word
#pragma unroll 1
    for (int m = 0; m < kKeptItems / 4; ++m) {
      const PhiloxWords quad = philox_quad(d.random, (element + (4 * m + word) * stride) / 4);
#pragma unroll
      for (int w = 0; w < 4; ++w) drawn |= static_cast<uint32_t>(quad.w[w] >> 8 >= d.threshold) << (4 * m + w);
    }
#pragma unroll
    for (int from = 0; from < 4; ++from) {
      const uint32_t theirs = __shfl_sync(kFullWarp, drawn, lane - word + from) >> word;
#pragma unroll
      for (int m = 0; m < kKeptItems / 4; ++m) kept |= (theirs >> 4 * m & 1u) << (4 * m + from);
    }
    return kept;
  }
#pragma unroll 1
  for (int i = 0; i < kKeptItems; ++i)
    kept |= static_cast<uint32_t>(philox_word(d.random, element + i * stride) >> 8 >= d.threshold) << i;
  return kept;
}
RFN_DEVICE float kept_multiplier(const Dropout& d, uint32_t kept, int item) {
  return (kept >> item & 1u) != 0 ? d.keep_inverse : 0.0f;
}

}  // namespace rfn::cuda
