#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "half.h"
#include "harness.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

struct Problem {
  int64_t n, k, m;
  int32_t activation;
  bool has_bias;
  std::vector<float> x, weight, bias, grad_y, grad_weight, grad_bias;
};

// Of numbers that `dtype` holds, but for the bias.
Problem problem(Random& random, int64_t n, int64_t k, int64_t m, int32_t activation, bool bias,
                int32_t dtype = RFN_F32) {
  const double spread = 2 / std::sqrt(static_cast<double>(k));
  return {n,
          k,
          m,
          activation,
          bias,
          exact(dtype, random.floats(n * k)),
          exact(dtype, random.floats(m * k, -spread, spread)),
          random.floats(m),
          exact(dtype, random.floats(n * m)),
          random.floats(m * k),
          random.floats(m)};
}

struct Expected {
  Doubles y, grad_x, grad_weight, grad_bias;
  Doubles grad_x_slack, grad_weight_slack;  // what they may be off because dz was rounded
};

Expected reference(const Problem& p, const Doubles& x, const Doubles& weight, const Doubles& bias,
                   const Slack& slack = {}) {
  Expected r{Doubles(p.n * p.m), Doubles(p.n * p.k), Doubles(p.m * p.k),
             Doubles(p.m),       Doubles(p.n * p.k), Doubles(p.m * p.k)};
  for (int64_t i = 0; i < p.n; ++i) {
    for (int64_t j = 0; j < p.m; ++j) {
      double z = p.has_bias ? bias[j] : 0;
      for (int64_t l = 0; l < p.k; ++l) z += x[i * p.k + l] * weight[j * p.k + l];
      r.y[i * p.m + j] = activation(p.activation, z);
      const double dz = p.grad_y[i * p.m + j] * activation_gradient(p.activation, z);
      for (int64_t l = 0; l < p.k; ++l) {
        r.grad_x[i * p.k + l] += dz * weight[j * p.k + l];
        r.grad_weight[j * p.k + l] += dz * x[i * p.k + l];
        r.grad_x_slack[i * p.k + l] += slack(dz) * std::fabs(weight[j * p.k + l]);
        r.grad_weight_slack[j * p.k + l] += slack(dz) * std::fabs(x[i * p.k + l]);
      }
      r.grad_bias[j] += dz;
    }
  }
  return r;
}

template <class T>
struct ResultsAs {
  std::vector<T> y, grad_x;
  std::vector<float> grad_weight, grad_bias;
};
using Results = ResultsAs<float>;

template <class T = float>
ResultsAs<T> run(const Problem& p, int32_t threads, bool with_grad_x = true) {
  Context context(threads);
  Stream stream(context);
  const Tensor<T> x({p.n, p.k}, stored<T>(p.x)), weight({p.m, p.k}, stored<T>(p.weight)), y({p.n, p.m}),
      grad_y({p.n, p.m}, stored<T>(p.grad_y)), grad_x({p.n, p.k});
  const Tensor<float> bias({p.m}, p.bias), grad_weight({p.m, p.k}, p.grad_weight), grad_bias({p.m}, p.grad_bias);
  auto op = make_op<rfn_linear>();
  op.activation = p.activation;
  op.x = x;
  op.weight = weight;
  if (p.has_bias) op.bias = bias;
  op.y = y;
  EXPECT_TRUE(Ok(forward(stream, op)));
  op.grad_y = grad_y;
  if (with_grad_x) op.grad_x = grad_x;
  op.grad_weight = grad_weight;
  if (p.has_bias) op.grad_bias = grad_bias;
  EXPECT_TRUE(Ok(backward(stream, op)));
  return {y.values(), grad_x.values(), grad_weight.values(), grad_bias.values()};
}

class Linear : public testing::TestWithParam<int32_t> {};

TEST_P(Linear, OddSizes_CloseToFloat64) {
  Random random(61);
  for (const auto& [n, k, m] :
       std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 1, 1}, {31, 33, 17}, {300, 5, 530}, {257, 40, 3}}) {
    for (const bool bias : {false, true}) {
      const Problem p = problem(random, n, k, m, GetParam(), bias);
      const Expected expected = reference(p, doubles(p.x), doubles(p.weight), doubles(p.bias));
      const Results results = run(p, 2);
      const Zeros zeros = n == 1 ? Zeros::kAllowed : Zeros::kRefused;  // ReLU of one number
      EXPECT_TRUE(Close(results.y, expected.y, 2e-6, zeros));
      EXPECT_TRUE(Close(results.grad_x, expected.grad_x, 3e-6, zeros));
      EXPECT_TRUE(Close(results.grad_weight, plus(expected.grad_weight, p.grad_weight), 3e-6));
      EXPECT_TRUE(Close(results.grad_bias, bias ? plus(expected.grad_bias, p.grad_bias) : doubles(p.grad_bias), 3e-6));
    }
  }
}

TEST_P(Linear, EverySchedule_SameBits) {
  Random random(67);
  const Problem p = problem(random, 700, 33, 520, GetParam(), true);
  const Results one = run(p, 1);
  for_each_schedule([&](int32_t threads) {
    const Results many = run(p, threads);
    EXPECT_TRUE(SameBits(many.y, one.y));
    EXPECT_TRUE(SameBits(many.grad_x, one.grad_x));
    EXPECT_TRUE(SameBits(many.grad_weight, one.grad_weight));
    EXPECT_TRUE(SameBits(many.grad_bias, one.grad_bias));
  });
}

template <class T>
void expect_half_close(const Problem& p, double grad_x_limit = 3e-6) {
  constexpr int32_t kType = TypeOf<T>::value;
  SCOPED_TRACE(type_name(kType));
  const bool rounds_dz = p.activation != RFN_ACTIVATION_NONE;  // else it is grad_y
  const Expected expected = reference(p, doubles(p.x), doubles(p.weight), doubles(p.bias),
                                      rounds_dz ? slack_between_products(kType) : Slack());
  const ResultsAs<T> results = run<T>(p, 2);
  const Zeros zeros = p.n == 1 ? Zeros::kAllowed : Zeros::kRefused;
  EXPECT_TRUE(CloseRounded(results.y, expected.y, 2e-6, {}, zeros));
  EXPECT_TRUE(CloseRounded(results.grad_x, expected.grad_x, grad_x_limit, expected.grad_x_slack, zeros));
  EXPECT_TRUE(
      CloseRounded(results.grad_weight, plus(expected.grad_weight, p.grad_weight), 3e-6, expected.grad_weight_slack));
  EXPECT_TRUE(
      Close(results.grad_bias, p.has_bias ? plus(expected.grad_bias, p.grad_bias) : doubles(p.grad_bias), 3e-6));
}

TEST_P(Linear, HalfTensorsOfOddSizes_CloseToFloat64) {
  Random random(62);
  for (const auto& [n, k, m] :
       std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 1, 1}, {31, 33, 17}, {300, 5, 130}, {64, 40, 24}}) {
    for (const bool bias : {false, true}) {
      expect_half_close<BFloat16>(problem(random, n, k, m, GetParam(), bias, RFN_BF16));
      expect_half_close<Float16>(problem(random, n, k, m, GetParam(), bias, RFN_F16));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Linear, testing::Range(0, 6),
                         [](const auto& info) { return activation_name(info.param); });

TEST(LinearOp, MoreRowsThanAChunk_CloseToFloat64) {  // wide enough for two chunks of pre-activations
  Random random(71);
  const Problem p = problem(random, 520, 2, 32768, RFN_ACTIVATION_SILU, true);
  const Expected expected = reference(p, doubles(p.x), doubles(p.weight), doubles(p.bias));
  const Results results = run(p, 2);
  // 32768 products are summed one after the other by a thread of a device, in blocks by the CPU.
  EXPECT_TRUE(Close(results.grad_x, expected.grad_x, on_cpu() ? 3e-6 : 0x1p-24 * std::sqrt(32768.0)));
  EXPECT_TRUE(Close(results.grad_weight, plus(expected.grad_weight, p.grad_weight), 3e-6));
  EXPECT_TRUE(Close(results.grad_bias, plus(expected.grad_bias, p.grad_bias), 3e-6));
}

TEST(LinearOp, MoreRowsOfHalvesThanAChunk_CloseToFloat64) {
  Random random(72);
  const double limit = on_cpu() ? 3e-6 : 0x1p-24 * std::sqrt(32768.0);
  expect_half_close<BFloat16>(problem(random, 260, 1, 32800, RFN_ACTIVATION_RELU, true, RFN_BF16), limit);
}

TEST(LinearOp, HalfTensorsEverySchedule_SameBits) {
  Random random(68);
  const Problem p = problem(random, 300, 33, 130, RFN_ACTIVATION_GELU_ERF, true, RFN_BF16);
  const auto one = run<BFloat16>(p, 1);
  for_each_schedule([&](int32_t threads) {
    const auto many = run<BFloat16>(p, threads);
    EXPECT_TRUE(SameBits(many.y, one.y));
    EXPECT_TRUE(SameBits(many.grad_x, one.grad_x));
    EXPECT_TRUE(SameBits(many.grad_weight, one.grad_weight));
    EXPECT_TRUE(SameBits(many.grad_bias, one.grad_bias));
  });
}

// y is the bias: every number of the type, what lies halfway to the next one, and the floats beside that.
template <class T>
void expect_rounded_to_nearest_even() {
  constexpr int32_t kType = TypeOf<T>::value;
  SCOPED_TRACE(type_name(kType));
  std::vector<float> bias = {NAN, INFINITY, -INFINITY, 65519, 65520, -65520, 3.4e38f, 1e-45f, -1e-45f};
  for (int bits = 0; bits < 0xFFFF; bits += 7) {
    const double a = value_of(kType, static_cast<uint16_t>(bits)), b = value_of(kType, static_cast<uint16_t>(bits + 1));
    if (!std::isfinite(a) || !std::isfinite(b)) continue;
    const float between = static_cast<float>((a + b) / 2);
    for (const float value :
         {static_cast<float>(a), between, std::nextafter(between, INFINITY), std::nextafter(between, -INFINITY)}) {
      if (value != 0) bias.push_back(value);
    }
  }
  const auto n = static_cast<int64_t>(bias.size());
  Context context;
  Stream stream(context);
  const Tensor<T> x({1, 1}, {T(0.0)}), weight({n, 1}, std::vector<T>(bias.size(), T(1.0))), y({1, n});
  const Tensor<float> device_bias({n}, bias);
  auto op = make_op<rfn_linear>();
  op.x = x;
  op.weight = weight;
  op.bias = device_bias;
  op.y = y;
  ASSERT_TRUE(Ok(forward(stream, op)));
  const std::vector<T> found = y.values();
  for (size_t i = 0; i < bias.size(); ++i) {
    const uint16_t expected = bits_of(kType, rounded(kType, static_cast<double>(bias[i])));
    ASSERT_EQ(found[i].bits, expected) << bias[i];
  }
}

TEST(LinearOp, HalfResults_RoundedToNearestEven) {
  expect_rounded_to_nearest_even<BFloat16>();
  expect_rounded_to_nearest_even<Float16>();
}

TEST(LinearOp, NoGradX_LeavesItAlone) {
  Random random(73);
  const Problem p = problem(random, 5, 6, 7, RFN_ACTIVATION_TANH, true);
  const Results with = run(p, 1), without = run(p, 1, false);
  EXPECT_TRUE(Untouched(without.grad_x));
  EXPECT_TRUE(SameBits(without.grad_weight, with.grad_weight));
}

TEST(LinearOp, Gradients_AreFiniteDifferences) {
  Random random(79);
  const Problem p = problem(random, 3, 4, 5, RFN_ACTIVATION_GELU_TANH, true);
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

}  // namespace
}  // namespace rfn::test
