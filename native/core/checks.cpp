#include "core/checks.h"

#include <cinttypes>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "core/error.h"
#include "core/tensor.h"

namespace rfn {
namespace {

constexpr uintptr_t kWorkspaceAlignment = 64;

struct DataType {
  const char* name;
  int64_t bytes;
};

// By RFN_F32 ...; [0] stands for every unknown one.
constexpr DataType kDataTypes[] = {{"?", 0},   {"F32", 4}, {"F64", 8},  {"I32", 4},
                                   {"I64", 8}, {"U8", 1},  {"BF16", 2}, {"F16", 2}};

const DataType& data_type(int32_t dtype) {
  return dtype >= RFN_F32 && dtype <= RFN_F16 ? kDataTypes[dtype] : kDataTypes[0];
}

bool is_float(int32_t dtype) { return dtype == RFN_F32 || is_half(dtype); }

std::string sizes_text(const int64_t* sizes, int64_t rank) {
  std::string text = "[";
  for (int64_t i = 0; i < rank; ++i) text += (i == 0 ? "" : ",") + std::to_string(sizes[i]);
  return text + "]";
}

std::string factors_text(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
  return text;
}

bool fits(const DataTypeOf& type, int32_t dtype) {
  return type.dtype == kAnyFloat ? is_float(dtype) : dtype == type.dtype;
}

// "F32"; of a tensor that is of another type everything that is said of the right one.
Name type_text(const DataTypeOf& type, const rfn_tensor& tensor) {
  if (fits(type, tensor.dtype)) return {data_type(tensor.dtype).name};
  if (type.dtype == kAnyFloat) return {"F32, BF16 or F16"};
  if (type.of == nullptr) return {data_type(type.dtype).name};
  return {data_type(type.dtype).name, " (the type of ", type.of, ")"};
}

// "F32 rank 3 [2,7,4]"
std::string tensor_text(const rfn_tensor& tensor) {
  if (is_absent(tensor)) return "an absent tensor";
  const DataType& known = data_type(tensor.dtype);
  const std::string type = known.bytes == 0 ? "dtype " + std::to_string(tensor.dtype) : known.name;
  if (tensor.rank < 0 || tensor.rank > 4) return type + " of rank " + std::to_string(tensor.rank);
  return type + " rank " + std::to_string(tensor.rank) + " " + sizes_text(tensor.shape, tensor.rank);
}

}  // namespace

int64_t product(std::initializer_list<int64_t> sizes, int64_t most) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size < 0 || __builtin_mul_overflow(product, size, &product) || product > most) return -1;
  }
  return product;
}

bool is_absent(const rfn_tensor& t) {
  return t.struct_size == 0 && t.dtype == 0 && t.rank == 0 && t.reserved == 0 && t.shape[0] == 0 && t.shape[1] == 0 &&
         t.shape[2] == 0 && t.shape[3] == 0 && t.data == nullptr && t.bytes == 0;
}

Name::Name(std::initializer_list<const char*> parts) {
  char* to = text;
  for (const char* part : parts) {
    while (*part != 0 && to + 1 < text + sizeof(text)) *to++ = *part++;
  }
  *to = 0;
}

Checks::Checks(const char* op, Call call, const Workspace& workspace) : op_(op), call_(call) {
  if (call == Call::kRun && workspace.data != nullptr && workspace.bytes > 0) {
    add_span("workspace", workspace.data, workspace.bytes, Access::kWritten);
  }
}

// ---- values ----

void Checks::struct_size(const char* name, uint32_t size, size_t expected) {
  if (size != expected) failed("%s.struct_size: expected %zu, got %" PRIu32, name, expected, size);
}

void Checks::integer(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  if (most == INT64_MAX) {
    failed("%s: expected at least %" PRId64 ", got %" PRId64, name, least, value);
  } else {
    failed("%s: expected %" PRId64 " to %" PRId64 ", got %" PRId64, name, least, most, value);
  }
}

void Checks::at_least(const char* name, double value, double least) {
  if (!(std::isfinite(value) && value >= least))
    failed("%s: expected a finite number of at least %g, got %g", name, least, value);
}

void Checks::more_than(const char* name, double value, double bound) {
  if (!(std::isfinite(value) && value > bound))
    failed("%s: expected a finite number above %g, got %g", name, bound, value);
}

void Checks::finite(const char* name, double value) {
  if (!std::isfinite(value)) failed("%s: expected a finite number, got %g", name, value);
}

void Checks::fraction(const char* name, double value) {
  if (!(value >= 0.0 && value < 1.0)) failed("%s: expected 0 <= value < 1, got %g", name, value);
}

void Checks::largest(const char* what, std::initializer_list<int64_t> sizes, int64_t most) {
  if (ok() && product(sizes, most) < 0)
    failed("%s: expected a product of at most %" PRId64 ", got %s", what, most, factors_text(sizes).c_str());
}

void Checks::failed(const char* format, ...) {
  if (!ok()) return;
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  status_ = fail(RFN_INVALID_ARGUMENT, "%s: %s", op_, text);
}

// ---- tensors ----

void Checks::anchor(const char* name, const rfn_tensor& view, DataTypeOf type, const char* letters, Sizes sizes) {
  tensor(name, view, type, letters, sizes, Access::kRead, !is_query());
}

void Checks::shape(const char* name, const rfn_tensor& view, DataTypeOf type, const char* letters, Sizes sizes) {
  tensor(name, view, type, letters, sizes, Access::kRead, false);
}

void Checks::input(const char* name, const rfn_tensor& view, DataTypeOf type, const char* letters, Sizes sizes) {
  if (is_query() && is_absent(view)) return;
  tensor(name, view, type, letters, sizes, Access::kRead, !is_query());
}

void Checks::output(const char* name, const rfn_tensor& view, DataTypeOf type, const char* letters, Sizes sizes) {
  if (is_query() && is_absent(view)) return;
  tensor(name, view, type, letters, sizes, Access::kWritten, !is_query());
}

void Checks::optional_input(const char* name, const rfn_tensor& view, DataTypeOf type, const char* letters,
                            Sizes sizes) {
  if (!is_absent(view)) input(name, view, type, letters, sizes);
}

void Checks::optional_output(const char* name, const rfn_tensor& view, DataTypeOf type, const char* letters,
                             Sizes sizes) {
  if (!is_absent(view)) output(name, view, type, letters, sizes);
}

void Checks::absent(const char* name, const rfn_tensor& view, const char* why) {
  if (!is_absent(view)) failed("%s: expected an absent tensor (%s), got %s", name, why, tensor_text(view).c_str());
}

void Checks::any_shape(const char* name, const rfn_tensor& view, Access access) {
  if (is_query() && is_absent(view)) return;
  described(name, view, RFN_F32, "of any shape", -1, INT64_MAX);
  data(name, view, access, !is_query());
}

void Checks::same_shape(const char* name, const rfn_tensor& view, const char* other_name, const rfn_tensor& other,
                        Access access) {
  if (!ok()) return;
  any_shape(name, view, access);
  if (!ok()) return;
  bool same = view.rank == other.rank;
  for (int32_t i = 0; same && i < view.rank; ++i) same = view.shape[i] == other.shape[i];
  if (same) return;
  failed("%s: expected the shape of %s, %s, got %s", name, other_name, tensor_text(other).c_str(),
         tensor_text(view).c_str());
}

// Everything about the view itself; rank -1: any.
void Checks::described(const char* name, const rfn_tensor& view, DataTypeOf type, const char* letters, int32_t rank,
                       int64_t most) {
  if (!ok()) return;
  const Name text = type_text(type, view);
  if (is_absent(view)) return failed("%s: expected %s %s, got an absent tensor", name, text.text, letters);
  struct_size(name, view.struct_size, sizeof(rfn_tensor));
  if (view.reserved != 0) failed("%s.reserved: expected 0, got %" PRId32, name, view.reserved);
  if (!fits(type, view.dtype) || view.rank < 0 || view.rank > 4 || (rank >= 0 && view.rank != rank)) {
    failed("%s: expected %s %s, got %s", name, text.text, letters, tensor_text(view).c_str());
  }
  if (!ok()) return;
  int64_t count = 1;
  for (int32_t i = 0; i < 4; ++i) {
    if (i >= view.rank) {
      if (view.shape[i] != 0)
        failed("%s.shape[%" PRId32 "]: expected 0 behind rank %" PRId32 ", got %" PRId64, name, i, view.rank,
               view.shape[i]);
      continue;
    }
    if (view.shape[i] < 1 || view.shape[i] > most) {
      failed("%s: expected %s %s with sizes of 1 to %" PRId64 ", got %s", name, text.text, letters, most,
             tensor_text(view).c_str());
    } else if (ok() && (count = product({count, view.shape[i]}, kMostElements)) < 0) {
      failed("%s: expected at most %" PRId64 " elements, got %s", name, kMostElements, tensor_text(view).c_str());
    }
  }
}

void Checks::data(const char* name, const rfn_tensor& view, Access access, bool needed) {
  if (!ok() || !needed) return;
  const int64_t element = data_type(view.dtype).bytes, bytes = elements(view) * element;
  if (view.data == nullptr) return failed("%s.data: expected a pointer, got NULL", name);
  if (view.bytes < bytes)
    return failed("%s.bytes: expected at least %" PRId64 " for %s, got %" PRId64, name, bytes,
                  tensor_text(view).c_str(), view.bytes);
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(element) != 0) {
    return failed("%s.data: expected a multiple of %" PRId64 " bytes, got %p", name, element, view.data);
  }
  add_span(name, view.data, bytes, access);
}

void Checks::tensor(const char* name, const rfn_tensor& view, DataTypeOf type, const char* letters, Sizes sizes,
                    Access access, bool needs_data) {
  if (!ok()) return;
  const int32_t rank = static_cast<int32_t>(sizes.size());
  described(name, view, type, letters, rank, kLargestSize);
  if (!ok()) return;
  for (int32_t i = 0; i < rank; ++i) {
    if (view.shape[i] == sizes.begin()[i]) continue;
    return failed("%s: expected %s %s = %s, got %s", name, data_type(view.dtype).name, letters,
                  sizes_text(sizes.begin(), rank).c_str(), tensor_text(view).c_str());
  }
  data(name, view, access, needs_data);
}

void Checks::pointer(const char* name, const void* data, size_t bytes, size_t alignment, Access access) {
  if (!ok() || is_query()) return;
  if (data == nullptr) return failed("%s: expected a pointer, got NULL", name);
  if (reinterpret_cast<uintptr_t>(data) % alignment != 0)
    return failed("%s: expected a multiple of %zu bytes, got %p", name, alignment, data);
  add_span(name, data, static_cast<int64_t>(bytes), access);
}

// ---- memory ----

void Checks::may_be_same(const char* first, const char* second) {
  same_first_ = first;
  same_second_ = second;
}

rfn_status Checks::finish() {
  for (size_t i = 0; ok() && i < span_count_; ++i) {
    for (size_t j = i + 1; j < span_count_; ++j) {
      const Span &a = spans_[i], &b = spans_[j];
      if (a.access == Access::kRead && b.access == Access::kRead) continue;
      if (a.end <= b.begin || b.end <= a.begin || may_share(a, b)) continue;
      failed("%s: expected memory apart from %s, got an overlap", b.name.text, a.name.text);
      break;
    }
  }
  return status_;
}

// The pair that may_be_same named, all of it.
bool Checks::may_share(const Span& a, const Span& b) const {
  if (same_first_ == nullptr || a.begin != b.begin || a.end != b.end) return false;
  const auto named = [](const Span& span, const char* name) { return std::strcmp(span.name.text, name) == 0; };
  return (named(a, same_first_) && named(b, same_second_)) || (named(a, same_second_) && named(b, same_first_));
}

void Checks::add_span(const char* name, const void* data, int64_t bytes, Access access) {
  if (span_count_ == spans_.size()) {
    status_ = fail(RFN_INTERNAL, "%s: more tensors than the overlap check has room for", op_);
    return;
  }
  Span& span = spans_[span_count_++];
  span.name = Name({name});
  span.begin = reinterpret_cast<uintptr_t>(data);
  span.end = span.begin + static_cast<uintptr_t>(bytes);
  span.access = access;
}

// ---- what several ops share ----

void check_pass(Checks& checks, int32_t pass) { checks.integer("pass", pass, RFN_PASS_FORWARD, RFN_PASS_BACKWARD); }

void check_layer(Checks& checks, int32_t layer) { checks.integer("layer", layer, -1, kLastLayer); }

void check_activation(Checks& checks, int32_t activation) {
  checks.integer("activation", activation, RFN_ACTIVATION_NONE, RFN_ACTIVATION_TANH);
}

void check_residual(Checks& checks, int32_t residual, int32_t grid_exponent) {
  checks.integer("residual", residual, RFN_RESIDUAL_FLOAT, RFN_RESIDUAL_EXACT);
  if (residual == RFN_RESIDUAL_EXACT) checks.integer("grid_exponent", grid_exponent, -24, -4);
}

// ---- workspace ----

rfn_status validate_workspace(const char* op, const Workspace& workspace, int64_t needed) {
  if (workspace.bytes < needed) {
    return fail(RFN_INVALID_ARGUMENT, "%s: workspace_bytes: expected at least %" PRId64 ", got %" PRId64, op, needed,
                workspace.bytes);
  }
  if (needed == 0) return RFN_OK;
  if (workspace.data == nullptr)
    return fail(RFN_INVALID_ARGUMENT, "%s: workspace: expected %" PRId64 " bytes, got NULL", op, needed);
  if (reinterpret_cast<uintptr_t>(workspace.data) % kWorkspaceAlignment != 0) {
    return fail(RFN_INVALID_ARGUMENT, "%s: workspace: expected a multiple of %zu bytes, got %p", op,
                static_cast<size_t>(kWorkspaceAlignment), workspace.data);
  }
  return RFN_OK;
}

}  // namespace rfn
