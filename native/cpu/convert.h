// BF16 and F16 to and from float32. Exact one way; the other way to nearest even, NaN to 0x7FFF, the same bits with
// every instruction set.
#pragma once
#include <cstdint>

namespace rfn::cpu {

// One thread each; dtype is RFN_BF16 or RFN_F16.
void widen(int32_t dtype, const uint16_t* from, float* to, int64_t n);
void narrow(int32_t dtype, const float* from, uint16_t* to, int64_t n);

// Rows of `columns` elements whose starts are the strides apart, in parallel.
void widen_rows(int32_t threads, int32_t dtype, int64_t rows, int64_t columns, const uint16_t* from,
                int64_t from_stride, float* to, int64_t to_stride);
void narrow_rows(int32_t threads, int32_t dtype, int64_t rows, int64_t columns, const float* from, int64_t from_stride,
                 uint16_t* to, int64_t to_stride);

}  // namespace rfn::cpu
