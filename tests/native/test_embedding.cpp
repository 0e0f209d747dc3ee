#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "harness.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

constexpr uint64_t kSeed = 99, kStep = 3;

struct Problem {
  std::string name;
  int64_t batch = 2, length = 33, vocabulary = 19, width = 31;
  int32_t positions = RFN_POSITIONS_NONE;
  std::vector<std::pair<int64_t, int64_t>> tables;  // rows, width
  int64_t first_position = 0;
  float dropout = 0;
  bool exact = false, two_streams = true;
};

void PrintTo(const Problem& p, std::ostream* out) { *out << p.name; }

struct Data {
  std::vector<int32_t> ids;
  std::vector<float> word, grad1, grad2, grad_word;
  std::vector<std::vector<float>> position, grad_position;
};

Data data(Random& random, const Problem& p) {
  const int64_t tokens = p.batch * p.length, values = tokens * p.width;
  Data d{random.integers(tokens, p.vocabulary),
         random.floats(p.vocabulary * p.width),
         random.floats(values),
         random.floats(values),
         random.floats(p.vocabulary * p.width),
         {},
         {}};
  for (int64_t i = 0; i < tokens / 2; ++i) d.ids[2 * i] = static_cast<int32_t>(p.vocabulary / 2);  // one frequent word
  for (const auto& [rows, width] : p.tables) {
    d.position.push_back(random.floats(rows * width));
    d.grad_position.push_back(random.floats(rows * width));
  }
  return d;
}

// The place in table k that column c of position p reads, or -1 when it is another table's.
int64_t table_place(const Problem& p, size_t table, int64_t position, int64_t column) {
  int64_t begin = 0, inner = 1;
  for (size_t i = 0; i < table; ++i) begin += p.tables[i].second;
  for (size_t i = table + 1; i < p.tables.size(); ++i) inner *= p.tables[i].first;
  const auto [rows, width] = p.tables[table];
  if (column < begin || column >= begin + width) return -1;
  return (position / inner) % rows * width + column - begin;
}

struct Expected {
  Doubles e, grad_word;
  std::vector<Doubles> grad_position;
};

Expected reference(const Problem& p, const Data& d) {
  const Philox words = philox(kSeed, kStep, -1, RFN_SITE_WORD_EMBEDDING),
               positions = philox(kSeed, kStep, -1, RFN_SITE_POSITION_EMBEDDING);
  Expected r{Doubles(d.grad1.size()), doubles(d.grad_word), {}};
  for (const auto& start : d.grad_position) r.grad_position.push_back(doubles(start));
  for (int64_t token = 0; token < p.batch * p.length; ++token) {
    for (int64_t c = 0; c < p.width; ++c) {
      const int64_t at = token * p.width + c, word = d.ids[token] * p.width + c;
      const double kept_word = dropout(words, at, p.dropout), kept_position = dropout(positions, at, p.dropout);
      const double gradient = static_cast<double>(d.grad1[at]) + (p.two_streams ? d.grad2[at] : 0.0f);
      r.e[at] = d.word[word] * kept_word;
      r.grad_word[word] += gradient * kept_word;
      for (size_t table = 0; table < p.tables.size(); ++table) {
        const int64_t place = table_place(p, table, p.first_position + token % p.length, c);
        if (place < 0) continue;
        r.e[at] += d.position[table][place] * kept_position;
        r.grad_position[table][place] += gradient * kept_position;
      }
    }
  }
  return r;
}

struct Tensors {
  Tensors(const Problem& p, const Data& d)
      : ids({p.batch, p.length}, d.ids),
        word({p.vocabulary, p.width}, d.word),
        stream1({p.batch, p.length, p.width}),
        stream2({p.batch, p.length, p.width}),
        grad1({p.batch, p.length, p.width}, d.grad1),
        grad2({p.batch, p.length, p.width}, d.grad2),
        grad_word({p.vocabulary, p.width}, d.grad_word),
        report() {
    op.positions = p.positions;
    op.axes = static_cast<int32_t>(p.tables.size());
    op.dropout = p.dropout;
    op.seed = kSeed;
    op.step = kStep;
    op.first_position = p.first_position;
    op.residual = p.exact ? RFN_RESIDUAL_EXACT : RFN_RESIDUAL_FLOAT;
    op.grid_exponent = -16;
    op.ids = ids;
    op.word = word;
    op.stream1 = stream1;
    op.grad_stream1 = grad1;
    if (p.two_streams) {
      op.stream2 = stream2;
      op.grad_stream2 = grad2;
    }
    op.grad_word = grad_word;
    op.range_report = report;
    for (size_t i = 0; i < p.tables.size(); ++i) {
      const std::vector<int64_t> sizes = {p.tables[i].first, p.tables[i].second};
      op.position[i] = position.emplace_back(sizes, d.position[i]);
      op.grad_position[i] = grad_position.emplace_back(sizes, d.grad_position[i]);
    }
  }

  rfn_embedding op = make_op<rfn_embedding>();
  Tensor<int32_t> ids;
  Tensor<float> word, stream1, stream2, grad1, grad2, grad_word;
  Result<rfn_range_report> report;
  std::vector<Tensor<float>> position, grad_position;
};

std::vector<Problem> problems() {
  std::vector<Problem> all;
  const auto add = [&](const char* name, auto change) {
    Problem p;
    p.name = name;
    change(p);
    all.push_back(p);
  };
  const auto axial = [](Problem& p, std::vector<std::pair<int64_t, int64_t>> tables) {
    p.positions = RFN_POSITIONS_AXIAL;
    p.tables = tables;
  };
  const auto learned = [](Problem& p, int64_t rows) {
    p.positions = RFN_POSITIONS_LEARNED;
    p.tables = {{rows, p.width}};
  };
  add("NoPositions", [](Problem&) {});
  add("NoPositionsOneStreamDropout", [](Problem& p) {
    p.two_streams = false;
    p.dropout = 0.3f;
  });
  add("OneToken", [&](Problem& p) { p.batch = p.length = p.width = p.vocabulary = 1, learned(p, 1); });
  add("LearnedExactFit", [&](Problem& p) { learned(p, 33); });
  add("LearnedLaterPositionsDropout", [&](Problem& p) { learned(p, 100), p.first_position = 50, p.dropout = 0.1f; });
  add("LearnedWide", [&](Problem& p) { p.width = 300, learned(p, 34), p.dropout = 0.1f, p.batch = 3; });
  add("AxialOneTable", [&](Problem& p) { axial(p, {{40, 31}}); });
  add("AxialTwoTables", [&](Problem& p) { axial(p, {{5, 10}, {7, 21}}), p.dropout = 0.2f; });
  add("AxialTwoTablesLater", [&](Problem& p) { axial(p, {{8, 30}, {9, 1}}), p.first_position = 38; });
  add("AxialThreeTables", [&](Problem& p) {
    axial(p, {{3, 4}, {5, 20}, {4, 7}}), p.first_position = 11, p.dropout = 0.1f;
  });
  add("AxialFourTables", [&](Problem& p) { axial(p, {{2, 4}, {3, 20}, {4, 6}, {2, 1}}); });
  add("AxialWide", [&](Problem& p) {
    p.width = 520, axial(p, {{6, 260}, {12, 260}}), p.length = 70, p.dropout = 0.1f, p.first_position = 2;
  });
  add("ManyTokens", [&](Problem& p) {
    axial(p, {{64, 20}, {32, 11}}), p.length = 2000, p.vocabulary = 300, p.dropout = 0.1f;
  });
  return all;
}

class Embedding : public testing::TestWithParam<Problem> {};

TEST_P(Embedding, ForwardAndBackward_CloseToFloat64AndSameBitsForEverySchedule) {
  Random random(107);
  const Problem& p = GetParam();
  const Data d = data(random, p);
  const Expected expected = reference(p, d);
  std::vector<float> first_e, first_word;
  std::vector<std::vector<float>> first_position;
  for_each_schedule([&](int32_t threads) {
    Context context(threads);
    Stream stream(context);
    Tensors t(p, d);
    ASSERT_TRUE(Ok(forward(stream, t.op)));
    ASSERT_TRUE(Ok(backward(stream, t.op)));
    EXPECT_TRUE(p.two_streams ? SameBits(t.stream2.values(), t.stream1.values()) : Untouched(t.stream2.values()));
    if (first_e.empty()) {
      EXPECT_TRUE(Close(first_e = t.stream1.values(), expected.e, 3e-7));
      EXPECT_TRUE(Close(first_word = t.grad_word.values(), expected.grad_word, 1e-6));
      for (size_t i = 0; i < p.tables.size(); ++i) {
        EXPECT_TRUE(Close(first_position.emplace_back(t.grad_position[i].values()), expected.grad_position[i], 1e-6))
            << "table " << i;
      }
    }
    EXPECT_TRUE(SameBits(t.stream1.values(), first_e));
    EXPECT_TRUE(SameBits(t.grad_word.values(), first_word));
    for (size_t i = 0; i < p.tables.size(); ++i) EXPECT_TRUE(SameBits(t.grad_position[i].values(), first_position[i]));
    EXPECT_EQ(t.report.value(), rfn_range_report{});
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, Embedding, testing::ValuesIn(problems()),
                         [](const auto& info) { return info.param.name; });

class EmbeddingOp : public OpTest {};

TEST_F(EmbeddingOp, ExactResidual_RoundsToTheGrid) {
  Random random(109);
  Problem p;
  p.exact = true;
  p.dropout = 0.1f;
  const Data d = data(random, p);
  const Expected expected = reference(p, d);
  Tensors t(p, d);
  ASSERT_TRUE(Ok(forward(stream, t.op)));
  const std::vector<float> e = t.stream1.values();
  for (size_t i = 0; i < e.size(); ++i) {
    EXPECT_EQ(e[i] * 65536.0, std::nearbyint(e[i] * 65536.0));
    EXPECT_NEAR(e[i], expected.e[i], 0.5 / 65536 + 1e-6);
    EXPECT_FALSE(e[i] == 0 && std::signbit(e[i]));
  }
}

// Ids in runs, one and more at each length around the tokens of a part (64 and 128), so that runs begin and end within
// parts and at their boundaries.
TEST_F(EmbeddingOp, IdsInRunsAcrossParts_CloseToFloat64) {
  Random random(111);
  Problem p;
  p.batch = 1;
  p.vocabulary = 23;
  p.dropout = 0.2f;
  std::vector<int32_t> ids;
  const std::vector<int64_t> runs = {1, 63, 64, 65, 127, 128, 129, 191, 256, 300, 2, 511, 5};
  for (size_t run = 0; run < 2 * runs.size(); ++run) {
    const int32_t id = static_cast<int32_t>(run * 5 % 19);  // 19 .. 22 never come
    ids.insert(ids.end(), runs[run % runs.size()], id);
  }
  p.length = static_cast<int64_t>(ids.size());
  for (const int64_t width : {1, 31, 130}) {
    p.width = width;
    Data d = data(random, p);
    d.ids = ids;
    const Expected expected = reference(p, d);
    Tensors t(p, d);
    ASSERT_TRUE(Ok(forward(stream, t.op)));
    ASSERT_TRUE(Ok(backward(stream, t.op)));
    EXPECT_TRUE(Close(t.stream1.values(), expected.e, 3e-7)) << "width " << width;
    EXPECT_TRUE(Close(t.grad_word.values(), expected.grad_word, 1e-6)) << "width " << width;
    const std::vector<float> gradient = t.grad_word.values();
    for (int64_t i = 19 * width; i < 23 * width; ++i) EXPECT_EQ(gradient[i], d.grad_word[i]) << "an id without tokens";
  }
}

TEST_F(EmbeddingOp, ValuesOutOfRange_AreReportedOnce) {
  Random random(113);
  Problem p;
  p.exact = true;
  p.length = 400;  // several work items
  Data d = data(random, p);
  d.ids.assign(d.ids.size(), 0);
  d.ids[170] = d.ids[399] = 3;  // example 0
  d.word[3 * p.width + 5] = -256.5f;
  d.word[3 * p.width + 7] = std::nanf("");
  Tensors t(p, d);
  ASSERT_TRUE(Ok(forward(stream, t.op)));
  EXPECT_EQ(t.report.value(), (rfn_range_report{4, -1, 1, 170 * p.width + 5}));
  ASSERT_TRUE(Ok(forward(stream, t.op)));  // what is in the report stays
  EXPECT_EQ(t.report.value(), (rfn_range_report{8, -1, 1, 170 * p.width + 5}));
}

// A device can't say it without waiting: there the row becomes NaN and gets no gradient.
TEST_F(EmbeddingOp, BadId_IsNamedAndNothingIsWrittenOrItsRowIsNan) {
  Random random(127);
  Problem p;
  Data d = data(random, p);
  Tensors good(p, d);
  ASSERT_TRUE(Ok(forward(stream, good.op)));
  for (const int32_t bad : {-1, 19, INT32_MAX, INT32_MIN}) {
    Data other = d;
    other.ids[33 + 4] = bad;
    Tensors t(p, other);
    if (!on_cpu()) {
      ASSERT_TRUE(Ok(forward(stream, t.op)));
      const std::vector<float> e = t.stream1.values(), expected = good.stream1.values();
      for (size_t i = 0; i < e.size(); ++i) {
        if (i / 31 == 33 + 4)
          EXPECT_TRUE(std::isnan(e[i])) << i;
        else
          EXPECT_EQ(e[i], expected[i]) << i;
      }
      ASSERT_TRUE(Ok(backward(stream, t.op)));
      Data without = d;  // the same gradients as of that token with a gradient of zero
      for (int64_t i = 0; i < p.width; ++i)
        without.grad1[(33 + 4) * p.width + i] = without.grad2[(33 + 4) * p.width + i] = 0;
      EXPECT_TRUE(Close(t.grad_word.values(), reference(p, without).grad_word, 1e-6));
      continue;
    }
    EXPECT_TRUE(Fails(forward(stream, t.op), RFN_INVALID_ARGUMENT, {"ids[1,4]", "0 .. 18", std::to_string(bad)}));
    EXPECT_TRUE(Untouched(t.stream1.values()));
    EXPECT_TRUE(Fails(backward(stream, t.op), RFN_INVALID_ARGUMENT, {"ids[1,4]"}));
    EXPECT_TRUE(SameBits(t.grad_word.values(), other.grad_word));
  }
}

}  // namespace
}  // namespace rfn::test
