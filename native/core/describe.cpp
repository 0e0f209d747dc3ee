#include "core/describe.h"

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/embedded.h"
#include "core/error.h"
#include "core/json.h"
#include "core/plugin.h"

#define RFN_TEXT_OF(x) #x
#define RFN_TEXT(x) RFN_TEXT_OF(x)

namespace rfn {
namespace {

// describe_table.inc lists the fields of the public structs in header order, as S(struct, F(field)...). It is
// generated; the proof below fails the build when it is older than the header.

struct Field {
  const char* name;
  size_t offset;
  size_t elements;  // of an array, else 1
};

template <class T>
constexpr size_t element_count = std::extent_v<T> == 0 ? 1 : std::extent_v<T>;

#define F(field) {#field, offsetof(Struct, field), element_count<decltype(Struct::field)>},
#define S(name, ...)                               \
  struct Fields_##name {                           \
    using Struct = name;                           \
    static constexpr Field list[] = {__VA_ARGS__}; \
  };
#include "core/describe_table.inc"
#undef S
#undef F

// ---- proof that no field is missing: a struct takes exactly as many initializers as its list has elements ----

struct Any {
  template <class T>
  constexpr operator T() const noexcept;  // NOLINT: only its type is used
};

template <class T, class, class... Initializers>
struct Accepts : std::false_type {};
template <class T, class... Initializers>
struct Accepts<T, std::void_t<decltype(T{std::declval<Initializers>()...})>, Initializers...> : std::true_type {};

template <size_t>
using AnyOf = Any;
template <class T, size_t... i>
constexpr bool accepts(std::index_sequence<i...>) {
  return Accepts<T, void, AnyOf<i>...>::value;
}

template <class List>
constexpr bool complete() {
  size_t elements = 0, offset = 0;
  for (const Field& field : List::list) {
    if (elements > 0 && field.offset <= offset) return false;  // out of order, or twice
    offset = field.offset;
    elements += field.elements;
  }
  return elements == List::elements;
}

#define F(field) +element_count<decltype(Struct::field)>
#define S(name, ...)                                                                        \
  struct Count_##name : Fields_##name {                                                     \
    static constexpr size_t elements = 0 __VA_ARGS__;                                       \
  };                                                                                        \
  static_assert(complete<Count_##name>(), #name ": the fields are not in header order");    \
  static_assert(accepts<name>(std::make_index_sequence<Count_##name::elements>()) &&        \
                    !accepts<name>(std::make_index_sequence<Count_##name::elements + 1>()), \
                #name ": the list of fields is not complete");
#include "core/describe_table.inc"
#undef S
#undef F

template <class List>
void append(std::string& text, const char* name) {
  text += name;
  text += ':' + std::to_string(sizeof(typename List::Struct)) + ':';
  for (const Field& field : List::list) {
    if (&field != List::list) text += ',';
    text += field.name;
    text += '@' + std::to_string(field.offset);
  }
  text += '\n';
}

}  // namespace

std::string describe_abi() {
  std::string text;
#define S(name, ...) append<Fields_##name>(text, #name);
#include "core/describe_table.inc"
#undef S
  return text;
}

std::string describe_build() {
  JsonObject build;
  build.text("version", RFN_VERSION)
      .text("abi", RFN_TEXT(RFN_ABI_MAJOR) "." RFN_TEXT(RFN_ABI_MINOR))
      .text("compiler", RFN_COMPILER)
      .text("build", RFN_BUILD_TYPE)
      .text("sanitizers", RFN_SANITIZERS);
  describe_embedded_backend(build);
  const std::string message = last_error();
  const bool cpu = embedded_backend() != nullptr;
  const std::string cpu_missing = cpu ? "null" : json_quoted(last_error());
  const bool cuda = cuda_backend(RFN_DEVICE_CUDA) != nullptr;
  const std::string cuda_missing = cuda ? "null" : json_quoted(last_error());
  build
      .json("backends",
            std::string("[") + (cpu ? "\"cpu\"" : "") + (cpu && cuda ? ", " : "") + (cuda ? "\"cuda\"" : "") + "]")
      .json("cpu_missing", cpu_missing)
      .json("cuda_missing", cuda_missing);
  fail(RFN_OK, "%s", message.c_str());  // a description is not a failed call: the message of the last one stays
  return build.str();
}

}  // namespace rfn
