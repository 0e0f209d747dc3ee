#include <cblas.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/tensor.h"
#include "cpu/blas_memory.h"
#include "cpu/gemm.h"
#include "cpu/parallel.h"

extern "C" {
char* openblas_get_config(void);
char* openblas_get_corename(void);

char* __real_getenv(const char* name);
char* __wrap_getenv(const char* name);

// The linker sends every getenv of this library, OpenBLAS's included, here (--wrap=getenv). OpenBLAS reads its settings
// when the library is loaded, and people set them for the other copies of OpenBLAS in a process. This private copy, of
// which only sgemm is used, works on the calling thread alone and takes the SkylakeX kernels wherever there is AVX-512,
// what OpenBLAS detects elsewhere (docs/decisions/0002). RFN_BLAS_CORE overrides.
char* __wrap_getenv(const char* name) {
  static char one[] = "1";
  if (std::strcmp(name, "OPENBLAS_NUM_THREADS") == 0) return one;
  if (std::strcmp(name, "OPENBLAS_L2_SIZE") == 0) return nullptr;
  if (std::strcmp(name, "OPENBLAS_CORETYPE") != 0) return __real_getenv(name);
  if (char* const wanted = __real_getenv("RFN_BLAS_CORE"); wanted != nullptr) return wanted;
#if defined(__x86_64__)
  static char skylake_x[] = "SkylakeX";
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq")) {
    return skylake_x;
  }
#endif
  return nullptr;
}
}

namespace rfn::cpu {
namespace {

// Tile of C given to one thread at a time. Large enough that BLAS packs its operands well, small enough that two
// threads of an ordinary product of a model find several; fixed, so that the tiling does not depend on the threads.
constexpr int64_t kTileRows = 512;
constexpr int64_t kTileColumns = 512;

CBLAS_TRANSPOSE cblas(Transpose t) { return t == Transpose::kYes ? CblasTrans : CblasNoTrans; }

}  // namespace

void gemm(Transpose a_transpose, Transpose b_transpose, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
          const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (beta == 0.0f) {
      for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, 0.0f);
    }
    return;
  }
  for (int64_t row = 0; row < m; row += kBlasRows) {
    cblas_sgemm(CblasRowMajor, cblas(a_transpose), cblas(b_transpose), static_cast<int>(std::min(kBlasRows, m - row)),
                static_cast<int>(n), static_cast<int>(k), 1.0f,
                a_transpose == Transpose::kYes ? a + row : a + row * lda, static_cast<int>(lda), b,
                static_cast<int>(ldb), beta, c + row * ldc, static_cast<int>(ldc));
  }
}

void parallel_gemm(int32_t threads, Transpose a_transpose, Transpose b_transpose, int64_t m, int64_t n, int64_t k,
                   const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  const int64_t row_tiles = div_up(m, kTileRows), column_tiles = div_up(n, kTileColumns);
  // Equal tiles, so that no thread is left with a sliver.
  const int64_t rows = row_tiles == 0 ? 0 : div_up(m, row_tiles),
                columns = column_tiles == 0 ? 0 : div_up(n, column_tiles);
  parallel_for(threads, row_tiles * column_tiles, [&](int64_t item, int32_t) {
    const int64_t i = item / column_tiles * rows, j = item % column_tiles * columns;
    if (i >= m || j >= n) return;
    gemm(a_transpose, b_transpose, std::min(rows, m - i), std::min(columns, n - j), k,
         a_transpose == Transpose::kYes ? a + i : a + i * lda, lda,
         b_transpose == Transpose::kYes ? b + j * ldb : b + j, ldb, beta, c + i * ldc + j, ldc);
  });
}

const char* blas_name() {
  static const std::string name = [] {
    const std::string config = openblas_get_config();  // "OpenBLAS 0.3.21 DYNAMIC_ARCH ..."
    const size_t first = config.find(' ');
    return config.substr(0, first == std::string::npos ? first : config.find(' ', first + 1));
  }();
  return name.c_str();
}

const char* blas_kernel() { return openblas_get_corename(); }

}  // namespace rfn::cpu
