// The order that LSH attention walks: positions by bucket, a least-significant-digit counting sort, stable and O(T) for
// one sequence-head and round, and what becomes of it within chunks.
#include <algorithm>
#include <cmath>

#include "cpu/attention.h"

namespace rfn::cpu {
namespace {

// One pass sorts by up to 2^16 values; more buckets take a second pass.
constexpr int kDigitBits = 16;

int digit_passes(int64_t bucket_count) { return bucket_count <= (int64_t{1} << kDigitBits) ? 1 : 2; }

int64_t digit_values(int64_t bucket_count) { return std::min(bucket_count, int64_t{1} << kDigitBits); }

// Stable sort of positions [0, length) by bucket: sorted[slot] = position.
int64_t sort_counts(int64_t bucket_count, int64_t length) {
  return digit_values(bucket_count) + 1 + (digit_passes(bucket_count) > 1 ? length : 0);
}

void counting_sort(const int32_t* buckets, int64_t length, int64_t bucket_count, int32_t* sorted, int32_t* counts) {
  const int passes = digit_passes(bucket_count);
  const int64_t values = digit_values(bucket_count);
  int32_t* const swap = counts + values + 1;
  const int32_t* source = nullptr;  // null: positions in order
  for (int pass = 0; pass < passes; ++pass) {
    // The last pass writes to `sorted`.
    int32_t* const destination = pass == passes - 1 ? sorted : swap;
    const int shift = pass * kDigitBits;
    const auto digit = [&](int64_t position) { return (buckets[position] >> shift) & ((1 << kDigitBits) - 1); };
    std::fill_n(counts, values + 1, 0);
    for (int64_t i = 0; i < length; ++i) ++counts[digit(i) + 1];
    for (int64_t value = 0; value < values; ++value) counts[value + 1] += counts[value];
    for (int64_t i = 0; i < length; ++i) {
      const int32_t position = source == nullptr ? static_cast<int32_t>(i) : source[i];
      destination[counts[digit(position)]++] = position;
    }
    source = destination;
  }
}

// Sorts the positions of each chunk of a permutation of [0, slots), in O(slots).
int64_t chunk_order_counts(int64_t slots, int64_t chunk_length) { return slots + div_up(slots, chunk_length); }

void order_chunks(int32_t* sorted, int64_t slots, int64_t chunk_length, int32_t* counts) {
  int32_t *const chunk_of = counts, *const next_slot = counts + slots;
  for (int64_t chunk = 0; chunk < div_up(slots, chunk_length); ++chunk) {
    next_slot[chunk] = static_cast<int32_t>(chunk * chunk_length);
    for (int64_t slot = chunk * chunk_length; slot < std::min(slots, (chunk + 1) * chunk_length); ++slot)
      chunk_of[sorted[slot]] = static_cast<int32_t>(chunk);
  }
  for (int64_t position = 0; position < slots; ++position)
    sorted[next_slot[chunk_of[position]]++] = static_cast<int32_t>(position);
}

// Within a chunk any order of slots will do when only the chunk decides what a query sees. Ascending positions then
// turn a causal mask into a staircase, and what lies behind it is never computed.
bool orders_chunks(const AttentionWindow<>& window) { return window.causal && window.free_order; }

}  // namespace

int64_t attention_sort_counts(const Attention& call) {
  const AttentionWindow<> window = call.window();
  return std::max(sort_counts(bucket_count(call.options) + 1, call.length),
                  orders_chunks(window) ? chunk_order_counts(call.stored(), window.chunk) : 0);
}

void attention_sort_by_bucket(int32_t threads, const Attention& call, const AttentionScratch& scratch) {
  const int64_t rounds = call.rounds(), stored = call.stored(), buckets = bucket_count(call.options) + 1;
  parallel_for(threads, call.sequence_heads() * rounds, [&](int64_t item, int32_t thread) {
    const int32_t* const of_round = sequence_head(call, scratch, item / rounds).buckets + item % rounds * call.length;
    int32_t* const sorted = scratch.sorted + item * stored;
    counting_sort(of_round, call.length, buckets, sorted, scratch.counts + thread * scratch.counts_per_thread);
    for (int64_t slot = call.length; slot < stored; ++slot) sorted[slot] = static_cast<int32_t>(slot);
  });
}

void attention_arrange_slots(int32_t threads, const Attention& call, const AttentionScratch& scratch) {
  const AttentionWindow<> window = call.window();
  const bool order = orders_chunks(window);
  if (!order && scratch.slot_of == nullptr) return;
  for (int32_t seen = 0; scratch.log_counts != nullptr && seen <= window.rounds; ++seen)
    scratch.log_counts[seen] = std::log(countable(seen));
  const int64_t stored = call.stored();
  parallel_for(threads, call.sequence_heads() * window.rounds, [&](int64_t item, int32_t thread) {
    int32_t* const sorted = scratch.sorted + item * stored;
    if (order) order_chunks(sorted, stored, window.chunk, scratch.counts + thread * scratch.counts_per_thread);
    if (scratch.slot_of == nullptr) return;
    for (int64_t slot = 0; slot < stored; ++slot) {
      if (sorted[slot] < call.length) scratch.slot_of[item * call.length + sorted[slot]] = static_cast<int32_t>(slot);
    }
  });
}

void attention_sort(int32_t threads, const Attention& call, const AttentionScratch& scratch) {
  attention_sort_by_bucket(threads, call, scratch);
  attention_arrange_slots(threads, call, scratch);
}

}  // namespace rfn::cpu
