#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "half.h"
#include "harness.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

struct Problem {
  int64_t n, e;
  float epsilon;
  std::vector<float> x, weight, bias, grad_y, grad_weight, grad_bias;  // the last two: what the gradients are added to
};

Problem problem(Random& random, int64_t n, int64_t e, double center = 0, double spread = 1) {
  return {n,
          e,
          1e-5f,
          random.floats(n * e, center - spread, center + spread),
          random.floats(e, 0.5, 1.5),
          random.floats(e),
          random.floats(n * e),
          random.floats(e),
          random.floats(e)};
}

struct Expected {
  Doubles y, grad_x, grad_weight, grad_bias;
};

Expected reference(const Problem& p, const Doubles& x, const Doubles& weight, const Doubles& bias) {
  Expected r{Doubles(p.n * p.e), Doubles(p.n * p.e), Doubles(p.e), Doubles(p.e)};
  for (int64_t row = 0; row < p.n; ++row) {
    const int64_t at = row * p.e;
    double mean = 0, variance = 0, g_mean = 0, gx_mean = 0;
    for (int64_t i = 0; i < p.e; ++i) mean += x[at + i] / static_cast<double>(p.e);
    for (int64_t i = 0; i < p.e; ++i) variance += (x[at + i] - mean) * (x[at + i] - mean) / static_cast<double>(p.e);
    const double inverse = 1 / std::sqrt(variance + static_cast<double>(p.epsilon));
    for (int64_t i = 0; i < p.e; ++i) {
      const double xhat = (x[at + i] - mean) * inverse, dy = p.grad_y[at + i];
      r.y[at + i] = xhat * weight[i] + bias[i];
      r.grad_weight[i] += dy * xhat;
      r.grad_bias[i] += dy;
      g_mean += dy * weight[i] / static_cast<double>(p.e);
      gx_mean += dy * weight[i] * xhat / static_cast<double>(p.e);
    }
    for (int64_t i = 0; i < p.e; ++i) {
      r.grad_x[at + i] = inverse * (p.grad_y[at + i] * weight[i] - g_mean - (x[at + i] - mean) * inverse * gx_mean);
    }
  }
  return r;
}

Expected reference(const Problem& p) { return reference(p, doubles(p.x), doubles(p.weight), doubles(p.bias)); }

template <class T>
struct ResultsAs {
  std::vector<T> y;
  std::vector<float> grad_x, grad_weight, grad_bias;
};
using Results = ResultsAs<float>;

// y and its gradient of T.
template <class T = float>
ResultsAs<T> run(const Problem& p, int32_t threads) {
  Context context(threads);
  Stream stream(context);
  const Tensor<float> x({p.n, p.e}, p.x), weight({p.e}, p.weight), bias({p.e}, p.bias), grad_x({p.n, p.e}),
      grad_weight({p.e}, p.grad_weight), grad_bias({p.e}, p.grad_bias);
  const Tensor<T> y({p.n, p.e}), grad_y({p.n, p.e}, stored<T>(p.grad_y));
  auto op = make_op<rfn_layer_norm>();
  op.epsilon = p.epsilon;
  op.x = x;
  op.weight = weight;
  op.bias = bias;
  op.y = y;
  EXPECT_TRUE(Ok(forward(stream, op)));
  op.grad_y = grad_y;
  op.grad_x = grad_x;
  op.grad_weight = grad_weight;
  op.grad_bias = grad_bias;
  EXPECT_TRUE(Ok(backward(stream, op)));
  return {y.values(), grad_x.values(), grad_weight.values(), grad_bias.values()};
}

class LayerNorm : public testing::TestWithParam<std::pair<int64_t, int64_t>> {};

TEST_P(LayerNorm, OddSizes_CloseToFloat64) {
  const auto [n, e] = GetParam();
  Random random(31);
  const Problem p = problem(random, n, e);
  const Expected expected = reference(p);
  const Results results = run(p, 2);
  EXPECT_TRUE(Close(results.y, expected.y, 1e-6));
  if (e > 1) {
    EXPECT_TRUE(Close(results.grad_x, expected.grad_x, 2e-6));
  } else {  // a single number is its own mean: nothing but the rounding of two terms of size 1 / sqrt(epsilon) is left
    EXPECT_NEAR(results.grad_x[0], 0, 1e-7 / std::sqrt(static_cast<double>(p.epsilon)));
  }
  EXPECT_TRUE(Close(results.grad_weight, plus(expected.grad_weight, p.grad_weight), 2e-6));
  EXPECT_TRUE(Close(results.grad_bias, plus(expected.grad_bias, p.grad_bias), 2e-6));
}

template <class T>
void expect_half_close(Problem p) {
  SCOPED_TRACE(type_name(TypeOf<T>::value));
  p.grad_y = exact(TypeOf<T>::value, p.grad_y);
  const Expected expected = reference(p);
  const ResultsAs<T> results = run<T>(p, 2);
  EXPECT_TRUE(CloseRounded(results.y, expected.y, 1e-6));
  EXPECT_TRUE(Close(results.grad_x, expected.grad_x, 2e-6));
  EXPECT_TRUE(Close(results.grad_weight, plus(expected.grad_weight, p.grad_weight), 2e-6));
  EXPECT_TRUE(Close(results.grad_bias, plus(expected.grad_bias, p.grad_bias), 2e-6));
}

TEST_P(LayerNorm, HalfResultsOfOddSizes_CloseToFloat64) {
  const auto [n, e] = GetParam();
  if (e == 1) return;  // y is the bias, and grad_x nothing but rounding
  Random random(32);
  const Problem p = problem(random, n, e);
  expect_half_close<BFloat16>(p);
  expect_half_close<Float16>(p);
}

INSTANTIATE_TEST_SUITE_P(Sizes, LayerNorm,
                         testing::Values(std::pair(1, 1), std::pair(1, 31), std::pair(33, 33), std::pair(130, 7),
                                         std::pair(129, 64), std::pair(2, 1031), std::pair(9000, 16),
                                         std::pair(11, 4999)),
                         [](const auto& info) {
                           return std::to_string(info.param.first) + "x" + std::to_string(info.param.second);
                         });

TEST(LayerNormOp, RowsFarFromZero_KeepTheirPrecision) {
  Random random(37);
  const Problem p = problem(random, 40, 257, 1000, 1);
  const Expected expected = reference(p);
  const Results results = run(p, 2);
  EXPECT_TRUE(Close(results.y, expected.y, 1e-6));
  EXPECT_TRUE(Close(results.grad_x, expected.grad_x, 2e-6));
}

TEST(LayerNormOp, ConstantRows_GiveTheBias) {
  Random random(41);
  Problem p = problem(random, 3, 33);
  p.x.assign(p.x.size(), 5.0f);
  const Results results = run(p, 1);
  for (int64_t i = 0; i < 3 * 33; ++i) EXPECT_EQ(results.y[i], p.bias[i % 33]);
}

TEST(LayerNormOp, Gradients_AreFiniteDifferences) {
  Random random(43);
  const Problem p = problem(random, 3, 5);
  Doubles x = doubles(p.x), weight = doubles(p.weight), bias = doubles(p.bias);
  const auto loss = [&] {
    const Expected r = reference(p, x, weight, bias);
    double sum = 0;
    for (size_t i = 0; i < r.y.size(); ++i) sum += r.y[i] * p.grad_y[i];
    return sum;
  };
  const Results results = run(p, 1);
  EXPECT_TRUE(Close(results.grad_x, numeric_gradient(x, loss), 2e-6));
  EXPECT_TRUE(Close(results.grad_weight, plus(numeric_gradient(weight, loss), p.grad_weight), 2e-6));
  EXPECT_TRUE(Close(results.grad_bias, plus(numeric_gradient(bias, loss), p.grad_bias), 2e-6));
}

TEST(LayerNormOp, EverySchedule_SameBits) {
  Random random(47);
  const Problem p = problem(random, 1000, 45);
  const Results one = run(p, 1);
  for_each_schedule([&](int32_t threads) {
    const Results many = run(p, threads);
    EXPECT_TRUE(SameBits(many.y, one.y));
    EXPECT_TRUE(SameBits(many.grad_x, one.grad_x));
    EXPECT_TRUE(SameBits(many.grad_weight, one.grad_weight));
    EXPECT_TRUE(SameBits(many.grad_bias, one.grad_bias));
  });
}

TEST(LayerNormOp, NanInARow_StaysInItsRow) {
  Random random(53);
  Problem p = problem(random, 3, 17);
  p.x[17 + 4] = std::nanf("");
  const Results results = run(p, 1);
  for (int64_t i = 0; i < 3 * 17; ++i) EXPECT_EQ(std::isnan(results.y[i]), i / 17 == 1) << i;
}

}  // namespace
}  // namespace rfn::test
