// Contents of tensors that come from the caller and become indices. The CPU reads them before anything is written, and
// refuses what does not fit with a message that names the tensor (`what`) and the first element that is wrong.
#pragma once
#include <cstdint>

#include "reformer_native.h"

namespace rfn::cpu {

// Every element of an I32 tensor is in [0, limit).
rfn_status check_indices(const rfn_tensor& tensor, int64_t limit, const char* what);

// Every row (the last axis) of an I32 tensor holds each of 0 .. row - 1 once. scratch: a row for each of `threads`.
rfn_status check_permutations(int32_t threads, const rfn_tensor& tensor, int32_t* scratch, const char* what);

}  // namespace rfn::cpu
