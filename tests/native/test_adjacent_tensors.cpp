// Tensors in one piece of memory, as a caller's own allocator gives them: touching is allowed, sharing an element is
// refused, whichever of the two comes first.
#include <gtest/gtest.h>

#include <vector>

#include "harness.h"
#include "reference_ops.h"

namespace rfn::test {
namespace {

constexpr int64_t kRows = 5, kIn = 7, kOut = 3;

class AdjacentTensors : public OpTest {
 protected:
  Tensor<float> memory_{{512}};

  // A view of `sizes` that begins at float `first` of the memory.
  rfn_tensor view(int64_t first, const std::vector<int64_t>& sizes) const {
    rfn_tensor view = shape(sizes);
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    view.data = memory_.data() + first;
    view.bytes = count * static_cast<int64_t>(sizeof(float));
    return view;
  }
};

TEST_F(AdjacentTensors, OutputBetweenItsInputs_TouchingIsAllowedAndSharingIsNot) {
  Random random(950);
  const std::vector<float> x = random.floats(kRows * kIn), weight = random.floats(kOut * kIn);
  constexpr int64_t kX = 10, kY = kX + kRows * kIn, kWeight = kY + kRows * kOut;
  std::vector<float> all(512, poison());
  std::copy(x.begin(), x.end(), all.begin() + kX);
  std::copy(weight.begin(), weight.end(), all.begin() + kWeight);
  memory_.set(all);
  auto op = make_op<rfn_linear>();
  op.x = view(kX, {kRows, kIn});
  op.weight = view(kWeight, {kOut, kIn});
  op.y = view(kY, {kRows, kOut});
  ASSERT_TRUE(Ok(forward(stream, op)));
  Doubles expected(kRows * kOut);
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kOut; ++j) {
      for (int64_t k = 0; k < kIn; ++k)
        expected[i * kOut + j] += static_cast<double>(x[i * kIn + k]) * weight[j * kIn + k];
    }
  }
  const std::vector<float> now = memory_.values();
  EXPECT_TRUE(Close(std::vector<float>(now.begin() + kY, now.begin() + kWeight), expected, 1e-6));
  for (int64_t i = 0; i < 512; ++i) {
    if (i >= kY && i < kWeight) continue;
    EXPECT_TRUE(SameBits(std::vector<float>{now[i]}, std::vector<float>{all[i]})) << i;
  }

  op.y = view(kY - 1, {kRows, kOut});
  EXPECT_TRUE(Fails(forward(stream, op), RFN_INVALID_ARGUMENT, {"linear", "overlap"}));
  op.y = view(kY + 1, {kRows, kOut});
  EXPECT_TRUE(Fails(forward(stream, op), RFN_INVALID_ARGUMENT, {"linear", "overlap"}));
  EXPECT_TRUE(SameBits(memory_.values(), now));
  // What is only read may be the same memory, or share a part of it.
  op.y = view(kWeight + kOut * kIn, {kRows, kOut});
  op.weight = view(kX + 3, {kOut, kIn});
  EXPECT_TRUE(Ok(forward(stream, op)));
}

// The other ends: a written tensor before, and one behind, another written one.
TEST_F(AdjacentTensors, OutputsBesideEachOther_AreAllowed) {
  Random random(951);
  memory_.set(random.floats(512));
  const Result<rfn_norm_result> clip({1, 1});
  constexpr int64_t kCount = 20;
  auto op = make_op<rfn_adamw>();
  op.learning_rate = 0.1f;
  op.beta1 = 0.9f;
  op.beta2 = 0.99f;
  op.epsilon = 1e-8f;
  op.step = 1;
  rfn_tensor parameter = view(100, {kCount});
  const rfn_tensor moment1 = view(100 + kCount, {kCount}), moment2 = view(100 - kCount, {kCount}),
                   gradient = view(100 + 2 * kCount, {kCount});
  op.count = 1;
  op.parameters = &parameter;
  op.moments1 = &moment1;
  op.moments2 = &moment2;
  op.gradients = &gradient;
  op.clip = clip;
  EXPECT_TRUE(Ok(forward(stream, op)));
  for (const int64_t shift : {-1, 1}) {
    parameter = view(100 + shift, {kCount});
    EXPECT_TRUE(Fails(forward(stream, op), RFN_INVALID_ARGUMENT, {"adamw", "overlap"})) << shift;
  }
}

}  // namespace
}  // namespace rfn::test
