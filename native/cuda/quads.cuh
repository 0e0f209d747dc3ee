// Four neighbouring elements of arrays per thread, which is what one call of Philox serves. Quads are those of the
// random numbers: with `first` the number of an array's element 0, a quad is elements 4q .. 4q + 3 of that numbering,
// so an array may begin and end in the middle of one.
#pragma once
#include <cstdint>

#include "cuda/dropout.cuh"

namespace rfn::cuda {

struct Quad {
  float v[4];
};

// Quads that n elements from number `first` on touch; host code asks for as many threads.
inline int64_t quad_count(int64_t n, uint64_t first) { return (static_cast<int64_t>(first % 4) + n + 3) / 4; }

// Whether float4 accesses can be used.
template <class... Pointers>
bool quads_aligned(uint64_t first, const Pointers*... pointers) {
  return first % 4 == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Where the calling thread's quad begins in the array: -3 or more, n or more when it has none.
RFN_DEVICE int64_t quad_begin(uint64_t first) {
  return 4 * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) - static_cast<int64_t>(first % 4);
}

// Elements outside [0, n) are 0, and not written.
RFN_DEVICE Quad load_quad(const float* x, int64_t i, int64_t n, bool aligned) {
  Quad q;
  if (aligned && i + 4 <= n) {
    const float4 values = *reinterpret_cast<const float4*>(x + i);
    q.v[0] = values.x;
    q.v[1] = values.y;
    q.v[2] = values.z;
    q.v[3] = values.w;
    return q;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) q.v[j] = i + j >= 0 && i + j < n ? x[i + j] : 0.0f;
  return q;
}
RFN_DEVICE void store_quad(float* x, int64_t i, int64_t n, bool aligned, const Quad& q) {
  if (aligned && i + 4 <= n) {
    *reinterpret_cast<float4*>(x + i) = make_float4(q.v[0], q.v[1], q.v[2], q.v[3]);
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (i + j >= 0 && i + j < n) x[i + j] = q.v[j];
  }
}

// Dropout's multipliers for the quad that begins at element i of the array.
RFN_DEVICE Quad dropout_quad(const Dropout& dropout, uint64_t first, int64_t i) {
  Quad q{{1.0f, 1.0f, 1.0f, 1.0f}};
  if (dropout.threshold == 0) return q;
  const PhiloxWords words = philox_quad(dropout.random, (first + static_cast<uint64_t>(i)) / 4);
#pragma unroll
  for (int j = 0; j < 4; ++j) q.v[j] = dropout_multiplier(words.w[j], dropout.threshold, dropout.keep_inverse);
  return q;
}

}  // namespace rfn::cuda
