// Products of a few rows with a weight matrix, as generation makes them: bound by the memory that the weights lie in,
// which BLAS does not reach.
#pragma once
#include <cstdint>

namespace rfn::cpu {

inline constexpr int64_t kFewRows = 8;  // up to here row_products is at least as fast as gemm with cold weights

// y[i, j] = x[i, :] . w[j, :] for i < rows, j < columns; rows of y are ldy floats apart. Reads a row of w from memory
// once, whatever the number of rows of x. One thread. The bits of y[i, j] depend on x[i, :] and w[j, :] alone.
void row_products(int64_t rows, int64_t columns, int64_t depth, const float* x, int64_t ldx, const float* w,
                  int64_t ldw, float* y, int64_t ldy);

// Rows of w of `depth` floats that one work item takes: enough to stream, few enough to share out.
inline int64_t row_product_columns(int64_t depth) {
  constexpr int64_t kItemFloats = 16384;
  const int64_t columns = kItemFloats / depth / 4 * 4;
  return columns < 4 ? 4 : columns;
}

}  // namespace rfn::cpu
