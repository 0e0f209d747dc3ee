#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "harness.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

constexpr uint64_t kSeed = 31337, kStep = 2;

struct Options {
  float temperature = 1, top_p = 1;
  int32_t top_k = 0;
};

rfn_status draw_ids(const Options& o, const std::vector<float>& logits, int64_t v, std::vector<int32_t>& ids,
                    int32_t threads = 2) {
  Context context(threads);
  Stream stream(context);
  const int64_t n = static_cast<int64_t>(logits.size()) / v;
  const Tensor<float> input({n, v}, logits);
  const Tensor<int32_t> output({n});
  auto op = make_op<rfn_sample>();
  op.temperature = o.temperature;
  op.top_p = o.top_p;
  op.top_k = o.top_k;
  op.seed = kSeed;
  op.step = kStep;
  op.logits = input;
  op.ids = output;
  const rfn_status status = forward(stream, op);
  ids = output.values();
  return status;
}

// Sorts everything; draws by walking the kept ids in the order of their ids.
int32_t reference(const Options& o, const float* logits, int64_t v, int64_t row) {
  std::vector<int32_t> order(static_cast<size_t>(v));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (o.temperature == 0) return order[0];
  if (o.top_k > 0 && o.top_k < v) order.resize(o.top_k);
  Doubles weight(v);
  double total = 0, kept = 0;
  for (const int32_t id : order)
    total += weight[id] = std::exp((static_cast<double>(logits[id]) - logits[order[0]]) / o.temperature);
  if (o.top_p < 1) {
    size_t count = 0;
    while (count < order.size() && kept < o.top_p * total) kept += weight[order[count++]];
    for (size_t i = count; i < order.size(); ++i) weight[order[i]] = 0;
  }
  total = std::accumulate(weight.begin(), weight.end(), 0.0);
  const double point =
      philox_word(philox(kSeed, kStep, -1, RFN_SITE_SAMPLING), static_cast<uint64_t>(row)) * 0x1p-32 * total;
  double sum = 0;
  for (int32_t id = 0; id < v; ++id) {
    sum += weight[id];
    if (point < sum) return id;
  }
  return -1;
}

TEST(Sample, EveryRestriction_AgreesWithSorting) {
  Random random(241);
  const int64_t rows = on_cpu() ? 200 : 20;
  for (const int64_t v : {1, 2, 31, 1000}) {
    std::vector<float> logits = random.floats(rows * v, -3, 3);
    for (float& logit : logits) logit = std::nearbyint(logit * 8) / 8;  // many ties
    for (const float temperature : {0.0f, 0.3f, 1.0f, 5.0f}) {
      for (const int32_t top_k : {0, 1, 7, 1000}) {
        for (const float top_p : {1.0f, 0.9f, 0.4f, 1e-6f}) {
          const Options o{temperature, top_p, top_k};
          std::vector<int32_t> ids, expected;
          ASSERT_TRUE(Ok(draw_ids(o, logits, v, ids)));
          for (int64_t row = 0; row < rows; ++row) expected.push_back(reference(o, logits.data() + row * v, v, row));
          EXPECT_EQ(ids, expected) << v << " " << temperature << " " << top_k << " " << top_p;
        }
      }
    }
  }
}

// More logits than one warp of a kernel takes.
TEST(Sample, LongRows_AgreeWithSorting) {
  Random random(257);
  const int64_t rows = 8, v = 2500;
  std::vector<float> logits = random.floats(rows * v, -3, 3);
  for (float& logit : logits) logit = std::nearbyint(logit * 8) / 8;
  for (const Options& o : {Options{}, Options{0}, Options{0.3f, 0.9f}, Options{5, 1, 1000}, Options{1, 0.4f, 300}}) {
    std::vector<int32_t> ids, expected;
    ASSERT_TRUE(Ok(draw_ids(o, logits, v, ids)));
    for (int64_t row = 0; row < rows; ++row) expected.push_back(reference(o, logits.data() + row * v, v, row));
    EXPECT_EQ(ids, expected) << o.temperature << " " << o.top_k << " " << o.top_p;
  }
}

// Ids whose probabilities add up to top_p exactly are enough. Four equal logits have 1/4 each, to the bit.
TEST(Sample, TopPMetExactly_KeepsNoFurtherId) {
  const std::vector<float> logits(400 * 4, 0.5f);
  for (const auto& [top_p, kept] : {std::pair<float, int32_t>{0.25f, 1}, {0.5f, 2}, {0.75f, 3}}) {
    std::vector<int32_t> ids;
    ASSERT_TRUE(Ok(draw_ids({1, top_p, 0}, logits, 4, ids)));
    EXPECT_EQ(*std::max_element(ids.begin(), ids.end()), kept - 1) << top_p;
    ASSERT_TRUE(Ok(draw_ids({1, std::nextafter(top_p, 1.0f), 0}, logits, 4, ids)));
    EXPECT_EQ(*std::max_element(ids.begin(), ids.end()), kept) << "just above " << top_p;
  }
}

TEST(Sample, ManyRows_FollowTheDistribution) {
  const int64_t rows = on_cpu() ? 100000 : 20000;
  const std::vector<double> probability = {0.5, 0.25, 0.125, 0.125, 0};
  std::vector<float> logits;
  for (int64_t row = 0; row < rows; ++row) {
    for (const double p : probability)
      logits.push_back(static_cast<float>(2 * std::log(p)));  // halved by the temperature; the last is -inf
  }
  std::vector<int32_t> ids;
  ASSERT_TRUE(Ok(draw_ids({2, 1, 0}, logits, 5, ids)));
  for (int32_t id = 0; id < 5; ++id) {
    const double p = probability[id], count = static_cast<double>(std::count(ids.begin(), ids.end(), id));
    EXPECT_NEAR(count / static_cast<double>(rows), p, 5 * std::sqrt(p * (1 - p) / static_cast<double>(rows))) << id;
  }
}

TEST(Sample, EverySchedule_SameIds) {
  Random random(251);
  const std::vector<float> logits = random.floats((on_cpu() ? 300 : 50) * 97, -4, 4);
  std::vector<int32_t> one, many;
  ASSERT_TRUE(Ok(draw_ids({0.8f, 0.9f, 40}, logits, 97, one, 1)));
  for_each_schedule([&](int32_t threads) {
    ASSERT_TRUE(Ok(draw_ids({0.8f, 0.9f, 40}, logits, 97, many, threads)));
    EXPECT_EQ(many, one);
  });
}

// A device can't say it without waiting: there the row's id is -1.
TEST(Sample, UnusableLogits_AreNamedAndNothingIsWrittenOrGiveNoId) {
  std::vector<float> logits(12, 0.0f);
  std::vector<int32_t> ids;
  if (!on_cpu()) {
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      logits.assign(12, 0.0f);
      if (bad < 0) std::fill_n(logits.begin() + 4, 4, bad);
      logits[4 + 2] = bad;
      for (const Options& o : {Options{}, Options{0, 1, 0}, Options{0.7f, 0.9f, 2}}) {
        ASSERT_TRUE(Ok(draw_ids(o, logits, 4, ids)));
        EXPECT_EQ(ids[1], -1) << bad;
        for (const int row : {0, 2}) EXPECT_EQ(ids[row], reference(o, logits.data() + 4 * row, 4, row));
      }
    }
    return;
  }
  logits[4 + 2] = std::nanf("");
  EXPECT_TRUE(Fails(draw_ids({}, logits, 4, ids), RFN_INVALID_ARGUMENT, {"logits[1,2]", "nan"}));
  EXPECT_TRUE(Untouched(ids));
  logits[4 + 2] = INFINITY;
  EXPECT_TRUE(Fails(draw_ids({}, logits, 4, ids), RFN_INVALID_ARGUMENT, {"logits[1,2]", "inf"}));
  for (int i = 8; i < 12; ++i) logits[i] = -INFINITY;
  logits[4 + 2] = 0;
  EXPECT_TRUE(Fails(draw_ids({}, logits, 4, ids), RFN_INVALID_ARGUMENT, {"logits[2]", "-inf"}));
}

}  // namespace
}  // namespace rfn::test
