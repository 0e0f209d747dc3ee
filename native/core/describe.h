// What the library says about itself.
#pragma once
#include <string>

namespace rfn {

std::string describe_abi();    // rfn_abi_describe
std::string describe_build();  // rfn_build_info

}  // namespace rfn
