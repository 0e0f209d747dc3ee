// The reversible block (paper eq. 9), in place:
//   forward    stream1 += A(LN(stream2));  stream2 += F(LN(stream1))
//   backward   stream2 -= F(LN(stream1));  stream1 -= A(LN(stream2)), and the gradients through both on the way.
// Both directions run the same products and kernels over the same row chunks and head groups, on buffers that are
// aligned alike, so that what backward subtracts has the bits that forward added; with the grid rounding of exact
// residuals the inverse is then exact.
//
// What the caller keeps of the forward pass (rfn_reversible_block) is copied out of the workspace, where products write
// whether it is kept or not: their precision and algorithm depend on alignment and leading dimensions. For the same
// reason backward copies what products read back there.
//
// Memory. The attention half needs its result for all heads ([B*T, H*D]); queries, values and their gradients exist for
// one group of heads at a time. Everything else works on chunks of rows. Both halves use the same bytes of the
// workspace one after the other.
#include <algorithm>

#include "core/backend.h"
#include "core/block_call.h"
#include "core/tensor.h"
#include "cuda/attention.h"
#include "cuda/elementwise.h"
#include "cuda/feed_forward.h"
#include "cuda/gemm.h"
#include "cuda/layer_norm.h"

namespace rfn::cuda {
namespace {

constexpr int64_t kHeadGroupBytes = int64_t{1} << 30;  // buffers of an automatic head group
constexpr int64_t kChunkBytes = int64_t{64} << 20;     // normalised rows at a time
constexpr int64_t kMinRows = 256;

struct Shape : BlockShape {
  int64_t group;               // heads at a time
  int64_t chunk;               // rows at a time, attention half
  int64_t feed_forward_chunk;  // the same of the other half
};

Shape shape_of(const rfn_reversible_block& op) {
  Shape s{block_shape(op), 0, 0, 0};
  const int64_t floats = (s.shared ? 5 : 7) * s.head_size;  // per token and head, in the backward pass
  const int64_t automatic = kHeadGroupBytes / (s.rows * floats * static_cast<int64_t>(sizeof(float)));
  s.group = op.head_group > 0 ? std::min(op.head_group, s.heads) : std::clamp<int64_t>(automatic, 1, s.heads);
  s.chunk = std::min(s.rows, std::max(kMinRows, kChunkBytes / (4 * s.width) / kMinRows * kMinRows));
  s.feed_forward_chunk = feed_forward_chunk_rows(op.feed_forward_chunk, s.rows, s.hidden);
  return s;
}

struct AttentionBuffers {
  RangeCheck* checks;  // forward; of this half and the other one
  void* gemm;
  float* result;                               // [rows, H*D]
  float *q, *k, *v;                            // [rows, group*D]; k is q when shared
  float* x;                                    // [chunk, E]: normalised rows
  float* y;                                    // [chunk, E]: output of the half, or a gradient of it
  float* log_sum_exp;                          // backward [B, group, T]
  float *grad_out, *grad_q, *grad_k, *grad_v;  // backward, like q
  float *norm_sums, *bias_sums;                // backward
  AttentionScratch attention;
};

// First of both halves' buffers, so that they are in the same place.
RangeCheck* take_checks(Arena& arena) { return arena.take<RangeCheck>(2); }

AttentionBuffers attention_buffers(Arena& arena, const rfn_context& context, const rfn_reversible_block& op,
                                   const Shape& s, int32_t pass) {
  AttentionBuffers b{};
  const int64_t group = s.rows * s.group * s.head_size, chunk = s.chunk * s.width;
  if (pass == RFN_PASS_FORWARD) b.checks = take_checks(arena);
  b.gemm = arena.take<char>(kGemmWorkspace);
  b.result = arena.take<float>(s.rows * s.projected);
  b.q = arena.take<float>(group);
  b.k = s.shared ? b.q : arena.take<float>(group);
  b.v = arena.take<float>(group);
  b.x = arena.take<float>(chunk);
  b.y = arena.take<float>(chunk);
  if (pass == RFN_PASS_BACKWARD) {
    b.log_sum_exp = arena.take<float>(s.rows * s.group);
    b.grad_out = arena.take<float>(group);
    b.grad_q = arena.take<float>(group);
    b.grad_k = s.shared ? b.grad_q : arena.take<float>(group);
    b.grad_v = arena.take<float>(group);
    b.norm_sums = take_norm_sums(arena, s.chunk, s.width);
    b.bias_sums = take_column_sums(arena, s.chunk, s.width);
  }
  b.attention = attention_layout(arena, context, attention_call(op, s, 0, s.group), pass);
  return b;
}

struct FeedForwardBuffers {
  RangeCheck* checks;  // forward; of the other half and this one
  void* gemm;
  float* x;          // [chunk, E]: normalised rows
  float* y;          // [chunk, E]
  float* grad;       // backward [chunk, E]
  float* norm_sums;  // backward
  FeedForwardScratch scratch;
};

FeedForwardBuffers feed_forward_buffers(Arena& arena, const rfn_reversible_block& op, const Shape& s, int32_t pass) {
  FeedForwardBuffers b{};
  const int64_t rows = s.feed_forward_chunk, chunk = rows * s.width;
  if (pass == RFN_PASS_FORWARD) b.checks = take_checks(arena);
  b.gemm = arena.take<char>(kGemmWorkspace);
  b.x = arena.take<float>(chunk);
  b.y = arena.take<float>(chunk);
  if (pass == RFN_PASS_BACKWARD) {
    b.grad = arena.take<float>(chunk);
    b.norm_sums = take_norm_sums(arena, rows, s.width);
  }
  b.scratch = feed_forward_layout(arena, feed_forward_call(op, s), rows, pass, b.gemm);
  return b;
}

// body(first row, rows, first element of the streams) for one chunk of [0, total) after the other.
template <class Body>
rfn_status for_chunks(const Shape& s, int64_t chunk, const Body& body) {
  for (int64_t first = 0; first < s.rows; first += chunk)
    RFN_TRY(body(first, std::min(chunk, s.rows - first), first * s.width));
  return RFN_OK;
}

struct Block {
  rfn_stream& stream;
  const rfn_reversible_block& op;
  const Shape s;
  float *const stream1, *const stream2, *const grad1, *const grad2;

  Block(rfn_stream& on, const rfn_reversible_block& block)
      : stream(on),
        op(block),
        s(shape_of(block)),
        stream1(f32(block.stream1)),
        stream2(f32(block.stream2)),
        grad1(f32(block.grad_stream1)),
        grad2(f32(block.grad_stream2)) {}

  bool exact() const { return op.residual == RFN_RESIDUAL_EXACT; }

  // Whether a product may add its result to a stream by itself. Only to one that is aligned like the buffers of the
  // workspace: its precision depends on that, and has to be the same in both directions.
  bool adds_itself(float dropout, const float* target) const {
    return !exact() && dropout == 0.0f && reinterpret_cast<uintptr_t>(target) % 16 == 0;
  }

  // target += sign * dropout(y), elements [first, first + n) of the stream.
  rfn_status residual(float sign, int32_t site, float dropout, float* target, const float* y, int64_t first, int64_t n,
                      RangeCheck* check) const {
    const uint64_t element = static_cast<uint64_t>(first);
    const Residual r{exact(), op.grid_exponent, sign, philox(op.seed, op.step, op.layer, site), element, dropout};
    return add_residual(stream, r, target + first, y, n, element, check);
  }

  bool keeps_streams() const { return rfn::keeps_streams(op); }
  bool keeps_activations() const { return rfn::keeps_activations(op); }

  // A stream before its half is added.
  rfn_status keep_stream(const rfn_tensor& kept, const float* from) const {
    return present(kept) ? copy_floats(stream, f32(kept), from, s.rows * s.width) : RFN_OK;
  }

  float* hidden_rows(int64_t first) const {
    return keeps_activations() ? f32(op.kept_hidden) + first * s.hidden : nullptr;
  }

  // ---- attention half ----

  rfn_status normalize_for_attention(int64_t rows, int64_t at, float* x) const {
    return layer_norm_rows(stream, rows, s.width, op.layer_norm_epsilon, stream2 + at,
                           f32(op.parameters.attention_norm_weight), f32(op.parameters.attention_norm_bias), x);
  }

  // result of heads [head, head + heads), from the norm of stream2. Buckets that a forward pass stored are used again.
  rfn_status attend(const AttentionBuffers& b, const Attention& a, bool stored_buckets) const {
    const int64_t columns = a.heads * s.head_size, weight_row = a.first_head * s.head_size * s.width;
    RFN_TRY(for_chunks(s, s.chunk, [&](int64_t first, int64_t rows, int64_t at) -> rfn_status {
      RFN_TRY(normalize_for_attention(rows, at, b.x));
      const auto project = [&](const rfn_tensor& weight, float* out) {
        return gemm(stream,
                    {Transpose::kNo, Transpose::kYes, rows, columns, s.width, b.x, s.width, f32(weight) + weight_row,
                     s.width, 1.0f, 0.0f, out + first * columns, columns},
                    b.gemm);
      };
      RFN_TRY(project(op.parameters.query, b.q));
      if (!s.shared) RFN_TRY(project(op.parameters.key, b.k));
      return project(op.parameters.value, b.v);
    }));
    RFN_TRY(sort(b, a, stored_buckets));
    return attention_forward_rounds(stream, a, b.attention, 0, a.rounds());
  }

  rfn_status sort(const AttentionBuffers& b, const Attention& a, bool stored_buckets) const {
    if (!a.lsh()) return RFN_OK;
    if (!stored_buckets) RFN_TRY(attention_hash(stream, a, b.attention));
    return attention_sort(stream, a, b.attention);
  }

  // q, k and v of a group of heads to where they are kept.
  rfn_status keep_projections(const AttentionBuffers& b, const Attention& a) const {
    const auto keep = [&](const rfn_tensor& kept, const float* from) -> rfn_status {
      if (!present(kept)) return RFN_OK;
      const size_t width = static_cast<size_t>(a.heads * s.head_size) * sizeof(float),
                   pitch = static_cast<size_t>(s.projected) * sizeof(float);
      RFN_CUDA_TRY(stream,
                   cudaMemcpy2DAsync(f32(kept) + a.first_head * s.head_size, pitch, from, width, width,
                                     static_cast<size_t>(s.rows), cudaMemcpyDeviceToDevice, native_stream(stream)));
      return RFN_OK;
    };
    RFN_TRY(keep(op.kept_query, b.q));
    RFN_TRY(keep(op.kept_key, b.k));
    return keep(op.kept_value, b.v);
  }

  Attention group_attention(const AttentionBuffers& b, int64_t head) const {
    Attention a = attention_call(op, s, head, std::min(s.group, s.heads - head));
    a.q = b.q;
    a.k = b.k;
    a.v = b.v;
    a.out = b.result + head * s.head_size;
    a.out_stride = s.projected;
    const bool kept_log_sum_exp = present(op.kept_log_sum_exp);
    a.log_sum_exp = kept_log_sum_exp ? f32(op.kept_log_sum_exp) + head * s.length : b.log_sum_exp;
    a.log_sum_exp_heads = kept_log_sum_exp ? s.heads : a.heads;
    a.grad_out = b.grad_out;
    a.grad_q = b.grad_q;
    a.grad_k = b.grad_k;
    a.grad_v = b.grad_v;
    a.q_stride = a.k_stride = a.v_stride = a.grad_out_stride = a.grad_q_stride = a.grad_k_stride = a.grad_v_stride =
        a.heads * s.head_size;
    return a;
  }

  // The same with q, k and v where the forward pass kept them.
  Attention kept_attention(const AttentionBuffers& b, int64_t head) const {
    Attention a = group_attention(b, head);
    a.q = f32(op.kept_query) + head * s.head_size;
    a.k = s.shared ? a.q : f32(op.kept_key) + head * s.head_size;
    a.v = f32(op.kept_value) + head * s.head_size;
    a.q_stride = a.k_stride = a.v_stride = s.projected;
    return a;
  }

  // stream1 += sign * dropout(result Wo^T + bias).
  rfn_status add_attention(const AttentionBuffers& b, float sign) const {
    const bool bias = present(op.parameters.output_bias);
    const bool fused = adds_itself(op.attention_output_dropout, stream1) &&
                       (sign > 0.0f || !bias);  // a product adds its bias, never subtracts it
    return for_chunks(s, s.chunk, [&](int64_t first, int64_t rows, int64_t at) -> rfn_status {
      RFN_TRY(gemm(
          stream,
          {Transpose::kNo, Transpose::kYes, rows, s.width, s.projected, b.result + first * s.projected, s.projected,
           f32(op.parameters.output), s.projected, fused ? sign : 1.0f, fused ? 1.0f : 0.0f, fused ? stream1 + at : b.y,
           s.width, bias ? Epilogue::kBias : Epilogue::kNone, f32(op.parameters.output_bias)},
          b.gemm));
      if (fused) return RFN_OK;
      return residual(sign, RFN_SITE_ATTENTION_OUTPUT, op.attention_output_dropout, stream1, b.y, at, rows * s.width,
                      b.checks);
    });
  }

  rfn_status forward_attention(const AttentionBuffers& b) const {
    for (int64_t head = 0; head < s.heads; head += s.group) {
      const Attention a = group_attention(b, head);
      RFN_TRY(attend(b, a, false));
      RFN_TRY(keep_projections(b, a));
    }
    if (present(op.attention_result))
      RFN_TRY(copy_floats(stream, f32(op.attention_result), b.result, s.rows * s.projected));
    RFN_TRY(keep_stream(op.kept_stream1, stream1));
    if (exact()) RFN_TRY(reset_range_check(stream, b.checks, 2));
    return add_attention(b, 1.0f);
  }

  rfn_status backward_attention(const AttentionBuffers& b) const {
    const bool dropout = op.attention_output_dropout > 0.0f;
    const Philox random = philox(op.seed, op.step, op.layer, RFN_SITE_ATTENTION_OUTPUT);
    const bool normalized = !keeps_activations() && s.chunk == s.rows;  // attend has left all rows in x
    if (keeps_activations()) RFN_TRY(copy_floats(stream, b.result, f32(op.attention_result), s.rows * s.projected));
    for (int64_t head = 0; head < s.heads; head += s.group) {
      const Attention a = keeps_activations() ? kept_attention(b, head) : group_attention(b, head);
      const int64_t columns = a.heads * s.head_size, column = head * s.head_size, weight_row = column * s.width;
      RFN_TRY(keeps_activations() ? sort(b, a, true) : attend(b, a, !exact()));
      // Through the output projection, the columns of these heads: dO = dy Wo, dWo += dy^T O.
      RFN_TRY(for_chunks(s, s.chunk, [&](int64_t first, int64_t rows, int64_t at) -> rfn_status {
        const float* dy = grad1 + at;
        if (dropout) {
          RFN_TRY(apply_dropout(stream, dy, b.y, rows * s.width, random, static_cast<uint64_t>(at),
                                op.attention_output_dropout));
          dy = b.y;
        }
        RFN_TRY(
            gemm(stream,
                 {Transpose::kNo, Transpose::kNo, rows, columns, s.width, dy, s.width,
                  f32(op.parameters.output) + column, s.projected, 1.0f, 0.0f, b.grad_out + first * columns, columns},
                 b.gemm));
        RFN_TRY(gemm(stream,
                     {Transpose::kYes, Transpose::kNo, s.width, columns, rows, dy, s.width,
                      b.result + first * s.projected + column, s.projected, 1.0f, 1.0f,
                      f32(op.gradients.output) + column, s.projected},
                     b.gemm));
        if (head > 0 || !present(op.parameters.output_bias)) return RFN_OK;
        return add_column_sums(stream, dy, rows, s.width, b.bias_sums, f32(op.gradients.output_bias));
      }));
      RFN_TRY(attention_backward_rounds(stream, a, b.attention, 0, a.rounds(), true));
      // Through the projections of q, k and v, and the norm.
      RFN_TRY(for_chunks(s, s.chunk, [&](int64_t first, int64_t rows, int64_t at) -> rfn_status {
        if (!normalized) RFN_TRY(normalize_for_attention(rows, at, b.x));
        float beta = 0.0f;
        const auto project = [&](const float* gradient, const rfn_tensor& weight,
                                 const rfn_tensor& grad_weight) -> rfn_status {
          gradient += first * columns;
          RFN_TRY(gemm(stream,
                       {Transpose::kYes, Transpose::kNo, columns, s.width, rows, gradient, columns, b.x, s.width, 1.0f,
                        1.0f, f32(grad_weight) + weight_row, s.width},
                       b.gemm));
          RFN_TRY(gemm(stream,
                       {Transpose::kNo, Transpose::kNo, rows, s.width, columns, gradient, columns,
                        f32(weight) + weight_row, s.width, 1.0f, beta, b.y, s.width},
                       b.gemm));
          beta = 1.0f;
          return RFN_OK;
        };
        RFN_TRY(project(b.grad_q, op.parameters.query, op.gradients.query));
        if (!s.shared) RFN_TRY(project(b.grad_k, op.parameters.key, op.gradients.key));
        RFN_TRY(project(b.grad_v, op.parameters.value, op.gradients.value));
        ColumnSum parameters[2];
        RFN_TRY(layer_norm_rows_backward(stream, rows, s.width, op.layer_norm_epsilon, stream2 + at,
                                         f32(op.parameters.attention_norm_weight), b.y, grad2 + at, true, b.norm_sums,
                                         f32(op.gradients.attention_norm_weight), f32(op.gradients.attention_norm_bias),
                                         parameters));
        return add_columns(stream, parameters, 2);
      }));
    }
    return keeps_streams() ? copy_floats(stream, stream1, f32(op.kept_stream1), s.rows * s.width)
                           : add_attention(b, -1.0f);
  }

  // ---- feed-forward half ----

  rfn_status normalize_for_feed_forward(int64_t rows, int64_t at, float* x) const {
    return layer_norm_rows(stream, rows, s.width, op.layer_norm_epsilon, stream1 + at,
                           f32(op.parameters.feed_forward_norm_weight), f32(op.parameters.feed_forward_norm_bias), x);
  }

  rfn_status forward_feed_forward(const FeedForwardBuffers& b) const {
    const FeedForward f = feed_forward_call(op, s);
    const bool fused = adds_itself(f.dropout, stream2);
    RFN_TRY(keep_stream(op.kept_stream2, stream2));
    RFN_TRY(for_chunks(s, s.feed_forward_chunk, [&](int64_t first, int64_t rows, int64_t at) -> rfn_status {
      RFN_TRY(normalize_for_feed_forward(rows, at, b.x));
      RFN_TRY(feed_forward_chunk_forward(stream, f, first, rows, b.x, b.scratch, hidden_rows(first), fused,
                                         fused ? stream2 + at : b.y));
      if (fused) return RFN_OK;
      return residual(1.0f, RFN_SITE_FEED_FORWARD_OUTPUT, f.dropout, stream2, b.y, at, rows * s.width, b.checks + 1);
    }));
    return exact() ? report_range(stream, b.checks, op.range_report, op.layer, 1, 2) : RFN_OK;
  }

  rfn_status backward_feed_forward(const FeedForwardBuffers& b) const {
    const FeedForward f = feed_forward_call(op, s);
    return for_chunks(s, s.feed_forward_chunk, [&](int64_t first, int64_t rows, int64_t at) -> rfn_status {
      RFN_TRY(normalize_for_feed_forward(rows, at, b.x));
      float* const y = keeps_streams() ? nullptr : b.y;
      ColumnSum biases[2], norms[2];
      RFN_TRY(feed_forward_chunk_backward(stream, f, first, rows, b.x, grad2 + at, b.scratch, hidden_rows(first), y,
                                          b.grad, biases));
      RFN_TRY(y == nullptr
                  ? copy_floats(stream, stream2 + at, f32(op.kept_stream2) + at, rows * s.width)
                  : residual(-1.0f, RFN_SITE_FEED_FORWARD_OUTPUT, f.dropout, stream2, y, at, rows * s.width, nullptr));
      RFN_TRY(layer_norm_rows_backward(stream, rows, s.width, op.layer_norm_epsilon, stream1 + at,
                                       f32(op.parameters.feed_forward_norm_weight), b.grad, grad1 + at, true,
                                       b.norm_sums, f32(op.gradients.feed_forward_norm_weight),
                                       f32(op.gradients.feed_forward_norm_bias), norms));
      const ColumnSum sums[] = {biases[0], biases[1], norms[0], norms[1]};
      return add_columns(stream, sums, 4);
    });
  }
};

}  // namespace

rfn_status reversible_block_workspace(const rfn_context& context, const rfn_reversible_block& op, int32_t pass,
                                      int64_t* bytes) {
  const Shape s = shape_of(op);
  RFN_TRY(attention_supported(context, attention_call(op, s, 0, s.group)));
  Arena attention, feed_forward;
  attention_buffers(attention, context, op, s, pass);
  feed_forward_buffers(feed_forward, op, s, pass);
  if (attention.overflowed() || feed_forward.overflowed()) {
    return fail(RFN_INVALID_ARGUMENT, "reversible_block: the workspace size overflows 64 bits");
  }
  *bytes = std::max(attention.used(), feed_forward.used());
  return RFN_OK;
}

rfn_status reversible_block_forward(rfn_stream& stream, const rfn_reversible_block& op, void* workspace,
                                    int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const Block block(stream, op);
  RFN_TRY(attention_supported(*stream.context, attention_call(op, block.s, 0, block.s.group)));
  Arena attention(workspace, workspace_bytes), feed_forward(workspace, workspace_bytes);
  RFN_TRY(block.forward_attention(attention_buffers(attention, *stream.context, op, block.s, RFN_PASS_FORWARD)));
  return block.forward_feed_forward(feed_forward_buffers(feed_forward, op, block.s, RFN_PASS_FORWARD));
}

rfn_status reversible_block_backward(rfn_stream& stream, const rfn_reversible_block& op, void* workspace,
                                     int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const Block block(stream, op);
  RFN_TRY(attention_supported(*stream.context, attention_call(op, block.s, 0, block.s.group)));
  Arena attention(workspace, workspace_bytes), feed_forward(workspace, workspace_bytes);
  RFN_TRY(block.backward_feed_forward(feed_forward_buffers(feed_forward, op, block.s, RFN_PASS_BACKWARD)));
  return block.backward_attention(attention_buffers(attention, *stream.context, op, block.s, RFN_PASS_BACKWARD));
}

}  // namespace rfn::cuda
