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

// op(A) from a row on.
const float* rows_of_a(const Product& p, int64_t row) {
  return p.transpose_a == Transpose::kYes ? p.a + row : p.a + row * p.lda;
}

}  // namespace

void gemm(const Product& p) {
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) {
    if (p.beta == 0.0f) {
      for (int64_t row = 0; row < p.m; ++row) std::fill_n(p.c + row * p.ldc, p.n, 0.0f);
    }
    return;
  }
  for (int64_t row = 0; row < p.m; row += kBlasRows) {
    cblas_sgemm(CblasRowMajor, cblas(p.transpose_a), cblas(p.transpose_b),
                static_cast<int>(std::min(kBlasRows, p.m - row)), static_cast<int>(p.n), static_cast<int>(p.k), 1.0f,
                rows_of_a(p, row), static_cast<int>(p.lda), p.b, static_cast<int>(p.ldb), p.beta, p.c + row * p.ldc,
                static_cast<int>(p.ldc));
  }
}

void parallel_gemm(int32_t threads, const Product& p) {
  const int64_t row_tiles = div_up(p.m, kTileRows), column_tiles = div_up(p.n, kTileColumns);
  // Equal tiles, so that no thread is left with a sliver.
  const int64_t rows = row_tiles == 0 ? 0 : div_up(p.m, row_tiles),
                columns = column_tiles == 0 ? 0 : div_up(p.n, column_tiles);
  parallel_for(threads, row_tiles * column_tiles, [&](int64_t item, int32_t) {
    const int64_t row = item / column_tiles * rows, column = item % column_tiles * columns;
    if (row >= p.m || column >= p.n) return;
    Product tile = p;
    tile.m = std::min(rows, p.m - row);
    tile.n = std::min(columns, p.n - column);
    tile.a = rows_of_a(p, row);
    tile.b = p.transpose_b == Transpose::kYes ? p.b + column * p.ldb : p.b + column;
    tile.c = p.c + row * p.ldc + column;
    gemm(tile);
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
