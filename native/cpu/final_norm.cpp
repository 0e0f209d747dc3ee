#include <algorithm>

#include "core/backend.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cpu/layer_norm.h"
#include "cpu/parallel.h"
#include "cpu/vector_math.h"

namespace rfn::cpu {
namespace {

constexpr int64_t kForwardRows = 32;  // per item

struct Shape {
  int64_t rows, width, combined;
  uint64_t first_element;  // of dropout: that of row 0
  Philox random;
};

Shape shape_of(const rfn_final_norm& op) {
  const int64_t width = op.stream1.shape[1], combined = op.combine == RFN_COMBINE_CONCATENATE ? 2 * width : width;
  return {op.stream1.shape[0], width, combined, static_cast<uint64_t>(op.first_row * combined),
          philox(op.seed, op.step, -1, RFN_SITE_FINAL_NORM)};
}

// x = combine(stream1, stream2) for rows [first, first + rows).
void combine(const rfn_final_norm& op, const Shape& s, int64_t first, int64_t rows, float* x) {
  const float *a = f32(op.stream1) + first * s.width, *b = f32(op.stream2) + first * s.width;
  for (int64_t row = 0; row < rows; ++row, x += s.combined, a += s.width, b += s.width) {
    if (op.combine == RFN_COMBINE_CONCATENATE) {
      std::copy_n(a, s.width, x);
      std::copy_n(b, s.width, x + s.width);
    } else {
      for (int64_t i = 0; i < s.width; ++i) x[i] = 0.5f * a[i] + 0.5f * b[i];
    }
  }
}

struct BackwardBuffers {
  NormSums sums;
  float* x;         // [threads, kNormBlockRows, combined]
  float* gradient;  // the same: of y, then of x
};

BackwardBuffers backward_buffers(Arena& arena, const Shape& s, int32_t threads) {
  const int64_t block = threads * kNormBlockRows * s.combined;
  return {take_norm_sums(arena, threads, s.rows, s.combined), arena.take<float>(block), arena.take<float>(block)};
}

}  // namespace

rfn_status final_norm_workspace(const rfn_context& context, const rfn_final_norm& op, int32_t pass, int64_t* bytes) {
  Arena arena;
  if (pass == RFN_PASS_BACKWARD) backward_buffers(arena, shape_of(op), context.threads);
  return workspace_size(arena, "final_norm", bytes);
}

rfn_status final_norm_forward(rfn_stream& stream, const rfn_final_norm& op, void*, int64_t) {
  const Shape s = shape_of(op);
  parallel_for(stream.context->threads, div_up(s.rows, kForwardRows), [&](int64_t item, int32_t) {
    const int64_t first = item * kForwardRows, rows = std::min(kForwardRows, s.rows - first);
    float* const y = f32(op.y) + first * s.combined;
    combine(op, s, first, rows, y);
    layer_norm_rows(rows, s.combined, op.epsilon, y, f32(op.weight), f32(op.bias), y);
    apply_dropout(y, rows * s.combined, s.random, s.first_element + static_cast<uint64_t>(first * s.combined),
                  op.dropout);
  });
  return RFN_OK;
}

rfn_status final_norm_backward(rfn_stream& stream, const rfn_final_norm& op, void* workspace, int64_t workspace_bytes) {
  const Shape s = shape_of(op);
  const int32_t threads = stream.context->threads;
  Arena arena(workspace, workspace_bytes);
  const BackwardBuffers b = backward_buffers(arena, s, threads);
  sum_norm_gradients(threads, s.rows, s.combined, b.sums, f32(op.grad_weight), f32(op.grad_bias),
                     [&](int64_t first, int64_t rows, int32_t thread, float* weight_sum, float* bias_sum) {
                       float *const x = b.x + thread * kNormBlockRows * s.combined,
                                    *gradient = b.gradient + thread * kNormBlockRows * s.combined;
                       combine(op, s, first, rows, x);
                       std::copy_n(f32(op.grad_y) + first * s.combined, rows * s.combined, gradient);
                       apply_dropout(gradient, rows * s.combined, s.random,
                                     s.first_element + static_cast<uint64_t>(first * s.combined), op.dropout);
                       layer_norm_rows_backward(rows, s.combined, op.epsilon, x, f32(op.weight), gradient, gradient,
                                                false, weight_sum, bias_sum);
                       float *a = f32(op.grad_stream1) + first * s.width, *c = f32(op.grad_stream2) + first * s.width;
                       for (int64_t row = 0; row < rows; ++row, gradient += s.combined, a += s.width, c += s.width) {
                         if (op.combine == RFN_COMBINE_CONCATENATE) {
                           std::copy_n(gradient, s.width, a);
                           std::copy_n(gradient + s.width, s.width, c);
                         } else {
                           for (int64_t i = 0; i < s.width; ++i) a[i] = c[i] = 0.5f * gradient[i];
                         }
                       }
                     });
  return RFN_OK;
}

}  // namespace rfn::cpu
