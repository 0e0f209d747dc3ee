// Layer norm over rows; shared by the op, the reversible block and the final norm. One thread each.
#pragma once
#include <cstdint>

namespace rfn::cpu {

// y = (x - mean) / sqrt(var + epsilon) * weight + bias, rows of n. y may be x.
void layer_norm_rows(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight, const float* bias, float* y);

// dx (+)= gradient through the norm of dy; grad_weight, grad_bias [n] are added to, rows in order. dx may be dy when add is false.
void layer_norm_rows_backward(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight, const float* dy, float* dx, bool add,
                              float* grad_weight, float* grad_bias);

}  // namespace rfn::cpu
