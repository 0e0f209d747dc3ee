// The functions of cuda/device.cuh that are PTX on a device, for g++ and clang++. What they do is documented there.
#pragma once
#include <cstdint>

#include "cuda_on_host/kernel_language.h"

namespace rfn::cuda {

// Products are exact; sums run over k in order, each rounded to float32 (hardware sums in another order and rounding).
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], RFN_CALL_SITE);
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], RFN_CALL_SITE);
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], RFN_CALL_SITE);

void ldmatrix_x1(uint32_t (&r)[1], const void* row, RFN_CALL_SITE);
void ldmatrix_x2(uint32_t (&r)[2], const void* row, RFN_CALL_SITE);
void ldmatrix_x4(uint32_t (&r)[4], const void* row, RFN_CALL_SITE);
void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row, RFN_CALL_SITE);
void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, RFN_CALL_SITE);
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, RFN_CALL_SITE);

void cp_async_bytes(void* shared, const void* global, int bytes, int source_bytes, const char* file, int line);
template <int Bytes>
void cp_async_zfill(void* shared, const void* global, int source_bytes, RFN_CALL_SITE) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  cp_async_bytes(shared, global, Bytes, source_bytes, file, line);
}
template <int Bytes>
void cp_async(void* shared, const void* global, RFN_CALL_SITE) {
  cp_async_zfill<Bytes>(shared, global, Bytes, file, line);
}
void cp_async_commit();
void cp_async_wait_groups(int in_flight);
template <int Groups>
void cp_async_wait() {
  cp_async_wait_groups(Groups);
}
void cp_async_wait_all();

void named_barrier_sync(int number, int threads, RFN_CALL_SITE);
void named_barrier_arrive(int number, int threads, RFN_CALL_SITE);

uint32_t round_to_tf32(float x);  // cvt.rna: nearest, ties away from zero
uint16_t float_to_bf16(float x);  // nearest, ties to even; not-a-number 0x7fff
float bf16_to_float(uint16_t x);
uint16_t float_to_f16(float x);  // nearest, ties to even; from 65520 on infinity
float f16_to_float(uint16_t x);
inline uint32_t pack_bf16(float low, float high) {
  return float_to_bf16(low) | static_cast<uint32_t>(float_to_bf16(high)) << 16;
}
inline uint32_t pack_f16(float low, float high) {
  return float_to_f16(low) | static_cast<uint32_t>(float_to_f16(high)) << 16;
}

}  // namespace rfn::cuda

namespace rfn::cuda_on_host {
void failed_assertion(const char* condition, const char* file, int line);
}
