#include <algorithm>
#include <cmath>
#include <limits>

#include "core/backend.h"
#include "core/error.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/vector_math.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/head_loss.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rfn::cpu::HWY_NAMESPACE {

// Sums value(i) over vectors of a row: float32 within kBlock elements, float64 over them.
template <class Value>
HWY_INLINE double blocked_sum(int64_t n, const Value& value) {
  constexpr int64_t kBlock = 1024;
  const F32 d;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    VecF32 part = hn::Zero(d);
    const int64_t count = n - begin < kBlock ? n - begin : kBlock;
    for_vectors(d, count, [&](auto load, auto store, int64_t i) HWY_ATTR {
      part = hn::Add(part, value(begin, load, store, count - i));
    });
    total += static_cast<double>(sum(d, part));
  }
  return total;
}

// The loss of a row z of n logits against the target (1 - smoothing) onehot(label) + smoothing / n; z becomes scale
// times its gradient if asked for. hit: the first largest logit is the label's.
double row_loss(float* z, int64_t n, int32_t label, double smoothing, double scale, bool gradient, bool& hit) {
  const F32 d;
  const VecF32 lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  VecF32 largest = lowest;
  const double z_sum = blocked_sum(n, [&](int64_t begin, auto load, auto, int64_t left) HWY_ATTR {
    const VecF32 v = load(z + begin);
    largest = hn::Max(largest, first_or(d, v, left, lowest));
    return v;
  });
  const float max = hn::GetLane(hn::MaxOfLanes(d, largest)), label_logit = z[label];
  hit = label_logit == max;
  for (int64_t i = 0; hit && i < label; ++i) hit = z[i] != max;

  const VecF32 maxima = hn::Set(d, max);
  const double exp_sum = blocked_sum(n, [&](int64_t begin, auto load, auto store, int64_t left) HWY_ATTR {
    const VecF32 e = first_or(d, hn::Exp(d, hn::Sub(load(z + begin), maxima)), left, hn::Zero(d));
    if (gradient) store(e, z + begin);
    return e;
  });

  // Max and Exp lose a NaN; the sum of the logits does not.
  const double nan = std::isnan(z_sum) ? z_sum : 0.0, per_label = smoothing / static_cast<double>(n);
  double loss = max + std::log(exp_sum) - (1.0 - smoothing) * label_logit + nan;
  if (smoothing > 0) loss -= per_label * z_sum;

  if (gradient) {
    const VecF32 factor = hn::Set(d, static_cast<float>(scale / exp_sum + nan));
    const VecF32 others = hn::Set(d, static_cast<float>(scale * per_label));
    for_vectors(d, n, [&](auto load, auto store, int64_t) HWY_ATTR { store(hn::MulSub(load(z), factor, others), z); });
    z[label] -= static_cast<float>(scale * (1.0 - smoothing));
  }
  return loss;
}

}  // namespace rfn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rfn::cpu {
namespace {

constexpr int64_t kLogitBytes = int64_t{8} << 20;       // of an automatic chunk: stays in the third-level cache
constexpr int64_t kMinChunkRows = 128;                  // enough for the products with a large vocabulary
constexpr int64_t kTileRows = 256, kTileColumns = 512;  // of the logits, per item
constexpr int64_t kLossRows = 16;                       // per item

struct RowLoss {
  double loss;
  bool hit;
};

struct Buffers {
  int64_t chunk;
  float* logits;  // [chunk, V]; then their gradients
  RowLoss* rows;  // [chunk]
};

Buffers take_buffers(Arena& arena, const rfn_head_loss& op) {
  const int64_t rows = op.x.shape[0], vocabulary = op.weight.shape[0];
  const int64_t automatic = std::max(kMinChunkRows, kLogitBytes / (4 * vocabulary) / 64 * 64);
  const int64_t chunk = std::min(rows, op.chunk > 0 ? op.chunk : automatic);
  int64_t logits = 0;
  if (__builtin_mul_overflow(chunk, vocabulary, &logits)) logits = std::numeric_limits<int64_t>::max();
  return {chunk, arena.take<float>(logits), arena.take<RowLoss>(chunk)};
}

void compute_logits(int32_t threads, const rfn_head_loss& op, int64_t first, int64_t rows, float* logits) {
  const int64_t k = op.x.shape[1], vocabulary = op.weight.shape[0], across = div_up(vocabulary, kTileColumns);
  parallel_for(threads, div_up(rows, kTileRows) * across, [&](int64_t item, int32_t) {
    const int64_t row = item / across * kTileRows, column = item % across * kTileColumns;
    const int64_t tile_rows = std::min(kTileRows, rows - row), columns = std::min(kTileColumns, vocabulary - column);
    float* const tile = logits + row * vocabulary + column;
    gemm({Transpose::kNo, Transpose::kYes, tile_rows, columns, k, f32(op.x) + (first + row) * k, k,
          f32(op.weight) + column * k, k, 0.0f, tile, vocabulary});
    if (!present(op.bias)) return;
    for (int64_t r = 0; r < tile_rows; ++r) add(tile + r * vocabulary, f32(op.bias) + column, columns);
  });
}

rfn_status run(rfn_stream& stream, const rfn_head_loss& op, void* workspace, int64_t workspace_bytes, bool gradient) {
  const int64_t rows = op.x.shape[0], k = op.x.shape[1], vocabulary = op.weight.shape[0];
  const int32_t threads = stream.context->threads;
  const int32_t* const labels = i32(op.labels);
  int64_t counted = 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (labels[row] == op.ignore_index) continue;
    if (labels[row] < 0 || labels[row] >= vocabulary) {
      return fail(RFN_INVALID_ARGUMENT, "head_loss: labels[%lld]: expected 0 .. %lld or ignore_index %d, got %d",
                  static_cast<long long>(row), static_cast<long long>(vocabulary - 1), op.ignore_index, labels[row]);
    }
    ++counted;
  }
  const double normalizer = op.normalizer != 0 ? op.normalizer : static_cast<double>(counted);
  const double scale = counted == 0 ? 0.0 : static_cast<double>(op.loss_scale) / normalizer;
  const auto loss_of_row = RFN_SIMD_CHOOSE(row_loss);

  Arena arena(workspace, workspace_bytes);
  const Buffers b = take_buffers(arena, op);
  double loss = 0;
  int64_t hits = 0;
  for (int64_t first = 0; first < rows; first += b.chunk) {
    const int64_t count = std::min(b.chunk, rows - first);
    compute_logits(threads, op, first, count, b.logits);
    parallel_for(threads, div_up(count, kLossRows), [&](int64_t item, int32_t) {
      for (int64_t row = item * kLossRows; row < std::min(count, (item + 1) * kLossRows); ++row) {
        float* const z = b.logits + row * vocabulary;
        const int32_t label = labels[first + row];
        if (label == op.ignore_index) {
          b.rows[row] = {0.0, false};
          if (gradient) std::fill_n(z, vocabulary, 0.0f);
        } else {
          b.rows[row].loss = loss_of_row(z, vocabulary, label, op.label_smoothing, scale, gradient, b.rows[row].hit);
        }
      }
    });
    for (int64_t row = 0; row < count; ++row) {
      loss += b.rows[row].loss;
      hits += b.rows[row].hit ? 1 : 0;
    }
    if (!gradient) continue;
    // The weight's gradient reads x before grad_x, which may be the same memory, is written.
    parallel_gemm(threads, {Transpose::kYes, Transpose::kNo, vocabulary, k, count, b.logits, vocabulary,
                            f32(op.x) + first * k, k, 1.0f, f32(op.grad_weight), k});
    if (present(op.grad_bias)) add_column_sums(b.logits, count, vocabulary, f32(op.grad_bias));
    parallel_gemm(threads, {Transpose::kNo, Transpose::kNo, count, k, vocabulary, b.logits, vocabulary, f32(op.weight),
                            k, 0.0f, f32(op.grad_x) + first * k, k});
  }
  *op.statistics = {loss, static_cast<double>(counted), static_cast<double>(hits)};
  return RFN_OK;
}

}  // namespace

rfn_status head_loss_workspace(const rfn_context&, const rfn_head_loss& op, int32_t, int64_t* bytes) {
  Arena arena;
  take_buffers(arena, op);
  return workspace_size(arena, "head_loss", bytes);
}

rfn_status head_loss_forward(rfn_stream& stream, const rfn_head_loss& op, void* workspace, int64_t workspace_bytes) {
  return run(stream, op, workspace, workspace_bytes, false);
}

rfn_status head_loss_backward(rfn_stream& stream, const rfn_head_loss& op, void* workspace, int64_t workspace_bytes) {
  return run(stream, op, workspace, workspace_bytes, true);
}

}  // namespace rfn::cpu
#endif  // HWY_ONCE
