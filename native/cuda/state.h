// What the CUDA backend keeps of a context, and how a CUDA error becomes a status.
#pragma once
#include <cuda_runtime.h>

#include <memory>

#include "core/backend.h"
#include "core/error.h"

namespace rfn::cuda {

class Gemm;  // gemm.h

// Native part of a context.
struct Device {
  int index = 0;
  int capability = 0;  // 10 * major + minor
  int multiprocessors = 0;
  int shared_bytes = 0;        // most dynamic shared memory of a block
  std::shared_ptr<Gemm> gemm;  // matrix products; loaded with the context
};

inline Device& device_of(const rfn_context& context) { return *static_cast<Device*>(context.native); }
inline cudaStream_t native_stream(const rfn_stream& stream) { return static_cast<cudaStream_t>(stream.native); }

// The status for a CUDA error of `what`, with a sentence. An error that the device does not recover from marks the
// context as faulted.
rfn_status report(rfn_context& context, cudaError_t error, const char* what);
inline rfn_status check(rfn_context& context, cudaError_t error, const char* what) {
  return error == cudaSuccess ? RFN_OK : report(context, error, what);
}

// Makes the context's device the calling thread's current one, and puts back the caller's at the end of the scope.
// Every slot begins with one:
//   const CurrentDevice current(context);  RFN_TRY(current.status());
class CurrentDevice {
 public:
  explicit CurrentDevice(rfn_context& context) : CurrentDevice(context, device_of(context).index) {}
  CurrentDevice(rfn_context& context, int index);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  rfn_status status() const { return status_; }

 private:
  int before_ = -1;  // to be put back
  rfn_status status_ = RFN_OK;
};

}  // namespace rfn::cuda

// RFN_CUDA_TRY(stream, cudaMemsetAsync(...)) and RFN_CUDA_TRY(stream, RFN_LAUNCH(...)): returns the status on an error.
#define RFN_CUDA_TRY(stream, ...) RFN_TRY(::rfn::cuda::check(*(stream).context, (__VA_ARGS__), __func__))
