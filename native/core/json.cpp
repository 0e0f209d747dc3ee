#include "core/json.h"

#include <cinttypes>
#include <cstring>

#include "core/error.h"

namespace rfn {

std::string json_quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

JsonObject& JsonObject::json(const char* key, const std::string& value) {
  if (!fields_.empty()) fields_ += ", ";
  fields_ += json_quoted(key) + ": " + value;
  return *this;
}

rfn_status JsonObject::copy_to(const char* function, char* text, int64_t capacity) const {
  const std::string json = str();
  if (static_cast<int64_t>(json.size()) >= capacity) {
    return fail(RFN_INVALID_ARGUMENT, "%s: capacity: expected at least %zu, got %" PRId64, function, json.size() + 1,
                capacity);
  }
  std::memcpy(text, json.c_str(), json.size() + 1);
  return RFN_OK;
}

}  // namespace rfn
