// One token of every example through a reversible block, with the tokens before it in a cache. What takes the time is
// reading the weights and, at the sizes of one token, the launches: there are five, one more with exact residuals (the
// range report) and one more where a token may see more than kPartKeys keys.
//
//   1. keys, values (to their rows of the cache) and queries from the norm of stream 2
//   2. attention (row_attention.cu)
//   3. stream 1 += its output projection
//   4. hidden layer from the norm of stream 1
//   5. stream 2 += its second map
#include "core/backend.h"
#include "core/decode_call.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cuda/attention.h"
#include "cuda/grid.cuh"
#include "cuda/row_attention.h"
#include "cuda/row_product.h"

namespace rfn::cuda {
namespace {

struct Buffers {
  RangeCheck* checks;  // EXACT [2]: of stream 1, stream 2
  float* query;        // [B, H*D], when not shared: then the query is the key's row of the cache
  float* hidden;       // [B, F]
  RowAttention attention;
};

Buffers take_buffers(Arena& arena, const rfn_reversible_block_decode& op, const DecodeShape& s) {
  Buffers b{};
  if (op.residual == RFN_RESIDUAL_EXACT) b.checks = arena.take<RangeCheck>(2);
  if (!s.shared) b.query = arena.take<float>(s.batch * s.projected);
  b.hidden = arena.take<float>(s.batch * s.hidden);
  b.attention.result = arena.take<float>(s.batch * s.projected);
  take_row_attention(arena, op, s, &b.attention);
  return b;
}

rfn_status supported(const DecodeShape& s) {
  constexpr int64_t kMostKeys = INT32_MAX;
  if (s.head_size > kMaxHeadSize) {
    return fail(RFN_UNSUPPORTED, "reversible_block_decode: head size: expected at most %lld on CUDA, got %lld",
                static_cast<long long>(kMaxHeadSize), static_cast<long long>(s.head_size));
  }
  if (s.most_keys > kMostKeys) {
    return fail(RFN_UNSUPPORTED,
                "reversible_block_decode: expected at most %lld places in the rings of a token's rounds on CUDA, "
                "got %lld",
                static_cast<long long>(kMostKeys), static_cast<long long>(s.most_keys));
  }
  return RFN_OK;
}

__global__ void report_ranges_kernel(const RangeCheck* checks, rfn_range_report* report, int32_t layer) {
  fold_check(&checks[0], report, layer, 1);
  fold_check(&checks[1], report, layer, 2);
}

// ---- positions of a prompt into the rings ----

constexpr int64_t kSharedCounts = 8192;  // buckets whose counts fit into shared memory

struct Rings {
  const int32_t* buckets;  // [rows, T], a row for each (example, head, round)
  int32_t *rings, *counts;
  int64_t length, first, bucket_count, ring;
};

// A warp has a row and goes through its tokens, 32 at a time: those of the same bucket find each other and take places
// in order. Buckets out of range count as the last one, counts out of range as that of all positions.
__global__ void __launch_bounds__(32) bucket_rings_kernel(Rings p) {
  RFN_DYNAMIC_SHARED(int32_t, shared);
  const int64_t row = blockIdx.x;
  const unsigned lane = threadIdx.x;
  const int32_t* const buckets = p.buckets + row * p.length;
  int32_t* const rings = p.rings + row * p.bucket_count * p.ring;
  int32_t* const kept = p.counts + row * p.bucket_count;
  int32_t* const counts = p.bucket_count <= kSharedCounts ? shared : kept;
  for (int64_t i = lane; i < p.bucket_count; i += 32) {
    const int64_t count = static_cast<uint32_t>(kept[i]);
    counts[i] = static_cast<int32_t>(count < p.first ? count : p.first);
  }
  const auto bucket_at = [&](int64_t token) -> int64_t {
    if (token >= p.length) return -1;
    const int64_t bucket = static_cast<uint32_t>(buckets[token]);
    return bucket < p.bucket_count ? bucket : p.bucket_count - 1;
  };
  int64_t bucket = bucket_at(lane);
  for (int64_t begin = 0; begin < p.length; begin += 32) {
    const int64_t next = bucket_at(begin + 32 + lane);
    __syncwarp();  // the counts are there
    const unsigned same = __match_any_sync(kFullWarp, bucket);
    const int rank = __popc(same & ((1u << lane) - 1u)), all = __popc(same);
    const int64_t count = bucket < 0 ? 0 : counts[bucket];
    __syncwarp();  // all have read
    if (bucket >= 0) {
      // Of tokens that would take the same place the last one has it.
      if (all - rank <= p.ring)
        rings[bucket * p.ring + (count + rank) % p.ring] = static_cast<int32_t>(p.first + begin + lane);
      if (rank == 0) counts[bucket] = static_cast<int32_t>(count + all);
    }
    bucket = next;
  }
  if (counts == kept) return;
  __syncwarp();
  for (int64_t i = lane; i < p.bucket_count; i += 32) kept[i] = counts[i];
}

}  // namespace

rfn_status reversible_block_decode_workspace(const rfn_context&, const rfn_reversible_block_decode& op,
                                             int64_t* bytes) {
  const DecodeShape s = decode_shape(op);
  RFN_TRY(supported(s));
  Arena arena;
  take_buffers(arena, op, s);
  return workspace_size(arena, "reversible_block_decode", bytes);
}

rfn_status reversible_block_decode_forward(rfn_stream& stream, const rfn_reversible_block_decode& op, void* workspace,
                                           int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const DecodeShape s = decode_shape(op);
  RFN_TRY(supported(s));
  Arena arena(workspace, workspace_bytes);
  const Buffers b = take_buffers(arena, op, s);
  const rfn_block_parameters& parameters = op.parameters;

  RowProduct norm;  // of a stream
  norm.rows = s.batch;
  norm.depth = s.width;
  norm.epsilon = op.layer_norm_epsilon;

  RowProduct projections = norm;
  projections.columns = s.projected;
  projections.x = f32(op.stream2);
  projections.norm_weight = f32(parameters.attention_norm_weight);
  projections.norm_bias = f32(parameters.attention_norm_bias);
  projections.empty_checks = b.checks;
  const auto project = [&](const rfn_tensor& weight, float* y, int64_t ldy) {
    const int i = projections.weights++;
    projections.w[i] = f32(weight);
    projections.y[i] = y;
    projections.ldy[i] = ldy;
    return y;
  };
  const auto cache_row = [&](const rfn_tensor& cache) { return f32(cache) + s.row * s.projected; };
  RowAttention attention = b.attention;
  attention.query_stride = s.shared ? s.cache_stride() : s.projected;
  attention.query = project(parameters.query, s.shared ? cache_row(op.keys) : b.query, attention.query_stride);
  if (!s.shared) project(parameters.key, cache_row(op.keys), s.cache_stride());
  project(parameters.value, cache_row(op.values), s.cache_stride());
  RFN_TRY(row_product(stream, projections));
  RFN_TRY(row_attention(stream, op, s, attention));

  RowProduct hidden = norm;
  hidden.columns = s.hidden;
  hidden.x = f32(op.stream1);
  hidden.norm_weight = f32(parameters.feed_forward_norm_weight);
  hidden.norm_bias = f32(parameters.feed_forward_norm_bias);
  hidden.weights = 1;
  hidden.w[0] = f32(parameters.w1);
  hidden.y[0] = b.hidden;
  hidden.ldy[0] = s.hidden;
  hidden.bias = f32(parameters.b1);
  hidden.activation = op.activation;

  const auto add_to = [&](int half, int64_t depth, const float* x, const rfn_tensor& weight, const rfn_tensor& bias) {
    RowProduct sum;
    sum.rows = s.batch;
    sum.columns = s.width;
    sum.depth = depth;
    sum.x = x;
    sum.weights = 1;
    sum.w[0] = f32(weight);
    sum.y[0] = f32(half == 0 ? op.stream1 : op.stream2);
    sum.ldy[0] = s.width;
    sum.bias = f32(bias);
    sum.add = true;
    sum.grid_exponent = op.grid_exponent;
    sum.check = b.checks == nullptr ? nullptr : b.checks + half;
    return row_product(stream, sum);
  };
  RFN_TRY(add_to(0, s.projected, attention.result, parameters.output, parameters.output_bias));
  RFN_TRY(row_product(stream, hidden));
  RFN_TRY(add_to(1, s.hidden, b.hidden, parameters.w2, parameters.b2));
  if (b.checks == nullptr) return RFN_OK;
  RFN_CUDA_TRY(stream,
               RFN_LAUNCH(report_ranges_kernel, 1, 1, 0, native_stream(stream), b.checks, op.range_report, op.layer));
  return RFN_OK;
}

rfn_status bucket_rings_forward(rfn_stream& stream, const rfn_bucket_rings& op) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  Rings p{};
  p.buckets = i32(op.buckets);
  p.rings = i32(op.rings);
  p.counts = i32(op.counts);
  p.length = op.buckets.shape[3];
  p.first = op.first;
  p.bucket_count = op.rings.shape[2];
  p.ring = op.rings.shape[3];
  const size_t shared = p.bucket_count <= kSharedCounts ? static_cast<size_t>(p.bucket_count) * sizeof(int32_t) : 0;
  RFN_CUDA_TRY(stream, RFN_LAUNCH(bucket_rings_kernel, blocks_for(op.rings.shape[0] * op.rings.shape[1], 1), 32, shared,
                                  native_stream(stream), p));
  return RFN_OK;
}

}  // namespace rfn::cuda
