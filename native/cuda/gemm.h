// Matrix products of the CUDA backend: cuBLASLt, loaded when the first CUDA context is made, so that the plug-in itself
// needs no CUDA library.
#pragma once
#include <cstdint>
#include <memory>

#include "cuda/state.h"

namespace rfn::cuda {

// Scratch of every product, in bytes; an op takes it once in its workspace, 256-byte aligned. Tests fill all of a
// workspace at every call, so their build has less of it.
#ifndef RFN_GEMM_WORKSPACE_BYTES
#define RFN_GEMM_WORKSPACE_BYTES (8 << 20)
#endif
inline constexpr int64_t kGemmWorkspace = RFN_GEMM_WORKSPACE_BYTES;

enum class Transpose { kNo, kYes };
enum class Epilogue { kNone, kBias, kBiasRelu };  // bias[n] is added to every row

// C[m,n] = alpha op(A)[m,k] op(B)[k,n] + beta C, row-major with leading dimensions, then the epilogue. Inputs are
// rounded as the context's precision says if A, B and C begin at multiples of 16 bytes and their leading dimensions are
// multiples of 4; tensor cores read 16 bytes at a time, so other products stay float32. The algorithm depends on the
// shape, precision and alignment alone and adds in a fixed order: the same call gives the same bits.
//
// Operands of BF16 or F16 are multiplied as they are, whatever the precision, and summed in float32; C may then have
// their type, to which it is rounded once. The epilogue is float32's alone.
struct Product {
  Transpose transpose_a = Transpose::kNo, transpose_b = Transpose::kNo;
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  int64_t lda = 0;
  const void* b = nullptr;
  int64_t ldb = 0;
  float alpha = 1.0f, beta = 0.0f;
  void* c = nullptr;
  int64_t ldc = 0;
  Epilogue epilogue = Epilogue::kNone;
  const float* bias = nullptr;
  int32_t operands = RFN_F32;  // type of A and B
  int32_t result = RFN_F32;    // of C: F32, or that of the operands
};

// Rows of one call of the library: cuBLASLt before 12.1 fails from 65535 * 32 rows on. Longer products are cut.
inline constexpr int64_t kMostProductRows = int64_t{1} << 20;
rfn_status gemm(rfn_stream& stream, const Product& product, void* workspace, int64_t most_rows = kMostProductRows);

// For context_create: RFN_UNSUPPORTED with a sentence where cuBLASLt can't be loaded.
rfn_status load_gemm(rfn_context& context, std::shared_ptr<Gemm>* out);

}  // namespace rfn::cuda
