// What the validators of the ops are written with: a list of expectations of one call, the first of which that is not
// met makes its message.
#pragma once
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "core/validate.h"

namespace rfn {

// ---- limits ----

inline constexpr int64_t kLargestSize = INT32_MAX;          // of one axis: positions, rows of BLAS products and leading
                                                            // dimensions are 32-bit
inline constexpr int64_t kMostElements = int64_t{1} << 48;  // of a tensor, so that products with small factors fit
inline constexpr int64_t kMostPairs = int64_t{1} << 62;     // (query, key): each is an element of dropout's counter
inline constexpr int64_t kMostBuckets = int64_t{1} << 30;   // bucket numbers, the padding's included, are I32
inline constexpr int32_t kMostFactors = 8;
inline constexpr int32_t kMostNeighbours = 1 << 16;   // chunks before or after, which every query walks over
inline constexpr int32_t kLastLayer = (1 << 24) - 2;  // (layer + 1) * 256 + site is a 32-bit word of a random counter

// Product of sizes that are at least 0; -1 when it is more than `most`, or a size is negative. Sums and products of
// sizes that have not been checked are made by this alone.
int64_t product(std::initializer_list<int64_t> sizes, int64_t most);

bool is_absent(const rfn_tensor& tensor);  // all zeros

// What an op does with a tensor's memory.
enum class Access { kRead, kWritten };

// Name of an argument, made of parts, as much as there is room for. Names are made in every call, where snprintf would
// take most of its time.
struct Name {
  char text[48];

  Name() = default;
  Name(std::initializer_list<const char*> parts);
  Name(const char* array, int64_t index) : Name({array, "[", Digits(index).text, "]"}) {}

 private:
  struct Digits {
    char text[24];
    explicit Digits(int64_t value) { *std::to_chars(text, text + sizeof(text) - 1, value).ptr = 0; }
  };
};

// The data type that a tensor is expected to have: RFN_F32 ..., any of those that numbers are stored in, or {q.dtype,
// "q"}: that of another tensor, which has been checked.
inline constexpr int32_t kAnyFloat = -1;  // F32, BF16 or F16
struct DataTypeOf {
  int32_t dtype;
  const char* of;
  DataTypeOf(int32_t type, const char* tensor = nullptr) : dtype(type), of(tensor) {}
};

// The checks of one call, in the order of its arguments. The first that fails is kept and the rest are passed over, so
// that an op's checks read as a list of what it expects.
class Checks {
 public:
  Checks(const char* op, Call call, const Workspace& workspace);

  bool ok() const { return status_ == RFN_OK; }
  bool is_query() const { return call_ == Call::kQuery; }

  // ---- values ----

  void struct_size(const char* name, uint32_t size, size_t expected);
  void integer(const char* name, int64_t value, int64_t least, int64_t most);
  void flag(const char* name, int32_t value) { integer(name, value, 0, 1); }
  void at_least(const char* name, double value, double least);   // and finite
  void more_than(const char* name, double value, double bound);  // and finite
  void finite(const char* name, double value);
  void fraction(const char* name, double value);                                       // 0 <= value < 1
  void largest(const char* what, std::initializer_list<int64_t> sizes, int64_t most);  // their product

  [[gnu::format(printf, 2, 3)]] void failed(const char* format, ...);

  // ---- tensors: data type, letters of the shape and the sizes that they stand for ----

  using Sizes = std::initializer_list<int64_t>;

  // A tensor that gives sizes: needed by workspace queries too.
  void anchor(const char* name, const rfn_tensor& tensor, DataTypeOf type, const char* letters, Sizes sizes);
  // One that gives sizes and whose data is not used.
  void shape(const char* name, const rfn_tensor& tensor, DataTypeOf type, const char* letters, Sizes sizes);
  void input(const char* name, const rfn_tensor& tensor, DataTypeOf type, const char* letters, Sizes sizes);
  void output(const char* name, const rfn_tensor& tensor, DataTypeOf type, const char* letters, Sizes sizes);
  void optional_input(const char* name, const rfn_tensor& tensor, DataTypeOf type, const char* letters, Sizes sizes);
  void optional_output(const char* name, const rfn_tensor& tensor, DataTypeOf type, const char* letters, Sizes sizes);
  void absent(const char* name, const rfn_tensor& tensor, const char* why);
  // F32 of any shape, and of the shape of another tensor.
  void any_shape(const char* name, const rfn_tensor& tensor, Access access);
  void same_shape(const char* name, const rfn_tensor& tensor, const char* other_name, const rfn_tensor& other,
                  Access access);

  // ---- structs of results; one that the op reads is const ----

  template <class Result>
  void result(const char* name, Result* data) {
    pointer(name, data, sizeof(Result), alignof(Result), std::is_const_v<Result> ? Access::kRead : Access::kWritten);
  }
  template <class Result>
  void optional_result(const char* name, Result* data) {
    if (data != nullptr) result(name, data);
  }

  // ---- memory ----

  // These two may be the same memory.
  void may_be_same(const char* first, const char* second);
  // How many tensors have been checked, and forgetting those behind so many: entries of a list that is longer than the
  // room there is, each of which was checked to the end.
  size_t checked() const { return span_count_; }
  void forget(size_t behind) { span_count_ = behind < span_count_ ? behind : span_count_; }
  // Nothing that is written shares memory with anything else. The call's verdict.
  rfn_status finish();

 private:
  struct Span {
    Name name;
    uintptr_t begin, end;
    Access access;
  };

  bool may_share(const Span& a, const Span& b) const;
  void add_span(const char* name, const void* data, int64_t bytes, Access access);
  void described(const char* name, const rfn_tensor& tensor, DataTypeOf type, const char* letters, int32_t rank,
                 int64_t most);
  void data(const char* name, const rfn_tensor& tensor, Access access, bool needed);
  void tensor(const char* name, const rfn_tensor& view, DataTypeOf type, const char* letters, Sizes sizes,
              Access access, bool needs_data);
  void pointer(const char* name, const void* data, size_t bytes, size_t alignment, Access access);

  const char* op_;
  Call call_;
  rfn_status status_ = RFN_OK;
  std::array<Span, 64> spans_;  // left uninitialised; span_count_ are in use
  size_t span_count_ = 0;
  const char* same_first_ = nullptr;
  const char* same_second_ = nullptr;
};

// ---- what several ops share ----

void check_pass(Checks& checks, int32_t pass);
void check_layer(Checks& checks, int32_t layer);
void check_activation(Checks& checks, int32_t activation);
void check_residual(Checks& checks, int32_t residual, int32_t grid_exponent);

// validate_attention.cpp: options of attention over `length` tokens in `batch` examples of `heads` heads, and rotations
// [sets,D,R,sum(factors)/2].
void check_options(Checks& checks, const rfn_attention_options& options, int64_t batch, int64_t length, int64_t heads);
void check_rotations(Checks& checks, const rfn_tensor& rotations, const rfn_attention_options& options, int64_t batch,
                     int64_t heads, int64_t head_size);

}  // namespace rfn
