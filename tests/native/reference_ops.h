// float64 references that several tests share.
#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/philox.h"
#include "reformer_native.h"

namespace rfn::test {

using Doubles = std::vector<double>;

inline Doubles doubles(const std::vector<float>& values) { return Doubles(values.begin(), values.end()); }

inline double activation(int32_t kind, double x) {
  switch (kind) {
    case RFN_ACTIVATION_RELU:
      return x > 0 ? x : 0;
    case RFN_ACTIVATION_GELU_ERF:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case RFN_ACTIVATION_GELU_TANH:
      return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));  // (1 + tanh u) / 2
    case RFN_ACTIVATION_SILU:
      return x / (1 + std::exp(-x));
    case RFN_ACTIVATION_TANH:
      return std::tanh(x);
    default:
      return x;
  }
}

// By a central difference of fourth order; the step is small enough for 1e-10 and does not cross ReLU's corner but at 0
// itself.
inline double activation_gradient(int32_t kind, double x) {
  if (kind == RFN_ACTIVATION_RELU) return x > 0 ? 1 : 0;
  constexpr double h = 1e-3;
  return (8 * (activation(kind, x + h) - activation(kind, x - h)) -
          (activation(kind, x + 2 * h) - activation(kind, x - 2 * h))) /
         (12 * h);
}

inline const char* activation_name(int32_t kind) {
  constexpr const char* kNames[] = {"None", "Relu", "GeluErf", "GeluTanh", "Silu", "Tanh"};
  return kNames[kind];
}

// 0 or 1 / (1 - p).
inline double dropout(const Philox& random, int64_t element, float p) {
  if (p == 0) return 1;
  const double u = static_cast<double>(philox_word(random, static_cast<uint64_t>(element)) >> 8) * 0x1p-24;
  return u >= static_cast<double>(p) ? 1 / (1 - static_cast<double>(p)) : 0;
}

// Gradient of loss() with respect to every element of `at`, which loss reads, by central differences.
template <class Loss>
Doubles numeric_gradient(Doubles& at, const Loss& loss) {
  constexpr double h = 1e-5;
  Doubles gradient(at.size());
  for (size_t i = 0; i < at.size(); ++i) {
    const double x = at[i];
    at[i] = x + h;
    const double above = loss();
    at[i] = x - h;
    const double below = loss();
    at[i] = x;
    gradient[i] = (above - below) / (2 * h);
  }
  return gradient;
}

inline Doubles plus(Doubles a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += static_cast<double>(b[i]);
  return a;
}

inline constexpr int32_t kThreadCounts[] = {1, 2, 3, 8};

}  // namespace rfn::test
