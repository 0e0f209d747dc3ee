#include "core/plugin.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
#include <string>

#include "core/error.h"

namespace rfn {
namespace {

constexpr const char* kFile = "libreformer_native_cuda.so";
constexpr const char* kEntry = "rfn_cuda_backend";

rfn_status record(rfn_status code, const char* message) { return fail(code, "%s", message); }

std::string path() {
  const char* const given = std::getenv("RFN_CUDA_PLUGIN");
  if (given != nullptr && *given != '\0') return given;
  Dl_info self = {};
  if (dladdr(reinterpret_cast<const void*>(&cuda_backend), &self) == 0 || self.dli_fname == nullptr) return kFile;
  const std::string library = self.dli_fname;
  const size_t slash = library.rfind('/');
  return slash == std::string::npos ? kFile : library.substr(0, slash + 1) + kFile;
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
    fail(RFN_UNSUPPORTED, "CUDA is not available: %s refused backend table %u (%s)", file.c_str(), kBackendAbi, last_error());
  } else if (table->abi != kBackendAbi || table->struct_size != sizeof(Backend)) {
    fail(RFN_UNSUPPORTED, "CUDA is not available: %s: expected backend table %u of %zu bytes, got table %u of %u bytes", file.c_str(), kBackendAbi,
         sizeof(Backend), table->abi, table->struct_size);
  } else {
    return table;  // never unloaded: contexts point into it
  }
  dlclose(library);
  return nullptr;
}

}  // namespace

const Backend* cuda_backend() {
  static std::mutex mutex;
  static const Backend* loaded = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (loaded == nullptr) loaded = load(path());
  return loaded;
}

}  // namespace rfn
