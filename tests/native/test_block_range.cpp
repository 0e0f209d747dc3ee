// The range report of the reversible block and of its decoding form: which value left the exact range first, wherever
// the rows of a pass are cut into chunks. The halves add nothing here (their last matrices are zero), so that what was
// put out of range is exactly what is reported.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "harness.h"

namespace rfn::test {
namespace {

constexpr int32_t kExponent = -20;  // range +-16
constexpr float kOutside = 1000.0f;

struct Sizes {
  int64_t batch, length, width, heads, head_size, hidden;
};

// Parameters of the block: random, but for the two matrices and biases that feed the streams.
struct Parameters {
  std::vector<Tensor<float>> tensors;
  rfn_block_parameters fields = make_op<rfn_block_parameters>();

  explicit Parameters(const Sizes& s) {
    Random random(900);
    const int64_t e = s.width, p = s.heads * s.head_size, f = s.hidden;
    rfn_block_parameters& x = fields;
    const std::vector<std::pair<rfn_tensor*, std::vector<int64_t>>> random_ones = {{&x.attention_norm_weight, {e}},
                                                                                   {&x.attention_norm_bias, {e}},
                                                                                   {&x.query, {p, e}},
                                                                                   {&x.key, {p, e}},
                                                                                   {&x.value, {p, e}},
                                                                                   {&x.feed_forward_norm_weight, {e}},
                                                                                   {&x.feed_forward_norm_bias, {e}},
                                                                                   {&x.w1, {f, e}},
                                                                                   {&x.b1, {f}}};
    const std::vector<std::pair<rfn_tensor*, std::vector<int64_t>>> zeros = {
        {&x.output, {e, p}}, {&x.w2, {e, f}}, {&x.b2, {e}}};
    for (const auto& [place, sizes] : random_ones) {
      int64_t count = 1;
      for (const int64_t size : sizes) count *= size;
      *place = tensors.emplace_back(sizes, random.floats(count));
    }
    for (const auto& [place, sizes] : zeros) *place = tensors.emplace_back(Tensor<float>::zeros(sizes));
  }
};

std::vector<float> on_the_grid(Random& random, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.below(1 << 20)) * std::ldexp(1.0f, kExponent);
  return values;
}

class BlockRange : public OpTest {
 protected:
  static rfn_attention_options attention() {
    rfn_attention_options o = {};
    o.struct_size = sizeof(o);
    o.kind = RFN_ATTENTION_LOCAL;
    o.causal = 1;
    o.chunk_length = 8;
    o.chunks_before = 1;
    return o;
  }

  // A forward pass over streams that are out of range at the given places; what is in the report afterwards.
  rfn_range_report report_of(const Sizes& s, int32_t layer, const std::vector<int64_t>& outside1,
                             const std::vector<int64_t>& outside2, int64_t chunk = 0, float dropout = 0,
                             const rfn_range_report& before = {}, float value = kOutside) {
    Random random(901);
    const std::vector<int64_t> sizes = {s.batch, s.length, s.width};
    std::vector<float> one = on_the_grid(random, s.batch * s.length * s.width), two = on_the_grid(random, one.size());
    for (const int64_t at : outside1) one[at] = value;
    for (const int64_t at : outside2) two[at] = value;
    const Parameters parameters(s);
    const Tensor<float> stream1(sizes, one), stream2(sizes, two);
    const Result<rfn_range_report> report(before);
    auto op = make_op<rfn_reversible_block>();
    op.layer = layer;
    op.attention = attention();
    op.heads = static_cast<int32_t>(s.heads);
    op.activation = RFN_ACTIVATION_GELU_ERF;
    op.layer_norm_epsilon = 1e-6f;
    op.feed_forward_dropout = op.attention_output_dropout = dropout;
    op.feed_forward_chunk = chunk;
    op.residual = RFN_RESIDUAL_EXACT;
    op.grid_exponent = kExponent;
    op.stream1 = stream1;
    op.stream2 = stream2;
    op.range_report = report;
    op.parameters = parameters.fields;
    EXPECT_TRUE(Ok(forward(stream, op)));
    return report.value();
  }
};

// The first row, the last of 256, the next, the first of the second example, one further back, and the last one.
TEST_F(BlockRange, OneValueAnywhere_IsNamed) {
  const Sizes s = {2, 390, 9, 1, 4, 7};
  const int64_t e = s.width, rows = s.batch * s.length;
  for (const auto& [chunk, dropout] : {std::pair<int64_t, float>{0, 0.0f}, {100, 0.2f}}) {
    for (const int64_t row : {int64_t{0}, int64_t{255}, int64_t{256}, int64_t{390}, int64_t{600}, rows - 1}) {
      const int64_t at = row * e + row % e;
      SCOPED_TRACE("row " + std::to_string(row) + ", chunk " + std::to_string(chunk));
      EXPECT_EQ(report_of(s, 6, {at}, {}, chunk, dropout), (rfn_range_report{1, 6, 1, at}));
      EXPECT_EQ(report_of(s, 0, {}, {at}, chunk, dropout), (rfn_range_report{1, 0, 2, at}));
    }
  }
}

// The first of several, and of the stream whose half comes first, though it stands further back.
TEST_F(BlockRange, SeveralValues_AreCountedAndTheFirstIsNamed) {
  const Sizes s = {2, 390, 9, 1, 4, 7};
  const std::vector<int64_t> places = {300 * 9 + 8, 301 * 9, 700 * 9 + 3, 779 * 9 + 8};
  EXPECT_EQ(report_of(s, 2, places, {}), (rfn_range_report{4, 2, 1, places[0]}));
  EXPECT_EQ(report_of(s, 2, {}, places, 64), (rfn_range_report{4, 2, 2, places[0]}));
  EXPECT_EQ(report_of(s, 2, {5000}, {17, 4000}), (rfn_range_report{3, 2, 1, 5000}));
}

// What an earlier layer reported stays, and the count goes on.
TEST_F(BlockRange, AReportOfAnEarlierLayer_Stays) {
  const Sizes s = {1, 300, 9, 1, 4, 7};
  EXPECT_EQ(report_of(s, 5, {4}, {2600}, 0, 0, {3, 2, 1, 99}), (rfn_range_report{5, 2, 1, 99}));
  EXPECT_EQ(report_of(s, 5, {}, {}, 0, 0, {3, 2, 1, 99}), (rfn_range_report{3, 2, 1, 99}));
}

// The edge of the range itself: 2^(24 + exponent) is within, the next number is not.
TEST_F(BlockRange, TheLimitItself_IsWithin) {
  const Sizes s = {1, 300, 9, 1, 4, 7};
  const float limit = std::ldexp(1.0f, 24 + kExponent);
  for (const float sign : {1.0f, -1.0f}) {
    EXPECT_EQ(report_of(s, 5, {2601}, {}, 0, 0, {}, sign * limit), rfn_range_report{});
    EXPECT_EQ(report_of(s, 5, {2601}, {}, 0, 0, {}, sign * std::nextafter(limit, INFINITY)),
              (rfn_range_report{1, 5, 1, 2601}));
    // An infinity makes its row's norm, and so the whole row of the other stream, no numbers either.
    EXPECT_EQ(report_of(s, 5, {2601}, {}, 0, 0, {}, sign * INFINITY), (rfn_range_report{1 + s.width, 5, 1, 2601}));
  }
}

// Decoding cuts a row's columns into items; its indices are those of [B, 1, E].
TEST_F(BlockRange, WideDecoding_NamesTheColumn) {
  // A device's kernels cut them into a few columns each.
  const Sizes s = on_cpu() ? Sizes{3, 1, 3001, 2, 4, 2050} : Sizes{3, 1, 301, 2, 4, 205};
  const Parameters parameters(s);
  const int64_t e = s.width, p = s.heads * s.head_size;
  const auto report_of_row = [&](const std::vector<int64_t>& outside1, const std::vector<int64_t>& outside2) {
    Random random(902);
    std::vector<float> one = on_the_grid(random, s.batch * e), two = on_the_grid(random, s.batch * e);
    for (const int64_t at : outside1) one[at] = kOutside;
    for (const int64_t at : outside2) two[at] = -kOutside;
    const Tensor<float> stream1({s.batch, 1, e}, one), stream2({s.batch, 1, e}, two), keys({s.batch, 16, p}),
        values({s.batch, 16, p});
    Result<rfn_range_report> report;
    auto op = make_op<rfn_reversible_block_decode>();
    op.layer = 3;
    op.attention = attention();
    op.heads = static_cast<int32_t>(s.heads);
    op.activation = RFN_ACTIVATION_RELU;
    op.layer_norm_epsilon = 1e-6f;
    op.residual = RFN_RESIDUAL_EXACT;
    op.grid_exponent = kExponent;
    op.stream1 = stream1;
    op.stream2 = stream2;
    op.keys = keys;
    op.values = values;
    op.range_report = report;
    op.parameters = parameters.fields;
    EXPECT_TRUE(Ok(forward(stream, op)));
    return report.value();
  };
  const std::vector<int64_t> places =
      on_cpu() ? std::vector<int64_t>{0, 63, 64, 127, 128, 1000, 2047, 2048, e - 1, e, 2 * e + 1500, 3 * e - 1}
               : std::vector<int64_t>{0, 7, 8, 129, e - 1, e, 2 * e + 150, 3 * e - 1};
  for (const int64_t at : places) {
    SCOPED_TRACE("place " + std::to_string(at));
    EXPECT_EQ(report_of_row({at}, {}), (rfn_range_report{1, 3, 1, at}));
    EXPECT_EQ(report_of_row({}, {at}), (rfn_range_report{1, 3, 2, at}));
  }
  EXPECT_EQ(report_of_row({2 * e + 5, e + 290}, {1}), (rfn_range_report{3, 3, 1, e + 290}));
}

}  // namespace
}  // namespace rfn::test
