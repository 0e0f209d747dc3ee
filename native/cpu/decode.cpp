// One token of every example through a reversible block, with the tokens before it in a cache.
//
// Every weight is read once and takes part in a product or two: the time is that of reading the weights. So a call is
// one parallel region of five phases (projections; attention by heads; output projection; two maps of the feed-forward
// layer), whose items are runs of weight rows. Each thread computes the layer norm of a phase for itself, which is less
// than waiting for another to do it.
#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <limits>

#include "core/attention_call.h"
#include "core/backend.h"
#include "core/decode_call.h"
#include "core/error.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cpu/attention.h"
#include "cpu/contents.h"
#include "cpu/gemm.h"
#include "cpu/layer_norm.h"
#include "cpu/parallel.h"
#include "cpu/row_attention.h"
#include "cpu/row_product.h"
#include "cpu/vector_math.h"

namespace rfn::cpu {
namespace {

using Shape = DecodeShape;

// What a thread has to itself.
struct ThreadBuffers {
  float* x;       // [B,E]: normalised rows
  float* y;       // [B, columns of an item]
  int32_t* rows;  // [most keys]
  float* scores;  // [most keys]
  AttentionScratch hash;
};

struct Buffers {
  float* query;           // [B,H*D], when not shared: then the query is the key's row of the cache
  float* result;          // [B,H*D]
  float* hidden;          // [B,F]
  int32_t* buckets;       // [B,H,R]
  RangeCheck* checks[2];  // [items, B] of each half's last phase
  ThreadBuffers* thread;
};

int64_t item_columns(const Shape& s, int64_t depth) {
  return std::min(std::max({s.projected, s.width, s.hidden}), row_product_columns(depth));
}

// The hash of one head: attention over the single row.
Attention hash_call(const rfn_reversible_block_decode& op, const Shape& s, const float* query, int64_t query_stride,
                    int32_t* buckets) {
  Attention a;
  a.options = op.attention;
  a.options.duplicates = RFN_DUPLICATES_NONE;
  a.batch = s.batch;
  a.length = 1;
  a.all_heads = a.heads = s.heads;
  a.head_size = s.head_size;
  a.q = a.k = query;
  a.q_stride = a.k_stride = query_stride;
  a.rotations = f32(op.rotations);
  a.rotation_sets = op.rotations.shape[0];
  a.buckets = buckets;
  return a;
}

Buffers take_buffers(Arena& arena, const rfn_reversible_block_decode& op, const Shape& s, int32_t threads) {
  Buffers b{};
  if (!s.shared) b.query = arena.take<float>(s.batch * s.projected);
  b.result = arena.take<float>(s.batch * s.projected);
  b.hidden = arena.take<float>(s.batch * s.hidden);
  if (s.lsh) b.buckets = arena.take<int32_t>(s.batch * s.heads * s.rounds);
  b.checks[0] = arena.take<RangeCheck>(s.batch * div_up(s.width, item_columns(s, s.projected)));
  b.checks[1] = arena.take<RangeCheck>(s.batch * div_up(s.width, item_columns(s, s.hidden)));
  b.thread = arena.take<ThreadBuffers>(threads);
  const int64_t columns = std::max({item_columns(s, s.width), item_columns(s, s.projected), item_columns(s, s.hidden)});
  for (int32_t i = 0; i < threads; ++i) {
    ThreadBuffers t{};
    t.x = arena.take<float>(s.batch * s.width);
    t.y = arena.take<float>(s.batch * columns);
    t.rows = arena.take<int32_t>(s.most_keys);
    t.scores = arena.take<float>(s.most_keys);
    if (s.lsh)
      t.hash = attention_layout(arena, slice_heads(hash_call(op, s, nullptr, 0, nullptr), 0, 1), 1, RFN_PASS_FORWARD);
    if (b.thread != nullptr) b.thread[i] = t;
  }
  return b;
}

// y[i, j] = x[i, :] . w[j, :] for all examples and some rows of a weight.
void product(int64_t rows, int64_t columns, int64_t depth, const float* x, const float* w, float* y, int64_t ldy) {
  if (rows <= kFewRows) return row_products(rows, columns, depth, x, depth, w, depth, y, ldy);
  gemm({Transpose::kNo, Transpose::kYes, rows, columns, depth, x, depth, w, depth, 0.0f, y, ldy});
}

struct Decoder {
  const rfn_reversible_block_decode& op;
  const Shape s;
  const Buffers b;
  const int64_t position;
  std::atomic<bool> broken{false};  // a ring holds what can't be there

  Decoder(const rfn_reversible_block_decode& call, const Shape& shape, const Buffers& buffers)
      : op(call), s(shape), b(buffers), position(call.position) {}

  bool exact() const { return op.residual == RFN_RESIDUAL_EXACT; }

  float* cache_row(const rfn_tensor& cache) const { return f32(cache) + s.row * s.projected; }
  float* query() const { return s.shared ? cache_row(op.keys) : b.query; }
  int64_t query_stride() const { return s.shared ? s.cache_stride() : s.projected; }

  void normalize(const rfn_tensor& stream, const rfn_tensor& weight, const rfn_tensor& bias, float* x) const {
    layer_norm_rows(s.batch, s.width, op.layer_norm_epsilon, f32(stream), f32(weight), f32(bias), x);
  }

  // ---- attention ----

  int64_t projection_items() const { return (s.shared ? 2 : 3) * div_up(s.projected, item_columns(s, s.width)); }

  void project(int64_t item, const ThreadBuffers& t) const {
    const int64_t columns = item_columns(s, s.width), per_weight = div_up(s.projected, columns),
                  which = item / per_weight;
    const int64_t first = item % per_weight * columns, count = std::min(columns, s.projected - first);
    const rfn_tensor* weight = &op.parameters.value;
    float* y = cache_row(op.values);
    int64_t stride = s.cache_stride();
    if (which == 0) {
      weight = &op.parameters.query;
      y = query();
      stride = query_stride();
    } else if (which == 1 && !s.shared) {
      weight = &op.parameters.key;
      y = cache_row(op.keys);
    }
    product(s.batch, count, s.width, t.x, f32(*weight) + first * s.width, y + first, stride);
  }

  // The ring of (example, head, round) and its count.
  int64_t ring_index(int64_t example, int64_t head, int64_t round) const {
    const int64_t pair = example * s.heads + head, bucket = b.buckets[pair * s.rounds + round];
    return (pair * s.rounds + round) * s.buckets + bucket;
  }

  // Rows of the cache that the query sees, as often as it sees them; -1: the cache is broken.
  int64_t visible_rows(int64_t example, int64_t head, int32_t* rows) const {
    int64_t count = 0;
    if (s.lsh) {
      for (int64_t r = 0; r < s.rounds; ++r) {
        const int64_t index = ring_index(example, head, r), seen = i32(op.counts)[index],
                      held = std::min(seen, s.window.span);
        const int32_t* const ring = i32(op.rings) + index * s.ring;
        if (seen < 0 || seen > position) return -1;
        for (int64_t i = 0; i < held; ++i) {
          if (ring[i] < 0 || ring[i] >= position) return -1;
          rows[count++] = ring[i];
        }
      }
      // exp(s - log count), count times, is exp(s) once.
      if (s.window.log_counts) {
        std::sort(rows, rows + count);
        count = std::unique(rows, rows + count) - rows;
      }
      return count;
    }
    for (int64_t p = s.window.first_seen(position); p < s.window.end_seen(position); ++p)
      rows[count++] = static_cast<int32_t>(p % s.capacity);
    return count;
  }

  void attend(int64_t head, const ThreadBuffers& t) {
    if (s.lsh) attention_hash(1, slice_heads(hash_call(op, s, query(), query_stride(), b.buckets), head, 1), t.hash);
    for (int64_t example = 0; example < s.batch; ++example) {
      const int64_t offset = example * s.cache_stride() + head * s.head_size;
      float* const out = b.result + example * s.projected + head * s.head_size;
      const int64_t count = visible_rows(example, head, t.rows);
      if (count < 0) return broken.store(true, std::memory_order_relaxed);
      if (count == 0) {  // itself, as a last resort
        std::copy_n(cache_row(op.values) + offset, s.head_size, out);
        continue;
      }
      RowAttention a{};
      a.head_size = s.head_size;
      a.query = query() + example * query_stride() + head * s.head_size;
      a.scale = logit_scale(op.attention, s.head_size);
      a.keys = f32(op.keys) + offset;
      a.values = f32(op.values) + offset;
      a.stride = s.projected;
      a.key_norm = op.attention.key_norm;
      a.rows = t.rows;
      a.count = count;
      a.scores = t.scores;
      a.out = out;
      row_attention(a);
    }
  }

  void append_to_rings() const {
    for (int64_t pair = 0; s.lsh && pair < s.batch * s.heads; ++pair) {
      for (int64_t r = 0; r < s.rounds; ++r) {
        const int64_t index = ring_index(pair / s.heads, pair % s.heads, r);
        i32(op.rings)[index * s.ring + i32(op.counts)[index]++ % s.ring] = static_cast<int32_t>(position);
      }
    }
  }

  // ---- ends of both halves: stream += x weight^T + bias ----

  int64_t residual_items(int64_t depth) const { return div_up(s.width, item_columns(s, depth)); }

  void add_product(int64_t item, int64_t depth, const float* x, const rfn_tensor& weight, const rfn_tensor& bias,
                   const rfn_tensor& stream, RangeCheck* checks, const ThreadBuffers& t) const {
    const int64_t columns = item_columns(s, depth), first = item * columns, count = std::min(columns, s.width - first);
    product(s.batch, count, depth, x, f32(weight) + first * depth, t.y, count);
    if (present(bias)) {
      for (int64_t i = 0; i < s.batch; ++i) add(t.y + i * count, f32(bias) + first, count);
    }
    for (int64_t i = 0; i < s.batch; ++i) {
      float* const row = f32(stream) + i * s.width + first;
      if (exact()) {
        checks[item * s.batch + i] = residual_add(row, t.y + i * count, count, op.grid_exponent);
      } else {
        add(row, t.y + i * count, count);
      }
    }
  }

  // Adds the checks of one half to the report, in row order.
  void report(int64_t half, int64_t depth) const {
    if (!exact()) return;
    rfn_range_report* const out = op.range_report;
    for (int64_t i = 0; i < s.batch; ++i) {
      for (int64_t item = 0; item < residual_items(depth); ++item) {
        const RangeCheck& check = b.checks[half][item * s.batch + i];
        if (check.count == 0) continue;
        if (out->count == 0) {
          out->layer = op.layer;
          out->stream = half + 1;
          out->index = i * s.width + item * item_columns(s, depth) + check.first;
        }
        out->count += check.count;
      }
    }
  }

  // ---- feed-forward ----

  int64_t hidden_items() const { return div_up(s.hidden, item_columns(s, s.width)); }

  void hidden(int64_t item, const ThreadBuffers& t) const {
    const int64_t columns = item_columns(s, s.width), first = item * columns,
                  count = std::min(columns, s.hidden - first);
    float* const y = b.hidden + first;
    product(s.batch, count, s.width, t.x, f32(op.parameters.w1) + first * s.width, y, s.hidden);
    for (int64_t i = 0; i < s.batch; ++i) {
      add(y + i * s.hidden, f32(op.parameters.b1) + first, count);
      activation_forward(op.activation, y + i * s.hidden, y + i * s.hidden, count);
    }
  }

  void run(int32_t threads) {
    constexpr int64_t kPhases = 5;
    Phases::Phase memory[kPhases];
    Phases phases(memory, kPhases);
    const rfn_block_parameters& p = op.parameters;
    const auto whole = [&](int64_t phase, int64_t items, const auto&... work) {
      phases.work(phase, items, work...);
      phases.wait(phase, items);
    };
    parallel_region(threads, [&](int32_t thread) {
      const ThreadBuffers& t = b.thread[thread];
      whole(
          0, projection_items(), [&] { normalize(op.stream2, p.attention_norm_weight, p.attention_norm_bias, t.x); },
          [&](int64_t item) { project(item, t); });
      whole(1, s.heads, [&](int64_t head) { attend(head, t); });
      if (broken.load(std::memory_order_relaxed)) return;
      whole(2, residual_items(s.projected), [&](int64_t item) {
        add_product(item, s.projected, b.result, p.output, p.output_bias, op.stream1, b.checks[0], t);
      });
      whole(
          3, hidden_items(), [&] { normalize(op.stream1, p.feed_forward_norm_weight, p.feed_forward_norm_bias, t.x); },
          [&](int64_t item) { hidden(item, t); });
      whole(4, residual_items(s.hidden),
            [&](int64_t item) { add_product(item, s.hidden, b.hidden, p.w2, p.b2, op.stream2, b.checks[1], t); });
    });
    if (broken.load(std::memory_order_relaxed)) return;
    report(0, s.projected);
    report(1, s.hidden);
    append_to_rings();
  }
};

}  // namespace

rfn_status reversible_block_decode_workspace(const rfn_context& context, const rfn_reversible_block_decode& op,
                                             int64_t* bytes) {
  Arena arena;
  take_buffers(arena, op, decode_shape(op), context.threads);
  return workspace_size(arena, "reversible_block_decode", bytes);
}

rfn_status reversible_block_decode_forward(rfn_stream& stream, const rfn_reversible_block_decode& op, void* workspace,
                                           int64_t workspace_bytes) {
  const int32_t threads = stream.context->threads;
  const Shape s = decode_shape(op);
  Arena arena(workspace, workspace_bytes);
  Decoder decoder(op, s, take_buffers(arena, op, s, threads));
  decoder.run(threads);
  if (!decoder.broken) return RFN_OK;
  return fail(RFN_INVALID_ARGUMENT,
              "reversible_block_decode: rings, counts: expected positions and counts of the %" PRId64
              " tokens before this one, got others",
              op.position);
}

rfn_status bucket_rings_forward(rfn_stream& stream, const rfn_bucket_rings& op) {
  const int64_t length = op.buckets.shape[3], buckets = op.rings.shape[2], ring = op.rings.shape[3];
  RFN_TRY(check_indices(op.buckets, buckets, "bucket_rings: buckets"));
  RFN_TRY(check_indices(op.counts, op.first + 1, "bucket_rings: counts"));
  parallel_for(stream.context->threads, op.rings.shape[0] * op.rings.shape[1], [&](int64_t item, int32_t) {
    const int32_t* const bucket = i32(op.buckets) + item * length;
    int32_t *const rings = i32(op.rings) + item * buckets * ring, *const counts = i32(op.counts) + item * buckets;
    for (int64_t i = 0; i < length; ++i)
      rings[bucket[i] * ring + counts[bucket[i]]++ % ring] = static_cast<int32_t>(op.first + i);
  });
  return RFN_OK;
}

}  // namespace rfn::cpu
