// The backend that is linked into the library, whichever it is. The core includes no backend: this is what one defines
// to be found, and not_embedded.cpp where there is none.
#pragma once
#include "core/backend.h"
#include "core/json.h"

namespace rfn {

// The table, or nullptr with the reason as this thread's last error.
const Backend* embedded_backend();

// Adds what rfn_build_info says of it.
void describe_embedded_backend(JsonObject& build);

}  // namespace rfn
