// Messages of the plug-in go to the library that loaded it, which keeps them for rfn_last_error.
#include "core/error.h"

#include <cstdarg>
#include <cstdio>

#include "cuda/plugin.h"

namespace rfn {
namespace {
cuda::Fail fail_callback = nullptr;
}

void cuda::set_fail(Fail callback) { fail_callback = callback; }

rfn_status fail(rfn_status code, const char* format, ...) noexcept {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return fail_callback(code, text);
}

}  // namespace rfn
