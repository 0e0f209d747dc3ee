// Element-wise work on contiguous float rows, vectorised; one thread each.
#pragma once
#include <cstdint>

#include "core/philox.h"

namespace rfn::cpu {

void add(float* y, const float* x, int64_t n);       // y += x
void subtract(float* y, const float* x, int64_t n);  // y -= x

// x[i] *= dropout multiplier of element first + i; nothing when p == 0.
void apply_dropout(float* x, int64_t n, const Philox& random, uint64_t first, float p);

// Exact residuals: x rounded to multiples of 2^exponent, ties to even (values beyond the exact range keep their float32
// value). A zero is +0.
void round_to_grid(float* x, int64_t n, int32_t exponent);

// The values of a stream that left +-2^(24 + exponent), are not finite, or (of an update) can't be taken back exactly.
struct RangeCheck {
  int64_t count = 0;
  int64_t first = -1;  // index of the first
};

RangeCheck check_range(const float* x, int64_t n, int32_t exponent);

// stream +- round_to_grid(x): exact, hence inverse of each other, while the stream stays in range.
RangeCheck residual_add(float* stream, const float* x, int64_t n, int32_t exponent);
RangeCheck residual_subtract(float* stream, const float* x, int64_t n, int32_t exponent);

// Against float64: values to 4 units in the last place (GELU_TANH in its tails 1e-6, GELU_ERF without fused
// multiply-add 4e-6 below -11, both relative), derivatives to 4e-7. The value of NaN is NaN. y[i] = activation(x[i]);
// dx[i] = dy[i] * activation'(x[i]). In place is fine. RFN_ACTIVATION_*.
void activation_forward(int32_t activation, const float* x, float* y, int64_t n);
void activation_backward(int32_t activation, const float* x, const float* dy, float* dx, int64_t n);

// y[i, :] += bias for rows x n; column_sums[j] += sum_i x[i, j] (rows in order).
void add_bias(float* y, const float* bias, int64_t rows, int64_t n);
void add_column_sums(const float* x, int64_t rows, int64_t n, float* column_sums);

}  // namespace rfn::cpu
