// Elements of tensors in kernels by their data type: Element<RFN_F32>, Element<RFN_BF16>, Element<RFN_F16>.
#pragma once
#include "cuda/device.cuh"
#include "reformer_native.h"

namespace rfn::cuda {

template <int32_t kType>
struct Element {
  static_assert(kType == RFN_BF16 || kType == RFN_F16);
  using Stored = uint16_t;
  static __device__ float widen(uint16_t x) {
    if constexpr (kType == RFN_BF16) {
      return bf16_to_float(x);
    } else {
      return f16_to_float(x);
    }
  }
  static __device__ uint16_t narrow(float x) {
    if constexpr (kType == RFN_BF16) {
      return float_to_bf16(x);
    } else {
      return float_to_f16(x);
    }
  }
  // Two neighbours, the first in the lower half.
  static __device__ uint32_t pack(float first, float second) {
    if constexpr (kType == RFN_BF16) {
      return pack_bf16(first, second);
    } else {
      return pack_f16(first, second);
    }
  }
};

template <>
struct Element<RFN_F32> {
  using Stored = float;
  static __device__ float widen(float x) { return x; }
  static __device__ float narrow(float x) { return x; }
};

// Calls body(Element<kType>()) for the data type of a tensor that was validated.
template <class Body>
auto with_element(int32_t dtype, const Body& body) {
  switch (dtype) {
    case RFN_BF16:
      return body(Element<RFN_BF16>());
    case RFN_F16:
      return body(Element<RFN_F16>());
    default:
      return body(Element<RFN_F32>());
  }
}

}  // namespace rfn::cuda
