// How results are compared, and where test numbers come from.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace rfn::test {

// Pseudo-random numbers that are the same everywhere (SplitMix64). While it lives, a failure prints the seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed), trace_(__FILE__, __LINE__, "seed " + std::to_string(seed)) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53; }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }

  std::vector<float> floats(int64_t count, double low = -1, double high = 1) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(uniform(low, high));
    return values;
  }
  std::vector<int32_t> integers(int64_t count, int64_t n) {
    std::vector<int32_t> values(static_cast<size_t>(count));
    for (int32_t& value : values) value = static_cast<int32_t>(below(n));
    return values;
  }

 private:
  uint64_t state_;
  testing::ScopedTrace trace_;
};

// A NaN that nothing computes: outputs and workspaces are filled with it before a call. As an integer it is far outside
// every valid range.
inline constexpr uint32_t kPoison = 0x7FC0DEADu;

inline float poison() {
  float value;
  std::memcpy(&value, &kPoison, sizeof(value));
  return value;
}

enum class Zeros { kRefused, kAllowed };

// max |actual - expected| / max |expected| <= limit over all elements. NaN must meet NaN, an infinity the same
// infinity. Expected values that are all zero fail (a test that can't tell an op from one that does nothing), unless
// allowed; the actual ones must then be zero too.
template <class Actual, class Expected>
testing::AssertionResult Close(const std::vector<Actual>& actual, const std::vector<Expected>& expected, double limit,
                               Zeros zeros = Zeros::kRefused) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure() << "expected " << expected.size() << " elements, got " << actual.size();
  }
  if (actual.empty()) return testing::AssertionFailure() << "nothing to compare";
  double largest = 0, worst = 0;
  size_t worst_index = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = static_cast<double>(actual[i]), e = static_cast<double>(expected[i]);
    if (!std::isfinite(a) || !std::isfinite(e)) {
      if ((std::isnan(a) && std::isnan(e)) || a == e) continue;
      return testing::AssertionFailure() << "element " << i << ": expected " << e << ", got " << a;
    }
    largest = std::max(largest, std::fabs(e));
    if (std::fabs(a - e) > worst) {
      worst = std::fabs(a - e);
      worst_index = i;
    }
  }
  if (largest == 0 && zeros == Zeros::kRefused)
    return testing::AssertionFailure() << "every expected value is zero or not finite";
  const double relative = worst == 0 ? 0 : largest == 0 ? std::numeric_limits<double>::infinity() : worst / largest;
  if (relative <= limit) return testing::AssertionSuccess() << "relative difference " << relative;
  return testing::AssertionFailure() << "relative difference " << relative << " > " << limit << "; worst at element "
                                     << worst_index << ": expected " << static_cast<double>(expected[worst_index])
                                     << ", got " << static_cast<double>(actual[worst_index]) << "; largest expected "
                                     << largest;
}

// The same bits.
template <class T>
testing::AssertionResult SameBits(const std::vector<T>& actual, const std::vector<T>& expected) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure() << "expected " << expected.size() << " elements, got " << actual.size();
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) != 0) {
      return testing::AssertionFailure() << "element " << i << ": expected " << expected[i] << ", got " << actual[i];
    }
  }
  return testing::AssertionSuccess();
}

// Every element was written and is a number.
inline testing::AssertionResult AllFinite(const std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]))
      return testing::AssertionFailure() << "element " << i << " of " << values.size() << " is " << values[i];
  }
  return testing::AssertionSuccess();
}

// No element was written since it was poisoned.
template <class T>
testing::AssertionResult Untouched(const std::vector<T>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t words[sizeof(T) < 4 ? 1 : sizeof(T) / 4] = {};
    std::memcpy(words, &values[i], sizeof(T));
    for (const uint32_t word : words) {
      if (word != (sizeof(T) < 4 ? kPoison & ((1u << 8 * (sizeof(T) % 4)) - 1) : kPoison)) {
        return testing::AssertionFailure() << "element " << i << " was written: " << +values[i];
      }
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace rfn::test
