// The CUDA backend: a library of its own that is loaded when a CUDA device is asked for, so that this one has no CUDA
// in it and loads anywhere.
#pragma once
#include "core/backend.h"

namespace rfn {

// What a plug-in exports as extern "C" rfn_cuda_backend. `fail` records the message for rfn_last_error and returns the
// code. A plug-in whose table is not of version `abi` returns nullptr.
using PluginEntry = const Backend* (*)(uint32_t abi, rfn_status (*fail)(rfn_status code, const char* message));

// The table, or nullptr with the reason as this thread's last error. A plug-in that was found stays loaded; one that
// was not is looked for again. RFN_CUDA_PLUGIN names the file for RFN_DEVICE_CUDA, RFN_CUDA_ON_HOST_PLUGIN for
// RFN_DEVICE_CUDA_ON_HOST; without them, it is libreformer_native_cuda.so or libreformer_native_cuda_on_host.so beside
// this library.
const Backend* cuda_backend(int32_t device_type);

}  // namespace rfn
