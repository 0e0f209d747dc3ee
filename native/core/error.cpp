#include "core/error.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace rfn {
namespace {

thread_local char message[2048];

}  // namespace

rfn_status fail(rfn_status code, const char* format, ...) noexcept {
  char text[sizeof(message)];  // an argument may point into the old message
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  std::memcpy(message, text, std::strlen(text) + 1);
  return code;
}

const char* last_error() noexcept { return message; }

}  // namespace rfn
