// What nvcc gives a kernel without being asked, for g++ and clang++: qualifiers, threadIdx, barriers, warp collectives,
// atomics, bit and float functions. Only what the backend's kernels use; __shared__ is missing on purpose (RFN_SHARED,
// RFN_DYNAMIC_SHARED), float atomics too (no kernel may depend on their order), and __activemask (its value is never to
// be relied on).
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>

#include <cuda_runtime.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// initial-exec: one load from the thread pointer. const is left out because the execution layer writes them.
#define RFN_KERNEL_VARIABLE extern __thread __attribute__((tls_model("initial-exec")))
RFN_KERNEL_VARIABLE uint3 threadIdx;
RFN_KERNEL_VARIABLE uint3 blockIdx;
RFN_KERNEL_VARIABLE dim3 blockDim;
RFN_KERNEL_VARIABLE dim3 gridDim;
#undef RFN_KERNEL_VARIABLE
inline constexpr int warpSize = 32;

// Every function that waits knows where it was called: a barrier reached from two places is an error.
#define RFN_CALL_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace rfn::cuda_on_host {

struct Votes {
  int count;
  bool all, any;
};
enum class Shuffle { index, up, down, exclusive_or };
enum class Reduction { add, minimum, maximum, bit_and, bit_or, bit_xor };

void block_barrier(const char* file, int line);
Votes block_vote(bool predicate, const char* file, int line);
void warp_barrier(uint32_t mask, const char* file, int line);
uint64_t shuffle(uint32_t mask, uint64_t value, Shuffle kind, int argument, int width, const char* file, int line);
uint32_t ballot(uint32_t mask, bool predicate, const char* file, int line);
uint32_t match_any(uint32_t mask, uint64_t value, const char* file, int line);
uint32_t match_all(uint32_t mask, uint64_t value, const char* file, int line);
uint32_t reduce(uint32_t mask, uint32_t value, Reduction kind, bool is_signed, const char* file, int line);
void fence();

enum class Atomic { add, minimum, maximum, exchange, bit_and, bit_or, bit_xor };
uint32_t atomic(uint32_t* address, Atomic kind, uint32_t value);
int32_t atomic(int32_t* address, Atomic kind, int32_t value);
uint64_t atomic(uint64_t* address, Atomic kind, uint64_t value);
uint32_t atomic_compare_and_swap(uint32_t* address, uint32_t expected, uint32_t value);
uint64_t atomic_compare_and_swap(uint64_t* address, uint64_t expected, uint64_t value);

[[noreturn]] void trap(const char* file, int line);

// Bits of a value of at most 8 bytes, and back.
template <class T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}
template <class T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}
template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace rfn::cuda_on_host

// ---- barriers, fences ---------------------------------------------------------------------------

inline void __syncthreads(RFN_CALL_SITE) { rfn::cuda_on_host::block_barrier(file, line); }
inline int __syncthreads_count(int p, RFN_CALL_SITE) { return rfn::cuda_on_host::block_vote(p != 0, file, line).count; }
inline int __syncthreads_and(int p, RFN_CALL_SITE) { return rfn::cuda_on_host::block_vote(p != 0, file, line).all; }
inline int __syncthreads_or(int p, RFN_CALL_SITE) { return rfn::cuda_on_host::block_vote(p != 0, file, line).any; }
inline void __syncwarp(unsigned mask = 0xffffffffu, RFN_CALL_SITE) {
  rfn::cuda_on_host::warp_barrier(mask, file, line);
}
inline void __threadfence() { rfn::cuda_on_host::fence(); }
inline void __threadfence_block() { rfn::cuda_on_host::fence(); }
inline void __trap(RFN_CALL_SITE) { rfn::cuda_on_host::trap(file, line); }

// ---- warp collectives ---------------------------------------------------------------------------

#define RFN_SHUFFLE(name, kind, Argument)                                                                             \
  template <class T>                                                                                                  \
  T name(unsigned mask, T value, Argument argument, int width = warpSize, RFN_CALL_SITE) {                            \
    using namespace rfn::cuda_on_host;                                                                                \
    return from_word<T>(shuffle(mask, to_word(value), Shuffle::kind, static_cast<int>(argument), width, file, line)); \
  }
RFN_SHUFFLE(__shfl_sync, index, int)
RFN_SHUFFLE(__shfl_up_sync, up, unsigned)
RFN_SHUFFLE(__shfl_down_sync, down, unsigned)
RFN_SHUFFLE(__shfl_xor_sync, exclusive_or, int)
#undef RFN_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int p, RFN_CALL_SITE) {
  return rfn::cuda_on_host::ballot(mask, p != 0, file, line);
}
inline int __any_sync(unsigned mask, int p, RFN_CALL_SITE) {
  return rfn::cuda_on_host::ballot(mask, p != 0, file, line) != 0;
}
inline int __all_sync(unsigned mask, int p, RFN_CALL_SITE) {
  return rfn::cuda_on_host::ballot(mask, p != 0, file, line) == mask;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, RFN_CALL_SITE) {
  return rfn::cuda_on_host::match_any(mask, rfn::cuda_on_host::to_word(value), file, line);
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all_equal, RFN_CALL_SITE) {
  const unsigned lanes = rfn::cuda_on_host::match_all(mask, rfn::cuda_on_host::to_word(value), file, line);
  *all_equal = lanes != 0;
  return lanes;
}

#define RFN_REDUCE(name, kind, T)                                                                      \
  inline T name(unsigned mask, T value, RFN_CALL_SITE) {                                               \
    using namespace rfn::cuda_on_host;                                                                 \
    return static_cast<T>(                                                                             \
        reduce(mask, static_cast<uint32_t>(value), Reduction::kind, std::is_signed_v<T>, file, line)); \
  }
RFN_REDUCE(__reduce_add_sync, add, unsigned)
RFN_REDUCE(__reduce_min_sync, minimum, unsigned)
RFN_REDUCE(__reduce_max_sync, maximum, unsigned)
RFN_REDUCE(__reduce_add_sync, add, int)
RFN_REDUCE(__reduce_min_sync, minimum, int)
RFN_REDUCE(__reduce_max_sync, maximum, int)
RFN_REDUCE(__reduce_and_sync, bit_and, unsigned)
RFN_REDUCE(__reduce_or_sync, bit_or, unsigned)
RFN_REDUCE(__reduce_xor_sync, bit_xor, unsigned)
#undef RFN_REDUCE

// ---- atomics (integers) -------------------------------------------------------------------------

#define RFN_ATOMIC(name, kind, T, Word)                                                                      \
  inline T name(T* address, T value) {                                                                       \
    using namespace rfn::cuda_on_host;                                                                       \
    return static_cast<T>(atomic(reinterpret_cast<Word*>(address), Atomic::kind, static_cast<Word>(value))); \
  }
#define RFN_ATOMICS(name, kind)              \
  RFN_ATOMIC(name, kind, int, int32_t)       \
  RFN_ATOMIC(name, kind, unsigned, uint32_t) \
  RFN_ATOMIC(name, kind, unsigned long long, uint64_t)
RFN_ATOMICS(atomicAdd, add)
RFN_ATOMICS(atomicMin, minimum)
RFN_ATOMICS(atomicMax, maximum)
RFN_ATOMICS(atomicExch, exchange)
RFN_ATOMICS(atomicAnd, bit_and)
RFN_ATOMICS(atomicOr, bit_or)
RFN_ATOMICS(atomicXor, bit_xor)
#undef RFN_ATOMICS
#undef RFN_ATOMIC

inline int atomicCAS(int* address, int expected, int value) {
  return static_cast<int>(rfn::cuda_on_host::atomic_compare_and_swap(
      reinterpret_cast<uint32_t*>(address), static_cast<uint32_t>(expected), static_cast<uint32_t>(value)));
}
inline unsigned atomicCAS(unsigned* address, unsigned expected, unsigned value) {
  return rfn::cuda_on_host::atomic_compare_and_swap(address, expected, value);
}
inline unsigned long long atomicCAS(unsigned long long* address, unsigned long long expected,
                                    unsigned long long value) {
  return rfn::cuda_on_host::atomic_compare_and_swap(reinterpret_cast<uint64_t*>(address), uint64_t{expected},
                                                    uint64_t{value});
}

// ---- bits ---------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ typedef unsigned __int128 uint128;
  return static_cast<unsigned long long>(static_cast<uint128>(a) * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}

// ---- numbers ------------------------------------------------------------------------------------
// Correctly rounded where the device is; the device's fast approximations become the C library's functions.

inline int __float_as_int(float x) { return rfn::cuda_on_host::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return rfn::cuda_on_host::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return rfn::cuda_on_host::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return rfn::cuda_on_host::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return rfn::cuda_on_host::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return rfn::cuda_on_host::bit_cast<double>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float cospif(float x) {
  return static_cast<float>(std::cos(3.14159265358979323846 * std::fmod(double{x}, 2.0)));
}
inline float sinpif(float x) {
  return static_cast<float>(std::sin(3.14159265358979323846 * std::fmod(double{x}, 2.0)));
}
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = sinpif(x);
  *cosine = cospif(x);
}
inline void sincospi(double x, double* sine, double* cosine) {
  const double angle = 3.14159265358979323846 * std::fmod(x, 2.0);
  *sine = std::sin(angle);
  *cosine = std::cos(angle);
}
inline int __float2int_rz(float x) {  // saturates; not-a-number gives 0
  return x >= 2147483648.0f ? 2147483647 : x >= -2147483648.0f ? static_cast<int>(x) : x != x ? 0 : -2147483647 - 1;
}
inline int __float2int_rn(float x) { return __float2int_rz(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return __float2int_rz(std::floor(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

template <class T>
T __ldg(const T* address) {
  return *address;
}
