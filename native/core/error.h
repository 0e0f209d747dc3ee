// Status codes with a thread-local message: the one way an error leaves a function of this library.
#pragma once
#include "reformer_native.h"

namespace rfn {

// Records the message (printf format) for this thread and returns `code`, so that callers write `return fail(...)`.
[[gnu::format(printf, 2, 3)]] rfn_status fail(rfn_status code, const char* format, ...) noexcept;

// The recorded message; "" when there is none.
const char* last_error() noexcept;

}  // namespace rfn

// Passes a failure on.
#define RFN_TRY(expression)                              \
  do {                                                   \
    const rfn_status rfn_try_status = (expression);      \
    if (rfn_try_status != RFN_OK) return rfn_try_status; \
  } while (0)
