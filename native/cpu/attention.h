// Attention on the CPU over a range of heads; shared by the attention op, its stages and the reversible block.
//
// LSH, local and full attention are the same walk (attention_walk.h): tiles of queries, each against the keys of its
// window in blocks. LSH walks the sorted order of one round after the other, the rounds of a token merged by the
// running maximum and sum that the token carries; local walks the sequence itself; full has one window that holds
// everything. Nothing of size [rounds, tokens, width] or [tokens, window] exists.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/attention_call.h"
#include "core/workspace.h"
#include "cpu/attention_tile.h"
#include "cpu/parallel.h"

namespace rfn::cpu {

inline constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Scratch for one call. For the same shapes and threads the layout is the same, so that a hash and sort may be followed
// by forward and backward. A sequence-head is one (example, head).
struct AttentionScratch {
  int32_t* buckets = nullptr;    // [sequence-heads, R, T]
  int32_t* sorted = nullptr;     // [sequence-heads, R, stored]: position at a slot
  int32_t* slot_of = nullptr;    // [sequence-heads, R, T]; duplicate correction only
  RowSoftmax* merged = nullptr;  // [sequence-heads, T]: forward, of the rounds or keys so far
  float* delta = nullptr;        // [sequence-heads, T]: backward
  int32_t* counts = nullptr;     // [threads, counts_per_thread]: of the sorts
  int64_t counts_per_thread = 0;
  // [threads, places_per_thread]: of queries and packed keys in all rounds; duplicate correction only
  int32_t* places = nullptr;
  int64_t places_per_thread = 0;
  float* log_counts = nullptr;      // [R + 1]; duplicate correction only
  Phases::Phase* phases = nullptr;  // of the chunked kinds: [sequence-heads, R], backward [sequence-heads, R, 4]
  float* tiles = nullptr;           // [threads, tile_floats]
  int64_t tile_floats = 0;
};

AttentionScratch attention_layout(Arena& arena, const Attention& call, int32_t threads, int32_t pass);

// One (example, head) of the call.
struct SequenceHead {
  int64_t index;  // in the scratch
  int64_t example;
  int64_t head;         // of the call
  int64_t global;       // example * all_heads + head of the model: dropout and rotations count by it
  const uint8_t* mask;  // [T] or null
  int32_t* buckets;     // [R,T]
  const int32_t* sorted;
  const int32_t* slot_of;
};
SequenceHead sequence_head(const Attention& call, const AttentionScratch& scratch, int64_t index);

// Its rows of a tensor, and its log-sum-exps.
template <class T>
T* rows_of(T* base, int64_t stride, const Attention& call, const SequenceHead& of) {
  return base + of.example * call.length * stride + of.head * call.head_size;
}
inline int64_t log_sum_exp_of(const Attention& call, const SequenceHead& of) {
  return (of.example * call.log_sum_exp_heads + of.head) * call.length;
}

inline bool is_real(const Attention& call, const SequenceHead& of, int64_t position) {
  return position < call.length && (of.mask == nullptr || of.mask[position] != 0);
}

// Calls body(sequence-head, first token, last token) in parallel.
template <class Body>
void for_tokens(int32_t threads, const Attention& call, const AttentionScratch& scratch, const Body& body) {
  constexpr int64_t kTokens = 512;
  const int64_t items = div_up(call.length, kTokens);
  parallel_for(threads, call.sequence_heads() * items, [&](int64_t item, int32_t) {
    const int64_t first = item % items * kTokens;
    body(sequence_head(call, scratch, item / items), first, std::min(call.length, first + kTokens));
  });
}

// lsh_hash.cpp. buckets: the call's when given, else the scratch's.
void attention_hash(int32_t threads, const Attention& call, const AttentionScratch& scratch);

// lsh_sort.cpp. `sorted` by bucket; what is walked, and its inverse, from a `sorted` by bucket; both.
void attention_sort_by_bucket(int32_t threads, const Attention& call, const AttentionScratch& scratch);
void attention_arrange_slots(int32_t threads, const Attention& call, const AttentionScratch& scratch);
void attention_sort(int32_t threads, const Attention& call, const AttentionScratch& scratch);
int64_t attention_sort_counts(const Attention& call);  // of one thread

// attention_forward.cpp. out and log_sum_exp over rounds [first, last).
void attention_forward_rounds(int32_t threads, const Attention& call, const AttentionScratch& scratch, int64_t first,
                              int64_t last);
// attention_backward.cpp. grad_q, grad_k, grad_v over rounds [first, last); overwritten when `overwrite`, else added
// to.
void attention_backward_rounds(int32_t threads, const Attention& call, const AttentionScratch& scratch, int64_t first,
                               int64_t last, bool overwrite);
inline constexpr int64_t kBackwardPhases = 4;  // of a sequence-head and round

// The chunked kinds: phases of sequence-heads and rounds, in groups of a few sequence-heads that go through all rounds
// together, so that their rows stay in a cache from round to round. The phases of one sequence-head follow each other;
// while the last items of one end there are those of another to take. body(first, last sequence-head, round).
template <class Body>
void for_phases(int64_t sequence_heads, int64_t group, int64_t first_round, int64_t last_round, const Body& body) {
  for (int64_t first = 0; first < sequence_heads; first += group) {
    for (int64_t round = first_round; round < last_round; ++round)
      body(first, std::min(sequence_heads, first + group), round);
  }
}

}  // namespace rfn::cpu
