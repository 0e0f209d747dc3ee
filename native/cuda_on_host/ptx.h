// What cuda/device.cuh writes as PTX: tensor cores, ldmatrix, cp.async, named barriers, narrow formats. Fragment layouts are those of the
// PTX ISA, "Matrix Fragments for mma.m16n8k16" and its siblings.
#pragma once
#include <cstdint>

#include "cuda_on_host/kernel_language.h"

namespace rfn::cuda_on_host {

// D += A B, float32 accumulation: products are exact, sums run over k in order and are rounded each (hardware sums differently).
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line);
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line);
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line);

// matrices: 1, 2 or 4; registers has as many.
void ldmatrix(uint32_t* registers, int matrices, bool transposed, const void* row, const char* file, int line);

// bytes: 4, 8 or 16. Bytes past source_bytes become 0.
void copy_async(void* shared, const void* global, int bytes, int source_bytes, const char* file, int line);
void copy_async_commit();
void copy_async_wait(int groups_in_flight);
void copy_async_wait_all();

void named_barrier_wait(int barrier, int threads, const char* file, int line);
void named_barrier_arrive(int barrier, int threads, const char* file, int line);

uint32_t round_to_tf32(float x);  // cvt.rna: nearest, ties away from zero
uint16_t float_to_bf16(float x);  // nearest, ties to even; not-a-number 0x7fff
float bf16_to_float(uint16_t x);
uint16_t float_to_f16(float x);   // nearest, ties to even; beyond 65504 + 16: infinity
float f16_to_float(uint16_t x);

[[noreturn]] void failed_assertion(const char* condition, const char* file, int line);

}  // namespace rfn::cuda_on_host
