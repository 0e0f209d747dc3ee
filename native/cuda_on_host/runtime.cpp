#include "cuda_on_host/runtime.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>

namespace rfn::cuda_on_host {
namespace {

thread_local cudaError_t last_error = cudaSuccess;

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

Settings settings_from_environment() {
  Settings settings;
  const auto read = [](const char* name, auto& value) {
    const std::string variable = std::string("RFN_CUDA_ON_HOST_") + name;
    if (const char* text = std::getenv(variable.c_str()))
      value = static_cast<std::decay_t<decltype(value)>>(std::strtoull(text, nullptr, 10));
  };
  read("SEED", settings.seed);
  read("WORKERS", settings.workers);
  read("LATE_STREAMS", settings.late_streams);
  read("HIDE_MEMORY", settings.hide_device_memory);
  read("CAPABILITY", settings.capability);
  read("ALIGNMENT", settings.alignment);
  read("MEMORY_BYTES", settings.memory_bytes);
  read("DEVICES", settings.devices);
  return settings;
}

uint3 block_index(uint64_t block, dim3 grid) {
  return {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
          static_cast<unsigned>(block / (uint64_t{grid.x} * grid.y))};
}

}  // namespace

Runtime::Runtime() : settings(settings_from_environment()) {
  memory.set_device_accessible(!settings.hide_device_memory);
}

Runtime& Runtime::instance() {
  static Runtime runtime;
  return runtime;
}

Memory& device_memory() { return Runtime::instance().memory; }

size_t shared_memory_limit(int capability) {
  const int kilobytes = capability >= 90   ? 227
                        : capability >= 86 ? 99
                        : capability >= 80 ? 163
                        : capability >= 75 ? 64
                                           : 96;
  return static_cast<size_t>(kilobytes) << 10;
}

// ---- calls and errors ---------------------------------------------------------------------------

cudaError_t Runtime::begin_call() {
  ++calls;
  if (fail_in > 0 && --fail_in == 0) return injected;
  if (settings.devices == 0) return settings.no_device_error;
  return sticky;
}

cudaError_t Runtime::remember(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

cudaError_t Runtime::refuse(cudaError_t error, const std::string& why) {
  report = why;
  return error;
}

// ---- streams ------------------------------------------------------------------------------------

cudaError_t Runtime::execute(const Operation& operation) {
  if (sticky != cudaSuccess) return sticky;
  if (executing_++ == 0 && settings.hide_device_memory) memory.set_device_accessible(true);
  const cudaError_t error = operation();
  if (--executing_ == 0 && settings.hide_device_memory) memory.set_device_accessible(false);
  if (error != cudaSuccess) sticky = error;
  return error;
}

cudaError_t Runtime::enqueue(cudaStream_t stream, Operation operation) {
  if (!valid(stream)) return refuse(cudaErrorInvalidResourceHandle, "work for a stream that does not exist");
  if (is_default(stream)) {
    for (const cudaStream_t other : streams) {
      if (other->capture != nullptr && other->blocking) return forbid_in_capture();
    }
    const cudaError_t error = drain(stream);
    return error != cudaSuccess ? error : execute(operation);
  }
  if (stream->capture != nullptr) {
    stream->capture->operations.push_back(std::move(operation));
    ++stream->captured;
    return cudaSuccess;
  }
  stream->queue.push_back(std::move(operation));
  return settings.late_streams ? cudaSuccess : drain(stream);
}

bool Runtime::step(cudaStream_t stream) {
  if (stream->queue.empty()) return false;
  const Operation operation = std::move(stream->queue.front());
  stream->queue.pop_front();
  execute(operation);
  return true;
}

cudaError_t Runtime::drain(cudaStream_t stream) {
  if (!is_default(stream)) {
    while (step(stream)) {
    }
    return sticky;
  }
  for (const cudaStream_t other : std::vector<cudaStream_t>(streams.begin(), streams.end())) {
    if (other->blocking) drain(other);
  }
  return sticky;
}

cudaError_t Runtime::drain_all() {
  for (const cudaStream_t stream : std::vector<cudaStream_t>(streams.begin(), streams.end())) drain(stream);
  return sticky;
}

bool Runtime::capturing() const {
  return std::any_of(streams.begin(), streams.end(), [](cudaStream_t stream) { return stream->capture != nullptr; });
}

cudaError_t Runtime::forbid_in_capture() {
  for (const cudaStream_t stream : streams) {
    if (stream->capture != nullptr) stream->capture->invalid = true;
  }
  return refuse(cudaErrorStreamCaptureUnsupported, "a call that waits or allocates, while a stream is being captured");
}

// ---- kernels ------------------------------------------------------------------------------------

Failure Runtime::run_blocks(const Launch& launch) {
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const uint64_t launch_seed = mix(settings.seed ^ mix(++launches_));
  std::vector<uint32_t> order;
  if (settings.seed > 1) {
    order.resize(blocks);
    for (uint64_t i = 0; i < blocks; ++i) order[i] = static_cast<uint32_t>(i);
    for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[mix(launch_seed + i) % i]);
  }
  const int wanted =
      race_checking() ? 1 : std::max(settings.workers, 1);  // the race checker follows one block at a time
  const size_t workers = static_cast<size_t>(std::min<uint64_t>(blocks, static_cast<uint64_t>(wanted)));
  while (executors_.size() < workers) executors_.push_back(std::make_unique<Executor>());
  executors_[0]->races().begin_launch();

  std::atomic<uint64_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex failure_mutex;
  Failure failure;
  const auto work = [&](Executor& executor) {
    for (uint64_t i; !stop && (i = next++) < blocks;) {
      const uint64_t block = settings.seed == 0 ? i : settings.seed == 1 ? blocks - 1 - i : order[i];
      Failure found = executor.run(launch, block_index(block, launch.grid), mix(launch_seed ^ mix(block)), settings);
      if (found.error == cudaSuccess) continue;
      stop = true;
      const std::lock_guard<std::mutex> lock(failure_mutex);
      if (failure.error == cudaSuccess) failure = std::move(found);
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < workers; ++i) threads.emplace_back(work, std::ref(*executors_[i]));
  work(*executors_[0]);
  for (std::thread& thread : threads) thread.join();
  return failure;
}

cudaError_t Runtime::run(const Launch& launch) {
  Failure failure = run_blocks(launch);
  if (failure.error == cudaSuccess) {
    const std::string overrun = memory.overrun();
    if (overrun.empty()) return cudaSuccess;
    failure = {cudaErrorIllegalAddress, std::string(launch.name) + ": " + overrun};
  }
  report = failure.text;
  return failure.error;
}

cudaError_t launch(Launch launch, cudaStream_t stream) {
  return Runtime::instance().call([&](Runtime& r) -> cudaError_t {
    const dim3 grid = launch.grid, block = launch.block;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const bool block_fits =
        threads >= 1 && threads <= kMaxThreads && block.x <= 1024 && block.y <= 1024 && block.z <= 64;
    const bool grid_fits =
        grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
    if (!block_fits || !grid_fits)
      return r.refuse(cudaErrorInvalidConfiguration, std::string(launch.name) + ": grid or block too large or empty");
    if (uint64_t{grid.x} * grid.y * grid.z > 0xffffffffu)
      return r.refuse(cudaErrorInvalidConfiguration, std::string(launch.name) + ": too many blocks for the host");
    const auto limit = r.dynamic_shared_limits.find(launch.kernel);
    const size_t allowed =
        limit != r.dynamic_shared_limits.end() ? static_cast<size_t>(limit->second) : kMaxStaticShared;
    if (launch.dynamic_shared_bytes > allowed) {
      return r.refuse(cudaErrorInvalidValue,
                      std::string(launch.name) + ": " + std::to_string(launch.dynamic_shared_bytes) +
                          " bytes of dynamic shared memory, allowed are " + std::to_string(allowed) +
                          " (cudaFuncAttributeMaxDynamicSharedMemorySize)");
    }
    ++r.work[launch.name];
    return r.enqueue(stream, [launch = std::move(launch)] { return Runtime::instance().run(launch); });
  });
}

bool kernel_may_use(const void* pointer) {
  Runtime& r = Runtime::instance();
  const std::lock_guard<std::recursive_mutex> lock(r.mutex_);
  return r.memory.find(pointer, 0) != nullptr;
}

cudaError_t refuse_argument(const char* kernel_name, int argument, const void* pointer) {
  return Runtime::instance().call([&](Runtime& r) -> cudaError_t {
    return r.sticky = r.refuse(cudaErrorIllegalAddress,
                               std::string(kernel_name) + ": argument " + std::to_string(argument) +
                                   " does not point to memory of the device: " + r.memory.describe(pointer));
  });
}

cudaError_t set_kernel_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return Runtime::instance().call([&](Runtime& r) -> cudaError_t {
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)
      return value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<size_t>(value) > shared_memory_limit(r.settings.capability)) {
      return r.refuse(cudaErrorInvalidValue, "kernel attribute " + std::to_string(attribute) + " = " +
                                                 std::to_string(value) + "; this device has " +
                                                 std::to_string(shared_memory_limit(r.settings.capability)) +
                                                 " bytes of shared memory per block");
    }
    r.dynamic_shared_limits[kernel] = value;
    return cudaSuccess;
  });
}

cudaError_t get_kernel_attributes(const void* kernel, cudaFuncAttributes* attributes) {
  return Runtime::instance().call([&](Runtime& r) -> cudaError_t {
    const auto limit = r.dynamic_shared_limits.find(kernel);
    *attributes = {0, kMaxThreads,
                   limit != r.dynamic_shared_limits.end() ? limit->second : static_cast<int>(kMaxStaticShared)};
    return cudaSuccess;
  });
}

// ---- control.h ----------------------------------------------------------------------------------

void Runtime::reset_device() {
  for (const cudaStream_t stream : streams) delete stream;
  for (const cudaEvent_t event : events) delete event;
  for (const cudaGraph_t graph : graphs) delete graph;
  for (const cudaGraphExec_t executable : executables) delete executable;
  delete_blas_handles();
  streams.clear();
  events.clear();
  graphs.clear();
  executables.clear();
  dynamic_shared_limits.clear();
  memory.free_all();
  sticky = last_error = cudaSuccess;
  report.clear();
}

Statistics Runtime::statistics() const {
  Statistics total{};
  total.launches = launches_;
  for (const auto& executor : executors_) {
    const Statistics& s = executor->statistics();
    total.blocks += s.blocks;
    total.threads += s.threads;
    total.slices += s.slices;
    total.switches += s.switches;
    total.barriers += s.barriers;
    total.collectives += s.collectives;
    total.copies += s.copies;
  }
  return total;
}

void Runtime::clear_statistics() {
  launches_ = 0;
  work.clear();
  for (const auto& executor : executors_) executor->statistics() = {};
}

namespace {
using Lock = std::lock_guard<std::recursive_mutex>;
}

Settings settings() {
  Runtime& r = Runtime::instance();
  const Lock lock(r.mutex_);
  return r.settings;
}

void set_settings(const Settings& settings) {
  Runtime& r = Runtime::instance();
  const Lock lock(r.mutex_);
  r.drain_all();
  r.settings = settings;
  r.memory.set_device_accessible(!settings.hide_device_memory);
}

std::string last_report() {
  Runtime& r = Runtime::instance();
  const Lock lock(r.mutex_);
  return r.report;
}

void fail_call(int n, cudaError_t error) {
  Runtime& r = Runtime::instance();
  const Lock lock(r.mutex_);
  r.fail_in = n;
  r.injected = error;
}

int64_t calls() {
  Runtime& r = Runtime::instance();
  const Lock lock(r.mutex_);
  return r.calls;
}

std::vector<LiveObject> live_objects() {
  Runtime& r = Runtime::instance();
  const Lock lock(r.mutex_);
  std::vector<LiveObject> all;
  for (const Allocation& a : r.memory.live())
    all.push_back({a.kind == MemoryKind::device ? "device memory" : "pinned memory", a.begin, a.bytes, a.number});
  for (const cudaStream_t stream : r.streams) all.push_back({"stream", stream, 0, stream->number});
  for (const cudaEvent_t event : r.events) all.push_back({"event", event, 0, event->number});
  for (const cudaGraph_t graph : r.graphs) all.push_back({"graph", graph, 0, graph->number});
  for (const cudaGraphExec_t executable : r.executables) all.push_back({"graph", executable, 0, executable->number});
  for (const auto& [handle, number] : r.blas_handles) all.push_back({"cuBLASLt handle", handle, 0, number});
  return all;
}

Statistics statistics() {
  Runtime& r = Runtime::instance();
  const Lock lock(r.mutex_);
  return r.statistics();
}

std::map<std::string, int64_t> work() {
  Runtime& r = Runtime::instance();
  const Lock lock(r.mutex_);
  return r.work;
}

void reset() {
  Runtime& r = Runtime::instance();
  const Lock lock(r.mutex_);
  r.reset_device();
  set_settings(settings_from_environment());
  r.clear_statistics();
  r.fail_in = 0;
}

}  // namespace rfn::cuda_on_host

const char* rfn_cuda_on_host_work() {
  thread_local std::string text;
  text.clear();
  for (const auto& [name, count] : rfn::cuda_on_host::work()) text += std::to_string(count) + " " + name + "\n";
  return text.c_str();
}

// ---- error functions of the API -----------------------------------------------------------------

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define RFN_NAME(name, value, text) \
  case name:                        \
    return #name;
    RFN_CUDA_ERRORS(RFN_NAME)
#undef RFN_NAME
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define RFN_TEXT(name, value, text) \
  case name:                        \
    return text;
    RFN_CUDA_ERRORS(RFN_TEXT)
#undef RFN_TEXT
  }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() {
  auto& r = rfn::cuda_on_host::Runtime::instance();
  const std::lock_guard<std::recursive_mutex> lock(r.mutex_);
  return r.sticky != cudaSuccess ? r.sticky : rfn::cuda_on_host::last_error;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  rfn::cuda_on_host::last_error = cudaSuccess;
  return error;
}
