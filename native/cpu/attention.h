// Attention over a range of heads; shared by the attention op, its stages and the reversible block.
#pragma once
#include <cstdint>

#include "core/attention_call.h"
#include "core/workspace.h"
#include "cpu/attention_tile.h"
#include "cpu/parallel.h"
#include "reformer_native.h"

namespace rfn::cpu {

// Scratch for one call. For the same shapes and threads the layout is the same, so that a hash and sort may be followed
// by forward and backward.
struct AttentionScratch {
  int32_t* buckets = nullptr;    // [pairs, R, T]
  int32_t* sorted = nullptr;     // [pairs, R, stored]: position at a slot
  int32_t* slot_of = nullptr;    // [pairs, R, T]; duplicate correction only
  RowSoftmax* merged = nullptr;  // forward [pairs, T]: of the rounds or keys so far
  float* delta = nullptr;        // backward [pairs, T]
  int32_t* counts = nullptr;     // [threads, ...] of the sorts
  int64_t counts_per_thread = 0;
  int32_t* places =
      nullptr;  // [threads, places_per_thread]: of queries and packed keys in all rounds; duplicate correction only
  int64_t places_per_thread = 0;
  float* log_counts = nullptr;      // [R + 1]; duplicate correction only
  Phases::Phase* phases = nullptr;  // of the chunked kinds: [pairs, R], backward [pairs, R, 4]
  float* tiles = nullptr;           // [threads, tile_floats]
  int64_t tile_floats = 0;
};

AttentionScratch attention_layout(Arena& arena, const Attention& a, int32_t threads, int32_t pass);

// buckets: a.buckets when given, else the scratch's.
void attention_hash(int32_t threads, const Attention& a, const AttentionScratch& scratch);
// sorted (and slot_of) from buckets, arranged.
void attention_sort(int32_t threads, const Attention& a, const AttentionScratch& scratch);
// Makes of a permutation that was sorted by bucket the one that is walked, and its inverse.
void attention_arrange_slots(int32_t threads, const Attention& a, const AttentionScratch& scratch);
// out and lse over rounds [first, last).
void attention_forward_rounds(int32_t threads, const Attention& a, const AttentionScratch& scratch, int64_t first,
                              int64_t last);
// grad_q, grad_k, grad_v over rounds [first, last); overwritten when `overwrite`, else added to.
void attention_backward_rounds(int32_t threads, const Attention& a, const AttentionScratch& scratch, int64_t first,
                               int64_t last, bool overwrite);

// Stable sort of positions [0, length) by bucket: sorted[slot] = position. counts has sort_counts(buckets, length)
// entries.
int64_t sort_counts(int64_t bucket_count, int64_t length);
void counting_sort(const int32_t* buckets, int64_t length, int64_t bucket_count, int32_t* sorted, int32_t* counts);

// Sorts the positions of each chunk of a permutation of [0, slots), in O(slots). counts has
// chunk_order_counts(slots, chunk_length) entries.
int64_t chunk_order_counts(int64_t slots, int64_t chunk_length);
void order_chunks(int32_t* sorted, int64_t slots, int64_t chunk_length, int32_t* counts);

// RFN_OK when every element of an I32 tensor is in [0, limit); else a message that names `what`. Contents that come
// from the caller become indices.
rfn_status check_indices(const rfn_tensor& tensor, int64_t limit, const char* what);

// Heads to process together: `asked`, or as many as keep bytes_per_head * heads within a fixed budget.
int64_t head_group(int64_t asked, int64_t heads, int64_t bytes_per_head);

}  // namespace rfn::cpu
