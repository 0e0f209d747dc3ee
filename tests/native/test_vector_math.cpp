// The element-wise functions that the ops of the CPU backend are made of, compiled into the tests.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "compare.h"
#include "cpu/convert.h"
#include "cpu/vector_math.h"
#include "half.h"
#include "reference_ops.h"
#include "reformer_native.h"

namespace rfn::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kSizes[] = {0, 1, 3, 4, 5, 15, 16, 17, 31, 33, 100, 257};

// Room around a row for what must not be written.
struct Row {
  explicit Row(const std::vector<float>& values)
      : n(static_cast<int64_t>(values.size())), memory(values.size() + 2, poison()) {
    std::copy(values.begin(), values.end(), memory.begin() + 1);
  }
  ~Row() { EXPECT_TRUE(Untouched(std::vector<float>{memory.front(), memory.back()})); }
  float* data() { return memory.data() + 1; }
  std::vector<float> values() const { return {memory.begin() + 1, memory.end() - 1}; }
  int64_t n;
  std::vector<float> memory;
};

class Activation : public testing::TestWithParam<int32_t> {};

TEST_P(Activation, AllValues_CloseToFloat64) {
  std::vector<float> x;
  for (double value = -16; value <= 16; value += 0.00173) x.push_back(static_cast<float>(value));
  Row y(x), dx(x);
  const std::vector<float> dy(x.size(), 1.0f);
  cpu::activation_forward(GetParam(), y.data(), y.data(), y.n);
  cpu::activation_backward(GetParam(), x.data(), dy.data(), dx.data(), dx.n);
  double worst_value = 0, worst_gradient = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = activation(GetParam(), x[i]), gradient = activation_gradient(GetParam(), x[i]);
    worst_value = std::max(worst_value, std::fabs(y.data()[i] - value) /
                                            std::max(std::fabs(value), 1e-3));  // relative, below 1e-3 absolute
    worst_gradient = std::max(worst_gradient, std::fabs(dx.data()[i] - gradient));
  }
  EXPECT_LE(worst_value, 1e-6);  // measured: 7.5e-7, GeluTanh near -4, where rounding the exponent's argument shows
  EXPECT_LE(worst_gradient, 4e-7);
}

TEST_P(Activation, EverySize_SameAsOneByOne) {
  Random random(7);
  for (const int64_t n : kSizes) {
    const std::vector<float> x = random.floats(n, -6, 6), dy = random.floats(n);
    Row y(x), dx(dy);
    cpu::activation_forward(GetParam(), y.data(), y.data(), n);
    cpu::activation_backward(GetParam(), x.data(), dx.data(), dx.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      float value, gradient;
      cpu::activation_forward(GetParam(), &x[i], &value, 1);
      cpu::activation_backward(GetParam(), &x[i], &dy[i], &gradient, 1);
      EXPECT_EQ(y.data()[i], value) << n << " " << i;
      EXPECT_EQ(dx.data()[i], gradient) << n << " " << i;
    }
  }
}

TEST_P(Activation, ExtremeValues_PropagateOrSaturate) {
  const std::vector<float> x = {kInfinity, 1e30f, 1e4f, -1e4f, -1e30f, std::nanf("")}, dy(x.size(), 1.0f);
  std::vector<float> y(x.size()), dx(x.size());
  cpu::activation_forward(GetParam(), x.data(), y.data(), 6);
  cpu::activation_backward(GetParam(), x.data(), dy.data(), dx.data(), 6);
  const bool none = GetParam() == RFN_ACTIVATION_NONE, bounded = GetParam() == RFN_ACTIVATION_TANH;
  EXPECT_EQ(y[0], bounded ? 1.0f : kInfinity);
  EXPECT_EQ(y[1], bounded ? 1.0f : 1e30f);
  EXPECT_EQ(y[2], bounded ? 1.0f : 1e4f);
  EXPECT_EQ(y[3], none ? -1e4f : bounded ? -1.0f : 0.0f);
  EXPECT_EQ(y[4], none ? -1e30f : bounded ? -1.0f : 0.0f);
  EXPECT_TRUE(std::isnan(y[5]));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(dx[i], bounded ? 0.0f : 1.0f) << i;
  for (int i = 3; i < 5; ++i) EXPECT_EQ(dx[i], none ? 1.0f : 0.0f) << i;
  EXPECT_TRUE(none || GetParam() == RFN_ACTIVATION_RELU || std::isnan(dx[5]));
}

INSTANTIATE_TEST_SUITE_P(All, Activation, testing::Range(0, 6),
                         [](const auto& info) { return activation_name(info.param); });

TEST(Dropout, AnyStartAndLength_FollowsPhilox) {
  const Philox random = philox(0x0123456789ABCDEFu, 77, 3, RFN_SITE_FEED_FORWARD_HIDDEN);
  for (const float p : {0.1f, 0.5f, 0.999999f}) {
    for (const uint64_t first :
         std::vector<uint64_t>{0, 1, 2, 3, 17, (uint64_t{1} << 34) - 9, (uint64_t{1} << 40) + 3}) {
      for (const int64_t n : kSizes) {
        Row x(std::vector<float>(static_cast<size_t>(n), 3.0f));
        cpu::apply_dropout(x.data(), n, random, first, p);
        for (int64_t i = 0; i < n; ++i) {
          ASSERT_EQ(x.data()[i], 3.0f * static_cast<float>(dropout(random, static_cast<int64_t>(first) + i, p)))
              << p << " " << first << " " << i;
        }
      }
    }
  }
}

TEST(Dropout, KnownWords_Philox) {  // the generator's published test vectors (Random123, kat_vectors)
  const PhiloxWords zeros = philox_quad({0, 0, 0, 0}, 0);
  EXPECT_EQ(zeros.w[0], 0x6627e8d5u);
  EXPECT_EQ(zeros.w[1], 0xe169c58du);
  EXPECT_EQ(zeros.w[2], 0xbc57ac4cu);
  EXPECT_EQ(zeros.w[3], 0x9b00dbd8u);
  const PhiloxWords ones = philox_quad({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}, 0xffffffffffffffffu);
  EXPECT_EQ(ones.w[0], 0x408f276du);
  EXPECT_EQ(ones.w[1], 0x41c83b0eu);
  EXPECT_EQ(ones.w[2], 0xa20bc7c6u);
  EXPECT_EQ(ones.w[3], 0x6d5451fdu);
}

// The least 24-bit number u with u / 2^24 >= p.
TEST(Dropout, Threshold_IsTheLeastNumberThatIsKept) {
  EXPECT_EQ(dropout_threshold(0.1f), 1677722u);  // 0.1f 2^24 = 1677721.625
  EXPECT_EQ(dropout_threshold(0.5f), 8388608u);  // exact: not one more
  EXPECT_EQ(dropout_threshold(0.25f), 4194304u);
  EXPECT_EQ(dropout_threshold(0.3f), 5033165u);  // 0.3f 2^24 = 5033165.0: exact too
  EXPECT_EQ(dropout_threshold(std::nextafter(0.5f, 0.0f)), 8388608u);
  EXPECT_EQ(dropout_threshold(0x1p-24f), 1u);
  EXPECT_EQ(dropout_threshold(0x1p-26f), 1u);
  EXPECT_EQ(dropout_threshold(0.0f), 0u);
  for (const float p : {0.1f, 0.2f, 0.7f, 0.999999f}) {
    const uint32_t threshold = dropout_threshold(p);
    EXPECT_GE(static_cast<double>(threshold) * 0x1p-24, static_cast<double>(p));
    EXPECT_LT(static_cast<double>(threshold - 1) * 0x1p-24, static_cast<double>(p));
    EXPECT_EQ(dropout_multiplier(threshold << 8, threshold, 2.0f), 2.0f);
    EXPECT_EQ(dropout_multiplier((threshold << 8) - 1, threshold, 2.0f), 0.0f);
  }
}

TEST(Dropout, ManyElements_KeepsTheirMean) {
  constexpr int64_t kCount = 1 << 18;
  std::vector<float> x(kCount, 1.0f);
  cpu::apply_dropout(x.data(), kCount, philox(5, 1, 2, RFN_SITE_FINAL_NORM), 0, 0.3f);
  double sum = 0;
  for (const float value : x) sum += value;
  EXPECT_NEAR(sum / kCount, 1.0, 5 * std::sqrt(0.3 / 0.7 / kCount));
}

TEST(Dropout, ProbabilityZero_ChangesNothing) {
  const std::vector<float> x = {1, kInfinity, -0.0f, std::nanf("")};
  std::vector<float> y = x;
  cpu::apply_dropout(y.data(), 4, philox(1, 2, 3, 4), 0, 0.0f);
  EXPECT_TRUE(SameBits(y, x));
}

TEST(Grid, Rounding_ToNearestTiesToEvenNeverMinusZero) {
  Random random(11);
  for (const int32_t exponent : {-24, -16, -4}) {
    const double unit = std::ldexp(1.0, exponent);
    std::vector<float> x = random.floats(1000, -2000 * unit, 2000 * unit);
    for (const double units :
         {0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.25, -0.25, 0x1p23, 0x1p23 + 1, -0x1p22 - 0.5, 0x1p22 + 1.5, 0x1p30}) {
      x.push_back(static_cast<float>(units * unit));
    }
    x.push_back(-0.0f);
    Row y(x);
    cpu::round_to_grid(y.data(), y.n, exponent);
    for (size_t i = 0; i < x.size(); ++i) {
      const float expected = static_cast<float>(std::nearbyint(x[i] / unit) * unit) + 0.0f;
      EXPECT_EQ(y.data()[i], expected) << x[i];
      EXPECT_FALSE(expected == 0 && std::signbit(y.data()[i])) << x[i];
    }
  }
  std::vector<float> special = {kInfinity, -kInfinity, std::nanf("")};
  cpu::round_to_grid(special.data(), 3, -16);
  EXPECT_EQ(special[0], kInfinity);
  EXPECT_EQ(special[1], -kInfinity);
  EXPECT_TRUE(std::isnan(special[2]));
}

TEST(Grid, ResidualInRange_SubtractionUndoesAddition) {
  Random random(13);
  for (const int64_t n : kSizes) {
    Row stream(random.floats(n, -100, 100));
    cpu::round_to_grid(stream.data(), n, -16);
    const std::vector<float> before = stream.values(), x = random.floats(n, -100, 100);
    const cpu::RangeCheck added = cpu::residual_add(stream.data(), x.data(), n, -16);
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(stream.data()[i], static_cast<float>(before[i] + std::nearbyint(x[i] * 65536.0) / 65536.0)) << i;
    }
    const cpu::RangeCheck removed = cpu::residual_subtract(stream.data(), x.data(), n, -16);
    EXPECT_TRUE(SameBits(stream.values(), before));
    EXPECT_EQ(added.count + removed.count, 0);
    EXPECT_EQ(added.first, -1);
  }
}

TEST(Grid, OutOfRange_CountsAndFindsTheFirst) {
  for (const int64_t n : {1, 16, 37, 300}) {
    for (const float bad : {256.5f, -300.0f, kInfinity, std::nanf("")}) {
      const int64_t at = n - 1 - n / 3;
      std::vector<float> stream(static_cast<size_t>(n), 1.0f),
          change(static_cast<size_t>(n), 255.0f);  // 256 is the last in range at 2^-16
      EXPECT_EQ(cpu::residual_add(stream.data(), change.data(), n, -16).count, 0);
      EXPECT_EQ(cpu::check_range(stream.data(), n, -16).count, 0);
      stream.assign(static_cast<size_t>(n), 0.0f);
      change[at] = bad;
      change.back() = bad;
      const cpu::RangeCheck added = cpu::residual_add(stream.data(), change.data(), n, -16),
                            checked = cpu::check_range(stream.data(), n, -16);
      EXPECT_EQ(added.first, at);
      EXPECT_EQ(added.count, at == n - 1 ? 1 : 2);
      EXPECT_EQ(checked.first, at);
      EXPECT_EQ(checked.count, added.count);
    }
  }
}

TEST(Grid, SumRoundedBackToTheLimit_IsFound) {
  // One grid step beyond 256 rounds to 256 itself, which is in range: only taking the change back shows the loss.
  std::vector<float> stream = {256.0f - 0x1p-16f}, change = {2 * 0x1p-16f};
  const cpu::RangeCheck check = cpu::residual_add(stream.data(), change.data(), 1, -16);
  EXPECT_EQ(stream[0], 256.0f);
  EXPECT_EQ(check.count, 1);
}

TEST(Rows, BiasAndColumnSums_EverySize) {
  Random random(17);
  for (const int64_t n : {1, 3, 16, 31, 33, 100}) {
    for (const int64_t rows : {0, 1, 2, 127, 128, 129, 1000}) {
      const std::vector<float> x = random.floats(rows * n, -0.2, 1), bias = random.floats(n), start = random.floats(n);
      Row y(x), sums(start);
      cpu::add_bias(y.data(), bias.data(), rows, n);
      cpu::add_column_sums(x.data(), rows, n, sums.data());
      Doubles expected(start.begin(), start.end());
      for (int64_t i = 0; i < rows * n; ++i) {
        ASSERT_EQ(y.data()[i], x[i] + bias[i % n]);
        expected[i % n] += x[i];
      }
      EXPECT_TRUE(Close(sums.values(), expected, 1e-6)) << rows << " x " << n;
    }
  }
}

TEST(Rows, AddAndSubtract_EverySize) {
  Random random(19);
  for (const int64_t n : kSizes) {
    const std::vector<float> a = random.floats(n), b = random.floats(n);
    Row sum(a), difference(a);
    cpu::add(sum.data(), b.data(), n);
    cpu::subtract(difference.data(), b.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(sum.data()[i], a[i] + b[i]);
      EXPECT_EQ(difference.data()[i], a[i] - b[i]);
    }
  }
}

// ---- BF16 and F16 -------------------------------------------------------------------------------

TEST(HalfConversion, EveryNumber_WidenedExactly) {
  for (const int32_t dtype : {RFN_BF16, RFN_F16}) {
    std::vector<uint16_t> all(1 << 16);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    std::vector<float> floats(all.size());
    cpu::widen(dtype, all.data(), floats.data(), static_cast<int64_t>(all.size()));
    for (size_t i = 0; i < all.size(); ++i) {
      const double expected = value_of(dtype, all[i]), got = static_cast<double>(floats[i]);
      ASSERT_TRUE(std::isnan(expected) ? std::isnan(got)
                                       : got == expected && std::signbit(got) == std::signbit(expected))
          << type_name(dtype) << " " << i << ": expected " << expected << ", got " << got;
    }
  }
}

// All exponents, signs and what decides about rounding: the bits that are dropped.
TEST(HalfConversion, AnyFloat_NarrowedToNearestEven) {
  Random random(201);
  std::vector<float> floats;
  for (int i = 0; i < 1 << 18; ++i) {
    auto bits = static_cast<uint32_t>(random.bits());
    const uint32_t dropped = i % 2 == 0 ? 0xFFFFu : 0x1FFFu;
    if (i % 3 == 0) bits = (bits & ~dropped) | (dropped / 2 + 1);                                        // a tie
    if (i % 3 == 1) bits = (bits & ~dropped) | ((dropped / 2 + 1) + (random.below(2) == 0 ? 1u : ~0u));  // beside it
    if (i % 5 == 0)
      bits = (bits & 0x807FFFFFu) | static_cast<uint32_t>(100 + random.below(45)) << 23;  // the range of F16
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    floats.push_back(value);
  }
  for (const int32_t dtype : {RFN_BF16, RFN_F16}) {
    std::vector<uint16_t> halves(floats.size());
    cpu::narrow(dtype, floats.data(), halves.data(), static_cast<int64_t>(floats.size()));
    for (size_t i = 0; i < floats.size(); ++i) {
      ASSERT_EQ(halves[i], bits_of(dtype, rounded(dtype, static_cast<double>(floats[i]))))
          << type_name(dtype) << " of " << floats[i];
    }
  }
}

TEST(HalfConversion, AnyCount_NothingBesideIsTouched) {
  for (int64_t n = 0; n < 70; ++n) {
    const std::vector<float> floats(static_cast<size_t>(n), 1.5f);
    std::vector<uint16_t> halves(static_cast<size_t>(n) + 1, 7);
    cpu::narrow(RFN_BF16, floats.data(), halves.data(), n);
    EXPECT_EQ(std::count(halves.begin(), halves.end() - 1, 0x3FC0), n);
    EXPECT_EQ(halves.back(), 7);
    std::vector<float> back(static_cast<size_t>(n) + 1, 7.0f);
    cpu::widen(RFN_BF16, halves.data(), back.data(), n);
    EXPECT_EQ(std::count(back.begin(), back.end() - 1, 1.5f), n);
    EXPECT_EQ(back.back(), 7.0f);
  }
}

}  // namespace
}  // namespace rfn::test
