// Runs the tests on the device that RFN_TEST_DEVICE names (harness.h); the CPU with the instruction set that RFN_SIMD
// names. A machine without either skips them all, and says so.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "harness.h"

namespace {

class Listener : public testing::EmptyTestEventListener {
  void OnTestIterationStart(const testing::UnitTest&, int iteration) override {
    rfn::test::tensors_are_aligned = (std::getenv("RFN_TEST_ALIGNED") != nullptr) != (iteration % 2 != 0);
  }
  // A kernel that faults must not take the next test with it.
  void OnTestEnd(const testing::TestInfo&) override { rfn::test::close_device(); }
};

}  // namespace

int main(int argc, char** argv) {
  setenv("RFN_CUDA_ON_HOST_HIDE_MEMORY", "1", 0);  // host code that follows an address of the device faults there
  testing::InitGoogleTest(&argc, argv);
  rfn_context* context = nullptr;
  if (!testing::GTEST_FLAG(list_tests) &&
      rfn_context_create(rfn::test::device_type(), 0, 1, &context) == RFN_UNSUPPORTED) {
    std::printf("[  SKIPPED ] %s\n", rfn_last_error());  // ctest counts it by these words
    return 0;
  }
  rfn_context_destroy(context);
  testing::UnitTest::GetInstance()->listeners().Append(new Listener);
  const int result = RUN_ALL_TESTS();
  if (rfn_live_objects() == 0) return result;
  std::printf("[  FAILED  ] %lld native objects were left alive\n", static_cast<long long>(rfn_live_objects()));
  return 1;
}
