// The CUDA backend: its table, and everything in it that is not an op. Loaded by core/plugin.cpp through
// rfn_cuda_backend.
#include "core/backend.h"

#include <cuda_runtime.h>

#include <cinttypes>
#include <string>

#include "core/error.h"
#include "core/json.h"
#include "cuda/gemm.h"
#include "cuda/plugin.h"
#include "cuda/state.h"

namespace rfn::cuda {

RFN_DECLARE_OPS

namespace {

// Errors after which the device's context takes no more work.
bool sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorAssert:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorLaunchFailure:
      return true;
    default:
      return false;
  }
}

}  // namespace

rfn_status report(rfn_context& context, cudaError_t error, const char* what) {
  cudaGetLastError();  // the runtime keeps it otherwise, for the next call to find
  if (error == cudaErrorMemoryAllocation)
    return fail(RFN_OUT_OF_MEMORY, "%s: the CUDA device has not enough free memory", what);
  if (error == cudaErrorNoKernelImageForDevice) {
    return fail(RFN_UNSUPPORTED, "%s: this build has no kernels for compute capability %d.%d (it was compiled for %s)",
                what, context.native == nullptr ? 0 : device_of(context).capability / 10,
                context.native == nullptr ? 0 : device_of(context).capability % 10, RFN_CUDA_ARCHITECTURES);
  }
  if (sticky(error)) context.faulted.store(true, std::memory_order_release);
  return fail(RFN_DEVICE_ERROR, "%s: CUDA says %s (%s)%s", what, cudaGetErrorString(error), cudaGetErrorName(error),
              sticky(error) ? "; the context takes no further work" : "");
}

CurrentDevice::CurrentDevice(rfn_context& context, int index) {
  int now = -1;
  status_ = check(context, cudaGetDevice(&now), "cudaGetDevice");
  if (status_ != RFN_OK || now == index) return;
  status_ = check(context, cudaSetDevice(index), "cudaSetDevice");
  if (status_ == RFN_OK) before_ = now;
}

CurrentDevice::~CurrentDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

namespace {

rfn_status no_device(cudaError_t error) {
  cudaGetLastError();
  switch (error) {
    case cudaErrorInsufficientDriver:
      return fail(RFN_UNSUPPORTED, "CUDA is not available: no NVIDIA driver, or one that is older than CUDA %d.%d",
                  CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    case cudaErrorNoDevice:
      return fail(RFN_UNSUPPORTED, "CUDA is not available: the NVIDIA driver sees no GPU");
    default:
      return fail(RFN_UNSUPPORTED, "CUDA is not available: CUDA says %s (%s)", cudaGetErrorString(error),
                  cudaGetErrorName(error));
  }
}

// *count is 0, with the reason as the last error, where CUDA can't be used.
rfn_status device_count(int32_t* count) {
  int devices = 0;  // left as it is on an error
  const cudaError_t error = cudaGetDeviceCount(&devices);
  *count = 0;
  if (error != cudaSuccess)
    no_device(error);
  else if (devices == 0)
    no_device(cudaErrorNoDevice);
  else
    *count = devices;
  return RFN_OK;
}

rfn_status device_describe(int32_t index, char* text, int64_t capacity) {
  int32_t devices = 0;
  RFN_TRY(device_count(&devices));
  if (devices == 0) return RFN_UNSUPPORTED;
  if (index < 0 || index >= devices) {
    return fail(RFN_INVALID_ARGUMENT, "rfn_device_describe: device_index: expected 0 to %" PRId32 ", got %" PRId32,
                devices - 1, index);
  }
  cudaDeviceProp p = {};
  const cudaError_t error = cudaGetDeviceProperties(&p, index);
  if (error != cudaSuccess) return no_device(error);
  int driver = 0;
  cudaDriverGetVersion(&driver);
  return JsonObject()
      .text("name", p.name)
      .text("type", "cuda")
      .number("memory_bytes", static_cast<int64_t>(p.totalGlobalMem))
      .text("compute_capability", std::to_string(p.major) + "." + std::to_string(p.minor))
      .number("multiprocessors", p.multiProcessorCount)
      .number("shared_bytes_per_block", static_cast<int64_t>(p.sharedMemPerBlockOptin))
      .number("l2_bytes", p.l2CacheSize)
      .number("driver_version", driver)
      .number("runtime_version", CUDART_VERSION)
      .text("architectures", RFN_CUDA_ARCHITECTURES)
      .copy_to("rfn_device_describe", text, capacity);
}

rfn_status context_create(rfn_context& context) {
  const int index = context.device_index;
  const CurrentDevice current(context, index);
  RFN_TRY(current.status());
  auto device = std::make_unique<Device>();
  device->index = index;
  const auto attribute = [&](cudaDeviceAttr which, int* value) {
    return check(context, cudaDeviceGetAttribute(value, which, index), "rfn_context_create");
  };
  int major = 0, minor = 0;
  RFN_TRY(attribute(cudaDevAttrComputeCapabilityMajor, &major));
  RFN_TRY(attribute(cudaDevAttrComputeCapabilityMinor, &minor));
  RFN_TRY(attribute(cudaDevAttrMultiProcessorCount, &device->multiprocessors));
  RFN_TRY(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &device->shared_bytes));
  device->capability = 10 * major + minor;
  if (device->capability < 70) {
    return fail(RFN_UNSUPPORTED,
                "rfn_context_create: device_index: expected a GPU of compute capability 7.0 or later, got %d.%d", major,
                minor);
  }
  RFN_TRY(check(context, cudaFree(nullptr), "rfn_context_create"));  // makes the primary context
  RFN_TRY(load_gemm(context, &device->gemm));
  context.threads = 1;
  context.native = device.release();
  return RFN_OK;
}

void context_destroy(rfn_context& context) {
  Device* const device = &device_of(context);
  {
    const CurrentDevice current(context);
    device->gemm.reset();
  }
  delete device;
}

rfn_status context_set_precision(rfn_context& context, int32_t precision) {
  const int capability = device_of(context).capability;
  if (precision == RFN_PRECISION_F32 || capability >= 80) return RFN_OK;
  return fail(
      RFN_UNSUPPORTED,
      "rfn_context_set_precision: precision: expected RFN_PRECISION_F32 (0) on compute capability %d.%d, got %" PRId32
      " (which needs 8.0)",
      capability / 10, capability % 10, precision);
}

rfn_status memory_info(const rfn_context& context, int64_t* free_bytes, int64_t* total_bytes) {
  rfn_context& mutable_context = const_cast<rfn_context&>(context);  // only to mark a fault
  const CurrentDevice current(mutable_context);
  RFN_TRY(current.status());
  size_t free_now = 0, total = 0;
  RFN_TRY(check(mutable_context, cudaMemGetInfo(&free_now, &total), "rfn_memory_info"));
  *free_bytes = static_cast<int64_t>(free_now);
  *total_bytes = static_cast<int64_t>(total);
  return RFN_OK;
}

rfn_status stream_create(rfn_stream& stream) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  cudaStream_t native = nullptr;
  RFN_TRY(check(*stream.context, cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), "rfn_stream_create"));
  stream.native = native;
  return RFN_OK;
}

rfn_status stream_wrap(rfn_stream& stream, void* native) {
  stream.native = native;
  return RFN_OK;
}

void stream_destroy(rfn_stream& stream) {
  if (!stream.owned) return;
  const CurrentDevice current(*stream.context);
  cudaStreamDestroy(native_stream(stream));  // waits for nothing; work in flight goes on
}

rfn_status stream_synchronize(rfn_stream& stream) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  return check(*stream.context, cudaStreamSynchronize(native_stream(stream)), "rfn_stream_synchronize");
}

cudaEvent_t native_event(const rfn_event& event) { return static_cast<cudaEvent_t>(event.native); }

rfn_status event_create(rfn_event& event) {
  const CurrentDevice current(*event.context);
  RFN_TRY(current.status());
  cudaEvent_t native = nullptr;
  RFN_TRY(check(*event.context, cudaEventCreate(&native), "rfn_event_create"));
  event.native = native;
  return RFN_OK;
}

void event_destroy(rfn_event& event) {
  const CurrentDevice current(*event.context);
  cudaEventDestroy(native_event(event));
}

rfn_status event_record(rfn_event& event, rfn_stream& stream) {
  const CurrentDevice current(*event.context);
  RFN_TRY(current.status());
  return check(*event.context, cudaEventRecord(native_event(event), native_stream(stream)), "rfn_event_record");
}

rfn_status event_wait(rfn_event& event, rfn_stream& stream) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  return check(*stream.context, cudaStreamWaitEvent(native_stream(stream), native_event(event), 0), "rfn_event_wait");
}

rfn_status event_elapsed(rfn_event& start, rfn_event& stop, double* milliseconds) {
  const CurrentDevice current(*start.context);
  RFN_TRY(current.status());
  for (rfn_event* const event : {&start, &stop})
    RFN_TRY(check(*start.context, cudaEventSynchronize(native_event(*event)), "rfn_event_elapsed"));
  float elapsed = 0;
  const cudaError_t error = cudaEventElapsedTime(&elapsed, native_event(start), native_event(stop));
  if (error == cudaErrorInvalidResourceHandle) {
    cudaGetLastError();
    return fail(RFN_INVALID_ARGUMENT, "rfn_event_elapsed: expected two recorded events");
  }
  RFN_TRY(check(*start.context, error, "rfn_event_elapsed"));
  *milliseconds = elapsed;
  return RFN_OK;
}

rfn_status buffer_allocate(rfn_context& context, int32_t memory, int64_t bytes, void** out) {
  const CurrentDevice current(context);
  RFN_TRY(current.status());
  const size_t size = bytes == 0 ? 1 : static_cast<size_t>(bytes);
  const cudaError_t error =
      memory == RFN_MEMORY_HOST ? cudaHostAlloc(out, size, cudaHostAllocPortable) : cudaMalloc(out, size);
  if (error == cudaSuccess) return RFN_OK;
  *out = nullptr;
  if (error != cudaErrorMemoryAllocation) return report(context, error, "rfn_buffer_allocate");
  cudaGetLastError();
  if (memory == RFN_MEMORY_HOST)
    return fail(RFN_OUT_OF_MEMORY, "rfn_buffer_allocate: bytes: %" PRId64 " can't be page-locked", bytes);
  size_t free_now = 0, total = 0;
  if (cudaMemGetInfo(&free_now, &total) != cudaSuccess) cudaGetLastError();
  return fail(RFN_OUT_OF_MEMORY,
              "rfn_buffer_allocate: bytes: asked for %" PRId64 ", but %zu of %zu are free on CUDA device %d", bytes,
              free_now, total, context.device_index);
}

rfn_status buffer_free(rfn_context& context, int32_t memory, void* buffer) {
  const CurrentDevice current(context);
  rfn_status status = current.status();
  if (status == RFN_OK) {
    const cudaError_t error = memory == RFN_MEMORY_HOST ? cudaFreeHost(buffer) : cudaFree(buffer);
    if (error == cudaErrorInvalidValue) {
      cudaGetLastError();
      return fail(RFN_INVALID_ARGUMENT,
                  "rfn_buffer_free: buffer: expected one that this context allocated and has not freed, got %p",
                  buffer);
    }
    status = check(context, error, "rfn_buffer_free");
  }
  return context.faulted ? RFN_OK : status;  // a lost device has lost its memory too: what is left to end is the
                                             // buffer's hold on the context
}

rfn_status copy(rfn_stream& stream, void* destination, const void* source, int64_t bytes, int32_t direction) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const cudaMemcpyKind kind = direction == RFN_COPY_HOST_TO_DEVICE ? cudaMemcpyHostToDevice
                              : direction == RFN_COPY_DEVICE_TO_HOST
                                  ? cudaMemcpyDeviceToHost
                                  : cudaMemcpyDefault;  // finds the devices of both ends
  return check(*stream.context,
               cudaMemcpyAsync(destination, source, static_cast<size_t>(bytes), kind, native_stream(stream)),
               "rfn_copy");
}

rfn_status fill_zero(rfn_stream& stream, void* destination, int64_t bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  return check(*stream.context, cudaMemsetAsync(destination, 0, static_cast<size_t>(bytes), native_stream(stream)),
               "rfn_fill_zero");
}

const Backend& backend() {
  static const Backend table = [] {
    Backend table = {};
    RFN_FILL_DEVICE("CUDA")
    RFN_FILL_OPS
    return table;
  }();
  return table;
}

}  // namespace
}  // namespace rfn::cuda

extern "C" __attribute__((visibility("default"))) const rfn::Backend* rfn_cuda_backend(uint32_t abi,
                                                                                       rfn::cuda::Fail fail) {
  rfn::cuda::set_fail(fail);
  if (abi != rfn::kBackendAbi) {
    fail(RFN_UNSUPPORTED, "libreformer_native and its CUDA plug-in come from different builds");
    return nullptr;
  }
  return &rfn::cuda::backend();
}
