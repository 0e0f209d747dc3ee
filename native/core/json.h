// The one writer of JSON: what the library and its backends say about themselves.
#pragma once
#include <cstdint>
#include <string>

#include "reformer_native.h"

namespace rfn {

// The text as a JSON string. Control characters become spaces.
std::string json_quoted(const std::string& text);

// An object, key by key.
class JsonObject {
 public:
  JsonObject& text(const char* key, const std::string& value) { return json(key, json_quoted(value)); }
  JsonObject& number(const char* key, int64_t value) { return json(key, std::to_string(value)); }
  // A value that is JSON already.
  JsonObject& json(const char* key, const std::string& value);

  std::string str() const { return "{" + fields_ + "}"; }

  // Writes the object with its zero into the caller's text of `capacity` bytes, or refuses.
  rfn_status copy_to(const char* function, char* text, int64_t capacity) const;

 private:
  std::string fields_;
};

}  // namespace rfn
