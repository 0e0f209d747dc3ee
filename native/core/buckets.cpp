// Automatic bucket counts of the existing implementations (the rules are in reformer_native.h).
#include <algorithm>
#include <cinttypes>

#include "core/error.h"
#include "reformer_native.h"

using rfn::fail;

namespace {

constexpr int64_t kTraxSingleFactor = 128;  // up to here Trax uses one factor

int32_t floor_log2(int64_t n) { return 63 - __builtin_clzll(static_cast<uint64_t>(n)); }

int64_t floor_sqrt(int64_t n) {
  int64_t root = 0;
  for (int64_t bit = int64_t{1} << 31; bit > 0; bit >>= 1) {
    if ((root + bit) <= n / (root + bit)) root += bit;
  }
  return root;
}

}  // namespace

rfn_status rfn_lsh_automatic_buckets(int32_t rule, int64_t length, int64_t chunk_length, int64_t max_positions,
                                     int32_t* factors, int32_t* factor_count) {
  const auto wrong = [](const char* argument, const char* expected, int64_t got) {
    return fail(RFN_INVALID_ARGUMENT, "rfn_lsh_automatic_buckets: %s: expected %s, got %" PRId64, argument, expected,
                got);
  };
  if (factors == nullptr)
    return fail(RFN_INVALID_ARGUMENT, "rfn_lsh_automatic_buckets: factors: expected a pointer, got NULL");
  if (factor_count == nullptr)
    return fail(RFN_INVALID_ARGUMENT, "rfn_lsh_automatic_buckets: factor_count: expected a pointer, got NULL");
  if (length < 1 || length > INT32_MAX) return wrong("length", "1 to 2147483647", length);
  if (chunk_length < 1 || chunk_length > INT32_MAX) return wrong("chunk_length", "1 to 2147483647", chunk_length);

  const int64_t chunks = length / chunk_length;
  int64_t first = 0, second = 1;  // second 1: a single factor
  switch (rule) {
    case RFN_BUCKETS_TRAX: {
      const int64_t n = 2 * std::max<int64_t>(1, chunks);
      first = n;
      if (n > kTraxSingleFactor) {
        first = 1;
        while (first * first < n) first *= 2;  // 2^ceil(log2 sqrt n)
        second = 2 * (n / (2 * first));
      }
      break;
    }
    case RFN_BUCKETS_HUGGING_FACE: {
      if (chunks < 1) return wrong("length", "at least chunk_length (shorter sequences are not hashed)", length);
      if (max_positions < 1) return wrong("max_positions", "at least 1", max_positions);
      const int32_t power = floor_log2(2 * chunks);
      const int64_t limit = 2 * std::max(floor_sqrt(max_positions / chunk_length), chunk_length);
      first = int64_t{1} << power;
      if (first > limit) {
        first = int64_t{1} << (power / 2);
        second = int64_t{1} << (power - power / 2);
      }
      break;
    }
    case RFN_BUCKETS_LUCIDRAINS:
      if (chunks < 2 || chunks % 2 != 0) return wrong("length", "an even number of chunks", chunks);
      first = chunks;
      break;
    default:
      return wrong("rule", "RFN_BUCKETS_* (0 to 2)", rule);
  }
  if (first * second > (int64_t{1} << 30)) return wrong("length", "at most 2^30 buckets", first * second);
  factors[0] = static_cast<int32_t>(first);
  if (second > 1) factors[1] = static_cast<int32_t>(second);
  *factor_count = second > 1 ? 2 : 1;
  return RFN_OK;
}
