// Which instruction set the CPU backend uses, and how a file offers one function per set.
//
// A file with vector code includes <hwy/foreach_target.h> after setting HWY_TARGET_INCLUDE to itself; Highway then
// compiles its body once per target. RFN_SIMD_CHOOSE(function) picks the right one. Highway's own run-time dispatch is
// not used: it needs its shared library.
#pragma once

// Three targets are compiled: AVX-512, AVX2 and Highway's portable one.
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#endif

namespace rfn::cpu {

enum class Simd { kPortable, kAvx2, kAvx512 };

// Best of what the processor has, or what the environment variable RFN_SIMD (portable, avx2, avx512) asks for if the
// processor has it. Read once.
Simd simd();
bool simd_supported(Simd simd);  // by this processor
const char* simd_name(Simd simd);
// What RFN_SIMD asked for if that can't be used, else nullptr; a context is refused then.
const char* simd_refused();

template <class Function>
Function simd_choose(Function portable, Function avx2, Function avx512) {
  switch (simd()) {
    case Simd::kAvx512:
      return avx512;
    case Simd::kAvx2:
      return avx2;
    case Simd::kPortable:
      break;
  }
  return portable;
}

}  // namespace rfn::cpu

#if defined(__x86_64__)
#define RFN_SIMD_CHOOSE(function) \
  ::rfn::cpu::simd_choose(&HWY_STATIC_DISPATCH(function), HWY_CHOOSE_AVX2(function), HWY_CHOOSE_AVX3(function))
#else
#define RFN_SIMD_CHOOSE(function) (&HWY_STATIC_DISPATCH(function))
#endif
