#include "cpu/layer_norm.h"

#include <algorithm>
#include <cmath>

#include "core/backend.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cpu/convert.h"
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

// Values that one float32 sum takes; the sums of a row's parts are added in float64. Without parts the error would grow
// with the row, most of all where a vector has one lane.
constexpr int64_t kPart = 512;

// xhat_i = (x_i - mean - correction) * inverse. The mean is rounded to float32; the mean of what is left over after
// taking it away corrects both the mean and the variance, so that a row far from zero keeps its precision.
struct RowStatistics {
  float mean, correction, inverse;
};

HWY_INLINE RowStatistics row_statistics(int64_t n, float epsilon, const float* x) {
  const F32 d;
  double total = 0, deviation_total = 0, square_total = 0;
  for (int64_t first = 0; first < n; first += kPart) {
    VecF32 part = hn::Zero(d);
    for_vectors(d, std::min(kPart, n - first),
                [&](auto load, auto, int64_t) HWY_ATTR { part = hn::Add(part, load(x + first)); });
    total += sum(d, part);
  }
  const float mean = static_cast<float>(total / static_cast<double>(n));
  const VecF32 means = hn::Set(d, mean);
  for (int64_t first = 0; first < n; first += kPart) {
    const int64_t count = std::min(kPart, n - first);
    VecF32 deviations = hn::Zero(d), squares = hn::Zero(d);
    for_vectors(d, count, [&](auto load, auto, int64_t i) HWY_ATTR {
      const VecF32 deviation =
          first_or(d, hn::Sub(load(x + first), means), count - i, hn::Zero(d));  // nothing past the end of the row
      deviations = hn::Add(deviations, deviation);
      squares = hn::MulAdd(deviation, deviation, squares);
    });
    deviation_total += sum(d, deviations);
    square_total += sum(d, squares);
  }
  const float correction = static_cast<float>(deviation_total / static_cast<double>(n));
  const double variance = square_total / static_cast<double>(n) - static_cast<double>(correction) * correction;
  return {mean, correction,
          static_cast<float>(1.0 / std::sqrt(std::max(variance, 0.0) + static_cast<double>(epsilon)))};
}

void layer_norm_rows(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight, const float* bias,
                     float* y) {
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

// The same with y of BF16 or F16, a part of a row at a time.
void layer_norm_rows_narrowed(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight,
                              const float* bias, int32_t dtype, uint16_t* y) {
  const F32 d;
  float part[kPart];
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    const RowStatistics s = row_statistics(n, epsilon, x);
    const VecF32 mean = hn::Set(d, s.mean), correction = hn::Set(d, s.correction), inverse = hn::Set(d, s.inverse);
    for (int64_t first = 0; first < n; first += kPart) {
      const int64_t count = std::min(kPart, n - first);
      for_vectors(d, count, [&](auto load, auto store, int64_t) HWY_ATTR {
        const VecF32 xhat = hn::Mul(hn::Sub(hn::Sub(load(x + first), mean), correction), inverse);
        store(hn::MulAdd(xhat, load(weight + first), load(bias + first)), part);
      });
      narrow(dtype, part, y + first, count);
    }
  }
}

// dx = inverse (g - mean(g) - xhat mean(g xhat)), g = dy weight.
void layer_norm_rows_backward(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight,
                              const float* dy, float* dx, bool add, float* grad_weight, float* grad_bias) {
  const F32 d;
  for (int64_t row = 0; row < rows; ++row, x += n, dy += n, dx += n) {
    const RowStatistics s = row_statistics(n, epsilon, x);
    const VecF32 mean = hn::Set(d, s.mean), correction = hn::Set(d, s.correction), inverse = hn::Set(d, s.inverse);
    double gradient_total = 0, projection_total = 0;
    for (int64_t first = 0; first < n; first += kPart) {
      VecF32 gradients = hn::Zero(d), projections = hn::Zero(d);
      for_vectors(d, std::min(kPart, n - first), [&](auto load, auto store, int64_t) HWY_ATTR {
        const VecF32 xhat = hn::Mul(hn::Sub(hn::Sub(load(x + first), mean), correction), inverse),
                     out = load(dy + first);
        const VecF32 g = hn::Mul(out, load(weight + first));
        gradients = hn::Add(gradients, g);  // zero past the end of the row, as out and weight are
        projections = hn::MulAdd(g, xhat, projections);
        store(hn::MulAdd(out, xhat, load(grad_weight + first)), grad_weight + first);
        store(hn::Add(out, load(grad_bias + first)), grad_bias + first);
      });
      gradient_total += sum(d, gradients);
      projection_total += sum(d, projections);
    }
    const VecF32 mean_gradient = hn::Set(d, static_cast<float>(gradient_total / static_cast<double>(n)));
    const VecF32 mean_projection = hn::Set(d, static_cast<float>(projection_total / static_cast<double>(n)));
    for_vectors(d, n, [&](auto load, auto store, int64_t) HWY_ATTR {
      const VecF32 xhat = hn::Mul(hn::Sub(hn::Sub(load(x), mean), correction), inverse),
                   g = hn::Mul(load(dy), load(weight));
      const VecF32 gradient = hn::Mul(inverse, hn::NegMulAdd(xhat, mean_projection, hn::Sub(g, mean_gradient)));
      store(add ? hn::Add(load(dx), gradient) : gradient, dx);
    });
  }
}

}  // namespace rfn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rfn::cpu {

void layer_norm_rows(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight, const float* bias,
                     float* y) {
  RFN_SIMD_CHOOSE(layer_norm_rows)(rows, n, epsilon, x, weight, bias, y);
}

namespace {

void layer_norm_rows_narrowed(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight,
                              const float* bias, int32_t dtype, uint16_t* y) {
  RFN_SIMD_CHOOSE(layer_norm_rows_narrowed)(rows, n, epsilon, x, weight, bias, dtype, y);
}

}  // namespace

void layer_norm_rows_backward(int64_t rows, int64_t n, float epsilon, const float* x, const float* weight,
                              const float* dy, float* dx, bool add, float* grad_weight, float* grad_bias) {
  RFN_SIMD_CHOOSE(layer_norm_rows_backward)(rows, n, epsilon, x, weight, dy, dx, add, grad_weight, grad_bias);
}

NormSums take_norm_sums(Arena& arena, int32_t threads, int64_t rows, int64_t n) {
  NormSums sums;
  sums.part_rows =
      round_up(div_up(rows, std::max<int64_t>(1, std::min<int64_t>(64, div_up(rows, kNormBlockRows)))), kNormBlockRows);
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
    const float* const x = f32(op.x) + first * n;
    if (is_half(op.y.dtype)) {
      layer_norm_rows_narrowed(count, n, op.epsilon, x, f32(op.weight), f32(op.bias), op.y.dtype,
                               u16(op.y) + first * n);
    } else {
      layer_norm_rows(count, n, op.epsilon, x, f32(op.weight), f32(op.bias), f32(op.y) + first * n);
    }
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
                       float* const dx = f32(op.grad_x) + first * n;
                       const bool half = is_half(op.grad_y.dtype);
                       if (half) widen(op.grad_y.dtype, u16(op.grad_y) + first * n, dx, count * n);
                       layer_norm_rows_backward(count, n, op.epsilon, f32(op.x) + first * n, f32(op.weight),
                                                half ? dx : f32(op.grad_y) + first * n, dx, false, weight_sum,
                                                bias_sum);
                     });
  return RFN_OK;
}

}  // namespace rfn::cpu
#endif  // HWY_ONCE
