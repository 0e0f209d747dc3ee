// The attention op and its stages: head groups over the kernels of lsh_hash.cu, lsh_sort.cu, attention_forward.cu and
// attention_backward.cu.
#include <algorithm>

#include "core/backend.h"
#include "cuda/attention_tile.cuh"
#include "cuda/convert.h"
#include "cuda/dropout.cuh"

namespace rfn::cuda {

TileCall tile_call(const Attention& a, const AttentionScratch& s, int64_t round) {
  TileCall c = {};
  c.attention = a;
  c.scratch = s;
  c.window = attention_window<int32_t>(a.options, a.length);
  c.stored = static_cast<int32_t>(a.stored());
  // In whole steps of a walk: where the chunks begin among the columns decides which products are summed together, and
  // imagined padding must not change that.
  c.chunk_columns = static_cast<int32_t>(std::min<int64_t>(c.window.chunk, round_up(c.stored, kMostColumns)));
  c.round = static_cast<int32_t>(round);
  c.last_query_round = c.window.rounds;
  c.scale = logit_scale(a);
  const Dropout dropout = dropout_of(a.dropout, a.options.dropout);
  c.threshold = dropout.threshold;
  c.keep_inverse = dropout.keep_inverse;
  const auto aligned = [&](const float* rows, int64_t stride) {
    return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride % 4 == 0;
  };
  c.aligned = a.head_size % 4 == 0 && aligned(a.q, a.q_stride) && aligned(a.k, a.k_stride) &&
              aligned(a.v, a.v_stride) && aligned(a.grad_out, a.grad_out_stride);
  return c;
}

AttentionScratch attention_layout(Arena& arena, const rfn_context& context, const Attention& a, int32_t pass) {
  AttentionScratch s;
  const int64_t sequence_heads = a.sequence_heads(), rounds = a.rounds();
  if (a.lsh()) {
    s.buckets = arena.take<int32_t>(a.buckets == nullptr ? sequence_heads * rounds * a.length : 0);
    s.sorted = arena.take<int32_t>(sequence_heads * rounds * a.stored());
    if (a.window().log_counts) s.slot_of = arena.take<int32_t>(sequence_heads * rounds * a.length);
    s.sort = arena.take<char>(sort_scratch_bytes(a));
  }
  if (takes_chunks(context, a)) {
    s.chunks = chunk_scratch(arena, a, pass);
    return s;
  }
  if (rounds > 1) {
    s.maximum = arena.take<float>(sequence_heads * a.length);
    s.sum = arena.take<float>(sequence_heads * a.length);
  }
  if (pass == RFN_PASS_BACKWARD) s.delta = arena.take<float>(sequence_heads * a.length);
  return s;
}

rfn_status attention_supported(const rfn_context&, const Attention& a) {
  if (a.head_size > kMaxHeadSize) {
    return fail(RFN_UNSUPPORTED, "attention: head size: expected at most %lld on CUDA, got %lld",
                static_cast<long long>(kMaxHeadSize), static_cast<long long>(a.head_size));
  }
  // Slots, chunks of the ring and columns of a tile's walk are counted in 32 bits.
  constexpr int64_t kMost = INT32_MAX / 2;
  const AttentionWindow<> window = a.window();
  const int64_t neighbours = window.before + window.after;
  int64_t columns = 0;
  if (window.slots() > kMost || window.per_round > kMost / window.rounds ||
      __builtin_mul_overflow(neighbours, window.chunk, &columns) || columns > kMost) {
    return fail(
        RFN_UNSUPPORTED,
        "attention: expected at most %lld slots, chunks of all rounds and keys of a window on CUDA, got %lld slots, "
        "%lld chunks in each of %lld rounds and %lld chunks around a query's own",
        static_cast<long long>(kMost), static_cast<long long>(window.slots()), static_cast<long long>(window.per_round),
        static_cast<long long>(window.rounds), static_cast<long long>(neighbours));
  }
  if (window.log_counts && window.rounds > kMaxCountedRounds) {
    return fail(RFN_UNSUPPORTED, "attention: rounds: expected at most %d with duplicate correction on CUDA, got %d",
                kMaxCountedRounds, a.options.rounds);
  }
  return RFN_OK;
}

namespace {

constexpr int64_t kHeadGroupBytes = int64_t{1} << 30;  // scratch of an automatic head group

int64_t head_group(const rfn_context& context, const rfn_attention& op, const Attention& whole) {
  if (op.head_group > 0) return std::min(op.head_group, whole.heads);
  Attention one = whole;
  one.heads = 1;
  one.buckets = nullptr;  // whether the caller has them is not known yet when only the size is asked for
  Arena arena;
  attention_layout(arena, context, one, RFN_PASS_BACKWARD);
  take_float_rows(arena, one, RFN_PASS_BACKWARD);
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
  const int64_t group = head_group(*stream.context, op, whole);
  for (int64_t first = 0; first < whole.heads; first += group) {
    Attention a = slice_heads(whole, first, std::min(group, whole.heads - first));
    Arena arena(workspace, bytes);
    const AttentionScratch scratch = attention_layout(arena, *stream.context, a, pass);
    take_float_rows(arena, a, pass);
    RFN_TRY(body(a, scratch));
  }
  return RFN_OK;
}

// What a pass reads and writes, between the caller's rows and the floats that stand for them. A stage has some of the
// tensors; calls of F32 have none.
using Rows = std::initializer_list<const TypedRows*>;

rfn_status widen(rfn_stream& stream, const Attention& a, Rows all) {
  if (!is_half(a.dtype)) return RFN_OK;
  const int64_t columns = a.heads * a.head_size;
  for (const TypedRows* const rows : all) {
    if (rows->floats == nullptr) continue;  // k, which is q
    RFN_TRY(widen_rows(stream, a.dtype, a.batch * a.length, columns, rows->data, rows->stride, rows->floats, columns));
  }
  return RFN_OK;
}

rfn_status narrow(rfn_stream& stream, const Attention& a, Rows all) {
  if (!is_half(a.dtype)) return RFN_OK;
  const int64_t columns = a.heads * a.head_size;
  for (const TypedRows* const rows : all) {
    if (rows->floats == nullptr) continue;
    RFN_TRY(narrow_rows(stream, a.dtype, a.batch * a.length, columns, rows->floats, columns, rows->data, rows->stride));
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

}  // namespace

rfn_status attention_workspace(const rfn_context& context, const rfn_attention& op, int32_t pass, int64_t* bytes) {
  Attention a = attention_call(op);
  RFN_TRY(attention_supported(context, a));
  a.heads = head_group(context, op, a);
  a.buckets = nullptr;  // a query may come without data
  Arena arena;
  attention_layout(arena, context, a, pass);
  take_float_rows(arena, a, pass);
  if (arena.overflowed()) return fail(RFN_INVALID_ARGUMENT, "attention: the workspace size overflows 64 bits");
  *bytes = arena.used();
  return RFN_OK;
}

rfn_status attention_forward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  return for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                         [&](const Attention& a, const AttentionScratch& s) -> rfn_status {
                           RFN_TRY(widen(stream, a, {&a.typed_q, &a.typed_k, &a.typed_v}));
                           if (a.lsh()) {
                             RFN_TRY(attention_hash(stream, a, s));
                             RFN_TRY(attention_sort(stream, a, s));
                           }
                           RFN_TRY(attention_forward_rounds(stream, a, s, 0, a.rounds()));
                           return narrow(stream, a, {&a.typed_out});
                         });
}

rfn_status attention_backward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  return for_head_groups(
      stream, op, workspace, workspace_bytes, RFN_PASS_BACKWARD,
      [&](const Attention& a, const AttentionScratch& s) -> rfn_status {
        RFN_TRY(widen(stream, a, {&a.typed_q, &a.typed_k, &a.typed_v, &a.typed_out, &a.typed_grad_out}));
        if (a.lsh()) {
          if (a.buckets == nullptr) RFN_TRY(attention_hash(stream, a, s));
          RFN_TRY(attention_sort(stream, a, s));
        }
        RFN_TRY(attention_backward_rounds(stream, a, s, 0, a.rounds(), true));
        return narrow(stream, a, {&a.typed_grad_q, &a.typed_grad_k, &a.typed_grad_v});
      });
}

rfn_status lsh_hash(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  return for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                         [&](const Attention& a, const AttentionScratch& s) -> rfn_status {
                           RFN_TRY(widen(stream, a, {&a.typed_q}));
                           return attention_hash(stream, a, s);
                         });
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
                           RFN_TRY(widen(stream, a, {&a.typed_q, &a.typed_v}));
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
                           RFN_TRY(widen(stream, a, {&a.typed_q, &a.typed_v}));
                           RFN_TRY(copy_sorted(stream, a, s, i32(op.sorted), true));
                           RFN_TRY(attention_index_slots(stream, a, s));
                           for (int64_t r = 0; r < a.rounds(); ++r)
                             RFN_TRY(attention_backward_rounds(stream, round_view(a, op, r), s, r, r + 1, r == 0));
                           return narrow(stream, a, {&a.typed_grad_q, &a.typed_grad_v});
                         });
}

}  // namespace rfn::cuda
