#include <gtest/gtest.h>

#include <vector>

#include "cpu/feed_forward.h"
#include "half.h"
#include "harness.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

constexpr uint64_t kSeed = 0xFEEDu, kStep = 12;
constexpr int32_t kLayer = 5;

struct Problem {
  int64_t n, e, f;
  int32_t activation;
  float dropout;
  int64_t chunk;
  std::vector<float> x, w1, b1, w2, b2, grad_y, grad_w1, grad_b1, grad_w2, grad_b2;
};

// Of numbers that `dtype` holds, but for the biases.
Problem problem(Random& random, int64_t n, int64_t e, int64_t f, int32_t activation, float dropout, int64_t chunk = 0,
                int32_t dtype = RFN_F32) {
  const double s1 = 2 / std::sqrt(static_cast<double>(e)), s2 = 2 / std::sqrt(static_cast<double>(f));
  return {n,
          e,
          f,
          activation,
          dropout,
          chunk,
          exact(dtype, random.floats(n * e)),
          exact(dtype, random.floats(f * e, -s1, s1)),
          random.floats(f),
          exact(dtype, random.floats(e * f, -s2, s2)),
          random.floats(e),
          exact(dtype, random.floats(n * e)),
          random.floats(f * e),
          random.floats(f),
          random.floats(e * f),
          random.floats(e)};
}

struct Expected {
  Doubles y, grad_x, grad_w1, grad_b1, grad_w2, grad_b2;
  // What they may be off because what lies between products was rounded: the hidden layer, its gradient, and dy times
  // dropout.
  Doubles y_slack, grad_x_slack, grad_w1_slack, grad_b1_slack, grad_w2_slack;
};

Expected reference(const Problem& p, const Doubles& x, const Doubles& w1, const Doubles& b1, const Doubles& w2,
                   const Doubles& b2, const Slack& slack = {}) {
  const Philox hidden_random = philox(kSeed, kStep, kLayer, RFN_SITE_FEED_FORWARD_HIDDEN);
  const Philox output_random = philox(kSeed, kStep, kLayer, RFN_SITE_FEED_FORWARD_OUTPUT);
  Expected r{Doubles(p.n * p.e), Doubles(p.n * p.e), Doubles(p.f * p.e), Doubles(p.f), Doubles(p.e * p.f), Doubles(p.e),
             Doubles(p.n * p.e), Doubles(p.n * p.e), Doubles(p.f * p.e), Doubles(p.f), Doubles(p.e * p.f)};
  Doubles z(p.f), h(p.f), dz(p.e), dz_slack(p.e);
  for (int64_t n = 0; n < p.n; ++n) {
    for (int64_t j = 0; j < p.f; ++j) {
      z[j] = b1[j];
      for (int64_t i = 0; i < p.e; ++i) z[j] += x[n * p.e + i] * w1[j * p.e + i];
      z[j] *= dropout(hidden_random, n * p.f + j, p.dropout);
      h[j] = activation(p.activation, z[j]);
    }
    for (int64_t i = 0; i < p.e; ++i) {
      double y = b2[i];
      for (int64_t j = 0; j < p.f; ++j) y += h[j] * w2[i * p.f + j];
      const double kept = dropout(output_random, n * p.e + i, p.dropout);
      r.y[n * p.e + i] = y * kept;
      for (int64_t j = 0; j < p.f; ++j) r.y_slack[n * p.e + i] += slack(h[j]) * std::fabs(w2[i * p.f + j]) * kept;
      dz[i] = p.grad_y[n * p.e + i] * kept;
      dz_slack[i] = p.dropout > 0 ? slack(dz[i]) : 0;
      r.grad_b2[i] += dz[i];
    }
    for (int64_t j = 0; j < p.f; ++j) {
      double dh = 0, dh_slack = 0;
      for (int64_t i = 0; i < p.e; ++i) {
        dh += dz[i] * w2[i * p.f + j];
        r.grad_w2[i * p.f + j] += dz[i] * h[j];
        dh_slack += dz_slack[i] * std::fabs(w2[i * p.f + j]);
        r.grad_w2_slack[i * p.f + j] += (std::fabs(dz[i]) + dz_slack[i]) * slack(h[j]) + dz_slack[i] * std::fabs(h[j]);
      }
      const double factor = activation_gradient(p.activation, z[j]) * dropout(hidden_random, n * p.f + j, p.dropout);
      dh *= factor;
      dh_slack *= std::fabs(factor);
      r.grad_b1[j] += dh;
      r.grad_b1_slack[j] += dh_slack;
      dh_slack += slack(std::fabs(dh) + dh_slack);
      for (int64_t i = 0; i < p.e; ++i) {
        r.grad_w1_slack[j * p.e + i] += dh_slack * std::fabs(x[n * p.e + i]);
        r.grad_x_slack[n * p.e + i] += dh_slack * std::fabs(w1[j * p.e + i]);
        r.grad_w1[j * p.e + i] += dh * x[n * p.e + i];
        r.grad_x[n * p.e + i] += dh * w1[j * p.e + i];
      }
    }
  }
  return r;
}

Expected reference(const Problem& p) {
  return reference(p, doubles(p.x), doubles(p.w1), doubles(p.b1), doubles(p.w2), doubles(p.b2));
}

template <class T>
struct ResultsAs {
  std::vector<T> y, grad_x;
  std::vector<float> grad_w1, grad_b1, grad_w2, grad_b2;
};
using Results = ResultsAs<float>;

template <class T = float>
ResultsAs<T> run(const Problem& p, int32_t threads) {
  Context context(threads);
  Stream stream(context);
  const Tensor<T> x({p.n, p.e}, stored<T>(p.x)), w1({p.f, p.e}, stored<T>(p.w1)), w2({p.e, p.f}, stored<T>(p.w2)),
      y({p.n, p.e}), grad_y({p.n, p.e}, stored<T>(p.grad_y)), grad_x({p.n, p.e});
  const Tensor<float> b1({p.f}, p.b1), b2({p.e}, p.b2), grad_w1({p.f, p.e}, p.grad_w1), grad_b1({p.f}, p.grad_b1),
      grad_w2({p.e, p.f}, p.grad_w2), grad_b2({p.e}, p.grad_b2);
  auto op = make_op<rfn_feed_forward>();
  op.activation = p.activation;
  op.dropout = p.dropout;
  op.layer = kLayer;
  op.seed = kSeed;
  op.step = kStep;
  op.chunk = p.chunk;
  op.x = x;
  op.w1 = w1;
  op.b1 = b1;
  op.w2 = w2;
  op.b2 = b2;
  op.y = y;
  EXPECT_TRUE(Ok(forward(stream, op)));
  op.grad_y = grad_y;
  op.grad_x = grad_x;
  op.grad_w1 = grad_w1;
  op.grad_b1 = grad_b1;
  op.grad_w2 = grad_w2;
  op.grad_b2 = grad_b2;
  EXPECT_TRUE(Ok(backward(stream, op)));
  return {y.values(), grad_x.values(), grad_w1.values(), grad_b1.values(), grad_w2.values(), grad_b2.values()};
}

void expect_close(const Problem& p, const Results& results, const Expected& expected, Zeros zeros = Zeros::kRefused) {
  EXPECT_TRUE(Close(results.y, expected.y, 2e-6, zeros));
  EXPECT_TRUE(Close(results.grad_x, expected.grad_x, 4e-6, zeros));
  EXPECT_TRUE(Close(results.grad_w1, plus(expected.grad_w1, p.grad_w1), 4e-6));
  EXPECT_TRUE(Close(results.grad_b1, plus(expected.grad_b1, p.grad_b1), 4e-6));
  EXPECT_TRUE(Close(results.grad_w2, plus(expected.grad_w2, p.grad_w2), 4e-6));
  EXPECT_TRUE(Close(results.grad_b2, plus(expected.grad_b2, p.grad_b2), 4e-6));
}

template <class T>
void expect_half_close(const Problem& p) {
  constexpr int32_t kType = TypeOf<T>::value;
  SCOPED_TRACE(type_name(kType));
  const Expected expected = reference(p, doubles(p.x), doubles(p.w1), doubles(p.b1), doubles(p.w2), doubles(p.b2),
                                      slack_between_products(kType));
  const ResultsAs<T> results = run<T>(p, 2);
  EXPECT_TRUE(CloseRounded(results.y, expected.y, 2e-6, expected.y_slack));
  EXPECT_TRUE(CloseRounded(results.grad_x, expected.grad_x, 4e-6, expected.grad_x_slack));
  EXPECT_TRUE(CloseRounded(results.grad_w1, plus(expected.grad_w1, p.grad_w1), 4e-6, expected.grad_w1_slack));
  EXPECT_TRUE(CloseRounded(results.grad_b1, plus(expected.grad_b1, p.grad_b1), 4e-6, expected.grad_b1_slack));
  EXPECT_TRUE(CloseRounded(results.grad_w2, plus(expected.grad_w2, p.grad_w2), 4e-6, expected.grad_w2_slack));
  EXPECT_TRUE(Close(results.grad_b2, plus(expected.grad_b2, p.grad_b2), 4e-6));
}

void expect_same_bits(const Results& a, const Results& b) {
  EXPECT_TRUE(SameBits(a.y, b.y));
  EXPECT_TRUE(SameBits(a.grad_x, b.grad_x));
  EXPECT_TRUE(SameBits(a.grad_w1, b.grad_w1));
  EXPECT_TRUE(SameBits(a.grad_b1, b.grad_b1));
  EXPECT_TRUE(SameBits(a.grad_w2, b.grad_w2));
  EXPECT_TRUE(SameBits(a.grad_b2, b.grad_b2));
}

class FeedForwardActivation : public testing::TestWithParam<int32_t> {};

TEST_P(FeedForwardActivation, OddSizes_CloseToFloat64) {
  Random random(83);
  for (const auto& [n, e, f] :
       std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 1, 1}, {33, 31, 17}, {300, 20, 530}}) {
    for (const float p : {0.0f, 0.25f}) {
      const Problem problem_ = problem(random, n, e, f, GetParam(), p);
      expect_close(problem_, run(problem_, 2), reference(problem_), n == 1 ? Zeros::kAllowed : Zeros::kRefused);
    }
  }
}

TEST_P(FeedForwardActivation, HalfTensorsOfOddSizes_CloseToFloat64) {
  Random random(84);
  for (const auto& [n, e, f] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{{33, 31, 17}, {70, 24, 130}}) {
    for (const float p : {0.0f, 0.25f}) {
      expect_half_close<BFloat16>(problem(random, n, e, f, GetParam(), p, 0, RFN_BF16));
      expect_half_close<Float16>(problem(random, n, e, f, GetParam(), p, 0, RFN_F16));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, FeedForwardActivation, testing::Range(0, 6),
                         [](const auto& info) { return activation_name(info.param); });

// Widths of more than a tile of the weights' gradients (256), and units of more than one.
TEST(FeedForward, WiderThanAGradientTile_CloseToFloat64) {
  Random random(88);
  for (const auto& [e, f] : std::vector<std::pair<int64_t, int64_t>>{{257, 20}, {530, 12}, {260, 270}}) {
    const Problem p = problem(random, 9, e, f, RFN_ACTIVATION_SILU, 0.2f);
    expect_close(p, run(p, 2), reference(p));
  }
}

TEST(FeedForward, AnyChunk_SameDropoutAndCloseToFloat64) {
  Random random(89);
  Problem p = problem(random, 301, 12, 40, RFN_ACTIVATION_RELU, 0.2f);
  const Expected expected = reference(p);
  for (const int64_t chunk : {1, 7, 100, 301, 1000}) {
    p.chunk = chunk;
    expect_close(p, run(p, 3), expected);
  }
}

TEST(FeedForward, AnyChunkOfHalves_CloseToFloat64) {
  Random random(90);
  for (const int64_t chunk : {30, 100}) {
    expect_half_close<BFloat16>(problem(random, 101, 12, 40, RFN_ACTIVATION_RELU, 0.2f, chunk, RFN_BF16));
    expect_half_close<Float16>(problem(random, 101, 12, 40, RFN_ACTIVATION_SILU, 0.2f, chunk, RFN_F16));
  }
}

TEST(FeedForward, EverySchedule_SameBits) {
  Random random(97);
  Problem p = problem(random, 600, 33, 1100, RFN_ACTIVATION_GELU_ERF, 0.1f);
  for (const int64_t chunk : {0, 250}) {
    p.chunk = chunk;
    const Results one = run(p, 1);
    for_each_schedule([&](int32_t threads) { expect_same_bits(run(p, threads), one); });
  }
}

TEST(FeedForward, Gradients_AreFiniteDifferences) {
  Random random(101);
  const Problem p = problem(random, 4, 3, 6, RFN_ACTIVATION_GELU_ERF, 0.2f);
  Doubles x = doubles(p.x), w1 = doubles(p.w1), b1 = doubles(p.b1), w2 = doubles(p.w2), b2 = doubles(p.b2);
  const auto loss = [&] {
    const Expected r = reference(p, x, w1, b1, w2, b2);
    double sum = 0;
    for (size_t i = 0; i < r.y.size(); ++i) sum += r.y[i] * p.grad_y[i];
    return sum;
  };
  expect_close(p, run(p, 1),
               {reference(p).y,
                numeric_gradient(x, loss),
                numeric_gradient(w1, loss),
                numeric_gradient(b1, loss),
                numeric_gradient(w2, loss),
                numeric_gradient(b2, loss),
                {},
                {},
                {},
                {},
                {}});
}

// Items that take long enough for two threads to be in them at once: each has scratch of its own.
TEST(FeedForwardChunk, ThreadsAtOnce_SameBits) {
  Random random(98);
  constexpr int64_t kRows = 2048, kWidth = 16, kHidden = 512;
  const Problem p = problem(random, kRows, kWidth, kHidden, RFN_ACTIVATION_GELU_TANH, 0.0f);
  FeedForward op{};
  op.width = kWidth;
  op.hidden = kHidden;
  op.activation = p.activation;
  op.w1 = p.w1.data();
  op.b1 = p.b1.data();
  op.w2 = p.w2.data();
  op.b2 = p.b2.data();
  const auto run_on = [&](int32_t threads) {
    std::vector<float> scratch(cpu::feed_forward_forward_scratch(op, threads, kRows)), y(kRows * kWidth);
    cpu::feed_forward_chunk_forward(threads, op, 0, kRows, p.x.data(), scratch.data(), nullptr, y.data());
    return y;
  };
  const std::vector<float> one = run_on(1);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(SameBits(run_on(2), one));
}

// What exact residuals rest on: the backward pass recomputes y to the bit, whatever the threads.
TEST(FeedForwardChunk, Backward_RecomputesTheBitsOfForward) {
  Random random(103);
  for (const auto& [n, e, f] :
       std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 8, 8}, {31, 40, 33}, {300, 24, 1030}, {2100, 16, 64}}) {
    for (const float dropout_ : {0.0f, 0.3f}) {
      const Problem p = problem(random, n, e, f, RFN_ACTIVATION_GELU_TANH, dropout_);
      std::vector<float> grad_w1 = p.grad_w1, grad_b1 = p.grad_b1, grad_w2 = p.grad_w2, grad_b2 = p.grad_b2, first;
      const FeedForward op{e,
                           f,
                           p.activation,
                           dropout_,
                           philox(kSeed, kStep, kLayer, RFN_SITE_FEED_FORWARD_HIDDEN),
                           philox(kSeed, kStep, kLayer, RFN_SITE_FEED_FORWARD_OUTPUT),
                           p.w1.data(),
                           p.b1.data(),
                           p.w2.data(),
                           p.b2.data(),
                           grad_w1.data(),
                           grad_b1.data(),
                           grad_w2.data(),
                           grad_b2.data()};
      for (const int32_t threads : kThreadCounts) {
        const GuardedMemory scratch(cpu::feed_forward_forward_scratch(op, threads, n) * 4, 0);
        const GuardedMemory scratch_backward(cpu::feed_forward_backward_scratch(op, threads, n) * 4, 0);
        const Tensor<float> y({n, e}), y_again({n, e}), dx({n, e});
        cpu::feed_forward_chunk_forward(threads, op, 1000, n, p.x.data(), static_cast<float*>(scratch.data()), nullptr,
                                        y.data());
        cpu::feed_forward_chunk_backward(threads, op, 1000, n, p.x.data(), p.grad_y.data(),
                                         static_cast<float*>(scratch_backward.data()), nullptr, y_again.data(),
                                         dx.data());
        EXPECT_TRUE(AllFinite(y.values()));
        EXPECT_TRUE(SameBits(y_again.values(), y.values()));
        if (first.empty()) first = y.values();
        EXPECT_TRUE(SameBits(y.values(), first));
      }
    }
  }
}

}  // namespace
}  // namespace rfn::test
