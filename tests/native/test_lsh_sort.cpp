// The sort of positions by bucket, over sizes at which a counting sort takes another path: more digits, more tiles, one
// bucket for all.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "harness.h"

namespace rfn::test {
namespace {

constexpr int64_t kBatch = 2, kHeads = 3, kRounds = 2, kSegments = kBatch * kHeads * kRounds;

struct Problem {
  int64_t length, chunk;  // slots are padded to the chunk
  int32_t buckets;        // even, the padding's not counted
  int64_t head_group;
  std::vector<int32_t> values;  // [B,H,R,T]
};

// With `refusal`, the op is refused with these texts.
std::vector<int32_t> sort(const Stream& stream, const Problem& p, std::initializer_list<std::string> refusal = {}) {
  const int64_t padded = (p.length + p.chunk - 1) / p.chunk * p.chunk;
  const Tensor<int32_t> buckets({kBatch, kHeads, kRounds, p.length}, p.values),
      sorted({kBatch, kHeads, kRounds, padded});
  auto op = make_op<rfn_attention>();
  op.options.struct_size = sizeof(op.options);
  op.options.kind = RFN_ATTENTION_LSH;
  op.options.shared_qk = 1;
  op.options.rounds = kRounds;
  op.options.factor_count = 1;
  op.options.factors[0] = p.buckets;
  op.options.pad_bucket = 1;
  op.options.chunk_length = p.chunk;
  op.q = shape({kBatch, p.length, kHeads, 8});
  op.buckets = buckets;
  op.sorted = sorted;
  op.head_group = p.head_group;
  if (refusal.size() > 0) {
    EXPECT_TRUE(Fails(stage(stream, op, rfn_lsh_sort), RFN_INVALID_ARGUMENT, refusal));
    return {};
  }
  EXPECT_TRUE(Ok(stage(stream, op, rfn_lsh_sort)));
  return sorted.values();
}

// Every segment in the order of std::stable_sort, then the slots of imagined padding, which hold their own numbers.
std::vector<int32_t> expected(const Problem& p) {
  const int64_t padded = (p.length + p.chunk - 1) / p.chunk * p.chunk;
  std::vector<int32_t> all;
  for (int64_t segment = 0; segment < kSegments; ++segment) {
    const int32_t* const values = p.values.data() + segment * p.length;
    std::vector<int32_t> slots(static_cast<size_t>(padded));
    std::iota(slots.begin(), slots.end(), 0);
    std::stable_sort(slots.begin(), slots.begin() + p.length,
                     [&](int32_t a, int32_t b) { return values[a] < values[b]; });
    all.insert(all.end(), slots.begin(), slots.end());
  }
  return all;
}

class LshSort : public OpTest, public testing::WithParamInterface<std::pair<int64_t, int32_t>> {};

TEST_P(LshSort, StableSortOfPositionsByBucket) {
  const auto [length, buckets] = GetParam();
  Random random(211);
  Problem p{length, 16, buckets, 0, random.integers(kSegments * length, buckets + 1)};
  EXPECT_TRUE(SameBits(sort(stream, p), expected(p)));
  p.head_group = 1;
  EXPECT_TRUE(SameBits(sort(stream, p), expected(p)));
  for (int64_t i = 0; i < kSegments * length; i += 1 + random.below(2))
    p.values[i] = buckets / 2;  // one bucket that is nearly everything
  EXPECT_TRUE(SameBits(sort(stream, p), expected(p)));
  p.values.assign(p.values.size(), buckets);  // nothing but padding
  EXPECT_TRUE(SameBits(sort(stream, p), expected(p)));
}

std::vector<std::pair<int64_t, int32_t>> sizes() {
  std::vector<std::pair<int64_t, int32_t>> all;
  // With the padding's, 65,534 and 65,536 buckets are one less and one more than 16 bits count.
  for (const int64_t length : {1, 31, 33, 1000, 20000}) {
    for (const int32_t buckets : {2, 6, 254, 256, 65534, 65536, 70000}) all.emplace_back(length, buckets);
  }
  for (const int32_t buckets : {510, 512}) all.emplace_back(8200, buckets);  // one digit and two of a long segment
  all.emplace_back(5000, 1 << 30);
  return all;
}

INSTANTIATE_TEST_SUITE_P(Sizes, LshSort, testing::ValuesIn(sizes()), [](const auto& info) {
  return std::to_string(info.param.first) + "Tokens" + std::to_string(info.param.second) + "Buckets";
});

class LshSortOp : public OpTest {};

// The fewest tokens that take two tiles, and two digits.
TEST_F(LshSortOp, SmallProblem_TwoTilesAndTwoDigits) {
  Random random(227);
  const Problem p{4100, 100, 600, 0, random.integers(kSegments * 4100, 601)};
  EXPECT_TRUE(SameBits(sort(stream, p), expected(p)));
}

// A long segment with two digits below the upper one, for which a range takes turns with its two buffers.
TEST_F(LshSortOp, ThreeDigits_SameOrder) {
  Random random(231);
  const Problem p{8200, 16, 1 << 20, 0, random.integers(kSegments * 8200, (1 << 20) + 1)};
  EXPECT_TRUE(SameBits(sort(stream, p), expected(p)));
}

// The bucket behind 2^16 others, and slots of padding behind it.
TEST_F(LshSortOp, PaddingBucketBehindAllOf16Bits_ComesLast) {
  Random random(229);
  Problem p{301, 16, 65536, 0, random.integers(kSegments * 301, 65537)};
  for (int64_t i = 0; i < kSegments * 301; ++i) {
    if (i % 3 == 0) p.values[i] = i % 2 == 0 ? 65536 : 65535;
    if (i % 7 == 0) p.values[i] = 0;
  }
  EXPECT_TRUE(SameBits(sort(stream, p), expected(p)));
}

// More tiles than one turn of a scan takes counts of, and slots of padding behind them. One digit counts all buckets:
// two would have so few counts each that a turn takes them.
TEST_F(LshSortOp, MoreCountsThanAScanTakesAtATime_SameOrder) {
  Random random(233);
  const Problem p{70003, 16, 254, 0, random.integers(kSegments * 70003, 255)};
  EXPECT_TRUE(SameBits(sort(stream, p), expected(p)));
}

// Buckets that a caller hands in and that are out of range: the CPU refuses them, a device takes each for the largest.
TEST_F(LshSortOp, BucketsOutOfRange_AreRefusedOrTheLargest) {
  Random random(239);
  Problem p{500, 16, 300, 0, random.integers(kSegments * 500, 301)}, clamped = p;
  for (int64_t i = 7; i < kSegments * 500; i += 61) {
    p.values[i] = i % 2 == 0 ? 301 + static_cast<int32_t>(i) : i % 3 == 0 ? -1 : INT32_MIN + static_cast<int32_t>(i);
    clamped.values[i] = 300;
  }
  if (!on_cpu()) {
    EXPECT_TRUE(SameBits(sort(stream, p), expected(clamped)));
    return;
  }
  EXPECT_EQ(sort(stream, p, {"buckets", "element 7"}), std::vector<int32_t>());
}

TEST_F(LshSortOp, EverySchedule_SameOrder) {
  Random random(223);
  const Problem p{9000, 7, 300, 2, random.integers(kSegments * 9000, 301)};
  const std::vector<int32_t> order = expected(p);
  for_each_schedule([&](int32_t threads) {
    Context other(threads);
    EXPECT_TRUE(SameBits(sort(Stream(other), p), order));
  });
}

}  // namespace
}  // namespace rfn::test
