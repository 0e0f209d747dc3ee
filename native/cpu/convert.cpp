// In integers and float32 arithmetic that every target has, rather than with conversion instructions, which AVX2 and
// the portable target lack for one type or the other.
#include "cpu/convert.h"

#include <algorithm>

#include "core/tensor.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "reformer_native.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/convert.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rfn::cpu::HWY_NAMESPACE {

using Bits = hn::RebindToUnsigned<F32>;
using Halves = hn::Rebind<uint16_t, F32>;
using VecBits = hn::Vec<Bits>;

struct Bf16 {
  static HWY_INLINE VecF32 widen(VecBits half) { return hn::BitCast(F32(), hn::ShiftLeft<16>(half)); }

  // Half a unit of what stays is added, and one more unit of what goes where the last bit that stays is odd.
  static HWY_INLINE VecBits narrow(VecF32 x) {
    const Bits d;
    const VecBits bits = hn::BitCast(d, x), odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1u));
    const VecBits rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(d, 0x7FFFu)), odd));
    return hn::IfThenElse(hn::RebindMask(d, hn::Eq(x, x)), rounded, hn::Set(d, 0x7FFFu));
  }
};

struct F16 {
  static HWY_INLINE VecF32 widen(VecBits half) {
    const Bits d;
    const F32 df;
    const hn::RebindToSigned<F32> di;
    const VecBits exponent = hn::And(half, hn::Set(d, 0x7C00u)), fraction = hn::And(half, hn::Set(d, 0x3FFu));
    const VecBits magnitude = hn::ShiftLeft<13>(hn::And(half, hn::Set(d, 0x7FFFu)));
    // The exponent's bias grows by 112; infinities and NaN keep the largest exponent.
    const VecBits bias =
        hn::IfThenElse(hn::Eq(exponent, hn::Set(d, 0x7C00u)), hn::Set(d, 224u << 23), hn::Set(d, 112u << 23));
    const VecBits small =
        hn::BitCast(d, hn::Mul(hn::ConvertTo(df, hn::BitCast(di, fraction)), hn::Set(df, 0x1p-24f)));  // below 2^-14
    const VecBits value = hn::IfThenElse(hn::Eq(exponent, hn::Zero(d)), small, hn::Add(magnitude, bias));
    return hn::BitCast(df, hn::Or(value, hn::ShiftLeft<16>(hn::And(half, hn::Set(d, 0x8000u)))));
  }

  static HWY_INLINE VecBits narrow(VecF32 x) {
    const Bits d;
    const F32 df;
    const VecBits bits = hn::BitCast(d, x), sign = hn::And(bits, hn::Set(d, 0x80000000u)),
                  magnitude = hn::Xor(bits, sign);
    // From 2^-14 on, in integers: a carry out of the fraction raises the exponent, from 65520 on to infinity.
    const VecBits odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(d, 1u));
    const VecBits normal =
        hn::ShiftRight<13>(hn::Add(hn::Sub(magnitude, hn::Set(d, 112u << 23)), hn::Add(odd, hn::Set(d, 0xFFFu))));
    // Below: next to 0.5 a float's last bit is worth 2^-24, so that the addition rounds.
    const VecBits small =
        hn::Sub(hn::BitCast(d, hn::Add(hn::BitCast(df, magnitude), hn::Set(df, 0.5f))), hn::Set(d, 126u << 23));
    VecBits half = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 113u << 23)), small, normal);
    half = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 143u << 23)), half, hn::Set(d, 0x7C00u));
    half = hn::Or(half, hn::ShiftRight<16>(sign));
    return hn::IfThenElse(hn::RebindMask(d, hn::Eq(x, x)), half, hn::Set(d, 0x7FFFu));
  }
};

template <class Type>
void widen_all(const uint16_t* from, float* to, int64_t n) {
  const F32 d;
  const Halves halves;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(Type::widen(hn::PromoteTo(Bits(), hn::LoadU(halves, from + i))), d, to + i);
  if (i < n) store_first(d, Type::widen(hn::PromoteTo(Bits(), load_first(halves, from + i, n - i))), to + i, n - i);
}

template <class Type>
void narrow_all(const float* from, uint16_t* to, int64_t n) {
  const F32 d;
  const Halves halves;
  const hn::RebindToSigned<F32> di;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::DemoteTo(halves, hn::BitCast(di, Type::narrow(hn::LoadU(d, from + i)))), halves, to + i);
  if (i < n) {
    const VecBits rest = Type::narrow(load_first(d, from + i, n - i));
    store_first(halves, hn::DemoteTo(halves, hn::BitCast(di, rest)), to + i, n - i);
  }
}

void widen(int32_t dtype, const uint16_t* from, float* to, int64_t n) {
  dtype == RFN_BF16 ? widen_all<Bf16>(from, to, n) : widen_all<F16>(from, to, n);
}

void narrow(int32_t dtype, const float* from, uint16_t* to, int64_t n) {
  dtype == RFN_BF16 ? narrow_all<Bf16>(from, to, n) : narrow_all<F16>(from, to, n);
}

}  // namespace rfn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rfn::cpu {

void widen(int32_t dtype, const uint16_t* from, float* to, int64_t n) { RFN_SIMD_CHOOSE(widen)(dtype, from, to, n); }

void narrow(int32_t dtype, const float* from, uint16_t* to, int64_t n) { RFN_SIMD_CHOOSE(narrow)(dtype, from, to, n); }

namespace {

// Calls body(row), in items of about 64 K elements.
template <class Body>
void for_rows(int32_t threads, int64_t rows, int64_t columns, const Body& body) {
  const int64_t item = std::max<int64_t>(1, (int64_t{1} << 16) / columns);
  parallel_for(threads, div_up(rows, item), [&](int64_t i, int32_t) {
    for (int64_t row = i * item; row < std::min(rows, (i + 1) * item); ++row) body(row);
  });
}

}  // namespace

void widen_rows(int32_t threads, int32_t dtype, int64_t rows, int64_t columns, const uint16_t* from,
                int64_t from_stride, float* to, int64_t to_stride) {
  for_rows(threads, rows, columns,
           [&](int64_t row) { widen(dtype, from + row * from_stride, to + row * to_stride, columns); });
}

void narrow_rows(int32_t threads, int32_t dtype, int64_t rows, int64_t columns, const float* from, int64_t from_stride,
                 uint16_t* to, int64_t to_stride) {
  for_rows(threads, rows, columns,
           [&](int64_t row) { narrow(dtype, from + row * from_stride, to + row * to_stride, columns); });
}

}  // namespace rfn::cpu
#endif  // HWY_ONCE
