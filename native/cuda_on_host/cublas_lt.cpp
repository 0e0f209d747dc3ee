// cuBLASLt of the simulated device (include/cublasLt.h): column-major products of float32, BF16 and F16, summed in
// float32 over k in a fixed order.
#include <cublasLt.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cuda_on_host/ptx.h"
#include "cuda_on_host/runtime.h"

struct cublasLtContext {
  int64_t number;
};

namespace rfn::cuda_on_host {
namespace {

constexpr uint64_t kMostAlignment = 16;        // bytes; what the kernels here know to make use of
constexpr uint64_t kMostColumns = 65535 * 32;  // tiles of 32 along a grid's y

// What the opaque structs hold.
struct Layout {
  uint64_t rows, columns;
  int64_t ld;
  cudaDataType_t type;
};
struct Desc {
  cublasComputeType_t compute;
  int32_t transpose_a, transpose_b;
  uint32_t epilogue;
  const void* bias;
};
struct Preference {
  uint64_t workspace;
  uint32_t reductions;
  uint32_t alignment[4];  // of A, B, C, D
};
// An algorithm is good for the problem it was chosen for and for no other.
struct Algorithm {
  uint64_t problem, workspace;
  uint32_t alignment[4];
  uint32_t in_place, unused;
};

template <class Value, class Opaque>
Value get(const Opaque* opaque) {
  static_assert(sizeof(Value) <= sizeof(Opaque));
  Value value;
  std::memcpy(&value, opaque, sizeof(value));
  return value;
}
template <class Value, class Opaque>
void put(Opaque* opaque, const Value& value) {
  static_assert(sizeof(Value) <= sizeof(Opaque));
  std::memcpy(opaque, &value, sizeof(value));
}
template <class Opaque, class Value>
cublasStatus_t create(Opaque** out, const Value& value) {
  if (out == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *out = new Opaque{};
  put(*out, value);
  return CUBLAS_STATUS_SUCCESS;
}
template <class Opaque>
cublasStatus_t destroy(Opaque* opaque) {
  delete opaque;
  return CUBLAS_STATUS_SUCCESS;
}

template <class Field>
cublasStatus_t assign(Field& field, const void* value, size_t bytes) {
  if (value == nullptr || bytes != sizeof(field)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t status_of(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return CUBLAS_STATUS_SUCCESS;
    case cudaErrorMemoryAllocation:
      return CUBLAS_STATUS_ALLOC_FAILED;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      return CUBLAS_STATUS_NOT_INITIALIZED;
    default:
      return CUBLAS_STATUS_EXECUTION_FAILED;
  }
}

// As Runtime::call. The library has a runtime of its own: the caller's last error stays as it is.
template <class F>
cublasStatus_t call(F&& body) {
  Runtime& r = Runtime::instance();
  const std::lock_guard<std::recursive_mutex> lock(r.mutex_);
  const cudaError_t early = r.begin_call();
  return early != cudaSuccess ? status_of(early) : body(r);
}

cublasStatus_t refuse(Runtime& r, cublasStatus_t status, const std::string& why) {
  r.report = "cuBLASLt: " + why;
  return status;
}

struct Problem {
  Desc desc;
  Layout a, b, d;
  uint64_t m, n, k;

  // Everything an algorithm depends on, as one number.
  uint64_t hash() const {
    uint64_t h = 14695981039346656037u;
    for (const uint64_t x :
         {uint64_t{desc.compute}, uint64_t(desc.transpose_a), uint64_t(desc.transpose_b), uint64_t{desc.epilogue}, m, n,
          k, uint64_t(a.ld), uint64_t(b.ld), uint64_t(d.ld), uint64_t{a.type}, uint64_t{d.type}}) {
      h = (h ^ x) * 1099511628211u;
    }
    return h;
  }
  bool tensor_cores() const { return desc.compute != CUBLAS_COMPUTE_32F; }
};

cublasStatus_t problem_of(Runtime& r, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                          cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, Problem* out) {
  if (desc == nullptr || a == nullptr || b == nullptr || c == nullptr || d == nullptr) {
    return refuse(r, CUBLAS_STATUS_INVALID_VALUE, "null descriptor");
  }
  Problem p{get<Desc>(desc), get<Layout>(a), get<Layout>(b), get<Layout>(d), 0, 0, 0};
  const Layout c_layout = get<Layout>(c);
  p.m = p.desc.transpose_a ? p.a.columns : p.a.rows;
  p.k = p.desc.transpose_a ? p.a.rows : p.a.columns;
  p.n = p.desc.transpose_b ? p.b.rows : p.b.columns;
  if ((p.desc.transpose_b ? p.b.columns : p.b.rows) != p.k || p.d.rows != p.m || p.d.columns != p.n ||
      std::memcmp(&c_layout, &p.d, sizeof p.d) != 0) {
    return refuse(r, CUBLAS_STATUS_INVALID_VALUE, "the shapes of A, B, C and D do not fit");
  }
  const bool half = p.a.type != CUDA_R_32F;
  if (p.a.type != p.b.type || (p.d.type != p.a.type && p.d.type != CUDA_R_32F) ||
      (half && p.desc.compute != CUBLAS_COMPUTE_32F)) {
    return refuse(r, CUBLAS_STATUS_NOT_SUPPORTED, "no product of such types");
  }
  if (p.d.type != CUDA_R_32F && p.desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT)
    return refuse(r, CUBLAS_STATUS_NOT_SUPPORTED, "a bias of this simulation is float32, as D then has to be");
  for (const Layout& layout : {p.a, p.b, p.d}) {
    if (layout.rows == 0 || layout.columns == 0) return refuse(r, CUBLAS_STATUS_INVALID_VALUE, "an empty matrix");
    if (layout.ld < static_cast<int64_t>(layout.rows))
      return refuse(r, CUBLAS_STATUS_INVALID_VALUE, "a leading dimension smaller than the rows");
  }
  if (p.desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT && p.desc.bias == nullptr) {
    return refuse(r, CUBLAS_STATUS_INVALID_VALUE, "an epilogue without bias");
  }
  *out = p;
  return CUBLAS_STATUS_SUCCESS;
}

// ---- the product --------------------------------------------------------------------------------

float rounded(cublasComputeType_t compute, float x) {
  switch (compute) {
    case CUBLAS_COMPUTE_32F_FAST_16F:
      return cuda::f16_to_float(cuda::float_to_f16(x));
    case CUBLAS_COMPUTE_32F_FAST_16BF:
      return cuda::bf16_to_float(cuda::float_to_bf16(x));
    case CUBLAS_COMPUTE_32F_FAST_TF32:
      return bit_cast<float>(cuda::round_to_tf32(x));
    default:
      return x;
  }
}

uint64_t element_bytes(cudaDataType_t type) { return type == CUDA_R_32F ? sizeof(float) : sizeof(uint16_t); }

float load(cudaDataType_t type, const void* from, uint64_t i) {
  if (type == CUDA_R_32F) return static_cast<const float*>(from)[i];
  const uint16_t bits = static_cast<const uint16_t*>(from)[i];
  return type == CUDA_R_16F ? cuda::f16_to_float(bits) : cuda::bf16_to_float(bits);
}

void store(cudaDataType_t type, void* to, uint64_t i, float value) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(to)[i] = value;
  } else {
    static_cast<uint16_t*>(to)[i] = type == CUDA_R_16F ? cuda::float_to_f16(value) : cuda::float_to_bf16(value);
  }
}

struct Matmul {
  Problem problem;
  Algorithm algorithm;
  const void *a, *b;
  void* d;
  float alpha, beta;
  char* workspace;

  cudaError_t operator()() const {
    Runtime& r = Runtime::instance();
    const auto bytes = [](const Layout& l) {
      return ((l.columns - 1) * static_cast<uint64_t>(l.ld) + l.rows) * element_bytes(l.type);
    };
    const struct {
      const char* name;
      const void* pointer;
      uint64_t bytes;
    } operands[] = {{"A", a, bytes(problem.a)},
                    {"B", b, bytes(problem.b)},
                    {"D", d, bytes(problem.d)},
                    {"bias", problem.desc.bias, has_bias() ? problem.m * sizeof(float) : 0},
                    {"workspace", workspace, algorithm.workspace}};
    for (const auto& operand : operands) {
      if (operand.bytes == 0) continue;
      const Allocation* found = r.memory.find(operand.pointer, operand.bytes);
      if (found == nullptr) {
        return r.refuse(cudaErrorIllegalAddress,
                        "cublasLtMatmul: " + std::string(operand.name) + ", " + std::to_string(operand.bytes) +
                            " bytes, does not lie in memory of the device: " + r.memory.describe(operand.pointer));
      }
    }
    // A kernel loads four values of the bias at a time, whatever the heuristic was told.
    if (has_bias() && reinterpret_cast<uintptr_t>(problem.desc.bias) % kMostAlignment != 0) {
      return r.refuse(cudaErrorMisalignedAddress, "cublasLtMatmul: the bias is not aligned to 16 bytes");
    }
    if (workspace != nullptr) std::memset(workspace, 0xff, algorithm.workspace);
    run();
    return cudaSuccess;
  }

 private:
  bool has_bias() const { return problem.desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT; }

  // Strips of D's rows stay in the cache; a strip of A is packed once, [k, strip]. Sums over k in order, in runs that
  // are added up: long sums are split by the real library too.
  void run() const {
    constexpr uint64_t kStrip = 128, kColumns = 4, kRun = 256;
    const uint64_t m = problem.m, n = problem.n, k = problem.k, lda = static_cast<uint64_t>(problem.a.ld),
                   ldb = static_cast<uint64_t>(problem.b.ld), ldd = static_cast<uint64_t>(problem.d.ld);
    const cublasComputeType_t compute = problem.desc.compute;
    const cudaDataType_t type = problem.a.type;
    // Reduction in place: parts of the sum arrive in another order each time.
    static uint64_t calls = 0;
    const uint64_t start = algorithm.in_place ? ++calls * 7919 % k : 0;
    std::vector<float> packed_b(n * k), packed_a(k * kStrip);
    for (uint64_t j = 0; j < n; ++j) {
      for (uint64_t i = 0; i < k; ++i)
        packed_b[j * k + i] = rounded(compute, load(type, b, problem.desc.transpose_b ? i * ldb + j : j * ldb + i));
    }
    for (uint64_t row = 0; row < m; row += kStrip) {
      const uint64_t rows = std::min(kStrip, m - row);
      std::fill(packed_a.begin(), packed_a.end(), 0.0f);
      for (uint64_t r = 0; r < rows; ++r) {
        for (uint64_t i = 0; i < k; ++i) {
          packed_a[i * kStrip + r] =
              rounded(compute, load(type, a, problem.desc.transpose_a ? (row + r) * lda + i : i * lda + row + r));
        }
      }
      for (uint64_t column = 0; column < n; column += kColumns) {
        const uint64_t columns = std::min(kColumns, n - column);
        float totals[kColumns][kStrip] = {};
        for (uint64_t run = 0; run < k; run += kRun) {
          float sums[kColumns][kStrip] = {};
          for (uint64_t i = run; i < std::min(run + kRun, k); ++i) {
            const uint64_t at = (i + start) % k;
            const float* const from = packed_a.data() + at * kStrip;
            for (uint64_t c = 0; c < columns; ++c) {
              const float factor = packed_b[(column + c) * k + at];
              for (uint64_t r = 0; r < kStrip; ++r) sums[c][r] += from[r] * factor;
            }
          }
          for (uint64_t c = 0; c < columns; ++c) {
            for (uint64_t r = 0; r < kStrip; ++r) totals[c][r] += sums[c][r];
          }
        }
        for (uint64_t c = 0; c < columns; ++c) {
          for (uint64_t r = 0; r < rows; ++r) finish((column + c) * ldd + row + r, totals[c][r], row + r);
        }
      }
    }
  }

  void finish(uint64_t place, float sum, uint64_t row) const {
    float value = alpha * sum;
    if (beta != 0.0f) value += beta * load(problem.d.type, d, place);  // else C is not read
    if (has_bias()) value += static_cast<const float*>(problem.desc.bias)[row];
    if (problem.desc.epilogue == CUBLASLT_EPILOGUE_RELU_BIAS) value = value > 0.0f ? value : 0.0f;
    store(problem.d.type, d, place, value);
  }
};

}  // namespace

void Runtime::delete_blas_handles() {
  for (const auto& entry : blas_handles) delete entry.first;
  blas_handles.clear();
}

}  // namespace rfn::cuda_on_host

using namespace rfn::cuda_on_host;

// ---- handles and descriptors --------------------------------------------------------------------

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return call([&](Runtime& r) {
    *handle = new cublasLtContext{r.next_number()};
    r.blas_handles[*handle] = (*handle)->number;
    return CUBLAS_STATUS_SUCCESS;
  });
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return call([&](Runtime& r) {
    if (r.blas_handles.erase(handle) == 0) return CUBLAS_STATUS_NOT_INITIALIZED;
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
  });
}
size_t cublasLtGetVersion() { return 111103; }

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "the function requires an architectural feature absent from the architecture of the device";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the function failed to launch on the GPU";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "an internal operation failed";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the functionality requested is not supported";
  }
  return "unknown status";
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
  const bool known = type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF;
  return known ? create(layout, Layout{rows, cols, ld, type}) : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return destroy(layout); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute_type,
                                        cudaDataType_t scale_type) {
  if (scale_type != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
  return create(desc, Desc{compute_type, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return destroy(desc); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  Desc fields = get<Desc>(desc);
  const cublasStatus_t status = attribute == CUBLASLT_MATMUL_DESC_TRANSA     ? assign(fields.transpose_a, value, bytes)
                                : attribute == CUBLASLT_MATMUL_DESC_TRANSB   ? assign(fields.transpose_b, value, bytes)
                                : attribute == CUBLASLT_MATMUL_DESC_EPILOGUE ? assign(fields.epilogue, value, bytes)
                                : attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER ? assign(fields.bias, value, bytes)
                                                                                 : CUBLAS_STATUS_INVALID_VALUE;
  put(desc, fields);
  return status;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return create(preference, Preference{0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}});
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { return destroy(preference); }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  Preference fields = get<Preference>(preference);
  const int operand = attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
  const cublasStatus_t status =
      attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES     ? assign(fields.workspace, value, bytes)
      : attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK ? assign(fields.reductions, value, bytes)
      : operand >= 0 && operand < 4                             ? assign(fields.alignment[operand], value, bytes)
                                                                : CUBLAS_STATUS_INVALID_VALUE;
  put(preference, fields);
  return status;
}

// ---- products -----------------------------------------------------------------------------------

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
  return call([&](Runtime& r) {
    if (r.blas_handles.count(handle) == 0) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (preference == nullptr || wanted < 1 || results == nullptr || found == nullptr)
      return CUBLAS_STATUS_INVALID_VALUE;
    *found = 0;
    Problem p;
    if (const cublasStatus_t status = problem_of(r, desc, a, b, c, d, &p); status != CUBLAS_STATUS_SUCCESS)
      return status;
    if (p.n >= kMostColumns) return refuse(r, CUBLAS_STATUS_NOT_SUPPORTED, "more columns than a grid has room for");
    const Preference preferred = get<Preference>(preference);
    Algorithm algorithm{p.hash(), 0, {}, (preferred.reductions & CUBLASLT_REDUCTION_SCHEME_INPLACE) != 0, 0};
    bool aligned = p.a.ld % 4 == 0 && p.b.ld % 4 == 0 && p.d.ld % 4 == 0;
    for (int i = 0; i < 4; ++i) {
      algorithm.alignment[i] = std::min<uint32_t>(preferred.alignment[i], kMostAlignment);
      aligned = aligned && algorithm.alignment[i] == kMostAlignment;
    }
    if (p.tensor_cores() && (!aligned || r.settings.capability < 80)) {
      return refuse(r, CUBLAS_STATUS_NOT_SUPPORTED, "no tensor core kernel for such alignment or such a device");
    }
    if (p.a.type == CUDA_R_16BF && r.settings.capability < 80)
      return refuse(r, CUBLAS_STATUS_NOT_SUPPORTED, "no BF16 on such a device");
    const uint64_t parts = p.k >= 128 ? p.m * p.n * sizeof(float) : 0;  // as if long sums were split
    algorithm.workspace = std::min(parts, preferred.workspace);
    results[0] = {};
    put(&results[0].algo, algorithm);
    results[0].workspaceSize = algorithm.workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  return call([&](Runtime& r) {
    if (r.blas_handles.count(handle) == 0) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (algo == nullptr || alpha == nullptr || beta == nullptr || c != d) {
      return refuse(r, CUBLAS_STATUS_INVALID_VALUE, "null argument, or C is not D");
    }
    Problem p;
    if (const cublasStatus_t status = problem_of(r, desc, a_layout, b_layout, c_layout, d_layout, &p);
        status != CUBLAS_STATUS_SUCCESS)
      return status;
    const Algorithm algorithm = get<Algorithm>(algo);
    if (algorithm.problem != p.hash())
      return refuse(r, CUBLAS_STATUS_INVALID_VALUE, "an algorithm that was chosen for another problem");
    const void* const operands[] = {a, b, c, d};
    for (int i = 0; i < 4; ++i) {
      if (reinterpret_cast<uintptr_t>(operands[i]) % algorithm.alignment[i] != 0) {
        return refuse(r, CUBLAS_STATUS_NOT_SUPPORTED, "a matrix that is less aligned than the algorithm needs");
      }
    }
    if (algorithm.workspace > 0 && (workspace == nullptr || workspace_bytes < algorithm.workspace ||
                                    reinterpret_cast<uintptr_t>(workspace) % kMostAlignment != 0)) {
      return refuse(r, CUBLAS_STATUS_INVALID_VALUE, "a workspace that is missing, too small or misaligned");
    }
    ++r.work["cuBLASLt product"];
    return status_of(r.enqueue(stream, Matmul{p, algorithm, a, b, d, *static_cast<const float*>(alpha),
                                              *static_cast<const float*>(beta), static_cast<char*>(workspace)}));
  });
}
