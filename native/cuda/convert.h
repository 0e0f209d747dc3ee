// BF16 and F16 to and from float32, in device memory.
#pragma once
#include <cstdint>

#include "cuda/state.h"

namespace rfn::cuda {

// Rows of `columns` elements whose starts are the strides apart; dtype is RFN_BF16 or RFN_F16. To nearest even, NaN to
// 0x7FFF.
rfn_status widen_rows(rfn_stream& stream, int32_t dtype, int64_t rows, int64_t columns, const uint16_t* from,
                      int64_t from_stride, float* to, int64_t to_stride);
rfn_status narrow_rows(rfn_stream& stream, int32_t dtype, int64_t rows, int64_t columns, const float* from,
                       int64_t from_stride, uint16_t* to, int64_t to_stride);

}  // namespace rfn::cuda
