#include "cuda/elementwise.h"

#include <algorithm>

#include "core/tensor.h"
#include "cuda/grid.cuh"
#include "cuda/quads.cuh"

namespace rfn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostParts = 128;            // of a column sum; each is a block's
constexpr int64_t kPartRows = 64;              // of a part, at least
constexpr int kSumColumns = 32, kSumRows = 8;  // of a block that sums columns
constexpr int64_t kRunRows =
    32;  // added by themselves before they join a thread's sum, so that its rounding error grows more slowly

// ---- activations, dropout -----------------------------------------------------------------------

// dy: null for the activation itself.
__global__ void __launch_bounds__(kThreads)
    activation_kernel(int32_t activation, const float* x, const float* dy, float* out, int64_t n, bool aligned) {
  const int64_t i = quad_begin(0);
  Quad q = load_quad(x, i, n, aligned);
  if (dy == nullptr) {
#pragma unroll
    for (int j = 0; j < 4; ++j) q.v[j] = activation_value(activation, q.v[j]);
  } else {
    const Quad gradient = load_quad(dy, i, n, aligned);
#pragma unroll
    for (int j = 0; j < 4; ++j) q.v[j] = gradient.v[j] * activation_slope(activation, q.v[j]);
  }
  store_quad(out, i, n, aligned, q);
}

rfn_status launch_activation(rfn_stream& stream, int32_t activation, const float* x, const float* dy, float* out,
                             int64_t n) {
  const bool aligned = quads_aligned(0, x, dy, out);
  const unsigned blocks = blocks_for(quad_count(n, 0), kThreads);
  RFN_CUDA_TRY(stream, RFN_LAUNCH(activation_kernel, blocks, kThreads, 0, native_stream(stream), activation, x, dy, out,
                                  n, aligned));
  return RFN_OK;
}

__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const float* x, float* y, int64_t n, Dropout dropout, uint64_t first, bool aligned) {
  const int64_t i = quad_begin(first);
  Quad q = load_quad(x, i, n, aligned);
  const Quad multiplier = dropout_quad(dropout, first, i);
#pragma unroll
  for (int j = 0; j < 4; ++j) q.v[j] *= multiplier.v[j];
  store_quad(y, i, n, aligned, q);
}

// ---- bias ---------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads)
    bias_kernel(const float* bias, bool relu, int64_t rows, int64_t columns, float* y, int64_t ld) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= columns) return;
  const float add = bias[column];
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float* const place = y + row * ld + column;
    const float value = *place + add;
    *place = relu ? activation_value(RFN_ACTIVATION_RELU, value) : value;
  }
}

int64_t parts_of(int64_t rows) { return std::min(kMostParts, div_up(rows, kPartRows)); }

// out[part, columns] = or += the sum of the rows of a part.
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    column_sums_kernel(const float* x, int64_t rows, int64_t columns, int64_t ld, int64_t part_rows, float* out,
                       bool add) {
  RFN_SHARED(sums, float[kSumRows][kSumColumns]);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  const int64_t begin = blockIdx.y * part_rows, end = begin + part_rows < rows ? begin + part_rows : rows;
  float total = 0.0f;
  if (column < columns) {
    for (int64_t run = begin + threadIdx.y; run < end; run += kRunRows * kSumRows) {
      const int64_t run_end = run + kRunRows * kSumRows < end ? run + kRunRows * kSumRows : end;
      float sum = 0.0f;
#pragma unroll 4
      for (int64_t row = run; row < run_end; row += kSumRows) sum += x[row * ld + column];
      total += sum;
    }
  }
  sums[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  float sum = 0.0f;
#pragma unroll
  for (int y = 0; y < kSumRows; ++y) sum += sums[y][threadIdx.x];
  float* const place = out + blockIdx.y * columns + column;
  *place = add ? *place + sum : sum;
}

// ---- residuals ----------------------------------------------------------------------------------

struct ResidualCall {
  Dropout dropout;
  uint64_t first;  // dropout element of x[0]
  Grid grid;
  float sign;
  uint64_t index;
};

template <bool kExact>
__global__ void __launch_bounds__(kThreads)
    residual_kernel(ResidualCall call, float* values, const float* x, int64_t n, RangeCheck* check, bool aligned) {
  const int64_t i = quad_begin(call.first);
  Quad value = load_quad(values, i, n, aligned);
  const Quad change = load_quad(x, i, n, aligned), multiplier = dropout_quad(call.dropout, call.first, i);
  unsigned long long first = ~0ull;
  int count = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float dropped = __fmul_rn(change.v[j], multiplier.v[j]), before = value.v[j];
    const float delta = call.sign * (kExact ? to_grid(dropped, call.grid) : dropped);
    bool good = true;
    value.v[j] = kExact ? grid_sum(before, delta, call.grid, &good) : __fadd_rn(before, delta);
    if (kExact && !good && check != nullptr && i + j >= 0 && i + j < n) {
      const unsigned long long at = call.index + static_cast<unsigned long long>(i + j);
      first = at < first ? at : first;
      ++count;
    }
  }
  store_quad(values, i, n, aligned, value);
  if constexpr (kExact) {
    if (check != nullptr) add_to_check(check, count, first);
  }
}

__global__ void reset_check_kernel(RangeCheck* check) { *check = {0, ~0ull}; }

__global__ void report_range_kernel(const RangeCheck* check, rfn_range_report* report, int32_t layer, int64_t which) {
  fold_check(check, report, layer, which);
}

}  // namespace

rfn_status copy_floats(rfn_stream& stream, float* to, const float* from, int64_t n) {
  RFN_CUDA_TRY(stream, cudaMemcpyAsync(to, from, static_cast<size_t>(n) * sizeof(float), cudaMemcpyDeviceToDevice,
                                       native_stream(stream)));
  return RFN_OK;
}

rfn_status activation_forward(rfn_stream& stream, int32_t activation, const float* x, float* y, int64_t n) {
  return launch_activation(stream, activation, x, nullptr, y, n);
}
rfn_status activation_backward(rfn_stream& stream, int32_t activation, const float* x, const float* dy, float* dx,
                               int64_t n) {
  return launch_activation(stream, activation, x, dy, dx, n);
}

rfn_status apply_dropout(rfn_stream& stream, const float* x, float* y, int64_t n, const Philox& random, uint64_t first,
                         float p) {
  if (p == 0.0f && x == y) return RFN_OK;
  const bool aligned = quads_aligned(first, x, y);
  RFN_CUDA_TRY(stream, RFN_LAUNCH(dropout_kernel, blocks_for(quad_count(n, first), kThreads), kThreads, 0,
                                  native_stream(stream), x, y, n, dropout_of(random, p), first, aligned));
  return RFN_OK;
}

rfn_status add_bias(rfn_stream& stream, const float* bias, bool relu, int64_t rows, int64_t columns, float* y,
                    int64_t ld) {
  const dim3 grid(blocks_for(columns, kThreads), static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
  RFN_CUDA_TRY(stream,
               RFN_LAUNCH(bias_kernel, grid, kThreads, 0, native_stream(stream), bias, relu, rows, columns, y, ld));
  return RFN_OK;
}

float* take_column_sums(Arena& arena, int64_t rows, int64_t columns) {
  return arena.take<float>(parts_of(rows) * columns);
}

rfn_status add_column_sums(rfn_stream& stream, const float* x, int64_t rows, int64_t columns, float* sums, float* out,
                           int64_t ld) {
  const int64_t parts = parts_of(rows);
  const unsigned across = blocks_for(columns, kSumColumns);
  const dim3 block(kSumColumns, kSumRows);
  RFN_CUDA_TRY(stream, RFN_LAUNCH(column_sums_kernel, dim3(across, static_cast<unsigned>(parts)), block, 0,
                                  native_stream(stream), x, rows, columns, ld == 0 ? columns : ld, div_up(rows, parts),
                                  sums, false));
  RFN_CUDA_TRY(stream, RFN_LAUNCH(column_sums_kernel, dim3(across), block, 0, native_stream(stream), sums, parts,
                                  columns, columns, parts, out, true));
  return RFN_OK;
}

rfn_status reset_range_check(rfn_stream& stream, RangeCheck* check) {
  RFN_CUDA_TRY(stream, RFN_LAUNCH(reset_check_kernel, 1, 1, 0, native_stream(stream), check));
  return RFN_OK;
}

rfn_status add_residual(rfn_stream& stream, const Residual& residual, float* stream_values, const float* x, int64_t n,
                        uint64_t index, RangeCheck* check) {
  const uint64_t first = residual.first;
  ResidualCall call{dropout_of(residual.random, residual.dropout), first, {}, residual.sign, index};
  if (residual.exact) call.grid = grid_of(residual.grid_exponent);
  const bool aligned = quads_aligned(first, stream_values, x);
  const unsigned blocks = blocks_for(quad_count(n, first), kThreads);
  const auto add_residual_kernel = residual.exact ? residual_kernel<true> : residual_kernel<false>;
  RFN_CUDA_TRY(stream, RFN_LAUNCH(add_residual_kernel, blocks, kThreads, 0, native_stream(stream), call, stream_values,
                                  x, n, check, aligned));
  return RFN_OK;
}

rfn_status report_range(rfn_stream& stream, const RangeCheck* check, rfn_range_report* report, int32_t layer,
                        int64_t which) {
  RFN_CUDA_TRY(stream, RFN_LAUNCH(report_range_kernel, 1, 1, 0, native_stream(stream), check, report, layer, which));
  return RFN_OK;
}

}  // namespace rfn::cuda
