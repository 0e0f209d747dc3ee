#include "cpu/layer_norm.h"

#include <algorithm>
#include <cmath>

#include "core/backend.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/vector_math.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/layer_norm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rfn::cpu::HWY_NAMESPACE {

// xhat_i = (x_i - mean - correction) * inverse. The mean is rounded to float32; the mean of what is left over after taking it away corrects both
// the mean and the variance, so that a row far from zero keeps its precision.
struct RowStatistics {
  float mean, correction, inverse;
};

HWY_INLINE RowStatistics row_statistics(int64_t n, float epsilon, const float* x) {
  const F32 d;
  const float per_n = 1.0f / static_cast<float>(n);
  VecF32 total = hn::Zero(d);
  for_vectors(d, n, [&](auto load, auto, int64_t) HWY_ATTR { total = hn::Add(total, load(x)); });
  const float mean = sum(d, total) * per_n;
  const VecF32 means = hn::Set(d, mean);
  VecF32 deviations = hn::Zero(d), squares = hn::Zero(d);
  for_vectors(d, n, [&](auto load, auto, int64_t i) HWY_ATTR {
    const VecF32 deviation = first_or(d, hn::Sub(load(x), means), n - i, hn::Zero(d));  // nothing past the end of the row
    deviations = hn::Add(deviations, deviation);
    squares = hn::MulAdd(deviation, deviation, squares);
  });
  const float correction = sum(d, deviations) * per_n;
  const double variance = static_cast<double>(sum(d, squares)) / static_cast<double>(n) - static_cast<double>(correction) * correction;
  return {mean, correction, static_cast<float>(1.0 / std::sqrt(std::max(variance, 0.0) + static_cast<double>(epsilon)))};
}

void layer_norm_rows(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight, const float* bias, float* y) {
  const F32 d;
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    const RowStatistics s = row_statistics(n, epsilon, x);
    const VecF32 mean = hn::Set(d, s.mean), correction = hn::Set(d, s.correction), inverse = hn::Set(d, s.inverse);
    for_vectors(d, n, [&](auto load, auto store, int64_t) HWY_ATTR {
      const VecF32 xhat = hn::Mul(hn::Sub(hn::Sub(load(x), mean), correction), inverse);
      store(hn::MulAdd(xhat, load(weight), load(bias)), y);
    });
  }
}

// dx = inverse (g - mean(g) - xhat mean(g xhat)), g = dy weight.
void layer_norm_rows_backward(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight, const float* dy, float* dx, bool add,
                              float* grad_weight, float* grad_bias) {
  const F32 d;
  const float per_n = 1.0f / static_cast<float>(n);
  for (int64_t row = 0; row < rows; ++row, x += n, dy += n, dx += n) {
    const RowStatistics s = row_statistics(n, epsilon, x);
    const VecF32 mean = hn::Set(d, s.mean), correction = hn::Set(d, s.correction), inverse = hn::Set(d, s.inverse);
    VecF32 gradients = hn::Zero(d), projections = hn::Zero(d);
    for_vectors(d, n, [&](auto load, auto store, int64_t) HWY_ATTR {
      const VecF32 xhat = hn::Mul(hn::Sub(hn::Sub(load(x), mean), correction), inverse), out = load(dy), g = hn::Mul(out, load(weight));
      gradients = hn::Add(gradients, g);  // zero past the end of the row, as out and weight are
      projections = hn::MulAdd(g, xhat, projections);
      store(hn::MulAdd(out, xhat, load(grad_weight)), grad_weight);
      store(hn::Add(out, load(grad_bias)), grad_bias);
    });
    const VecF32 mean_gradient = hn::Set(d, sum(d, gradients) * per_n), mean_projection = hn::Set(d, sum(d, projections) * per_n);
    for_vectors(d, n, [&](auto load, auto store, int64_t) HWY_ATTR {
      const VecF32 xhat = hn::Mul(hn::Sub(hn::Sub(load(x), mean), correction), inverse), g = hn::Mul(load(dy), load(weight));
      const VecF32 gradient = hn::Mul(inverse, hn::NegMulAdd(xhat, mean_projection, hn::Sub(g, mean_gradient)));
      store(add ? hn::Add(load(dx), gradient) : gradient, dx);
    });
  }
}

}  // namespace rfn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rfn::cpu {

void layer_norm_rows(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight, const float* bias, float* y) {
  RFN_SIMD_CHOOSE(layer_norm_rows)(rows, n, epsilon, x, weight, bias, y);
}

void layer_norm_rows_backward(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight, const float* dy, float* dx, bool add,
                              float* grad_weight, float* grad_bias) {
  RFN_SIMD_CHOOSE(layer_norm_rows_backward)(rows, n, epsilon, x, weight, dy, dx, add, grad_weight, grad_bias);
}

NormSums take_norm_sums(Arena& arena, int32_t threads, int64_t rows, int64_t n) {
  NormSums sums;
  sums.part_rows = round_up(div_up(rows, std::max<int64_t>(1, std::min<int64_t>(64, div_up(rows, kNormBlockRows)))), kNormBlockRows);
  sums.parts = rows == 0 ? 0 : div_up(rows, sums.part_rows);
  sums.part = arena.take<float>(sums.parts * 2 * n);
  sums.block = arena.take<float>(static_cast<int64_t>(threads) * 2 * n);
  return sums;
}

rfn_status layer_norm_workspace(const rfn_context& context, const rfn_layer_norm& op, int32_t pass, int64_t* bytes) {
  Arena arena;
  if (pass == RFN_PASS_BACKWARD) take_norm_sums(arena, context.threads, op.x.shape[0], op.x.shape[1]);
  return workspace_size(arena, "layer_norm", bytes);
}

rfn_status layer_norm_forward(rfn_stream& stream, const rfn_layer_norm& op, void*, int64_t) {
  const int64_t rows = op.x.shape[0], n = op.x.shape[1];
  parallel_for(stream.context->threads, div_up(rows, kNormBlockRows), [&](int64_t block, int32_t) {
    const int64_t first = block * kNormBlockRows, count = std::min(kNormBlockRows, rows - first);
    layer_norm_rows(count, n, op.epsilon, f32(op.x) + first * n, f32(op.weight), f32(op.bias), f32(op.y) + first * n);
  });
  return RFN_OK;
}

rfn_status layer_norm_backward(rfn_stream& stream, const rfn_layer_norm& op, void* workspace, int64_t workspace_bytes) {
  const int64_t rows = op.x.shape[0], n = op.x.shape[1];
  const int32_t threads = stream.context->threads;
  Arena arena(workspace, workspace_bytes);
  const NormSums sums = take_norm_sums(arena, threads, rows, n);
  sum_norm_gradients(threads, rows, n, sums, f32(op.grad_weight), f32(op.grad_bias),
                     [&](int64_t first, int64_t count, int32_t, float* weight_sum, float* bias_sum) {
                       layer_norm_rows_backward(count, n, op.epsilon, f32(op.x) + first * n, f32(op.weight), f32(op.grad_y) + first * n,
                                                f32(op.grad_x) + first * n, false, weight_sum, bias_sum);
                     });
  return RFN_OK;
}

}  // namespace rfn::cpu
#endif  // HWY_ONCE
