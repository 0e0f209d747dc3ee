// Barriers, warp collectives, atomics, shared memory and number functions against what the CUDA C++ Programming Guide
// says of them.
#include "support.h"

namespace rfn::cuda_on_host {
namespace {

class Language : public CudaOnHost {};
class LanguageEachSeed : public CudaOnHost, public testing::WithParamInterface<uint64_t> {
  void SetUp() override {
    CudaOnHost::SetUp();
    set_seed(GetParam());
  }
};
INSTANTIATE_TEST_SUITE_P(, LanguageEachSeed, testing::Values(0, 1, 2, 3, 4, 5));

// ---- places -------------------------------------------------------------------------------------

__global__ void coordinates_kernel(int* out) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = block * 1000 + thread;
}

TEST_P(LanguageEachSeed, Coordinates_CoverGridAndBlockOnce) {
  const Device<int> out(2 * 3 * 4 * 5 * 3 * 2);
  ASSERT_CUDA(RFN_LAUNCH(coordinates_kernel, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, out.get()));
  const auto found = out.read();
  for (int i = 0; i < 720; ++i) ASSERT_EQ(found[static_cast<size_t>(i)], i / 30 * 1000 + i % 30);
  EXPECT_EQ(statistics().blocks, 24u);
  EXPECT_EQ(statistics().threads, 720u);
}

TEST_F(Language, ThreadsThatNeverWait_CostOneSwitchPerBlock) {
  const Device<int> out(4 * 256);
  ASSERT_CUDA(RFN_LAUNCH(coordinates_kernel, 4, 256, 0, nullptr, out.get()));
  EXPECT_EQ(statistics().switches, 4u);
}

// ---- collectives --------------------------------------------------------------------------------

// Lane 7 stays away. Rows of results, 32 lanes each.
__global__ void collectives_kernel(int* out) {
  const int lane = threadIdx.x;
  constexpr unsigned all = 0xffffffffu, some = ~(1u << 7);
  const auto put = [&](int row, int value) { out[row * 32 + lane] = value; };
  put(0, __shfl_sync(all, lane * 10, 3));
  put(1, __shfl_sync(all, lane * 10, 5, 8));
  put(2, __shfl_up_sync(all, lane, 3, 16));
  put(3, __shfl_down_sync(all, lane, 3, 16));
  put(4, __shfl_xor_sync(all, lane, 5));
  put(5, static_cast<int>(__shfl_sync(all, lane * (1ll << 33), 31) >> 32));
  put(6, static_cast<int>(__shfl_xor_sync(all, 0.5f * static_cast<float>(lane), 1) * 2.0f));
  int equal = 0;
  put(7, static_cast<int>(__match_any_sync(all, lane / 8)));
  put(8, static_cast<int>(__match_all_sync(all, 9, &equal)));
  put(9, equal);
  put(10, static_cast<int>(__match_all_sync(all, lane, &equal)) + equal);
  if (lane != 7) {
    put(11, static_cast<int>(__ballot_sync(some, lane % 2 == 0)));
    put(12, __any_sync(some, lane == 7) * 4 + __all_sync(some, lane != 7) * 2 + __any_sync(some, lane == 8));
    put(13, __reduce_add_sync(some, lane));
    put(14, __reduce_min_sync(some, -lane));
    put(15, static_cast<int>(__reduce_max_sync(some, static_cast<unsigned>(lane))));
    put(16, static_cast<int>(__reduce_xor_sync(some, 1u << lane)));
  }
  // Half warps at different times, each with its own mask.
  if (lane < 16) {
    put(17, __shfl_down_sync(0x0000ffffu, lane, 1, 16));
  } else {
    put(17, __shfl_up_sync(0xffff0000u, lane, 1, 16));
  }
}

TEST_P(LanguageEachSeed, WarpCollectives_ExchangeAmongTheLanesOfTheirMask) {
  const Device<int> out(18 * 32);
  ASSERT_CUDA(RFN_LAUNCH(collectives_kernel, 1, 32, 0, nullptr, out.get()));
  const auto found = out.read();
  for (int lane = 0; lane < 32; ++lane) {
    const auto row = [&](int r) { return found[static_cast<size_t>(r * 32 + lane)]; };
    EXPECT_EQ(row(0), 30);
    EXPECT_EQ(row(1), (lane / 8 * 8 + 5) * 10);
    EXPECT_EQ(row(2), lane % 16 < 3 ? lane : lane - 3);
    EXPECT_EQ(row(3), lane % 16 > 12 ? lane : lane + 3);
    EXPECT_EQ(row(4), lane ^ 5);
    EXPECT_EQ(row(5), 62);
    EXPECT_EQ(row(6), lane ^ 1);
    EXPECT_EQ(static_cast<unsigned>(row(7)), 0xffu << lane / 8 * 8);
    EXPECT_EQ(row(8), -1);
    EXPECT_EQ(row(9), 1);
    EXPECT_EQ(row(10), 0);
    EXPECT_EQ(row(17), lane < 16 ? std::min(lane + 1, 15) : std::max(lane - 1, 16));
    if (lane == 7) continue;
    EXPECT_EQ(static_cast<unsigned>(row(11)), 0x55555555u);
    EXPECT_EQ(row(12), 3);
    EXPECT_EQ(row(13), 31 * 32 / 2 - 7);
    EXPECT_EQ(row(14), -31);
    EXPECT_EQ(row(15), 31);
    EXPECT_EQ(static_cast<unsigned>(row(16)), ~(1u << 7));
  }
}

__global__ void votes_kernel(int* out, int limit) {
  const int thread = threadIdx.x;
  const int count = __syncthreads_count(thread < limit), all = __syncthreads_and(thread < limit),
            any = __syncthreads_or(thread < limit);
  out[thread] = count * 4 + all * 2 + any;
}

TEST_P(LanguageEachSeed, BlockVotes_CountEveryThread) {
  const Device<int> out(70);
  for (const int limit : {0, 1, 33, 70}) {
    ASSERT_CUDA(RFN_LAUNCH(votes_kernel, 1, 70, 0, nullptr, out.get(), limit));
    EXPECT_EQ(out.read(), std::vector<int>(70, limit * 4 + (limit == 70) * 2 + (limit > 0)));
  }
}

// order[0] counts, the rest is when each thread came past its barrier.
__global__ void arrival_kernel(unsigned* order) {
  __syncthreads();
  order[1 + blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(&order[0], 1u);
}

TEST_P(LanguageEachSeed, Schedule_IsTheSameForTheSameLaunches) {
  std::vector<unsigned> first;
  uint64_t slices = 0;
  for (int run = 0; run < 2; ++run) {
    reset();
    set_seed(GetParam());
    const Device<unsigned> order(std::vector<unsigned>(4 * 96 + 1, 0));
    for (int launch = 0; launch < 2; ++launch) {
      ASSERT_CUDA(RFN_LAUNCH(arrival_kernel, 4, 96, 0, nullptr, order.get()));
    }
    if (run == 0) {
      first = order.read();
      slices = statistics().slices;
    } else {
      EXPECT_EQ(order.read(), first);
      EXPECT_EQ(statistics().slices, slices);
    }
  }
}

// ---- atomics ------------------------------------------------------------------------------------

__global__ void atomics_kernel(int* ints, unsigned long long* wide, unsigned* ranks) {
  const int value = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&ints[0], value);
  atomicMax(&ints[1], value);
  atomicMin(&ints[2], -value);
  atomicOr(&ints[3], 1 << value % 31);
  atomicAdd(wide, 1ull << 33);
  ranks[value] = atomicAdd(reinterpret_cast<unsigned*>(&ints[4]), 1u);
  for (int old = ints[5], seen; (seen = atomicCAS(&ints[5], old, old + 2)) != old; old = seen) {
  }
}

TEST_P(LanguageEachSeed, Atomics_LoseNothing) {
  for (const int workers : {1, 3}) {
    Settings s = settings();
    s.workers = workers;
    set_settings(s);
    const Device<int> ints(std::vector<int>(6, 0));
    const Device<unsigned long long> wide(std::vector<unsigned long long>{0});
    const Device<unsigned> ranks(512);
    ASSERT_CUDA(RFN_LAUNCH(atomics_kernel, 4, 128, 0, nullptr, ints.get(), wide.get(), ranks.get()));
    EXPECT_EQ(ints.read(), (std::vector<int>{512 * 511 / 2, 511, -511, 0x7fffffff, 512, 1024}));
    EXPECT_EQ(wide.read()[0], 512ull << 33);
    std::vector<unsigned> sorted = ranks.read();
    std::sort(sorted.begin(), sorted.end());
    for (unsigned i = 0; i < 512; ++i) ASSERT_EQ(sorted[i], i);
  }
}

// ---- errors -------------------------------------------------------------------------------------

enum class Fault {
  EarlyReturn,
  ForeignLane,
  MissingLane,
  TwoCollectives,
  TwoPlaces,
  BadWidth,
  Trap,
  Assertion,
  DivideByZero,
  StackOverflow
};

__attribute__((noinline, no_sanitize("undefined"))) int divide(int a, int b) { return a / b; }
__attribute__((noinline)) int deep(volatile int* sink, int depth) {
  volatile char frame[4096] = {};
  frame[depth % 4096] = 1;
  return depth == 0 ? *sink : deep(sink, depth - 1) + frame[depth % 4096];
}

__global__ void faulty_kernel(Fault fault, int* out, int zero) {
  const int lane = threadIdx.x;
  switch (fault) {
    case Fault::EarlyReturn:
      if (lane == 5) return;
      __syncthreads();
      break;
    case Fault::ForeignLane:
      out[lane] = lane < 16 ? __shfl_sync(0x0000ffffu, lane, 20) : 0;
      break;
    case Fault::MissingLane:
      if (lane != 3) __syncwarp();
      break;
    case Fault::TwoCollectives:
      out[lane] = lane < 16 ? static_cast<int>(__ballot_sync(0xffffffffu, 1)) : __shfl_sync(0xffffffffu, lane, 0);
      break;
    case Fault::TwoPlaces:
      if (lane < 16) {
        out[lane] = __shfl_sync(0xffffffffu, lane, 0);
      } else {
        out[lane] = __shfl_sync(0xffffffffu, lane, 0);
      }
      break;
    case Fault::BadWidth:
      out[lane] = __shfl_sync(0xffffffffu, lane, 0, 12);
      break;
    case Fault::Trap:
      if (lane == 9) __trap();
      break;
    case Fault::Assertion:
      RFN_DEVICE_ASSERT(lane < 30);
      break;
    case Fault::DivideByZero:
      out[lane] = divide(lane, zero);
      break;
    case Fault::StackOverflow:
      out[lane] = deep(out, 1000);
      break;
  }
}

struct FaultCase {
  Fault fault;
  cudaError_t error;
  const char* report;
};
class LanguageFault : public CudaOnHost, public testing::WithParamInterface<FaultCase> {};

TEST_P(LanguageFault, IsReportedWithBlockAndThread) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    reset();
    set_seed(seed);
    const Device<int> out(32);
    ASSERT_EQ(RFN_LAUNCH(faulty_kernel, 1, 32, 0, nullptr, GetParam().fault, out.get(), 0), GetParam().error)
        << last_report();
    EXPECT_NE(last_report().find(GetParam().report), std::string::npos) << last_report();
    EXPECT_EQ(last_report().rfind("faulty_kernel, block (0,0,0), thread (", 0), 0u) << last_report();
    EXPECT_EQ(cudaStreamSynchronize(nullptr), GetParam().error) << "a fault sticks";
  }
}
INSTANTIATE_TEST_SUITE_P(
    , LanguageFault,
    testing::Values(FaultCase{Fault::EarlyReturn, cudaErrorLaunchFailure, "1 threads have ended while 31 wait"},
                    FaultCase{Fault::ForeignLane, cudaErrorLaunchFailure,
                              "__shfl_sync reads lane 20, which is not in the mask"},
                    FaultCase{Fault::MissingLane, cudaErrorLaunchFailure, "in __syncwarp with mask 0xffffffff"},
                    FaultCase{Fault::TwoCollectives, cudaErrorLaunchFailure, "divergent warp"},
                    FaultCase{Fault::TwoPlaces, cudaErrorLaunchFailure, "divergent warp"},
                    FaultCase{Fault::BadWidth, cudaErrorLaunchFailure, "width 12"},
                    FaultCase{Fault::Trap, cudaErrorIllegalInstruction, "thread (9,0,0): trap at"},
                    FaultCase{Fault::Assertion, cudaErrorAssert, "lane < 30"},
                    FaultCase{Fault::DivideByZero, cudaErrorLaunchFailure, "division by zero"},
                    FaultCase{Fault::StackOverflow, cudaErrorIllegalAddress, "stack overflow"}));

// ---- shared memory ------------------------------------------------------------------------------

// Every block leaves its mark behind and looks for that of an earlier one, in static and dynamic memory.
__global__ void leftovers_kernel(float* out) {
  RFN_SHARED(local, float[4]);
  RFN_DYNAMIC_SHARED(float, dynamic);
  out[blockIdx.x * 2] = local[3];
  out[blockIdx.x * 2 + 1] = dynamic[1];
  local[3] = dynamic[1] = 1.0f;
}

TEST_F(Language, SharedMemory_BeginsAsNaNInEveryBlock) {
  const Device<float> out(8);
  ASSERT_CUDA(RFN_LAUNCH(leftovers_kernel, 4, 1, 8, nullptr, out.get()));
  for (const float value : out.read()) EXPECT_TRUE(std::isnan(value));
}

template <class T>
__global__ void two_instances_kernel(T* out) {
  RFN_SHARED(first, T[8]);
  RFN_SHARED(second, T[8]);
  first[threadIdx.x] = static_cast<T>(threadIdx.x);
  second[threadIdx.x] = static_cast<T>(100 + threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = first[7 - threadIdx.x] + second[7 - threadIdx.x];
}

TEST_P(LanguageEachSeed, SharedMemory_IsOneVariablePerPlaceAndType) {
  const Device<int> ints(8);
  const Device<double> doubles(8);
  ASSERT_CUDA(RFN_LAUNCH(two_instances_kernel<int>, 1, 8, 0, nullptr, ints.get()));
  ASSERT_CUDA(RFN_LAUNCH(two_instances_kernel<double>, 1, 8, 0, nullptr, doubles.get()));
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(ints.read()[static_cast<size_t>(i)], 114 - 2 * i);
    EXPECT_EQ(doubles.read()[static_cast<size_t>(i)], 114 - 2 * i);
  }
}

#if !defined(RFN_ADDRESS_SANITIZER)  // which would end the process at the first of these
__global__ void overrun_kernel(int part, int five) {
  RFN_SHARED(local, int[5]);
  RFN_DYNAMIC_SHARED(int, dynamic);
  if (threadIdx.x != 3) return;
  if (part == 0) local[five] = 1;
  if (part == 1) dynamic[five] = 1;
  if (part == 2) dynamic[five + 3] = 1;
}

TEST_F(Language, SharedMemory_OverrunIsReported) {
  const char* reports[] = {"past the end of shared memory: local", "past the end of shared memory: the dynamic part",
                           "thread (3,0,0): write to shared memory out of bounds, at byte 32 of 20 dynamic bytes"};
  for (int part = 0; part < 3; ++part) {
    reset();
    EXPECT_EQ(RFN_LAUNCH(overrun_kernel, 2, 32, 20, nullptr, part, 5), cudaErrorIllegalAddress);
    EXPECT_NE(last_report().find(reports[part]), std::string::npos) << last_report();
  }
}
#endif

struct Bytes {
  char bytes[30000];
};
__global__ void large_static_kernel(int variables) {
  RFN_SHARED(first, Bytes);
  first.bytes[0] = 1;
  if (variables == 2) {
    RFN_SHARED(second, Bytes);
    second.bytes[0] = 1;
  }
}

TEST_F(Language, SharedMemory_LimitsOfTheDeviceHold) {
  ASSERT_CUDA(RFN_LAUNCH(large_static_kernel, 1, 1, 49152, nullptr, 1));
  EXPECT_EQ(RFN_LAUNCH(large_static_kernel, 1, 1, 49153, nullptr, 1), cudaErrorInvalidValue)
      << "more needs the attribute";
  ASSERT_CUDA(cudaFuncSetAttribute(large_static_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 163 << 10));
  EXPECT_EQ(cudaFuncSetAttribute(large_static_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (163 << 10) + 1),
            cudaErrorInvalidValue);
  ASSERT_CUDA(RFN_LAUNCH(large_static_kernel, 1, 1, 130 << 10, nullptr, 1));
  EXPECT_EQ(RFN_LAUNCH(large_static_kernel, 1, 1, 140 << 10, nullptr, 1), cudaErrorLaunchFailure)
      << "static and dynamic together";
  reset();
  EXPECT_EQ(RFN_LAUNCH(large_static_kernel, 1, 1, 0, nullptr, 2), cudaErrorLaunchFailure) << "static alone, 48 KB";
}

__constant__ int constant_table[4];
__global__ void constant_kernel(int* out) { out[threadIdx.x] = constant_table[threadIdx.x]; }

TEST_F(Language, Constants_AreCopiedInStreamOrder) {
  const int values[] = {4, 3, 2, 1};
  ASSERT_CUDA(cudaMemcpyToSymbol(constant_table, values, sizeof values));
  const Device<int> out(4);
  ASSERT_CUDA(RFN_LAUNCH(constant_kernel, 1, 4, 0, nullptr, out.get()));
  EXPECT_EQ(out.read(), (std::vector<int>{4, 3, 2, 1}));
  EXPECT_EQ(cudaMemcpyToSymbol(constant_table, values, sizeof values, 4), cudaErrorInvalidValue);
}

// ---- numbers ------------------------------------------------------------------------------------

TEST_F(Language, BitFunctions_MatchTheirDefinitions) {
  EXPECT_EQ(__popc(0xf0f0u), 8);
  EXPECT_EQ(__clz(0), 32);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__clzll(1ll << 40), 23);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__brev(0x80000001u), 0x80000001u);
  EXPECT_EQ(__brev(6u), 0x60000000u);
  EXPECT_EQ(__umulhi(0xffffffffu, 0xffffffffu), 0xfffffffeu);
  EXPECT_EQ(__umul64hi(~0ull, ~0ull), ~0ull - 1);
  EXPECT_EQ(__funnelshift_l(0x80000000u, 1u, 1), 3u);
  EXPECT_EQ(__funnelshift_r(2u, 1u, 1), 0x80000001u);
  EXPECT_EQ(__float2int_rz(3e9f), 2147483647);
  EXPECT_EQ(__float2int_rz(-3e9f), -2147483647 - 1);
  EXPECT_EQ(__float2int_rz(std::nanf("")), 0);
  EXPECT_EQ(__float2int_rn(2.5f), 2);
  EXPECT_EQ(__float2int_rd(-0.5f), -1);
  EXPECT_EQ(max(1.0f, std::nanf("")), 1.0f);
  EXPECT_EQ(__float_as_uint(1.0f), 0x3f800000u);
}

}  // namespace
}  // namespace rfn::cuda_on_host
