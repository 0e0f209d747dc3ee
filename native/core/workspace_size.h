// The answer to a workspace query.
#pragma once
#include "core/error.h"
#include "core/workspace.h"

namespace rfn {

inline rfn_status workspace_size(const Arena& arena, const char* op, int64_t* bytes) {
  if (arena.overflowed())
    return fail(RFN_INVALID_ARGUMENT, "%s: the workspace for these shapes is larger than any memory", op);
  *bytes = arena.used();
  return RFN_OK;
}

}  // namespace rfn
