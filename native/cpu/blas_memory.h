// The memory in which a matrix product packs its operands (blas_memory.cpp).
#pragma once
#include <cstddef>
#include <cstdint>

namespace rfn::cpu {

// Rows of C in one call of OpenBLAS, at most: what a product packs grows with them.
constexpr int64_t kBlasRows = 8192;

// Enough for every kernel of OpenBLAS on x86-64 and ARM64. A product packs a block of one operand, 4 MB at most, and
// kBlasRows rows of the other, of at most 1,024 numbers each, 32 MB; offsets and rounding add less than 1 MB.
constexpr size_t kBlasBufferBytes = size_t{40} << 20;

// Makes sure that there is memory for one product at least, so that none can fail later. False: the system has none.
bool reserve_blas_memory();

}  // namespace rfn::cpu
