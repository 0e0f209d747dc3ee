// The one file that knows how kernels are compiled: by nvcc for a device, or by g++ or clang++ over cuda_on_host for
// tests. Kernel files include it, use CUDA C++ as it is (threadIdx, __syncthreads, *_sync, integer atomics), and from
// here:
//
//   RFN_LAUNCH(kernel, grid, block, dynamic_bytes, stream, arguments...)   a cudaError_t; kernels with commas in
//   parentheses: (k<1, 2>) RFN_SHARED(name, type);                 static shared memory, 16-byte aligned:
//   RFN_SHARED(tile, float[16][17]); RFN_DYNAMIC_SHARED(type, name);         type* name = the block's dynamic shared
//   memory, 16-byte aligned RFN_DEVICE_ASSERT(condition)            checked on the host, and on a device unless NDEBUG
//
// and in rfn::cuda, by a whole warp, with r = lane / 4 and c = lane % 4:
//
//   mma_m16n8k16_bf16, _f16 (d, a, b)       D[16,8] += A[16,16] B[16,8], float32 accumulation. d[0], d[1]: row r,
//   columns 2c, 2c+1; d[2],
//                                           d[3]: row r+8. Two k per register, the lower one in the lower half: a[0]:
//                                           row r, k 2c, 2c+1; a[1]: row r+8; a[2], a[3]: k+8. b[0]: column r, k 2c,
//                                           2c+1; b[1]: k+8
//   mma_m16n8k8_tf32 (d, a, b)              D[16,8] += A[16,8] B[8,8]. a[0]: row r, k c; a[1]: row r+8; a[2], a[3]:
//   k+4. b[0]: column r,
//                                           k c; b[1]: k+4. Inputs through round_to_tf32
//   ldmatrix_x1, _x2, _x4 (registers, row)  8x8 matrices of 16-bit elements from shared memory; lanes 8m .. 8m+7 point
//   at the rows (16
//                                           bytes each, aligned) of matrix m. Lane's register m: row r, elements 2c,
//                                           2c+1; with _trans: element r of rows 2c, 2c+1
//
// by a thread for itself:
//
//   cp_async<bytes>(shared, global)         4, 8 or 16 bytes, aligned; not there before a wait that covers it (and a
//   barrier for others) cp_async_zfill<bytes>(.., source_bytes) reads only source_bytes, the rest becomes 0
//   cp_async_commit(), cp_async_wait<n>()   all but the last n groups have landed; cp_async_wait_all(): everything has
//
// and: block_number(), blockIdx.x read anew at every call, so that what follows from it need not stay in registers;
// named_barrier_sync, _arrive (number 1..15, threads); pack_bf16, pack_f16 (low, high); round_to_tf32; float_to_bf16
// and the like.
//
// mma and ldmatrix trap below compute capability 8.0 (7.5 for ldmatrix), where kernels that use them are not to be
// launched; cp.async becomes a plain copy there. PTX ISA 7.8 is the source of every layout.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#if defined( \
    __CUDACC__)  // ==== nvcc
                 // ==============================================================================================

#include <cuda_fp16.h>
#if !defined(NDEBUG)
#include <cassert>
#endif

#define RFN_DEVICE static __device__ __forceinline__

namespace rfn::cuda {

template <class T>
using Type = T;  // turns float[16][17] into something that can precede a name

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_bytes,
                          cudaStream_t stream, Arguments&&... arguments) {
  kernel<<<grid, block, dynamic_bytes, stream>>>(static_cast<Arguments&&>(arguments)...);
  return cudaGetLastError();
}

#define RFN_LAUNCH(kernel, grid, block, dynamic_bytes, stream, ...) \
  ::rfn::cuda::launch_kernel(kernel, dim3(grid), dim3(block), dynamic_bytes, stream, __VA_ARGS__)
#define RFN_SHARED(name, ...) __shared__ __align__(16)::rfn::cuda::Type<__VA_ARGS__> name
#define RFN_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char rfn_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(rfn_dynamic_shared)
#if defined(NDEBUG)
#define RFN_DEVICE_ASSERT(condition) ((void)0)
#else
#define RFN_DEVICE_ASSERT(condition) assert(condition)
#endif

// PTX that exists from a compute capability on; code for older ones traps.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define RFN_PTX_80 asm volatile
#else
#define RFN_PTX_80(...) __trap()
#endif
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 750
#define RFN_PTX_75 asm volatile
#else
#define RFN_PTX_75(...) __trap()
#endif

#define RFN_MMA(name, shape_and_types)                                                                      \
  RFN_DEVICE void name(float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) {                        \
    RFN_PTX_80("mma.sync.aligned." shape_and_types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                         \
  }
RFN_MMA(mma_m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
RFN_MMA(mma_m16n8k16_f16, "m16n8k16.row.col.f32.f16.f16.f32")
RFN_MMA(mma_m16n8k8_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef RFN_MMA

RFN_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

#define RFN_LDMATRIX(suffix, modifier)                                                     \
  RFN_DEVICE void ldmatrix_x1##suffix(uint32_t(&r)[1], const void* row) {                  \
    RFN_PTX_75("ldmatrix.sync.aligned.m8n8.x1" modifier ".shared.b16 {%0}, [%1];"          \
               : "=r"(r[0])                                                                \
               : "r"(shared_address(row))                                                  \
               : "memory");                                                                \
  }                                                                                        \
  RFN_DEVICE void ldmatrix_x2##suffix(uint32_t(&r)[2], const void* row) {                  \
    RFN_PTX_75("ldmatrix.sync.aligned.m8n8.x2" modifier ".shared.b16 {%0,%1}, [%2];"       \
               : "=r"(r[0]), "=r"(r[1])                                                    \
               : "r"(shared_address(row))                                                  \
               : "memory");                                                                \
  }                                                                                        \
  RFN_DEVICE void ldmatrix_x4##suffix(uint32_t(&r)[4], const void* row) {                  \
    RFN_PTX_75("ldmatrix.sync.aligned.m8n8.x4" modifier ".shared.b16 {%0,%1,%2,%3}, [%4];" \
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                            \
               : "r"(shared_address(row))                                                  \
               : "memory");                                                                \
  }
RFN_LDMATRIX(, "")
RFN_LDMATRIX(_trans, ".trans")
#undef RFN_LDMATRIX

// 16 bytes bypass L1 (.cg), which the smaller sizes cannot.
template <int Bytes>
RFN_DEVICE void cp_async_zfill(void* shared, const void* global, int source_bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(Bytes),
                 "r"(source_bytes)
                 : "memory");
  }
#else
  for (int i = 0; i < Bytes; ++i) {
    static_cast<unsigned char*>(shared)[i] = i < source_bytes ? static_cast<const unsigned char*>(global)[i] : 0;
  }
#endif
}
template <int Bytes>
RFN_DEVICE void cp_async(void* shared, const void* global) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(Bytes)
                 : "memory");
  }
#else
  if constexpr (Bytes == 16) *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
  if constexpr (Bytes == 8) *static_cast<uint2*>(shared) = *static_cast<const uint2*>(global);
  if constexpr (Bytes == 4) *static_cast<uint32_t*>(shared) = *static_cast<const uint32_t*>(global);
#endif
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
RFN_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Groups>
RFN_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}
RFN_DEVICE void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#else
RFN_DEVICE void cp_async_commit() {}
template <int Groups>
RFN_DEVICE void cp_async_wait() {}
RFN_DEVICE void cp_async_wait_all() {}
#endif

RFN_DEVICE void named_barrier_sync(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
RFN_DEVICE void named_barrier_arrive(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

RFN_DEVICE unsigned block_number() {
  unsigned x;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
  return x;
}

RFN_DEVICE uint32_t round_to_tf32(float x) {
  uint32_t r = 0;
  RFN_PTX_80("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}
RFN_DEVICE uint32_t pack_bf16(float low, float high) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  const auto round = [](float x) {
    return x != x ? 0x7fffu : (__float_as_uint(x) + 0x7fffu + (__float_as_uint(x) >> 16 & 1u)) >> 16;
  };
  return round(low) | round(high) << 16;
#endif
}
RFN_DEVICE uint16_t float_to_bf16(float x) { return static_cast<uint16_t>(pack_bf16(x, 0.0f)); }
RFN_DEVICE float bf16_to_float(uint16_t x) { return __uint_as_float(static_cast<uint32_t>(x) << 16); }
RFN_DEVICE uint16_t float_to_f16(float x) { return __half_as_ushort(__float2half_rn(x)); }
RFN_DEVICE uint32_t pack_f16(float low, float high) {
  return float_to_f16(low) | static_cast<uint32_t>(float_to_f16(high)) << 16;
}
RFN_DEVICE float f16_to_float(uint16_t x) { return __half2float(__ushort_as_half(x)); }

#undef RFN_PTX_75
#undef RFN_PTX_80

}  // namespace rfn::cuda

#else  // ==== g++, clang++
       // ========================================================================================================

#include "cuda_on_host/launch.h"
#include "cuda_on_host/ptx.h"

#define RFN_DEVICE inline

namespace rfn::cuda {
RFN_DEVICE unsigned block_number() { return blockIdx.x; }
}  // namespace rfn::cuda

#define RFN_LAUNCH(kernel, grid, block, dynamic_bytes, stream, ...) \
  ::rfn::cuda_on_host::launch_kernel(#kernel, kernel, dim3(grid), dim3(block), dynamic_bytes, stream, __VA_ARGS__)
#define RFN_SHARED(name, ...) auto& name = ::rfn::cuda_on_host::shared_variable<__VA_ARGS__>(#name, [] {})
#define RFN_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::rfn::cuda_on_host::dynamic_shared())
#define RFN_DEVICE_ASSERT(condition) \
  ((condition) ? (void)0 : ::rfn::cuda_on_host::failed_assertion(#condition, __FILE__, __LINE__))

#endif
