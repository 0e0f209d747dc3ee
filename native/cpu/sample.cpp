#include <algorithm>
#include <cmath>

#include "core/backend.h"
#include "core/error.h"
#include "core/philox.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cpu/parallel.h"

namespace rfn::cpu {
namespace {

struct Buffers {
  int32_t* ids;     // [threads, V]: candidates
  double* weights;  // [threads, V]: exp((logit - largest) / temperature), 0: not a candidate
};

Buffers take_buffers(Arena& arena, const rfn_sample& op, int32_t threads) {
  const int64_t n = op.temperature == 0.0f ? 0 : op.logits.shape[1] * threads;
  return {arena.take<int32_t>(n), arena.take<double>(n)};
}

int64_t first_largest(const float* logits, int64_t n) { return std::max_element(logits, logits + n) - logits; }

// One draw: u in [0, 1). Candidates are walked in the order of their ids.
int32_t draw(const rfn_sample& op, const float* logits, int64_t n, double u, int32_t* ids, double* weights) {
  const auto before = [&](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  const double largest = logits[first_largest(logits, n)], temperature = op.temperature;
  int64_t candidates = n;
  if (op.top_k > 0 && op.top_k < n) {
    for (int64_t i = 0; i < n; ++i) ids[i] = static_cast<int32_t>(i);
    std::nth_element(ids, ids + op.top_k, ids + n, before);
    candidates = op.top_k;
    std::sort(ids, ids + candidates);
    std::fill_n(weights, n, 0.0);
    for (int64_t i = 0; i < candidates; ++i) weights[ids[i]] = std::exp((logits[ids[i]] - largest) / temperature);
  } else {
    for (int64_t i = 0; i < n; ++i) weights[i] = std::exp((logits[i] - largest) / temperature);
  }
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += weights[i];

  if (op.top_p < 1.0f) {
    if (candidates == n) {
      for (int64_t i = 0; i < n; ++i) ids[i] = static_cast<int32_t>(i);
    }
    // A heap gives the most probable ids one after the other; few are wanted of many.
    const auto later = [&](int32_t a, int32_t b) { return before(b, a); };
    std::make_heap(ids, ids + candidates, later);
    const double wanted = static_cast<double>(op.top_p) * total;
    double kept = 0;
    int64_t left = candidates;
    while (left > 0 && kept < wanted) {
      std::pop_heap(ids, ids + left, later);
      kept += weights[ids[--left]];
    }
    for (int64_t i = 0; i < left; ++i) weights[ids[i]] = 0.0;
    total = 0;
    for (int64_t i = 0; i < n; ++i) total += weights[i];
  }

  const double point = u * total;
  double sum = 0;
  int32_t last = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (weights[i] == 0.0) continue;
    last = static_cast<int32_t>(i);
    sum += weights[i];
    if (point < sum) break;
  }
  return last;
}

}  // namespace

rfn_status sample_workspace(const rfn_context& context, const rfn_sample& op, int64_t* bytes) {
  Arena arena;
  take_buffers(arena, op, context.threads);
  return workspace_size(arena, "sample", bytes);
}

rfn_status sample_forward(rfn_stream& stream, const rfn_sample& op, void* workspace, int64_t workspace_bytes) {
  const int64_t rows = op.logits.shape[0], n = op.logits.shape[1];
  const int32_t threads = stream.context->threads;
  for (int64_t row = 0; row < rows; ++row) {
    const float* const logits = f32(op.logits) + row * n;
    bool usable = false;  // a finite logit, and nothing above or beside the numbers
    for (int64_t i = 0; i < n; ++i) {
      if (std::isnan(logits[i]) || logits[i] == INFINITY) {
        return fail(RFN_INVALID_ARGUMENT, "sample: logits[%lld,%lld]: expected a number or -inf, got %g",
                    static_cast<long long>(row), static_cast<long long>(i), static_cast<double>(logits[i]));
      }
      usable = usable || logits[i] != -INFINITY;
    }
    if (!usable)
      return fail(RFN_INVALID_ARGUMENT, "sample: logits[%lld]: expected a finite logit, got -inf only",
                  static_cast<long long>(row));
  }
  Arena arena(workspace, workspace_bytes);
  const Buffers b = take_buffers(arena, op, threads);
  const Philox random = philox(op.seed, op.step, -1, RFN_SITE_SAMPLING);
  parallel_for(threads, rows, [&](int64_t row, int32_t thread) {
    const float* const logits = f32(op.logits) + row * n;
    if (op.temperature == 0.0f) {
      i32(op.ids)[row] = static_cast<int32_t>(first_largest(logits, n));
      return;
    }
    const double u = static_cast<double>(philox_word(random, static_cast<uint64_t>(row))) * 0x1p-32;
    i32(op.ids)[row] = draw(op, logits, n, u, b.ids + thread * n, b.weights + thread * n);
  });
  return RFN_OK;
}

}  // namespace rfn::cpu
