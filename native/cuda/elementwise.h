// Passes over dense arrays in device memory that several ops share.
#pragma once
#include <cstdint>

#include "core/philox.h"
#include "core/workspace.h"
#include "cuda/state.h"

namespace rfn::cuda {

rfn_status copy_floats(rfn_stream& stream, float* to, const float* from, int64_t n);

// y[i] = activation(x[i]) and dx[i] = dy[i] activation'(x[i]); in place where the pointers are equal.
rfn_status activation_forward(rfn_stream& stream, int32_t activation, const float* x, float* y, int64_t n);
rfn_status activation_backward(rfn_stream& stream, int32_t activation, const float* x, const float* dy, float* dx,
                               int64_t n);

// y[i] = x[i] times 0 or 1 / (1 - p), drawn for element first + i.
rfn_status apply_dropout(rfn_stream& stream, const float* x, float* y, int64_t n, const Philox& random, uint64_t first,
                         float p);

// y[rows, columns] += bias[columns], with the ReLU of that when asked for; rows of y are `ld` floats apart.
rfn_status add_bias(rfn_stream& stream, const float* bias, bool relu, int64_t rows, int64_t columns, float* y,
                    int64_t ld);

// out[columns] += sum over rows of x[rows, columns], in a fixed order; rows of x are `ld` floats apart.
struct ColumnSum {
  const float* x;
  int64_t rows, columns, ld;
  float* out;
};
inline constexpr int kMostColumnSums = 4;  // of a launch
// Up to so many of them, in one launch: for few rows, as nothing but columns is divided among blocks.
rfn_status add_columns(rfn_stream& stream, const ColumnSum* sums, int count);
// For many rows, before: sums parts of the rows, in one launch, and leaves in `sums` the sums of what came of that in
// `parts`, which are from take_column_sums for at least as many rows.
rfn_status sum_parts(rfn_stream& stream, ColumnSum* sums, float* const* parts, int count);
float* take_column_sums(Arena& arena, int64_t rows, int64_t columns);
// Both, for one. ld: 0 = columns.
rfn_status add_column_sums(rfn_stream& stream, const float* x, int64_t rows, int64_t columns, float* sums, float* out,
                           int64_t ld = 0);

// stream_values[i] += sign * d_i with d = dropout(x) (as apply_dropout), rounded to the grid of 2^grid_exponent when
// `exact`. With exact and sign +1, values that leave +-2^(24 + grid_exponent), or are not finite, are counted in the
// RangeCheck of take_range_check.
struct Residual {
  bool exact;
  int32_t grid_exponent;
  float sign;  // +1 or -1
  Philox random;
  uint64_t first;  // dropout element of x[0]
  float dropout;
};
struct RangeCheck {
  unsigned long long count, first;  // first: smallest flat index; ~0 when none
};
rfn_status reset_range_check(rfn_stream& stream, RangeCheck* checks, int count = 1);
// `index`: flat index of stream_values[0], for the check. check may be null.
rfn_status add_residual(rfn_stream& stream, const Residual& residual, float* stream_values, const float* x, int64_t n,
                        uint64_t index, RangeCheck* check);
// Folds checks of neighbouring streams, the first of which is `which`, into the caller's report: the first one that is
// not empty fills all but the count.
rfn_status report_range(rfn_stream& stream, const RangeCheck* checks, rfn_range_report* report, int32_t layer,
                        int64_t which, int count = 1);

}  // namespace rfn::cuda
