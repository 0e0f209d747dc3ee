#include "cpu/row_product.h"

#include "cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/row_product.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rfn::cpu::HWY_NAMESPACE {

constexpr int64_t kBlock = 4;  // rows of w at a time: with two sums each, enough to hide the latency of an addition

// One row of x with `columns` rows of w. Every sum is the same two interleaved sums of vectors, then their lanes.
template <int columns>
HWY_INLINE void block(int64_t depth, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, int64_t ldw,
                      float* HWY_RESTRICT y) {
  const F32 f;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(f));
  VecF32 even[columns], odd[columns];
  for (int j = 0; j < columns; ++j) even[j] = odd[j] = hn::Zero(f);
  int64_t k = 0;
  for (; k + 2 * lanes <= depth; k += 2 * lanes) {
    const VecF32 first = hn::LoadU(f, x + k), second = hn::LoadU(f, x + k + lanes);
    for (int j = 0; j < columns; ++j) {
      even[j] = hn::MulAdd(first, hn::LoadU(f, w + j * ldw + k), even[j]);
      odd[j] = hn::MulAdd(second, hn::LoadU(f, w + j * ldw + k + lanes), odd[j]);
    }
  }
  for (; k < depth; k += lanes) {
    const int64_t rest = depth - k;
    const bool whole = rest >= lanes;
    const VecF32 left = whole ? hn::LoadU(f, x + k) : load_first(f, x + k, rest);
    for (int j = 0; j < columns; ++j) {
      even[j] = hn::MulAdd(left, whole ? hn::LoadU(f, w + j * ldw + k) : load_first(f, w + j * ldw + k, rest), even[j]);
    }
  }
  for (int j = 0; j < columns; ++j) y[j] = sum(f, hn::Add(even[j], odd[j]));
}

void row_products(int64_t rows, int64_t columns, int64_t depth, const float* x, int64_t ldx, const float* w,
                  int64_t ldw, float* y, int64_t ldy) {
  int64_t j = 0;
  for (; j + kBlock <= columns; j += kBlock) {
    for (int64_t i = 0; i < rows; ++i) block<kBlock>(depth, x + i * ldx, w + j * ldw, ldw, y + i * ldy + j);
  }
  for (; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) block<1>(depth, x + i * ldx, w + j * ldw, ldw, y + i * ldy + j);
  }
}

}  // namespace rfn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rfn::cpu {

void row_products(int64_t rows, int64_t columns, int64_t depth, const float* x, int64_t ldx, const float* w,
                  int64_t ldw, float* y, int64_t ldy) {
  RFN_SIMD_CHOOSE(row_products)(rows, columns, depth, x, ldx, w, ldw, y, ldy);
}

}  // namespace rfn::cpu
#endif  // HWY_ONCE
