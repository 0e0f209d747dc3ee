// What the race checker reports and what it accepts. Compiled with -fsanitize=thread, as kernels under it are.
#include "support.h"

namespace rfn::cuda_on_host {

using namespace rfn::cuda;
namespace {

enum class Pattern {
  // Right.
  WarpBarrierOrdersItsWarp,
  PartialMasksOrderTheirLanes,
  ManyReadersThenBarrierThenWriter,
  AtomicsOnOnePlace,
  BlocksReadWhatNobodyWrites,
  HalvesOfOneWord,
  // Wrong.
  ShuffleOrdersNothing,
  WarpBarrierOrdersNoOtherWarp,
  LaneOutsideTheMask,
  ReaderBeforeWriter,
  SecondReaderBeforeWriter,
  SameValueTwice,
  AtomicAgainstPlain,
  TwoBlocksWrite,
  BlockReadsWhatAnotherWrites,
  BlockWritesWhatAnotherRead,
  NeverWritten,
  CopyInFlight,
  CopyOverReader,
  OneBytePast,
};

__global__ void pattern_kernel(Pattern pattern, int* global, int* out) {
  RFN_SHARED(shared, int[64]);
  const int thread = threadIdx.x, lane = thread % 32;
  int value = 0;
  switch (pattern) {
    case Pattern::WarpBarrierOrdersItsWarp:
      shared[thread] = thread;
      __syncwarp();
      value = shared[thread ^ 1];
      __syncwarp();
      shared[thread ^ 3] = value;
      break;
    case Pattern::PartialMasksOrderTheirLanes: {
      const unsigned mask = lane < 8 ? 0x000000ffu : 0xffffff00u;
      shared[thread] = thread;
      __syncwarp(mask);
      value = shared[thread ^ 7];
      __syncwarp();
      shared[thread ^ 31] = value;
      break;
    }
    case Pattern::ManyReadersThenBarrierThenWriter:
      if (thread == 0) shared[0] = 5;
      __syncthreads();
      value = shared[0];
      __syncthreads();
      if (thread == 40) shared[0] = value;
      break;
    case Pattern::AtomicsOnOnePlace:
      atomicAdd(&global[1], 1);
      break;
    case Pattern::BlocksReadWhatNobodyWrites:
      value = global[0];
      break;
    case Pattern::HalvesOfOneWord:
      reinterpret_cast<uint16_t*>(shared)[thread] = static_cast<uint16_t>(thread);
      break;

    case Pattern::ShuffleOrdersNothing:
      shared[thread] = thread;
      __shfl_sync(0xffffffffu, thread, 0);
      value = shared[thread ^ 1];
      break;
    case Pattern::WarpBarrierOrdersNoOtherWarp:
      shared[thread] = thread;
      __syncwarp();
      value = shared[thread ^ 32];
      break;
    case Pattern::LaneOutsideTheMask:
      shared[thread] = thread;
      __syncwarp(lane < 8 ? 0x000000ffu : 0xffffff00u);
      value = shared[thread ^ 8];
      break;
    case Pattern::ReaderBeforeWriter:
      if (thread == 3) shared[0] = 1;
      __syncthreads();
      if (thread == 5) value = shared[0];
      if (thread == 6) shared[0] = 2;
      break;
    case Pattern::SecondReaderBeforeWriter:
      if (thread == 3) shared[0] = 1;
      __syncthreads();
      if (thread == 5) value = shared[0];
      __syncwarp(lane == 5 || lane == 6 ? 0x60u : ~0x60u);
      if (thread == 7) value = shared[0];
      if (thread == 6) shared[0] = 2;
      break;
    case Pattern::SameValueTwice:
      if (thread < 2) shared[0] = 1;
      break;
    case Pattern::AtomicAgainstPlain:
      if (thread == 3) atomicAdd(&global[0], 1);
      if (thread == 4) value = global[0];
      break;
    case Pattern::TwoBlocksWrite:
      if (thread == 0) global[0] = 1;
      break;
    case Pattern::BlockReadsWhatAnotherWrites:
      if (thread == 0 && blockIdx.x == 0) global[0] = 1;
      if (thread == 0 && blockIdx.x == 1) value = global[0];
      break;
    case Pattern::BlockWritesWhatAnotherRead:
      if (thread == 0) value = global[0];
      __syncthreads();
      if (thread == 0 && blockIdx.x == 1) global[0] = 1;
      break;
    case Pattern::NeverWritten:
      value = shared[thread];
      break;
    case Pattern::CopyInFlight:
      cp_async<4>(&shared[thread], &global[2]);
      cp_async_commit();
      value = shared[thread];
      cp_async_wait_all();
      break;
    case Pattern::CopyOverReader:
      shared[thread] = 1;
      __syncwarp();
      value = shared[thread ^ 1];
      cp_async<4>(&shared[thread], &global[2]);
      cp_async_wait_all();
      break;
    case Pattern::OneBytePast:
      if (thread == 9) value = global[3];
      break;
  }
  out[blockIdx.x * blockDim.x + thread] = value;
}

struct Case {
  Pattern pattern;
  const char* report;  // nullptr: nothing to report
};

class Race : public CudaOnHost, public testing::WithParamInterface<Case> {};

TEST_P(Race, IsReportedUnderEveryScheduleOrUnderNone) {
  ASSERT_TRUE(race_checking());
  for (uint64_t seed = 0; seed < 8; ++seed) {
    reset();
    set_seed(seed);
    const Device<int> global(std::vector<int>{1, 2, 3}), out(128);
    const cudaError_t error =
        RFN_LAUNCH(pattern_kernel, 2, 64, 0, nullptr, GetParam().pattern, global.get(), out.get());
    if (GetParam().report == nullptr) {
      EXPECT_EQ(error, cudaSuccess) << "seed " << seed << ": " << last_report();
    } else {
      EXPECT_NE(error, cudaSuccess) << "seed " << seed;
      EXPECT_NE(last_report().find(GetParam().report), std::string::npos) << "seed " << seed << ": " << last_report();
      EXPECT_NE(last_report().find("thread ("), std::string::npos) << last_report();
    }
  }
}

const Case kCases[] = {{Pattern::WarpBarrierOrdersItsWarp, nullptr},
                       {Pattern::PartialMasksOrderTheirLanes, nullptr},
                       {Pattern::ManyReadersThenBarrierThenWriter, nullptr},
                       {Pattern::AtomicsOnOnePlace, nullptr},
                       {Pattern::BlocksReadWhatNobodyWrites, nullptr},
                       {Pattern::HalvesOfOneWord, nullptr},
                       {Pattern::ShuffleOrdersNothing, "of shared, 256 bytes"},
                       {Pattern::WarpBarrierOrdersNoOtherWarp, "of shared, 256 bytes"},
                       {Pattern::LaneOutsideTheMask, "of shared, 256 bytes"},
                       {Pattern::ReaderBeforeWriter, "of shared, 256 bytes"},
                       {Pattern::SecondReaderBeforeWriter, "of shared, 256 bytes"},
                       {Pattern::SameValueTwice, "write after a write"},
                       {Pattern::AtomicAgainstPlain, "of 12 bytes of device memory"},
                       {Pattern::TwoBlocksWrite, "write after a write by another block"},
                       {Pattern::BlockReadsWhatAnotherWrites, "by another block"},
                       {Pattern::BlockWritesWhatAnotherRead, "by another block"},
                       {Pattern::NeverWritten, "that the block has not written"},
                       {Pattern::CopyInFlight, "in flight"},
                       {Pattern::CopyOverReader, "of shared, 256 bytes"},
                       {Pattern::OneBytePast, "byte 12, past the end of 12 bytes of device memory"}};
INSTANTIATE_TEST_SUITE_P(, Race, testing::ValuesIn(kCases));

TEST_F(CudaOnHost, Race_NamesTheLine) {
  const Device<int> global(std::vector<int>{1, 2, 3}), out(128);
  EXPECT_NE(RFN_LAUNCH(pattern_kernel, 2, 64, 0, nullptr, Pattern::NeverWritten, global.get(), out.get()), cudaSuccess);
  const size_t line = last_report().find("(race_test.cpp:");
  ASSERT_NE(line, std::string::npos) << last_report();
  EXPECT_GT(std::atoi(last_report().c_str() + line + 15), 0) << last_report();
}

}  // namespace
}  // namespace rfn::cuda_on_host
