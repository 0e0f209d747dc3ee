#include <algorithm>
#include <cmath>

#include "core/backend.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/optimizers.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rfn::cpu::HWY_NAMESPACE {

// rate: learning rate over the first moment's bias correction; inverse_root: 1 / sqrt of the second's; decay: learning
// rate times weight decay.
void adamw_update(int64_t n, float scale, float beta1, float beta2, float epsilon, float rate, float inverse_root,
                  float decay, const float* gradient, float* parameter, float* moment1, float* moment2) {
  const F32 d;
  const VecF32 b1 = hn::Set(d, beta1), b2 = hn::Set(d, beta2), one = hn::Set(d, 1.0f), new1 = hn::Sub(one, b1),
               new2 = hn::Sub(one, b2);
  const VecF32 eps = hn::Set(d, epsilon), step = hn::Set(d, rate), root = hn::Set(d, inverse_root),
               shrink = hn::Set(d, decay);
  const VecF32 scales = hn::Set(d, scale);
  for_vectors(d, n, [&](auto load, auto store, int64_t) HWY_ATTR {
    const VecF32 g = scale == 0.0f ? hn::Zero(d) : hn::Mul(scales, load(gradient)), p = load(parameter);
    const VecF32 m = hn::MulAdd(b1, load(moment1), hn::Mul(new1, g));
    const VecF32 v = hn::MulAdd(b2, load(moment2), hn::Mul(new2, hn::Mul(g, g)));
    const VecF32 update = hn::Div(hn::Mul(step, m), hn::MulAdd(hn::Sqrt(v), root, eps));
    store(hn::Sub(p, hn::MulAdd(shrink, p, update)), parameter);
    store(m, moment1);
    store(v, moment2);
  });
}

}  // namespace rfn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rfn::cpu {
namespace {

constexpr int64_t kBlock = 16384;  // elements of a work item, whose sum is one term of the sum over all

// Sum of value(i) for i in [0, n), in float64 over eight lanes, which compilers vectorise.
template <class Value>
double lane_sum(int64_t n, const Value& value) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t lane = 0; lane < 8; ++lane) lanes[lane] += value(i + lane);
  }
  for (int64_t lane = 0; i < n; ++i, ++lane) lanes[lane] += value(i);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

// The gradient's factor: scale 0 drops the gradient, also one that is not finite.
float clip_scale(const rfn_norm_result* clip) { return clip == nullptr ? 1.0f : clip->scale; }
template <class Op>
double weight_decay(const Op& op, int64_t tensor) {
  return op.weight_decays == nullptr ? 0.0 : static_cast<double>(op.weight_decays[tensor]);
}
float scaled(float scale, float gradient) { return scale == 0.0f ? 0.0f : scale * gradient; }

// 0 where nothing but zeros was seen, which only epsilon1 = 0 allows: the gradient is 0 there too.
double inverse_root(double x) { return x > 0 ? 1.0 / std::sqrt(x) : 0.0; }

int64_t blocks_of(const rfn_global_norm& op) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < op.count; ++i) blocks += div_up(elements(op.gradients[i]), kBlock);
  return blocks;
}

struct Adafactor {
  int64_t tensor;
  bool factored;
  int64_t n, rows, columns;
  int64_t item_rows, items;  // rows of one work item; without factors, a row is kBlock elements
  int64_t part_rows, parts;  // rows of one part of the column sums
  double rho;
  float scale;
};

struct AdafactorBuffers {
  double* updates;     // [items]: sums of squared updates
  double* parameters;  // [items]: sums of squared parameters
  double* columns;     // [parts, columns]
  float* factors;      // [columns]: 1 / sqrt(column)
};

Adafactor adafactor_of(const rfn_adafactor& op, int64_t tensor) {
  Adafactor a{};
  const rfn_tensor& parameter = op.parameters[tensor];
  a.tensor = tensor;
  a.n = elements(parameter);
  a.factored = parameter.rank >= 2;
  a.columns = a.factored ? parameter.shape[parameter.rank - 1] : std::min(a.n, kBlock);
  a.rows = a.n == 0 ? 0 : a.factored ? a.n / a.columns : div_up(a.n, kBlock);
  a.item_rows = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, a.columns));
  a.items = div_up(a.rows, a.item_rows);
  a.part_rows = std::max<int64_t>(64, div_up(a.rows, 64));
  a.parts = div_up(a.rows, a.part_rows);
  a.rho = 1.0 - std::pow(static_cast<double>(op.step), -static_cast<double>(op.decay_exponent));
  return a;
}

AdafactorBuffers adafactor_buffers(Arena& arena, const Adafactor& a) {
  return {arena.take<double>(a.items), arena.take<double>(a.items),
          arena.take<double>(a.factored ? a.parts * a.columns : 0), arena.take<float>(a.factored ? a.columns : 0)};
}

// Moves the row and column moments on and leaves 1 / sqrt(column) in factors. Returns the mean of the row moments.
double update_factors(int32_t threads, const rfn_adafactor& op, const Adafactor& a, const AdafactorBuffers& b) {
  const float* const gradient = f32(op.gradients[a.tensor]);
  float *const row = f32(op.rows[a.tensor]), *const column = f32(op.columns[a.tensor]);
  const double fresh = 1.0 - a.rho, epsilon = op.epsilon1;
  parallel_for(threads, a.items, [&](int64_t item, int32_t) {
    for (int64_t r = item * a.item_rows; r < std::min(a.rows, (item + 1) * a.item_rows); ++r) {
      const float* const g = gradient + r * a.columns;
      const double mean = lane_sum(a.columns, [&](int64_t i) { return square(scaled(a.scale, g[i])); }) /
                          static_cast<double>(a.columns);
      row[r] = static_cast<float>(a.rho * row[r] + fresh * (mean + epsilon));
    }
  });
  const int64_t tiles = div_up(a.columns, 1024);
  parallel_for(threads, a.parts * tiles, [&](int64_t item, int32_t) {
    const int64_t part = item / tiles, first = item % tiles * 1024, end = std::min(a.columns, first + 1024);
    double* const sums = b.columns + part * a.columns;
    std::fill(sums + first, sums + end, 0.0);
    for (int64_t r = part * a.part_rows; r < std::min(a.rows, (part + 1) * a.part_rows); ++r) {
      const float* const g = gradient + r * a.columns;
      for (int64_t c = first; c < end; ++c) sums[c] += square(scaled(a.scale, g[c]));
    }
  });
  for (int64_t c = 0; c < a.columns; ++c) {
    double sum = 0;
    for (int64_t part = 0; part < a.parts; ++part) sum += b.columns[part * a.columns + c];
    column[c] = static_cast<float>(a.rho * column[c] + fresh * (sum / static_cast<double>(a.rows) + epsilon));
    b.factors[c] = static_cast<float>(inverse_root(column[c]));
  }
  double total = 0;
  for (int64_t r = 0; r < a.rows; ++r) total += row[r];
  return total / static_cast<double>(a.rows);
}

}  // namespace

rfn_status global_norm_workspace(const rfn_context&, const rfn_global_norm& op, int64_t* bytes) {
  Arena arena;
  arena.take<double>(blocks_of(op));
  return workspace_size(arena, "global_norm", bytes);
}

rfn_status global_norm_forward(rfn_stream& stream, const rfn_global_norm& op, void* workspace,
                               int64_t workspace_bytes) {
  Arena arena(workspace, workspace_bytes);
  double* const sums = arena.take<double>(blocks_of(op));
  double* tensor_sums = sums;
  for (int64_t i = 0; i < op.count; ++i) {
    const float* const g = f32(op.gradients[i]);
    const int64_t n = elements(op.gradients[i]), blocks = div_up(n, kBlock);
    parallel_for(stream.context->threads, blocks, [&](int64_t block, int32_t) {
      const float* const values = g + block * kBlock;
      tensor_sums[block] = lane_sum(std::min(kBlock, n - block * kBlock), [&](int64_t j) { return square(values[j]); });
    });
    tensor_sums += blocks;
  }
  double total = 0;
  for (const double* sum = sums; sum != tensor_sums; ++sum) total += *sum;
  const float norm = static_cast<float>(std::sqrt(total));
  const float scale = !std::isfinite(norm)                       ? 0.0f
                      : op.max_norm > 0.0f && norm > op.max_norm ? op.max_norm / norm
                                                                 : 1.0f;
  *op.result = {norm, scale};
  return RFN_OK;
}

rfn_status adamw_step(rfn_stream& stream, const rfn_adamw& op) {
  const double step = static_cast<double>(op.step), rate = op.learning_rate;
  const float corrected_rate = static_cast<float>(rate / (1.0 - std::pow(static_cast<double>(op.beta1), step)));
  const float inverse_root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(op.beta2), step)));
  const float scale = clip_scale(op.clip);
  const auto update = RFN_SIMD_CHOOSE(adamw_update);
  int64_t blocks = 0;
  for (int64_t t = 0; t < op.count; ++t) blocks += div_up(elements(op.parameters[t]), kBlock);
  parallel_for(stream.context->threads, blocks, [&](int64_t block, int32_t) {
    int64_t t = 0, n = elements(op.parameters[0]);
    while (block >= div_up(n, kBlock)) {
      block -= div_up(n, kBlock);
      n = elements(op.parameters[++t]);
    }
    const int64_t i = block * kBlock;
    update(std::min(kBlock, n - i), scale, op.beta1, op.beta2, op.epsilon, corrected_rate, inverse_root,
           static_cast<float>(rate * weight_decay(op, t)), f32(op.gradients[t]) + i, f32(op.parameters[t]) + i,
           f32(op.moments1[t]) + i, f32(op.moments2[t]) + i);
  });
  return RFN_OK;
}

rfn_status adafactor_workspace(const rfn_context&, const rfn_adafactor& op, int64_t* bytes) {
  *bytes = 0;
  for (int64_t t = 0; t < op.count; ++t) {  // one parameter after the other
    Arena arena;
    adafactor_buffers(arena, adafactor_of(op, t));
    int64_t needed = 0;
    RFN_TRY(workspace_size(arena, "adafactor", &needed));
    *bytes = std::max(*bytes, needed);
  }
  return RFN_OK;
}

namespace {

// Second moments are moving averages of mean squares: V_ij = row_i column_j / mean(row).
void adafactor_update(int32_t threads, const rfn_adafactor& op, int64_t tensor, void* workspace,
                      int64_t workspace_bytes) {
  Adafactor a = adafactor_of(op, tensor);
  a.scale = clip_scale(op.clip);
  Arena arena(workspace, workspace_bytes);
  const AdafactorBuffers b = adafactor_buffers(arena, a);
  const float* const gradient = f32(op.gradients[tensor]);
  float* const parameter = f32(op.parameters[tensor]);
  float* const row = a.factored ? f32(op.rows[tensor]) : nullptr;
  float* const moment2 = a.factored ? nullptr : f32(op.moments2[tensor]);
  const double row_mean = a.factored ? update_factors(threads, op, a, b) : 0.0;

  // Calls body(elements before, count, update) for every row of an item; update(i) is the row's i-th update before
  // clipping.
  const auto for_rows = [&](int64_t item, const auto& body) {
    for (int64_t r = item * a.item_rows; r < std::min(a.rows, (item + 1) * a.item_rows); ++r) {
      const int64_t place = r * a.columns, count = std::min(a.columns, a.n - place);
      const float* const g = gradient + place;
      if (a.factored) {
        const float factor = static_cast<float>(std::sqrt(row_mean) * inverse_root(row[r]));
        body(place, count, [&](int64_t i) { return scaled(a.scale, g[i]) * factor * b.factors[i]; });
      } else {
        body(place, count,
             [&](int64_t i) { return scaled(a.scale, g[i]) * static_cast<float>(inverse_root(moment2[place + i])); });
      }
    }
  };

  parallel_for(threads, a.items, [&](int64_t item, int32_t) {
    if (!a.factored) {
      const int64_t begin = item * a.item_rows * a.columns, end = std::min(a.n, begin + a.item_rows * a.columns);
      for (int64_t i = begin; i < end; ++i) {
        const double fresh = square(scaled(a.scale, gradient[i])) + static_cast<double>(op.epsilon1);
        moment2[i] = static_cast<float>(a.rho * moment2[i] + (1.0 - a.rho) * fresh);
      }
    }
    b.updates[item] = b.parameters[item] = 0;
    for_rows(item, [&](int64_t place, int64_t count, const auto& update) {
      b.updates[item] += lane_sum(count, [&](int64_t i) { return square(update(i)); });
      b.parameters[item] += lane_sum(count, [&](int64_t i) { return square(parameter[place + i]); });
    });
  });
  double updates = 0, parameters = 0;
  for (int64_t item = 0; item < a.items; ++item) updates += b.updates[item], parameters += b.parameters[item];
  const double n = static_cast<double>(a.n), rate = op.learning_rate;
  const double clip = std::max(1.0, std::sqrt(updates / n) / static_cast<double>(op.clip_threshold));
  const double alpha =
      rate * (op.scale_parameter != 0 ? std::max(static_cast<double>(op.epsilon2), std::sqrt(parameters / n)) : 1.0);
  const float step = static_cast<float>(alpha / clip), decay = static_cast<float>(rate * weight_decay(op, tensor));
  parallel_for(threads, a.items, [&](int64_t item, int32_t) {
    for_rows(item, [&](int64_t place, int64_t count, const auto& update) {
      float* const p = parameter + place;
      for (int64_t i = 0; i < count; ++i) p[i] -= step * update(i) + decay * p[i];
    });
  });
}

}  // namespace

rfn_status adafactor_step(rfn_stream& stream, const rfn_adafactor& op, void* workspace, int64_t workspace_bytes) {
  for (int64_t t = 0; t < op.count; ++t) adafactor_update(stream.context->threads, op, t, workspace, workspace_bytes);
  return RFN_OK;
}

}  // namespace rfn::cpu
#endif  // HWY_ONCE
