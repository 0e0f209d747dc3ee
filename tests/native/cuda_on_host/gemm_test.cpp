// Products of the CUDA backend (native/cuda/gemm.cpp) over the layer's cuBLASLt, and what that refuses.
#include "cuda/gemm.h"

#include <cublasLt.h>

#include <cmath>
#include <cstring>
#include <random>
#include <tuple>

#include "support.h"

namespace rfn::cuda {

// backend.cpp's, which needs every op.
rfn_status report(rfn_context&, cudaError_t error, const char* what) {
  cudaGetLastError();
  return fail(RFN_DEVICE_ERROR, "%s: CUDA says %s", what, cudaGetErrorName(error));
}

namespace {

using cuda_on_host::fail_call;
using cuda_on_host::last_report;

template <class T>
using DeviceArray = cuda_on_host::Device<T>;

std::vector<float> numbers(size_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> draw(-1, 1);
  std::vector<float> values(n);
  for (float& value : values) value = draw(engine);
  return values;
}

float rounded(int32_t precision, float x) {
  switch (precision) {
    case RFN_PRECISION_TF32:
      return cuda_on_host::bit_cast<float>(round_to_tf32(x));
    case RFN_PRECISION_BF16:
      return bf16_to_float(float_to_bf16(x));
    case RFN_PRECISION_F16:
      return f16_to_float(float_to_f16(x));
    default:
      return x;
  }
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class GemmTest : public cuda_on_host::CudaOnHost {
 protected:
  void SetUp() override {
    CudaOnHost::SetUp();
    context_.native = &device_;
    ASSERT_EQ(load_gemm(context_, &device_.gemm), RFN_OK) << last_error();
    ASSERT_CUDA(cudaStreamCreateWithFlags(&native_, cudaStreamNonBlocking));
    stream_ = {&context_, native_, true};
    workspace_ = std::make_unique<DeviceArray<char>>(kGemmWorkspace);
  }
  void TearDown() override {
    workspace_.reset();
    device_.gemm.reset();
    cudaStreamDestroy(native_);
    CudaOnHost::TearDown();
  }
  rfn_status multiply(const Product& p, int64_t most_rows = kMostProductRows) {
    return gemm(stream_, p, workspace_->get(), most_rows);
  }

  Device device_;
  rfn_context context_{};
  rfn_stream stream_{};
  cudaStream_t native_ = nullptr;
  std::unique_ptr<DeviceArray<char>> workspace_;
};

struct Case {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  int64_t padding;  // of every row
  int64_t offset;   // of every pointer, in floats
  Epilogue epilogue;
  float alpha, beta;
};

TEST_F(GemmTest, AnyLayoutAndPrecision_CloseToFloat64) {
  unsigned seed = 0;
  std::vector<Case> cases;
  for (const auto& [m, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 1}, {7, 5, 3}, {16, 8, 64}, {33, 130, 257}, {140, 4, 300}}) {
    for (int i = 0; i < 12; ++i) {
      cases.push_back({m, n, k, i % 2 != 0, i / 2 % 2 != 0,
                       i % 3 == 0   ? 0
                       : i % 3 == 1 ? 4
                                    : 1,
                       i % 4 == 3, static_cast<Epilogue>(i % 3), i < 6 ? 1.0f : -0.5f, i % 5 < 3 ? 0.0f : 1.0f});
    }
  }
  int reduced = 0;
  for (const Case& c : cases) {
    const int64_t lda = (c.transpose_a ? c.m : c.k) + c.padding, ldb = (c.transpose_b ? c.k : c.n) + c.padding,
                  ldc = c.n + c.padding;
    const auto values = [&](int64_t rows, int64_t ld) {
      return numbers(static_cast<size_t>(rows * ld + c.offset), ++seed);
    };
    const std::vector<float> a = values(c.transpose_a ? c.k : c.m, lda), b = values(c.transpose_b ? c.n : c.k, ldb),
                             bias = values(1, c.n);
    std::vector<float> before = values(c.m, ldc);
    if (c.beta == 0.0f) std::fill(before.begin(), before.end(), NAN);  // is not read then
    const DeviceArray<float> device_a(a), device_b(b), device_bias(bias);
    for (const int32_t precision : {RFN_PRECISION_F32, RFN_PRECISION_TF32, RFN_PRECISION_BF16, RFN_PRECISION_F16}) {
      context_.precision = precision;
      const int32_t used =
          c.offset == 0 && lda % 4 == 0 && ldb % 4 == 0 && ldc % 4 == 0 ? precision : RFN_PRECISION_F32;
      reduced += used != RFN_PRECISION_F32;
      const DeviceArray<float> device_c(before);
      const Product p{c.transpose_a ? Transpose::kYes : Transpose::kNo,
                      c.transpose_b ? Transpose::kYes : Transpose::kNo,
                      c.m,
                      c.n,
                      c.k,
                      device_a.get() + c.offset,
                      lda,
                      device_b.get() + c.offset,
                      ldb,
                      c.alpha,
                      c.beta,
                      device_c.get() + c.offset,
                      ldc,
                      c.epilogue,
                      device_bias.get() + c.offset};
      ASSERT_EQ(multiply(p), RFN_OK) << last_error() << "; " << last_report();
      const std::vector<float> after = device_c.read();
      for (int64_t i = 0; i < c.m; ++i) {
        for (int64_t j = 0; j < ldc; ++j) {
          const size_t at = static_cast<size_t>(c.offset + i * ldc + j);
          if (j >= c.n) {
            ASSERT_EQ(std::memcmp(&after[at], &before[at], sizeof(float)), 0)
                << "row " << i << ": written past its end";
            continue;
          }
          double sum = 0;
          for (int64_t l = 0; l < c.k; ++l) {
            const size_t left = static_cast<size_t>(c.offset + (c.transpose_a ? l * lda + i : i * lda + l));
            const size_t right = static_cast<size_t>(c.offset + (c.transpose_b ? j * ldb + l : l * ldb + j));
            sum += static_cast<double>(rounded(used, a[left])) * rounded(used, b[right]);
          }
          double expected = c.alpha * sum + (c.beta != 0.0f ? c.beta * before[at] : 0.0);
          if (c.epilogue != Epilogue::kNone) expected += bias[static_cast<size_t>(c.offset + j)];
          if (c.epilogue == Epilogue::kBiasRelu) expected = std::max(expected, 0.0);
          ASSERT_NEAR(after[at], expected, 1e-7 * (4 + static_cast<double>(c.k))) << "element " << i << ", " << j;
        }
      }
    }
  }
  EXPECT_GT(reduced, 30);  // the cases do reach the other precisions
}

TEST_F(GemmTest, LateAndCapturedCalls_SameBits) {
  const int64_t m = 70, n = 48, k = 300;
  const DeviceArray<float> a(numbers(m * k, 1)), b(numbers(k * n, 2)), bias(numbers(n, 3)), now(m * n), late(m * n),
      captured(m * n);
  const auto product = [&](const DeviceArray<float>& c) {
    return Product{Transpose::kNo,  Transpose::kNo, m, n, k, a.get(), k, b.get(), n, 1.0f, 0.0f, c.get(), n,
                   Epilogue::kBias, bias.get()};
  };
  ASSERT_EQ(multiply(product(now)), RFN_OK) << last_error();
  auto settings = cuda_on_host::settings();
  settings.late_streams = settings.hide_device_memory = true;
  cuda_on_host::set_settings(settings);
  ASSERT_EQ(multiply(product(late)), RFN_OK) << last_error();
  EXPECT_TRUE(std::isnan(late.read()[0]));  // nobody has waited for it
  ASSERT_CUDA(cudaStreamBeginCapture(native_, cudaStreamCaptureModeGlobal));
  ASSERT_EQ(multiply(product(captured)), RFN_OK) << last_error();
  cudaGraph_t graph;
  ASSERT_CUDA(cudaStreamEndCapture(native_, &graph));
  ASSERT_CUDA(cudaStreamSynchronize(native_));
  EXPECT_TRUE(std::isnan(captured.read()[0]));
  cudaGraphExec_t executable;
  ASSERT_CUDA(cudaGraphInstantiateWithFlags(&executable, graph));
  ASSERT_CUDA(cudaGraphLaunch(executable, native_));
  ASSERT_CUDA(cudaStreamSynchronize(native_));
  EXPECT_TRUE(same_bits(now.read(), late.read()));
  EXPECT_TRUE(same_bits(now.read(), captured.read()));
  EXPECT_CUDA(cudaGraphExecDestroy(executable));
  EXPECT_CUDA(cudaGraphDestroy(graph));
}

TEST_F(GemmTest, ManyRowsAndManyShapes) {
  const int64_t rows = (int64_t{1} << 21) + 3;
  {  // more rows than one call of the library takes
    const std::vector<float> values = numbers(static_cast<size_t>(rows), 5);
    const DeviceArray<float> a(values), b(std::vector<float>{2.0f}), c(static_cast<size_t>(rows));
    ASSERT_EQ(multiply({Transpose::kNo, Transpose::kNo, rows, 1, 1, a.get(), 1, b.get(), 1, 1.0f, 0.0f, c.get(), 1}),
              RFN_OK)
        << last_error();
    const std::vector<float> found = c.read();
    for (size_t i = 0; i < found.size(); ++i) ASSERT_EQ(found[i], 2 * values[i]) << i;
  }
  const int64_t most = 5000;  // more shapes than are remembered
  const DeviceArray<float> a(std::vector<float>(most, 3.0f)), b(std::vector<float>{2.0f}), c(most);
  for (int64_t m = 1; m <= most; ++m) {
    ASSERT_EQ(multiply({Transpose::kNo, Transpose::kNo, m, 1, 1, a.get(), 1, b.get(), 1, 1.0f, m == 1 ? 0.0f : 1.0f,
                        c.get() + most - m, 1}),
              RFN_OK);
    if (m > 1) continue;
    ASSERT_CUDA(cudaMemset(c.get(), 0, (most - 1) * sizeof(float)));  // the others add to their neighbours' results
  }
  const std::vector<float> found = c.read();
  for (int64_t i = 0; i < most; ++i) ASSERT_EQ(found[i], 6.0f * static_cast<float>(i + 1)) << i;
}

// A product of more rows than a call takes is that of its parts: each reads and writes its own rows, and the weights
// and the bias are the same for all.
TEST_F(GemmTest, RowsOfSeveralCalls_SameBitsAsOfOne) {
  constexpr int64_t kRows = 53, kColumns = 6, kTerms = 9, kLda = 11, kLdb = 13, kLdc = 8;
  const DeviceArray<float> a(numbers(kRows * kLda, 41)), b(numbers(kColumns * kLdb, 42)), bias(numbers(kColumns, 43));
  for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kBias, Epilogue::kBiasRelu}) {
    for (const float beta : {0.0f, 1.0f}) {
      const auto result = [&](int64_t most_rows) {
        const DeviceArray<float> c(numbers(kRows * kLdc, 44));
        const Product p{Transpose::kNo, Transpose::kYes, kRows, kColumns, kTerms,    a.get(), kLda, b.get(), kLdb, 1.5f,
                        beta,           c.get(),         kLdc,  epilogue, bias.get()};
        EXPECT_EQ(multiply(p, most_rows), RFN_OK) << last_error() << "; " << last_report();
        return c.read();
      };
      const std::vector<float> whole = result(kRows);
      for (const int64_t most_rows : {1, 16, 27, 52}) EXPECT_TRUE(same_bits(result(most_rows), whole)) << most_rows;
    }
  }
  // op(A) of a transposed A has A's columns as its rows, which no limit concerns.
  const auto transposed = [&](int64_t most_rows) {
    const DeviceArray<float> c(numbers(kLda * kLdc, 45));
    EXPECT_EQ(multiply({Transpose::kYes, Transpose::kNo, kLda, kColumns, kColumns, a.get(), kLda, b.get(), kLdb, 1.0f,
                        1.0f, c.get(), kLdc},
                       most_rows),
              RFN_OK)
        << last_error();
    return c.read();
  };
  EXPECT_TRUE(same_bits(transposed(2), transposed(kRows)));
}

TEST_F(GemmTest, ProductsThatDifferInOneThing_AreChosenApart) {
  const DeviceArray<float> a(numbers(64, 1)), b(numbers(64, 2)), bias(numbers(4, 3)), c(64);
  const Product plain{Transpose::kNo,  Transpose::kNo, 4, 4, 4, a.get(), 4, b.get(), 4, 1.0f, 0.0f, c.get(), 4,
                      Epilogue::kNone, bias.get()};
  const auto result = [&](const Product& p) {
    EXPECT_CUDA(cudaMemset(c.get(), 0, 64 * sizeof(float)));
    EXPECT_EQ(multiply(p), RFN_OK) << last_error() << "; " << last_report();
    return c.read();
  };
  // After the plain product as without any before it.
  const auto differently = [&](const std::function<void(Product&)>& change, int32_t precision = RFN_PRECISION_F32) {
    Product p = plain;
    change(p);
    std::vector<float> results[2];
    for (std::vector<float>& r : results) {
      ASSERT_EQ(load_gemm(context_, &device_.gemm), RFN_OK);
      if (&r == &results[1]) result(plain);
      context_.precision = precision;
      r = result(p);
      context_.precision = RFN_PRECISION_F32;
    }
    EXPECT_TRUE(same_bits(results[0], results[1]));
  };
  for (int64_t Product::*size : {&Product::m, &Product::n, &Product::k}) differently([=](Product& p) { p.*size = 3; });
  for (int64_t Product::*ld : {&Product::lda, &Product::ldb, &Product::ldc})
    differently([=](Product& p) { p.*ld = 8; });
  differently([](Product& p) { p.transpose_a = Transpose::kYes; });
  differently([](Product& p) { p.transpose_b = Transpose::kYes; });
  differently([](Product& p) { p.a = static_cast<const float*>(p.a) + 1; });
  differently([](Product& p) { p.b = static_cast<const float*>(p.b) + 1; });
  differently([](Product& p) { p.c = static_cast<float*>(p.c) + 1; });
  differently([](Product& p) { p.epilogue = Epilogue::kBias; });
  differently([](Product& p) { p.epilogue = Epilogue::kBiasRelu; });
  differently([](Product&) {}, RFN_PRECISION_TF32);
}

TEST_F(GemmTest, EmptyAndWrongSizes) {
  EXPECT_EQ(multiply({Transpose::kNo, Transpose::kNo, 0, 4, 4}), RFN_OK);
  EXPECT_EQ(multiply({Transpose::kNo, Transpose::kNo, 4, 0, 4}), RFN_OK);
  EXPECT_EQ(multiply({Transpose::kNo, Transpose::kNo, 4, 4, 0}), RFN_INTERNAL);
}

TEST_F(GemmTest, EveryFailureOfTheDevice_IsReportedAndPasses) {
  const DeviceArray<float> a(numbers(64, 1)), c(64);
  const Product p{Transpose::kNo,  Transpose::kNo, 8, 8, 8, a.get(), 8, a.get(), 8, 1.0f, 0.0f, c.get(), 8,
                  Epilogue::kBias, a.get() + 1};
  for (const auto& [error, status] :
       {std::pair(cudaErrorMemoryAllocation, RFN_OUT_OF_MEMORY), std::pair(cudaErrorUnknown, RFN_DEVICE_ERROR)}) {
    device_.gemm.reset();
    fail_call(1, error);
    EXPECT_EQ(load_gemm(context_, &device_.gemm), status);
    EXPECT_NE(std::string(last_error()).find("cuBLASLt says"), std::string::npos) << last_error();
    EXPECT_EQ(device_.gemm, nullptr);
    ASSERT_EQ(load_gemm(context_, &device_.gemm), RFN_OK);
    for (int call = 1; call <= 2; ++call) {  // the choice of an algorithm; the product
      fail_call(call, error);
      EXPECT_EQ(multiply(p), status);
      EXPECT_NE(std::string(last_error()).find("product [8,8] x [8,8]"), std::string::npos) << last_error();
      if (call == 1) continue;
      fail_call(0, cudaSuccess);
    }
    fail_call(2, error);  // the bias that the product can't take along
    EXPECT_EQ(multiply(p), RFN_DEVICE_ERROR);
    fail_call(0, cudaSuccess);
    EXPECT_EQ(multiply(p), RFN_OK) << last_error();
  }
}

TEST_F(GemmTest, MatrixPastItsMemory_Faults) {
  const DeviceArray<float> a(64), b(64), c(63);
  EXPECT_EQ(multiply({Transpose::kNo, Transpose::kNo, 8, 8, 8, a.get(), 8, b.get(), 8, 1.0f, 0.0f, c.get(), 8}),
            RFN_DEVICE_ERROR);
  EXPECT_NE(std::string(last_error()).find("cudaErrorIllegalAddress"), std::string::npos) << last_error();
  EXPECT_NE(last_report().find("D, 256 bytes, does not lie in memory of the device"), std::string::npos)
      << last_report();
}

// ---- the stand-in by itself ---------------------------------------------------------------------

// One product [rows, rows] = A B with k terms, as gemm.cpp sets it up.
class CublasLtTest : public cuda_on_host::CudaOnHost {
 protected:
  void SetUp() override {
    CudaOnHost::SetUp();
    ASSERT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatmulPreferenceCreate(&preference_), CUBLAS_STATUS_SUCCESS);
    for (int i = CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES; i <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES; ++i)
      prefer(i, uint32_t{16});
    describe(CUBLAS_COMPUTE_32F);
    layouts(kRows, kTerms, kRows);
  }
  void TearDown() override {
    forget();
    cublasLtMatmulPreferenceDestroy(preference_);
    cublasLtDestroy(handle_);
    CudaOnHost::TearDown();
  }
  void forget() {
    cublasLtMatmulDescDestroy(desc_);
    for (const cublasLtMatrixLayout_t layout : {a_, b_, d_}) cublasLtMatrixLayoutDestroy(layout);
    desc_ = nullptr;
    a_ = b_ = d_ = nullptr;
  }
  void describe(cublasComputeType_t compute) {
    cublasLtMatmulDescDestroy(desc_);
    ASSERT_EQ(cublasLtMatmulDescCreate(&desc_, compute, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  }
  void layouts(uint64_t rows, uint64_t terms, int64_t ld) {
    for (const cublasLtMatrixLayout_t layout : {a_, b_, d_}) cublasLtMatrixLayoutDestroy(layout);
    ASSERT_EQ(cublasLtMatrixLayoutCreate(&a_, CUDA_R_32F, rows, terms, ld), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatrixLayoutCreate(&b_, CUDA_R_32F, terms, rows, static_cast<int64_t>(terms)),
              CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasLtMatrixLayoutCreate(&d_, CUDA_R_32F, rows, rows, ld), CUBLAS_STATUS_SUCCESS);
  }
  template <class T>
  void prefer(int attribute, T value) {
    ASSERT_EQ(cublasLtMatmulPreferenceSetAttribute(
                  preference_, static_cast<cublasLtMatmulPreferenceAttributes_t>(attribute), &value, sizeof(value)),
              CUBLAS_STATUS_SUCCESS);
  }
  cublasStatus_t choose() {
    int found = 0;
    return cublasLtMatmulAlgoGetHeuristic(handle_, desc_, a_, b_, d_, d_, preference_, 1, &choice_, &found);
  }
  cublasStatus_t multiply(const float* a, const float* b, float* d, void* workspace = nullptr, size_t bytes = 0) {
    const float one = 1, zero = 0;
    return cublasLtMatmul(handle_, desc_, &one, a, a_, b, b_, &zero, d, d_, d, d_, &choice_.algo, workspace, bytes,
                          nullptr);
  }

  static constexpr uint64_t kRows = 8, kTerms = 300;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  cublasLtMatmulHeuristicResult_t choice_{};
};

TEST_F(CublasLtTest, ReductionInPlace_ChangesFromCallToCall) {
  const DeviceArray<float> a(numbers(kRows * kTerms, 1)), b(numbers(kRows * kTerms, 2)), first(kRows * kRows),
      second(kRows * kRows);
  for (const uint32_t mask : {CUBLASLT_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE}) {
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, mask);
    ASSERT_EQ(choose(), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(multiply(a.get(), b.get(), first.get()), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(multiply(a.get(), b.get(), second.get()), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(same_bits(first.read(), second.read()), mask == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
  }
}

TEST_F(CublasLtTest, Workspace_IsNeededAndOverwritten) {
  const DeviceArray<float> a(numbers(kRows * kTerms, 1)), d(kRows * kRows);
  const DeviceArray<char> workspace(std::vector<char>(4096, 'x'));
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{4096});
  ASSERT_EQ(choose(), CUBLAS_STATUS_SUCCESS);
  const size_t bytes = choice_.workspaceSize;
  ASSERT_GT(bytes, 0u);
  EXPECT_EQ(multiply(a.get(), a.get(), d.get()), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(multiply(a.get(), a.get(), d.get(), workspace.get(), bytes - 1), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(multiply(a.get(), a.get(), d.get(), workspace.get() + 1, bytes), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(multiply(a.get(), a.get(), d.get(), workspace.get(), bytes), CUBLAS_STATUS_SUCCESS);
  std::vector<char> expected(4096, 'x');
  std::fill_n(expected.begin(), bytes, static_cast<char>(0xff));
  EXPECT_EQ(workspace.read(), expected);
}

TEST_F(CublasLtTest, WrongProblems_Refused) {
  const DeviceArray<float> a(numbers(4 * kRows * kTerms, 1)), d(4 * kRows * kRows);
  layouts(kRows, kTerms, kRows - 1);
  EXPECT_EQ(choose(), CUBLAS_STATUS_INVALID_VALUE);
  layouts(kRows, kTerms, kRows);
  ASSERT_EQ(choose(), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(multiply(a.get() + 1, a.get(), d.get()), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(multiply(a.get(), a.get() + 2, d.get()), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(multiply(a.get(), a.get(), d.get() + 1), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(multiply(a.get(), a.get(), d.get()), CUBLAS_STATUS_SUCCESS);
  layouts(kRows, kTerms, 2 * kRows);  // another problem than the algorithm was chosen for
  EXPECT_EQ(multiply(a.get(), a.get(), d.get()), CUBLAS_STATUS_INVALID_VALUE);
  layouts(kRows, kTerms, kRows);
  describe(CUBLAS_COMPUTE_32F_FAST_TF32);
  EXPECT_EQ(multiply(a.get(), a.get(), d.get()), CUBLAS_STATUS_INVALID_VALUE);
  layouts(kRows, kTerms, kRows + 1);  // rows that tensor cores can't load
  EXPECT_EQ(choose(), CUBLAS_STATUS_NOT_SUPPORTED);
  const uint32_t bias = CUBLASLT_EPILOGUE_BIAS;
  ASSERT_EQ(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, sizeof(bias)),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(choose(), CUBLAS_STATUS_INVALID_VALUE);  // no bias
  EXPECT_EQ(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, 8),
            CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(CublasLtTest, MisalignedBias_Faults) {
  const DeviceArray<float> a(numbers(kRows * kTerms, 1)), d(kRows * kRows);
  const uint32_t bias = CUBLASLT_EPILOGUE_BIAS;
  const float* pointer = a.get() + 1;
  ASSERT_EQ(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, sizeof(bias)),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &pointer, sizeof(pointer)),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(choose(), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(multiply(a.get(), a.get(), d.get()), CUBLAS_STATUS_EXECUTION_FAILED);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorMisalignedAddress);
}

TEST_F(CublasLtTest, HandleThatIsKept_IsALiveObject) {
  const auto handles = [] {
    int count = 0;
    for (const auto& object : cuda_on_host::live_objects()) count += object.kind == "cuBLASLt handle";
    return count;
  };
  EXPECT_EQ(handles(), 1);
  EXPECT_EQ(cublasLtDestroy(handle_), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(handles(), 0);
  EXPECT_EQ(choose(), CUBLAS_STATUS_NOT_INITIALIZED);
  ASSERT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
}

}  // namespace
}  // namespace rfn::cuda
