// Tensor cores, ldmatrix, cp.async and narrow formats. Layouts are checked bit for bit with small integers.
#include <cmath>

#include "support.h"

namespace rfn::cuda_on_host {
namespace {

using namespace rfn::cuda;

class TensorCore : public CudaOnHost, public testing::WithParamInterface<uint64_t> {
  void SetUp() override {
    CudaOnHost::SetUp();
    set_seed(GetParam());
  }
};
INSTANTIATE_TEST_SUITE_P(, TensorCore, testing::Values(0, 1, 2, 3, 5));

// Values whose products and sums float32 holds exactly, different at every place.
float a_value(int i, int k) { return static_cast<float>((i * 31 + k * 7) % 23 - 11); }
float b_value(int k, int j) { return static_cast<float>((k * 13 + j * 5) % 19 - 9); }
float c_value(int i, int j) { return static_cast<float>(i * 8 + j); }

template <bool Half>
__global__ void mma_k16_kernel(float* out) {
  const int lane = threadIdx.x, r = lane / 4, c = lane % 4 * 2;
  const auto pack = [](float low, float high) { return Half ? pack_f16(low, high) : pack_bf16(low, high); };
  const uint32_t a[4] = {pack(a_value(r, c), a_value(r, c + 1)), pack(a_value(r + 8, c), a_value(r + 8, c + 1)),
                         pack(a_value(r, c + 8), a_value(r, c + 9)),
                         pack(a_value(r + 8, c + 8), a_value(r + 8, c + 9))};
  const uint32_t b[2] = {pack(b_value(c, r), b_value(c + 1, r)), pack(b_value(c + 8, r), b_value(c + 9, r))};
  float d[4] = {c_value(r, c), c_value(r, c + 1), c_value(r + 8, c), c_value(r + 8, c + 1)};
  if (Half) {
    mma_m16n8k16_f16(d, a, b);
  } else {
    mma_m16n8k16_bf16(d, a, b);
  }
  out[r * 8 + c] = d[0];
  out[r * 8 + c + 1] = d[1];
  out[(r + 8) * 8 + c] = d[2];
  out[(r + 8) * 8 + c + 1] = d[3];
}

__global__ void mma_k8_kernel(float* out) {
  const int lane = threadIdx.x, r = lane / 4, c = lane % 4;
  const uint32_t a[4] = {round_to_tf32(a_value(r, c)), round_to_tf32(a_value(r + 8, c)),
                         round_to_tf32(a_value(r, c + 4)), round_to_tf32(a_value(r + 8, c + 4))};
  const uint32_t b[2] = {round_to_tf32(b_value(c, r)), round_to_tf32(b_value(c + 4, r))};
  float d[4] = {c_value(r, 2 * c), c_value(r, 2 * c + 1), c_value(r + 8, 2 * c), c_value(r + 8, 2 * c + 1)};
  mma_m16n8k8_tf32(d, a, b);
  out[r * 8 + 2 * c] = d[0];
  out[r * 8 + 2 * c + 1] = d[1];
  out[(r + 8) * 8 + 2 * c] = d[2];
  out[(r + 8) * 8 + 2 * c + 1] = d[3];
}

std::vector<float> product(int depth) {
  std::vector<float> d(16 * 8);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      d[static_cast<size_t>(i * 8 + j)] = c_value(i, j);
      for (int k = 0; k < depth; ++k) d[static_cast<size_t>(i * 8 + j)] += a_value(i, k) * b_value(k, j);
    }
  return d;
}

TEST_P(TensorCore, Mma_EveryElementIsInItsPlace) {
  const Device<float> out(16 * 8);
  ASSERT_CUDA(RFN_LAUNCH(mma_k16_kernel<true>, 1, 32, 0, nullptr, out.get()));
  EXPECT_EQ(out.read(), product(16));
  ASSERT_CUDA(RFN_LAUNCH(mma_k16_kernel<false>, 1, 32, 0, nullptr, out.get()));
  EXPECT_EQ(out.read(), product(16));
  ASSERT_CUDA(RFN_LAUNCH(mma_k8_kernel, 1, 32, 0, nullptr, out.get()));
  EXPECT_EQ(out.read(), product(8));
}

TEST_P(TensorCore, Mma_BelowItsCapabilityIsAnIllegalInstruction) {
  Settings s = settings();
  s.capability = 75;
  set_settings(s);
  const Device<float> out(16 * 8);
  EXPECT_EQ(RFN_LAUNCH(mma_k8_kernel, 1, 32, 0, nullptr, out.get()), cudaErrorIllegalInstruction);
  EXPECT_NE(last_report().find("needs compute capability 8.0"), std::string::npos) << last_report();
}

// Matrix m has element 100 m + 10 row + column. Matrices lie one after another, or misplaced by `shift` bytes.
__global__ void ldmatrix_kernel(uint32_t* out, int shift) {
  RFN_SHARED(matrices, uint16_t[4 * 64 + 8]);
  const int lane = threadIdx.x;
  for (int i = lane; i < 4 * 64; i += 32) matrices[i] = static_cast<uint16_t>(i / 64 * 100 + i % 64 / 8 * 10 + i % 8);
  __syncwarp();
  const auto row = [&](int count) {
    return reinterpret_cast<const char*>(matrices + (lane % (8 * count)) * 8) + shift;
  };
  uint32_t x1[1], x2[2], x4[4], t1[1], t2[2], t4[4];
  ldmatrix_x4(x4, row(4));
  ldmatrix_x2(x2, row(2));
  ldmatrix_x1(x1, row(1));
  ldmatrix_x4_trans(t4, row(4));
  ldmatrix_x2_trans(t2, row(2));
  ldmatrix_x1_trans(t1, row(1));
  const uint32_t all[14] = {x1[0], x2[0], x2[1], x4[0], x4[1], x4[2], x4[3],
                            t1[0], t2[0], t2[1], t4[0], t4[1], t4[2], t4[3]};
  for (int i = 0; i < 14; ++i) out[i * 32 + lane] = all[i];
}

TEST_P(TensorCore, Ldmatrix_EveryElementIsInItsPlace) {
  const Device<uint32_t> out(14 * 32);
  ASSERT_CUDA(RFN_LAUNCH(ldmatrix_kernel, 1, 32, 0, nullptr, out.get(), 0));
  const auto found = out.read();
  const int matrix[14] = {0, 0, 1, 0, 1, 2, 3, 0, 0, 1, 0, 1, 2, 3};
  for (int i = 0; i < 14; ++i) {
    for (int lane = 0; lane < 32; ++lane) {
      const int r = lane / 4, c = lane % 4 * 2, base = matrix[i] * 100;
      const int low = base + (i < 7 ? r * 10 + c : c * 10 + r),
                high = base + (i < 7 ? r * 10 + c + 1 : (c + 1) * 10 + r);
      EXPECT_EQ(found[static_cast<size_t>(i * 32 + lane)], static_cast<uint32_t>(low | high << 16))
          << i << " lane " << lane;
    }
  }
}

TEST_P(TensorCore, Ldmatrix_MisalignedRowIsReported) {
  const Device<uint32_t> out(14 * 32);
  EXPECT_EQ(RFN_LAUNCH(ldmatrix_kernel, 1, 32, 0, nullptr, out.get(), 8), cudaErrorMisalignedAddress);
}

// ---- cp.async -----------------------------------------------------------------------------------

// Each thread copies 4, 8 and 16 bytes, and 16 of which only `valid` are read, in two groups.
__global__ void cp_async_kernel(const int* in, int* out, int valid) {
  RFN_SHARED(staged, int[32][12]);
  int* const mine = staged[threadIdx.x];
  const int* const from = in + threadIdx.x * 12;
  cp_async<4>(mine, from);
  cp_async<8>(mine + 2, from + 2);
  cp_async_commit();
  cp_async<16>(mine + 4, from + 4);
  cp_async_zfill<16>(mine + 8, from + 8, valid);
  cp_async_commit();
  cp_async_wait<1>();
  out[threadIdx.x * 12] = mine[0];
  out[threadIdx.x * 12 + 1] = 0;
  out[threadIdx.x * 12 + 2] = mine[2];
  out[threadIdx.x * 12 + 3] = mine[3];
  cp_async_wait<0>();
  for (int i = 4; i < 12; ++i) out[threadIdx.x * 12 + i] = mine[i];
}

TEST_P(TensorCore, CpAsync_LandsAtTheLatestAtTheWaitThatCoversIt) {
  std::vector<int> values(32 * 12);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i + 1);
  const Device<int> in(values), out(32 * 12);
  for (const int capability : {70, 80}) {
    Settings s = settings();
    s.capability = capability;
    set_settings(s);
    for (const int valid : {0, 4, 16}) {
      ASSERT_CUDA(RFN_LAUNCH(cp_async_kernel, 1, 32, 0, nullptr, in.get(), out.get(), valid));
      const auto found = out.read();
      for (size_t i = 0; i < values.size(); ++i) {
        const int place = static_cast<int>(i % 12);
        const bool zero = place == 1 || (place >= 8 && (place - 8) * 4 >= valid);
        ASSERT_EQ(found[i], zero ? 0 : values[i]) << i;
      }
    }
  }
}

// What a thread sees of a copy it has not waited for.
__global__ void unwaited_kernel(const int* in, int* out) {
  RFN_SHARED(staged, int[4]);
  cp_async<16>(staged, in);
  out[blockIdx.x] = staged[0];
}

TEST_F(CudaOnHost, CpAsync_WithoutWaitLandsEarlyOrLate) {
  const Device<int> in(std::vector<int>{7, 7, 7, 7}), out(64);
  const auto count_early = [&](uint64_t seed) {
    set_seed(seed);
    EXPECT_EQ(RFN_LAUNCH(unwaited_kernel, 64, 1, 0, nullptr, in.get(), out.get()), cudaSuccess);
    const auto found = out.read();
    for (const int value : found) EXPECT_TRUE(value == 7 || value == -1);
    return std::count(found.begin(), found.end(), 7);
  };
  EXPECT_EQ(count_early(0), 0);
  EXPECT_EQ(count_early(1), 64);
  EXPECT_GT(count_early(2), 8);
  EXPECT_LT(count_early(2), 56);
}

__global__ void misaligned_copy_kernel(const int* in) {
  RFN_SHARED(staged, int[8]);
  cp_async<16>(staged, in + 1);
}
__global__ void wild_copy_kernel(const int* in, int* out) { cp_async<16>(out, in); }

TEST_P(TensorCore, CpAsync_BadAddressesAreReported) {
  {
    const Device<int> in(8);
    EXPECT_EQ(RFN_LAUNCH(misaligned_copy_kernel, 1, 1, 0, nullptr, in.get()), cudaErrorMisalignedAddress);
  }
  reset();
  const Device<int> in(8), out(8);
  EXPECT_EQ(RFN_LAUNCH(wild_copy_kernel, 1, 1, 0, nullptr, in.get(), out.get()), cudaErrorIllegalAddress);
  EXPECT_NE(last_report().find("destination outside shared memory"), std::string::npos) << last_report();
}

// ---- formats ------------------------------------------------------------------------------------

TEST_F(CudaOnHost, F16_EveryValueSurvivesAndEveryFloatRoundsToTheNearest) {
  for (int i = 0; i < 0x10000; ++i) {
    const auto half = static_cast<uint16_t>(i);
    const float value = f16_to_float(half);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(f16_to_float(float_to_f16(value))));
    } else {
      ASSERT_EQ(float_to_f16(value), half);
    }
    // Halfway to the next magnitude rounds to the even one, a little more or less to the nearer one.
    if ((half & 0x7fff) >= 0x7bff) continue;
    const float next = f16_to_float(static_cast<uint16_t>(half + 1)), middle = value + (next - value) / 2;
    const uint16_t even = half % 2 == 0 ? half : static_cast<uint16_t>(half + 1);
    ASSERT_EQ(float_to_f16(middle), even) << i;
    ASSERT_EQ(float_to_f16(std::nextafter(middle, value)), half) << i;
    ASSERT_EQ(float_to_f16(std::nextafter(middle, next)), half + 1) << i;
  }
  EXPECT_EQ(float_to_f16(65519.99f), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_f16(-1e30f), 0xfc00);
  EXPECT_EQ(float_to_f16(-INFINITY), 0xfc00);
}

TEST_F(CudaOnHost, Bf16AndTf32_RoundToTheNearest) {
  EXPECT_EQ(float_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(float_to_bf16(__uint_as_float(0x3f808000u)), 0x3f80);  // tie to even
  EXPECT_EQ(float_to_bf16(__uint_as_float(0x3f818000u)), 0x3f82);
  EXPECT_EQ(float_to_bf16(__uint_as_float(0x3f808001u)), 0x3f81);
  EXPECT_EQ(float_to_bf16(3.4e38f), 0x7f80);
  EXPECT_EQ(float_to_bf16(std::nanf("")), 0x7fff);
  EXPECT_EQ(round_to_tf32(1.0f), 0x3f800000u);
  EXPECT_EQ(round_to_tf32(__uint_as_float(0x3f801000u)), 0x3f802000u);  // tie away from zero
  EXPECT_EQ(round_to_tf32(__uint_as_float(0xbf801000u)), 0xbf802000u);
  EXPECT_EQ(round_to_tf32(__uint_as_float(0x3f800fffu)), 0x3f800000u);
  EXPECT_EQ(round_to_tf32(INFINITY), 0x7f800000u);
}

}  // namespace
}  // namespace rfn::cuda_on_host
