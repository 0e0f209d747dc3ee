// The reversible block (paper eq. 9), in place:
//   forward    stream1 += A(LN(stream2));  stream2 += F(LN(stream1))
//   backward   stream2 -= F(LN(stream1));  stream1 -= A(LN(stream2)), and the gradients through both on the way.
// Each half is the same code in both directions, over the same row chunks, head groups and products, so that what
// backward subtracts has the bits that forward added; with the grid rounding of exact residuals the inverse is then
// exact.
//
// What the caller keeps of the forward pass (rfn_reversible_block) is not computed again: forward writes q, k, v,
// log_sum_exp, the result and the hidden layer where the caller wants them instead of into the workspace, and backward
// reads them there.
//
// Memory. The attention half needs its result for all heads ([B*T, H*D]); queries, values and their gradients exist for
// one group of heads at a time. Everything else works on chunks of rows. Both halves use the same bytes of the
// workspace one after the other.
#include <algorithm>
#include <cstring>

#include "core/backend.h"
#include "core/block_call.h"
#include "core/error.h"
#include "core/tensor.h"
#include "cpu/attention.h"
#include "cpu/contents.h"
#include "cpu/feed_forward.h"
#include "cpu/gemm.h"
#include "cpu/head_groups.h"
#include "cpu/layer_norm.h"
#include "cpu/parallel.h"
#include "cpu/vector_math.h"

namespace rfn::cpu {
namespace {

constexpr int64_t kRows = 256;          // rows of one work item: E floats each stay in the second-level cache
constexpr int64_t kBlockRows = 2048;    // rows whose weight gradients are one product
constexpr int64_t kGradientTile = 128;  // columns of a weight gradient given to one thread

struct Shape : BlockShape {
  int64_t group;  // heads at a time
};

Shape shape_of(const rfn_reversible_block& op) {
  Shape s{block_shape(op), 0};
  const int64_t rounds = op.attention.kind == RFN_ATTENTION_LSH ? op.attention.rounds : 0;
  const int64_t floats = (s.shared ? 5 : 7) * s.head_size + 4 + 3 * rounds;  // per token and head, in the backward pass
  s.group = head_group(op.head_group, s.heads, s.rows * floats * static_cast<int64_t>(sizeof(float)));
  return s;
}

// Queries, keys or values of a group of heads: rows of a buffer that has only these, or of a kept tensor that has all.
struct Projection {
  float* rows;
  int64_t stride;
};

struct AttentionBuffers {
  float* result;                               // [rows, H*D]
  float *q, *k, *v;                            // [rows, group*D]; k is q when shared
  float* log_sum_exp;                          // backward [B, group, T]
  float *grad_out, *grad_q, *grad_k, *grad_v;  // backward, like q
  float* thread_rows;                          // [threads, 2, kRows, E]
  float* normalized;                           // backward [kBlockRows, E]
  float* dropped;                              // backward [kBlockRows, E]: gradient of the projection's output
  float* norm_gradients;                       // backward [kBlockRows / kRows, 2, E]
  RangeCheck* checks;                          // forward [row chunks]
  AttentionScratch attention;
};

AttentionBuffers attention_buffers(Arena& arena, const rfn_reversible_block& op, const Shape& s, int32_t threads,
                                   int32_t pass) {
  AttentionBuffers b{};
  const int64_t group = s.group * s.head_size;
  b.result = arena.take<float>(s.rows * s.projected);
  b.q = arena.take<float>(s.rows * group);
  b.k = s.shared ? b.q : arena.take<float>(s.rows * group);
  b.v = arena.take<float>(s.rows * group);
  b.thread_rows = arena.take<float>(threads * 2 * kRows * s.width);
  if (pass == RFN_PASS_BACKWARD) {
    b.log_sum_exp = arena.take<float>(s.rows * s.group);
    b.grad_out = arena.take<float>(s.rows * group);
    b.grad_q = arena.take<float>(s.rows * group);
    b.grad_k = s.shared ? b.grad_q : arena.take<float>(s.rows * group);
    b.grad_v = arena.take<float>(s.rows * group);
    const int64_t block = std::min(kBlockRows, s.rows);
    b.normalized = arena.take<float>(block * s.width);
    b.dropped = arena.take<float>(block * s.width);
    b.norm_gradients = arena.take<float>(div_up(block, kRows) * 2 * s.width);
  } else {
    b.checks = arena.take<RangeCheck>(div_up(s.rows, kRows));
  }
  b.attention = attention_layout(arena, attention_call(op, s, 0, s.group), threads, pass);
  return b;
}

struct FeedForwardBuffers {
  int64_t chunk;
  float* normalized;      // [chunk, E]
  float* y;               // [chunk, E]
  float* grad;            // backward [chunk, E]
  float* norm_gradients;  // backward [chunk / kRows, 2, E]
  RangeCheck* checks;     // forward [row chunks]
  float* scratch;
};

FeedForwardBuffers feed_forward_buffers(Arena& arena, const rfn_reversible_block& op, const Shape& s, int32_t threads,
                                        int32_t pass) {
  FeedForwardBuffers b{};
  const FeedForward f = feed_forward_call(op, s);
  b.chunk = std::min(s.rows, feed_forward_chunk_rows(op.feed_forward_chunk, s.rows, s.width, s.hidden));
  b.normalized = arena.take<float>(b.chunk * s.width);
  b.y = arena.take<float>(b.chunk * s.width);
  if (pass == RFN_PASS_BACKWARD) {
    b.grad = arena.take<float>(b.chunk * s.width);
    b.norm_gradients = arena.take<float>(div_up(b.chunk, kRows) * 2 * s.width);
    b.scratch = arena.take<float>(feed_forward_backward_scratch(f, threads, b.chunk));
  } else {
    b.checks = arena.take<RangeCheck>(div_up(b.chunk, kRows));
    b.scratch = arena.take<float>(feed_forward_forward_scratch(f, threads, b.chunk));
  }
  return b;
}

// body(first row, rows, thread) over chunks of kRows of [0, rows).
template <class Body>
void for_rows(int32_t threads, int64_t rows, const Body& body) {
  parallel_for(threads, div_up(rows, kRows), [&](int64_t item, int32_t thread) {
    const int64_t first = item * kRows;
    body(first, std::min(kRows, rows - first), thread);
  });
}

struct Block {
  const rfn_reversible_block& op;
  const Shape s;
  const int32_t threads;
  float *const stream1, *const stream2, *const grad1, *const grad2;

  Block(const rfn_reversible_block& block, int32_t thread_count)
      : op(block),
        s(shape_of(block)),
        threads(thread_count),
        stream1(f32(block.stream1)),
        stream2(f32(block.stream2)),
        grad1(f32(block.grad_stream1)),
        grad2(f32(block.grad_stream2)) {}

  bool exact() const { return op.residual == RFN_RESIDUAL_EXACT; }

  // ---- residuals ----

  RangeCheck add_residual(float* stream, const float* x, int64_t n) const {
    if (exact()) return residual_add(stream, x, n, op.grid_exponent);
    add(stream, x, n);
    return {};
  }

  void subtract_residual(float* stream, const float* x, int64_t n) const {
    if (exact()) {
      residual_subtract(stream, x, n, op.grid_exponent);
    } else {
      subtract(stream, x, n);
    }
  }

  // Adds the chunks' checks, which count from element `base`, to the report in row order.
  void report(const RangeCheck* checks, int64_t count, int64_t which, int64_t base) const {
    if (!exact()) return;
    rfn_range_report* const out = op.range_report;
    for (int64_t i = 0; i < count; ++i) {
      if (checks[i].count == 0) continue;
      if (out->count == 0) {
        out->layer = op.layer;
        out->stream = which;
        out->index = base + i * kRows * s.width + checks[i].first;
      }
      out->count += checks[i].count;
    }
  }

  // ---- what is kept ----

  bool keeps_streams() const { return rfn::keeps_streams(op); }
  bool keeps_activations() const { return rfn::keeps_activations(op); }

  // Rows of a stream before its half is added, and back.
  void keep_rows(const rfn_tensor& kept, const float* stream, int64_t first, int64_t rows) const {
    if (present(kept))
      std::memcpy(f32(kept) + first * s.width, stream + first * s.width,
                  static_cast<size_t>(rows * s.width) * sizeof(float));
  }
  void restore_rows(const rfn_tensor& kept, float* stream, int64_t first, int64_t rows) const {
    std::memcpy(stream + first * s.width, f32(kept) + first * s.width,
                static_cast<size_t>(rows * s.width) * sizeof(float));
  }

  Projection projection(const rfn_tensor& kept, float* buffer, int64_t head, int64_t heads) const {
    if (present(kept)) return {f32(kept) + head * s.head_size, s.projected};
    return {buffer, heads * s.head_size};
  }

  float* hidden_rows(int64_t first) const {
    return keeps_activations() ? f32(op.kept_hidden) + first * s.hidden : nullptr;
  }

  // ---- attention half ----

  void normalize_attention_rows(int64_t first, int64_t rows, float* y) const {
    layer_norm_rows(rows, s.width, op.layer_norm_epsilon, stream2 + first * s.width,
                    f32(op.parameters.attention_norm_weight), f32(op.parameters.attention_norm_bias), y);
  }

  Projection queries(const AttentionBuffers& b, int64_t head, int64_t heads) const {
    return projection(op.kept_query, b.q, head, heads);
  }
  Projection keys(const AttentionBuffers& b, int64_t head, int64_t heads) const {
    return s.shared ? queries(b, head, heads) : projection(op.kept_key, b.k, head, heads);
  }
  Projection values(const AttentionBuffers& b, int64_t head, int64_t heads) const {
    return projection(op.kept_value, b.v, head, heads);
  }

  // q, k, v of heads [head, head + heads).
  void project(const AttentionBuffers& b, int64_t head, int64_t heads) const {
    const int64_t columns = heads * s.head_size, weight_row = head * s.head_size * s.width;
    const Projection q = queries(b, head, heads), k = keys(b, head, heads), v = values(b, head, heads);
    for_rows(threads, s.rows, [&](int64_t first, int64_t rows, int32_t thread) {
      float* const x = b.thread_rows + thread * 2 * kRows * s.width;
      normalize_attention_rows(first, rows, x);
      const auto product = [&](const rfn_tensor& weight, const Projection& y) {
        gemm({Transpose::kNo, Transpose::kYes, rows, columns, s.width, x, s.width, f32(weight) + weight_row, s.width,
              0.0f, y.rows + first * y.stride, y.stride});
      };
      product(op.parameters.query, q);
      if (!s.shared) product(op.parameters.key, k);
      product(op.parameters.value, v);
    });
  }

  Attention group_attention(const AttentionBuffers& b, float* result, int64_t head, int64_t heads) const {
    Attention a = attention_call(op, s, head, heads);
    const Projection q = queries(b, head, heads), k = keys(b, head, heads), v = values(b, head, heads);
    a.q = q.rows;
    a.k = k.rows;
    a.v = v.rows;
    a.q_stride = q.stride;
    a.k_stride = k.stride;
    a.v_stride = v.stride;
    a.out = result + head * s.head_size;
    a.out_stride = s.projected;
    const bool kept_log_sum_exp = present(op.kept_log_sum_exp);
    a.log_sum_exp = kept_log_sum_exp ? f32(op.kept_log_sum_exp) + head * s.length : b.log_sum_exp;
    a.log_sum_exp_heads = kept_log_sum_exp ? s.heads : heads;
    a.grad_out = b.grad_out;
    a.grad_q = b.grad_q;
    a.grad_k = b.grad_k;
    a.grad_v = b.grad_v;
    a.grad_out_stride = a.grad_q_stride = a.grad_k_stride = a.grad_v_stride = heads * s.head_size;
    return a;
  }

  // The order of the slots, from q. Buckets that a forward pass stored are used again.
  void sort(const Attention& a, const AttentionScratch& scratch, bool stored_buckets) const {
    if (!a.lsh()) return;
    if (!stored_buckets) attention_hash(threads, a, scratch);
    attention_sort(threads, a, scratch);
  }

  // result (and log_sum_exp) of the heads, from q, k, v.
  void attend(const Attention& a, const AttentionScratch& scratch, bool stored_buckets) const {
    sort(a, scratch, stored_buckets);
    attention_forward_rounds(threads, a, scratch, 0, a.rounds());
  }

  // y = dropout(result Wo^T + bias) for some rows.
  void project_output(const float* result, int64_t first, int64_t rows, float* y) const {
    gemm({Transpose::kNo, Transpose::kYes, rows, s.width, s.projected, result + first * s.projected, s.projected,
          f32(op.parameters.output), s.projected, 0.0f, y, s.width});
    if (op.parameters.output_bias.data != nullptr) add_bias(y, f32(op.parameters.output_bias), rows, s.width);
    drop_attention_output(first, rows, y);
  }

  void drop_attention_output(int64_t first, int64_t rows, float* y) const {
    apply_dropout(y, rows * s.width, philox(op.seed, op.step, op.layer, RFN_SITE_ATTENTION_OUTPUT),
                  static_cast<uint64_t>(first * s.width), op.attention_output_dropout);
  }

  void forward_attention(const AttentionBuffers& b) const {
    float* const result = op.attention_result.data != nullptr ? f32(op.attention_result) : b.result;
    for (int64_t head = 0; head < s.heads; head += s.group) {
      const int64_t heads = std::min(s.group, s.heads - head);
      project(b, head, heads);
      attend(group_attention(b, result, head, heads), b.attention, false);
    }
    for_rows(threads, s.rows, [&](int64_t first, int64_t rows, int32_t thread) {
      float* const y = b.thread_rows + thread * 2 * kRows * s.width;
      project_output(result, first, rows, y);
      keep_rows(op.kept_stream1, stream1, first, rows);
      b.checks[first / kRows] = add_residual(stream1 + first * s.width, y, rows * s.width);
    });
    report(b.checks, div_up(s.rows, kRows), 1, 0);
  }

  void backward_attention(const AttentionBuffers& b) const {
    float* const result = keeps_activations() ? f32(op.attention_result) : b.result;
    for (int64_t head = 0; head < s.heads; head += s.group) {
      const int64_t heads = std::min(s.group, s.heads - head), columns = heads * s.head_size;
      const Attention a = group_attention(b, result, head, heads);
      if (keeps_activations()) {
        sort(a, b.attention, true);
      } else {
        project(b, head, heads);
        attend(a, b.attention, op.residual == RFN_RESIDUAL_FLOAT);
      }
      // dO = dy Wo, the columns of these heads.
      for_rows(threads, s.rows, [&](int64_t first, int64_t rows, int32_t thread) {
        float* const dy = b.thread_rows + thread * 2 * kRows * s.width;
        std::memcpy(dy, grad1 + first * s.width, static_cast<size_t>(rows * s.width) * sizeof(float));
        drop_attention_output(first, rows, dy);
        gemm({Transpose::kNo, Transpose::kNo, rows, columns, s.width, dy, s.width,
              f32(op.parameters.output) + head * s.head_size, s.projected, 0.0f, b.grad_out + first * columns,
              columns});
      });
      attention_backward_rounds(threads, a, b.attention, 0, a.rounds(), true);
      for (int64_t first = 0; first < s.rows; first += kBlockRows) {
        backward_projections(b, result, head, columns, first, std::min(kBlockRows, s.rows - first));
      }
    }
    for_rows(threads, s.rows, [&](int64_t first, int64_t rows, int32_t thread) {
      if (keeps_streams()) return restore_rows(op.kept_stream1, stream1, first, rows);
      float* const y = b.thread_rows + thread * 2 * kRows * s.width;
      project_output(result, first, rows, y);
      subtract_residual(stream1 + first * s.width, y, rows * s.width);
    });
  }

  // Weight gradients of a group of heads from rows [first, first + rows), and the gradient through the norm into
  // grad_stream2.
  void backward_projections(const AttentionBuffers& b, const float* result, int64_t head, int64_t columns,
                            int64_t first, int64_t rows) const {
    const int64_t weight_row = head * s.head_size * s.width;
    for_rows(threads, rows, [&](int64_t at, int64_t count, int32_t) {
      normalize_attention_rows(first + at, count, b.normalized + at * s.width);
      float* const dy = b.dropped + at * s.width;
      std::memcpy(dy, grad1 + (first + at) * s.width, static_cast<size_t>(count * s.width) * sizeof(float));
      drop_attention_output(first + at, count, dy);
    });
    if (head == 0 && op.parameters.output_bias.data != nullptr)
      add_column_sums(b.dropped, rows, s.width, f32(op.gradients.output_bias));

    // dW_q, dW_k, dW_v [columns, E] and the columns of dW_o [E, columns], in tiles along E.
    const int64_t tiles = div_up(s.width, kGradientTile), projections = s.shared ? 2 : 3;
    parallel_for(threads, (projections + 1) * tiles, [&](int64_t item, int32_t) {
      const int64_t which = item / tiles, e = item % tiles * kGradientTile, n = std::min(kGradientTile, s.width - e);
      if (which == projections) {
        gemm({Transpose::kYes, Transpose::kNo, n, columns, rows, b.dropped + e, s.width,
              result + first * s.projected + head * s.head_size, s.projected, 1.0f,
              f32(op.gradients.output) + e * s.projected + head * s.head_size, s.projected});
        return;
      }
      const float* const gradient = which == 0 ? b.grad_q : which == 1 ? b.grad_v : b.grad_k;
      const rfn_tensor& weight = which == 0 ? op.gradients.query : which == 1 ? op.gradients.value : op.gradients.key;
      gemm({Transpose::kYes, Transpose::kNo, columns, n, rows, gradient + first * columns, columns, b.normalized + e,
            s.width, 1.0f, f32(weight) + weight_row + e, s.width});
    });

    for_rows(threads, rows, [&](int64_t at, int64_t count, int32_t thread) {
      float* const dx = b.thread_rows + thread * 2 * kRows * s.width;
      const int64_t row = first + at;
      const auto product = [&](const float* gradient, const rfn_tensor& weight, float beta) {
        gemm({Transpose::kNo, Transpose::kNo, count, s.width, columns, gradient + row * columns, columns,
              f32(weight) + weight_row, s.width, beta, dx, s.width});
      };
      product(b.grad_q, op.parameters.query, 0.0f);
      if (!s.shared) product(b.grad_k, op.parameters.key, 1.0f);
      product(b.grad_v, op.parameters.value, 1.0f);
      float* const norm = b.norm_gradients + at / kRows * 2 * s.width;
      std::fill_n(norm, 2 * s.width, 0.0f);
      layer_norm_rows_backward(count, s.width, op.layer_norm_epsilon, stream2 + row * s.width,
                               f32(op.parameters.attention_norm_weight), dx, grad2 + row * s.width, true, norm,
                               norm + s.width);
    });
    add_norm_gradients(b.norm_gradients, rows, f32(op.gradients.attention_norm_weight),
                       f32(op.gradients.attention_norm_bias));
  }

  void add_norm_gradients(const float* partial, int64_t rows, float* weight, float* bias) const {
    for (int64_t i = 0; i < div_up(rows, kRows); ++i) {
      add(weight, partial + i * 2 * s.width, s.width);
      add(bias, partial + (i * 2 + 1) * s.width, s.width);
    }
  }

  // ---- feed-forward half ----

  void normalize_feed_forward_rows(int64_t first, int64_t rows, float* y) const {
    for_rows(threads, rows, [&](int64_t at, int64_t count, int32_t) {
      layer_norm_rows(count, s.width, op.layer_norm_epsilon, stream1 + (first + at) * s.width,
                      f32(op.parameters.feed_forward_norm_weight), f32(op.parameters.feed_forward_norm_bias),
                      y + at * s.width);
    });
  }

  void forward_feed_forward(const FeedForwardBuffers& b) const {
    const FeedForward f = feed_forward_call(op, s);
    for (int64_t first = 0; first < s.rows; first += b.chunk) {
      const int64_t rows = std::min(b.chunk, s.rows - first);
      normalize_feed_forward_rows(first, rows, b.normalized);
      feed_forward_chunk_forward(threads, f, first, rows, b.normalized, b.scratch, hidden_rows(first), b.y);
      for_rows(threads, rows, [&](int64_t at, int64_t count, int32_t) {
        keep_rows(op.kept_stream2, stream2, first + at, count);
        b.checks[at / kRows] = add_residual(stream2 + (first + at) * s.width, b.y + at * s.width, count * s.width);
      });
      report(b.checks, div_up(rows, kRows), 2, first * s.width);
    }
  }

  void backward_feed_forward(const FeedForwardBuffers& b) const {
    const FeedForward f = feed_forward_call(op, s);
    for (int64_t first = 0; first < s.rows; first += b.chunk) {
      const int64_t rows = std::min(b.chunk, s.rows - first);
      normalize_feed_forward_rows(first, rows, b.normalized);
      float* const y = keeps_streams() ? nullptr : b.y;
      feed_forward_chunk_backward(threads, f, first, rows, b.normalized, grad2 + first * s.width, b.scratch,
                                  hidden_rows(first), y, b.grad);
      for_rows(threads, rows, [&](int64_t at, int64_t count, int32_t) {
        const int64_t row = first + at;
        if (y == nullptr) {
          restore_rows(op.kept_stream2, stream2, row, count);
        } else {
          subtract_residual(stream2 + row * s.width, y + at * s.width, count * s.width);
        }
        float* const norm = b.norm_gradients + at / kRows * 2 * s.width;
        std::fill_n(norm, 2 * s.width, 0.0f);
        layer_norm_rows_backward(count, s.width, op.layer_norm_epsilon, stream1 + row * s.width,
                                 f32(op.parameters.feed_forward_norm_weight), b.grad + at * s.width,
                                 grad1 + row * s.width, true, norm, norm + s.width);
      });
      add_norm_gradients(b.norm_gradients, rows, f32(op.gradients.feed_forward_norm_weight),
                         f32(op.gradients.feed_forward_norm_bias));
    }
  }
};

}  // namespace

rfn_status reversible_block_workspace(const rfn_context& context, const rfn_reversible_block& op, int32_t pass,
                                      int64_t* bytes) {
  const Shape s = shape_of(op);
  Arena attention, feed_forward;
  attention_buffers(attention, op, s, context.threads, pass);
  feed_forward_buffers(feed_forward, op, s, context.threads, pass);
  if (attention.overflowed() || feed_forward.overflowed())
    return fail(RFN_INVALID_ARGUMENT, "reversible_block: the workspace size overflows 64 bits");
  *bytes = std::max(attention.used(), feed_forward.used());
  return RFN_OK;
}

rfn_status reversible_block_forward(rfn_stream& stream, const rfn_reversible_block& op, void* workspace,
                                    int64_t workspace_bytes) {
  const Block block(op, stream.context->threads);
  Arena attention(workspace, workspace_bytes), feed_forward(workspace, workspace_bytes);
  block.forward_attention(attention_buffers(attention, op, block.s, block.threads, RFN_PASS_FORWARD));
  block.forward_feed_forward(feed_forward_buffers(feed_forward, op, block.s, block.threads, RFN_PASS_FORWARD));
  return RFN_OK;
}

rfn_status reversible_block_backward(rfn_stream& stream, const rfn_reversible_block& op, void* workspace,
                                     int64_t workspace_bytes) {
  if ((op.residual == RFN_RESIDUAL_FLOAT || keeps_activations(op)) && op.attention.kind == RFN_ATTENTION_LSH) {
    RFN_TRY(check_indices(op.buckets, bucket_count(op.attention) + 1, "reversible_block: buckets"));
  }
  const Block block(op, stream.context->threads);
  Arena attention(workspace, workspace_bytes), feed_forward(workspace, workspace_bytes);
  block.backward_feed_forward(feed_forward_buffers(feed_forward, op, block.s, block.threads, RFN_PASS_BACKWARD));
  block.backward_attention(attention_buffers(attention, op, block.s, block.threads, RFN_PASS_BACKWARD));
  return RFN_OK;
}

}  // namespace rfn::cpu
