// Layer norm over rows that come from, and go to, wherever a struct says; shared by layer_norm.cu and final_norm.cu.
// The struct has
//   float value(row, column)                    x
//   void store(row, column, y)                  forward
//   float gradient(row, column)                 backward: dy
//   void store_gradient(row, column, dx)        backward; comes after the last load of the place, by the thread that
//                                               loaded it
//   Dropout dropout; int64_t first_row          of y, drawn for its flat index in a tensor in which row 0 is
//                                               first_row; only where kDropout is true
//
// kThreads threads have a row, column by column in turn: a warp by shuffles alone, more of them as a block. The first
// kNormItems columns of a thread stay in registers between the passes over a row; what is left of a row that is too
// wide for the largest block is read again.
#pragma once
#include <algorithm>
#include <type_traits>

#include "core/tensor.h"
#include "core/workspace.h"
#include "cuda/dropout.cuh"
#include "cuda/elementwise.h"
#include "cuda/state.h"

namespace rfn::cuda {

inline constexpr int kNormItems = kKeptItems;
inline constexpr int kMostNormThreads = 512;

template <int kThreads>
inline constexpr int kNormBlock = kThreads < 128 ? 128 : kThreads;

// body(std::integral_constant<int, kThreads>) with the threads of a row of this width.
template <class Body>
rfn_status with_norm_threads(int64_t width, const Body& body) {
  if (width <= 32 * kNormItems) return body(std::integral_constant<int, 32>());
  if (width <= 128 * kNormItems) return body(std::integral_constant<int, 128>());
  return body(std::integral_constant<int, kMostNormThreads>());
}

// Calls body(column, item) for the thread's columns; items from kNormItems on are all kNormItems.
template <int kThreads, class Body>
RFN_DEVICE void for_norm_columns(int64_t width, const Body& body) {
  const int64_t first = threadIdx.x % kThreads;
#pragma unroll
  for (int item = 0; item < kNormItems; ++item) {
    if (first + item * kThreads < width) body(first + item * kThreads, item);
  }
  if constexpr (kThreads == kMostNormThreads) {
#pragma unroll 1
    for (int64_t column = first + kNormItems * kThreads; column < width; column += kThreads) body(column, kNormItems);
  }
}

// Sums over the threads of a row; every one of them gets both. `parts` may be used again after another barrier of the
// block.
template <int kThreads>
RFN_DEVICE void norm_row_sum(float (*parts)[2], float& a, float& b) {
  a = group_sum(a);
  b = group_sum(b);
  if constexpr (kThreads > 32) {
    constexpr int kWarps = kThreads / 32;
    if (threadIdx.x % 32 == 0) {
      parts[threadIdx.x / 32][0] = a;
      parts[threadIdx.x / 32][1] = b;
    }
    __syncthreads();
    a = group_sum<kWarps>(parts[threadIdx.x % kWarps][0]);
    b = group_sum<kWarps>(parts[threadIdx.x % kWarps][1]);
  }
}

// Dropout multipliers of the thread's columns of a row.
template <int kThreads, class Rows>
struct RowDropout {
  const Rows& rows;
  int64_t first = 0;  // element of column 0
  uint32_t kept = 0;

  __device__ RowDropout(const Rows& r, int64_t row, int64_t width) : rows(r) {
    if constexpr (Rows::kDropout) {
      first = (rows.first_row + row) * width;
      kept = kept_items(rows.dropout, first + threadIdx.x % kThreads, kThreads);
    }
  }
  __device__ float operator()(int64_t column, int item) const {
    if constexpr (!Rows::kDropout)
      return 1.0f;
    else if (rows.dropout.threshold == 0)
      return 1.0f;
    else
      return item < kNormItems ? kept_multiplier(rows.dropout, kept, item) : dropout_at(rows.dropout, first + column);
  }
};

// xhat = (x - mean - correction) * inverse. The mean is rounded to float32; the mean of what is left over after taking
// it away corrects both the mean and the variance, so that a row far from zero keeps its precision.
struct NormStatistics {
  float mean, correction, inverse;
};
RFN_DEVICE float normalized(const NormStatistics& s, float x) { return (x - s.mean - s.correction) * s.inverse; }

// value(column, item) is x. Two sets of parts, as one barrier separates the two sums.
template <int kThreads, class Value>
RFN_DEVICE NormStatistics norm_statistics(int64_t width, float epsilon, float (*parts)[16][2], const Value& value) {
  const float n = static_cast<float>(width);
  float total = 0.0f, unused = 0.0f;
  for_norm_columns<kThreads>(width, [&](int64_t column, int item) { total += value(column, item); });
  norm_row_sum<kThreads>(parts[0], total, unused);
  const float mean = total / n;
  float deviations = 0.0f, squares = 0.0f;
  for_norm_columns<kThreads>(width, [&](int64_t column, int item) {
    const float deviation = value(column, item) - mean;
    deviations += deviation;
    squares = fmaf(deviation, deviation, squares);
  });
  norm_row_sum<kThreads>(parts[1], deviations, squares);
  const float correction = deviations / n;
  return {mean, correction, 1.0f / sqrtf(fmaxf(squares / n - correction * correction, 0.0f) + epsilon)};
}

// A block has one row, or as many as it has warps.
template <int kThreads, class Rows>
__global__ void __launch_bounds__(kNormBlock<kThreads>, 2)
    norm_forward_kernel(Rows rows, int64_t row_count, int64_t width, float epsilon, const float* weight,
                        const float* bias) {
  RFN_SHARED(parts, float[2][16][2]);
  const int64_t row = int64_t{blockIdx.x} * (kNormBlock<kThreads> / kThreads) + threadIdx.x / kThreads;
  if (row >= row_count) return;  // a whole warp, of a block without barriers
  float cache[kNormItems];
  for_norm_columns<kThreads>(width, [&](int64_t column, int item) {
    if (item < kNormItems) cache[item] = rows.value(row, column);
  });
  const auto value = [&](int64_t column, int item) {
    return item < kNormItems ? cache[item] : rows.value(row, column);
  };
  const NormStatistics s = norm_statistics<kThreads>(width, epsilon, parts, value);
  const RowDropout<kThreads, Rows> dropout(rows, row, width);
  for_norm_columns<kThreads>(width, [&](int64_t column, int item) {
    rows.store(row, column,
               fmaf(normalized(s, value(column, item)), weight[column], bias[column]) * dropout(column, item));
  });
}

template <class Rows>
rfn_status norm_forward(rfn_stream& stream, const Rows& rows, int64_t row_count, int64_t width, float epsilon,
                        const float* weight, const float* bias) {
  return with_norm_threads(width, [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value, kBlock = kNormBlock<kThreads>;
    RFN_CUDA_TRY(stream, RFN_LAUNCH((norm_forward_kernel<kThreads, Rows>), blocks_for(row_count, kBlock / kThreads),
                                    kBlock, 0, native_stream(stream), rows, row_count, width, epsilon, weight, bias));
    return RFN_OK;
  });
}

// The gradients of weight and bias are sums over rows: of at most kMostNormParts parts of the rows, each summed in
// order, then of the parts.
inline constexpr int64_t kMostNormParts = 2048, kLeastNormPartRows = 8;

inline int64_t norm_part_rows(int64_t rows) { return std::max(kLeastNormPartRows, div_up(rows, kMostNormParts)); }
inline float* take_norm_parts(Arena& arena, int64_t rows, int64_t width) {  // [parts, 2, width]: weight, bias
  return arena.take<float>(std::min(kMostNormParts, div_up(rows, kLeastNormPartRows)) * 2 * width);
}

// dx = inverse (g - mean(g) - xhat mean(g xhat)), g = dy weight. The threads of a row go through a part's rows.
template <int kThreads, class Rows>
__global__ void __launch_bounds__(kNormBlock<kThreads>, 1)
    norm_backward_kernel(Rows rows, int64_t row_count, int64_t part_rows, int64_t width, float epsilon,
                         const float* weight, float* sums) {
  RFN_SHARED(parts, float[3][16][2]);
  const int64_t part = int64_t{blockIdx.x} * (kNormBlock<kThreads> / kThreads) + threadIdx.x / kThreads;
  const int64_t begin = part * part_rows, end = min(row_count, begin + part_rows);
  if (begin >= row_count) return;  // a whole warp, of a block without barriers
  const float n = static_cast<float>(width);
  float* const weight_sums = sums + part * 2 * width;
  float* const bias_sums = weight_sums + width;
  float weight_sum[kNormItems] = {}, bias_sum[kNormItems] = {};
  for (int64_t row = begin; row < end; ++row) {
    const RowDropout<kThreads, Rows> dropout(rows, row, width);
    float x[kNormItems], dy[kNormItems];
    for_norm_columns<kThreads>(width, [&](int64_t column, int item) {
      if (item >= kNormItems) return;
      x[item] = rows.value(row, column);
      dy[item] = rows.gradient(row, column) * dropout(column, item);
    });
    const auto value = [&](int64_t column, int item) { return item < kNormItems ? x[item] : rows.value(row, column); };
    const auto gradient = [&](int64_t column, int item) {
      return item < kNormItems ? dy[item] : rows.gradient(row, column) * dropout(column, item);
    };
    const NormStatistics s = norm_statistics<kThreads>(width, epsilon, parts, value);
    float gradients = 0.0f, projections = 0.0f;
    for_norm_columns<kThreads>(width, [&](int64_t column, int item) {
      const float xhat = normalized(s, value(column, item)), out = gradient(column, item), g = out * weight[column];
      gradients += g;
      projections = fmaf(g, xhat, projections);
      if (item < kNormItems) {
        weight_sum[item] = fmaf(out, xhat, weight_sum[item]);
        bias_sum[item] += out;
      } else {
        weight_sums[column] = fmaf(out, xhat, row == begin ? 0.0f : weight_sums[column]);
        bias_sums[column] = out + (row == begin ? 0.0f : bias_sums[column]);
      }
    });
    norm_row_sum<kThreads>(parts[2], gradients, projections);
    const float mean_gradient = gradients / n, mean_projection = projections / n;
    for_norm_columns<kThreads>(width, [&](int64_t column, int item) {
      const float xhat = normalized(s, value(column, item)), g = gradient(column, item) * weight[column];
      rows.store_gradient(row, column, s.inverse * fmaf(-xhat, mean_projection, g - mean_gradient));
    });
  }
  for_norm_columns<kThreads>(width, [&](int64_t column, int item) {
    if (item >= kNormItems) return;
    weight_sums[column] = weight_sum[item];
    bias_sums[column] = bias_sum[item];
  });
}

// `parameters` becomes the sums that grad_weight and grad_bias are still to be given.
template <class Rows>
rfn_status norm_backward(rfn_stream& stream, const Rows& rows, int64_t row_count, int64_t width, float epsilon,
                         const float* weight, float* sums, float* grad_weight, float* grad_bias,
                         ColumnSum (&parameters)[2]) {
  const int64_t part_rows = norm_part_rows(row_count), parts = div_up(row_count, part_rows);
  parameters[0] = {sums, parts, width, 2 * width, grad_weight};
  parameters[1] = {sums + width, parts, width, 2 * width, grad_bias};
  return with_norm_threads(width, [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value, kBlock = kNormBlock<kThreads>;
    RFN_CUDA_TRY(stream,
                 RFN_LAUNCH((norm_backward_kernel<kThreads, Rows>), blocks_for(parts, kBlock / kThreads), kBlock, 0,
                            native_stream(stream), rows, row_count, part_rows, width, epsilon, weight, sums));
    return RFN_OK;
  });
}

}  // namespace rfn::cuda
