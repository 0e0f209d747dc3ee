#include "cpu/vector_math.h"

#include <cmath>
#include <cstring>

#include "cpu/simd.h"
#include "reformer_native.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/vector_math.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rfn::cpu::HWY_NAMESPACE {

void add(float* y, const float* x, int64_t n) {
  for_vectors(F32(), n, [&](auto load, auto store, int64_t) HWY_ATTR { store(hn::Add(load(y), load(x)), y); });
}

void subtract(float* y, const float* x, int64_t n) {
  for_vectors(F32(), n, [&](auto load, auto store, int64_t) HWY_ATTR { store(hn::Sub(load(y), load(x)), y); });
}

// ---- dropout ------------------------------------------------------------------------------------

#if HWY_TARGET != HWY_SCALAR
// The words of as many quads as there are 64-bit lanes, first quad `quad`, in element order: two vectors. The four
// counter words live in the low halves of 64-bit lanes; what is in the high halves is never read, since the 32x32-bit
// multiplication ignores it.
struct PhiloxVectors {
  hn::Vec<hn::ScalableTag<uint32_t>> low, high;
};

HWY_INLINE PhiloxVectors philox_vectors(const Philox& p, hn::Vec<hn::ScalableTag<uint64_t>> quads) {
  const hn::ScalableTag<uint32_t> d32;
  const hn::ScalableTag<uint64_t> d64;
  const auto multiplier0 = hn::BitCast(d32, hn::Set(d64, 0xD2511F53u)),
             multiplier1 = hn::BitCast(d32, hn::Set(d64, 0xCD9E8D57u));
  auto c0 = quads, c1 = hn::ShiftRight<32>(quads), c2 = hn::Set(d64, p.stream), c3 = hn::Set(d64, p.step);
  uint32_t k0 = p.key0, k1 = p.key1;
  for (int round = 0; round < 10; ++round) {
    const auto product0 = hn::MulEven(hn::BitCast(d32, c0), multiplier0),
               product1 = hn::MulEven(hn::BitCast(d32, c2), multiplier1);
    c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(product1), c1), hn::Set(d64, k0));
    c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(product0), c3), hn::Set(d64, k1));
    c1 = product1;
    c3 = product0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const auto low_half = hn::Set(d64, 0xFFFFFFFFu);
  const auto words01 = hn::Or(hn::And(c0, low_half), hn::ShiftLeft<32>(c1)),
             words23 = hn::Or(hn::And(c2, low_half), hn::ShiftLeft<32>(c3));
  return {hn::BitCast(d32, hn::InterleaveLower(d64, words01, words23)),
          hn::BitCast(d32, hn::InterleaveUpper(d64, words01, words23))};
}
#endif

void apply_dropout(float* x, int64_t n, const Philox& random, uint64_t first, uint32_t threshold, float keep_inverse) {
  int64_t i = 0;
  const auto quad_by_quad = [&](int64_t end) {
    while (i < end) {
      const PhiloxWords words = philox_quad(random, (first + static_cast<uint64_t>(i)) / 4);
      for (uint64_t word = (first + static_cast<uint64_t>(i)) % 4; word < 4 && i < end; ++word, ++i) {
        x[i] *= dropout_multiplier(words.w[word], threshold, keep_inverse);
      }
    }
  };
#if HWY_TARGET != HWY_SCALAR
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const hn::ScalableTag<uint64_t> d64;
  constexpr int64_t kMaxQuads = hn::MaxLanes(d64);
  const int64_t quads = static_cast<int64_t>(hn::Lanes(d64)), lanes = 2 * quads;
  // Lane order that makes the interleaving of words come out in element order: pairs of lanes are quads b and quads/2 +
  // b.
  HWY_ALIGN uint64_t offsets[kMaxQuads];
  for (int64_t b = 0; b < quads / 2; ++b) {
    offsets[2 * b] = static_cast<uint64_t>(b);
    offsets[2 * b + 1] = static_cast<uint64_t>(quads / 2 + b);
  }
  const auto offset = hn::Load(d64, offsets);
  const auto below = hn::Set(di, static_cast<int32_t>(threshold) - 1);
  const auto keep = hn::Set(d, keep_inverse);
  const auto drop = [&](auto words, float* place) HWY_ATTR {
    const auto kept = hn::RebindMask(d, hn::Gt(hn::BitCast(di, hn::ShiftRight<8>(words)), below));
    hn::StoreU(hn::Mul(hn::LoadU(d, place), hn::IfThenElseZero(kept, keep)), d, place);
  };
  const int64_t misaligned = static_cast<int64_t>(first % 4);
  quad_by_quad(misaligned == 0 ? 0 : (4 - misaligned < n ? 4 - misaligned : n));
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const PhiloxVectors words =
        philox_vectors(random, hn::Add(hn::Set(d64, (first + static_cast<uint64_t>(i)) / 4), offset));
    drop(words.low, x + i);
    drop(words.high, x + i + lanes);
  }
#endif
  quad_by_quad(n);
}

// ---- exact residuals ----------------------------------------------------------------------------

// From 2^(23 + exponent) on, neighbouring floats are at least 2^exponent apart. Adding and taking away this number,
// with the sign of x, lets the addition itself round to a multiple; the result is never -0, which keeps the streams
// free of -0 and their inversion exact to the bit.
HWY_INLINE VecF32 to_grid(VecF32 x, VecF32 big) {
  const auto shift = hn::CopySignToAbs(big, x);
  return hn::IfThenElse(hn::Lt(hn::Abs(x), big), hn::Sub(hn::Add(x, shift), shift), x);
}

void round_to_grid(float* x, int64_t n, int32_t exponent) {
  const VecF32 big = hn::Set(F32(), std::ldexp(1.0f, 23 + exponent));
  for_vectors(F32(), n, [&](auto load, auto store, int64_t) HWY_ATTR { store(to_grid(load(x), big), x); });
}

HWY_INLINE void note(RangeCheck& check, hn::Mask<F32> good, int64_t i) {
  const F32 d;
  if (HWY_LIKELY(hn::AllTrue(d, good))) return;
  const auto bad = hn::Not(good);
  if (check.count == 0) check.first = i + static_cast<int64_t>(hn::FindFirstTrue(d, bad));
  check.count += static_cast<int64_t>(hn::CountTrue(d, bad));
}

RangeCheck check_range(const float* x, int64_t n, int32_t exponent) {
  const F32 d;
  const VecF32 limit = hn::Set(d, std::ldexp(1.0f, 24 + exponent));
  RangeCheck check;
  for_vectors(d, n, [&](auto load, auto, int64_t i) HWY_ATTR { note(check, hn::Le(hn::Abs(load(x)), limit), i); });
  return check;
}

template <bool kAdd>
RangeCheck residual_update(float* stream, const float* x, int64_t n, int32_t exponent) {
  const F32 d;
  const VecF32 big = hn::Set(d, std::ldexp(1.0f, 23 + exponent)), limit = hn::Set(d, std::ldexp(1.0f, 24 + exponent));
  RangeCheck check;
  for_vectors(d, n, [&](auto load, auto store, int64_t i) HWY_ATTR {
    const VecF32 before = load(stream), change = to_grid(load(x), big);
    const VecF32 after = kAdd ? hn::Add(before, change) : hn::Sub(before, change);
    const VecF32 back = kAdd ? hn::Sub(after, change) : hn::Add(after, change);
    store(after, stream);
    note(check, hn::And(hn::Le(hn::Abs(after), limit), hn::Eq(back, before)),
         i);  // a sum just past the limit may round to it: hence back
  });
  return check;
}

RangeCheck residual_add(float* stream, const float* x, int64_t n, int32_t exponent) {
  return residual_update<true>(stream, x, n, exponent);
}
RangeCheck residual_subtract(float* stream, const float* x, int64_t n, int32_t exponent) {
  return residual_update<false>(stream, x, n, exponent);
}

// ---- activations --------------------------------------------------------------------------------

// exp of numbers <= 0. Highway's Exp (1 ulp) returns 0 for NaN; callers multiply by x or put the NaN back.
HWY_INLINE VecF32 exp_negative(VecF32 x) { return hn::Exp(F32(), x); }

// s = 1 / (1 + e^-x) and 1 - s, each with its own full precision.
HWY_INLINE void sigmoid(VecF32 x, VecF32& s, VecF32& complement) {
  const F32 d;
  const VecF32 e = exp_negative(hn::Neg(hn::Abs(x))), larger = hn::Div(hn::Set(d, 1.0f), hn::Add(hn::Set(d, 1.0f), e)),
               smaller = hn::Mul(e, larger);
  const auto negative = hn::Lt(x, hn::Zero(d));
  s = hn::IfThenElse(negative, smaller, larger);
  complement = hn::IfThenElse(negative, larger, smaller);
}

// Phi(x), the normal distribution, and e^(-x^2/2). With a = |x|, t = 1 / (1 + 0.27 a): Phi(-a) = e^(-a^2/2) t p(t), p
// interpolated at the Chebyshev points of a in [0, 14.5] (relative error 3e-8).
HWY_INLINE void normal_distribution(VecF32 x, VecF32& phi, VecF32& bell) {
  const F32 d;
  const VecF32 one = hn::Set(d, 1.0f), half = hn::Set(d, 0.5f);
  const VecF32 a = hn::Min(hn::Abs(x), hn::Set(d, 14.5f));
  const VecF32 t = hn::Div(one, hn::MulAdd(hn::Set(d, 0.27f), a, one));
  const VecF32 square = hn::Mul(a, a),
               rest = hn::MulSub(a, a, square);  // rest: what rounding the square lost (0 without fused multiply-add)
  bell = hn::Mul(exp_negative(hn::Neg(hn::Mul(half, square))), hn::NegMulAdd(half, rest, one));
  VecF32 p = hn::Set(d, 0.0292058334f);
  p = hn::MulAdd(p, t, hn::Set(d, -0.127722557f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.172436097f));
  p = hn::MulAdd(p, t, hn::Set(d, -0.0723445624f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.110054217f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.0710775825f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.102063549f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.107507093f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.107722758f));
  const VecF32 tail = hn::Mul(bell, hn::Mul(t, p));
  phi = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(one, tail));
}

// Derivatives are finite for every x but NaN; limits keep 0 times infinity out.
HWY_INLINE VecF32 clamp(VecF32 x, float limit) {
  const F32 d;
  return hn::Max(hn::Min(x, hn::Set(d, limit)), hn::Set(d, -limit));
}
HWY_INLINE VecF32 keep_nan(VecF32 x, VecF32 value) { return hn::IfThenElse(hn::Eq(x, x), value, x); }

struct Relu {
  HWY_INLINE VecF32 value(VecF32 x) const { return hn::IfThenElse(hn::Lt(x, hn::Zero(F32())), hn::Zero(F32()), x); }
  HWY_INLINE VecF32 gradient(VecF32 x, VecF32 dy) const {
    return hn::IfThenElse(hn::Le(x, hn::Zero(F32())), hn::Zero(F32()), dy);
  }
};

struct GeluErf {
  HWY_INLINE VecF32 value(VecF32 x) const {
    VecF32 phi, bell;
    normal_distribution(x, phi, bell);
    return hn::Mul(x, phi);
  }
  HWY_INLINE VecF32 gradient(VecF32 x, VecF32 dy) const {
    VecF32 phi, bell;
    normal_distribution(x, phi, bell);
    const VecF32 density = hn::Mul(hn::Set(F32(), 0.398942280f), bell);
    return hn::Mul(dy, keep_nan(x, hn::MulAdd(clamp(x, 20.0f), density, phi)));
  }
};

// tanh form: x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3).
struct GeluTanh {
  static constexpr float kLinear = 1.59576912f, kCubic = 0.0713548163f;  // 2 sqrt(2/pi), 0.044715 times that
  HWY_INLINE VecF32 value(VecF32 x) const {
    const F32 d;
    VecF32 s, complement;
    sigmoid(hn::Mul(x, hn::MulAdd(hn::Set(d, kCubic), hn::Mul(x, x), hn::Set(d, kLinear))), s, complement);
    return hn::Mul(x, s);
  }
  HWY_INLINE VecF32 gradient(VecF32 x, VecF32 dy) const {
    const F32 d;
    const VecF32 z = clamp(x, 20.0f), square = hn::Mul(z, z);
    VecF32 s, complement;
    sigmoid(hn::Mul(z, hn::MulAdd(hn::Set(d, kCubic), square, hn::Set(d, kLinear))), s, complement);
    const VecF32 slope = hn::MulAdd(hn::Set(d, 3 * kCubic), square, hn::Set(d, kLinear));
    return hn::Mul(dy, keep_nan(x, hn::MulAdd(hn::Mul(z, slope), hn::Mul(s, complement), s)));
  }
};

struct Silu {
  HWY_INLINE VecF32 value(VecF32 x) const {
    VecF32 s, complement;
    sigmoid(x, s, complement);
    return hn::Mul(x, s);
  }
  HWY_INLINE VecF32 gradient(VecF32 x, VecF32 dy) const {
    VecF32 s, complement;
    sigmoid(x, s, complement);
    return hn::Mul(dy, keep_nan(x, hn::MulAdd(clamp(x, 200.0f), hn::Mul(s, complement), s)));
  }
};

struct Tanh {
  HWY_INLINE VecF32 value(VecF32 x) const { return hn::Tanh(F32(), x); }
  HWY_INLINE VecF32 gradient(VecF32 x,
                             VecF32 dy) const {  // 1 - tanh^2 = 4 e / (1 + e)^2, e = e^(-2|x|): no cancellation
    const F32 d;
    VecF32 s, complement;
    sigmoid(hn::Add(x, x), s, complement);
    return hn::Mul(dy, keep_nan(x, hn::Mul(hn::Set(d, 4.0f), hn::Mul(s, complement))));
  }
};

template <class Activation>
HWY_INLINE void forward(const Activation& activation, const float* x, float* y, int64_t n) {
  for_vectors(F32(), n, [&](auto load, auto store, int64_t) HWY_ATTR { store(activation.value(load(x)), y); });
}

template <class Activation>
HWY_INLINE void backward(const Activation& activation, const float* x, const float* dy, float* dx, int64_t n) {
  for_vectors(F32(), n,
              [&](auto load, auto store, int64_t) HWY_ATTR { store(activation.gradient(load(x), load(dy)), dx); });
}

void activation_forward(int32_t activation, const float* x, float* y, int64_t n) {
  switch (activation) {
    case RFN_ACTIVATION_RELU:
      return forward(Relu(), x, y, n);
    case RFN_ACTIVATION_GELU_ERF:
      return forward(GeluErf(), x, y, n);
    case RFN_ACTIVATION_GELU_TANH:
      return forward(GeluTanh(), x, y, n);
    case RFN_ACTIVATION_SILU:
      return forward(Silu(), x, y, n);
    case RFN_ACTIVATION_TANH:
      return forward(Tanh(), x, y, n);
    default:
      break;
  }
  if (x != y) std::memcpy(y, x, static_cast<size_t>(n) * sizeof(float));
}

void activation_backward(int32_t activation, const float* x, const float* dy, float* dx, int64_t n) {
  switch (activation) {
    case RFN_ACTIVATION_RELU:
      return backward(Relu(), x, dy, dx, n);
    case RFN_ACTIVATION_GELU_ERF:
      return backward(GeluErf(), x, dy, dx, n);
    case RFN_ACTIVATION_GELU_TANH:
      return backward(GeluTanh(), x, dy, dx, n);
    case RFN_ACTIVATION_SILU:
      return backward(Silu(), x, dy, dx, n);
    case RFN_ACTIVATION_TANH:
      return backward(Tanh(), x, dy, dx, n);
    default:
      break;
  }
  if (dy != dx) std::memcpy(dx, dy, static_cast<size_t>(n) * sizeof(float));
}

// ---- rows ---------------------------------------------------------------------------------------

void add_bias(float* y, const float* bias, int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; ++row) add(y + row * n, bias, n);
}

void add_column_sums(const float* x, int64_t rows, int64_t n, float* column_sums) {
  const F32 d;
  constexpr int64_t kRows =
      128;  // summed by themselves before they join the rest: the error grows with rows / 128 + 128, not rows
  for_vectors(d, n, [&](auto load, auto store, int64_t) HWY_ATTR {
    VecF32 total = hn::Zero(d);
    for (int64_t begin = 0; begin < rows; begin += kRows) {
      const int64_t end = begin + kRows < rows ? begin + kRows : rows;
      VecF32 part = hn::Zero(d);
      for (int64_t row = begin; row < end; ++row) part = hn::Add(part, load(x + row * n));
      total = hn::Add(total, part);
    }
    store(hn::Add(load(column_sums), total), column_sums);
  });
}

}  // namespace rfn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rfn::cpu {

void add(float* y, const float* x, int64_t n) { RFN_SIMD_CHOOSE(add)(y, x, n); }

void subtract(float* y, const float* x, int64_t n) { RFN_SIMD_CHOOSE(subtract)(y, x, n); }

void apply_dropout(float* x, int64_t n, const Philox& random, uint64_t first, float p) {
  if (p == 0.0f) return;
  const float keep_inverse = static_cast<float>(1.0 / (1.0 - static_cast<double>(p)));
  RFN_SIMD_CHOOSE(apply_dropout)(x, n, random, first, dropout_threshold(p), keep_inverse);
}

void round_to_grid(float* x, int64_t n, int32_t exponent) { RFN_SIMD_CHOOSE(round_to_grid)(x, n, exponent); }

RangeCheck check_range(const float* x, int64_t n, int32_t exponent) {
  return RFN_SIMD_CHOOSE(check_range)(x, n, exponent);
}

RangeCheck residual_add(float* stream, const float* x, int64_t n, int32_t exponent) {
  return RFN_SIMD_CHOOSE(residual_add)(stream, x, n, exponent);
}

RangeCheck residual_subtract(float* stream, const float* x, int64_t n, int32_t exponent) {
  return RFN_SIMD_CHOOSE(residual_subtract)(stream, x, n, exponent);
}

void activation_forward(int32_t activation, const float* x, float* y, int64_t n) {
  RFN_SIMD_CHOOSE(activation_forward)(activation, x, y, n);
}

void activation_backward(int32_t activation, const float* x, const float* dy, float* dx, int64_t n) {
  RFN_SIMD_CHOOSE(activation_backward)(activation, x, dy, dx, n);
}

void add_bias(float* y, const float* bias, int64_t rows, int64_t n) { RFN_SIMD_CHOOSE(add_bias)(y, bias, rows, n); }

void add_column_sums(const float* x, int64_t rows, int64_t n, float* column_sums) {
  RFN_SIMD_CHOOSE(add_column_sums)(x, rows, n, column_sums);
}

}  // namespace rfn::cpu
#endif  // HWY_ONCE
