#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "harness.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

constexpr int32_t kIgnored = -100;

struct Problem {
  int64_t n = 33, k = 17, v = 31;
  float smoothing = 0, loss_scale = 1;
  double normalizer = 0;
  int64_t chunk = 0;
  bool has_bias = true, in_place = false;
  double spread = 1;  // of the logits
  int32_t ignored_every = 5;
  int32_t precision = RFN_PRECISION_F32;
};

struct Data {
  std::vector<float> x, weight, bias, grad_weight, grad_bias;
  std::vector<int32_t> labels;
};

Data data(Random& random, const Problem& p) {
  const double s = 2 * p.spread / std::sqrt(static_cast<double>(p.k));
  Data d{random.floats(p.n * p.k), random.floats(p.v * p.k, -s, s), random.floats(p.v), random.floats(p.v * p.k),
         random.floats(p.v),       random.integers(p.n, p.v)};
  for (int64_t i = 1; i < p.n; i += p.ignored_every) d.labels[i] = kIgnored;
  return d;
}

struct Expected {
  Doubles statistics, grad_x, grad_weight, grad_bias;
  double scaled_loss;  // what the gradients are of
};

Expected reference(const Problem& p, const Data& d, const Doubles& x, const Doubles& weight, const Doubles& bias) {
  Expected r{Doubles(3), Doubles(p.n * p.k), Doubles(p.v * p.k), Doubles(p.v), 0};
  for (const int32_t label : d.labels) r.statistics[1] += label != kIgnored;
  const double scale = r.statistics[1] == 0 ? 0 : p.loss_scale / (p.normalizer != 0 ? p.normalizer : r.statistics[1]);
  Doubles z(p.v);
  for (int64_t n = 0; n < p.n; ++n) {
    const int32_t label = d.labels[n];
    if (label == kIgnored) continue;
    double largest = -INFINITY, sum = 0;
    int64_t first = 0;
    for (int64_t j = 0; j < p.v; ++j) {
      z[j] = p.has_bias ? bias[j] : 0;
      for (int64_t i = 0; i < p.k; ++i) z[j] += x[n * p.k + i] * weight[j * p.k + i];
      if (z[j] > largest) {
        largest = z[j];
        first = j;
      }
    }
    for (int64_t j = 0; j < p.v; ++j) sum += std::exp(z[j] - largest);
    const double log_sum_exp = largest + std::log(sum);
    r.statistics[2] += first == label;
    for (int64_t j = 0; j < p.v; ++j) {
      const double q =
          (j == label ? 1.0 - p.smoothing : 0.0) + static_cast<double>(p.smoothing) / static_cast<double>(p.v);
      r.statistics[0] += q * (log_sum_exp - z[j]);
      const double dz = scale * (std::exp(z[j] - log_sum_exp) - q);
      r.grad_bias[j] += dz;
      for (int64_t i = 0; i < p.k; ++i) {
        r.grad_x[n * p.k + i] += dz * weight[j * p.k + i];
        r.grad_weight[j * p.k + i] += dz * x[n * p.k + i];
      }
    }
  }
  r.scaled_loss = scale * r.statistics[0];
  return r;
}

Expected reference(const Problem& p, const Data& d) {
  return reference(p, d, doubles(d.x), doubles(d.weight), doubles(d.bias));
}

struct Results {
  rfn_status status;
  std::vector<double> statistics, forward_statistics;
  std::vector<float> grad_x, grad_weight, grad_bias;
};

std::vector<double> numbers(const rfn_loss_statistics& s) { return {s.loss, s.rows, s.correct}; }

Results run(const Problem& p, const Data& d, int32_t threads) {
  Context context(threads, p.precision);
  Stream stream(context);
  const Tensor<float> x({p.n, p.k}, d.x), weight({p.v, p.k}, d.weight), bias({p.v}, d.bias), grad_x({p.n, p.k}),
      grad_weight({p.v, p.k}, d.grad_weight), grad_bias({p.v}, d.grad_bias);
  const Tensor<int32_t> labels({p.n}, d.labels);
  Result<rfn_loss_statistics> statistics, forward_statistics;
  statistics.poison();
  forward_statistics.poison();
  auto op = make_op<rfn_head_loss>();
  op.ignore_index = kIgnored;
  op.label_smoothing = p.smoothing;
  op.loss_scale = p.loss_scale;
  op.normalizer = p.normalizer;
  op.chunk = p.chunk;
  op.x = x;
  op.weight = weight;
  if (p.has_bias) op.bias = bias;
  op.labels = labels;
  op.statistics = forward_statistics;
  const rfn_status status = forward(stream, op);
  op.statistics = statistics;
  op.grad_x = p.in_place ? x : grad_x;
  op.grad_weight = grad_weight;
  if (p.has_bias) op.grad_bias = grad_bias;
  EXPECT_EQ(backward(stream, op), status);
  return {status,
          numbers(statistics.value()),
          numbers(forward_statistics.value()),
          p.in_place ? x.values() : grad_x.values(),
          grad_weight.values(),
          grad_bias.values()};
}

void expect_close(const Problem& p, const Data& d, const Results& results, const Expected& expected) {
  const double limit = gradient_limit(p.precision, 3e-6);
  EXPECT_EQ(results.status, RFN_OK);
  EXPECT_NEAR(results.statistics[0], expected.statistics[0],
              forward_limit(p.precision, 1e-6) * std::fabs(expected.statistics[0]));
  EXPECT_EQ(results.statistics[1], expected.statistics[1]);
  EXPECT_EQ(results.statistics[2], expected.statistics[2]);
  EXPECT_TRUE(SameBits(results.forward_statistics, results.statistics));
  EXPECT_TRUE(Close(results.grad_x, expected.grad_x, limit));
  EXPECT_TRUE(Close(results.grad_weight, plus(expected.grad_weight, d.grad_weight), limit));
  EXPECT_TRUE(
      Close(results.grad_bias, p.has_bias ? plus(expected.grad_bias, d.grad_bias) : doubles(d.grad_bias), limit));
}

void expect_close(const Problem& p, uint64_t seed) {
  Random random(seed);
  const Data d = data(random, p);
  expect_close(p, d, run(p, d, 2), reference(p, d));
}

TEST(HeadLoss, OddSizes_CloseToFloat64) {
  for (const auto& [n, k, v] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 2}, {31, 33, 2}, {33, 17, 31}, {300, 5, 257}, {40, 64, 1031}, {5, 9, 5000}}) {
    for (const float smoothing : {0.0f, 0.1f, 1.0f}) {
      Problem p;
      p.n = n;
      p.k = k;
      p.v = v;
      p.smoothing = smoothing;
      p.loss_scale = 100;
      expect_close(p, 149);
    }
  }
}

TEST(HeadLoss, ChunksScalesAndAbsentBias_CloseToFloat64) {
  for (const int64_t chunk : {1, 7, 33, 100}) {
    Problem p;
    p.chunk = chunk;
    p.has_bias = false;
    p.loss_scale = 1024;
    p.normalizer = 7.5;
    p.smoothing = 0.2f;
    expect_close(p, 151);
  }
}

// What each chunk of rows adds: most labels are the largest logit, so that every chunk has hits, losses and ignored
// rows.
TEST(HeadLoss, StatisticsOfSeveralChunks_AreThoseOfAllRows) {
  for (const int64_t chunk : {7, 40, 0}) {
    Problem p;
    p.n = 131;
    p.chunk = chunk;
    Random random(153);
    Data d = data(random, p);
    int64_t hits = 0;
    for (int64_t n = 0; n < p.n; ++n) {
      if (d.labels[n] == kIgnored || n % 4 == 2) continue;
      double largest = -INFINITY;
      for (int64_t j = 0; j < p.v; ++j) {
        double z = d.bias[j];
        for (int64_t i = 0; i < p.k; ++i) z += static_cast<double>(d.x[n * p.k + i]) * d.weight[j * p.k + i];
        if (z > largest) largest = z, d.labels[n] = static_cast<int32_t>(j);
      }
      ++hits;
    }
    const Expected expected = reference(p, d);
    EXPECT_GE(expected.statistics[2], static_cast<double>(hits));
    EXPECT_GT(hits, 70);
    expect_close(p, d, run(p, d, 2), expected);
  }
}

TEST(HeadLoss, SeveralAutomaticChunks_CloseToFloat64) {
  Problem p;
  p.n = 300;
  p.k = 3;
  p.v = 17000;
  expect_close(p, 157);
}

TEST(HeadLoss, GradXInPlaceOfX_SameBits) {
  for (const int64_t chunk : {0, 10}) {
    Problem p;
    p.chunk = chunk;
    Random random(163);
    const Data d = data(random, p);
    const Results apart = run(p, d, 2);
    p.in_place = true;
    const Results together = run(p, d, 2);
    EXPECT_TRUE(SameBits(together.grad_x, apart.grad_x));
    EXPECT_TRUE(SameBits(together.grad_weight, apart.grad_weight));
  }
}

TEST(HeadLoss, LargeLogits_CloseToFloat64) {
  Problem p;
  p.spread = 300;
  p.loss_scale = 10;
  expect_close(p, 167);
}

// Products may only use tensor cores where rows are 16 bytes aligned; the logits' are for any vocabulary.
TEST(HeadLoss, EveryPrecision_CloseToFloat64AndInUse) {
  std::vector<float> unrounded;
  for (const int32_t precision : precisions()) {
    SCOPED_TRACE(precision_name(precision));
    Problem p;
    p.k = 64;
    p.v = 258;
    p.chunk = 20;
    p.loss_scale = 100;
    p.precision = precision;
    Random random(199);
    const Data d = data(random, p);
    const Results results = run(p, d, 2);
    expect_close(p, d, results, reference(p, d));
    if (precision == RFN_PRECISION_F32) unrounded = results.grad_x;
    EXPECT_EQ(static_cast<bool>(SameBits(results.grad_x, unrounded)),
              precision == RFN_PRECISION_F32 || !tensors_are_aligned);
  }
}

TEST(HeadLoss, Gradients_AreFiniteDifferences) {
  Problem p;
  p.n = 4;
  p.k = 3;
  p.v = 5;
  p.smoothing = 0.1f;
  p.loss_scale = 3;
  Random random(173);
  const Data d = data(random, p);
  Doubles x = doubles(d.x), weight = doubles(d.weight), bias = doubles(d.bias);
  const auto loss = [&] { return reference(p, d, x, weight, bias).scaled_loss; };
  Expected expected = reference(p, d);
  expected.grad_x = numeric_gradient(x, loss);
  expected.grad_weight = numeric_gradient(weight, loss);
  expected.grad_bias = numeric_gradient(bias, loss);
  expect_close(p, d, run(p, d, 1), expected);
}

TEST(HeadLoss, EverySchedule_SameBits) {
  Problem p;
  p.n = 700;
  p.v = 900;
  p.k = 33;
  Random random(179);
  const Data d = data(random, p);
  const Results one = run(p, d, 1);
  for_each_schedule([&](int32_t threads) {
    const Results many = run(p, d, threads);
    EXPECT_TRUE(SameBits(many.statistics, one.statistics));
    EXPECT_TRUE(SameBits(many.grad_x, one.grad_x));
    EXPECT_TRUE(SameBits(many.grad_weight, one.grad_weight));
    EXPECT_TRUE(SameBits(many.grad_bias, one.grad_bias));
  });
}

TEST(HeadLoss, AllRowsIgnored_GivesZeros) {
  Problem p;
  Random random(181);
  Data d = data(random, p);
  d.labels.assign(d.labels.size(), kIgnored);
  const Results results = run(p, d, 2);
  EXPECT_EQ(results.statistics, std::vector<double>(3));
  EXPECT_EQ(results.grad_x, std::vector<float>(d.x.size()));
  EXPECT_TRUE(SameBits(results.grad_weight, d.grad_weight));
}

TEST(HeadLoss, EqualLogits_TheFirstCounts) {
  Problem p;
  p.has_bias = false;
  Random random(191);
  Data d = data(random, p);
  d.weight.assign(d.weight.size(), 0.0f);
  for (int64_t i = 0; i < p.n; ++i) d.labels[i] = static_cast<int32_t>(i % 3);
  EXPECT_EQ(run(p, d, 1).statistics[2], 11);
}

TEST(HeadLoss, NotFiniteLogit_MakesTheLossNotFinite) {
  for (const float bad : {std::nanf(""), INFINITY}) {
    for (const int64_t at : {0, 16, 30}) {
      Problem p;
      Random random(193);
      Data d = data(random, p);
      d.bias[at] = bad;
      const Results results = run(p, d, 1);
      EXPECT_FALSE(std::isfinite(results.statistics[0])) << bad << " at " << at;
      EXPECT_FALSE(std::isfinite(results.grad_x[0]));
    }
  }
}

// A device can't say it without waiting: there the loss is NaN.
TEST(HeadLoss, BadLabel_IsNamedAndNothingIsWrittenOrTheLossIsNan) {
  for (const int32_t bad : {-1, 31, INT32_MIN}) {
    Problem p;
    Random random(197);
    Data d = data(random, p);
    d.labels[27] = bad;
    const Results results = run(p, d, 2);
    if (!on_cpu()) {
      EXPECT_EQ(results.status, RFN_OK);
      EXPECT_TRUE(std::isnan(results.statistics[0]));
      continue;
    }
    EXPECT_TRUE(Fails(results.status, RFN_INVALID_ARGUMENT, {"labels[27]", "0 .. 30", "-100", std::to_string(bad)}));
    EXPECT_TRUE(Untouched(results.statistics));
    EXPECT_TRUE(Untouched(results.grad_x));
    EXPECT_TRUE(SameBits(results.grad_weight, d.grad_weight));
  }
}

TEST(HeadLoss, MillionTokens_WorkspaceStaysSmall) {
  Context context(8);
  auto op = make_op<rfn_head_loss>();
  op.x = shape({1 << 20, 1024});
  op.labels = shape({1 << 20}, RFN_I32);
  for (const int64_t v : {256, 5000, 50000}) {
    op.weight = shape({v, 1024});
    int64_t bytes = -1;
    ASSERT_TRUE(Ok(rfn_head_loss_workspace(context, &op, RFN_PASS_BACKWARD, &bytes)));
    // A device needs more rows at a time for its products to be fast: 4,096 of them, or 16 MiB of logits.
    const int64_t logits = std::max(int64_t{16} << 20, int64_t{4096 * 4} * v);
    EXPECT_LE(bytes, on_cpu() ? int64_t{32} << 20 : logits + (int64_t{14} << 20)) << v;
  }
}

}  // namespace
}  // namespace rfn::test
