// The plug-in's side of core/plugin.h.
#pragma once
#include "reformer_native.h"

namespace rfn::cuda {

using Fail = rfn_status (*)(rfn_status code, const char* message);
void set_fail(Fail callback);

}  // namespace rfn::cuda
