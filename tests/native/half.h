// BF16 and F16 in tests: numbers of 16 bits, rounding by float64 arithmetic alone, and how far a result that was
// rounded to them may be from float64.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "harness.h"

namespace rfn::test {

// The format of a data type, F32 too: what is between neighbouring numbers is 2^(exponent - significant_bits + 1).
struct Format {
  int significant_bits;
  int smallest_exponent;  // of numbers that are not subnormal
  double largest;
  double unit_roundoff() const { return std::ldexp(1.0, -significant_bits); }
  double smallest() const { return std::ldexp(1.0, smallest_exponent - significant_bits + 1); }
};
inline Format format_of(int32_t dtype) {
  switch (dtype) {
    case RFN_BF16:
      return {8, -126, std::ldexp(255.0, 120)};
    case RFN_F16:
      return {11, -14, 65504};
    default:
      return {24, -126, static_cast<double>(std::numeric_limits<float>::max())};
  }
}
inline const char* type_name(int32_t dtype) { return dtype == RFN_BF16 ? "BF16" : dtype == RFN_F16 ? "F16" : "F32"; }

// The nearest number of the type, ties to even.
inline double rounded(int32_t dtype, double x) {
  if (!std::isfinite(x) || x == 0) return x;
  const Format format = format_of(dtype);
  const double unit = std::ldexp(1.0, std::max(std::ilogb(x), format.smallest_exponent) - format.significant_bits + 1);
  const double nearest = std::nearbyint(x / unit) * unit;
  return std::fabs(nearest) > format.largest ? std::copysign(INFINITY, x) : nearest;
}

// Sign, exponent and fraction of a number of the type.
inline uint16_t bits_of(int32_t dtype, double x) {
  const Format format = format_of(dtype);
  const int fraction_bits = format.significant_bits - 1, bias = 1 - format.smallest_exponent;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7FFF;
  if (std::isinf(x)) return static_cast<uint16_t>(sign | (2 * bias + 1) << fraction_bits);
  const double magnitude = std::fabs(x);
  const int exponent = magnitude == 0 ? format.smallest_exponent : std::max(std::ilogb(magnitude), 1 - bias);
  const int units = static_cast<int>(std::ldexp(magnitude, fraction_bits - exponent));  // with the leading one, if any
  return static_cast<uint16_t>(sign | (((exponent + bias - 1) << fraction_bits) + units));
}
inline double value_of(int32_t dtype, uint16_t bits) {
  const Format format = format_of(dtype);
  const int fraction_bits = format.significant_bits - 1, bias = 1 - format.smallest_exponent;
  const int exponent = (bits & 0x7FFF) >> fraction_bits, fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 2 * bias + 1) return fraction != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

// An element of a tensor of 16 bits.
template <int32_t kType>
struct Half {
  uint16_t bits;
  Half() = default;
  explicit Half(double x) : bits(bits_of(kType, rounded(kType, x))) {}
  explicit operator double() const { return value_of(kType, bits); }
  int operator+() const { return bits; }  // printed
};
using BFloat16 = Half<RFN_BF16>;
using Float16 = Half<RFN_F16>;
template <int32_t kType>
std::ostream& operator<<(std::ostream& out, Half<kType> x) {
  return out << static_cast<double>(x);
}
template <int32_t kType>
struct TypeOf<Half<kType>> : std::integral_constant<int32_t, kType> {};

// Values of a tensor of either kind.
template <class T>
std::vector<T> stored(const std::vector<float>& values) {
  std::vector<T> all;
  for (const float value : values) all.push_back(static_cast<T>(value));
  return all;
}
// Floats that the type holds exactly.
inline std::vector<float> exact(int32_t dtype, std::vector<float> values) {
  for (float& value : values) value = static_cast<float>(rounded(dtype, value));
  return values;
}

// Results that were computed in float32, where they are within `limit` of float64 (relative to the largest), and then
// rounded to T: with u the unit roundoff of T, element by element,
//   |actual - expected| <= limit largest + u (|expected| + limit largest) + half of T's smallest number
// `more`, when given, is what an element may be off beyond that, before the rounding.
template <class T>
testing::AssertionResult CloseRounded(const std::vector<T>& actual, const std::vector<double>& expected, double limit,
                                      const std::vector<double>& more = {}, Zeros zeros = Zeros::kRefused) {
  if (actual.size() != expected.size())
    return testing::AssertionFailure() << "expected " << expected.size() << " elements, got " << actual.size();
  const Format format = format_of(TypeOf<T>::value);
  double largest = 0;
  for (const double e : expected) largest = std::max(largest, std::isfinite(e) ? std::fabs(e) : 0);
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = static_cast<double>(actual[i]), e = expected[i];
    const double before = limit * largest + (more.empty() ? 0 : more[i]);
    const double bound = before + format.unit_roundoff() * (std::fabs(e) + before) + format.smallest() / 2;
    if (!(std::fabs(a - e) <= bound)) {
      return testing::AssertionFailure() << "element " << i << ": expected " << e << " to " << bound << ", got " << a
                                         << "; largest expected " << largest;
    }
  }
  if (largest == 0 && zeros == Zeros::kRefused)
    return testing::AssertionFailure() << "every expected value is zero or not finite";
  return testing::AssertionSuccess();
}

// What rounding x to T may change it by is at most slack.relative |x| + slack.absolute. Of values between products,
// which CUDA rounds to the type of their operands and the CPU does not.
struct Slack {
  double relative = 0, absolute = 0;
  double operator()(double x) const { return relative * std::fabs(x) + absolute; }
};
inline Slack slack_between_products(int32_t dtype) {
  if (on_cpu() || dtype == RFN_F32) return {};
  return {format_of(dtype).unit_roundoff(), format_of(dtype).smallest() / 2};
}

}  // namespace rfn::test
