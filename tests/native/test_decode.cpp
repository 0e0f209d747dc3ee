// Cached decoding against the whole block in float64, and against its forward pass.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpu/row_product.h"
#include "harness.h"
#include "reference_attention.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

constexpr double kLimit = 1e-5;

struct Case {
  std::string name;
  int64_t batch = 2, length = 61, width = 24, heads = 2, head_size = 8, hidden = 40;
  int32_t kind = RFN_ATTENTION_LSH, shared = 1, window = RFN_WINDOW_STRICT, duplicates = RFN_DUPLICATES_NONE,
          key_norm = RFN_KEY_NORM_RMS;
  int32_t wrap = 0, repeat_chunks = 0, rounds = 2, before = 1, after = 0;
  int64_t chunk = 8;
  std::vector<int32_t> factors = {4};
  float logit_scale = 0;
  int64_t rotation_sets = 0;  // 0: one for each head
  int32_t activation = RFN_ACTIVATION_RELU, residual = RFN_RESIDUAL_FLOAT, exponent = -16;
  bool output_bias = false;
  int64_t capacity = 0;  // rows of the cache, 0: the length
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

// Tokens that a test decodes where each costs launches of simulated threads.
int64_t few(int64_t tokens) { return on_cpu() ? tokens : tokens / 2; }

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](std::string name, auto change) {
    Case c;
    change(c);
    c.name = std::move(name);
    all.push_back(c);
  };
  const auto local = [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.shared = 0;
    c.key_norm = RFN_KEY_NORM_NONE;
  };
  const auto full = [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.shared = 0;
    c.key_norm = RFN_KEY_NORM_NONE;
  };
  add("Lsh", [](Case&) {});
  add("LshExact", [](Case& c) { c.residual = RFN_RESIDUAL_EXACT; });
  add("LshOneRound", [](Case& c) {
    c.rounds = 1;
    c.output_bias = true;
    c.activation = RFN_ACTIVATION_GELU_ERF;
  });
  add("LshDuplicates", [](Case& c) {
    c.rounds = 4;
    c.duplicates = RFN_DUPLICATES_LOG_COUNT;
    c.before = 2;
  });
  add("LshFactors", [](Case& c) {
    c.factors = {4, 6};
    c.rounds = 3;
    c.key_norm = RFN_KEY_NORM_L2;
    c.logit_scale = 1.5f;
  });
  add("LshNoNorm", [](Case& c) {
    c.key_norm = RFN_KEY_NORM_NONE;
    c.factors = {2};
    c.wrap = 1;
  });
  add("LshNoChunksBefore", [](Case& c) { c.before = 0; });
  add("LshOneRotation", [](Case& c) {
    c.rotation_sets = 1;
    c.length = 37;
    c.batch = 1;
  });
  add("LshRotationForEachExample", [](Case& c) {
    c.rotation_sets = 6;
    c.heads = 3;
  });
  add("LshOddSizes", [](Case& c) {
    c.width = 13;
    c.heads = 3;
    c.head_size = 5;
    c.hidden = 11;
    c.chunk = 3;
    c.length = 29;
  });
  add("LshWideHeads", [](Case& c) {
    c.width = 40;
    c.heads = 2;
    c.head_size = 70;
    c.hidden = 33;
    c.chunk = 16;
  });
  add("LshManyExamples", [](Case& c) {
    c.batch = 11;
    c.length = 21;
  });  // more rows than row_products takes
  add("LshEight", [](Case& c) {
    c.batch = 8;
    c.length = 21;
  });
  // More keys than a part of a device's has.
  add("LshManyKeys", [](Case& c) {
    c.rounds = 5;
    c.before = 2;
    c.chunk = 32;
    c.batch = 1;
  });
  add("LshManyKeysDuplicates", [](Case& c) {
    c.rounds = 5;
    c.before = 2;
    c.chunk = 32;
    c.batch = 1;
    c.factors = {2, 2};
    c.duplicates = RFN_DUPLICATES_LOG_COUNT;
  });
  add("Local", local);
  add("LocalRing", [&](Case& c) {
    local(c), c.capacity = 16, c.residual = RFN_RESIDUAL_EXACT, c.activation = RFN_ACTIVATION_GELU_TANH;
  });
  add("LocalRingLarger", [&](Case& c) { local(c), c.capacity = 27, c.before = 2, c.repeat_chunks = 0, c.wrap = 1; });
  add("LocalShared", [&](Case& c) { local(c), c.shared = 1, c.key_norm = RFN_KEY_NORM_RMS, c.wrap = 1; });
  add("LocalOwnChunkOnly", [&](Case& c) { local(c), c.before = 0, c.wrap = 1, c.repeat_chunks = 1; });
  add("LocalAfter", [&](Case& c) { local(c), c.after = 1, c.activation = RFN_ACTIVATION_SILU; });
  add("LocalChunksOfOne", [&](Case& c) { local(c), c.chunk = 1, c.before = 3, c.capacity = 4; });
  add("Full", full);
  add("FullShared", [&](Case& c) {
    full(c), c.shared = 1, c.key_norm = RFN_KEY_NORM_L2, c.output_bias = true, c.activation = RFN_ACTIVATION_TANH;
  });
  add("FullWide", [&](Case& c) {
    full(c), c.width = 130, c.hidden = 517, c.heads = 4, c.head_size = 33, c.batch = 1,
             c.activation = RFN_ACTIVATION_NONE;
  });
  return all;
}

enum Parameter {
  kNormWeight,
  kNormBias,
  kQuery,
  kKey,
  kValue,
  kOutput,
  kOutputBias,
  kFfNormWeight,
  kFfNormBias,
  kW1,
  kB1,
  kW2,
  kB2,
  kParameters
};

struct Problem {
  Case c;
  int64_t projected, buckets = 1, columns = 0, ring, sets, capacity;
  std::vector<float> stream1, stream2;
  std::unique_ptr<Tensor<float>> rotations;
  std::vector<Tensor<float>> tensors;

  Problem(const Case& test, uint64_t seed) : c(test), projected(c.heads * c.head_size) {
    Random random(seed);
    const int64_t e = c.width, p = projected, f = c.hidden;
    for (const int32_t factor : c.factors) buckets *= factor, columns += factor / 2;
    ring = std::max<int64_t>(1, c.before * c.chunk);
    sets = c.rotation_sets == 0 ? c.heads : c.rotation_sets;
    capacity = c.capacity == 0 ? c.length : c.capacity;
    const std::vector<std::vector<int64_t>> shapes = {{e}, {e}, {p, e}, {p, e}, {p, e}, {e, p}, {e},
                                                      {e}, {e}, {f, e}, {f},    {e, f}, {e}};
    for (int i = 0; i < kParameters; ++i) {
      int64_t count = 1;
      for (const int64_t size : shapes[i]) count *= size;
      const bool norm_weight = i == kNormWeight || i == kFfNormWeight;
      tensors.emplace_back(shapes[i], norm_weight ? random.floats(count, 0.5, 1.5) : random.floats(count, -0.5, 0.5));
    }
    stream1 = random.floats(c.batch * c.length * e, -2, 2);
    stream2 = random.floats(c.batch * c.length * e, -2, 2);
    if (c.residual == RFN_RESIDUAL_EXACT) {
      for (auto* stream : {&stream1, &stream2}) {
        for (float& x : *stream)
          x = static_cast<float>(
              std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(x), -c.exponent)), c.exponent));
      }
    }
    rotations = std::make_unique<Tensor<float>>(std::vector<int64_t>{sets, c.head_size, c.rounds, columns},
                                                random.floats(sets * c.head_size * c.rounds * columns));
  }

  rfn_attention_options options() const {
    rfn_attention_options o = {};
    o.struct_size = sizeof(o);
    o.kind = c.kind;
    o.shared_qk = c.shared;
    o.causal = 1;
    o.key_norm = c.key_norm;
    o.logit_scale = c.logit_scale;
    if (c.kind == RFN_ATTENTION_FULL) return o;
    o.wrap = c.wrap;
    o.repeat_chunks = c.repeat_chunks;
    o.chunk_length = c.chunk;
    o.chunks_before = c.before;
    o.chunks_after = c.after;
    if (c.kind == RFN_ATTENTION_LOCAL) return o;
    o.window = c.window;
    o.duplicates = c.duplicates;
    o.rounds = c.rounds;
    o.factor_count = static_cast<int32_t>(c.factors.size());
    std::copy(c.factors.begin(), c.factors.end(), o.factors);
    return o;
  }

  rfn_block_parameters parameters() const {
    rfn_block_parameters f = make_op<rfn_block_parameters>();
    rfn_tensor* const places[] = {
        &f.attention_norm_weight,    &f.attention_norm_bias,    &f.query, &f.key, &f.value, &f.output, &f.output_bias,
        &f.feed_forward_norm_weight, &f.feed_forward_norm_bias, &f.w1,    &f.b1,  &f.w2,    &f.b2};
    for (int i = 0; i < kParameters; ++i) {
      if ((i != kKey || c.shared == 0) && (i != kOutputBias || c.output_bias)) *places[i] = tensors[i];
    }
    return f;
  }

  bool lsh() const { return c.kind == RFN_ATTENTION_LSH; }

  // Rows [first, first + count) of every example.
  std::vector<float> tokens(const std::vector<float>& stream, int64_t first, int64_t count) const {
    std::vector<float> rows;
    for (int64_t b = 0; b < c.batch; ++b) {
      const auto begin = stream.begin() + (b * c.length + first) * c.width;
      rows.insert(rows.end(), begin, begin + count * c.width);
    }
    return rows;
  }
};

// The whole forward pass over the first `length` tokens.
struct Whole {
  Tensor<float> stream1, stream2;
  Tensor<int32_t> buckets;
  Result<rfn_range_report> report;

  Whole(const Stream& stream, const Problem& p, int64_t length)
      : stream1({p.c.batch, length, p.c.width}, p.tokens(p.stream1, 0, length)),
        stream2({p.c.batch, length, p.c.width}, p.tokens(p.stream2, 0, length)),
        buckets({p.c.batch, p.c.heads, p.c.rounds, length}) {
    rfn_reversible_block op = make_op<rfn_reversible_block>();
    op.attention = p.options();
    op.heads = static_cast<int32_t>(p.c.heads);
    op.activation = p.c.activation;
    op.layer_norm_epsilon = 1e-6f;
    op.residual = p.c.residual;
    op.grid_exponent = p.c.exponent;
    op.stream1 = stream1;
    op.stream2 = stream2;
    op.range_report = report;
    if (p.lsh()) {
      op.rotations = *p.rotations;
      op.buckets = buckets;
    }
    op.parameters = p.parameters();
    EXPECT_TRUE(Ok(forward(stream, op)));
  }
};

// The whole pass in float64.
struct Truth {
  const Problem& p;
  Doubles out1, out2;

  explicit Truth(const Problem& problem) : p(problem) {
    const int64_t e = p.c.width, f = p.c.hidden;
    const auto w = [&](int i) { return doubles(p.tensors[i].values()); };
    ReferenceAttention a;
    a.options = p.options();
    a.batch = p.c.batch;
    a.length = p.c.length;
    a.heads = p.c.heads;
    a.head_size = p.c.head_size;
    a.rotations = doubles(p.rotations->values());
    a.rotation_sets = p.sets;
    const Doubles x = normalize(doubles(p.stream2), w(kNormWeight), w(kNormBias));
    a.q = times(x, w(kQuery), e, p.projected);
    a.v = times(x, w(kValue), e, p.projected);
    if (p.c.shared == 0) a.k = times(x, w(kKey), e, p.projected);
    if (p.lsh()) {
      a.hash();
      EXPECT_GT(a.smallest_margin, 1e-6) << "a near tie: float32 may choose another bucket; take another seed";
      a.sort();
    }
    a.forward();
    out1 =
        added(p.stream1, times(a.out, w(kOutput), p.projected, e), p.c.output_bias ? w(kOutputBias) : Doubles(e, 0.0));
    Doubles hidden = times(normalize(out1, w(kFfNormWeight), w(kFfNormBias)), w(kW1), e, f);
    const Doubles b1 = w(kB1);
    for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = activation(p.c.activation, hidden[i] + b1[i % f]);
    out2 = added(p.stream2, times(hidden, w(kW2), f, e), w(kB2));
  }

  Doubles normalize(const Doubles& x, const Doubles& weight, const Doubles& bias) const {
    const int64_t e = p.c.width;
    Doubles y(x.size());
    for (size_t row = 0; row < x.size(); row += e) {
      double mean = 0, variance = 0;
      for (int64_t j = 0; j < e; ++j) mean += x[row + j] / static_cast<double>(e);
      for (int64_t j = 0; j < e; ++j) variance += std::pow(x[row + j] - mean, 2) / static_cast<double>(e);
      for (int64_t j = 0; j < e; ++j)
        y[row + j] = (x[row + j] - mean) / std::sqrt(variance + 1e-6) * weight[j] + bias[j];
    }
    return y;
  }

  Doubles times(const Doubles& x, const Doubles& weight, int64_t k, int64_t m) const {
    const int64_t rows = p.c.batch * p.c.length;
    Doubles y(rows * m, 0.0);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < m; ++j) {
        for (int64_t l = 0; l < k; ++l) y[i * m + j] += x[i * k + l] * weight[j * k + l];
      }
    }
    return y;
  }

  Doubles added(const std::vector<float>& stream, const Doubles& y, const Doubles& bias) const {
    Doubles sum = doubles(stream);
    for (size_t i = 0; i < sum.size(); ++i) {
      const double x = y[i] + bias[i % bias.size()];
      sum[i] += p.c.residual == RFN_RESIDUAL_EXACT
                    ? std::ldexp(std::nearbyint(std::ldexp(x, -p.c.exponent)), p.c.exponent)
                    : x;
    }
    return sum;
  }
};

// Token after token through the cache.
struct Decoding {
  const Problem& p;
  Tensor<float> stream1, stream2, keys, values;
  Tensor<int32_t> rings, counts;
  Result<rfn_range_report> report;
  rfn_reversible_block_decode op = make_op<rfn_reversible_block_decode>();
  std::vector<float> out1, out2;  // [B, T, E]

  explicit Decoding(const Problem& problem)
      : p(problem),
        stream1({p.c.batch, 1, p.c.width}),
        stream2({p.c.batch, 1, p.c.width}),
        keys({p.c.batch, p.capacity, p.projected}),
        values({p.c.batch, p.capacity, p.projected}),
        rings({p.c.batch * p.c.heads, p.c.rounds, p.buckets, p.ring}),
        counts(Tensor<int32_t>::zeros({p.c.batch * p.c.heads, p.c.rounds, p.buckets})),
        out1(p.stream1.size()),
        out2(p.stream2.size()) {
    op.attention = p.options();
    op.heads = static_cast<int32_t>(p.c.heads);
    op.activation = p.c.activation;
    op.layer_norm_epsilon = 1e-6f;
    op.residual = p.c.residual;
    op.grid_exponent = p.c.exponent;
    op.stream1 = stream1;
    op.stream2 = stream2;
    op.keys = keys;
    op.values = values;
    if (p.lsh()) {
      op.rotations = *p.rotations;
      op.rings = rings;
      op.counts = counts;
    }
    op.range_report = report;
    op.parameters = p.parameters();
  }

  rfn_status step(const Stream& stream, int64_t position) {
    stream1.set(p.tokens(p.stream1, position, 1));
    stream2.set(p.tokens(p.stream2, position, 1));
    op.position = position;
    return forward(stream, op);
  }

  void run(const Stream& stream, int64_t first, int64_t last) {
    for (int64_t position = first; position < last; ++position) {
      ASSERT_TRUE(Ok(step(stream, position))) << "position " << position;
      const std::vector<float> row1 = stream1.values(), row2 = stream2.values();
      for (int64_t b = 0; b < p.c.batch; ++b) {
        std::copy_n(row1.begin() + b * p.c.width, p.c.width, out1.begin() + (b * p.c.length + position) * p.c.width);
        std::copy_n(row2.begin() + b * p.c.width, p.c.width, out2.begin() + (b * p.c.length + position) * p.c.width);
      }
    }
  }
};

double limit(const Case& c) { return kLimit + (c.residual == RFN_RESIDUAL_EXACT ? std::ldexp(1.0, c.exponent) : 0); }

class DecodeTest : public testing::TestWithParam<Case> {
 protected:
  Context context{2};
  Stream stream{context};
};

TEST_P(DecodeTest, EveryToken_MatchesTheWholePass) {
  Case c = GetParam();
  if (!on_cpu()) c.length = std::min<int64_t>(c.length, 33);
  const Problem p(c, 5);
  const Truth truth(p);
  const Whole whole(stream, p, p.c.length);
  Decoding decoding(p);
  decoding.run(stream, 0, p.c.length);
  EXPECT_TRUE(Close(decoding.out1, truth.out1, limit(p.c)));
  EXPECT_TRUE(Close(decoding.out2, truth.out2, limit(p.c)));
  EXPECT_TRUE(Close(decoding.out1, whole.stream1.values(), limit(p.c)));
  EXPECT_TRUE(Close(decoding.out2, whole.stream2.values(), limit(p.c)));
  EXPECT_EQ(decoding.report.value().count, 0);
}

TEST_P(DecodeTest, AnySchedule_SameBits) {
  const Problem p(GetParam(), 6);
  std::vector<float> first1, first2;
  for_each_schedule(
      [&](int32_t threads) {
        const Context other(threads);
        const Stream queue(other);
        Decoding decoding(p);
        decoding.run(queue, 0, few(18));
        if (first1.empty()) {
          first1 = decoding.out1;
          first2 = decoding.out2;
        }
        EXPECT_TRUE(SameBits(decoding.out1, first1)) << threads << " threads";
        EXPECT_TRUE(SameBits(decoding.out2, first2)) << threads << " threads";
      },
      4);
}

TEST_P(DecodeTest, OneExample_SameBitsAsInABatch) {
  const Problem p(GetParam(), 7);
  if ((on_cpu() && p.c.batch > cpu::kFewRows) || p.c.rotation_sets > p.c.heads) return;
  Decoding together(p);
  together.run(stream, 0, few(20));
  Case one = p.c;
  one.batch = 1;
  Problem alone(one, 7);  // other tensors than the batch's: they are given below
  const auto example = [&](const std::vector<float>& all) {
    return std::vector<float>(all.begin(), all.begin() + p.c.length * p.c.width);
  };
  alone.stream1 = example(p.stream1);
  alone.stream2 = example(p.stream2);
  Decoding decoding(alone);
  decoding.op.parameters = p.parameters();
  if (p.lsh()) decoding.op.rotations = *p.rotations;
  decoding.run(stream, 0, few(20));
  EXPECT_TRUE(SameBits(decoding.out1, example(together.out1)));
  EXPECT_TRUE(SameBits(decoding.out2, example(together.out2)));
}

INSTANTIATE_TEST_SUITE_P(All, DecodeTest, testing::ValuesIn(cases()), [](const auto& test) { return test.param.name; });

using DecodeOp = OpTest;

Case named(const std::string& name) {
  for (const Case& c : cases()) {
    if (c.name == name) return c;
  }
  ADD_FAILURE() << name;
  return {};
}

// A prompt's forward pass fills the cache: buckets go to the rings, keys and values are the projections of its
// normalised stream 2.
TEST_F(DecodeOp, CacheOfAPrompt_GoesOnAsTheWholePass) {
  for (const char* const name : {"Lsh", "LshDuplicates", "LshOddSizes"}) {
    const Problem p(named(name), 8);
    const int64_t prompt = p.c.length - 9;
    Decoding stepped(p), filled(p);
    stepped.run(stream, 0, prompt);
    filled.keys.set(stepped.keys.values());
    filled.values.set(stepped.values.values());
    const Whole whole(stream, p, prompt), longer(stream, p, p.c.length);
    auto op = make_op<rfn_bucket_rings>();
    // In two parts, as two stretches of a prompt would come.
    const std::vector<int32_t> all = whole.buckets.values();
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 5}, {5, prompt - 5}}) {
      std::vector<int32_t> part;
      for (int64_t row = 0; row < p.c.batch * p.c.heads * p.c.rounds; ++row) {
        part.insert(part.end(), all.begin() + row * prompt + first, all.begin() + row * prompt + first + count);
      }
      const Tensor<int32_t> buckets({p.c.batch, p.c.heads, p.c.rounds, count}, part);
      op.first = first;
      op.buckets = buckets;
      op.rings = filled.rings;
      op.counts = filled.counts;
      ASSERT_TRUE(Ok(forward(stream, op)));
    }
    EXPECT_TRUE(SameBits(filled.counts.values(), stepped.counts.values()));
    EXPECT_TRUE(SameBits(filled.rings.values(), stepped.rings.values()));  // what was never written is the same poison
    filled.run(stream, prompt, p.c.length);
    const std::vector<float> expected1 = longer.stream1.values(), expected2 = longer.stream2.values();
    EXPECT_TRUE(Close(p.tokens(filled.out1, prompt, 9), p.tokens(expected1, prompt, 9), limit(p.c))) << name;
    EXPECT_TRUE(Close(p.tokens(filled.out2, prompt, 9), p.tokens(expected2, prompt, 9), limit(p.c))) << name;
  }
}

// Windows that no cache can repeat are decoded by the strict rule.
TEST_F(DecodeOp, OtherWindows_DecodeAsStrict) {
  Case c = named("Lsh");
  const Problem strict(c, 9);
  Decoding expected(strict);
  expected.run(stream, 0, 40);
  for (const int32_t window : {RFN_WINDOW_SLOTS, RFN_WINDOW_SAME_BUCKET}) {
    c.window = window;
    c.wrap = 1;
    c.after = 0;
    const Problem p(c, 9);
    Decoding decoding(p);
    decoding.run(stream, 0, 40);
    EXPECT_TRUE(SameBits(decoding.out1, expected.out1));
    EXPECT_TRUE(SameBits(decoding.out2, expected.out2));
  }
}

TEST_F(DecodeOp, ValueBeyondTheExactRange_IsReported) {
  Case c = named("LshExact");
  c.batch = 2;
  c.length = 2;
  const Problem p(c, 10);
  for (const int64_t which : {1, 2}) {
    Decoding decoding(p);
    ASSERT_TRUE(Ok(decoding.step(stream, 0)));
    std::vector<float> rows1 = p.tokens(p.stream1, 1, 1), rows2 = p.tokens(p.stream2, 1, 1);
    (which == 1 ? rows1 : rows2)[c.width + 3] = 1000;
    decoding.stream1.set(rows1);
    decoding.stream2.set(rows2);
    decoding.op.position = 1;
    decoding.op.layer = 4;
    ASSERT_TRUE(Ok(forward(stream, decoding.op)));
    EXPECT_EQ(decoding.report.value(), (rfn_range_report{1, 4, which, c.width + 3}));
  }
}

// The CPU refuses rings that can't be; a device, which can't wait to see them, counts a position out of range as the
// last one and a count out of range as that of all positions.
TEST_F(DecodeOp, BrokenRings_AreRefusedOrClamped) {
  constexpr int32_t kPosition = 7;
  for (const char* const name : {"Lsh", "LshDuplicates"}) {
    const Problem p(named(name), 11);
    for (const bool in_counts : {false, true}) {
      for (const int32_t wrong : {-1, kPosition, INT32_MAX}) {
        if (in_counts && wrong == kPosition) continue;  // a count of all positions is possible
        SCOPED_TRACE(std::string(name) + (in_counts ? ", counts " : ", rings ") + std::to_string(wrong));
        Decoding decoding(p);
        decoding.run(stream, 0, kPosition);
        std::vector<int32_t> rings = decoding.rings.values(), counts = decoding.counts.values();
        std::fill(counts.begin(), counts.end(), in_counts ? wrong : kPosition);
        std::fill(rings.begin(), rings.end(), in_counts ? kPosition - 1 : wrong);
        decoding.rings.set(rings), decoding.counts.set(counts);
        const rfn_status status = decoding.step(stream, kPosition);
        if (on_cpu()) {
          EXPECT_TRUE(Fails(status, RFN_INVALID_ARGUMENT, {"reversible_block_decode", "rings", "7 tokens"}));
          EXPECT_TRUE(SameBits(decoding.stream1.values(), p.tokens(p.stream1, kPosition, 1)));
          EXPECT_TRUE(SameBits(decoding.stream2.values(), p.tokens(p.stream2, kPosition, 1)));
          EXPECT_TRUE(SameBits(decoding.rings.values(), rings));
          EXPECT_TRUE(SameBits(decoding.counts.values(), counts));
          continue;
        }
        ASSERT_TRUE(Ok(status));
        Decoding possible(p);
        possible.run(stream, 0, kPosition);
        possible.rings.set(std::vector<int32_t>(rings.size(), kPosition - 1));
        possible.counts.set(std::vector<int32_t>(counts.size(), kPosition));
        ASSERT_TRUE(Ok(possible.step(stream, kPosition)));
        EXPECT_TRUE(SameBits(decoding.stream1.values(), possible.stream1.values()));
        EXPECT_TRUE(SameBits(decoding.stream2.values(), possible.stream2.values()));
      }
    }
  }
}

TEST_F(DecodeOp, BucketsOrCountsOutOfRange_AreRefusedOrClamped) {
  const auto rings_of = [&](const std::vector<int32_t>& buckets, const std::vector<int32_t>& counts, int64_t first,
                            std::initializer_list<std::string> message) {
    const Tensor<int32_t> given({1, 2, 1, 3}, buckets);
    const std::vector<int32_t> untouched(2 * 4 * 5, 77);
    const Tensor<int32_t> after({2, 1, 4}, counts), rings({2, 1, 4, 5}, untouched);
    auto op = make_op<rfn_bucket_rings>();
    op.buckets = given;
    op.rings = rings;
    op.counts = after;
    op.first = first;
    const rfn_status status = forward(stream, op);
    if (on_cpu() && message.size() > 0) {
      EXPECT_TRUE(Fails(status, RFN_INVALID_ARGUMENT, message));
      EXPECT_EQ(rings.values(), untouched);
    } else {
      EXPECT_TRUE(Ok(status));
    }
    return std::pair(rings.values(), after.values());
  };
  const std::vector<int32_t> zeros(8, 0);
  const auto last = rings_of({0, 1, 3, 2, 3, 0}, zeros, 0, {});
  for (const int32_t wrong : {-1, 4}) {
    const auto found = rings_of({0, 1, 3, 2, wrong, 0}, zeros, 0, {"bucket_rings: buckets", "0 to 3"});
    EXPECT_TRUE(on_cpu() || found == last);
  }
  const auto all = rings_of({0, 1, 3, 2, 2, 0}, {0, 0, 2, 0, 0, 0, 2, 0}, 2, {});
  for (const int32_t wrong : {-1, 3}) {
    const auto found =
        rings_of({0, 1, 3, 2, 2, 0}, {0, 0, wrong, 0, 0, 0, wrong, 0}, 2, {"bucket_rings: counts", "0 to 2"});
    EXPECT_TRUE(on_cpu() || found == all);
  }
}

class DecodePosition : public testing::TestWithParam<int64_t> {
 protected:
  Context context{2};
  Stream stream{context};
};

// Full attention, also far in a sequence: over more parts than a block of a device adds up at a time. The projections
// of the token are its normalised stream, and its result is the sum of stream 1 and what it attends to.
TEST_P(DecodePosition, FullAttention_SeesAllBefore) {
  constexpr int64_t kWidth = 8, kHeads = 2, kHeadSize = 4;
  const int64_t position = GetParam();
  Random random(15);
  std::vector<float> identity(kWidth * kWidth, 0.0f);
  for (int64_t i = 0; i < kWidth; ++i) identity[i * (kWidth + 1)] = 1;
  const Tensor<float> ones({kWidth}, std::vector<float>(kWidth, 1)), zeros({kWidth}, std::vector<float>(kWidth, 0)),
      same({kWidth, kWidth}, identity), none({kWidth, kWidth}, std::vector<float>(kWidth * kWidth, 0));
  const std::vector<float> stream1 = random.floats(kWidth, -1, 1), stream2 = random.floats(kWidth, -1, 1),
                           keys = random.floats((position + 3) * kWidth, -1, 1),
                           values = random.floats((position + 3) * kWidth, -1, 1);
  const Tensor<float> one({1, 1, kWidth}, stream1), two({1, 1, kWidth}, stream2),
      key_rows({1, position + 3, kWidth}, keys), value_rows({1, position + 3, kWidth}, values);
  auto op = make_op<rfn_reversible_block_decode>();
  op.attention = make_op<rfn_attention_options>();
  op.attention.kind = RFN_ATTENTION_FULL;
  op.attention.causal = 1;
  op.attention.logit_scale = 2;
  op.heads = kHeads;
  op.layer_norm_epsilon = 1e-6f;
  op.position = position;
  op.stream1 = one;
  op.stream2 = two;
  op.keys = key_rows;
  op.values = value_rows;
  op.parameters = make_op<rfn_block_parameters>();
  for (rfn_tensor* const weight : {&op.parameters.attention_norm_weight, &op.parameters.feed_forward_norm_weight})
    *weight = ones;
  for (rfn_tensor* const bias : {&op.parameters.attention_norm_bias, &op.parameters.feed_forward_norm_bias,
                                 &op.parameters.b1, &op.parameters.b2})
    *bias = zeros;
  for (rfn_tensor* const weight :
       {&op.parameters.query, &op.parameters.key, &op.parameters.value, &op.parameters.output})
    *weight = same;
  op.parameters.w1 = none;
  op.parameters.w2 = none;
  ASSERT_TRUE(Ok(forward(stream, op)));

  double mean = 0, variance = 0;
  for (const float x : stream2) mean += x / static_cast<double>(kWidth);
  for (const float x : stream2) variance += std::pow(x - mean, 2) / static_cast<double>(kWidth);
  Doubles expected = doubles(stream1), token(kWidth);
  for (int64_t i = 0; i < kWidth; ++i) token[i] = (stream2[i] - mean) / std::sqrt(variance + 1e-6);
  for (int64_t head = 0; head < kHeads; ++head) {
    Doubles sum(kHeadSize, 0.0);
    double total = 0;
    for (int64_t p = 0; p <= position; ++p) {
      const auto at = [&](const std::vector<float>& rows, int64_t d) {
        const int64_t i = head * kHeadSize + d;
        return p == position ? token[i] : static_cast<double>(rows[p * kWidth + i]);
      };
      double logit = 0;
      for (int64_t d = 0; d < kHeadSize; ++d) logit += 2 * token[head * kHeadSize + d] * at(keys, d);
      total += std::exp(logit);
      for (int64_t d = 0; d < kHeadSize; ++d) sum[d] += std::exp(logit) * at(values, d);
    }
    for (int64_t d = 0; d < kHeadSize; ++d) expected[head * kHeadSize + d] += sum[d] / total;
  }
  EXPECT_TRUE(Close(one.values(), expected, kLimit));
  EXPECT_TRUE(SameBits(two.values(), stream2));
}

INSTANTIATE_TEST_SUITE_P(All, DecodePosition, testing::Values(0, 255, 256, 40000));

TEST_F(DecodeOp, BucketRings_AnySize_AreThoseOfALoop) {
  struct Sizes {
    int64_t buckets, ring, length, first;
  };
  for (const Sizes& s : {Sizes{1, 1, 70, 0}, Sizes{1, 33, 100, 5}, Sizes{3, 5, 97, 2}, Sizes{4, 40, 131, 9},
                         Sizes{9001, 2, 64, 3}, Sizes{2, 7, 1, 0}, Sizes{5, 31, 32, 1}}) {
    SCOPED_TRACE(std::to_string(s.buckets) + " buckets, rings of " + std::to_string(s.ring));
    constexpr int64_t kRows = 6;  // [1, 2, 3]
    Random random(14);
    const std::vector<int32_t> buckets = random.integers(kRows * s.length, s.buckets),
                               before = random.integers(kRows * s.buckets, s.first + 1);
    std::vector<int32_t> expected(kRows * s.buckets * s.ring, 77), expected_counts = before;
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t i = 0; i < s.length; ++i) {
        const int64_t index = row * s.buckets + buckets[row * s.length + i];
        expected[index * s.ring + expected_counts[index]++ % s.ring] = static_cast<int32_t>(s.first + i);
      }
    }
    for_each_schedule(
        [&](int32_t threads) {
          const Context context(threads);
          const Stream queue(context);
          const Tensor<int32_t> given({1, 2, 3, s.length}, buckets), counts({2, 3, s.buckets}, before),
              rings({2, 3, s.buckets, s.ring}, std::vector<int32_t>(expected.size(), 77));
          auto op = make_op<rfn_bucket_rings>();
          op.first = s.first;
          op.buckets = given;
          op.rings = rings;
          op.counts = counts;
          ASSERT_TRUE(Ok(forward(queue, op)));
          EXPECT_EQ(rings.values(), expected);
          EXPECT_EQ(counts.values(), expected_counts);
        },
        4);
  }
}

TEST(RowGemm, AnySize_MatchesFloat64WhateverTheRows) {
  Random random(12);
  for (const int64_t columns : {1, 3, 4, 7, 66}) {
    for (const int64_t depth : {1, 5, 16, 31, 33, 64, 257}) {
      const int64_t rows = 5, ldx = depth + 3, ldw = depth + 2, ldy = columns + 1;
      const std::vector<float> x = random.floats(rows * ldx), w = random.floats(columns * ldw);
      Doubles expected(rows * ldy, 0.0);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          for (int64_t k = 0; k < depth; ++k)
            expected[i * ldy + j] += static_cast<double>(x[i * ldx + k]) * static_cast<double>(w[j * ldw + k]);
        }
      }
      std::vector<float> y(rows * ldy, 0.0f), one(rows * ldy, 0.0f);
      cpu::row_products(rows, columns, depth, x.data(), ldx, w.data(), ldw, y.data(), ldy);
      EXPECT_TRUE(Close(y, expected, 1e-6)) << columns << " x " << depth;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j)
          cpu::row_products(1, 1, depth, &x[i * ldx], ldx, &w[j * ldw], ldw, &one[i * ldy + j], 1);
      }
      EXPECT_TRUE(SameBits(one, y)) << columns << " x " << depth;
    }
  }
}

}  // namespace
}  // namespace rfn::test
