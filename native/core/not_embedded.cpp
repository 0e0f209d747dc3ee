// The core alone (RFN_CPU=OFF): what stands for the embedded backend where none is linked in.
#include "core/embedded.h"
#include "core/error.h"

namespace rfn {

const Backend* embedded_backend() {
  fail(RFN_UNSUPPORTED, "the CPU is not available: this library was built without its CPU backend (RFN_CPU=OFF)");
  return nullptr;
}

void describe_embedded_backend(JsonObject&) {}

}  // namespace rfn
