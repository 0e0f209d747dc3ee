// A block has kRows rows of x, in shared memory kSharedFloats / kRows columns at a time, and a few columns of y; a warp
// has kColumns of those. Elements 4q .. 4q + 3 of a row of w are lane q mod 32's, which adds up their products in
// order; then the lanes meet. So the order of a sum is the same for every number of rows, aligned or not.
//
// A row of w comes from device memory once for kRows rows of x; the blocks that read the same weights for other rows
// are neighbours in the launch grid, so that they find them in the cache.
#include "cuda/row_product.h"

#include <type_traits>

#include "core/tensor.h"
#include "cuda/grid.cuh"
#include "cuda/quads.cuh"

namespace rfn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kColumns = 2;  // of a warp
constexpr int kMostRows = 8;
constexpr int kSharedFloats = 4096;

struct Call {
  RowProduct product;
  Grid grid;
  int64_t tiles;  // of rows
  bool aligned;   // rows of w may be read four elements at a time
};

struct Statistics {
  float mean, correction, inverse;  // as in norm_rows.cuh
};

// z[c][i] += w[c] . x[i] over `count` elements that begin at element `begin` of w. A lane has kAhead quads of each row
// of w in flight.
template <int kRows, bool kAligned>
RFN_DEVICE void add_products(const float* const (&w)[kColumns], int64_t begin, int64_t depth, int count,
                             const float (*x)[kSharedFloats / kRows], float (&z)[kColumns][kRows]) {
  constexpr int kAhead = kRows <= 2 ? 4 : 2, kStep = 4 * 32;
  for (int first = 4 * (threadIdx.x % 32); first < count; first += kStep * kAhead) {
    Quad weight[kAhead][kColumns];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int k = first + a * kStep;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (k < count) weight[a][c] = load_quad(w[c], begin + k, kAligned ? begin + k + 4 : depth, kAligned);
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int k = first + a * kStep;
      if (k >= count) break;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float4 quad = *reinterpret_cast<const float4*>(&x[i][k]);
        const float values[] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
#pragma unroll
          for (int j = 0; j < 4; ++j) z[c][i] = fmaf(values[j], weight[a][c].v[j], z[c][i]);
        }
      }
    }
  }
}

template <int kRows>
__global__ void __launch_bounds__(kThreads) row_product_kernel(Call c) {
  constexpr int kDepth = kSharedFloats / kRows;
  RFN_SHARED(x, float[kRows][kDepth]);
  RFN_SHARED(sums, float[3][kWarps][kRows]);  // of values; of deviations from the mean, of their squares
  const RowProduct& p = c.product;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_row = blockIdx.x % c.tiles * kRows;
  const int64_t first_column = (blockIdx.x / c.tiles * kWarps + warp) * kColumns, columns = p.weights * p.columns;
  if (p.empty_checks != nullptr && blockIdx.x == 0 && threadIdx.x < 2) p.empty_checks[threadIdx.x] = {0, ~0ull};
  const auto row = [&](int i) { return p.x + (first_row + i < p.rows ? first_row + i : p.rows - 1) * p.depth; };

  const bool norm = p.norm_weight != nullptr;
  const float n = static_cast<float>(p.depth);
  const auto total = [&](int which, int i) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[which][w][i];
    return sum;
  };
  if (norm) {
    float values[kRows] = {}, deviations[kRows] = {}, squares[kRows] = {};
    for (int64_t k = threadIdx.x; k < p.depth; k += kThreads) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) values[i] += row(i)[k];
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      values[i] = group_sum(values[i]);
      if (lane == 0) sums[0][warp][i] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRows; ++i) values[i] = total(0, i) / n;
    for (int64_t k = threadIdx.x; k < p.depth; k += kThreads) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float deviation = row(i)[k] - values[i];
        deviations[i] += deviation;
        squares[i] = fmaf(deviation, deviation, squares[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      deviations[i] = group_sum(deviations[i]);
      squares[i] = group_sum(squares[i]);
      if (lane != 0) continue;
      sums[1][warp][i] = deviations[i];
      sums[2][warp][i] = squares[i];
    }
  }
  const auto statistics = [&](int i) -> Statistics {
    const float correction = total(1, i) / n;
    const float variance = fmaxf(total(2, i) / n - correction * correction, 0.0f);
    return {total(0, i) / n, correction, 1.0f / sqrtf(variance + p.epsilon)};
  };

  const float* w[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const int64_t column = first_column + j < columns ? first_column + j : columns - 1;
    w[j] = p.w[column / p.columns] + column % p.columns * p.depth;
  }
  float z[kColumns][kRows] = {};
  for (int64_t begin = 0; begin < p.depth; begin += kDepth) {
    const int count = static_cast<int>(p.depth - begin < kDepth ? p.depth - begin : kDepth);
    __syncthreads();  // the sums are there; nobody reads the columns before any more
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float* const from = row(i) + begin;
      const Statistics s = norm ? statistics(i) : Statistics{};
      for (int k = threadIdx.x; k < (count + 3) / 4 * 4; k += kThreads) {
        float value = k < count ? from[k] : 0.0f;
        if (norm && k < count)
          value = fmaf((value - s.mean - s.correction) * s.inverse, p.norm_weight[begin + k], p.norm_bias[begin + k]);
        x[i][k] = value;
      }
    }
    __syncthreads();
    if (c.aligned) {
      add_products<kRows, true>(w, begin, p.depth, count, x, z);
    } else {
      add_products<kRows, false>(w, begin, p.depth, count, x, z);
    }
  }

  // Lane j * kRows + i has row i of the warp's column j.
  float value = 0.0f;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float sum = group_sum(z[j][i]);
      if (lane == j * kRows + i) value = sum;
    }
  }
  const int64_t at = first_row + lane % kRows, column = first_column + lane / kRows;
  int outside = 0;
  unsigned long long first_outside = ~0ull;
  if (lane < kColumns * kRows && at < p.rows && column < columns) {
    const int64_t which = column / p.columns, j = column % p.columns;
    float* const y = p.y[which] + at * p.ldy[which] + j;
    if (p.bias != nullptr) value += p.bias[j];
    if (!p.add) {
      *y = activation_value(p.activation, value);
    } else if (p.check == nullptr) {
      *y += value;
    } else {
      bool good;
      *y = grid_sum(*y, to_grid(value, c.grid), c.grid, &good);
      if (!good) {
        outside = 1;
        first_outside = static_cast<unsigned long long>(at * p.columns + j);
      }
    }
  }
  if (p.check != nullptr) add_to_check(p.check, outside, first_outside);
}

}  // namespace

rfn_status row_product(rfn_stream& stream, const RowProduct& product) {
  Call c{product, {}, 0, product.depth % 4 == 0};
  if (product.check != nullptr) c.grid = grid_of(product.grid_exponent);
  for (int i = 0; i < product.weights; ++i) c.aligned = c.aligned && quads_aligned(0, product.w[i]);
  const auto launch = [&](auto rows) -> rfn_status {
    constexpr int kRows = decltype(rows)::value;
    c.tiles = div_up(product.rows, kRows);
    const int64_t across = div_up(product.weights * product.columns, kWarps * kColumns);
    RFN_CUDA_TRY(stream, RFN_LAUNCH(row_product_kernel<kRows>, blocks_for(across * c.tiles, 1), kThreads, 0,
                                    native_stream(stream), c));
    return RFN_OK;
  };
  if (product.rows == 1) return launch(std::integral_constant<int, 1>());
  if (product.rows == 2) return launch(std::integral_constant<int, 2>());
  if (product.rows <= 4) return launch(std::integral_constant<int, 4>());
  return launch(std::integral_constant<int, kMostRows>());
}

}  // namespace rfn::cuda
