// Products of a few rows with weight matrices, as generation makes them: bound by the memory that the weights lie in.
// What comes before them (the layer norm of the rows) and after (bias, activation, the sum with a residual stream) is
// part of the same launch. Sums are float32 in every precision.
#pragma once
#include <cstdint>

#include "cuda/elementwise.h"
#include "cuda/state.h"

namespace rfn::cuda {

inline constexpr int kMostWeights = 3;

// y[i, j] = activation(x[i, :] . w[j, :] + bias[j]) for every weight w and i < rows, j < columns; or y[i, j] += that
// sum, with the rounding of exact residuals where there is a check. The bits of y[i, j] depend on x[i, :], w[j, :] and
// what is added to their product alone.
struct RowProduct {
  int64_t rows = 0, columns = 0, depth = 0;                  // columns: of one weight
  const float* x = nullptr;                                  // [rows, depth]
  const float *norm_weight = nullptr, *norm_bias = nullptr;  // with them x stands for its layer norm
  float epsilon = 0.0f;
  int weights = 0;
  const float* w[kMostWeights] = {};  // [columns, depth]
  float* y[kMostWeights] = {};        // rows are ldy floats apart
  int64_t ldy[kMostWeights] = {};
  const float* bias = nullptr;  // [columns]; null: none
  int32_t activation = RFN_ACTIVATION_NONE;
  bool add = false;                    // y += ..
  int32_t grid_exponent = 0;           // with a check
  RangeCheck* check = nullptr;         // add: the values of y [rows, columns] that leave their exact range
  RangeCheck* empty_checks = nullptr;  // [2]: emptied, for later products
};
rfn_status row_product(rfn_stream& stream, const RowProduct& product);

}  // namespace rfn::cuda
