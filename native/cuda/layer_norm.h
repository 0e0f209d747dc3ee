// Layer norm over rows in device memory; shared by the op, the final norm and the reversible block.
#pragma once
#include <cstdint>

#include "core/workspace.h"
#include "cuda/elementwise.h"
#include "cuda/state.h"

namespace rfn::cuda {

// y[rows, width] = norm of x.
rfn_status layer_norm_rows(rfn_stream& stream, int64_t rows, int64_t width, float epsilon, const float* x,
                           const float* weight, const float* bias, float* y);

// Scratch of the backward pass for up to `rows` rows: partial sums of the parameter gradients, added in fixed order.
float* take_norm_sums(Arena& arena, int64_t rows, int64_t width);

// dx[rows, width] = (or, with add, +=) gradient through the norm. dx may be the same memory as dy. `parameters` becomes
// the sums that grad_weight and grad_bias [width] are still to be given (add_columns); they stand in the scratch.
rfn_status layer_norm_rows_backward(rfn_stream& stream, int64_t rows, int64_t width, float epsilon, const float* x,
                                    const float* weight, const float* dy, float* dx, bool add, float* sums,
                                    float* grad_weight, float* grad_bias, ColumnSum (&parameters)[2]);

}  // namespace rfn::cuda
