// Sorting positions by bucket: least-significant-digit counting sort, stable, O(T) for one (example, head, round).
#include <algorithm>

#include "core/tensor.h"
#include "cpu/attention.h"

namespace rfn::cpu {
namespace {

// One pass sorts by up to 2^16 values; more buckets take a second pass.
constexpr int kDigitBits = 16;

int digit_passes(int64_t bucket_count) { return bucket_count <= (int64_t{1} << kDigitBits) ? 1 : 2; }

int64_t digit_values(int64_t bucket_count) { return std::min(bucket_count, int64_t{1} << kDigitBits); }

}  // namespace

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

}  // namespace rfn::cpu
