// Matrix products, compiled into the tests.
#include <gtest/gtest.h>

#include <vector>

#include "compare.h"
#include "cpu/gemm.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

using cpu::Transpose;

struct Sizes {
  int64_t m, n, k;
  bool a_transposed, b_transposed;
  float beta;
};

class Gemm : public testing::TestWithParam<Sizes> {};

TEST_P(Gemm, OddSizes_CloseToFloat64AndSameBitsForAllThreads) {
  const Sizes p = GetParam();
  const Transpose ta = p.a_transposed ? Transpose::kYes : Transpose::kNo,
                  tb = p.b_transposed ? Transpose::kYes : Transpose::kNo;
  Random random(23);
  const int64_t lda = (p.a_transposed ? p.m : p.k) + 3, ldb = (p.b_transposed ? p.k : p.n) + 1, ldc = p.n + 2;
  const std::vector<float> a = random.floats((p.a_transposed ? p.k : p.m) * lda),
                           b = random.floats((p.b_transposed ? p.n : p.k) * ldb);
  std::vector<float> start(static_cast<size_t>(p.m * ldc), poison());  // with beta 0, C is not read
  if (p.beta != 0) {
    for (int64_t i = 0; i < p.m; ++i) {
      for (int64_t j = 0; j < p.n; ++j) start[i * ldc + j] = static_cast<float>(random.uniform(-1, 1));
    }
  }
  Doubles expected;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      double sum = p.beta == 0 ? 0 : start[i * ldc + j];
      for (int64_t l = 0; l < p.k; ++l) {
        sum += static_cast<double>(a[p.a_transposed ? l * lda + i : i * lda + l]) *
               b[p.b_transposed ? j * ldb + l : l * ldb + j];
      }
      expected.push_back(sum);
    }
  }
  const auto check = [&](const std::vector<float>& c) {
    std::vector<float> inside, outside;
    for (int64_t i = 0; i < p.m; ++i) {
      inside.insert(inside.end(), c.begin() + i * ldc, c.begin() + i * ldc + p.n);
      outside.insert(outside.end(), c.begin() + i * ldc + p.n, c.begin() + (i + 1) * ldc);
    }
    EXPECT_TRUE(Close(inside, expected, 2e-6, p.k == 0 && p.beta == 0 ? Zeros::kAllowed : Zeros::kRefused));
    EXPECT_TRUE(Untouched(outside));
  };
  std::vector<float> c = start;
  const auto product = [&] {
    return cpu::Product{ta, tb, p.m, p.n, p.k, a.data(), lda, b.data(), ldb, p.beta, c.data(), ldc};
  };
  cpu::gemm(product());
  check(c);
  std::vector<float> first;
  for (const int32_t threads : kThreadCounts) {
    c = start;
    cpu::parallel_gemm(threads, product());
    if (first.empty()) check(first = c);
    EXPECT_TRUE(SameBits(c, first)) << threads << " threads";
  }
}

std::vector<Sizes> all_sizes() {
  std::vector<Sizes> all;
  for (const float beta : {0.0f, 1.0f}) {
    for (const int transposes : {0, 1, 2, 3}) {
      for (const auto& [m, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
               {1, 1, 1}, {31, 33, 5}, {1, 700, 64}, {600, 1, 33}, {130, 65, 257}, {515, 1030, 19}, {7, 3, 0}}) {
        all.push_back({m, n, k, (transposes & 1) != 0, (transposes & 2) != 0, beta});
      }
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Sizes, Gemm, testing::ValuesIn(all_sizes()), [](const auto& info) {
  const Sizes& p = info.param;
  return std::to_string(p.m) + "x" + std::to_string(p.n) + "x" + std::to_string(p.k) + (p.a_transposed ? "T" : "N") +
         (p.b_transposed ? "T" : "N") + (p.beta == 0 ? "Set" : "Add");
});

}  // namespace
}  // namespace rfn::test
