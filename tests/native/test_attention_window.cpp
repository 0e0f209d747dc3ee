// What a query sees, by the scalar rule of core/attention_window.h: against the float64 reference, which lists the keys
// of a query by its own reading of the header, and against what the device under test does by vectors or fragments of a
// tile, over random options and shapes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "core/attention_window.h"
#include "harness.h"
#include "reference_attention.h"

namespace rfn::test {
namespace {

constexpr int kCases = 2000;
constexpr uint64_t kSeed = 20000;

struct Case {
  rfn_attention_options options = {};
  int64_t batch = 1, length = 1, heads = 1;
  std::vector<uint8_t> mask;  // [B,T] or empty
};

std::string text(const Case& c) {
  const rfn_attention_options& o = c.options;
  std::ostringstream out;
  out << "B " << c.batch << ", T " << c.length << ", H " << c.heads << ", kind " << o.kind << ", shared " << o.shared_qk
      << ", causal " << o.causal << ", window " << o.window << ", wrap " << o.wrap << ", repeat " << o.repeat_chunks
      << ", duplicates " << o.duplicates << ", rounds " << o.rounds << ", factors " << o.factors[0] << " "
      << o.factors[1] << ", pad bucket " << o.pad_bucket << ", before " << o.chunks_before << ", after "
      << o.chunks_after << ", dropout " << o.dropout << ", chunk " << o.chunk_length << ", padded " << o.padded_length
      << (c.mask.empty() ? "" : ", masked");
  return out.str();
}

// Mostly a few tokens, so that windows are longer than rings; now and then more than a tile has rows.
Case random_case(Random& random) {
  Case c;
  rfn_attention_options& o = c.options;
  const auto flag = [&] { return static_cast<int32_t>(random.below(2)); };
  o.struct_size = sizeof(o);
  const int64_t kind = random.below(8);
  o.kind = kind < 5 ? RFN_ATTENTION_LSH : kind < 7 ? RFN_ATTENTION_LOCAL : RFN_ATTENTION_FULL;
  const bool lsh = o.kind == RFN_ATTENTION_LSH;
  c.length = 1 + (random.below(16) == 0 ? random.below(128) : random.below(32));
  c.batch = 1 + random.below(4) / 3;
  c.heads = 1 + random.below(4) / 3;
  o.shared_qk = lsh ? 1 : flag();
  o.causal = flag();
  o.logit_scale = 1e-30f;  // all scores alike
  o.key_norm = static_cast<int32_t>(random.below(3));
  if (random.below(4) == 0) o.dropout = 0.25f;
  if (o.kind != RFN_ATTENTION_FULL) {
    o.chunk_length = 1 + (random.below(8) == 0 ? random.below(200) : random.below(12));
    o.chunks_before = static_cast<int32_t>(random.below(4));
    o.chunks_after = static_cast<int32_t>(random.below(3));
    o.wrap = flag();
    o.repeat_chunks = flag();
    if (random.below(4) == 0) o.padded_length = round_up(c.length, o.chunk_length) + random.below(4) * o.chunk_length;
  }
  if (lsh) {
    o.window = static_cast<int32_t>(random.below(3));
    if (o.window == RFN_WINDOW_STRICT) {
      o.causal = 1;
      o.chunks_after = 0;
    }
    o.duplicates = flag();
    o.rounds = 1 + static_cast<int32_t>(random.below(3));
    o.factor_count = 1 + flag();
    for (int32_t f = 0; f < o.factor_count; ++f) o.factors[f] = 2 + 2 * static_cast<int32_t>(random.below(3));
    o.pad_bucket = flag();
  }
  if (random.below(2) == 0) {
    c.mask.resize(static_cast<size_t>(c.batch * c.length));
    for (uint8_t& real : c.mask) real = random.below(4) != 0;
  }
  return c;
}

// A key that a query meets, as often as it is met.
struct Meeting {
  int64_t position;
  int32_t rounds_seen;  // 1 without duplicate correction
  double multiplier;    // of dropout
};

// By the scalar rule, for every (example, head, query).
std::vector<std::vector<Meeting>> meetings(const Case& c, const std::vector<int32_t>& buckets,
                                           const std::vector<int32_t>& sorted) {
  const AttentionWindow<> window = attention_window(c.options, c.length);
  const Philox random = philox(77, 5, 3, RFN_SITE_ATTENTION_PROBABILITIES);
  std::vector<std::vector<Meeting>> all;
  for (int64_t head = 0; head < c.batch * c.heads; ++head) {
    const int32_t* const bucket = window.lsh ? buckets.data() + head * window.rounds * c.length : nullptr;
    const int32_t* const order = window.lsh ? sorted.data() + head * window.rounds * window.slots() : nullptr;
    const auto position_at = [&](int64_t round, int64_t slot) {
      return order == nullptr ? slot : int64_t{order[round * window.slots() + slot]};
    };
    std::vector<int32_t> slot_of(static_cast<size_t>(window.rounds * c.length));
    for (int64_t round = 0; round < window.rounds; ++round) {
      for (int64_t slot = 0; slot < window.slots(); ++slot) {
        const int64_t position = position_at(round, slot);
        if (position < c.length) slot_of[static_cast<size_t>(round * c.length + position)] = static_cast<int32_t>(slot);
      }
    }
    const auto token = [&](int64_t position, int64_t slot, int64_t chunk, int64_t round, bool own_round) {
      const bool real = position < c.length && (c.mask.empty() || c.mask[head / c.heads * c.length + position] != 0);
      WindowToken<> t = {real ? position : -1, slot, 0, chunk};
      if (window.same_bucket && real) t.bucket = own_round ? bucket[round * c.length + position] : kOtherRound;
      return t;
    };
    for (int64_t position = 0; position < c.length; ++position) {
      std::vector<Meeting>& list = all.emplace_back();
      for (int64_t round = 0; round < window.rounds; ++round) {
        const int64_t slot = slot_of[static_cast<size_t>(round * c.length + position)], chunk = slot / window.chunk;
        const WindowToken<> query = token(position, slot, chunk, round, true);
        const uint64_t row = window.dropout_row(head, round, slot, position);
        for (int64_t offset = -window.before; offset <= window.after; ++offset) {
          const WindowPlace<> place = window.place(round, chunk + offset);
          if (place.round < 0) continue;
          EXPECT_EQ(window.reaches(offset),
                    offset >= window.first_offset(chunk) && offset <= window.last_offset(chunk));
          for (int64_t x = 0; x < window.chunk; ++x) {
            const int64_t at = position_at(place.round, place.chunk * window.chunk + x);
            const WindowToken<> key =
                token(at, (chunk + offset) * window.chunk + x, chunk + offset, round, place.round == round);
            if (!window.sees(query, key)) continue;
            Meeting m = {at, 1, 1};
            if (window.log_counts) m.rounds_seen = window.rounds_seen(slot_of.data(), bucket, position, at);
            if (c.options.dropout > 0) {
              m.multiplier = dropout_multiplier(philox_word(random, row + window.dropout_column(query, key)),
                                                dropout_threshold(c.options.dropout), 1 / (1 - c.options.dropout));
            }
            list.push_back(m);
          }
        }
      }
    }
  }
  return all;
}

// Slots of every row in the order of std::stable_sort, imagined padding behind them.
std::vector<int32_t> sorted_by(const Case& c, const std::vector<int32_t>& buckets) {
  const int64_t slots = attention_window(c.options, c.length).slots();
  std::vector<int32_t> all;
  for (size_t row = 0; row < buckets.size(); row += static_cast<size_t>(c.length)) {
    std::vector<int32_t> order(static_cast<size_t>(slots));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.begin() + c.length,
                     [&](int32_t x, int32_t y) { return buckets[row + x] < buckets[row + y]; });
    all.insert(all.end(), order.begin(), order.end());
  }
  return all;
}

TEST(AttentionWindowRule, RandomOptions_SeesWhatTheReferenceLists) {
  int64_t seen = 0, corrected = 0;
  for (int i = 0; i < kCases; ++i) {
    Random random(kSeed + i);
    const Case c = random_case(random);
    SCOPED_TRACE("seed " + std::to_string(kSeed + i) + ": " + text(c));
    ReferenceAttention reference;
    reference.options = c.options;
    reference.batch = c.batch;
    reference.length = c.length;
    reference.heads = c.heads;
    reference.mask = c.mask;
    reference.seed = 77;
    reference.step = 5;
    reference.layer = 3;
    if (reference.lsh()) {
      const int32_t limit = static_cast<int32_t>(bucket_count(c.options)) + c.options.pad_bucket;
      reference.buckets = random.integers(c.batch * c.heads * c.options.rounds * c.length, limit);
      reference.sort();
      ASSERT_EQ(reference.sorted, sorted_by(c, reference.buckets));
    }
    const auto by_rule = meetings(c, reference.buckets, reference.sorted);
    using Row = std::vector<std::tuple<int64_t, double, double>>;
    for (int64_t query = 0; query < static_cast<int64_t>(by_rule.size()); ++query) {
      const int64_t head = query / c.length;
      Row expected, got;
      for (const auto& key :
           reference.keys_of(head / c.heads, head % c.heads, query % c.length, 0, reference.rounds())) {
        expected.emplace_back(key.position, std::round(std::exp(key.log_count)), key.multiplier);
      }
      for (const Meeting& m : by_rule[static_cast<size_t>(query)]) {
        got.emplace_back(m.position, m.rounds_seen, m.multiplier);
        corrected += m.rounds_seen > 1 ? 1 : 0;
      }
      std::sort(expected.begin(), expected.end());
      std::sort(got.begin(), got.end());
      ASSERT_EQ(got, expected) << "head " << head << ", query " << query % c.length;
      seen += static_cast<int64_t>(got.size());
    }
  }
  EXPECT_GT(seen, 100 * kCases);
  EXPECT_GT(corrected, kCases);
}

// All scores are alike and values are unit vectors, so that the output of a query is the share that each key has of
// what it sees, and the gradient of a value with respect to unit vectors the share that the key has with each query.
// The cases are in parts that run beside each other.
constexpr int kParts = 10;
class AttentionWindowOp : public OpTest, public testing::WithParamInterface<int> {};

TEST_P(AttentionWindowOp, RandomOptions_DeviceSeesWhatTheRuleSays) {
  for (int i = GetParam(); i < kCases; i += kParts) {
    Random random(kSeed + i);
    const Case c = random_case(random);
    SCOPED_TRACE("seed " + std::to_string(kSeed + i) + ": " + text(c));
    const rfn_attention_options& o = c.options;
    const int64_t d = c.length <= 32 ? 32 : 128, rows = c.batch * c.length * c.heads;
    const std::vector<int64_t> sizes = {c.batch, c.length, c.heads, d};
    std::vector<float> unit(static_cast<size_t>(rows * d));
    for (int64_t row = 0; row < rows; ++row) unit[static_cast<size_t>(row * d + row / c.heads % c.length)] = 1;
    const Tensor<float> q(sizes, random.floats(rows * d)), k(sizes, random.floats(rows * d)), v(sizes, unit),
        out(sizes), log_sum_exp({c.batch, c.heads, c.length}), grad_out(sizes, unit), grad_q(sizes), grad_k(sizes),
        grad_v(sizes);
    const Tensor<uint8_t> mask({c.batch, c.length},
                               c.mask.empty() ? std::vector<uint8_t>(c.batch * c.length, 1) : c.mask);
    const int64_t rounds = std::max(1, o.rounds), columns = std::max<int64_t>(1, rotation_columns(o));
    const Tensor<float> rotations({1, d, rounds, columns}, random.floats(d * rounds * columns));
    const Tensor<int32_t> buckets({c.batch, c.heads, rounds, c.length});
    auto op = make_op<rfn_attention>();
    op.options = o;
    op.seed = 77;
    op.step = 5;
    op.layer = 3;
    op.q = q;
    op.v = v;
    op.out = out;
    op.log_sum_exp = log_sum_exp;
    op.grad_out = grad_out;
    op.grad_q = grad_q;
    op.grad_v = grad_v;
    if (o.shared_qk == 0) {
      op.k = k;
      op.grad_k = grad_k;
    }
    if (!c.mask.empty()) op.mask = mask;
    if (o.kind == RFN_ATTENTION_LSH) {
      op.rotations = rotations;
      op.buckets = buckets;
    }
    ASSERT_TRUE(Ok(forward(stream, op)));
    ASSERT_TRUE(Ok(backward(stream, op)));

    const bool lsh = o.kind == RFN_ATTENTION_LSH;
    const std::vector<int32_t> values = lsh ? buckets.values() : std::vector<int32_t>();
    const auto by_rule = meetings(c, values, sorted_by(c, values));
    const std::vector<float> share = out.values(), back = grad_v.values();
    for (int64_t query = 0; query < rows; ++query) {  // [B,H,T]
      const int64_t head = query / c.length, position = query % c.length;
      const auto row = [&](int64_t t) { return ((head / c.heads * c.length + t) * c.heads + head % c.heads) * d; };
      std::vector<double> expected(static_cast<size_t>(c.length));
      double total = 0;
      for (const Meeting& m : by_rule[static_cast<size_t>(query)]) {
        const double weight = 1 / static_cast<double>(countable(m.rounds_seen));
        expected[static_cast<size_t>(m.position)] += weight * m.multiplier;
        total += weight;
      }
      const bool real = c.mask.empty() || c.mask[static_cast<size_t>(head / c.heads * c.length + position)] != 0;
      if (total == 0 && real && o.shared_qk != 0) expected[static_cast<size_t>(position)] = total = 1;  // itself
      for (int64_t key = 0; key < c.length; ++key) {
        const double e = total == 0 ? 0 : expected[static_cast<size_t>(key)] / total;
        ASSERT_NEAR(share[static_cast<size_t>(row(position) + key)], e, 2e-6)
            << "head " << head << ", query " << position << ", key " << key;
        ASSERT_NEAR(back[static_cast<size_t>(row(key) + position)], e, 2e-6)
            << "backward, head " << head << ", query " << position << ", key " << key;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Part, AttentionWindowOp, testing::Range(0, kParts));

// The same for the kernels that CUDA has for bf16, shared projections and chunks of 64 with one before. Values have
// fewer elements than there are keys, so a pass shows some keys at a time. RFN_TEST_CASES: how many, 100 if unset.
Case random_chunk_case(Random& random) {
  Case c;
  rfn_attention_options& o = c.options;
  o.struct_size = sizeof(o);
  o.kind = RFN_ATTENTION_LSH;
  o.shared_qk = 1;
  o.causal = static_cast<int32_t>(random.below(2));
  o.window = static_cast<int32_t>(random.below(3));
  if (o.window == RFN_WINDOW_STRICT) o.causal = 1;
  o.wrap = static_cast<int32_t>(random.below(2));
  o.repeat_chunks = static_cast<int32_t>(random.below(2));
  o.logit_scale = 1e-30f;  // all scores alike
  o.key_norm = static_cast<int32_t>(random.below(3));
  o.chunk_length = 64;
  o.chunks_before = 1;
  o.rounds = 1 + static_cast<int32_t>(random.below(3));
  o.factor_count = 1;
  o.factors[0] = 2 + 2 * static_cast<int32_t>(random.below(4));
  o.pad_bucket = static_cast<int32_t>(random.below(2));
  c.length = 1 + random.below(200);
  c.batch = 1 + random.below(4) / 3;
  if (random.below(4) == 0) o.padded_length = round_up(c.length, 64) + random.below(3) * 64;
  if (random.below(2) == 0) {
    c.mask.resize(static_cast<size_t>(c.batch * c.length));
    for (uint8_t& real : c.mask) real = random.below(4) != 0;
  }
  return c;
}

class AttentionWindowChunks : public OpTest {};

TEST_F(AttentionWindowChunks, RandomOptions_DeviceSeesWhatTheRuleSays) {
  const char* const wanted = std::getenv("RFN_TEST_CASES");
  const int cases = wanted == nullptr ? 100 : std::atoi(wanted);
  const std::vector<int32_t> have = precisions();
  const bool bf16 = std::find(have.begin(), have.end(), RFN_PRECISION_BF16) != have.end();
  ASSERT_TRUE(!bf16 || Ok(rfn_context_set_precision(context, RFN_PRECISION_BF16)));
  for (int i = 0; i < cases; ++i) {
    Random random(2 * kSeed + i);
    const Case c = random_chunk_case(random);
    SCOPED_TRACE("seed " + std::to_string(2 * kSeed + i) + ": " + text(c));
    const int64_t d = random.below(2) == 0 ? 30 : 64, rows = c.batch * c.length, rounds = c.options.rounds;
    const std::vector<int64_t> sizes = {c.batch, c.length, 1, d};
    const Tensor<float> q(sizes, random.floats(rows * d)), out(sizes), log_sum_exp({c.batch, 1, c.length}),
        grad_q(sizes), grad_v(sizes);
    const Tensor<uint8_t> mask({c.batch, c.length}, c.mask.empty() ? std::vector<uint8_t>(rows, 1) : c.mask);
    const int64_t columns = rotation_columns(c.options);
    const Tensor<float> rotations({1, d, rounds, columns}, random.floats(d * rounds * columns));
    const Tensor<int32_t> buckets({c.batch, 1, rounds, c.length});
    auto op = make_op<rfn_attention>();
    op.options = c.options;
    op.q = q;
    op.out = out;
    op.log_sum_exp = log_sum_exp;
    op.grad_q = grad_q;
    op.grad_v = grad_v;
    if (!c.mask.empty()) op.mask = mask;
    op.rotations = rotations;
    op.buckets = buckets;
    std::vector<std::vector<Meeting>> by_rule;
    for (int64_t first = 0; first < c.length; first += d) {
      std::vector<float> unit(static_cast<size_t>(rows * d));
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = row % c.length - first;
        if (at >= 0 && at < d) unit[static_cast<size_t>(row * d + at)] = 1;
      }
      const Tensor<float> v(sizes, unit), grad_out(sizes, unit);
      op.v = v;
      op.grad_out = grad_out;
      ASSERT_TRUE(Ok(forward(stream, op)));
      ASSERT_TRUE(Ok(backward(stream, op)));
      if (first == 0) by_rule = meetings(c, buckets.values(), sorted_by(c, buckets.values()));
      const std::vector<float> share = out.values(), back = grad_v.values();
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t example = row / c.length, position = row % c.length;
        std::vector<double> expected(static_cast<size_t>(c.length));
        double total = 0;
        for (const Meeting& m : by_rule[static_cast<size_t>(row)]) {
          expected[static_cast<size_t>(m.position)] += 1;
          total += 1;
        }
        const bool real = c.mask.empty() || c.mask[static_cast<size_t>(row)] != 0;
        if (total == 0 && real) expected[static_cast<size_t>(position)] = total = 1;  // itself
        for (int64_t key = first; key < std::min(first + d, c.length); ++key) {
          const double e = total == 0 ? 0 : expected[static_cast<size_t>(key)] / total;
          ASSERT_NEAR(share[static_cast<size_t>(row * d + key - first)], e, 2e-6) << "query " << row << ", key " << key;
        }
        // The gradient of this row's value counts the queries of the pass that see it, weights rounded to bf16.
        for (int64_t query = first; query < std::min(first + d, c.length); ++query) {
          const std::vector<Meeting>& seen = by_rule[static_cast<size_t>(example * c.length + query)];
          const auto times =
              std::count_if(seen.begin(), seen.end(), [&](const Meeting& m) { return m.position == position; });
          const bool query_real = c.mask.empty() || c.mask[static_cast<size_t>(example * c.length + query)] != 0;
          const double e = !seen.empty() ? static_cast<double>(times) / static_cast<double>(seen.size())
                           : query_real && query == position ? 1
                                                             : 0;
          ASSERT_NEAR(back[static_cast<size_t>(row * d + query - first)], e, e * (bf16 ? 8e-3 : 2e-6))
              << "backward, query " << query << ", key " << row;
        }
      }
    }
  }
}

// Where a token sees what it would see without the tokens after it, it sees the positions from first_seen to end_seen.
TEST(AttentionWindowRule, PrefixCausalLocal_SeesTheSameWithoutWhatFollows) {
  int prefix_causal = 0, other = 0;
  for (int i = 0; i < kCases; ++i) {
    Random random(kSeed + i);
    Case c = random_case(random);
    if (c.options.kind == RFN_ATTENTION_LSH || c.options.dropout > 0) continue;
    c.mask.clear();
    c.batch = c.heads = 1;
    c.options.padded_length = 0;
    const AttentionWindow<> window = attention_window(c.options, c.length);
    // A ring of one chunk may be met twice: then every position counts twice, which changes no weight.
    const auto positions = [&](const std::vector<Meeting>& list) {
      std::vector<int64_t> all;
      for (const Meeting& m : list) all.push_back(m.position);
      std::sort(all.begin(), all.end());
      for (const int64_t position : all) {
        EXPECT_TRUE(!window.prefix_causal() ||
                    std::count(all.begin(), all.end(), position) == std::count(all.begin(), all.end(), all.front()));
      }
      all.erase(std::unique(all.begin(), all.end()), all.end());
      return all;
    };
    const auto whole = meetings(c, {}, {});
    bool same = true;
    for (int64_t position = 0; position < c.length; ++position) {
      Case prefix = c;
      prefix.length = position + 1;
      const std::vector<int64_t> seen = positions(whole[static_cast<size_t>(position)]);
      same = same && seen == positions(meetings(prefix, {}, {}).back());
      if (!window.prefix_causal()) continue;
      std::vector<int64_t> expected;
      for (int64_t p = window.first_seen(position); p < window.end_seen(position); ++p) expected.push_back(p);
      ASSERT_EQ(seen, expected) << "seed " << kSeed + i << ": " << text(c) << ", position " << position;
    }
    ASSERT_TRUE(same || !window.prefix_causal()) << "seed " << kSeed + i << ": " << text(c);
    ++(window.prefix_causal() ? prefix_causal : other);
  }
  EXPECT_GT(prefix_causal, 50);
  EXPECT_GT(other, 50);
}

// ---- rfn_attention_describe ----

rfn_attention_options chunked(int32_t kind) {
  rfn_attention_options o = {};
  o.struct_size = sizeof(o);
  o.kind = kind;
  o.causal = 1;
  o.chunk_length = 8;
  o.chunks_before = 1;
  if (kind != RFN_ATTENTION_LSH) return o;
  o.shared_qk = 1;
  o.rounds = 3;
  o.factor_count = 2;
  o.factors[0] = 4;
  o.factors[1] = 6;
  return o;
}

rfn_attention_geometry describe(const rfn_attention_options& options, int64_t length) {
  rfn_attention_geometry geometry = {};
  geometry.struct_size = sizeof(geometry);
  EXPECT_TRUE(Ok(rfn_attention_describe(&options, length, &geometry)));
  return geometry;
}

TEST(AttentionWindowRule, DescribeLsh_SizesAndCost) {
  const rfn_attention_geometry g = describe(chunked(RFN_ATTENTION_LSH), 10);
  EXPECT_EQ(g.prefix_causal, 0);
  EXPECT_EQ(g.slots, 16);
  EXPECT_EQ(g.keys, 16);
  EXPECT_EQ(g.buckets, 24);
  EXPECT_EQ(g.rotation_columns, 5);
  EXPECT_EQ(g.bucket_ring, 8);
  EXPECT_EQ(g.pairs, 3 * 10 * 16);
  EXPECT_EQ(g.multiply_adds, 2 * 3 * 10 * 16 + 3 * 10 * 5);
}

TEST(AttentionWindowRule, DescribeStrictLsh_SeesOneSpan) {
  rfn_attention_options options = chunked(RFN_ATTENTION_LSH);
  options.window = RFN_WINDOW_STRICT;
  options.padded_length = 24;
  const rfn_attention_geometry g = describe(options, 10);
  EXPECT_EQ(g.prefix_causal, 1);
  EXPECT_EQ(g.slots, 24);
  EXPECT_EQ(g.keys, 8);
  EXPECT_EQ(g.pairs, 3 * 10 * 8);
}

TEST(AttentionWindowRule, DescribeOtherKinds_HaveNoBuckets) {
  const rfn_attention_geometry local = describe(chunked(RFN_ATTENTION_LOCAL), 10);
  EXPECT_EQ(local.pairs, 160);
  EXPECT_EQ(local.multiply_adds, 320);
  EXPECT_EQ(local.buckets + local.rotation_columns + local.bucket_ring, 0);
  rfn_attention_options options = {};
  options.struct_size = sizeof(options);
  options.kind = RFN_ATTENTION_FULL;
  EXPECT_EQ(describe(options, 10).pairs, 100);
  options.causal = 1;
  EXPECT_EQ(describe(options, 10).pairs, 55);
  EXPECT_EQ(describe(options, 10).prefix_causal, 1);
}

TEST(AttentionWindowRule, DescribeWrongArguments_RefusedAndNothingWritten) {
  const rfn_attention_options options = chunked(RFN_ATTENTION_LSH);
  rfn_attention_geometry geometry = {};
  EXPECT_TRUE(
      Fails(rfn_attention_describe(&options, 10, &geometry), RFN_INVALID_ARGUMENT, {"geometry", "struct_size"}));
  geometry.struct_size = sizeof(geometry);
  geometry.slots = -7;
  EXPECT_TRUE(Fails(rfn_attention_describe(nullptr, 10, &geometry), RFN_INVALID_ARGUMENT, {"options", "NULL"}));
  EXPECT_TRUE(Fails(rfn_attention_describe(&options, 10, nullptr), RFN_INVALID_ARGUMENT, {"geometry", "NULL"}));
  EXPECT_TRUE(Fails(rfn_attention_describe(&options, 0, &geometry), RFN_INVALID_ARGUMENT, {"length"}));
  EXPECT_TRUE(Fails(rfn_attention_describe(&options, INT64_MAX, &geometry), RFN_INVALID_ARGUMENT, {"length"}));
  rfn_attention_options wrong = options;
  wrong.factors[1] = 5;
  EXPECT_TRUE(Fails(rfn_attention_describe(&wrong, 10, &geometry), RFN_INVALID_ARGUMENT, {"factors"}));
  // Without its right size nothing behind it is read: AddressSanitizer would see it, and the sentence would be that of
  // the check that reads the rest.
  const GuardedMemory small(sizeof(uint32_t), 0);
  const uint32_t size = sizeof(uint32_t);
  std::memcpy(small.data(), &size, sizeof(size));
  EXPECT_TRUE(Fails(rfn_attention_describe(static_cast<const rfn_attention_options*>(small.data()), 10, &geometry),
                    RFN_INVALID_ARGUMENT, {"rfn_attention_describe: options: struct_size", "got 4"}));
  EXPECT_EQ(geometry.slots, -7);
}

}  // namespace
}  // namespace rfn::test
