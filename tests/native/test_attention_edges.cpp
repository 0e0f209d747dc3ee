// Attention where its arithmetic has an edge: windows longer than their ring, ties of a rotation, dropout elements that
// need more than 32 bits, gradients whose windows are longer than a work item, lengths one past a tile.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "harness.h"
#include "reference_attention.h"

namespace rfn::test {
namespace {

constexpr double kForwardLimit = 1e-5;
constexpr double kGradientLimit = 2e-5;

rfn_attention_options options_of(int32_t kind, int64_t chunk = 0) {
  rfn_attention_options o = {};
  o.struct_size = sizeof(o);
  o.kind = kind;
  o.chunk_length = chunk;
  if (kind == RFN_ATTENTION_FULL) return o;
  o.wrap = 1;
  o.chunks_before = 1;
  if (kind == RFN_ATTENTION_LOCAL) return o;
  o.shared_qk = 1;
  o.rounds = 1;
  o.factor_count = 1;
  o.factors[0] = 4;
  o.key_norm = RFN_KEY_NORM_RMS;
  return o;
}

int64_t columns_of(const rfn_attention_options& o) {
  int64_t columns = 0;
  for (int32_t i = 0; i < o.factor_count; ++i) columns += o.factors[i] / 2;
  return columns;
}

std::vector<double> widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// Random inputs of a call, on the device and for the judge; hashed inputs are drawn until float32 cannot disagree about
// a bucket.
class Call {
 public:
  Call(const rfn_attention_options& options, int64_t length, int64_t heads, int64_t head_size, uint64_t seed,
       const std::vector<uint8_t>& mask = {})
      : length_(length), heads_(heads), head_size_(head_size), mask_(mask) {
    Random random(seed);
    const int64_t n = length * heads * head_size;
    reference.options = options;
    reference.length = length;
    reference.heads = heads;
    reference.head_size = head_size;
    reference.seed = 77;
    reference.step = 5;
    reference.layer = 3;
    reference.mask = mask;
    v_ = random.floats(n);
    grad_out_ = random.floats(n);
    if (options.shared_qk == 0) k_ = random.floats(n, -2, 2);
    for (int attempt = 0;; ++attempt) {
      q_ = random.floats(n, -2, 2);
      rotations_ = random.floats(std::max<int64_t>(1, head_size * options.rounds * columns_of(options)));
      reference.q = widen(q_);
      reference.k = widen(k_);
      reference.v = widen(v_);
      reference.rotations = widen(rotations_);
      if (!reference.lsh()) break;
      reference.smallest_margin = std::numeric_limits<double>::infinity();
      reference.hash();
      if (reference.smallest_margin > 2e-6) break;
      if (attempt == 200) throw std::runtime_error("no inputs without a near tie");
    }
    if (reference.lsh()) reference.sort();
  }

  // Every key has 1 in its first channel, and queries have `scores` there: what a query has of all its keys, beside
  // what the other channels add. Not of hashed attention.
  void set_scores(const std::function<float(int64_t position)>& scores) {
    for (int64_t i = 0; i < length_; ++i) {
      for (int64_t head = 0; head < heads_; ++head) {
        const int64_t first = (i * heads_ + head) * head_size_;
        k_[first] = 1;
        q_[first] = scores(i) * std::sqrt(static_cast<float>(head_size_));
      }
    }
    reference.q = widen(q_);
    reference.k = widen(k_);
  }

  ReferenceAttention reference;

  struct Results {
    std::vector<float> out, grad_q, grad_k, grad_v;
  };

  Results run(const Stream& stream, bool differentiate) const {
    const std::vector<int64_t> sizes = {1, length_, heads_, head_size_};
    const Tensor<float> q(sizes, q_), k(sizes, k_.empty() ? q_ : k_), v(sizes, v_), grad_out(sizes, grad_out_),
        out(sizes), grad_q(sizes), grad_k(sizes), grad_v(sizes), log_sum_exp({1, heads_, length_});
    const rfn_attention_options& o = reference.options;
    const Tensor<float> rotations(reference.lsh() ? std::vector<int64_t>{1, head_size_, o.rounds, columns_of(o)}
                                                  : std::vector<int64_t>{static_cast<int64_t>(rotations_.size())},
                                  rotations_);
    const Tensor<uint8_t> mask({1, length_}, mask_.empty() ? std::vector<uint8_t>(length_, 1) : mask_);
    auto op = make_op<rfn_attention>();
    op.options = o;
    op.seed = reference.seed;
    op.step = reference.step;
    op.layer = reference.layer;
    op.q = q;
    op.v = v;
    op.out = out;
    op.log_sum_exp = log_sum_exp;
    if (o.shared_qk == 0) op.k = k;
    if (reference.lsh()) op.rotations = rotations;
    if (!mask_.empty()) op.mask = mask;
    EXPECT_TRUE(Ok(forward(stream, op)));
    if (!differentiate) return {out.values(), {}, {}, {}};
    op.grad_out = grad_out;
    op.grad_q = grad_q;
    op.grad_v = grad_v;
    if (o.shared_qk == 0) op.grad_k = grad_k;
    EXPECT_TRUE(Ok(backward(stream, op)));
    return {out.values(), grad_q.values(), o.shared_qk == 0 ? grad_k.values() : std::vector<float>{}, grad_v.values()};
  }

  void expect_close(const Stream& stream) {
    const Results results = run(stream, true);
    reference.backward(widen(grad_out_));
    EXPECT_TRUE(Close(widen(results.out), reference.out, kForwardLimit));
    EXPECT_TRUE(CloseOrSmall(results.grad_q, reference.grad_q));
    EXPECT_TRUE(Close(widen(results.grad_v), reference.grad_v, kGradientLimit));
    if (reference.options.shared_qk == 0) {
      EXPECT_TRUE(CloseOrSmall(results.grad_k, reference.grad_k));
    }
  }

 private:
  // Where each query has one key, its weight is 1 whatever the scores are, and the judge's gradients are all 0.
  static testing::AssertionResult CloseOrSmall(const std::vector<float>& found, const std::vector<double>& expected) {
    if (std::any_of(expected.begin(), expected.end(), [](double x) { return x != 0; }))
      return Close(widen(found), expected, kGradientLimit);
    for (const float x : found) {
      if (!(std::fabs(x) <= 1e-6f)) return testing::AssertionFailure() << "expected 0, got " << x;
    }
    return testing::AssertionSuccess();
  }

  int64_t length_, heads_, head_size_;
  std::vector<uint8_t> mask_;
  std::vector<float> q_, k_, v_, rotations_, grad_out_;
};

class AttentionEdges : public OpTest {};

// Chunks before and after that reach around the ring once, exactly once, and several times.
TEST_F(AttentionEdges, WindowsLongerThanTheirRing_CountEachRoundOnce) {
  uint64_t seed = 400;
  for (const int32_t rounds : {1, 2, 3}) {
    for (const int64_t chunks : {1, 2, 3}) {
      for (const auto& [before, after] : {std::pair(1, 0), {0, 2}, {1, 1}, {3, 1}, {2, 4}, {9, 9}}) {
        for (const int32_t repeat : {0, 1}) {
          rfn_attention_options o = options_of(RFN_ATTENTION_LSH, 6);
          o.rounds = rounds;
          o.chunks_before = before;
          o.chunks_after = after;
          o.repeat_chunks = repeat;
          o.duplicates = RFN_DUPLICATES_LOG_COUNT;
          SCOPED_TRACE(std::to_string(rounds) + " rounds of " + std::to_string(chunks) + " chunks, " +
                       std::to_string(before) + " before, " + std::to_string(after) + " after, repeat " +
                       std::to_string(repeat));
          Call(o, 6 * chunks, 1, 8, ++seed).expect_close(stream);
        }
      }
    }
  }
}

// The same windows without a ring, which ends at the round.
TEST_F(AttentionEdges, WindowsLongerThanTheirRound_EndThere) {
  uint64_t seed = 600;
  for (const int32_t kind : {RFN_ATTENTION_LSH, RFN_ATTENTION_LOCAL}) {
    for (const auto& [before, after] : {std::pair(3, 1), {0, 5}, {9, 9}}) {
      rfn_attention_options o = options_of(kind, 6);
      o.wrap = 0;
      o.chunks_before = before;
      o.chunks_after = after;
      if (kind == RFN_ATTENTION_LSH) {
        o.rounds = 2;
        o.duplicates = RFN_DUPLICATES_LOG_COUNT;
      }
      Call(o, 18, 1, 8, ++seed).expect_close(stream);
    }
  }
}

// The last key of a tile, and the first of the next, are the query's own or one before it.
TEST_F(AttentionEdges, CausalOwnKeys_AtEveryEndOfATile) {
  uint64_t seed = 700;
  for (const int64_t length : {1, 2, 63, 64, 65, 127, 128, 129, 193}) {
    for (const int32_t shared : {0, 1}) {
      for (const int32_t kind : {RFN_ATTENTION_FULL, RFN_ATTENTION_LOCAL}) {
        rfn_attention_options o = options_of(kind, kind == RFN_ATTENTION_LOCAL ? 64 : 0);
        o.causal = 1;
        o.shared_qk = shared;
        SCOPED_TRACE("length " + std::to_string(length) + ", shared " + std::to_string(shared) + ", kind " +
                     std::to_string(kind));
        Call(o, length, 2, 8, ++seed).expect_close(stream);
      }
    }
  }
}

// The exponentials of a query are taken from its own largest score: from a neighbour's, which is 110 above, float32 has
// nothing left of them. Neighbours in vectors of 4, 8 and 16 queries differ.
TEST_F(AttentionEdges, NeighboursWithFarHigherScores_EachHasItsOwnMaximum) {
  for (const int32_t kind : {RFN_ATTENTION_FULL, RFN_ATTENTION_LOCAL}) {
    for (const int64_t length : {64, 200}) {
      SCOPED_TRACE("kind " + std::to_string(kind) + ", length " + std::to_string(length));
      rfn_attention_options o = options_of(kind, kind == RFN_ATTENTION_LOCAL ? 40 : 0);
      o.chunks_before = kind == RFN_ATTENTION_LOCAL ? 2 : 0;
      Call call(o, length, 2, 8, 41);
      call.set_scores([](int64_t i) { return ((i / 4) ^ (i / 8) ^ (i / 16)) % 2 == 0 ? -55.0f : 55.0f; });
      call.expect_close(stream);
    }
  }
}

// The counter of dropout is (pair, slot, place in the window): the last heads are past 2^32.
TEST_F(AttentionEdges, DropoutElementsPast32Bits_AreThoseOfTheCounter) {
  for (const int32_t kind : {RFN_ATTENTION_LOCAL, RFN_ATTENTION_LSH}) {
    rfn_attention_options o = options_of(kind, 1024);
    o.wrap = 0;
    o.chunks_before = 127;
    o.padded_length = 8192;
    o.dropout = 0.4f;
    const int64_t rounds = kind == RFN_ATTENTION_LSH ? 2 : 1, heads = 1 + 4 / rounds;
    if (kind == RFN_ATTENTION_LSH) o.rounds = 2;
    ASSERT_GE((heads - 1) * rounds * o.padded_length * o.chunk_length * 128, int64_t{1} << 32);
    Call(o, 12, heads, 4, 800 + static_cast<uint64_t>(kind)).expect_close(stream);
  }
}

// The same for full attention, where the counter is (pair, query, key): only the last tokens are there.
TEST_F(AttentionEdges, DropoutElementsPast32Bits_OfFullAttention) {
  if (!on_cpu()) GTEST_SKIP() << "a device would walk 2^32 pairs of tokens";
  constexpr int64_t kLength = 65600;
  rfn_attention_options o = options_of(RFN_ATTENTION_FULL);
  o.dropout = 0.4f;
  std::vector<uint8_t> mask(kLength, 0);
  std::fill(mask.end() - 20, mask.end(), 1);
  Call call(o, kLength, 1, 4, 810, mask);
  const std::vector<float> out = call.run(stream, false).out;
  // Alone, the last tokens have the same result but for their elements: the judge takes those of the long sequence.
  const Philox random =
      philox(call.reference.seed, call.reference.step, call.reference.layer, RFN_SITE_ATTENTION_PROBABILITIES);
  std::vector<double> expected;
  std::vector<float> found;
  for (int64_t query = kLength - 20; query < kLength; ++query) {
    std::vector<double> weights;
    double sum = 0;
    for (int64_t key = kLength - 20; key < kLength; ++key) {
      double score = 0;
      for (int64_t d = 0; d < 4; ++d) score += call.reference.q[query * 4 + d] * call.reference.k[key * 4 + d];
      sum += weights.emplace_back(std::exp(score / 2));
    }
    for (int64_t d = 0; d < 4; ++d) {
      double value = 0;
      for (int64_t key = kLength - 20; key < kLength; ++key) {
        value += weights[key - kLength + 20] / sum * call.reference.v[key * 4 + d] *
                 dropout_multiplier(philox_word(random, static_cast<uint64_t>(query * kLength + key)),
                                    dropout_threshold(0.4f), 1 / 0.6f);
      }
      expected.push_back(value);
      found.push_back(out[query * 4 + d]);
    }
  }
  EXPECT_TRUE(Close(found, expected, kForwardLimit));
}

// Items of the backward pass write the rows of their windows: with longer windows than the usual item, two that run at
// a time must still never meet. Where they did, sums would come in another order, or get lost.
TEST_F(AttentionEdges, WindowsLongerThanAWorkItem_SameBitsForEverySchedule) {
  for (const int32_t kind : {RFN_ATTENTION_LSH, RFN_ATTENTION_LOCAL}) {
    rfn_attention_options o = options_of(kind, 4);
    o.chunks_before = 150;
    o.chunks_after = 50;
    Call call(o, on_cpu() ? 3600 : 900, 1, 4, 820 + static_cast<uint64_t>(kind));
    if (on_cpu()) {
      call.expect_close(stream);
    }
    Call::Results first;
    for (int repeat = 0; repeat < (on_cpu() ? 5 : 1); ++repeat) {
      for_each_schedule(
          [&](int32_t threads) {
            const Context other(threads);
            const Call::Results now = call.run(Stream(other), true);
            if (first.out.empty()) first = now;
            EXPECT_TRUE(SameBits(now.grad_q, first.grad_q)) << threads << " threads";
            EXPECT_TRUE(SameBits(now.grad_v, first.grad_v)) << threads << " threads";
            EXPECT_TRUE(SameBits(now.grad_k, first.grad_k)) << threads << " threads";
          },
          2);
    }
  }
}

// ---- ties of a rotation ----

// Buckets of every token and head when the head's rotated query is `values` (its columns, then their negatives,
// compete) times +1 for token 0, -1 for token 1 and 0 for token 2.
struct Tie {
  std::vector<int32_t> factors;
  std::vector<std::vector<float>> values;  // [heads][columns]
};

void expect_first_wins(const Stream& stream, const Tie& tie) {
  constexpr int64_t kHeadSize = 5, kTokens = 3;
  const int64_t heads = static_cast<int64_t>(tie.values.size()), columns = static_cast<int64_t>(tie.values[0].size());
  rfn_attention_options o = options_of(RFN_ATTENTION_LSH, 4);
  o.factor_count = static_cast<int32_t>(tie.factors.size());
  std::copy(tie.factors.begin(), tie.factors.end(), o.factors);
  // One coordinate of the query is not zero, so that products are exact on every backend and in every precision.
  std::vector<float> q(kTokens * heads * kHeadSize, 0.0f), rotations(heads * kHeadSize * columns, 7.0f);
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t t = 0; t < 2; ++t) q[(t * heads + h) * kHeadSize + 2] = t == 0 ? 1.0f : -1.0f;
    std::copy(tie.values[h].begin(), tie.values[h].end(), rotations.begin() + (h * kHeadSize + 2) * columns);
  }
  ReferenceAttention reference;
  reference.options = o;
  reference.length = kTokens;
  reference.heads = heads;
  reference.head_size = kHeadSize;
  reference.q = widen(q);
  reference.rotations = widen(rotations);
  reference.rotation_sets = heads;
  reference.hash();

  const Tensor<float> query({1, kTokens, heads, kHeadSize}, q), rotation({heads, kHeadSize, 1, columns}, rotations);
  const Tensor<int32_t> buckets({1, heads, 1, kTokens});
  auto op = make_op<rfn_attention>();
  op.options = o;
  op.q = query;
  op.rotations = rotation;
  op.buckets = buckets;
  ASSERT_TRUE(Ok(stage(stream, op, rfn_lsh_hash)));
  EXPECT_EQ(buckets.values(), reference.buckets);
  for (int64_t h = 0; h < heads; ++h) EXPECT_EQ(reference.buckets[h * kTokens + 2], 0) << "a query of zeros";
}

// The first of the largest wins, whichever two of the columns and their negatives they are, and whichever lanes have
// them.
TEST_F(AttentionEdges, TiesOfTheLargestRotation_TheFirstWins) {
  for (const int32_t factor : {2, 4, 6, 64, 66, 130, 300}) {
    SCOPED_TRACE("factor " + std::to_string(factor));
    const int64_t half = factor / 2;
    Random random(830);
    std::vector<std::pair<int64_t, int64_t>> pairs;
    for (int64_t i = 0; i < factor; ++i) {
      for (int64_t j = i + 1; j < factor; ++j) {
        if (j != i + half && (factor <= 6 || random.below(factor * factor / 2) < 150)) pairs.emplace_back(i, j);
      }
    }
    Tie tie{{factor}, {}};
    for (const auto& [i, j] : pairs) {
      std::vector<float> values(static_cast<size_t>(half), 0.25f);
      for (const int64_t index : {i, j}) values[index % half] = index < half ? 3.0f : -3.0f;
      tie.values.push_back(values);
    }
    if (tie.values.empty()) tie.values.push_back({3.0f});
    tie.values.emplace_back(half, 3.0f);  // all of one sign
    tie.values.emplace_back(half, -3.0f);
    tie.values.emplace_back(half, 0.0f);
    expect_first_wins(stream, tie);
  }
}

TEST_F(AttentionEdges, TiesWithinSeveralFactors_TheFirstWins) {
  Random random(840);
  Tie tie{{6, 10, 4}, {}};
  for (int head = 0; head < 100; ++head) {
    std::vector<float> values(10);
    for (float& value : values) value = static_cast<float>(random.below(5) - 2);  // -2 .. 2: many ties
    tie.values.push_back(values);
  }
  expect_first_wins(stream, tie);
}

}  // namespace
}  // namespace rfn::test
