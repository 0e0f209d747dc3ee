#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "harness.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

// ---- global norm ----

std::pair<float, float> global_norm(const std::vector<std::vector<float>>& gradients, float max_norm,
                                    int32_t threads = 2) {
  Context context(threads);
  Stream stream(context);
  std::vector<Tensor<float>> tensors;
  std::vector<rfn_tensor> views;
  for (const auto& gradient : gradients)
    views.push_back(tensors.emplace_back(std::vector<int64_t>{static_cast<int64_t>(gradient.size())}, gradient));
  const Result<rfn_norm_result> result;
  auto op = make_op<rfn_global_norm>();
  op.max_norm = max_norm;
  op.count = static_cast<int64_t>(views.size());
  op.gradients = views.data();
  op.result = result;
  EXPECT_TRUE(Ok(forward(stream, op)));
  const auto [norm, scale] = result.value();
  return {norm, scale};
}

TEST(GlobalNorm, ManyTensors_CloseToFloat64AndSameBitsForEverySchedule) {
  Random random(211);
  std::vector<std::vector<float>> gradients;
  double squares = 0;
  for (const int64_t n : {1, 31, 33, 16384, 16385, 100000}) {
    gradients.push_back(random.floats(n));
    for (const float g : gradients.back()) squares += static_cast<double>(g) * g;
  }
  const double norm = std::sqrt(squares);
  const auto one = global_norm(gradients, 0.75f, 1);
  EXPECT_NEAR(one.first, norm, 1e-7 * norm);
  EXPECT_NEAR(one.second, 0.75 / norm, 1e-6 / norm);
  for_each_schedule([&](int32_t threads) { EXPECT_EQ(global_norm(gradients, 0.75f, threads), one); });
  EXPECT_EQ(global_norm(gradients, 0).second, 1.0f);
  EXPECT_EQ(global_norm(gradients, 1e6f).second, 1.0f);
}

TEST(GlobalNorm, ExtremeGradients_NeitherOverflowNorPassUnseen) {
  EXPECT_EQ(global_norm({{3e30f, 4e30f}}, 1), std::make_pair(5e30f, 1 / 5e30f));
  EXPECT_NEAR(global_norm({{3e-30f, 4e-30f}}, 1).first / 5e-30, 1, 1e-6);
  EXPECT_EQ(global_norm({{1, 2}, {INFINITY}}, 1).second, 0.0f);
  EXPECT_EQ(global_norm({{1, std::nanf("")}}, 0).second, 0.0f);
}

// Without a limit too: an infinite norm drops the gradients, whichever sign and place the infinity has.
TEST(GlobalNorm, InfiniteGradients_AreDroppedWithAnyLimit) {
  for (const float bad : {INFINITY, -INFINITY}) {
    for (const float max_norm : {0.0f, 1.0f, 1e30f}) {
      for (const size_t at : {size_t{0}, size_t{16383}, size_t{16384}, size_t{20000}}) {
        std::vector<float> gradient(20001, 0.5f);
        gradient[at] = bad;
        const auto [norm, scale] = global_norm({{1.0f}, gradient, {2.0f}}, max_norm);
        EXPECT_EQ(norm, INFINITY) << at << " " << max_norm;
        EXPECT_EQ(scale, 0.0f) << at << " " << max_norm;
      }
    }
  }
  // Finite gradients whose norm float32 cannot hold are dropped like infinite ones.
  EXPECT_EQ(global_norm({{3e38f, 3e38f, 3e38f}}, 0), std::make_pair(static_cast<float>(INFINITY), 0.0f));
}

// More tensors than a launch of a device takes (200), of every size around a block's, with each at its own place.
TEST(GlobalNorm, TensorsOfSeveralLaunches_CloseToFloat64) {
  Random random(213);
  for (const size_t count : {200, 201, 401}) {
    std::vector<std::vector<float>> gradients;
    double squares = 0;
    for (size_t i = 0; i < count; ++i) {
      gradients.push_back(
          random.floats(i % 90 == 3 ? 16385 : 1 + random.below(40), -1 - static_cast<double>(i % 7), 2));
      for (const float g : gradients.back()) squares += static_cast<double>(g) * g;
    }
    const double norm = std::sqrt(squares);
    const auto found = global_norm(gradients, 0.5f);
    EXPECT_NEAR(found.first, norm, 1e-7 * norm) << count;
    EXPECT_NEAR(found.second, 0.5 / norm, 1e-6 / norm) << count;
    gradients.back()[0] = INFINITY;
    EXPECT_EQ(global_norm(gradients, 0).second, 0.0f) << count;
  }
}

// ---- AdamW ----

struct AdamW {
  std::vector<float> parameter, moment1, moment2;
};

AdamW adamw(AdamW state, const std::vector<float>& gradient, int64_t step, const std::vector<float>& clip, float decay,
            int32_t threads = 2) {
  Context context(threads);
  Stream stream(context);
  const int64_t n = static_cast<int64_t>(gradient.size());
  const Tensor<float> parameter({n}, state.parameter), gradients({n}, gradient), moment1({n}, state.moment1),
      moment2({n}, state.moment2);
  const Result<rfn_norm_result> clips(clip.empty() ? rfn_norm_result{} : rfn_norm_result{clip[0], clip[1]});
  auto op = make_op<rfn_adamw>();
  op.learning_rate = 0.01f;
  op.beta1 = 0.9f;
  op.beta2 = 0.98f;
  op.epsilon = 1e-8f;
  op.step = step;
  const rfn_tensor tensors[] = {parameter, gradients, moment1, moment2};
  op.count = 1;
  op.parameters = &tensors[0];
  op.gradients = &tensors[1];
  op.moments1 = &tensors[2];
  op.moments2 = &tensors[3];
  op.weight_decays = &decay;
  if (!clip.empty()) op.clip = clips;
  EXPECT_TRUE(Ok(forward(stream, op)));
  return {parameter.values(), moment1.values(), moment2.values()};
}

TEST(AdamWOp, SeveralSteps_CloseToFloat64) {
  Random random(223);
  for (const int64_t n : {1, 31, 33, 40000}) {
    for (const bool clipped : {false, true}) {
      AdamW state{random.floats(n), std::vector<float>(n), std::vector<float>(n)};
      Doubles p = doubles(state.parameter), m(n), v(n);
      const double scale = clipped ? static_cast<double>(0.3f) : 1, b1 = 0.9f, b2 = 0.98f;
      for (int64_t step = 1; step <= 4; ++step) {
        const std::vector<float> gradient = random.floats(n, -0.2, 1);  // one number's moment must not cancel
        state = adamw(state, gradient, step, clipped ? std::vector<float>{123, 0.3f} : std::vector<float>{}, 0.1f);
        for (int64_t i = 0; i < n; ++i) {
          const double g = scale * gradient[i];
          m[i] = b1 * m[i] + (1 - b1) * g;
          v[i] = b2 * v[i] + (1 - b2) * g * g;
          const double mhat = m[i] / (1 - std::pow(b1, step)), vhat = v[i] / (1 - std::pow(b2, step));
          p[i] -= static_cast<double>(0.01f) *
                  (mhat / (std::sqrt(vhat) + static_cast<double>(1e-8f)) + static_cast<double>(0.1f) * p[i]);
        }
      }
      EXPECT_TRUE(Close(state.parameter, p, 1e-6));
      EXPECT_TRUE(Close(state.moment1, m, 1e-6));
      EXPECT_TRUE(Close(state.moment2, v, 1e-6));
    }
  }
}

TEST(AdamWOp, ScaleZero_DropsEvenAGradientThatIsNotFinite) {
  const AdamW before{{1, 2, 3}, {0.5f, 0, -1}, {1, 0, 4}};
  const AdamW after = adamw(before, {std::nanf(""), INFINITY, 1}, 10, {INFINITY, 0}, 0);
  EXPECT_TRUE(AllFinite(after.parameter));
  EXPECT_FLOAT_EQ(after.moment1[0], 0.45f);
  EXPECT_EQ(after.parameter[1], 2.0f);
}

TEST(AdamWOp, EverySchedule_SameBits) {
  Random random(227);
  const AdamW before{random.floats(50001), random.floats(50001), random.floats(50001, 0, 1)};
  const std::vector<float> gradient = random.floats(50001);
  const AdamW one = adamw(before, gradient, 3, {}, 0.1f, 1);
  for_each_schedule([&](int32_t threads) {
    const AdamW many = adamw(before, gradient, 3, {}, 0.1f, threads);
    EXPECT_TRUE(SameBits(many.parameter, one.parameter));
    EXPECT_TRUE(SameBits(many.moment2, one.moment2));
  });
}

// ---- Adafactor ----

struct Adafactor {
  std::vector<int64_t> sizes;
  std::vector<float> parameter, row, column, moment2;
};

Adafactor adafactor_state(Random& random, std::vector<int64_t> sizes) {
  const int64_t n = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  Adafactor state{sizes, random.floats(n), {}, {}, {}};
  if (sizes.size() >= 2) {
    state.row.assign(n / sizes.back(), 0.0f);
    state.column.assign(sizes.back(), 0.0f);
  } else {
    state.moment2.assign(n, 0.0f);
  }
  return state;
}

struct Options {
  float rate = 0.05f, clip_threshold = 1, decay = 0.01f;
  int32_t scale_parameter = 1;
  float scale = 1;
  float epsilon1 = 1e-30f;
};

Adafactor adafactor(const Adafactor& state, const std::vector<float>& gradient, int64_t step, const Options& o,
                    int32_t threads = 2) {
  Context context(threads);
  Stream stream(context);
  const bool factored = state.sizes.size() >= 2;
  const Tensor<float> parameter(state.sizes, state.parameter), gradients(state.sizes, gradient);
  const Result<rfn_norm_result> clip({1, o.scale});
  std::vector<Tensor<float>> moments;
  auto op = make_op<rfn_adafactor>();
  op.learning_rate = o.rate;
  op.decay_exponent = 0.8f;
  op.clip_threshold = o.clip_threshold;
  op.epsilon1 = o.epsilon1;
  op.epsilon2 = 1e-3f;
  op.scale_parameter = o.scale_parameter;
  op.step = step;
  const rfn_tensor views[] = {parameter, gradients};
  rfn_tensor row, column, moment2;
  op.count = 1;
  op.parameters = &views[0];
  op.gradients = &views[1];
  op.weight_decays = &o.decay;
  moments.reserve(2);
  if (factored) {
    row = moments.emplace_back(std::vector<int64_t>{static_cast<int64_t>(state.row.size())}, state.row);
    column = moments.emplace_back(std::vector<int64_t>{static_cast<int64_t>(state.column.size())}, state.column);
    op.rows = &row;
    op.columns = &column;
  } else {
    moment2 = moments.emplace_back(state.sizes, state.moment2);
    op.moments2 = &moment2;
  }
  if (o.scale != 1) op.clip = clip;
  EXPECT_TRUE(Ok(forward(stream, op)));
  Adafactor after{state.sizes, parameter.values(), {}, {}, {}};
  if (factored) {
    after.row = moments[0].values();
    after.column = moments[1].values();
  } else {
    after.moment2 = moments[0].values();
  }
  return after;
}

// Algorithms 4 and 5 of the paper, with means in place of sums for the factors.
struct Reference {
  Doubles p, row, column, moment2;

  void step(const std::vector<float>& gradient, int64_t t, const Options& o) {
    const size_t n = p.size(), columns = column.empty() ? n : column.size(), rows = n / columns;
    const double rho = 1 - std::pow(static_cast<double>(t), -static_cast<double>(0.8f)), scale = o.scale;
    Doubles u(n), row_new(row.size()), column_new(column.size());
    const auto square = [&](size_t i) {
      return scale * gradient[i] * scale * gradient[i] + static_cast<double>(1e-30f);
    };
    for (size_t i = 0; i < n; ++i) {
      if (row.empty()) {
        moment2[i] = rho * moment2[i] + (1 - rho) * square(i);
      } else {
        row_new[i / columns] += square(i) / static_cast<double>(columns);
        column_new[i % columns] += square(i) / static_cast<double>(rows);
      }
    }
    double row_mean = 0, u_squares = 0, p_squares = 0;
    for (size_t r = 0; r < row.size(); ++r)
      row_mean += (row[r] = rho * row[r] + (1 - rho) * row_new[r]) / static_cast<double>(rows);
    for (size_t c = 0; c < column.size(); ++c) column[c] = rho * column[c] + (1 - rho) * column_new[c];
    for (size_t i = 0; i < n; ++i) {
      u[i] =
          scale * gradient[i] / std::sqrt(row.empty() ? moment2[i] : row[i / columns] * column[i % columns] / row_mean);
      u_squares += u[i] * u[i];
      p_squares += p[i] * p[i];
    }
    const double clip = std::max(1.0, std::sqrt(u_squares / static_cast<double>(n)) / o.clip_threshold);
    const double size = std::max(static_cast<double>(1e-3f), std::sqrt(p_squares / static_cast<double>(n)));
    const double alpha = o.rate * (o.scale_parameter != 0 ? size : 1.0);
    for (size_t i = 0; i < n; ++i) p[i] -= alpha * u[i] / clip + static_cast<double>(o.rate) * o.decay * p[i];
  }
};

TEST(AdafactorOp, AllRanks_CloseToFloat64) {
  Random random(229);
  for (const auto& sizes : std::vector<std::vector<int64_t>>{
           {1}, {33}, {40000}, {1, 1}, {31, 33}, {200, 7}, {3, 2050}, {4, 5, 6}, {2, 3, 4, 5}}) {
    for (const Options& o : {Options{}, Options{0.1f, 0.2f, 0, 0, 1}, Options{0.05f, 1, 0.1f, 1, 0.01f}}) {
      Adafactor state = adafactor_state(random, sizes);
      Reference reference{doubles(state.parameter), doubles(state.row), doubles(state.column), doubles(state.moment2)};
      for (int64_t step = 1; step <= 3; ++step) {
        const std::vector<float> gradient = random.floats(static_cast<int64_t>(state.parameter.size()));
        state = adafactor(state, gradient, step, o);
        reference.step(gradient, step, o);
      }
      EXPECT_TRUE(Close(state.parameter, reference.p, 2e-6));
      if (sizes.size() >= 2) {
        EXPECT_TRUE(Close(state.row, reference.row, 1e-6));
        EXPECT_TRUE(Close(state.column, reference.column, 1e-6));
      } else {
        EXPECT_TRUE(Close(state.moment2, reference.moment2, 1e-6));
      }
    }
  }
}

TEST(AdafactorOp, ZeroGradientAndScaleZero_LeaveTheParameter) {
  Random random(233);
  for (const auto& sizes : std::vector<std::vector<int64_t>>{{20}, {5, 4}}) {
    const Adafactor state = adafactor_state(random, sizes);
    Options o;
    o.decay = 0;
    EXPECT_TRUE(SameBits(adafactor(state, std::vector<float>(20), 1, o).parameter, state.parameter));
    o.scale = 0;
    EXPECT_TRUE(SameBits(adafactor(state, std::vector<float>(20, std::nanf("")), 1, o).parameter, state.parameter));
  }
}

TEST(AdafactorOp, EverySchedule_SameBits) {
  Random random(239);
  for (const auto& sizes : std::vector<std::vector<int64_t>>{{70000}, {900, 130}, {3, 5000}}) {
    const Adafactor state = adafactor_state(random, sizes);
    const std::vector<float> gradient = random.floats(static_cast<int64_t>(state.parameter.size()));
    const Adafactor one = adafactor(state, gradient, 2, {}, 1);
    for_each_schedule([&](int32_t threads) {
      const Adafactor many = adafactor(state, gradient, 2, {}, threads);
      EXPECT_TRUE(SameBits(many.parameter, one.parameter));
      EXPECT_TRUE(SameBits(many.row, one.row));
      EXPECT_TRUE(SameBits(many.column, one.column));
      EXPECT_TRUE(SameBits(many.moment2, one.moment2));
    });
  }
}

// ---- many tensors ----

// More than a launch of a device takes (84 of AdamW, 77 of Adafactor), vectors and matrices in turn, of odd sizes and
// of some blocks; each with a decay of its own. Poison lies behind every tensor (harness.h).
std::vector<std::vector<int64_t>> many_sizes(Random& random, size_t count) {
  std::vector<std::vector<int64_t>> sizes;
  for (size_t i = 0; i < count; ++i) {
    const int64_t a = 1 + random.below(40), b = 1 + random.below(40);
    if (i % 40 == 7) {
      sizes.push_back({a * 130, 33 + b});
    } else if (i % 40 == 12) {
      sizes.push_back({16384 * static_cast<int64_t>(i % 3) + a});
    } else if (i % 3 == 0) {
      sizes.push_back({a, b});
    } else {
      sizes.push_back(i % 3 == 1 ? std::vector<int64_t>{a} : std::vector<int64_t>{});
    }
  }
  return sizes;
}

int64_t elements_of(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

TEST(AdamWOp, ManyTensors_SameBitsAsOneByOne) {
  Random random(241);
  for (const size_t count : {2, 84, 85, 170}) {
    Context context(3);
    Stream stream(context);
    const auto sizes = many_sizes(random, count);
    const Result<rfn_norm_result> clip({1, 0.5f});
    std::vector<std::vector<float>> values[4];
    std::vector<Tensor<float>> tensors[4];
    std::vector<rfn_tensor> views[4];
    std::vector<float> decays;
    for (size_t i = 0; i < count; ++i) {
      decays.push_back(i % 2 == 0 ? 0.0f : 0.01f * static_cast<float>(i));
      for (int list = 0; list < 4; ++list) {
        values[list].push_back(random.floats(elements_of(sizes[i]), list == 3 ? 0 : -1, 1));
        views[list].push_back(tensors[list].emplace_back(sizes[i], values[list].back()));
      }
    }
    auto op = make_op<rfn_adamw>();
    op.learning_rate = 0.01f;
    op.beta1 = 0.9f;
    op.beta2 = 0.98f;
    op.epsilon = 1e-8f;
    op.step = 3;
    op.clip = clip;
    const auto run = [&](size_t first, size_t n) {
      op.count = static_cast<int64_t>(n);
      op.parameters = &views[0][first];
      op.gradients = &views[1][first];
      op.moments1 = &views[2][first];
      op.moments2 = &views[3][first];
      op.weight_decays = &decays[first];
      ASSERT_TRUE(Ok(forward(stream, op)));
    };
    run(0, count);
    std::vector<std::vector<float>> together[4];
    for (int list = 0; list < 4; ++list) {
      for (size_t i = 0; i < count; ++i) {
        together[list].push_back(tensors[list][i].values());
        tensors[list][i].set(values[list][i]);
      }
    }
    for (size_t i = 0; i < count; ++i) run(i, 1);
    for (int list = 0; list < 4; ++list) {
      for (size_t i = 0; i < count; ++i)
        EXPECT_TRUE(SameBits(together[list][i], tensors[list][i].values())) << list << " of tensor " << i;
    }
    EXPECT_TRUE(SameBits(together[1][0], values[1][0]));
    EXPECT_FALSE(SameBits(together[0][0], values[0][0]));
  }
}

TEST(AdafactorOp, ManyTensors_SameBitsAsOneByOne) {
  Random random(251);
  for (const size_t count : {2, 77, 78, 160}) {
    Context context(3);
    Stream stream(context);
    const auto sizes = many_sizes(random, count);
    const Result<rfn_norm_result> clip({1, 0.5f});
    enum { kParameters, kGradients, kRows, kColumns, kMoments, kLists };
    std::vector<std::vector<float>> values[kLists];
    std::vector<Tensor<float>> tensors[kLists];
    std::vector<rfn_tensor> views[kLists];
    std::vector<float> decays;
    for (size_t i = 0; i < count; ++i) {
      const bool factored = sizes[i].size() >= 2;
      const int64_t n = elements_of(sizes[i]), columns = factored ? sizes[i].back() : 1;
      decays.push_back(i % 2 == 0 ? 0.0f : 0.01f * static_cast<float>(i));
      const auto add = [&](int list, const std::vector<int64_t>& shape, bool read) {
        values[list].push_back(
            random.floats(elements_of(shape), list == kGradients || list == kParameters ? -1 : 0, 1));
        tensors[list].emplace_back(shape, values[list].back());
        views[list].push_back(read ? static_cast<rfn_tensor>(tensors[list].back()) : rfn_tensor{});
      };
      add(kParameters, sizes[i], true);
      add(kGradients, sizes[i], true);
      add(kRows, {n / columns}, factored);
      add(kColumns, {columns}, factored);
      add(kMoments, sizes[i], !factored);
    }
    auto op = make_op<rfn_adafactor>();
    op.learning_rate = 0.05f;
    op.decay_exponent = 0.8f;
    op.clip_threshold = 1;
    op.epsilon1 = 1e-30f;
    op.epsilon2 = 1e-3f;
    op.scale_parameter = 1;
    op.step = 2;
    op.clip = clip;
    const auto run = [&](size_t first, size_t n) {
      op.count = static_cast<int64_t>(n);
      op.parameters = &views[kParameters][first];
      op.gradients = &views[kGradients][first];
      op.rows = &views[kRows][first];
      op.columns = &views[kColumns][first];
      op.moments2 = &views[kMoments][first];
      op.weight_decays = &decays[first];
      ASSERT_TRUE(Ok(forward(stream, op)));
    };
    run(0, count);
    std::vector<std::vector<float>> together[kLists];
    for (int list = 0; list < kLists; ++list) {
      for (size_t i = 0; i < count; ++i) {
        together[list].push_back(tensors[list][i].values());
        tensors[list][i].set(values[list][i]);
      }
    }
    for (size_t i = 0; i < count; ++i) run(i, 1);
    for (int list = 0; list < kLists; ++list) {
      for (size_t i = 0; i < count; ++i)
        EXPECT_TRUE(SameBits(together[list][i], tensors[list][i].values())) << list << " of tensor " << i;
    }
    EXPECT_FALSE(SameBits(together[kParameters][0], values[kParameters][0]));
    // What is not read is not written.
    EXPECT_TRUE(SameBits(together[kRows][1], values[kRows][1]));
    EXPECT_TRUE(SameBits(together[kMoments][0], values[kMoments][0]));
  }
}

// Gradients whose squares are near the smallest float32: the product of a row's and a column's root is no float32.
TEST(AdafactorOp, TinyGradientsWithoutEpsilon_StayFinite) {
  Random random(257);
  Adafactor state = adafactor_state(random, {7, 5});
  std::vector<float> gradient = random.floats(35, 0.5, 1);
  for (float& g : gradient) g *= 1e-20f;
  const Adafactor after = adafactor(state, gradient, 1, Options{0.05f, 1, 0, 1, 1, 0});
  EXPECT_TRUE(AllFinite(after.parameter));
  // Each update is near 1 and clipped to a root mean square of 1, times the parameter's.
  for (size_t i = 0; i < 35; ++i) EXPECT_LT(after.parameter[i], state.parameter[i]) << i;
}

}  // namespace
}  // namespace rfn::test
