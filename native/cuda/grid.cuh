// The grid of exact residual streams: multiples of 2^exponent, exact while they stay within +-2^(24 + exponent).
#pragma once
#include <cmath>

#include "cuda/device_math.cuh"
#include "cuda/elementwise.h"

namespace rfn::cuda {

struct Grid {
  float big;    // 2^(23 + exponent): from there on, neighbouring floats are at least 2^exponent apart
  float limit;  // twice that: the exact range
};
inline Grid grid_of(int32_t exponent) { return {std::ldexp(1.0f, 23 + exponent), std::ldexp(1.0f, 24 + exponent)}; }

// x rounded to a multiple of 2^exponent, ties to even, never -0 (as the CPU's round_to_grid). Written so that the
// compiler may not fuse or reorder: backward has to take back the very number that forward added.
RFN_DEVICE float to_grid(float x, const Grid& grid) {
  const float shift = copysignf(grid.big, x);
  return fabsf(x) < grid.big ? __fsub_rn(__fadd_rn(x, shift), shift) : x;
}

// value + delta, and whether that is exact and in range. A sum just past the limit may round to it: hence the second
// comparison.
RFN_DEVICE float grid_sum(float value, float delta, const Grid& grid, bool* good) {
  const float sum = __fadd_rn(value, delta);
  *good = fabsf(sum) <= grid.limit && __fsub_rn(sum, delta) == value;
  return sum;
}

// Adds what the lanes of a warp have found, `count` values of which `first` is the smallest index (~0: none); the whole
// warp calls it. One warp's findings at a time: a stream of NaN would queue up at the counter otherwise.
RFN_DEVICE void add_to_check(RangeCheck* check, int count, unsigned long long first) {
  if (!__any_sync(kFullWarp, count > 0)) return;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(kFullWarp, first, step);
    first = other < first ? other : first;
    count += __shfl_xor_sync(kFullWarp, count, step);
  }
  if (threadIdx.x % 32 == 0) {
    atomicAdd(&check->count, static_cast<unsigned long long>(count));
    atomicMin(&check->first, first);
  }
}

RFN_DEVICE void fold_check(const RangeCheck* check, rfn_range_report* report, int32_t layer, int64_t which) {
  if (check->count == 0) return;
  if (report->count == 0) {
    report->layer = layer;
    report->stream = which;
    report->index = static_cast<int64_t>(check->first);
  }
  report->count += static_cast<int64_t>(check->count);
}

}  // namespace rfn::cuda
