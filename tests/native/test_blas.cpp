// Products from many threads at a time. A BLAS without a lock around its buffers now and then returns another thread's
// numbers (docs/decisions/0002).
#include <gtest/gtest.h>

#include "harness.h"

namespace rfn::test {
namespace {

TEST(Blas, ManyThreads_SameBits) {
  Random random(61);
  constexpr int64_t kRows = 20000, kInner = 24, kOuter = 40;
  Tensor<float> x({kRows, kInner}, random.floats(kRows * kInner)),
      weight({kOuter, kInner}, random.floats(kOuter * kInner)), y({kRows, kOuter});
  rfn_linear op = make_op<rfn_linear>();
  op.x = x, op.weight = weight, op.y = y;
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

}  // namespace
}  // namespace rfn::test
