// The backend that is linked into the library, whichever it is. The core names no backend: this is what one defines to
// be found.
#pragma once
#include "core/backend.h"
#include "core/json.h"

namespace rfn {

const Backend& embedded_backend();

// Adds what rfn_build_info says of it.
void describe_embedded_backend(JsonObject& build);

}  // namespace rfn
