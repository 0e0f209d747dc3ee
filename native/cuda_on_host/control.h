// How tests steer the simulated device and read what happened on it. Host code of the backend never includes this.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <cuda_runtime.h>

namespace rfn::cuda_on_host {

// One simulated device for the process. Each setting can also come from the environment, read once:
// RFN_CUDA_ON_HOST_SEED=5 and so on.
struct Settings {
  // Schedule of every block's threads, order of blocks, landing of cp.async copies (see README.md):
  // 0 ascending, 1 descending, even: random, odd from 3: random priorities of warps, drawn again at each block barrier.
  uint64_t seed = 0;
  int workers = 1;  // WORKERS: OS threads that run blocks side by side; more than 1 gives up repeatable block order
  bool late_streams =
      false;  // LATE_STREAMS: stream work runs only when something waits for it, not when it is enqueued
  bool hide_device_memory = false;  // HIDE_MEMORY: host code that reads or writes device memory faults
  int capability = 80;              // CAPABILITY: 10 * major + minor; decides shared memory and what instructions exist
  size_t alignment =
      256;  // ALIGNMENT of device allocations. They end at a guard page when their size is a multiple of it
  size_t memory_bytes = size_t{8} << 30;  // MEMORY_BYTES of the device
  int devices = 1;                        // DEVICES: 0 = none
  cudaError_t no_device_error =
      cudaErrorNoDevice;  // what the runtime says when there is none (or cudaErrorInsufficientDriver)
};
Settings settings();
void set_settings(const Settings& settings);

// What the last faulting kernel or bad call did, in words: kernel, block, thread, place. "" when nothing has gone wrong
// since reset.
std::string last_report();

// The n-th next call of the runtime API (1 = the very next) fails with error and does nothing. 0 cancels. Errors are
// not sticky.
void fail_call(int n, cudaError_t error);
// Runtime calls since the process began: how far fail_call can reach.
int64_t calls();

struct LiveObject {
  std::string kind;  // "device memory", "pinned memory", "stream", "event", "graph", "cuBLASLt handle"
  const void* address;
  size_t bytes;
  int64_t number;  // in order of creation
};
// Everything created and not destroyed: empty at the end of a test that leaks nothing.
std::vector<LiveObject> live_objects();

struct Statistics {
  uint64_t launches, blocks, threads;
  uint64_t slices;       // times a thread was picked to run
  uint64_t switches;     // of them, those that changed stacks
  uint64_t barriers;     // block barriers passed
  uint64_t collectives;  // warp collectives completed
  uint64_t copies;       // cp.async copies
};
Statistics statistics();

// Work that streams were given since the start, captured or not, by what it is: kernels by name, "cuBLASLt product",
// "copy", "fill". Each is a launch, or a node of a graph.
std::map<std::string, int64_t> work();

// cudaDeviceReset plus settings, statistics and injected failures back to their start. Frees what is alive.
void reset();

}  // namespace rfn::cuda_on_host

// work() for programs in other languages: a line "count name" each, valid until the thread's next call.
extern "C" const char* rfn_cuda_on_host_work();
