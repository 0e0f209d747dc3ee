// Layer norm over rows; shared by the op, the reversible block and the final norm.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/workspace.h"
#include "cpu/parallel.h"
#include "cpu/vector_math.h"

namespace rfn::cpu {

// One thread each.
// y = (x - mean) / sqrt(var + epsilon) * weight + bias, rows of n. y may be x.
void layer_norm_rows(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight, const float* bias,
                     float* y);

// dx (+)= gradient through the norm of dy; grad_weight, grad_bias [n] are added to, rows in order. dx may be dy when
// add is false.
void layer_norm_rows_backward(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight,
                              const float* dy, float* dx, bool add, float* grad_weight, float* grad_bias);

// The gradients of weight and bias are sums over rows: of at most 64 parts of the rows, each the sum of blocks of
// kNormBlockRows rows, all in order. Only the rows decide the division.
inline constexpr int64_t kNormBlockRows = 128;

struct NormSums {
  int64_t parts, part_rows;
  float* part;   // [parts, 2, n]: weight, bias
  float* block;  // [threads, 2, n]
};
NormSums take_norm_sums(Arena& arena, int32_t threads, int64_t rows, int64_t n);

// Calls body(first_row, rows, thread, weight_sum, bias_sum) for every block of rows, in parallel; body adds the block's
// sums to the last two. Then adds all of them to grad_weight and grad_bias.
template <class Body>
void sum_norm_gradients(int32_t threads, int64_t rows, int64_t n, const NormSums& sums, float* grad_weight,
                        float* grad_bias, const Body& body) {
  parallel_for(threads, sums.parts, [&](int64_t part, int32_t thread) {
    float *const total = sums.part + part * 2 * n, *const block = sums.block + static_cast<int64_t>(thread) * 2 * n;
    std::fill_n(total, 2 * n, 0.0f);
    const int64_t end = std::min(rows, (part + 1) * sums.part_rows);
    for (int64_t first = part * sums.part_rows; first < end; first += kNormBlockRows) {
      std::fill_n(block, 2 * n, 0.0f);
      body(first, std::min(kNormBlockRows, end - first), thread, block, block + n);
      add(total, block, 2 * n);
    }
  });
  for (int64_t part = 0; part < sums.parts; ++part) {
    add(grad_weight, sums.part + part * 2 * n, n);
    add(grad_bias, sums.part + part * 2 * n + n, n);
  }
}

}  // namespace rfn::cpu
