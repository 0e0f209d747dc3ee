// Structs of callers that were built with an earlier minor version of the header.
#pragma once
#include <array>
#include <cinttypes>
#include <cstddef>
#include <cstring>

#include "core/error.h"

namespace rfn {

// The sizes that an op's struct had before it grew at its end. One that has grown specialises this:
//   template <>
//   struct EarlierSizes<rfn_linear> { static constexpr std::array list = {offsetof(rfn_linear, first_new_field)}; };
template <class Op>
struct EarlierSizes {
  static constexpr std::array<size_t, 0> list = {};
};

// Without the right struct_size nothing behind it may be read.
inline rfn_status check_struct_size(const char* name, uint32_t struct_size, size_t expected) {
  if (struct_size == expected) return RFN_OK;
  return fail(RFN_INVALID_ARGUMENT, "%s: struct_size: expected %zu, got %" PRIu32, name, expected, struct_size);
}

// body(op), all of whose fields may be read: what the caller's struct does not have yet is absent (zero).
template <class Op, class Body>
rfn_status with_complete(const char* name, const Op& op, const Body& body) {
  for (const size_t size : EarlierSizes<Op>::list) {
    if (op.struct_size != size) continue;
    Op complete = {};
    std::memcpy(static_cast<void*>(&complete), &op, size);
    complete.struct_size = sizeof(Op);
    return body(complete);
  }
  RFN_TRY(check_struct_size(name, op.struct_size, sizeof(Op)));
  return body(op);
}

}  // namespace rfn
