#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "harness.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

std::vector<float> draw(std::vector<int64_t> sizes, int32_t threads, uint64_t step = 4,
                        int32_t site = RFN_SITE_ROTATIONS) {
  Context context(threads);
  Stream stream(context);
  const Tensor<float> destination(std::move(sizes));
  auto op = make_op<rfn_random_normal>();
  op.seed = 0xABCDEF0123456789u;
  op.step = step;
  op.layer = 2;
  op.site = site;
  op.mean = 0.5f;
  op.standard_deviation = 2.0f;
  op.destination = destination;
  EXPECT_TRUE(Ok(forward(stream, op)));
  return destination.values();
}

TEST(RandomNormal, EverySize_FollowsBoxMuller) {
  const Philox random = philox(0xABCDEF0123456789u, 4, 2, RFN_SITE_ROTATIONS);
  for (const int64_t n : {1, 2, 3, 4, 5, 31, 4095, 4096, 4097, 20001}) {
    const std::vector<float> z = draw({n}, 2);
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t pair = static_cast<uint64_t>(i) & ~uint64_t{1};
      const double u1 = ((philox_word(random, pair) >> 8) + 1) * 0x1p-24,
                   u2 = (philox_word(random, pair + 1) >> 8) * 0x1p-24;
      const double r = std::sqrt(-2 * std::log(u1)), angle = 2 * M_PI * u2;
      ASSERT_FLOAT_EQ(z[i], static_cast<float>(0.5 + 2 * r * (i % 2 == 0 ? std::cos(angle) : std::sin(angle)))) << i;
    }
  }
}

TEST(RandomNormal, EveryScheduleAndShape_SameBits) {
  const std::vector<float> one = draw({20001}, 1);
  for_each_schedule([&](int32_t threads) { EXPECT_TRUE(SameBits(draw({3, 59, 113}, threads), one)); });
}

TEST(RandomNormal, ManyNumbers_HaveTheirMoments) {
  const std::vector<float> z = draw({200000}, 2);
  double mean = 0, variance = 0, fourth = 0;
  for (const float value : z) mean += value / 2e5;
  for (const float value : z) variance += (value - mean) * (value - mean) / 2e5;
  for (const float value : z) fourth += std::pow((value - mean) / 2, 4) / 2e5;
  EXPECT_NEAR(mean, 0.5, 5 * 2 / std::sqrt(2e5));
  EXPECT_NEAR(variance, 4, 5 * 4 * std::sqrt(2 / 2e5));
  EXPECT_NEAR(fourth, 3, 5 * std::sqrt(96 / 2e5));
}

TEST(RandomNormal, OtherStepOrSite_OtherNumbers) {
  const std::vector<float> z = draw({64}, 1), later = draw({64}, 1, 5),
                           elsewhere = draw({64}, 1, 4, RFN_SITE_PARAMETERS);
  for (int i = 0; i < 64; ++i) {
    EXPECT_NE(z[i], later[i]);
    EXPECT_NE(z[i], elsewhere[i]);
  }
}

}  // namespace
}  // namespace rfn::test
