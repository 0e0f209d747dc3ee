// Matrix products through BLAS (OpenBLAS, serial, linked statically); threads split the output, never the sum.
#pragma once
#include <cstdint>

namespace rfn::cpu {

enum class Transpose : bool { kNo, kYes };

// C[m,n] = beta C + op(A) op(B), row-major, leading dimensions in elements. One thread. beta is 0 or 1 (0: C is not
// read).
void gemm(Transpose a_transpose, Transpose b_transpose, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
          const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

// The same over a fixed tiling of C.
void parallel_gemm(int32_t threads, Transpose a_transpose, Transpose b_transpose, int64_t m, int64_t n, int64_t k,
                   const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

const char* blas_name();    // "OpenBLAS 0.3.21"
const char* blas_kernel();  // kernel family in use, for example "SkylakeX"

}  // namespace rfn::cpu
