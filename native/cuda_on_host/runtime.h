// State of the simulated device behind the runtime API, and how work reaches it.
#pragma once
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda_on_host/control.h"
#include "cuda_on_host/executor.h"
#include "cuda_on_host/launch.h"
#include "cuda_on_host/memory.h"

namespace rfn::cuda_on_host {
// Work of a stream. An error it returns is the device's fault and sticks.
using Operation = std::function<cudaError_t()>;
}  // namespace rfn::cuda_on_host

// A captured list of work. Order of capture is one valid order of execution.
struct CUgraph_st {
  int64_t number;
  std::vector<rfn::cuda_on_host::Operation> operations;
  cudaStream_t origin = nullptr;
  bool invalid = false;
};
struct CUgraphExec_st {
  int64_t number;
  std::vector<rfn::cuda_on_host::Operation> operations;
};

struct CUstream_st {
  int64_t number;
  bool blocking;  // waits for the legacy default stream and is waited for by it
  std::deque<rfn::cuda_on_host::Operation> queue;
  CUgraph_st* capture = nullptr;
  int captured = 0, joined = 0;  // captured operations, and how many of them the origin is known to wait for
};

struct CUevent_st {
  struct Record {
    bool done = false;
    cudaStream_t stream = nullptr;
    CUgraph_st* capture = nullptr;
    int captured = 0;
    std::chrono::steady_clock::time_point time;
  };
  int64_t number;
  bool timing;
  std::shared_ptr<Record> record;
};

namespace rfn::cuda_on_host {

class Runtime {
 public:
  static Runtime& instance();

  // Every API function: counts the call, injects failures, refuses without a device or after a fault, remembers the
  // error.
  template <class F>
  cudaError_t call(F&& body) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    const cudaError_t early = begin_call();
    return remember(early != cudaSuccess ? early : body(*this));
  }
  cudaError_t begin_call();
  cudaError_t remember(cudaError_t error);
  cudaError_t refuse(cudaError_t error, const std::string& why);

  // Streams.
  cudaError_t enqueue(cudaStream_t stream, Operation operation);
  bool valid(cudaStream_t stream) const { return is_default(stream) || streams.count(stream) != 0; }
  static bool is_default(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy; }
  cudaError_t drain(cudaStream_t stream);  // the default stream: all blocking ones
  cudaError_t drain_all();
  bool step(cudaStream_t stream);  // runs the oldest operation; false: there was none
  bool capturing() const;
  cudaError_t forbid_in_capture();

  cudaError_t run(const Launch& launch);
  int64_t next_number() { return ++numbers_; }
  void reset_device();
  void delete_blas_handles();  // cublas_lt.cpp
  Statistics statistics() const;
  void clear_statistics();

  std::recursive_mutex mutex_;
  Settings settings;
  Memory memory;
  std::set<cudaStream_t> streams;
  std::set<cudaEvent_t> events;
  std::set<cudaGraph_t> graphs;
  std::set<cudaGraphExec_t> executables;
  std::map<struct cublasLtContext*, int64_t> blas_handles;  // with their numbers
  std::unordered_map<const void*, int> dynamic_shared_limits;
  std::string report;
  cudaError_t sticky = cudaSuccess;
  int64_t calls = 0;
  std::map<std::string, int64_t> work;  // what work() tells
  int fail_in = 0;
  cudaError_t injected = cudaSuccess;

 private:
  Runtime();
  cudaError_t execute(const Operation& operation);
  Failure run_blocks(const Launch& launch);

  int64_t numbers_ = 0;
  uint64_t launches_ = 0;
  int executing_ = 0;  // device memory is accessible while > 0
  std::vector<std::unique_ptr<Executor>> executors_;
};

}  // namespace rfn::cuda_on_host
