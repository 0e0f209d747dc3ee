#include "harness.h"

namespace rfn::test {
namespace {

TEST(Abi, Version_Loaded_MatchesHeader) { EXPECT_EQ(rfn_abi_version(), (RFN_ABI_MAJOR << 16) | RFN_ABI_MINOR); }

}  // namespace
}  // namespace rfn::test
