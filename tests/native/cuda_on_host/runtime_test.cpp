// Memory, streams, events, graphs, errors and limits of the simulated device.
#include <numeric>
#include <set>

#include "support.h"

namespace rfn::cuda_on_host {
namespace {

class RuntimeTest : public CudaOnHost {
 protected:
  static void change(const std::function<void(Settings&)>& f) {
    Settings s = settings();
    f(s);
    set_settings(s);
  }
};

__global__ void add_kernel(int* values, int amount, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) values[i] += amount;
}
__global__ void store_kernel(int* values, int index) {
  if (threadIdx.x == 17) values[index] = 1;
}
__global__ void load_kernel(const int* values, int index, int* out) {
  if (threadIdx.x == 17) *out = values[index];
}

// ---- memory -------------------------------------------------------------------------------------

TEST_F(RuntimeTest, DeviceMemory_BeginsAsNaNAndAligned) {
  for (const size_t bytes : {4, 252, 256, 5000}) {
    char* p = nullptr;
    ASSERT_CUDA(cudaMalloc(&p, bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % 256, 0u);
    std::vector<char> found(bytes);
    ASSERT_CUDA(cudaMemcpy(found.data(), p, bytes, cudaMemcpyDeviceToHost));
    EXPECT_EQ(found, std::vector<char>(bytes, static_cast<char>(0xff)));
    ASSERT_CUDA(cudaFree(p));
  }
  char* p = nullptr;
  ASSERT_CUDA(cudaMalloc(&p, 0));
  EXPECT_EQ(p, nullptr);
  EXPECT_CUDA(cudaFree(nullptr));
}

TEST_F(RuntimeTest, OutOfBounds_NamesBlockThreadAndAllocation) {
  struct {
    int index;
    bool write;
    const char* report;
  } const cases[] = {{64, true, "write to global memory at byte 256, past the end of 256 bytes of device memory"},
                     {64, false, "read of global memory at byte 256, past the end of 256 bytes of device memory"},
                     {-1024, true, "write to global memory, 4096 bytes before 256 bytes of device memory"}};
  for (const auto& c : cases) {
    reset();
    const Device<int> values(64), out(1);
    const cudaError_t error = c.write ? RFN_LAUNCH(store_kernel, 1, 32, 0, nullptr, values.get(), c.index)
                                      : RFN_LAUNCH(load_kernel, 1, 32, 0, nullptr, values.get(), c.index, out.get());
    EXPECT_EQ(error, cudaErrorIllegalAddress);
    EXPECT_NE(last_report().find("block (0,0,0), thread (17,0,0): "), std::string::npos) << last_report();
    EXPECT_NE(last_report().find(c.report), std::string::npos) << last_report();
  }
}

#if !defined(RFN_ADDRESS_SANITIZER)  // which would end the process
TEST_F(RuntimeTest, OutOfBounds_WritesIntoPaddingAreFoundAfterTheLaunch) {
  for (const int index : {-1, 3}) {
    reset();
    const Device<int> values(3);
    EXPECT_EQ(RFN_LAUNCH(store_kernel, 1, 32, 0, nullptr, values.get(), index), cudaErrorIllegalAddress);
    EXPECT_NE(last_report().find(index < 0 ? "wrote before 12 bytes" : "wrote past the end of 12 bytes"),
              std::string::npos)
        << last_report();
  }
}
#endif

TEST_F(RuntimeTest, FreedMemory_IsReportedWhenUsed) {
  int* values = nullptr;
  ASSERT_CUDA(cudaMalloc(&values, 256));
  ASSERT_CUDA(cudaFree(values));
  EXPECT_EQ(cudaFree(values), cudaErrorInvalidValue);
  const Device<int*> indirect(std::vector<int*>{values});
  EXPECT_EQ(RFN_LAUNCH(store_kernel, 1, 32, 0, nullptr, values, 0), cudaErrorIllegalAddress);
  EXPECT_NE(
      last_report().find("argument 0 does not point to memory of the device: freed memory at byte 0 of 256 bytes"),
      std::string::npos)
      << last_report();
}

TEST_F(RuntimeTest, HostPointers_AreNoArgumentsUnlessPinned) {
  int plain[32] = {};
  EXPECT_EQ(RFN_LAUNCH(store_kernel, 1, 32, 0, nullptr, plain, 0), cudaErrorIllegalAddress);
  reset();
  int* pinned = nullptr;
  ASSERT_CUDA(cudaMallocHost(&pinned, 128));
  EXPECT_CUDA(RFN_LAUNCH(store_kernel, 1, 32, 0, nullptr, pinned, 5));
  EXPECT_EQ(pinned[5], 1);
  ASSERT_CUDA(cudaFreeHost(pinned));
}

TEST_F(RuntimeTest, Copies_MustFitAllocationAndDirection) {
  const Device<int> values(16);
  std::vector<int> host(32);
  EXPECT_EQ(cudaMemcpy(values.get(), host.data(), 68, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(values.get() + 1, host.data(), 64, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(values.get(), host.data(), 64, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(nullptr, host.data(), 64, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(values.get(), 0, 65), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "none of these sticks";
  EXPECT_CUDA(cudaMemcpy(values.get(), host.data(), 64, cudaMemcpyDefault));
  reset();
}

TEST_F(RuntimeTest, Memory_RunsOut) {
  change([](Settings& s) { s.memory_bytes = 1000; });
  const Device<char> first(600);
  size_t free_bytes = 0, total = 0;
  ASSERT_CUDA(cudaMemGetInfo(&free_bytes, &total));
  EXPECT_EQ(free_bytes, 400u);
  EXPECT_EQ(total, 1000u);
  void* p = nullptr;
  EXPECT_EQ(cudaMalloc(&p, 401), cudaErrorMemoryAllocation);
  EXPECT_EQ(p, nullptr);
  ASSERT_CUDA(cudaMalloc(&p, 400));
  ASSERT_CUDA(cudaFree(p));
}

TEST_F(RuntimeTest, LiveObjects_AreCountedUntilDestroyed) {
  void *device = nullptr, *pinned = nullptr;
  cudaStream_t stream;
  cudaEvent_t event;
  ASSERT_CUDA(cudaMalloc(&device, 10));
  ASSERT_CUDA(cudaMallocHost(&pinned, 20));
  ASSERT_CUDA(cudaStreamCreate(&stream));
  ASSERT_CUDA(cudaEventCreate(&event));
  std::multiset<std::string> kinds;
  for (const auto& object : live_objects()) kinds.insert(object.kind);
  EXPECT_EQ(kinds, (std::multiset<std::string>{"device memory", "pinned memory", "stream", "event"}));
  ASSERT_CUDA(cudaFree(device));
  ASSERT_CUDA(cudaFreeHost(pinned));
  ASSERT_CUDA(cudaStreamDestroy(stream));
  ASSERT_CUDA(cudaEventDestroy(event));
  EXPECT_TRUE(live_objects().empty());
  EXPECT_EQ(cudaStreamDestroy(stream), cudaErrorInvalidResourceHandle);
}

#if !defined(RFN_ADDRESS_SANITIZER)  // its own handler answers first in a death test
TEST_F(RuntimeTest, HiddenDeviceMemory_FaultsTheHostButNotKernels) {
  change([](Settings& s) { s.hide_device_memory = true; });
  const Device<int> values(std::vector<int>(64, 1));
  ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 64, 0, nullptr, values.get(), 1, 64));
  EXPECT_EQ(values.read(), std::vector<int>(64, 2));
  volatile int* host_view = values.get();
  EXPECT_DEATH(static_cast<void>(*host_view), "");
}
#endif

TEST_F(RuntimeTest, Reset_HidesNoMemoryThatItsSettingsShow) {
  change([](Settings& s) { s.hide_device_memory = true; });
  { const Device<int> hidden(std::vector<int>(64, 1)); }
  reset();
  const Device<int> values(std::vector<int>(64, 1));
  ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 64, 0, nullptr, values.get(), 1, 64));
  EXPECT_EQ(values.read(), std::vector<int>(64, 2));
}

// ---- streams ------------------------------------------------------------------------------------

TEST_F(RuntimeTest, LateStreams_RunNothingBeforeSomethingWaits) {
  change([](Settings& s) { s.late_streams = true; });
  cudaStream_t stream;
  ASSERT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  int *pinned = nullptr, *values = nullptr;
  ASSERT_CUDA(cudaMallocHost(&pinned, 4 * sizeof(int)));
  ASSERT_CUDA(cudaMallocAsync(&values, 4 * sizeof(int), stream));
  std::iota(pinned, pinned + 4, 10);
  std::vector<int> pageable{1, 2, 3, 4};
  ASSERT_CUDA(cudaMemcpyAsync(values, pageable.data(), 16, cudaMemcpyHostToDevice, stream));
  pageable.assign(4, 0);  // pageable memory has been read
  ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 32, 0, stream, values, 5, 4));
  ASSERT_CUDA(cudaMemcpyAsync(pinned, values, 16, cudaMemcpyDeviceToHost, stream));
  EXPECT_EQ(pinned[0], 10) << "nobody has waited yet";
  EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  EXPECT_EQ(std::vector<int>(pinned, pinned + 4), (std::vector<int>{6, 7, 8, 9}));
  EXPECT_CUDA(cudaStreamQuery(stream));

  pinned[0] = 1;
  ASSERT_CUDA(cudaMemcpyAsync(values, pinned, 16, cudaMemcpyHostToDevice, stream));
  pinned[0] = 2;  // pinned memory is read when the stream comes to it
  ASSERT_CUDA(cudaMemcpyAsync(pageable.data(), values, 16, cudaMemcpyDeviceToHost, stream));
  EXPECT_EQ(pageable[0], 2) << "a copy to pageable memory waits";

  ASSERT_CUDA(cudaFreeAsync(values, stream));
  ASSERT_CUDA(cudaStreamDestroy(stream));
  ASSERT_CUDA(cudaFreeHost(pinned));
}

TEST_F(RuntimeTest, LateStreams_EventsOrderThemAndNothingElseDoes) {
  change([](Settings& s) { s.late_streams = true; });
  cudaStream_t first, second;
  cudaEvent_t event;
  ASSERT_CUDA(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
  ASSERT_CUDA(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
  ASSERT_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  for (const bool ordered : {false, true}) {
    const Device<int> values(std::vector<int>(4, 0)), copy(std::vector<int>(4, 0));
    ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 32, 0, first, values.get(), 1, 4));
    ASSERT_CUDA(cudaEventRecord(event, first));
    ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 32, 0, first, values.get(), 10, 4));
    if (ordered) {
      ASSERT_CUDA(cudaStreamWaitEvent(second, event));
    }
    ASSERT_CUDA(cudaMemcpyAsync(copy.get(), values.get(), 16, cudaMemcpyDeviceToDevice, second));
    ASSERT_CUDA(cudaStreamSynchronize(second));
    EXPECT_EQ(copy.read()[0], ordered ? 1 : 0);
    EXPECT_EQ(cudaEventQuery(event), ordered ? cudaSuccess : cudaErrorNotReady);
    ASSERT_CUDA(cudaStreamSynchronize(first));
    EXPECT_EQ(values.read()[0], 11);
  }
  ASSERT_CUDA(cudaEventDestroy(event));
  ASSERT_CUDA(cudaStreamDestroy(first));
  ASSERT_CUDA(cudaStreamDestroy(second));
}

TEST_F(RuntimeTest, DefaultStream_WaitsForBlockingStreamsOnly) {
  change([](Settings& s) { s.late_streams = true; });
  for (const bool blocking : {true, false}) {
    cudaStream_t stream;
    ASSERT_CUDA(cudaStreamCreateWithFlags(&stream, blocking ? cudaStreamDefault : cudaStreamNonBlocking));
    const Device<int> values(std::vector<int>(1, 0));
    ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 32, 0, stream, values.get(), 1, 1));
    EXPECT_EQ(values.read()[0], blocking ? 1 : 0);
    ASSERT_CUDA(cudaStreamDestroy(stream));
  }
}

TEST_F(RuntimeTest, Events_MeasureTime) {
  cudaEvent_t start, stop;
  ASSERT_CUDA(cudaEventCreate(&start));
  ASSERT_CUDA(cudaEventCreate(&stop));
  float milliseconds = -1.0f;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, stop), cudaErrorInvalidResourceHandle);
  ASSERT_CUDA(cudaEventRecord(start));
  ASSERT_CUDA(cudaEventRecord(stop));
  ASSERT_CUDA(cudaEventSynchronize(stop));
  ASSERT_CUDA(cudaEventElapsedTime(&milliseconds, start, stop));
  EXPECT_GE(milliseconds, 0.0f);
  ASSERT_CUDA(cudaEventDestroy(start));
  ASSERT_CUDA(cudaEventDestroy(stop));
}

// ---- graphs -------------------------------------------------------------------------------------

TEST_F(RuntimeTest, Graph_ReplaysWhatWasCapturedOnTwoStreams) {
  cudaStream_t stream, side;
  cudaEvent_t fork, join;
  ASSERT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  ASSERT_CUDA(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
  ASSERT_CUDA(cudaEventCreate(&fork));
  ASSERT_CUDA(cudaEventCreate(&join));
  const Device<int> values(std::vector<int>(1, 0));
  ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 32, 0, stream, values.get(), 1, 1));
  ASSERT_CUDA(cudaEventRecord(fork, stream));
  ASSERT_CUDA(cudaStreamWaitEvent(side, fork));
  ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 32, 0, side, values.get(), 10, 1));
  ASSERT_CUDA(cudaEventRecord(join, side));
  ASSERT_CUDA(cudaStreamWaitEvent(stream, join));
  cudaGraph_t graph = nullptr;
  ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
  EXPECT_EQ(values.read()[0], 0) << "captured, not run";
  cudaGraphExec_t executable = nullptr;
  ASSERT_CUDA(cudaGraphInstantiateWithFlags(&executable, graph));
  ASSERT_CUDA(cudaGraphDestroy(graph));
  for (int i = 1; i <= 3; ++i) {
    ASSERT_CUDA(cudaGraphLaunch(executable, stream));
    EXPECT_EQ(values.read()[0], 11 * i);
  }
  ASSERT_CUDA(cudaGraphExecDestroy(executable));
  ASSERT_CUDA(cudaEventDestroy(fork));
  ASSERT_CUDA(cudaEventDestroy(join));
  ASSERT_CUDA(cudaStreamDestroy(stream));
  ASSERT_CUDA(cudaStreamDestroy(side));
}

TEST_F(RuntimeTest, Graph_CaptureForbidsWaitingAndAllocating) {
  const std::function<cudaError_t(cudaStream_t)> forbidden[] = {[](cudaStream_t s) { return cudaStreamSynchronize(s); },
                                                                [](cudaStream_t) { return cudaDeviceSynchronize(); },
                                                                [](cudaStream_t) {
                                                                  void* p;
                                                                  return cudaMalloc(&p, 16);
                                                                }};
  for (const auto& call : forbidden) {
    reset();
    cudaStream_t stream;
    ASSERT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    EXPECT_EQ(call(stream), cudaErrorStreamCaptureUnsupported);
    cudaStreamCaptureStatus status;
    ASSERT_CUDA(cudaStreamIsCapturing(stream, &status));
    EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
  }
}

TEST_F(RuntimeTest, Graph_UnjoinedStreamIsReported) {
  cudaStream_t stream, side;
  cudaEvent_t fork;
  ASSERT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  ASSERT_CUDA(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
  ASSERT_CUDA(cudaEventCreate(&fork));
  const Device<int> values(std::vector<int>(1, 0));
  ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  ASSERT_CUDA(cudaEventRecord(fork, stream));
  ASSERT_CUDA(cudaStreamWaitEvent(side, fork));
  ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 32, 0, side, values.get(), 1, 1));
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureUnjoined);
  ASSERT_CUDA(cudaEventDestroy(fork));
  ASSERT_CUDA(cudaStreamDestroy(stream));
  ASSERT_CUDA(cudaStreamDestroy(side));
}

// ---- errors and limits --------------------------------------------------------------------------

TEST_F(RuntimeTest, NoDevice_IsAnErrorThatWritesNothing) {
  for (const cudaError_t error : {cudaErrorNoDevice, cudaErrorInsufficientDriver}) {
    change([error](Settings& s) {
      s.devices = 0;
      s.no_device_error = error;
    });
    int count = -7;
    EXPECT_EQ(cudaGetDeviceCount(&count), error);
    EXPECT_EQ(count, -7);
    EXPECT_EQ(RFN_LAUNCH(add_kernel, 1, 32, 0, nullptr, nullptr, 1, 0), error);
  }
}

TEST_F(RuntimeTest, Fault_SticksUntilReset) {
  const Device<int> values(64);
  ASSERT_EQ(RFN_LAUNCH(store_kernel, 1, 32, 0, nullptr, values.get(), 64), cudaErrorIllegalAddress);
  void* p = nullptr;
  EXPECT_EQ(cudaMalloc(&p, 16), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_CUDA(cudaDeviceReset());
  EXPECT_CUDA(cudaGetLastError());
}

TEST_F(RuntimeTest, Launch_ChecksItsConfiguration) {
  const Device<int> values(1);
  for (const dim3 block : {dim3(1025), dim3(0), dim3(32, 33), dim3(1, 1, 65)}) {
    EXPECT_EQ(RFN_LAUNCH(add_kernel, 1, block, 0, nullptr, values.get(), 1, 0), cudaErrorInvalidConfiguration);
  }
  for (const dim3 grid : {dim3(0), dim3(1, 65536), dim3(1, 1, 65536)}) {
    EXPECT_EQ(RFN_LAUNCH(add_kernel, grid, 32, 0, nullptr, values.get(), 1, 0), cudaErrorInvalidConfiguration);
  }
  reset();
}

TEST_F(RuntimeTest, Work_IsCountedByWhatItIs) {
  const Device<int> a(64), b(64);
  const auto before = work();
  ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 64, 0, nullptr, a.get(), 1, 64));
  ASSERT_CUDA(RFN_LAUNCH(add_kernel, 1, 64, 0, nullptr, a.get(), 1, 64));
  ASSERT_CUDA(RFN_LAUNCH(store_kernel, 1, 64, 0, nullptr, a.get(), 3));
  ASSERT_CUDA(cudaMemset(b.get(), 0, 256));
  ASSERT_CUDA(cudaMemcpy2DAsync(b.get(), 16, a.get(), 16, 8, 16, cudaMemcpyDeviceToDevice, nullptr));
  auto after = work();
  for (const auto& [name, count] : before) after[name] -= count;
  EXPECT_EQ(after["add_kernel"], 2);
  EXPECT_EQ(after["store_kernel"], 1);
  EXPECT_EQ(after["fill"], 1);
  EXPECT_EQ(after["copy"], 1) << "rows of one copy";
  EXPECT_NE(std::string(rfn_cuda_on_host_work()).find("add_kernel\n"), std::string::npos);
  reset();
  EXPECT_TRUE(work().empty());
}

TEST_F(RuntimeTest, FailCall_FailsExactlyOneCall) {
  void* p = nullptr;
  fail_call(2, cudaErrorUnknown);
  ASSERT_CUDA(cudaMalloc(&p, 16));
  EXPECT_EQ(cudaMemset(p, 0, 16), cudaErrorUnknown);
  EXPECT_CUDA(cudaMemset(p, 0, 16));
  EXPECT_CUDA(cudaFree(p));
  EXPECT_EQ(cudaGetLastError(), cudaErrorUnknown);
}

TEST_F(RuntimeTest, Properties_FollowTheCapability) {
  const struct {
    int capability;
    size_t shared;
  } cases[] = {{70, 96 << 10}, {75, 64 << 10}, {80, 163 << 10}, {86, 99 << 10}, {90, 227 << 10}};
  for (const auto& c : cases) {
    change([&](Settings& s) { s.capability = c.capability; });
    cudaDeviceProp p;
    ASSERT_CUDA(cudaGetDeviceProperties(&p, 0));
    EXPECT_EQ(p.major * 10 + p.minor, c.capability);
    EXPECT_EQ(p.sharedMemPerBlockOptin, c.shared);
    int blocks = 0;
    ASSERT_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, add_kernel, 256, c.shared / 2));
    EXPECT_EQ(blocks, c.capability < 80 ? 2 : 1 + (c.shared / 2 * 2 + 2048 <= c.shared + 1024));
  }
  cudaDeviceProp p;
  EXPECT_EQ(cudaGetDeviceProperties(&p, 1), cudaErrorInvalidDevice);
}

TEST_F(RuntimeTest, Workers_RunBlocksSideBySideWithTheSameResult) {
  for (const int workers : {1, 2, 5}) {
    change([workers](Settings& s) {
      s.workers = workers;
      s.seed = 3;
    });
    const Device<int> values(std::vector<int>(5000, 0));
    ASSERT_CUDA(RFN_LAUNCH(add_kernel, (5000 + 127) / 128, 128, 0, nullptr, values.get(), 3, 5000));
    EXPECT_EQ(values.read(), std::vector<int>(5000, 3));
  }
  change([](Settings& s) { s.workers = 4; });
  const Device<int> values(64);
  EXPECT_EQ(RFN_LAUNCH(store_kernel, 100, 32, 0, nullptr, values.get(), 64), cudaErrorIllegalAddress)
      << "faults on any worker";
}

}  // namespace
}  // namespace rfn::cuda_on_host
