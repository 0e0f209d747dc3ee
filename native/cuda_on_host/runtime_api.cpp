// Devices, memory and copies of include/cuda_runtime.h.
#include <algorithm>
#include <cstdio>

#include "cuda_on_host/runtime.h"

using rfn::cuda_on_host::Allocation;
using rfn::cuda_on_host::kMaxStaticShared;
using rfn::cuda_on_host::MemoryKind;
using rfn::cuda_on_host::Runtime;
using rfn::cuda_on_host::shared_memory_limit;

namespace {

template <class F>
cudaError_t call(F&& body) {
  return Runtime::instance().call(std::forward<F>(body));
}

int threads_per_multiprocessor(int capability) {
  return capability == 75 ? 1024 : capability == 86 || capability == 89 ? 1536 : 2048;
}
size_t shared_per_multiprocessor(int capability) {
  return shared_memory_limit(capability) + (capability >= 80 ? 1024 : 0);
}

cudaError_t check_device(Runtime& r, int device) {
  return device >= 0 && device < r.settings.devices ? cudaSuccess : cudaErrorInvalidDevice;
}

thread_local int current_device = 0;

bool is_device(Runtime& r, const void* pointer, size_t bytes) {
  const Allocation* found = r.memory.find(pointer, bytes);
  return found != nullptr && found->kind == MemoryKind::device;
}
bool is_pinned(Runtime& r, const void* pointer, size_t bytes) {
  const Allocation* found = r.memory.find(pointer, bytes);
  return found != nullptr && found->kind != MemoryKind::device;
}

// Each side must lie in one allocation of the memory its direction names.
cudaError_t check_copy(Runtime& r, const void* destination, const void* source, size_t bytes, cudaMemcpyKind& kind) {
  if (bytes == 0) return cudaSuccess;
  if (destination == nullptr || source == nullptr) return r.refuse(cudaErrorInvalidValue, "copy: null pointer");
  const bool from_device = r.memory.find(source, 0) != nullptr && r.memory.find(source, 0)->kind == MemoryKind::device;
  const bool to_device =
      r.memory.find(destination, 0) != nullptr && r.memory.find(destination, 0)->kind == MemoryKind::device;
  if (kind == cudaMemcpyDefault) {
    kind = from_device ? (to_device ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost)
           : to_device ? cudaMemcpyHostToDevice
                       : cudaMemcpyHostToHost;
  }
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDeviceToDevice) return cudaErrorInvalidMemcpyDirection;
  const bool reads_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const bool writes_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  if (reads_device != from_device || writes_device != to_device)
    return r.refuse(cudaErrorInvalidValue, "copy: pointers do not fit the direction");
  if ((from_device && !is_device(r, source, bytes)) || (to_device && !is_device(r, destination, bytes))) {
    return r.refuse(cudaErrorInvalidValue,
                    "copy: " + std::to_string(bytes) + " bytes reach past the end of the allocation");
  }
  return cudaSuccess;
}

// A stream's copy. Pageable host memory is read before the call returns and written before it returns, as by CUDA;
// pinned memory when the stream comes to it.
cudaError_t copy(Runtime& r, void* destination, const void* source, size_t bytes, cudaMemcpyKind kind,
                 cudaStream_t stream) {
  if (const cudaError_t error = check_copy(r, destination, source, bytes, kind); error != cudaSuccess || bytes == 0)
    return error;
  const bool captured = !Runtime::is_default(stream) && r.valid(stream) && stream->capture != nullptr;
  if (kind == cudaMemcpyHostToDevice && !is_pinned(r, source, bytes) && !captured) {
    const auto staged =
        std::make_shared<std::vector<char>>(static_cast<const char*>(source), static_cast<const char*>(source) + bytes);
    return r.enqueue(stream, [=] {
      std::memcpy(destination, staged->data(), bytes);
      return cudaSuccess;
    });
  }
  const cudaError_t error = r.enqueue(stream, [=] {
    std::memmove(destination, source, bytes);
    return cudaSuccess;
  });
  if (error != cudaSuccess || captured) return error;
  const bool pageable =
      (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyHostToHost) && !is_pinned(r, destination, bytes);
  return pageable ? r.drain(stream) : cudaSuccess;
}

cudaError_t allocate(Runtime& r, void** pointer, size_t bytes, MemoryKind kind) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  if (r.capturing()) return r.forbid_in_capture();
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  const bool device = kind == MemoryKind::device;
  if (device && bytes > r.settings.memory_bytes - std::min(r.settings.memory_bytes, r.memory.device_bytes())) {
    return r.refuse(cudaErrorMemoryAllocation, std::to_string(bytes) + " bytes asked for, " +
                                                   std::to_string(r.memory.device_bytes()) + " of " +
                                                   std::to_string(r.settings.memory_bytes) + " in use");
  }
  *pointer = r.memory.allocate(kind, bytes, r.settings.alignment, r.next_number());
  return *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t release(Runtime& r, void* pointer, MemoryKind kind) {
  if (pointer == nullptr) return cudaSuccess;
  if (r.capturing()) return r.forbid_in_capture();
  if (const cudaError_t error = r.drain_all(); error != cudaSuccess) return error;
  return r.memory.free(kind, pointer) ? cudaSuccess
                                      : r.refuse(cudaErrorInvalidValue, "free: " + r.memory.describe(pointer));
}

}  // namespace

// ---- devices ------------------------------------------------------------------------------------

cudaError_t cudaDriverGetVersion(int* version) {
  return call([&](Runtime&) { return *version = CUDART_VERSION, cudaSuccess; });
}
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  return call([&](Runtime& r) { return *count = r.settings.devices, cudaSuccess; });
}
cudaError_t cudaSetDevice(int device) {
  return call([&](Runtime& r) {
    const cudaError_t error = check_device(r, device);
    if (error == cudaSuccess) current_device = device;
    return error;
  });
}
cudaError_t cudaGetDevice(int* device) {
  return call([&](Runtime&) { return *device = current_device, cudaSuccess; });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  return call([&](Runtime& r) {
    if (const cudaError_t error = check_device(r, device); error != cudaSuccess) return error;
    const int capability = r.settings.capability;
    *p = {};
    std::snprintf(p->name, sizeof p->name, "CUDA on host, compute capability %d.%d", capability / 10, capability % 10);
    p->uuid.bytes[15] = static_cast<char>(device + 1);
    p->totalGlobalMem = r.settings.memory_bytes;
    p->sharedMemPerBlock = kMaxStaticShared;
    p->sharedMemPerBlockOptin = shared_memory_limit(capability);
    p->sharedMemPerMultiprocessor = shared_per_multiprocessor(capability);
    p->reservedSharedMemPerBlock = capability >= 80 ? 1024 : 0;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = threads_per_multiprocessor(capability);
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->clockRate = 1000000;
    p->memoryClockRate = 1000000;
    p->memoryBusWidth = 64;
    p->l2CacheSize = 4 << 20;
    p->major = capability / 10;
    p->minor = capability % 10;
    p->multiProcessorCount = 2;
    p->concurrentKernels = 1;
    p->unifiedAddressing = 1;
    p->memoryPoolsSupported = 1;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (const cudaError_t error = cudaGetDeviceProperties(&p, device); error != cudaSuccess) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(p.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(p.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(p.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrMemoryPoolsSupported:
      *value = p.memoryPoolsSupported;
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  return call([](Runtime& r) { return r.capturing() ? r.forbid_in_capture() : r.drain_all(); });
}
cudaError_t cudaDeviceReset() {
  Runtime& r = Runtime::instance();
  const std::lock_guard<std::recursive_mutex> lock(r.mutex_);
  r.reset_device();
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can_access, int device, int peer) {
  return call([&](Runtime& r) {
    if (check_device(r, device) != cudaSuccess || check_device(r, peer) != cudaSuccess) return cudaErrorInvalidDevice;
    return *can_access = device != peer, cudaSuccess;
  });
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int) {
  return call([&](Runtime& r) { return peer == current_device ? cudaErrorInvalidDevice : check_device(r, peer); });
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call([&](Runtime&) { return *least = 0, *greatest = 0, cudaSuccess; });
}

namespace rfn::cuda_on_host {
cudaError_t max_active_blocks(const void*, int block_threads, size_t dynamic_shared_bytes, int* blocks) {
  return call([&](Runtime& r) {
    if (block_threads < 1 || block_threads > kMaxThreads) return cudaErrorInvalidValue;
    const int capability = r.settings.capability;
    const size_t shared = dynamic_shared_bytes + (capability >= 80 ? 1024 : 0);
    const int by_threads = threads_per_multiprocessor(capability) / ((block_threads + 31) / 32 * 32);
    const int by_shared = shared == 0 ? 32 : static_cast<int>(shared_per_multiprocessor(capability) / shared);
    *blocks = std::min({by_threads, by_shared, capability == 75 || capability == 86 ? 16 : 32});
    return cudaSuccess;
  });
}

cudaError_t copy_to_symbol(void* symbol, size_t symbol_bytes, const void* source, size_t bytes, size_t offset,
                           cudaStream_t stream) {
  return call([&](Runtime& r) -> cudaError_t {
    if (offset > symbol_bytes || bytes > symbol_bytes - offset)
      return r.refuse(cudaErrorInvalidValue, "copy past the end of a symbol");
    ++r.work["copy"];
    const auto staged =
        std::make_shared<std::vector<char>>(static_cast<const char*>(source), static_cast<const char*>(source) + bytes);
    return r.enqueue(stream, [=] {
      std::memcpy(static_cast<char*>(symbol) + offset, staged->data(), bytes);
      return cudaSuccess;
    });
  });
}
}  // namespace rfn::cuda_on_host

// ---- memory -------------------------------------------------------------------------------------

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  return call([&](Runtime& r) {
    *total_bytes = r.settings.memory_bytes;
    *free_bytes = r.settings.memory_bytes - std::min(r.settings.memory_bytes, r.memory.device_bytes());
    return cudaSuccess;
  });
}
cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return call([&](Runtime& r) { return allocate(r, pointer, bytes, MemoryKind::device); });
}
cudaError_t cudaFree(void* pointer) {
  return call([&](Runtime& r) { return release(r, pointer, MemoryKind::device); });
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
  return call([&](Runtime& r) {
    return r.valid(stream) ? allocate(r, pointer, bytes, MemoryKind::device) : cudaErrorInvalidResourceHandle;
  });
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  return call([&](Runtime& r) -> cudaError_t {
    if (pointer == nullptr) return cudaSuccess;
    const Allocation* found = r.memory.find(pointer, 0);
    if (found == nullptr || found->begin != pointer)
      return r.refuse(cudaErrorInvalidValue, "free: " + r.memory.describe(pointer));
    if (r.capturing()) return r.forbid_in_capture();
    return r.enqueue(stream, [pointer] {
      return Runtime::instance().memory.free(MemoryKind::device, pointer) ? cudaSuccess : cudaErrorIllegalAddress;
    });
  });
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, cudaHostAllocDefault); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned int) {
  return call([&](Runtime& r) { return allocate(r, pointer, bytes, MemoryKind::pinned); });
}
cudaError_t cudaFreeHost(void* pointer) {
  return call([&](Runtime& r) { return release(r, pointer, MemoryKind::pinned); });
}
cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned int) {
  return call([&](Runtime& r) {
    if (pointer == nullptr || bytes == 0) return cudaErrorInvalidValue;
    if (r.memory.find(pointer, 0) != nullptr) return cudaErrorHostMemoryAlreadyRegistered;
    r.memory.add_registered(pointer, bytes, r.next_number());
    return cudaSuccess;
  });
}
cudaError_t cudaHostUnregister(void* pointer) {
  return call([&](Runtime& r) {
    if (const cudaError_t error = r.drain_all(); error != cudaSuccess) return error;
    return r.memory.free(MemoryKind::registered, pointer) ? cudaSuccess : cudaErrorHostMemoryNotRegistered;
  });
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return call([&](Runtime& r) {
    const Allocation* found = r.memory.find(pointer, 0);
    void* address = const_cast<void*>(pointer);
    if (found == nullptr) {
      *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, address};
    } else if (found->kind == MemoryKind::device) {
      *attributes = {cudaMemoryTypeDevice, 0, address, nullptr};
    } else {
      *attributes = {cudaMemoryTypeHost, 0, address, address};
    }
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  return call([&](Runtime& r) {
    if (const cudaError_t error = check_device(r, device); error != cudaSuccess) return error;
    *pool = reinterpret_cast<cudaMemPool_t>(&r.memory);
    return cudaSuccess;
  });
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void*) {
  return call([&](Runtime& r) {
    return pool == reinterpret_cast<cudaMemPool_t>(&r.memory) ? cudaSuccess : cudaErrorInvalidValue;
  });
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t) {
  return call([&](Runtime& r) {
    return pool == reinterpret_cast<cudaMemPool_t>(&r.memory) ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaMemcpy(void* destination, const void* source, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(destination, source, bytes, kind, nullptr);
}
cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return call([&](Runtime& r) {
    ++r.work["copy"];
    return copy(r, destination, source, bytes, kind, stream);
  });
}
cudaError_t cudaMemcpy2DAsync(void* destination, size_t destination_pitch, const void* source, size_t source_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return call([&](Runtime& r) {
    if (width > destination_pitch || width > source_pitch) return cudaErrorInvalidValue;
    ++r.work["copy"];
    for (size_t row = 0; row < height; ++row) {
      const cudaError_t error = copy(r, static_cast<char*>(destination) + row * destination_pitch,
                                     static_cast<const char*>(source) + row * source_pitch, width, kind, stream);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}
cudaError_t cudaMemcpyPeerAsync(void* destination, int destination_device, const void* source, int source_device,
                                size_t bytes, cudaStream_t stream) {
  return call([&](Runtime& r) {
    if (check_device(r, destination_device) != cudaSuccess || check_device(r, source_device) != cudaSuccess)
      return cudaErrorInvalidDevice;
    ++r.work["copy"];
    return copy(r, destination, source, bytes, cudaMemcpyDeviceToDevice, stream);
  });
}
cudaError_t cudaMemset(void* destination, int value, size_t bytes) {
  return cudaMemsetAsync(destination, value, bytes, nullptr);
}
cudaError_t cudaMemsetAsync(void* destination, int value, size_t bytes, cudaStream_t stream) {
  return call([&](Runtime& r) -> cudaError_t {
    if (bytes == 0) return cudaSuccess;
    if (!is_device(r, destination, bytes))
      return r.refuse(cudaErrorInvalidValue, "memset: not " + std::to_string(bytes) + " bytes of device memory");
    ++r.work["fill"];
    return r.enqueue(stream, [=] {
      std::memset(destination, value, bytes);
      return cudaSuccess;
    });
  });
}
