// The right kernels pass under every schedule, with the same bits; each mutated one is noticed by some, and by all
// where races are checked.
#include "kernels.cuh"
#include "support.h"

namespace rfn::cuda_on_host {
namespace {

using cuda::Bug;

constexpr uint64_t kSeeds = 12;

enum class Outcome { Right, Wrong, Reported };

template <Bug bug>
bool matmul() {
  constexpr int n = 64;
  std::vector<float> a(n * n), b(n * n), expected(n * n);
  for (int i = 0; i < n * n; ++i) {
    a[static_cast<size_t>(i)] = static_cast<float>(i % 7 - 3);
    b[static_cast<size_t>(i)] = static_cast<float>(i % 5 - 2);
  }
  for (size_t i = 0; i < n; ++i)
    for (size_t k = 0; k < n; ++k)
      for (size_t j = 0; j < n; ++j) expected[i * n + j] += a[i * n + k] * b[k * n + j];
  const Device<float> da(a), db(b), dc(n * n);
  const dim3 grid(n / cuda::kTile, n / cuda::kTile), block(cuda::kTile, cuda::kTile);
  static_cast<void>(RFN_LAUNCH(cuda::matmul_kernel<bug>, grid, block, 0, nullptr, da.get(), db.get(), dc.get(), n));
  return dc.read() == expected;
}

template <Bug bug>
bool reduce() {
  constexpr int n = 5000, blocks = 4;
  std::vector<int> values(n);
  int expected = 0;
  for (int i = 0; i < n; ++i) expected += values[static_cast<size_t>(i)] = i % 13;
  const Device<int> in(values), sums(blocks);
  static_cast<void>(RFN_LAUNCH(cuda::reduce_kernel<bug>, blocks, 256, 0, nullptr, in.get(), sums.get(), n));
  const std::vector<int> found = sums.read();
  return !found.empty() && found[0] + found[1] + found[2] + found[3] == expected;
}

template <Bug bug>
bool histogram() {
  constexpr int n = 3000;
  std::vector<int> values(n), expected(64);
  for (int i = 0; i < n; ++i) ++expected[static_cast<size_t>(values[static_cast<size_t>(i)] = (i * i * 7 + i) % 64)];
  const Device<int> in(values), bins(std::vector<int>(64, 0));
  static_cast<void>(RFN_LAUNCH(cuda::histogram_kernel<bug>, 4, 256, 0, nullptr, in.get(), bins.get(), n));
  return bins.read() == expected;
}

template <Bug bug>
bool warp_reverse() {
  std::vector<int> values(512), expected(512);
  for (size_t i = 0; i < 512; ++i) {
    values[i] = static_cast<int>(i * i % 1000);
    expected[i] = values[i] + 6;  // reversed an even number of times, rounds 0 to 3 added
  }
  const Device<int> data(values);
  static_cast<void>(RFN_LAUNCH(cuda::warp_reverse_kernel<bug>, 2, 256, 0, nullptr, data.get()));
  return data.read() == expected;
}

template <Bug bug>
bool gemm() {
  constexpr int m = 128, n = 64, k = 96;
  std::vector<uint16_t> a(m * k), b(n * k);
  for (int i = 0; i < m * k; ++i) a[static_cast<size_t>(i)] = cuda::float_to_bf16(static_cast<float>(i * 7 % 11 - 5));
  for (int i = 0; i < n * k; ++i) b[static_cast<size_t>(i)] = cuda::float_to_bf16(static_cast<float>(i * 5 % 13 - 6));
  std::vector<float> expected(m * n);
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j < n; ++j)
      for (size_t l = 0; l < k; ++l)
        expected[i * n + j] += cuda::bf16_to_float(a[i * k + l]) * cuda::bf16_to_float(b[j * k + l]);
  const Device<uint16_t> da(a), db(b);
  const Device<float> dc(m * n);
  static_cast<void>(RFN_LAUNCH((cuda::gemm_kernel<64, 64, 32, 32, 32, bug>), dim3(n / 64, m / 64), 128,
                               2 * (64 + 64) * 32 * 2, nullptr, da.get(), db.get(), dc.get(), n, k));
  return dc.read() == expected;
}

template <Bug bug>
bool row_sum() {
  constexpr int rows = 10;
  std::vector<float> values(rows * 64), expected(rows);
  std::vector<int> lengths(rows);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 17);
  for (size_t row = 0; row < rows; ++row) {
    lengths[row] = static_cast<int>(row * 6 % 64);
    for (size_t i = 0; i < static_cast<size_t>(lengths[row]); ++i) expected[row] += values[row * 64 + i];
  }
  const Device<float> in(values), out(rows);
  const Device<int> dl(lengths);
  static_cast<void>(
      RFN_LAUNCH(cuda::row_sum_kernel<bug>, (rows + 3) / 4, 128, 0, nullptr, in.get(), dl.get(), out.get(), rows));
  return out.read() == expected;
}

template <Bug bug>
bool pipeline() {
  constexpr int steps = 6;
  std::vector<int> values(steps * 32), expected(steps * 32);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i * 3);
  for (size_t i = 0; i < values.size(); ++i) expected[i] = 2 * values[i / 32 * 32 + 31 - i % 32];
  const Device<int> in(values), out(steps * 32);
  static_cast<void>(RFN_LAUNCH(cuda::pipeline_kernel<bug>, 1, 64, 0, nullptr, in.get(), out.get(), steps));
  return out.read() == expected;
}

struct Case {
  const char* name;
  bool (*run)();
  const char*
      report;  // nullptr: a right kernel; "": some seed notices; else every seed ends in an error with these words
};
std::ostream& operator<<(std::ostream& stream, const Case& c) { return stream << c.name; }

const Case kCases[] = {
    {"Matmul", matmul<Bug::None>, nullptr},
    {"Matmul_NoBarrierAfterLoad", matmul<Bug::First>, ""},
    {"Matmul_NoBarrierBeforeNextLoad", matmul<Bug::Second>, ""},
    {"Matmul_BarrierInTwoBranches", matmul<Bug::Third>, "divergent barrier"},
    {"Reduce", reduce<Bug::None>, nullptr},
    {"Reduce_NoBarrier", reduce<Bug::First>, ""},
    {"Reduce_FullMaskInBranch", reduce<Bug::Second>, "deadlock"},
    {"Reduce_ReadsOnePastTheEnd", reduce<Bug::Third>, "byte 20000, past the end of 20000 bytes of device memory"},
    {"Histogram", histogram<Bug::None>, nullptr},
    {"Histogram_NotCleared", histogram<Bug::First>, ""},
    {"Histogram_NoBarrierAfterClearing", histogram<Bug::Second>, ""},
    {"Histogram_AdditionNotAtomic", histogram<Bug::Third>, ""},
    {"WarpReverse", warp_reverse<Bug::None>, nullptr},
    {"WarpReverse_NoSyncAfterWrite", warp_reverse<Bug::First>, ""},
    {"WarpReverse_NoSyncAfterRead", warp_reverse<Bug::Second>, ""},
    {"WarpReverse_HalfMask", warp_reverse<Bug::Third>, "not in its own mask"},
    {"Gemm", gemm<Bug::None>, nullptr},
    {"Gemm_WaitsForTooLittle", gemm<Bug::First>, ""},
    {"Gemm_NoTrailingBarrier", gemm<Bug::Second>, ""},
    {"Gemm_NoBarrierAfterWait", gemm<Bug::Third>, ""},
    {"RowSum", row_sum<Bug::None>, nullptr},
    {"RowSum_MaskRemoved", row_sum<Bug::First>, ""},
    {"RowSum_NotCommitted", row_sum<Bug::Second>, ""},
    {"RowSum_NoSyncwarp", row_sum<Bug::Third>, ""},
    {"Pipeline", pipeline<Bug::None>, nullptr},
    {"Pipeline_ConsumerDoesNotWait", pipeline<Bug::First>, ""},
    {"Pipeline_ProducerDoesNotWait", pipeline<Bug::Second>, ""},
    {"Pipeline_CountsDiffer", pipeline<Bug::Third>, "named barrier 1"},
};

class Mutation : public CudaOnHost, public testing::WithParamInterface<Case> {};

TEST_P(Mutation, IsNoticedBySomeSeedAndTheRightKernelByNone) {
  const Case& c = GetParam();
  std::string outcomes, report;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    reset();
    set_seed(seed);
    const bool right = c.run();
    if (!last_report().empty()) report = last_report();
    outcomes += right ? '.' : last_report().empty() ? 'W' : 'E';
  }
  RecordProperty("outcomes", outcomes);
  SCOPED_TRACE(outcomes + " " + report);
  if (c.report == nullptr) {
    EXPECT_EQ(outcomes, std::string(kSeeds, '.'));
  } else if (*c.report == '\0') {
    EXPECT_NE(outcomes.find_first_of("WE"), std::string::npos);
    if (race_checking()) {  // every schedule notices then
      EXPECT_EQ(outcomes.find('.'), std::string::npos);
    }
  } else {
    EXPECT_EQ(outcomes, std::string(kSeeds, 'E'));
    EXPECT_NE(report.find(c.report), std::string::npos);
    EXPECT_NE(report.find("block ("), std::string::npos);
    EXPECT_NE(report.find("thread ("), std::string::npos);
  }
}
INSTANTIATE_TEST_SUITE_P(, Mutation, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace rfn::cuda_on_host
