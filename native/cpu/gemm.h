// Matrix products through BLAS (OpenBLAS, serial, linked statically); threads split the output, never the sum.
#pragma once
#include <cstdint>

namespace rfn::cpu {

enum class Transpose { kNo, kYes };

// C[m,n] = op(A)[m,k] op(B)[k,n] + beta C, row-major, leading dimensions in elements. beta is 0 or 1 (0: C is not
// read).
struct Product {
  Transpose transpose_a = Transpose::kNo, transpose_b = Transpose::kNo;
  int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  int64_t lda = 0;
  const float* b = nullptr;
  int64_t ldb = 0;
  float beta = 0.0f;
  float* c = nullptr;
  int64_t ldc = 0;
};

// On the calling thread.
void gemm(const Product& product);

// The same over a fixed tiling of C.
void parallel_gemm(int32_t threads, const Product& product);

const char* blas_name();    // "OpenBLAS 0.3.21"
const char* blas_kernel();  // kernel family in use, for example "SkylakeX"

}  // namespace rfn::cpu
