#include "core/plugin.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
#include <string>

#include "core/error.h"

namespace rfn {
namespace {

constexpr const char* kEntry = "rfn_cuda_backend";

rfn_status record(rfn_status code, const char* message) { return fail(code, "%s", message); }

// A plug-in's file: where `variable` says, else beside this library.
std::string path(const char* variable, const char* name) {
  const char* const given = std::getenv(variable);
  if (given != nullptr && *given != '\0') return given;
  Dl_info self = {};
  if (dladdr(reinterpret_cast<const void*>(&cuda_backend), &self) == 0 || self.dli_fname == nullptr) return name;
  const std::string library = self.dli_fname;
  const size_t slash = library.rfind('/');
  return slash == std::string::npos ? name : library.substr(0, slash + 1) + name;
}

const Backend* load(const std::string& file) {
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fail(RFN_UNSUPPORTED, "CUDA is not available: the plug-in can't be loaded (%s)", dlerror());
    return nullptr;
  }
  const auto entry = reinterpret_cast<PluginEntry>(dlsym(library, kEntry));
  if (entry == nullptr) {
    fail(RFN_UNSUPPORTED, "CUDA is not available: %s: expected the symbol %s, got none", file.c_str(), kEntry);
    dlclose(library);
    return nullptr;
  }
  fail(RFN_UNSUPPORTED, "no reason given");  // what a plug-in that returns nullptr in silence leaves
  const Backend* const table = entry(kBackendAbi, &record);
  if (table == nullptr) {
    fail(RFN_UNSUPPORTED, "CUDA is not available: %s refused backend table %u (%s)", file.c_str(), kBackendAbi,
         last_error());
  } else if (table->abi != kBackendAbi || table->struct_size != sizeof(Backend)) {
    fail(RFN_UNSUPPORTED, "CUDA is not available: %s: expected backend table %u of %zu bytes, got table %u of %u bytes",
         file.c_str(), kBackendAbi, sizeof(Backend), table->abi, table->struct_size);
  } else {
    return table;  // never unloaded: contexts point into it
  }
  dlclose(library);
  return nullptr;
}

}  // namespace

const Backend* cuda_backend(int32_t device_type) {
  static std::mutex mutex;
  static const Backend *device = nullptr, *on_host = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (device_type == RFN_DEVICE_CUDA) {
    if (device == nullptr) device = load(path("RFN_CUDA_PLUGIN", "libreformer_native_cuda.so"));
    return device;
  }
  if (on_host == nullptr) on_host = load(path("RFN_CUDA_ON_HOST_PLUGIN", "libreformer_native_cuda_on_host.so"));
  return on_host;
}

}  // namespace rfn
