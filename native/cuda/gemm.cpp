#include "cuda/gemm.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "core/tensor.h"
#include "cuda/elementwise.h"

namespace rfn::cuda {
namespace {

constexpr int64_t kTensorCoreAlignment = 16;  // bytes; also what fused bias kernels assume of the bias
constexpr size_t kMostPlans = 4096;           // then the choices are made anew, with the same outcome

// clang-format off
#define RFN_CUBLASLT_FUNCTIONS(X) \
  X(cublasLtCreate) \
  X(cublasLtDestroy) \
  X(cublasLtGetVersion) \
  X(cublasLtGetStatusString) \
  X(cublasLtMatmul) \
  X(cublasLtMatmulAlgoGetHeuristic) \
  X(cublasLtMatrixLayoutCreate) \
  X(cublasLtMatrixLayoutDestroy) \
  X(cublasLtMatmulDescCreate) \
  X(cublasLtMatmulDescDestroy) \
  X(cublasLtMatmulDescSetAttribute) \
  X(cublasLtMatmulPreferenceCreate) \
  X(cublasLtMatmulPreferenceDestroy) \
  X(cublasLtMatmulPreferenceSetAttribute)
// clang-format on

// The functions of the process's cuBLASLt, or why there are none. Never unloaded: CUDA libraries don't take that well.
struct Library {
  std::string missing;
#define RFN_MEMBER(name) decltype(&::name) name = nullptr;
  RFN_CUBLASLT_FUNCTIONS(RFN_MEMBER)
#undef RFN_MEMBER

  Library() {
#if defined(RFN_CUDA_ON_HOST)
    const std::string names[] = {"libcuda_on_host.so"};
#else
    const std::string names[] = {"libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR), "libcublasLt.so"};
#endif
    for (const std::string& name : names) {
      const std::string problem = load(name.c_str());
      if (problem.empty()) {
        missing.clear();
        return;
      }
      if (missing.empty()) missing = "cuBLASLt (" + name + ") can't be loaded (" + problem + ")";
    }
  }

 private:
  std::string load(const char* file) {
    void* const library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return dlerror();
    const char* absent = nullptr;
#define RFN_FIND(name) \
  if ((name = reinterpret_cast<decltype(name)>(dlsym(library, #name))) == nullptr) absent = #name;
    RFN_CUBLASLT_FUNCTIONS(RFN_FIND)
#undef RFN_FIND
    if (absent != nullptr) return "it has no function " + std::string(absent);
    const size_t version = cublasLtGetVersion(), major = version / 10000;
    return major == CUBLAS_VER_MAJOR
               ? ""
               : "its version is " + std::to_string(version) + ", this build needs " + std::to_string(CUBLAS_VER_MAJOR);
  }
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

// Largest power of two that divides the address, at most what kernels make use of.
int64_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer) | kTensorCoreAlignment;
  return static_cast<int64_t>(address & ~(address - 1));
}

cublasComputeType_t compute_type(int32_t precision) {
  switch (precision) {
    case RFN_PRECISION_TF32:
      return CUBLAS_COMPUTE_32F_FAST_TF32;
    case RFN_PRECISION_BF16:
      return CUBLAS_COMPUTE_32F_FAST_16BF;
    case RFN_PRECISION_F16:
      return CUBLAS_COMPUTE_32F_FAST_16F;
    default:
      return CUBLAS_COMPUTE_32F;
  }
}

cudaDataType_t data_type(int64_t dtype) {
  return dtype == RFN_BF16 ? CUDA_R_16BF : dtype == RFN_F16 ? CUDA_R_16F : CUDA_R_32F;
}

// All that the choice of an algorithm depends on. cuBLASLt is column-major, so it is asked for the transposed product
// with A and B exchanged: C^T[n,m] = op(B)^T op(A)^T. A row-major matrix is a column-major one of its transpose, hence
// the transpositions stay as they are.
struct Key {
  int64_t m, n, k, lda, ldb, ldc;
  int64_t align_a, align_b, align_c;
  int64_t transpose_a, transpose_b, compute, epilogue, operands, result;

  using Fields = std::array<int64_t, 15>;
  bool operator<(const Key& other) const { return fields() < other.fields(); }
  Fields fields() const {
    return {m,       n,           k,           lda,     ldb,      ldc,      align_a, align_b,
            align_c, transpose_a, transpose_b, compute, epilogue, operands, result};
  }
};

Key key_of(const Product& p, int32_t precision) {
  Key key{p.m,
          p.n,
          p.k,
          p.lda,
          p.ldb,
          p.ldc,
          alignment_of(p.a),
          alignment_of(p.b),
          alignment_of(p.c),
          p.transpose_a == Transpose::kYes,
          p.transpose_b == Transpose::kYes,
          CUBLAS_COMPUTE_32F,
          CUBLASLT_EPILOGUE_DEFAULT,
          p.operands,
          p.result};
  const bool vectors =
      std::min({key.align_a, key.align_b, key.align_c}) == kTensorCoreAlignment && (p.lda | p.ldb | p.ldc) % 4 == 0;
  if (vectors && !is_half(p.operands)) key.compute = compute_type(precision);
  // cuBLASLt's preferences have no alignment of the bias, and its kernels load 16 bytes of it at a time. Others get a
  // pass of their own.
  if (p.epilogue != Epilogue::kNone && alignment_of(p.bias) == kTensorCoreAlignment) {
    key.epilogue = p.epilogue == Epilogue::kBias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_RELU_BIAS;
  }
  return key;
}

// The descriptors and the algorithm of one key.
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  size_t workspace = 0;
  bool fused = false;  // desc has the epilogue

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (desc != nullptr) library().cublasLtMatmulDescDestroy(desc);
    for (const cublasLtMatrixLayout_t layout : {a, b, c}) {
      if (layout != nullptr) library().cublasLtMatrixLayoutDestroy(layout);
    }
  }
};

// The first failure of a row of calls.
class Status {
 public:
  void operator()(cublasStatus_t status) {
    if (value == CUBLAS_STATUS_SUCCESS) value = status;
  }
  cublasStatus_t value = CUBLAS_STATUS_SUCCESS;
};

template <class T>
cublasStatus_t set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  return library().cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof(value));
}
template <class T>
cublasStatus_t set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                   const T& value) {
  return library().cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value));
}

}  // namespace

// One context's handle and what has been chosen with it. A context has one calling thread at a time, so nothing here is
// locked.
class Gemm {
 public:
  Gemm() = default;
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;
  ~Gemm() {
    plans_.clear();
    if (handle_ != nullptr) library().cublasLtDestroy(handle_);
  }

  cublasStatus_t create() { return library().cublasLtCreate(&handle_); }

  cublasStatus_t run(cudaStream_t stream, const Product& p, int32_t precision, void* workspace, bool* fused) {
    const Plan* plan = nullptr;
    const cublasStatus_t status = find(key_of(p, precision), &plan);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    *fused = plan->fused;
    if (plan->fused) {
      const cublasStatus_t set_bias = set(plan->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
      if (set_bias != CUBLAS_STATUS_SUCCESS) return set_bias;
    }
    return library().cublasLtMatmul(handle_, plan->desc, &p.alpha, p.b, plan->a, p.a, plan->b, &p.beta, p.c, plan->c,
                                    p.c, plan->c, &plan->algorithm, workspace, plan->workspace, stream);
  }

 private:
  cublasStatus_t find(const Key& key, const Plan** out) {
    auto found = plans_.find(key);
    if (found == plans_.end()) {
      if (plans_.size() >= kMostPlans) plans_.clear();
      auto plan = std::make_unique<Plan>();
      cublasStatus_t status = choose(key, key.epilogue, *plan);
      if (status != CUBLAS_STATUS_SUCCESS &&
          key.epilogue != CUBLASLT_EPILOGUE_DEFAULT) {  // some shapes have no kernel with a bias
        plan = std::make_unique<Plan>();
        status = choose(key, CUBLASLT_EPILOGUE_DEFAULT, *plan);
      }
      if (status != CUBLAS_STATUS_SUCCESS) return status;
      found = plans_.emplace(key, std::move(plan)).first;
    }
    *out = found->second.get();
    return CUBLAS_STATUS_SUCCESS;
  }

  cublasStatus_t choose(const Key& key, int64_t epilogue, Plan& plan) const {
    const Library& l = library();
    const auto layout = [&](cublasLtMatrixLayout_t* out, int64_t dtype, int64_t rows, int64_t columns, int64_t ld) {
      return l.cublasLtMatrixLayoutCreate(out, data_type(dtype), static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(columns), ld);
    };
    const auto operand = [&](cublasLtMatrixLayout_t* out, bool transposed, int64_t rows, int64_t columns, int64_t ld) {
      return transposed ? layout(out, key.operands, columns, rows, ld) : layout(out, key.operands, rows, columns, ld);
    };
    Status status;
    status(operand(&plan.a, key.transpose_b, key.n, key.k, key.ldb));
    status(operand(&plan.b, key.transpose_a, key.k, key.m, key.lda));
    status(layout(&plan.c, key.result, key.n, key.m, key.ldc));
    status(l.cublasLtMatmulDescCreate(&plan.desc, static_cast<cublasComputeType_t>(key.compute), CUDA_R_32F));
    cublasLtMatmulPreference_t preference = nullptr;
    status(l.cublasLtMatmulPreferenceCreate(&preference));
    if (status.value == CUBLAS_STATUS_SUCCESS) {
      status(set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA,
                 static_cast<int32_t>(key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N)));
      status(set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB,
                 static_cast<int32_t>(key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N)));
      status(set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(epilogue)));
      plan.fused = epilogue != CUBLASLT_EPILOGUE_DEFAULT;
      // Not read here: its value stands for the alignment that every later bias has.
      if (plan.fused)
        status(set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, reinterpret_cast<const void*>(kTensorCoreAlignment)));
      status(set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kGemmWorkspace)));
      // Split sums go through the workspace and are added in order there; the scheme that adds them in D in any order
      // is not allowed.
      status(set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)));
      status(set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.align_b)));
      status(set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.align_a)));
      status(set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.align_c)));
      status(set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.align_c)));
    }
    if (status.value == CUBLAS_STATUS_SUCCESS) {
      cublasLtMatmulHeuristicResult_t result{};
      int found = 0;
      status(l.cublasLtMatmulAlgoGetHeuristic(handle_, plan.desc, plan.a, plan.b, plan.c, plan.c, preference, 1,
                                              &result, &found));
      if (status.value == CUBLAS_STATUS_SUCCESS) status(found == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : result.state);
      plan.algorithm = result.algo;
      plan.workspace = result.workspaceSize;
    }
    if (preference != nullptr) l.cublasLtMatmulPreferenceDestroy(preference);
    return status.value;
  }

  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

namespace {

rfn_status failure(cublasStatus_t status, const std::string& what) {
  const rfn_status code = status == CUBLAS_STATUS_ALLOC_FAILED ? RFN_OUT_OF_MEMORY
                          : status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_ARCH_MISMATCH
                              ? RFN_UNSUPPORTED
                              : RFN_DEVICE_ERROR;
  return fail(code, "%s: cuBLASLt says %s (%d)", what.c_str(), library().cublasLtGetStatusString(status),
              static_cast<int>(status));
}

std::string text_of(const Product& p) {
  const auto number = [](int64_t value) { return std::to_string(value); };
  return "product [" + number(p.m) + "," + number(p.k) + "] x [" + number(p.k) + "," + number(p.n) +
         "], leading dimensions " + number(p.lda) + ", " + number(p.ldb) + ", " + number(p.ldc);
}

rfn_status multiply(rfn_stream& stream, const Product& p, void* workspace) {
  rfn_context& context = *stream.context;
  bool fused = false;
  const cublasStatus_t status =
      device_of(context).gemm->run(native_stream(stream), p, context.precision, workspace, &fused);
  if (status != CUBLAS_STATUS_SUCCESS) {
    // An earlier fault of the device comes out here too; the CUDA runtime knows its name. This call is one that a
    // capture allows.
    cudaStreamCaptureStatus capture;
    RFN_CUDA_TRY(stream, cudaStreamIsCapturing(native_stream(stream), &capture));
    return failure(status, text_of(p));
  }
  if (fused || p.epilogue == Epilogue::kNone) return RFN_OK;
  return add_bias(stream, p.bias, p.epilogue == Epilogue::kBiasRelu, p.m, p.n, static_cast<float*>(p.c), p.ldc);
}

int64_t element_bytes(int32_t dtype) { return is_half(dtype) ? 2 : 4; }

}  // namespace

rfn_status gemm(rfn_stream& stream, const Product& product, void* workspace, int64_t most_rows) {
  if (product.m == 0 || product.n == 0) return RFN_OK;
  const int capability = device_of(*stream.context).capability;
  if (product.operands == RFN_BF16 && capability < 80) {
    return fail(RFN_UNSUPPORTED, "products of BF16 tensors: expected compute capability 8.0 or later, got %d.%d",
                capability / 10, capability % 10);
  }
  if (product.k <= 0) return fail(RFN_INTERNAL, "%s: expected a sum of at least one term", text_of(product).c_str());
  if (product.m <= most_rows || product.transpose_a == Transpose::kYes) return multiply(stream, product, workspace);
  for (int64_t row = 0; row < product.m; row += most_rows) {
    Product part = product;
    part.m = std::min(most_rows, product.m - row);
    part.a = static_cast<const char*>(product.a) + row * product.lda * element_bytes(product.operands);
    part.c = static_cast<char*>(product.c) + row * product.ldc * element_bytes(product.result);
    RFN_TRY(multiply(stream, part, workspace));
  }
  return RFN_OK;
}

rfn_status load_gemm(rfn_context&, std::shared_ptr<Gemm>* out) {
  if (!library().missing.empty()) return fail(RFN_UNSUPPORTED, "CUDA is not available: %s", library().missing.c_str());
  auto gemm = std::make_shared<Gemm>();
  const cublasStatus_t status = gemm->create();
  if (status != CUBLAS_STATUS_SUCCESS) return failure(status, "rfn_context_create");
  *out = std::move(gemm);
  return RFN_OK;
}

}  // namespace rfn::cuda
