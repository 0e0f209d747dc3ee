// No exception leaves the library.
#pragma once
#include <exception>
#include <new>

#include "core/error.h"

namespace rfn {

// Runs body and turns whatever it throws into a status.
template <class Body>
rfn_status guard(const Body& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(RFN_OUT_OF_MEMORY, "out of memory for the library's own bookkeeping");
  } catch (const std::exception& e) {
    return fail(RFN_INTERNAL, "internal error: %s", e.what());
  } catch (...) {
    return fail(RFN_INTERNAL, "internal error: an exception that is not a std::exception");
  }
}

}  // namespace rfn
