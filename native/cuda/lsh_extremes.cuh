// The arg max of [z, -z] that gives a hash its bucket, over columns that the lanes of a warp share.
#pragma once
#include "cuda/device_math.cuh"

namespace rfn::cuda {

// Largest and smallest product so far and the first columns that have them.
struct Extremes {
  float high = -INFINITY, low = INFINITY;
  int32_t high_at = 0, low_at = 0;
};

RFN_DEVICE void include(Extremes& e, float z, int32_t column) {
  if (z > e.high) {
    e.high = z;
    e.high_at = column;
  }
  if (z < e.low) {
    e.low = z;
    e.low_at = column;
  }
}

// Of a group of `width` neighbouring lanes; of equal values the one of the first column.
template <int width>
RFN_DEVICE void meet(Extremes& e) {
#pragma unroll
  for (int step = width / 2; step > 0; step /= 2) {
    const float high = __shfl_xor_sync(kFullWarp, e.high, step), low = __shfl_xor_sync(kFullWarp, e.low, step);
    const int32_t high_at = __shfl_xor_sync(kFullWarp, e.high_at, step),
                  low_at = __shfl_xor_sync(kFullWarp, e.low_at, step);
    if (high > e.high || (high == e.high && high_at < e.high_at)) {
      e.high = high;
      e.high_at = high_at;
    }
    if (low < e.low || (low == e.low && low_at < e.low_at)) {
      e.low = low;
      e.low_at = low_at;
    }
  }
}

// The first maximum of [z, -z] wins, so the positive half does on a tie. half: the columns of z.
RFN_DEVICE int32_t first_maximum(const Extremes& e, int32_t half) {
  return e.high >= -e.low ? e.high_at : half + e.low_at;
}

// Which of the given rotations a head of an example has: they are one for all, or one for each head, or for each head
// of each example.
RFN_DEVICE int64_t rotation_set(int64_t sets, int64_t heads, int64_t example, int64_t head) {
  return sets == 1 ? 0 : sets == heads ? head : example * heads + head;
}

}  // namespace rfn::cuda
