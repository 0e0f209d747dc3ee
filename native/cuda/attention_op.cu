// The attention op and its stages: head groups over the kernels of lsh_hash.cu, lsh_sort.cu, attention_forward.cu and
// attention_backward.cu.
#include <algorithm>

#include "core/backend.h"
#include "cuda/attention_tile.cuh"
#include "cuda/dropout.cuh"

namespace rfn::cuda {

TileCall tile_call(const Attention& a, const AttentionScratch& s, int64_t round) {
  const rfn_attention_options& o = a.options;
  TileCall c = {};
  c.a = a;
  c.s = s;
  c.full = o.kind == RFN_ATTENTION_FULL;
  c.lsh = a.lsh();
  c.length = static_cast<int32_t>(a.length);
  c.padded = static_cast<int32_t>(a.padded());
  c.stored = static_cast<int32_t>(a.stored());
  c.rounds = static_cast<int32_t>(a.rounds());
  c.round = static_cast<int32_t>(round);
  c.last_query_round = c.rounds;
  c.chunk = c.full ? c.length : static_cast<int32_t>(o.chunk_length);
  c.per_round = c.padded / c.chunk;
  c.total = c.per_round * c.rounds;
  c.before = c.full ? 0 : static_cast<int32_t>(o.chunks_before);
  c.after = c.full ? 0 : static_cast<int32_t>(o.chunks_after);
  c.scale = logit_scale(a);
  const Dropout dropout = dropout_of(a.dropout, o.dropout);
  c.threshold = dropout.threshold;
  c.keep_inverse = dropout.keep_inverse;
  c.causal = o.causal != 0;
  c.exclude_self = o.shared_qk != 0;
  c.strict = c.lsh && o.window == RFN_WINDOW_STRICT;
  c.same_bucket = c.strict || (c.lsh && o.window == RFN_WINDOW_SAME_BUCKET);
  c.wrap = o.wrap != 0;
  c.ring = !c.full && c.wrap && !c.strict;  // the strict window never leaves its round
  c.repeat = o.repeat_chunks != 0;
  c.duplicates = corrects_duplicates(a);
  const auto aligned = [&](const float* rows, int64_t stride) {
    return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride % 4 == 0;
  };
  c.aligned = a.head_size % 4 == 0 && aligned(a.q, a.q_stride) && aligned(a.k, a.k_stride) &&
              aligned(a.v, a.v_stride) && aligned(a.grad_out, a.grad_out_stride);
  return c;
}

AttentionScratch attention_layout(Arena& arena, const Attention& a, int32_t pass) {
  AttentionScratch s;
  const int64_t pairs = a.pairs(), rounds = a.rounds();
  if (a.lsh()) {
    s.buckets = arena.take<int32_t>(a.buckets == nullptr ? pairs * rounds * a.length : 0);
    s.sorted = arena.take<int32_t>(pairs * rounds * a.stored());
    if (corrects_duplicates(a)) s.slot_of = arena.take<int32_t>(pairs * rounds * a.length);
    s.sort = arena.take<char>(sort_scratch_bytes(a));
  }
  if (rounds > 1) {
    s.maximum = arena.take<float>(pairs * a.length);
    s.sum = arena.take<float>(pairs * a.length);
  }
  if (pass == RFN_PASS_BACKWARD) s.delta = arena.take<float>(pairs * a.length);
  return s;
}

rfn_status attention_supported(const rfn_context&, const Attention& a) {
  if (a.head_size > kMaxHeadSize) {
    return fail(RFN_UNSUPPORTED, "attention: head size: expected at most %lld on CUDA, got %lld",
                static_cast<long long>(kMaxHeadSize), static_cast<long long>(a.head_size));
  }
  // Slots, chunks of the ring and columns of a tile's walk are counted in 32 bits.
  constexpr int64_t kMost = INT32_MAX / 2;
  const bool full = a.options.kind == RFN_ATTENTION_FULL;
  const int64_t chunk = full ? a.length : a.options.chunk_length,
                window = full ? 0 : a.options.chunks_before + a.options.chunks_after;
  int64_t columns = 0;
  if (a.padded() > kMost || a.padded() / chunk > kMost / a.rounds() ||
      __builtin_mul_overflow(window, chunk, &columns) || columns > kMost) {
    return fail(
        RFN_UNSUPPORTED,
        "attention: expected at most %lld slots, chunks of all rounds and keys of a window on CUDA, got %lld slots, "
        "%lld chunks in each of %lld rounds and %lld chunks around a query's own",
        static_cast<long long>(kMost), static_cast<long long>(a.padded()), static_cast<long long>(a.padded() / chunk),
        static_cast<long long>(a.rounds()), static_cast<long long>(window));
  }
  if (corrects_duplicates(a) && a.options.rounds > kMaxCountedRounds) {
    return fail(RFN_UNSUPPORTED, "attention: rounds: expected at most %d with duplicate correction on CUDA, got %d",
                kMaxCountedRounds, a.options.rounds);
  }
  return RFN_OK;
}

namespace {

constexpr int64_t kHeadGroupBytes = int64_t{1} << 30;  // scratch of an automatic head group

int64_t head_group(const rfn_attention& op, const Attention& whole) {
  if (op.head_group > 0) return std::min(op.head_group, whole.heads);
  Attention one = whole;
  one.heads = 1;
  one.buckets = nullptr;  // whether the caller has them is not known yet when only the size is asked for
  Arena arena;
  attention_layout(arena, one, RFN_PASS_BACKWARD);
  return std::clamp<int64_t>(kHeadGroupBytes / std::max<int64_t>(arena.used(), 1), 1, whole.heads);
}

// Calls body(heads of the call, scratch) for one group of heads after the other.
template <class Body>
rfn_status for_head_groups(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t bytes, int32_t pass,
                           const Body& body) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const Attention whole = attention_call(op);
  RFN_TRY(attention_supported(*stream.context, whole));
  const int64_t group = head_group(op, whole);
  for (int64_t first = 0; first < whole.heads; first += group) {
    const Attention a = slice_heads(whole, first, std::min(group, whole.heads - first));
    Arena arena(workspace, bytes);
    RFN_TRY(body(a, attention_layout(arena, a, pass)));
  }
  return RFN_OK;
}

// The permutation of a group of heads between the caller's [B,H,R,padded] and the scratch's [B,heads,R,padded].
rfn_status copy_sorted(rfn_stream& stream, const Attention& a, const AttentionScratch& s, int32_t* outside,
                       bool from_outside) {
  const size_t row = static_cast<size_t>(a.rounds() * a.stored()) * sizeof(int32_t);
  const size_t width = row * static_cast<size_t>(a.heads), outside_pitch = row * static_cast<size_t>(a.all_heads);
  int32_t* const theirs = outside + a.first_head * a.rounds() * a.stored();
  RFN_CUDA_TRY(stream,
               from_outside
                   ? cudaMemcpy2DAsync(s.sorted, width, theirs, outside_pitch, width, static_cast<size_t>(a.batch),
                                       cudaMemcpyDeviceToDevice, native_stream(stream))
                   : cudaMemcpy2DAsync(theirs, outside_pitch, s.sorted, width, width, static_cast<size_t>(a.batch),
                                       cudaMemcpyDeviceToDevice, native_stream(stream)));
  return RFN_OK;
}

// ---- combining rounds: one warp for each (example, token, head) ----

struct CombineCall {
  const float *round_out, *round_lse;  // [R,B,T,H,D], [R,B,H,T]
  const float* lse_in;                 // backward: [B,H,T]
  const float* grad_out;
  float *out, *lse;  // forward: outputs (lse may be null); backward: out is an input
  float *grad_round_out, *grad_round_lse;
  int64_t tokens, length, heads, head_size, rounds;  // tokens = B*T
};

constexpr int kCombineThreads = 128;

struct CombineRow {
  int64_t row, lse;  // element of D 0 in [B,T,H,D]; element in [B,H,T]
  bool there;
};
RFN_DEVICE CombineRow combine_row(const CombineCall& c) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kCombineThreads / 32) + threadIdx.x / 32,
                token = index / c.heads, head = index % c.heads;
  return {index * c.head_size, (token / c.length * c.heads + head) * c.length + token % c.length, token < c.tokens};
}

// out = sum_r w_r out_r, w_r = exp(lse_r - lse), lse = log sum_r exp(lse_r). Rounds without a key for a token have lse
// -inf and weight 0; when all have, the token's output is that of round 0 (its own value, or 0).
__global__ void __launch_bounds__(kCombineThreads) lsh_combine_kernel(const CombineCall c) {
  const CombineRow at = combine_row(c);
  if (!at.there) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t out_size = c.tokens * c.heads * c.head_size, lse_size = c.tokens * c.heads;
  float maximum = -INFINITY, sum = 0.0f;
  for (int64_t r = 0; r < c.rounds; ++r) maximum = fmaxf(maximum, c.round_lse[r * lse_size + at.lse]);
  const bool lone = maximum == -INFINITY;
  for (int64_t r = 0; r < c.rounds && !lone; ++r) sum += expf(c.round_lse[r * lse_size + at.lse] - maximum);
  const float lse = lone ? maximum : maximum + logf(sum);
  if (lane == 0 && c.lse != nullptr) c.lse[at.lse] = lse;
  for (int64_t d = lane; d < c.head_size; d += 32) {
    float value = lone ? c.round_out[at.row + d] : 0.0f;
    for (int64_t r = 0; r < c.rounds && !lone; ++r) {
      const float weight = expf(c.round_lse[r * lse_size + at.lse] - lse);
      if (weight != 0.0f) value = fmaf(weight, c.round_out[r * out_size + at.row + d], value);
    }
    c.out[at.row + d] = value;
  }
}

// d out_r = w_r dO;  d lse_r = w_r dO . (out_r - out).
__global__ void __launch_bounds__(kCombineThreads) lsh_combine_backward_kernel(const CombineCall c) {
  const CombineRow at = combine_row(c);
  if (!at.there) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t out_size = c.tokens * c.heads * c.head_size, lse_size = c.tokens * c.heads;
  const float lse = c.lse_in[at.lse];
  const bool lone = lse == -INFINITY;
  for (int64_t r = 0; r < c.rounds; ++r) {
    const float weight = lone ? (r == 0 ? 1.0f : 0.0f) : expf(c.round_lse[r * lse_size + at.lse] - lse);
    float along = 0.0f;
    for (int64_t d = lane; d < c.head_size; d += 32) {
      const float gradient = c.grad_out[at.row + d];
      c.grad_round_out[r * out_size + at.row + d] = weight * gradient;
      along = fmaf(gradient, c.round_out[r * out_size + at.row + d] - c.out[at.row + d], along);
    }
    along = group_sum(along);
    if (lane == 0) c.grad_round_lse[r * lse_size + at.lse] = lone ? 0.0f : weight * along;
  }
}

CombineCall combine_call(const rfn_attention& op) {
  CombineCall c = {};
  c.round_out = f32(op.round_out);
  c.round_lse = f32(op.round_lse);
  c.lse_in = f32(op.lse);
  c.grad_out = f32(op.grad_out);
  c.out = f32(op.out);
  c.lse = f32(op.lse);
  c.grad_round_out = f32(op.grad_round_out);
  c.grad_round_lse = f32(op.grad_round_lse);
  c.length = op.q.shape[1];
  c.tokens = op.q.shape[0] * c.length;
  c.heads = op.q.shape[2];
  c.head_size = op.q.shape[3];
  c.rounds = op.options.rounds;
  return c;
}

rfn_status combine(rfn_stream& stream, const rfn_attention& op, void (*kernel)(CombineCall)) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const CombineCall c = combine_call(op);
  RFN_CUDA_TRY(stream, RFN_LAUNCH(kernel, blocks_for(c.tokens * c.heads, kCombineThreads / 32), kCombineThreads, 0,
                                  native_stream(stream), c));
  return RFN_OK;
}

}  // namespace

rfn_status attention_workspace(const rfn_context& context, const rfn_attention& op, int32_t pass, int64_t* bytes) {
  Attention a = attention_call(op);
  RFN_TRY(attention_supported(context, a));
  a.heads = head_group(op, a);
  a.buckets = nullptr;  // a query may come without data
  Arena arena;
  attention_layout(arena, a, pass);
  if (arena.overflowed()) return fail(RFN_INVALID_ARGUMENT, "attention: the workspace size overflows 64 bits");
  *bytes = arena.used();
  return RFN_OK;
}

rfn_status attention_forward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  return for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                         [&](const Attention& a, const AttentionScratch& s) -> rfn_status {
                           if (a.lsh()) {
                             RFN_TRY(attention_hash(stream, a, s));
                             RFN_TRY(attention_sort(stream, a, s));
                           }
                           return attention_forward_rounds(stream, a, s, 0, a.rounds());
                         });
}

rfn_status attention_backward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  return for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_BACKWARD,
                         [&](const Attention& a, const AttentionScratch& s) -> rfn_status {
                           if (a.lsh()) {
                             if (a.buckets == nullptr) RFN_TRY(attention_hash(stream, a, s));
                             RFN_TRY(attention_sort(stream, a, s));
                           }
                           return attention_backward_rounds(stream, a, s, 0, a.rounds(), true);
                         });
}

rfn_status lsh_hash(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  return for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                         [&](const Attention& a, const AttentionScratch& s) { return attention_hash(stream, a, s); });
}

rfn_status lsh_sort(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  return for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                         [&](const Attention& a, const AttentionScratch& s) -> rfn_status {
                           RFN_TRY(attention_sort(stream, a, s));
                           return copy_sorted(stream, a, s, i32(op.sorted), false);
                         });
}

rfn_status lsh_attend(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  return for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                         [&](const Attention& a, const AttentionScratch& s) -> rfn_status {
                           RFN_TRY(copy_sorted(stream, a, s, i32(op.sorted), true));
                           RFN_TRY(attention_index_slots(stream, a, s));
                           for (int64_t r = 0; r < a.rounds(); ++r)
                             RFN_TRY(attention_forward_rounds(stream, round_view(a, op, r), s, r, r + 1));
                           return RFN_OK;
                         });
}

rfn_status lsh_attend_backward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  return for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_BACKWARD,
                         [&](const Attention& a, const AttentionScratch& s) -> rfn_status {
                           RFN_TRY(copy_sorted(stream, a, s, i32(op.sorted), true));
                           RFN_TRY(attention_index_slots(stream, a, s));
                           for (int64_t r = 0; r < a.rounds(); ++r)
                             RFN_TRY(attention_backward_rounds(stream, round_view(a, op, r), s, r, r + 1, r == 0));
                           return RFN_OK;
                         });
}

rfn_status lsh_combine(rfn_stream& stream, const rfn_attention& op, void*, int64_t) {
  return combine(stream, op, lsh_combine_kernel);
}

rfn_status lsh_combine_backward(rfn_stream& stream, const rfn_attention& op, void*, int64_t) {
  return combine(stream, op, lsh_combine_backward_kernel);
}

}  // namespace rfn::cuda
