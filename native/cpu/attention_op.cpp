// The attention op and its stages: head groups over lsh_hash.cpp, lsh_sort.cpp, attention_forward.cpp and
// attention_backward.cpp.
#include <cstring>

#include "core/backend.h"
#include "core/error.h"
#include "cpu/attention_walk.h"
#include "cpu/contents.h"
#include "cpu/convert.h"
#include "cpu/head_groups.h"

namespace rfn::cpu {

AttentionScratch attention_layout(Arena& arena, const Attention& call, int32_t threads, int32_t pass) {
  AttentionScratch scratch;
  const AttentionWindow<> window = call.window();
  const int64_t tokens = call.sequence_heads() * call.length, rounds = window.rounds;
  if (window.lsh) {
    scratch.buckets = arena.take<int32_t>(tokens * rounds);
    scratch.sorted = arena.take<int32_t>(call.sequence_heads() * rounds * call.stored());
    if (window.log_counts) {
      scratch.slot_of = arena.take<int32_t>(tokens * rounds);
      scratch.places_per_thread = 2 * rounds * kPlacesPerRound * (1 + packed_blocks(call));
      scratch.places = arena.take<int32_t>(threads * scratch.places_per_thread);
      scratch.log_counts = arena.take<float>(rounds + 1);
    }
    scratch.counts_per_thread = round_up(attention_sort_counts(call), 64);
    scratch.counts = arena.take<int32_t>(threads * scratch.counts_per_thread);
  }
  scratch.merged = arena.take<RowSoftmax>(tokens);
  if (pass == RFN_PASS_BACKWARD) scratch.delta = arena.take<float>(tokens);
  if (!window.full) {
    const int64_t phases = pass == RFN_PASS_BACKWARD ? kBackwardPhases : 1;
    scratch.phases = arena.take<Phases::Phase>(call.sequence_heads() * rounds * phases);
  }
  Arena tile;
  walk_layout(tile, call, pass);
  scratch.tile_floats = tile.used() / static_cast<int64_t>(sizeof(float));
  scratch.tiles = arena.take<float>(threads * scratch.tile_floats);
  return scratch;
}

SequenceHead sequence_head(const Attention& call, const AttentionScratch& scratch, int64_t index) {
  SequenceHead head{};
  head.index = index;
  head.example = index / call.heads;
  head.head = index % call.heads;
  head.global = head.example * call.all_heads + call.first_head + head.head;
  head.mask = call.mask == nullptr ? nullptr : call.mask + head.example * call.length;
  if (!call.lsh() || scratch.sorted == nullptr) return head;
  const int64_t rounds = call.rounds(), tokens = rounds * call.length;
  head.buckets = call.buckets != nullptr ? call.buckets + head.global * tokens : scratch.buckets + index * tokens;
  head.sorted = scratch.sorted + index * rounds * call.stored();
  if (scratch.slot_of != nullptr) head.slot_of = scratch.slot_of + index * tokens;
  return head;
}

namespace {

// What a pass reads and writes, between the caller's rows and the floats that stand for them. A stage has some of the
// tensors; calls of F32 have none.
using Rows = std::initializer_list<const TypedRows*>;

void widen(int32_t threads, const Attention& call, Rows all) {
  if (!is_half(call.dtype)) return;
  const int64_t columns = call.heads * call.head_size;
  for (const TypedRows* const rows : all) {
    if (rows->floats == nullptr) continue;  // k, which is q
    widen_rows(threads, call.dtype, call.batch * call.length, columns, rows->data, rows->stride, rows->floats, columns);
  }
}

void narrow(int32_t threads, const Attention& call, Rows all) {
  if (!is_half(call.dtype)) return;
  const int64_t columns = call.heads * call.head_size;
  for (const TypedRows* const rows : all) {
    if (rows->floats == nullptr) continue;
    narrow_rows(threads, call.dtype, call.batch * call.length, columns, rows->floats, columns, rows->data,
                rows->stride);
  }
}

// The permutation of a group of heads between the caller's [B,H,R,padded] and the scratch's [B,heads,R,padded].
void copy_sorted(const Attention& call, const AttentionScratch& scratch, int32_t* outside, bool from_outside) {
  const int64_t row = call.rounds() * call.stored();
  for (int64_t index = 0; index < call.sequence_heads(); ++index) {
    int32_t* const theirs = outside + sequence_head(call, scratch, index).global * row;
    int32_t* const ours = scratch.sorted + index * row;
    std::memcpy(from_outside ? ours : theirs, from_outside ? theirs : ours, static_cast<size_t>(row) * sizeof(int32_t));
  }
}

// A position that is at no slot would get no result, and one at two slots two writers. Linear like the copy of the
// slots that follows; the scratch, of at least one row, remembers which positions were met.
rfn_status check_slots(const rfn_stream& stream, const rfn_attention& op, const char* what, void* workspace,
                       int64_t bytes, int32_t pass) {
  const Attention whole = attention_call(op), call = slice_heads(whole, 0, head_group(op, whole));
  const int32_t threads = stream.context->threads;
  Arena arena(workspace, bytes);
  const AttentionScratch scratch = attention_layout(arena, call, threads, pass);
  const int64_t rows = std::min<int64_t>(threads, call.sequence_heads() * call.rounds());
  return check_permutations(static_cast<int32_t>(rows), op.sorted, scratch.sorted, what);
}

rfn_status check_buckets(const rfn_attention& op, const char* what) {
  return check_indices(op.buckets, bucket_count(op.options) + 1, what);
}

}  // namespace

rfn_status attention_workspace(const rfn_context& context, const rfn_attention& op, int32_t pass, int64_t* bytes) {
  Attention call = attention_call(op);
  call.heads = head_group(op, call);
  Arena arena;
  attention_layout(arena, call, context.threads, pass);
  take_float_rows(arena, call, pass);
  if (arena.overflowed()) return fail(RFN_INVALID_ARGUMENT, "attention: the workspace size overflows 64 bits");
  *bytes = arena.used();
  return RFN_OK;
}

rfn_status attention_forward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  const int32_t threads = stream.context->threads;
  for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                  [&](const Attention& call, const AttentionScratch& scratch) {
                    widen(threads, call, {&call.typed_q, &call.typed_k, &call.typed_v});
                    if (call.lsh()) {
                      attention_hash(threads, call, scratch);
                      attention_sort(threads, call, scratch);
                    }
                    attention_forward_rounds(threads, call, scratch, 0, call.rounds());
                    narrow(threads, call, {&call.typed_out});
                  });
  return RFN_OK;
}

rfn_status attention_backward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  if (op.options.kind == RFN_ATTENTION_LSH && op.buckets.data != nullptr)
    RFN_TRY(check_buckets(op, "attention: buckets"));
  const int32_t threads = stream.context->threads;
  for_head_groups(
      stream, op, workspace, workspace_bytes, RFN_PASS_BACKWARD,
      [&](const Attention& call, const AttentionScratch& scratch) {
        widen(threads, call, {&call.typed_q, &call.typed_k, &call.typed_v, &call.typed_out, &call.typed_grad_out});
        if (call.lsh()) {
          if (call.buckets == nullptr) attention_hash(threads, call, scratch);
          attention_sort(threads, call, scratch);
        }
        attention_backward_rounds(threads, call, scratch, 0, call.rounds(), true);
        narrow(threads, call, {&call.typed_grad_q, &call.typed_grad_k, &call.typed_grad_v});
      });
  return RFN_OK;
}

rfn_status lsh_hash(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                  [&](const Attention& call, const AttentionScratch& scratch) {
                    widen(stream.context->threads, call, {&call.typed_q});
                    attention_hash(stream.context->threads, call, scratch);
                  });
  return RFN_OK;
}

rfn_status lsh_sort(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  RFN_TRY(check_buckets(op, "lsh_sort: buckets"));
  for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                  [&](const Attention& call, const AttentionScratch& scratch) {
                    attention_sort_by_bucket(stream.context->threads, call, scratch);
                    copy_sorted(call, scratch, i32(op.sorted), false);
                  });
  return RFN_OK;
}

rfn_status lsh_attend(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  RFN_TRY(check_slots(stream, op, "lsh_attend: sorted", workspace, workspace_bytes, RFN_PASS_FORWARD));
  const int32_t threads = stream.context->threads;
  for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                  [&](const Attention& call, const AttentionScratch& scratch) {
                    widen(threads, call, {&call.typed_q, &call.typed_v});
                    copy_sorted(call, scratch, i32(op.sorted), true);
                    attention_arrange_slots(threads, call, scratch);
                    for (int64_t round = 0; round < call.rounds(); ++round)
                      attention_forward_rounds(threads, round_view(call, op, round), scratch, round, round + 1);
                  });
  return RFN_OK;
}

rfn_status lsh_attend_backward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  RFN_TRY(check_slots(stream, op, "lsh_attend_backward: sorted", workspace, workspace_bytes, RFN_PASS_BACKWARD));
  const int32_t threads = stream.context->threads;
  for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_BACKWARD,
                  [&](const Attention& call, const AttentionScratch& scratch) {
                    widen(threads, call, {&call.typed_q, &call.typed_v});
                    copy_sorted(call, scratch, i32(op.sorted), true);
                    attention_arrange_slots(threads, call, scratch);
                    for (int64_t round = 0; round < call.rounds(); ++round)
                      attention_backward_rounds(threads, round_view(call, op, round), scratch, round, round + 1,
                                                round == 0);
                    narrow(threads, call, {&call.typed_grad_q, &call.typed_grad_v});
                  });
  return RFN_OK;
}

}  // namespace rfn::cpu
