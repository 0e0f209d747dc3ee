// Products from many threads at a time. A BLAS without a lock around its buffers now and then returns another thread's
// numbers (docs/decisions/0002).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/gemm.h"
#include "harness.h"

namespace rfn::test {
namespace {

TEST(Blas, ManyThreads_SameBits) {
  Random random(61);
  constexpr int64_t kRows = 20000, kInner = 24, kOuter = 40;
  Tensor<float> x({kRows, kInner}, random.floats(kRows * kInner)),
      weight({kOuter, kInner}, random.floats(kOuter * kInner)), y({kRows, kOuter});
  rfn_linear op = make_op<rfn_linear>();
  op.x = x;
  op.weight = weight;
  op.y = y;
  std::vector<float> expected;
  {
    Context context(1);
    const Stream stream(context);
    ASSERT_TRUE(Ok(forward(stream, op)));
    expected = y.values();
  }
  Context context(8);
  const Stream stream(context);
  for (int i = 0; i < 200; ++i) {
    y.poison();
    ASSERT_TRUE(Ok(forward(stream, op)));
    ASSERT_TRUE(SameBits(y.values(), expected)) << "run " << i;
  }
}

// Products larger than any block that a kernel packs, in each order: what they pack fits in a buffer, behind which
// memory can't be touched. More rows than one call of OpenBLAS takes give the bits of their parts.
TEST(Blas, LargestProducts_FitInABuffer) {
  constexpr int64_t kRows = 9000, kColumns = 800, kDepth = 1600, kPart = 8192;
  Random random(62);
  const std::vector<float> a = random.floats(kRows * kDepth), b = random.floats(kDepth * kColumns);
  for (const cpu::Transpose transpose_a : {cpu::Transpose::kNo, cpu::Transpose::kYes}) {
    for (const cpu::Transpose transpose_b : {cpu::Transpose::kNo, cpu::Transpose::kYes}) {
      const int64_t lda = transpose_a == cpu::Transpose::kYes ? kRows : kDepth,
                    ldb = transpose_b == cpu::Transpose::kYes ? kDepth : kColumns;
      std::vector<float> whole(kRows * kColumns), parts(kRows * kColumns);
      const auto multiply = [&](int64_t row, int64_t rows, std::vector<float>& c) {
        cpu::gemm({transpose_a, transpose_b, rows, kColumns, kDepth,
                   transpose_a == cpu::Transpose::kYes ? a.data() + row : a.data() + row * lda, lda, b.data(), ldb,
                   0.0f, c.data() + row * kColumns, kColumns});
      };
      multiply(0, kRows, whole);
      for (int64_t row = 0; row < kRows; row += kPart) multiply(row, std::min(kPart, kRows - row), parts);
      ASSERT_TRUE(SameBits(whole, parts));
      // A few numbers against float64.
      for (const int64_t at : {int64_t{0}, 8191 * kColumns + 3, 8192 * kColumns + 1, kRows * kColumns - 1}) {
        const int64_t row = at / kColumns, column = at % kColumns;
        double sum = 0;
        for (int64_t i = 0; i < kDepth; ++i) {
          sum += static_cast<double>(a[transpose_a == cpu::Transpose::kYes ? i * lda + row : row * lda + i]) *
                 b[transpose_b == cpu::Transpose::kYes ? column * ldb + i : i * ldb + column];
        }
        EXPECT_NEAR(whole[at], sum, 1e-4 * std::sqrt(static_cast<double>(kDepth)));
      }
    }
  }
}

}  // namespace
}  // namespace rfn::test
