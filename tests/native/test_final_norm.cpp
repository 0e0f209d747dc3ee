#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "harness.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

constexpr uint64_t kSeed = 7, kStep = 8;

struct Problem {
  int32_t combine;
  int64_t n, e, w;
  float dropout;
  std::vector<float> a, b, weight, bias, grad_y, grad_weight, grad_bias;
};

Problem problem(Random& random, int32_t combine, int64_t n, int64_t e, float dropout) {
  const int64_t w = combine == RFN_COMBINE_CONCATENATE ? 2 * e : e;
  return {combine,
          n,
          e,
          w,
          dropout,
          random.floats(n * e, -2, 3),
          random.floats(n * e),
          random.floats(w, 0.5, 1.5),
          random.floats(w),
          random.floats(n * w),
          random.floats(w),
          random.floats(w)};
}

Doubles reference(const Problem& p, const Doubles& a, const Doubles& b, const Doubles& weight, const Doubles& bias) {
  const Philox random = philox(kSeed, kStep, -1, RFN_SITE_FINAL_NORM);
  Doubles y(p.n * p.w), x(p.w);
  for (int64_t row = 0; row < p.n; ++row) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < p.w; ++i) {
      const int64_t at = row * p.e + i % p.e;
      x[i] = p.combine == RFN_COMBINE_MEAN ? (a[at] + b[at]) / 2 : i < p.e ? a[at] : b[at];
      mean += x[i] / static_cast<double>(p.w);
    }
    for (const double value : x) variance += (value - mean) * (value - mean) / static_cast<double>(p.w);
    for (int64_t i = 0; i < p.w; ++i) {
      y[row * p.w + i] = ((x[i] - mean) / std::sqrt(variance + static_cast<double>(1e-6f)) * weight[i] + bias[i]) *
                         dropout(random, row * p.w + i, p.dropout);
    }
  }
  return y;
}

struct Results {
  std::vector<float> y, grad_a, grad_b, grad_weight, grad_bias;
};

Results run(const Problem& p, int32_t threads, int64_t first_row = 0) {
  Context context(threads);
  Stream stream(context);
  const Tensor<float> a({p.n, p.e}, p.a), b({p.n, p.e}, p.b), weight({p.w}, p.weight), bias({p.w}, p.bias),
      y({p.n, p.w}), grad_y({p.n, p.w}, p.grad_y), grad_a({p.n, p.e}), grad_b({p.n, p.e}),
      grad_weight({p.w}, p.grad_weight), grad_bias({p.w}, p.grad_bias);
  auto op = make_op<rfn_final_norm>();
  op.combine = p.combine;
  op.epsilon = 1e-6f;
  op.dropout = p.dropout;
  op.seed = kSeed;
  op.step = kStep;
  op.first_row = first_row;
  op.stream1 = a;
  op.stream2 = b;
  op.weight = weight;
  op.bias = bias;
  op.y = y;
  EXPECT_TRUE(Ok(forward(stream, op)));
  op.grad_y = grad_y;
  op.grad_stream1 = grad_a;
  op.grad_stream2 = grad_b;
  op.grad_weight = grad_weight;
  op.grad_bias = grad_bias;
  EXPECT_TRUE(Ok(backward(stream, op)));
  return {y.values(), grad_a.values(), grad_b.values(), grad_weight.values(), grad_bias.values()};
}

class FinalNorm : public testing::TestWithParam<int32_t> {};

TEST_P(FinalNorm, Forward_CloseToFloat64) {
  Random random(131);
  for (const auto& [n, e] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 2}, {33, 31}, {300, 129}, {12, 300}, {3, 4102}}) {
    for (const float dropout_ : {0.0f, 0.3f}) {
      const Problem p = problem(random, GetParam(), n, e, dropout_);
      EXPECT_TRUE(
          Close(run(p, 2).y, reference(p, doubles(p.a), doubles(p.b), doubles(p.weight), doubles(p.bias)), 1e-6));
    }
  }
}

TEST_P(FinalNorm, Gradients_AreFiniteDifferences) {
  Random random(137);
  for (const auto& [e, dropout_] : std::vector<std::pair<int64_t, float>>{{7, 0.0f}, {7, 0.25f}, {12, 0.25f}}) {
    const Problem p = problem(random, GetParam(), 5, e, dropout_);
    Doubles a = doubles(p.a), b = doubles(p.b), weight = doubles(p.weight), bias = doubles(p.bias);
    const auto loss = [&] {
      const Doubles y = reference(p, a, b, weight, bias);
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += y[i] * p.grad_y[i];
      return sum;
    };
    const Results results = run(p, 2);
    EXPECT_TRUE(Close(results.grad_a, numeric_gradient(a, loss), 2e-6));
    EXPECT_TRUE(Close(results.grad_b, numeric_gradient(b, loss), 2e-6));
    EXPECT_TRUE(Close(results.grad_weight, plus(numeric_gradient(weight, loss), p.grad_weight), 2e-6));
    EXPECT_TRUE(Close(results.grad_bias, plus(numeric_gradient(bias, loss), p.grad_bias), 2e-6));
  }
}

// The gradients of every row, with the multipliers of its own elements: of row 128 on too, where a later item of rows
// begins.
TEST_P(FinalNorm, GradientsOfManyRows_CloseToFloat64) {
  Random random(138);
  for (const float dropout_ : {0.0f, 0.3f}) {
    const Problem p = problem(random, GetParam(), 390, 12, dropout_);
    const Philox multipliers = philox(kSeed, kStep, -1, RFN_SITE_FINAL_NORM);
    Doubles grad_a(p.n * p.e), grad_b(p.n * p.e), grad_weight = doubles(p.grad_weight),
                                                  grad_bias = doubles(p.grad_bias);
    const double width = static_cast<double>(p.w);
    for (int64_t row = 0; row < p.n; ++row) {
      Doubles x(p.w), d(p.w);
      double mean = 0, variance = 0, sum = 0, projection = 0;
      for (int64_t i = 0; i < p.w; ++i) {
        const int64_t at = row * p.e + i % p.e;
        x[i] = p.combine == RFN_COMBINE_MEAN ? (static_cast<double>(p.a[at]) + p.b[at]) / 2
               : i < p.e                     ? p.a[at]
                                             : p.b[at];
        mean += x[i] / width;
      }
      for (const double value : x) variance += (value - mean) * (value - mean) / width;
      const double inverse = 1 / std::sqrt(variance + static_cast<double>(1e-6f));
      for (int64_t i = 0; i < p.w; ++i) {
        const double dy = p.grad_y[row * p.w + i] * dropout(multipliers, row * p.w + i, p.dropout);
        x[i] = (x[i] - mean) * inverse;
        d[i] = dy * p.weight[i];
        grad_weight[i] += dy * x[i];
        grad_bias[i] += dy;
        sum += d[i] / width;
        projection += d[i] * x[i] / width;
      }
      for (int64_t i = 0; i < p.w; ++i) {
        const double dx = inverse * (d[i] - sum - x[i] * projection);
        const int64_t at = row * p.e + i % p.e;
        if (p.combine == RFN_COMBINE_MEAN)
          grad_a[at] = grad_b[at] = dx / 2;
        else
          (i < p.e ? grad_a : grad_b)[at] = dx;
      }
    }
    const Results results = run(p, 2);
    EXPECT_TRUE(Close(results.grad_a, grad_a, 2e-6));
    EXPECT_TRUE(Close(results.grad_b, grad_b, 2e-6));
    EXPECT_TRUE(Close(results.grad_weight, grad_weight, 2e-6));
    EXPECT_TRUE(Close(results.grad_bias, grad_bias, 2e-6));
  }
}

TEST_P(FinalNorm, EverySchedule_SameBits) {
  Random random(139);
  const Problem p = problem(random, GetParam(), 900, 21, 0.1f);
  const Results one = run(p, 1);
  EXPECT_TRUE(AllFinite(one.grad_a));
  for_each_schedule([&](int32_t threads) {
    const Results many = run(p, threads);
    EXPECT_TRUE(SameBits(many.y, one.y));
    EXPECT_TRUE(SameBits(many.grad_a, one.grad_a));
    EXPECT_TRUE(SameBits(many.grad_b, one.grad_b));
    EXPECT_TRUE(SameBits(many.grad_weight, one.grad_weight));
    EXPECT_TRUE(SameBits(many.grad_bias, one.grad_bias));
  });
}

// Rows [first, first + count) of a tensor, and of a problem.
std::vector<float> stretch_of(const std::vector<float>& values, int64_t first, int64_t count, int64_t width) {
  return std::vector<float>(values.begin() + first * width, values.begin() + (first + count) * width);
}
Problem stretch(const Problem& p, int64_t first, int64_t count) {
  Problem part = p;
  part.n = count;
  part.a = stretch_of(p.a, first, count, p.e);
  part.b = stretch_of(p.b, first, count, p.e);
  part.grad_y = stretch_of(p.grad_y, first, count, p.w);
  return part;
}

// Dropout counts elements from the first row of the whole tensor, wherever a call begins.
TEST_P(FinalNorm, StretchesOfRows_DrawWhatOneCallDraws) {
  Random random(141);
  for (const int64_t e : {1, 21, 64}) {
    const Problem p = problem(random, GetParam(), 300, e, 0.5f);
    const Results whole = run(p, 2);
    std::vector<float> grad_weight = p.grad_weight, grad_bias = p.grad_bias;
    for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {1, 128}, {129, 171}}) {
      SCOPED_TRACE("rows from " + std::to_string(first) + " on, width " + std::to_string(p.w));
      Problem part = stretch(p, first, count);
      part.grad_weight = grad_weight;
      part.grad_bias = grad_bias;
      const Results results = run(part, 2, first);
      EXPECT_TRUE(SameBits(results.y, stretch_of(whole.y, first, count, p.w)));
      EXPECT_TRUE(SameBits(results.grad_a, stretch_of(whole.grad_a, first, count, p.e)));
      EXPECT_TRUE(SameBits(results.grad_b, stretch_of(whole.grad_b, first, count, p.e)));
      grad_weight = results.grad_weight;
      grad_bias = results.grad_bias;
    }
    EXPECT_TRUE(Close(grad_weight, doubles(whole.grad_weight), 4e-6));  // 300 terms in another order
    EXPECT_TRUE(Close(grad_bias, doubles(whole.grad_bias), 4e-6));
    EXPECT_FALSE(SameBits(run(stretch(p, 129, 171), 2).y, stretch_of(whole.y, 129, 171, p.w)));
  }
}

INSTANTIATE_TEST_SUITE_P(Both, FinalNorm, testing::Values(RFN_COMBINE_CONCATENATE, RFN_COMBINE_MEAN),
                         [](const auto& info) { return info.param == RFN_COMBINE_MEAN ? "Mean" : "Concatenate"; });

}  // namespace
}  // namespace rfn::test
