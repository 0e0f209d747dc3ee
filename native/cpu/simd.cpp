#include "cpu/simd.h"

#include <cstdlib>
#include <cstring>

namespace rfn::cpu {

bool simd_supported(Simd simd) {
#if defined(__x86_64__)
  switch (simd) {
    case Simd::kAvx512:  // the set Highway's AVX3 target is compiled for
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd");
    case Simd::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2");
    case Simd::kPortable:
      return true;
  }
#endif
  return simd == Simd::kPortable;
}

namespace {

struct Choice {
  Simd simd = Simd::kPortable;
  const char* refused = nullptr;
};

Choice choose() {
  constexpr Simd kBestFirst[] = {Simd::kAvx512, Simd::kAvx2, Simd::kPortable};
  Choice choice;
  const char* const wanted = std::getenv("RFN_SIMD");
  if (wanted != nullptr && *wanted != '\0') {
    for (const Simd simd : kBestFirst) {
      if (std::strcmp(wanted, simd_name(simd)) == 0 && simd_supported(simd)) return {simd, nullptr};
    }
    choice.refused = wanted;
    return choice;
  }
  for (const Simd simd : kBestFirst) {
    if (simd_supported(simd)) return {simd, nullptr};
  }
  return choice;
}

const Choice& choice() {
  static const Choice once = choose();
  return once;
}

}  // namespace

Simd simd() { return choice().simd; }

const char* simd_refused() { return choice().refused; }

const char* simd_name(Simd simd) {
  switch (simd) {
    case Simd::kAvx512:
      return "avx512";
    case Simd::kAvx2:
      return "avx2";
    case Simd::kPortable:
      break;
  }
  return "portable";
}

}  // namespace rfn::cpu
