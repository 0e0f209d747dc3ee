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

// Sums of one launch: block (x, y) has kSumColumns columns of one of them, and of its rows part y.
struct ColumnSums {
  ColumnSum of[kMostColumnSums];
  int64_t part_rows[kMostColumnSums];
  unsigned first_block[kMostColumnSums];
  int count;
};

// out[part, columns] = or += the sum of the rows of a part.
__global__ void __launch_bounds__(kSumColumns* kSumRows) column_sums_kernel(ColumnSums all, bool add) {
  RFN_SHARED(sums, float[kSumRows][kSumColumns]);
  int which = 0;
  while (which + 1 < all.count && all.first_block[which + 1] <= blockIdx.x) ++which;
  const float* const x = all.of[which].x;
  const int64_t rows = all.of[which].rows, columns = all.of[which].columns, ld = all.of[which].ld,
                part_rows = all.part_rows[which];
  const int64_t column = int64_t{blockIdx.x - all.first_block[which]} * kSumColumns + threadIdx.x;
  const int64_t begin = blockIdx.y * part_rows, end = begin + part_rows < rows ? begin + part_rows : rows;
  if (begin >= rows) return;  // the whole block, of a sum with fewer parts than another one
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
  float* const place = all.of[which].out + blockIdx.y * columns + column;
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

__global__ void reset_check_kernel(RangeCheck* checks) { checks[threadIdx.x] = {0, ~0ull}; }

__global__ void report_range_kernel(const RangeCheck* checks, int count, rfn_range_report* report, int32_t layer,
                                    int64_t which) {
  for (int i = 0; i < count; ++i) fold_check(checks + i, report, layer, which + i);
}

rfn_status launch_column_sums(rfn_stream& stream, const ColumnSums& all, int64_t parts, bool add) {
  const ColumnSum& last = all.of[all.count - 1];
  const dim3 grid(all.first_block[all.count - 1] + blocks_for(last.columns, kSumColumns), static_cast<unsigned>(parts));
  RFN_CUDA_TRY(stream,
               RFN_LAUNCH(column_sums_kernel, grid, dim3(kSumColumns, kSumRows), 0, native_stream(stream), all, add));
  return RFN_OK;
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

rfn_status add_columns(rfn_stream& stream, const ColumnSum* sums, int count) {
  ColumnSums all{};
  unsigned blocks = 0;
  for (; all.count < count; ++all.count) {
    all.of[all.count] = sums[all.count];
    all.part_rows[all.count] = sums[all.count].rows;
    all.first_block[all.count] = blocks;
    blocks += blocks_for(sums[all.count].columns, kSumColumns);
  }
  return launch_column_sums(stream, all, 1, true);
}

rfn_status sum_parts(rfn_stream& stream, ColumnSum* sums, float* const* parts, int count) {
  ColumnSums all{};
  unsigned blocks = 0;
  int64_t most = 1;
  for (; all.count < count; ++all.count) {
    ColumnSum& sum = sums[all.count];
    ColumnSum& first = all.of[all.count];
    first = sum;
    first.out = parts[all.count];
    const int64_t part_count = parts_of(sum.rows);
    all.part_rows[all.count] = div_up(sum.rows, part_count);
    all.first_block[all.count] = blocks;
    blocks += blocks_for(sum.columns, kSumColumns);
    most = std::max(most, part_count);
    sum = {first.out, div_up(sum.rows, all.part_rows[all.count]), sum.columns, sum.columns, sum.out};
  }
  return launch_column_sums(stream, all, most, false);
}

rfn_status add_column_sums(rfn_stream& stream, const float* x, int64_t rows, int64_t columns, float* sums, float* out,
                           int64_t ld) {
  ColumnSum sum{x, rows, columns, ld == 0 ? columns : ld, out};
  RFN_TRY(sum_parts(stream, &sum, &sums, 1));
  return add_columns(stream, &sum, 1);
}

rfn_status reset_range_check(rfn_stream& stream, RangeCheck* checks, int count) {
  RFN_CUDA_TRY(stream,
               RFN_LAUNCH(reset_check_kernel, 1, static_cast<unsigned>(count), 0, native_stream(stream), checks));
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

rfn_status report_range(rfn_stream& stream, const RangeCheck* checks, rfn_range_report* report, int32_t layer,
                        int64_t which, int count) {
  RFN_CUDA_TRY(stream,
               RFN_LAUNCH(report_range_kernel, 1, 1, 0, native_stream(stream), checks, count, report, layer, which));
  return RFN_OK;
}

}  // namespace rfn::cuda
