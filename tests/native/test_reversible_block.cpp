// The reversible block against float64, and its promise: backward gives back the bits that forward started from.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "harness.h"
#include "reference_attention.h"

namespace rfn::test {
namespace {

constexpr double kForwardLimit = 1e-5;
constexpr double kGradientLimit = 3e-5;

struct Case {
  std::string name;
  int32_t kind = RFN_ATTENTION_LSH;
  int64_t batch = 2, length = 37, width = 24, heads = 2, head_size = 8, hidden = 40;
  int32_t rounds = 2, causal = 1, activation = RFN_ACTIVATION_RELU;
  float attention_dropout = 0, output_dropout = 0, feed_forward_dropout = 0;
  bool masked = false, output_bias = false;
  int32_t residual = RFN_RESIDUAL_FLOAT, exponent = -16;
  int64_t head_group = 0, chunk = 0;
  void (*attention)(rfn_attention_options&) = nullptr;  // changes them
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](std::string name, auto change) {
    Case c;
    change(c);
    c.name = std::move(name);
    all.push_back(c);
  };
  add("LshFloat", [](Case&) {});
  add("LshExact", [](Case& c) { c.residual = RFN_RESIDUAL_EXACT; });
  add("LshExactDropout", [](Case& c) {
    c.residual = RFN_RESIDUAL_EXACT;
    c.attention_dropout = 0.2f;
    c.output_dropout = 0.1f;
    c.feed_forward_dropout = 0.3f;
    c.masked = true;
  });
  add("LshHeadByHead", [](Case& c) {
    c.heads = 3;
    c.head_group = 1;
    c.output_bias = true;
    c.rounds = 1;
  });
  add("LshExactChunk64", [](Case& c) {
    c.residual = RFN_RESIDUAL_EXACT;
    c.length = 150;
    c.batch = 1;
    c.masked = true;
    c.head_group = 1;
    c.attention = [](rfn_attention_options& o) { o.chunk_length = 64; };
  });
  add("LocalFloat", [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.activation = RFN_ACTIVATION_GELU_ERF;
    c.output_bias = true;
  });
  add("LocalExactBothSides", [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.causal = 0;
    c.residual = RFN_RESIDUAL_EXACT;
    c.masked = true;
    c.head_group = 1;
  });
  add("FullFloat", [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.activation = RFN_ACTIVATION_SILU;
    c.length = 70;
  });
  add("ManyRows", [](Case& c) {
    c.length = 600;
    c.activation = RFN_ACTIVATION_GELU_TANH;
    c.residual = RFN_RESIDUAL_EXACT;
    c.batch = 1;
  });
  add("LengthOne", [](Case& c) {
    c.length = 1;
    c.batch = 1;
  });
  add("SmallChunks", [](Case& c) {
    c.chunk = 7;
    c.length = 33;
  });
  return all;
}

// Parameters of the block in the order of rfn_block_parameters.
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
constexpr const char* kNames[] = {"norm weight",    "norm bias",    "query", "key", "value", "output", "output bias",
                                  "ff norm weight", "ff norm bias", "w1",    "b1",  "w2",    "b2"};

struct Problem {
  Case c;
  bool shared;
  std::vector<std::vector<int64_t>> shapes;
  std::vector<std::vector<float>> parameters;
  std::vector<float> stream1, stream2, grad1, grad2, rotations;
  std::vector<uint8_t> mask;
  uint64_t seed = 9, step = 4;
  int32_t layer = 1;

  Problem(const Case& test, uint64_t random_seed) : c(test), shared(test.kind == RFN_ATTENTION_LSH) {
    Random random(random_seed);
    const int64_t e = c.width, p = c.heads * c.head_size, f = c.hidden, n = c.batch * c.length * e;
    shapes = {{e}, {e}, {p, e}, {p, e}, {p, e}, {e, p}, {e}, {e}, {e}, {f, e}, {f}, {e, f}, {e}};
    for (int i = 0; i < kParameters; ++i) {
      int64_t count = 1;
      for (const int64_t size : shapes[i]) count *= size;
      const bool norm_weight = i == kNormWeight || i == kFfNormWeight;
      parameters.push_back(norm_weight ? random.floats(count, 0.5, 1.5) : random.floats(count, -0.5, 0.5));
    }
    stream1 = random.floats(n, -2, 2);
    stream2 = random.floats(n, -2, 2);
    if (c.residual == RFN_RESIDUAL_EXACT) {  // as the embedding leaves them: on the grid
      for (auto* stream : {&stream1, &stream2}) {
        for (float& x : *stream)
          x = static_cast<float>(
              std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(x), -c.exponent)), c.exponent));
      }
    }
    grad1 = random.floats(n);
    grad2 = random.floats(n);
    rotations = random.floats(c.heads * c.head_size * c.rounds * 4);
    if (c.masked) {
      mask.assign(c.batch * c.length, 1);
      for (auto& m : mask) m = random.below(5) != 0;
    }
  }

  bool used(int i) const { return (i != kKey || !shared) && (i != kOutputBias || c.output_bias); }
  rfn_attention_options options() const {
    rfn_attention_options o = {};
    o.struct_size = sizeof(o);
    o.kind = c.kind;
    o.shared_qk = shared ? 1 : 0;
    o.causal = c.causal;
    o.dropout = c.attention_dropout;
    if (c.kind != RFN_ATTENTION_FULL) {
      o.wrap = 1;
      o.chunk_length = 8;
      o.chunks_before = 1;
      o.chunks_after = c.causal != 0 ? 0 : 1;
    }
    if (shared) {
      o.key_norm = RFN_KEY_NORM_RMS;
      o.rounds = c.rounds;
      o.factor_count = 1;
      o.factors[0] = 8;
      o.pad_bucket = c.masked ? 1 : 0;
    }
    if (c.attention != nullptr) c.attention(o);
    return o;
  }
};

struct Bound {
  Tensor<float> stream1, stream2, grad1, grad2, rotations;
  Tensor<int32_t> buckets;
  Tensor<uint8_t> mask;
  Result<rfn_range_report> report;
  std::vector<Tensor<float>> parameters, gradients;
  rfn_reversible_block op = make_op<rfn_reversible_block>();

  explicit Bound(const Problem& p)
      : stream1(streams(p), p.stream1),
        stream2(streams(p), p.stream2),
        grad1(streams(p), p.grad1),
        grad2(streams(p), p.grad2),
        rotations({p.c.heads, p.c.head_size, p.c.rounds, 4}, p.rotations),
        buckets({p.c.batch, p.c.heads, p.c.rounds, p.c.length}),
        mask({p.c.batch, p.c.length}, p.mask.empty() ? std::vector<uint8_t>(p.c.batch * p.c.length, 1) : p.mask) {
    for (int i = 0; i < kParameters; ++i) {
      parameters.emplace_back(p.shapes[i], p.parameters[i]);
      gradients.push_back(Tensor<float>::zeros(p.shapes[i]));
    }
    op.layer = p.layer;
    op.seed = p.seed;
    op.step = p.step;
    op.attention = p.options();
    op.heads = static_cast<int32_t>(p.c.heads);
    op.activation = p.c.activation;
    op.layer_norm_epsilon = 1e-6f;
    op.attention_output_dropout = p.c.output_dropout;
    op.feed_forward_dropout = p.c.feed_forward_dropout;
    op.residual = p.c.residual;
    op.grid_exponent = p.c.exponent;
    op.head_group = p.c.head_group;
    op.feed_forward_chunk = p.c.chunk;
    op.stream1 = stream1;
    op.stream2 = stream2;
    op.grad_stream1 = grad1;
    op.grad_stream2 = grad2;
    op.range_report = report;
    if (!p.mask.empty()) op.mask = mask;
    if (p.shared) {
      op.rotations = rotations;
      if (p.c.residual == RFN_RESIDUAL_FLOAT) op.buckets = buckets;
    }
    op.parameters = fields(p, parameters);
    op.gradients = fields(p, gradients);
  }

  static std::vector<int64_t> streams(const Problem& p) { return {p.c.batch, p.c.length, p.c.width}; }

  static rfn_block_parameters fields(const Problem& p, const std::vector<Tensor<float>>& tensors) {
    rfn_block_parameters f = make_op<rfn_block_parameters>();
    rfn_tensor* const places[] = {
        &f.attention_norm_weight,    &f.attention_norm_bias,    &f.query, &f.key, &f.value, &f.output, &f.output_bias,
        &f.feed_forward_norm_weight, &f.feed_forward_norm_bias, &f.w1,    &f.b1,  &f.w2,    &f.b2};
    for (int i = 0; i < kParameters; ++i) {
      if (p.used(i)) *places[i] = tensors[i];
    }
    return f;
  }
};

// ---- the block in float64 ----

using Numbers = std::vector<double>;

Numbers widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

double activate(int32_t kind, double x) {
  switch (kind) {
    case RFN_ACTIVATION_RELU:
      return x > 0 ? x : 0;
    case RFN_ACTIVATION_GELU_ERF:
      return x * 0.5 * (1 + std::erf(x / std::sqrt(2.0)));
    case RFN_ACTIVATION_GELU_TANH:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case RFN_ACTIVATION_SILU:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

double activation_slope(int32_t kind, double x) {
  if (kind == RFN_ACTIVATION_RELU) return x > 0 ? 1 : 0;
  return (activate(kind, x + 1e-6) - activate(kind, x - 1e-6)) / 2e-6;
}

struct Reference {
  const Problem& p;
  std::vector<Numbers> w, g;
  Numbers y1, y2, grad1, grad2;

  std::vector<int32_t> buckets;  // empty: of the reference's own queries

  explicit Reference(const Problem& problem, std::vector<int32_t> given_buckets = {})
      : p(problem), buckets(std::move(given_buckets)) {
    for (const auto& x : p.parameters) w.push_back(widen(x)), g.emplace_back(x.size(), 0.0);
  }

  int64_t rows() const { return p.c.batch * p.c.length; }

  Numbers normalize(const Numbers& x, const Numbers& weight, const Numbers& bias) const {
    const int64_t e = p.c.width;
    Numbers y(x.size());
    for (int64_t i = 0; i < rows(); ++i) {
      double mean = 0, variance = 0;
      for (int64_t j = 0; j < e; ++j) mean += x[i * e + j] / static_cast<double>(e);
      for (int64_t j = 0; j < e; ++j) variance += std::pow(x[i * e + j] - mean, 2) / static_cast<double>(e);
      for (int64_t j = 0; j < e; ++j)
        y[i * e + j] = (x[i * e + j] - mean) / std::sqrt(variance + 1e-6) * weight[j] + bias[j];
    }
    return y;
  }

  void normalize_backward(const Numbers& x, const Numbers& weight, const Numbers& dy, Numbers& dx, Numbers& dweight,
                          Numbers& dbias) const {
    const int64_t e = p.c.width;
    for (int64_t i = 0; i < rows(); ++i) {
      double mean = 0, variance = 0, a = 0, b = 0;
      for (int64_t j = 0; j < e; ++j) mean += x[i * e + j] / static_cast<double>(e);
      for (int64_t j = 0; j < e; ++j) variance += std::pow(x[i * e + j] - mean, 2) / static_cast<double>(e);
      const double inverse = 1 / std::sqrt(variance + 1e-6);
      for (int64_t j = 0; j < e; ++j) {
        const double hat = (x[i * e + j] - mean) * inverse, d = dy[i * e + j] * weight[j];
        a += d / static_cast<double>(e);
        b += d * hat / static_cast<double>(e);
        dweight[j] += dy[i * e + j] * hat;
        dbias[j] += dy[i * e + j];
      }
      for (int64_t j = 0; j < e; ++j) {
        const double hat = (x[i * e + j] - mean) * inverse;
        dx[i * e + j] += inverse * (dy[i * e + j] * weight[j] - a - hat * b);
      }
    }
  }

  // y[rows, m] = x[rows, k] W[m, k]^T
  Numbers times(const Numbers& x, const Numbers& weight, int64_t k, int64_t m) const {
    Numbers y(rows() * m, 0.0);
    for (int64_t i = 0; i < rows(); ++i) {
      for (int64_t j = 0; j < m; ++j) {
        for (int64_t l = 0; l < k; ++l) y[i * m + j] += x[i * k + l] * weight[j * k + l];
      }
    }
    return y;
  }

  void times_backward(const Numbers& x, const Numbers& weight, const Numbers& dy, int64_t k, int64_t m, Numbers& dx,
                      Numbers& dweight) const {
    for (int64_t i = 0; i < rows(); ++i) {
      for (int64_t j = 0; j < m; ++j) {
        for (int64_t l = 0; l < k; ++l)
          dx[i * k + l] += dy[i * m + j] * weight[j * k + l], dweight[j * k + l] += dy[i * m + j] * x[i * k + l];
      }
    }
  }

  Numbers multipliers(size_t count, int32_t site, float rate) const {
    Numbers m(count, 1.0);
    if (rate == 0) return m;
    const Philox random = philox(p.seed, p.step, p.layer, site);
    for (size_t i = 0; i < count; ++i)
      m[i] = dropout_multiplier(philox_word(random, i), dropout_threshold(rate), 1 / (1 - rate));
    return m;
  }

  double rounded(double x) const {
    return p.c.residual == RFN_RESIDUAL_EXACT ? std::ldexp(std::nearbyint(std::ldexp(x, -p.c.exponent)), p.c.exponent)
                                              : x;
  }

  // Forward and, from the gradients of the problem, backward.
  void run() {
    const int64_t e = p.c.width, projected = p.c.heads * p.c.head_size, f = p.c.hidden;
    const Numbers x1 = widen(p.stream1), x2 = widen(p.stream2);
    const Numbers normal = normalize(x2, w[kNormWeight], w[kNormBias]);
    ReferenceAttention a;
    a.options = p.options();
    a.batch = p.c.batch;
    a.length = p.c.length;
    a.heads = p.c.heads;
    a.head_size = p.c.head_size;
    a.seed = p.seed;
    a.step = p.step;
    a.layer = p.layer;
    a.mask = p.mask;
    a.rotations = widen(p.rotations);
    a.rotation_sets = p.c.heads;
    a.q = times(normal, w[kQuery], e, projected);
    if (!p.shared) a.k = times(normal, w[kKey], e, projected);
    a.v = times(normal, w[kValue], e, projected);
    if (p.shared) {
      a.hash();
      if (!buckets.empty())
        a.buckets = buckets;
      else
        ASSERT_GT(a.smallest_margin, 1e-6) << "a near tie: float32 may choose another bucket; take another seed";
      a.sort();
    }
    a.forward();
    const Numbers keep_attention = multipliers(x1.size(), RFN_SITE_ATTENTION_OUTPUT, p.c.output_dropout);
    Numbers sub = times(a.out, w[kOutput], projected, e);
    y1 = x1;
    for (size_t i = 0; i < y1.size(); ++i) {
      if (p.c.output_bias) sub[i] += w[kOutputBias][i % e];
      y1[i] += rounded(sub[i] * keep_attention[i]);
    }
    const Numbers normal1 = normalize(y1, w[kFfNormWeight], w[kFfNormBias]);
    Numbers before = times(normal1, w[kW1], e, f), hidden(before.size());
    const Numbers keep_hidden = multipliers(before.size(), RFN_SITE_FEED_FORWARD_HIDDEN, p.c.feed_forward_dropout);
    for (size_t i = 0; i < before.size(); ++i) {
      before[i] = (before[i] + w[kB1][i % f]) * keep_hidden[i];
      hidden[i] = activate(p.c.activation, before[i]);
    }
    const Numbers keep_output = multipliers(x1.size(), RFN_SITE_FEED_FORWARD_OUTPUT, p.c.feed_forward_dropout);
    sub = times(hidden, w[kW2], f, e);
    y2 = x2;
    for (size_t i = 0; i < y2.size(); ++i) y2[i] += rounded((sub[i] + w[kB2][i % e]) * keep_output[i]);

    grad1 = widen(p.grad1);
    grad2 = widen(p.grad2);
    Numbers dy(grad2.size()), dhidden(hidden.size(), 0.0), dnormal1(x1.size(), 0.0);
    for (size_t i = 0; i < dy.size(); ++i) dy[i] = grad2[i] * keep_output[i], g[kB2][i % e] += dy[i];
    times_backward(hidden, w[kW2], dy, f, e, dhidden, g[kW2]);
    for (size_t i = 0; i < dhidden.size(); ++i) {
      dhidden[i] *= activation_slope(p.c.activation, before[i]) * keep_hidden[i];
      g[kB1][i % f] += dhidden[i];
    }
    times_backward(normal1, w[kW1], dhidden, e, f, dnormal1, g[kW1]);
    normalize_backward(y1, w[kFfNormWeight], dnormal1, grad1, g[kFfNormWeight], g[kFfNormBias]);

    Numbers dsub(grad1.size()), dout(a.out.size(), 0.0), dnormal(x1.size(), 0.0);
    for (size_t i = 0; i < dsub.size(); ++i) dsub[i] = grad1[i] * keep_attention[i], g[kOutputBias][i % e] += dsub[i];
    times_backward(a.out, w[kOutput], dsub, projected, e, dout, g[kOutput]);
    a.backward(dout);
    times_backward(normal, w[kQuery], a.grad_q, e, projected, dnormal, g[kQuery]);
    if (!p.shared) times_backward(normal, w[kKey], a.grad_k, e, projected, dnormal, g[kKey]);
    times_backward(normal, w[kValue], a.grad_v, e, projected, dnormal, g[kValue]);
    normalize_backward(x2, w[kNormWeight], dnormal, grad2, g[kNormWeight], g[kNormBias]);
  }
};

class ReversibleBlockTest : public testing::TestWithParam<Case> {
 protected:
  Context context{2};
  Stream stream{context};

  void check(const Problem& p, int32_t precision) {
    const double limit = forward_limit(precision, kForwardLimit), gradient = gradient_limit(precision, kGradientLimit);
    ASSERT_TRUE(Ok(rfn_context_set_precision(context, precision)));
    Bound b(p);
    // Queries are rounded before they are hashed, so below float32 the judge takes the op's buckets.
    const bool given = p.shared && precision != RFN_PRECISION_F32;
    if (given) b.op.buckets = b.buckets;
    ASSERT_TRUE(Ok(forward(stream, b.op)));
    Reference reference(p, given ? b.buckets.values() : std::vector<int32_t>{});
    reference.run();
    if (HasFatalFailure()) return;
    // The grid's own step may fall the other way where float32 and float64 straddle a tie; that is one step, of a value
    // near 3.
    const double grid = p.c.residual == RFN_RESIDUAL_EXACT ? std::ldexp(1.0, p.c.exponent) : 0;
    EXPECT_TRUE(Close(widen(b.stream1.values()), reference.y1, limit + grid));
    EXPECT_TRUE(Close(widen(b.stream2.values()), reference.y2, limit + grid));
    ASSERT_TRUE(Ok(backward(stream, b.op)));
    if (p.c.residual == RFN_RESIDUAL_EXACT) {
      EXPECT_TRUE(SameBits(b.stream1.values(), p.stream1));
      EXPECT_TRUE(SameBits(b.stream2.values(), p.stream2));
      EXPECT_EQ(b.report.value().count, 0);
    } else {
      // What stream 2 lost to rounding goes through the attention half before stream 1 is recovered.
      EXPECT_TRUE(Close(b.stream1.values(), p.stream1, limit));
      EXPECT_TRUE(Close(b.stream2.values(), p.stream2, limit));
    }
    EXPECT_TRUE(Close(widen(b.grad1.values()), reference.grad1, gradient));
    EXPECT_TRUE(Close(widen(b.grad2.values()), reference.grad2, gradient));
    for (int i = 0; i < kParameters; ++i) {
      const bool one = p.c.length == 1 && (i == kQuery || i == kKey);
      if (p.used(i)) {
        EXPECT_TRUE(
            Close(widen(b.gradients[i].values()), reference.g[i], gradient, one ? Zeros::kAllowed : Zeros::kRefused))
            << kNames[i];
      }
    }
  }
};

TEST_P(ReversibleBlockTest, ForwardInverseAndGradientsMatchFloat64) {
  for (const int32_t precision : precisions()) {
    SCOPED_TRACE(precision_name(precision));
    Case c = GetParam();
    // ReLU's slope jumps at 0, and rounded inputs move some hidden units across: their gradients are right, but not
    // near those of float64.
    if (precision != RFN_PRECISION_F32 && c.activation == RFN_ACTIVATION_RELU) c.activation = RFN_ACTIVATION_GELU_TANH;
    check(Problem(c, 31), precision);
  }
}

TEST_P(ReversibleBlockTest, SameBitsForEverySchedule) {
  const Problem p(GetParam(), 31);
  for (const int32_t precision : precisions()) {
    SCOPED_TRACE(precision_name(precision));
    std::vector<std::vector<float>> first;
    for_each_schedule(
        [&](int32_t threads) {
          Context other(threads, precision);
          Stream lane(other);
          Bound b(p);
          std::vector<std::vector<float>> now;
          ASSERT_TRUE(Ok(forward(lane, b.op)));
          now.push_back(b.stream1.values());
          now.push_back(b.stream2.values());
          ASSERT_TRUE(Ok(backward(lane, b.op)));
          now.push_back(b.grad1.values());
          now.push_back(b.grad2.values());
          for (const auto& gradient : b.gradients) now.push_back(gradient.values());
          if (first.empty()) first = now;
          for (size_t i = 0; i < now.size(); ++i)
            EXPECT_TRUE(SameBits(now[i], first[i])) << threads << " threads, value " << i;
        },
        precision == RFN_PRECISION_F32 ? 10 : 4);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ReversibleBlockTest, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

class ReversibleStackTest : public OpTest {
 protected:
  // A stack of LSH, local and full blocks with dropout: backward gives back every bit of every layer's input, and the
  // gradients of the inverted stack are those of one that kept all its activations.
  void run(int depth) {
    std::vector<Problem> layers;
    std::vector<std::unique_ptr<Bound>> bound;
    for (int l = 0; l < depth; ++l) {
      Case c;
      c.kind = l % 3 == 0 ? RFN_ATTENTION_LSH : l % 3 == 1 ? RFN_ATTENTION_LOCAL : RFN_ATTENTION_FULL;
      c.residual = RFN_RESIDUAL_EXACT;
      c.attention_dropout = 0.1f;
      c.output_dropout = 0.2f;
      c.feed_forward_dropout = 0.1f;
      c.length = 51;
      layers.emplace_back(c, 500 + static_cast<uint64_t>(l));
      layers.back().layer = l;
      bound.push_back(std::make_unique<Bound>(layers.back()));
    }
    Bound& first = *bound[0];
    const std::vector<float> start1 = first.stream1.values(), start2 = first.stream2.values(),
                             end_grad1 = first.grad1.values(), end_grad2 = first.grad2.values();
    const auto connect = [&](int l) {
      rfn_reversible_block& op = bound[l]->op;
      op.stream1 = first.stream1;
      op.stream2 = first.stream2;
      op.grad_stream1 = first.grad1;
      op.grad_stream2 = first.grad2;
      op.range_report = first.report;
    };
    std::vector<std::vector<float>> kept;
    for (int l = 0; l < depth; ++l) {
      connect(l);
      kept.push_back(first.stream1.values());
      kept.push_back(first.stream2.values());
      ASSERT_TRUE(Ok(forward(stream, bound[l]->op)));
    }
    const std::vector<float> end1 = first.stream1.values(), end2 = first.stream2.values();
    ASSERT_EQ(first.report.value(), rfn_range_report{});
    EXPECT_FALSE(SameBits(end1, start1));
    std::vector<std::vector<float>> inverted;
    for (int l = depth - 1; l >= 0; --l) {
      ASSERT_TRUE(Ok(backward(stream, bound[l]->op)));
      ASSERT_TRUE(SameBits(first.stream1.values(), kept[2 * l])) << "layer " << l;
      ASSERT_TRUE(SameBits(first.stream2.values(), kept[2 * l + 1])) << "layer " << l;
    }
    for (int l = 0; l < depth; ++l) {
      for (auto& gradient : bound[l]->gradients) {
        inverted.push_back(gradient.values());
        gradient.set(std::vector<float>(inverted.back().size(), 0.0f));
      }
    }
    inverted.push_back(first.grad1.values());
    inverted.push_back(first.grad2.values());

    // The stored form: each layer's outputs are put back before its backward pass.
    first.grad1.set(end_grad1);
    first.grad2.set(end_grad2);
    for (int l = depth - 1; l >= 0; --l) {
      first.stream1.set(l == depth - 1 ? end1 : kept[2 * l + 2]);
      first.stream2.set(l == depth - 1 ? end2 : kept[2 * l + 3]);
      ASSERT_TRUE(Ok(backward(stream, bound[l]->op)));
    }
    size_t i = 0;
    for (int l = 0; l < depth; ++l) {
      for (const auto& gradient : bound[l]->gradients)
        EXPECT_TRUE(SameBits(gradient.values(), inverted[i++])) << "layer " << l;
    }
    EXPECT_TRUE(SameBits(first.grad1.values(), inverted[i++]));
    EXPECT_TRUE(SameBits(first.grad2.values(), inverted[i]));
  }
};

TEST_F(ReversibleStackTest, TwoLayersInvertToTheBit) { run(2); }
// Simulated device memory is looked through for wrong writes after every kernel: the time grows with the square of
// depth.
TEST_F(ReversibleStackTest, DeepStackInvertsToTheBit) { run(device_type() == RFN_DEVICE_CUDA_ON_HOST ? 12 : 48); }

TEST_F(ReversibleStackTest, ValuesOutOfRangeAreReported) {
  Case c;
  c.residual = RFN_RESIDUAL_EXACT, c.exponent = -22;  // range +-4
  Problem p(c, 41);
  p.layer = 6;
  const int64_t at = 3 * c.width + 5;
  p.stream1[static_cast<size_t>(at)] = 1000;
  Bound b(p);
  ASSERT_TRUE(Ok(forward(stream, b.op)));
  const rfn_range_report report = b.report.value();
  EXPECT_GE(report.count, 1);
  EXPECT_EQ(report.layer, 6);
  EXPECT_EQ(report.stream, 1);
  EXPECT_LE(report.index, at);

  p.stream1[static_cast<size_t>(at)] = 0;
  p.stream2[0] = std::numeric_limits<float>::quiet_NaN();
  Bound not_a_number(p);
  ASSERT_TRUE(Ok(forward(stream, not_a_number.op)));
  EXPECT_GE(not_a_number.report.value().count, 1);
}

// ---- what the caller keeps of the forward pass ----

enum class Level { kNothing, kStreams, kActivations };

// Poisoned tensors for a block, and the names under which an op has them.
struct Kept {
  Tensor<float> stream1, stream2, query, key, value, log_sum_exp, hidden, result;
  Tensor<int32_t> buckets;

  explicit Kept(const Problem& p)
      : stream1(Bound::streams(p)),
        stream2(Bound::streams(p)),
        query(heads(p)),
        key(heads(p)),
        value(heads(p)),
        log_sum_exp({p.c.batch, p.c.heads, p.c.length}),
        hidden({p.c.batch * p.c.length, p.c.hidden}),
        result(heads(p)),
        buckets({p.c.batch, p.c.heads, p.c.rounds, p.c.length}) {}

  void give(rfn_reversible_block& op, const Problem& p, Level level) const {
    if (level == Level::kNothing) return;
    op.kept_stream1 = stream1;
    op.kept_stream2 = stream2;
    if (level == Level::kStreams) return;
    op.kept_query = query;
    op.kept_value = value;
    op.kept_log_sum_exp = log_sum_exp;
    op.kept_hidden = hidden;
    op.attention_result = result;
    if (!p.shared) op.kept_key = key;
    if (p.shared) op.buckets = buckets;
  }

  // Everything that the level keeps, as bits.
  std::vector<std::vector<uint32_t>> bits(const Problem& p, Level level) const {
    std::vector<std::vector<uint32_t>> all;
    const auto add = [&](const auto& tensor) {
      const auto values = tensor.values();
      all.emplace_back(values.size());
      std::memcpy(all.back().data(), values.data(), values.size() * sizeof(uint32_t));
    };
    if (level == Level::kNothing) return all;
    add(stream1), add(stream2);
    if (level == Level::kStreams) return all;
    add(query), add(value), add(log_sum_exp), add(hidden), add(result);
    if (!p.shared) add(key);
    if (p.shared) add(buckets);
    return all;
  }

  static std::vector<int64_t> heads(const Problem& p) { return {p.c.batch, p.c.length, p.c.heads * p.c.head_size}; }
};

// The presets' forms of LSH attention, sub-blocks of every size, and everything at once.
std::vector<Case> kept_cases() {
  std::vector<Case> all = cases();
  const auto add = [&](std::string name, auto change) {
    Case c;
    c.residual = RFN_RESIDUAL_EXACT;
    change(c);
    c.name = std::move(name);
    all.push_back(c);
  };
  add("SameBucketLogCount", [](Case& c) {
    c.attention = [](rfn_attention_options& o) {
      o.window = RFN_WINDOW_SAME_BUCKET;
      o.duplicates = RFN_DUPLICATES_LOG_COUNT;
    };
  });
  add("Strict", [](Case& c) {
    c.attention_dropout = 0.2f;
    c.attention = [](rfn_attention_options& o) {
      o.window = RFN_WINDOW_STRICT;
      o.wrap = 0;
    };
  });
  add("BothSidesL2Factors", [](Case& c) {
    c.causal = 0;
    c.masked = true;
    c.attention = [](rfn_attention_options& o) {
      o.key_norm = RFN_KEY_NORM_L2;
      o.factor_count = 2;
      o.factors[0] = 4;
      o.factors[1] = 4;
      o.repeat_chunks = 1;
      o.padded_length = 48;
    };
  });
  add("FullBias", [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.output_bias = true;
    c.output_dropout = 0.1f;
    c.feed_forward_dropout = 0.2f;
    c.activation = RFN_ACTIVATION_TANH;
  });
  add("LocalHeadGroups", [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.heads = 5;
    c.head_size = 3;
    c.head_group = 2;
    c.chunk = 16;
    c.attention_dropout = 0.3f;
    c.hidden = 33;
  });
  add("LshHeadGroups", [](Case& c) {
    c.heads = 3;
    c.head_size = 7;
    c.head_group = 2;
    c.length = 65;
    c.hidden = 600;
    c.width = 17;
    c.masked = true;
  });
  add("ManyRowsDropout", [](Case& c) {
    c.batch = 1;
    c.length = 290;
    c.hidden = 530;
    c.chunk = 270;
    c.feed_forward_dropout = 0.1f;
    c.output_dropout = 0.1f;
    c.activation = RFN_ACTIVATION_GELU_ERF;
  });
  return all;
}

class KeptTest : public testing::TestWithParam<Case> {
 protected:
  // The values of a forward and a backward pass; kept: what it left in the kept tensors.
  static std::vector<std::vector<float>> run(const Problem& p, Level level, int32_t threads, int32_t precision,
                                             std::vector<std::vector<uint32_t>>* left = nullptr) {
    Context context(threads, precision);
    Stream stream(context);
    Bound b(p);
    const Kept kept(p);
    kept.give(b.op, p, level);
    std::vector<std::vector<float>> values;
    EXPECT_TRUE(Ok(forward(stream, b.op)));
    values.push_back(b.stream1.values());
    values.push_back(b.stream2.values());
    const auto filled = kept.bits(p, level);
    if (level != Level::kNothing) {
      EXPECT_TRUE(SameBits(kept.stream1.values(), p.stream1));
      EXPECT_TRUE(SameBits(kept.stream2.values(), p.stream2));
      // Nothing that the backward pass would compute again is there: neither the hash's rotations nor what only the
      // forward products add.
      if (level == Level::kActivations) b.rotations.poison(), b.parameters[kB1].poison();
      b.parameters[kB2].poison(), b.parameters[kOutputBias].poison();
    }
    EXPECT_TRUE(Ok(backward(stream, b.op)));
    EXPECT_EQ(kept.bits(p, level), filled) << "backward reads what is kept, and no more";
    values.push_back(b.stream1.values());
    values.push_back(b.stream2.values());
    values.push_back(b.grad1.values());
    values.push_back(b.grad2.values());
    for (const auto& gradient : b.gradients) values.push_back(gradient.values());
    EXPECT_EQ(b.report.value().count, 0);
    if (left != nullptr) *left = filled;
    return values;
  }
};

TEST_P(KeptTest, EveryLevel_GivesTheBitsOfTheInvertedBlock) {
  const Problem p(GetParam(), 31);
  for (const int32_t precision : precisions()) {
    SCOPED_TRACE(precision_name(precision));
    const auto inverted = run(p, Level::kNothing, 2, precision), streams = run(p, Level::kStreams, 2, precision),
               activations = run(p, Level::kActivations, 2, precision);
    for (size_t i = 0; i < inverted.size(); ++i) {
      SCOPED_TRACE("value " + std::to_string(i));
      EXPECT_TRUE(SameBits(activations[i], streams[i]));
      if (p.c.residual == RFN_RESIDUAL_EXACT || i < 2) {
        EXPECT_TRUE(SameBits(streams[i], inverted[i]));
      } else if (precision == RFN_PRECISION_F32) {
        // Subtraction gives back rounded streams, and the attention half differentiates at those.
        EXPECT_TRUE(Close(streams[i], std::vector<double>(inverted[i].begin(), inverted[i].end()), kGradientLimit,
                          Zeros::kAllowed));
      }
    }
    EXPECT_TRUE(SameBits(streams[2], p.stream1)) << "with float residuals too";
    EXPECT_TRUE(SameBits(streams[3], p.stream2));
  }
}

TEST_P(KeptTest, Activations_SameBitsForEverySchedule) {
  const Problem p(GetParam(), 31);
  std::vector<std::vector<float>> first;
  std::vector<std::vector<uint32_t>> first_left;
  for_each_schedule(
      [&](int32_t threads) {
        std::vector<std::vector<uint32_t>> left;
        const auto now = run(p, Level::kActivations, threads, RFN_PRECISION_F32, &left);
        if (first.empty()) {
          first = now;
          first_left = left;
        }
        for (size_t i = 0; i < now.size(); ++i)
          EXPECT_TRUE(SameBits(now[i], first[i])) << threads << " threads, value " << i;
        EXPECT_EQ(left, first_left) << threads << " threads";
      },
      4);
}

INSTANTIATE_TEST_SUITE_P(All, KeptTest, testing::ValuesIn(kept_cases()),
                         [](const auto& info) { return info.param.name; });

using KeptTensorTest = OpTest;

// Each kept tensor by itself changes something: none is computed again in secret.
TEST_F(KeptTensorTest, EachOne_IsWhatBackwardReads) {
  Case c;
  c.kind = RFN_ATTENTION_LOCAL;
  c.residual = RFN_RESIDUAL_EXACT;
  c.activation = RFN_ACTIVATION_GELU_ERF;
  const Problem p(c, 31);
  const auto gradients = [&](int changed) {
    Bound b(p);
    Kept kept(p);
    kept.give(b.op, p, Level::kActivations);
    EXPECT_TRUE(Ok(forward(stream, b.op)));
    Tensor<float>* const tensors[] = {&kept.stream1, &kept.stream2,     &kept.query,  &kept.key,
                                      &kept.value,   &kept.log_sum_exp, &kept.hidden, &kept.result};
    if (changed >= 0) {
      std::vector<float> values = tensors[changed]->values();
      for (float& x : values) x += 0.5f;
      tensors[changed]->set(values);
    }
    EXPECT_TRUE(Ok(backward(stream, b.op)));
    std::vector<float> all;
    for (const auto* tensor : {&b.stream1, &b.grad2, &b.gradients[kW2], &b.gradients[kOutput]}) {
      const std::vector<float> values = tensor->values();
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  };
  const std::vector<float> right = gradients(-1);
  EXPECT_TRUE(SameBits(gradients(-1), right));
  for (int i = 0; i < 8; ++i) EXPECT_FALSE(SameBits(gradients(i), right)) << "kept tensor " << i;
}

// A forward pass alone may be asked for any of them.
TEST_F(KeptTensorTest, Some_OfAForwardPass_AreThoseOfAll) {
  for (const int32_t kind : {RFN_ATTENTION_LSH, RFN_ATTENTION_LOCAL}) {
    Case c;
    c.kind = kind;
    c.residual = RFN_RESIDUAL_EXACT;
    c.heads = 3;
    c.head_group = 2;
    const Problem p(c, 31);
    Bound all(p), some(p);
    const Kept every(p), few(p);
    every.give(all.op, p, Level::kActivations);
    some.op.kept_query = few.query;
    some.op.kept_value = few.value;
    if (p.shared) some.op.buckets = few.buckets;
    if (!p.shared) some.op.kept_key = few.key;
    ASSERT_TRUE(Ok(forward(stream, all.op)));
    ASSERT_TRUE(Ok(forward(stream, some.op)));
    EXPECT_TRUE(SameBits(few.query.values(), every.query.values()));
    EXPECT_TRUE(SameBits(few.value.values(), every.value.values()));
    if (p.shared) {
      EXPECT_EQ(few.buckets.values(), every.buckets.values());
    } else {
      EXPECT_TRUE(SameBits(few.key.values(), every.key.values()));
    }
    EXPECT_TRUE(SameBits(some.stream1.values(), all.stream1.values()));
    EXPECT_TRUE(SameBits(some.stream2.values(), all.stream2.values()));
  }
}

// A stack whose blocks keep different things has the gradients of one that keeps nothing.
TEST_F(KeptTensorTest, MixedLevels_OfAStack_GiveTheSameGradients) {
  constexpr int kDepth = 6;
  std::vector<Problem> layers;
  for (int l = 0; l < kDepth; ++l) {
    Case c;
    c.kind = l % 3 == 0 ? RFN_ATTENTION_LSH : l % 3 == 1 ? RFN_ATTENTION_LOCAL : RFN_ATTENTION_FULL;
    c.residual = RFN_RESIDUAL_EXACT;
    c.attention_dropout = 0.1f;
    c.output_dropout = 0.2f;
    c.feed_forward_dropout = 0.1f;
    c.length = 51;
    layers.emplace_back(c, 700 + static_cast<uint64_t>(l));
    layers.back().layer = l;
  }
  const auto run = [&](auto level) {
    std::vector<std::unique_ptr<Bound>> bound;
    std::vector<std::unique_ptr<Kept>> kept;
    for (int l = 0; l < kDepth; ++l) {
      bound.push_back(std::make_unique<Bound>(layers[l]));
      kept.push_back(std::make_unique<Kept>(layers[l]));
      rfn_reversible_block& op = bound[l]->op;
      kept[l]->give(op, layers[l], level(l));
      const Bound& first = *bound[0];
      op.stream1 = first.stream1;
      op.stream2 = first.stream2;
      op.grad_stream1 = first.grad1;
      op.grad_stream2 = first.grad2;
      op.range_report = first.report;
      EXPECT_TRUE(Ok(forward(stream, op)));
    }
    for (int l = kDepth - 1; l >= 0; --l) EXPECT_TRUE(Ok(backward(stream, bound[l]->op)));
    const Bound& first = *bound[0];
    std::vector<std::vector<float>> values = {first.stream1.values(), first.stream2.values(), first.grad1.values(),
                                              first.grad2.values()};
    for (const auto& block : bound) {
      for (const auto& gradient : block->gradients) values.push_back(gradient.values());
    }
    return values;
  };
  const auto expected = run([](int) { return Level::kNothing; });
  EXPECT_TRUE(SameBits(expected[0], layers[0].stream1));
  for (const int shift : {0, 1, 2}) {
    const auto found = run([&](int l) { return static_cast<Level>((2 * l + l / 3 + shift) % 3); });
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_TRUE(SameBits(found[i], expected[i])) << "shift " << shift << ", value " << i;
  }
}

// Buckets come from outside: the CPU refuses those that lead out of bounds.
TEST_F(KeptTensorTest, BucketsOutOfRange_RefusedOnTheCpu) {
  if (!on_cpu()) GTEST_SKIP() << "clamped on a device";
  Case c;
  c.residual = RFN_RESIDUAL_EXACT;
  const Problem p(c, 31);
  Bound b(p);
  Kept kept(p);
  kept.give(b.op, p, Level::kActivations);
  ASSERT_TRUE(Ok(forward(stream, b.op)));
  std::vector<int32_t> buckets = kept.buckets.values();
  buckets.back() = 1 << 20;
  kept.buckets.set(buckets);
  EXPECT_TRUE(Fails(backward(stream, b.op), RFN_INVALID_ARGUMENT, {"reversible_block", "buckets", "1048576"}));
}

}  // namespace
}  // namespace rfn::test
