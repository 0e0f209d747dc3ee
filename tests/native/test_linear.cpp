#include <gtest/gtest.h>

#include <cmath>
#include <vector>

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

Problem problem(Random& random, int64_t n, int64_t k, int64_t m, int32_t activation, bool bias) {
  const double spread = 2 / std::sqrt(static_cast<double>(k));
  return {n,
          k,
          m,
          activation,
          bias,
          random.floats(n * k),
          random.floats(m * k, -spread, spread),
          random.floats(m),
          random.floats(n * m),
          random.floats(m * k),
          random.floats(m)};
}

struct Expected {
  Doubles y, grad_x, grad_weight, grad_bias;
};

Expected reference(const Problem& p, const Doubles& x, const Doubles& weight, const Doubles& bias) {
  Expected r{Doubles(p.n * p.m), Doubles(p.n * p.k), Doubles(p.m * p.k), Doubles(p.m)};
  for (int64_t i = 0; i < p.n; ++i) {
    for (int64_t j = 0; j < p.m; ++j) {
      double z = p.has_bias ? bias[j] : 0;
      for (int64_t l = 0; l < p.k; ++l) z += x[i * p.k + l] * weight[j * p.k + l];
      r.y[i * p.m + j] = activation(p.activation, z);
      const double dz = p.grad_y[i * p.m + j] * activation_gradient(p.activation, z);
      for (int64_t l = 0; l < p.k; ++l) {
        r.grad_x[i * p.k + l] += dz * weight[j * p.k + l];
        r.grad_weight[j * p.k + l] += dz * x[i * p.k + l];
      }
      r.grad_bias[j] += dz;
    }
  }
  return r;
}

struct Results {
  std::vector<float> y, grad_x, grad_weight, grad_bias;
};

Results run(const Problem& p, int32_t threads, bool with_grad_x = true) {
  Context context(threads);
  Stream stream(context);
  const Tensor<float> x({p.n, p.k}, p.x), weight({p.m, p.k}, p.weight), bias({p.m}, p.bias), y({p.n, p.m}),
      grad_y({p.n, p.m}, p.grad_y), grad_x({p.n, p.k}), grad_weight({p.m, p.k}, p.grad_weight),
      grad_bias({p.m}, p.grad_bias);
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
