// Runs the tests with the instruction set that RFN_SIMD names. A processor without it skips them all, and says so.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "reformer_native.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  rfn_context* context = nullptr;
  if (!testing::GTEST_FLAG(list_tests) && rfn_context_create(RFN_DEVICE_CPU, 0, 1, &context) == RFN_UNSUPPORTED) {
    std::printf("[  SKIPPED ] %s\n", rfn_last_error());  // ctest counts it by these words
    return 0;
  }
  rfn_context_destroy(context);
  const int result = RUN_ALL_TESTS();
  if (rfn_live_objects() == 0) return result;
  std::printf("[  FAILED  ] %lld native objects were left alive\n", static_cast<long long>(rfn_live_objects()));
  return 1;
}
