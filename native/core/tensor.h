// Reading rfn_tensor after validation: typed pointers and sizes.
#pragma once
#include <cstdint>

#include "reformer_native.h"

namespace rfn {

inline bool present(const rfn_tensor& t) {
  return t.struct_size != 0;
}  // described by shape; data may still be null in workspace queries
inline float* f32(const rfn_tensor& t) { return static_cast<float*>(t.data); }
inline double* f64(const rfn_tensor& t) { return static_cast<double*>(t.data); }
inline int32_t* i32(const rfn_tensor& t) { return static_cast<int32_t*>(t.data); }
inline int64_t* i64(const rfn_tensor& t) { return static_cast<int64_t*>(t.data); }
inline uint8_t* u8(const rfn_tensor& t) { return static_cast<uint8_t*>(t.data); }

// BF16 and F16, whose elements are 16 bits.
inline bool is_half(int32_t dtype) { return dtype == RFN_BF16 || dtype == RFN_F16; }
inline uint16_t* u16(const rfn_tensor& t) { return static_cast<uint16_t*>(t.data); }

inline int64_t elements(const rfn_tensor& t) {
  int64_t n = 1;
  for (int32_t i = 0; i < t.rank; ++i) n *= t.shape[i];
  return n;
}

inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }

}  // namespace rfn
