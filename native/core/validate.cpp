#include "core/validate.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cinttypes>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "core/attention_window.h"
#include "core/error.h"
#include "core/tensor.h"

namespace rfn {
namespace {

constexpr int64_t kLargestSize =
    INT32_MAX;  // of one axis: positions, rows of BLAS products and leading dimensions are 32-bit
constexpr int64_t kMostElements = int64_t{1} << 48;  // of a tensor, so that products with small factors fit 64 bits
constexpr int64_t kMostPairs = int64_t{1} << 62;     // (query, key) pairs: each is an element of dropout's counter
constexpr int64_t kMostBuckets = int64_t{1} << 30;   // bucket numbers, the padding's included, are I32
constexpr int32_t kMostFactors = 8;
constexpr int32_t kMostNeighbours =
    1 << 16;  // chunks before or after: every query walks over them, whether they are there or not
constexpr int32_t kLastLayer = (1 << 24) - 2;  // (layer + 1) * 256 + site is a 32-bit word of the random counter
constexpr uintptr_t kWorkspaceAlignment = 64;

struct DataType {
  const char* name;
  int64_t bytes;
};

// By RFN_F32 ...; [0] stands for every unknown one.
constexpr DataType kDataTypes[] = {{"?", 0}, {"F32", 4}, {"F64", 8}, {"I32", 4}, {"I64", 8}, {"U8", 1}};

const DataType& data_type(int32_t dtype) {
  return dtype >= RFN_F32 && dtype <= RFN_U8 ? kDataTypes[dtype] : kDataTypes[0];
}

// Product of sizes that are at least 0; -1 when it is more than `most`.
int64_t product(std::initializer_list<int64_t> sizes, int64_t most) {
  int64_t n = 1;
  for (const int64_t size : sizes) {
    if (size < 0 || __builtin_mul_overflow(n, size, &n) || n > most) return -1;
  }
  return n;
}

bool all_zero(const rfn_tensor& t) {
  return t.struct_size == 0 && t.dtype == 0 && t.rank == 0 && t.reserved == 0 && t.shape[0] == 0 && t.shape[1] == 0 &&
         t.shape[2] == 0 && t.shape[3] == 0 && t.data == nullptr && t.bytes == 0;
}

std::string sizes_text(const int64_t* sizes, int64_t rank) {
  std::string text = "[";
  for (int64_t i = 0; i < rank; ++i) text += (i == 0 ? "" : ",") + std::to_string(sizes[i]);
  return text + "]";
}

// "F32 [2,7,4]"
std::string tensor_text(const rfn_tensor& t) {
  if (all_zero(t)) return "an absent tensor";
  const std::string type = data_type(t.dtype).bytes == 0 ? "dtype " + std::to_string(t.dtype) : data_type(t.dtype).name;
  if (t.rank < 0 || t.rank > 4) return type + " of rank " + std::to_string(t.rank);
  return type + " rank " + std::to_string(t.rank) + " " + sizes_text(t.shape, t.rank);
}

// What an op does with a tensor's memory.
enum class Access { kRead, kWritten };

// Name of an argument, made of parts, as much as there is room for. Names are made in every call, where snprintf would
// take most of its time.
struct Name {
  char text[48];

  Name() = default;
  Name(std::initializer_list<const char*> parts) {
    char* to = text;
    for (const char* part : parts) {
      while (*part != 0 && to + 1 < text + sizeof(text)) *to++ = *part++;
    }
    *to = 0;
  }
  Name(const char* array, int64_t index) : Name({array, "[", Digits(index).text, "]"}) {}

 private:
  struct Digits {
    char text[24];
    explicit Digits(int64_t value) { *std::to_chars(text, text + sizeof(text) - 1, value).ptr = 0; }
  };
};

// The checks of one call, in the order of its arguments. The first that fails is kept and the rest are passed over, so
// that an op's checks read as a list of what it expects.
class Checks {
 public:
  Checks(const char* op, Call call, const Workspace& workspace) : op_(op), call_(call) {
    if (call == Call::kRun && workspace.data != nullptr && workspace.bytes > 0) {
      add_span("workspace", workspace.data, workspace.bytes, Access::kWritten);
    }
  }

  bool ok() const { return status_ == RFN_OK; }

  // ---- values ----

  void struct_size(const char* name, uint32_t size, size_t expected) {
    if (size != expected) failed("%s.struct_size: expected %zu, got %" PRIu32, name, expected, size);
  }

  void integer(const char* name, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) return;
    if (most == INT64_MAX) {
      failed("%s: expected at least %" PRId64 ", got %" PRId64, name, least, value);
    } else {
      failed("%s: expected %" PRId64 " to %" PRId64 ", got %" PRId64, name, least, most, value);
    }
  }
  void flag(const char* name, int32_t value) { integer(name, value, 0, 1); }

  // A finite number, at least `least` (or more than it).
  void at_least(const char* name, double value, double least) {
    if (!(std::isfinite(value) && value >= least))
      failed("%s: expected a finite number of at least %g, got %g", name, least, value);
  }
  void more_than(const char* name, double value, double bound) {
    if (!(std::isfinite(value) && value > bound))
      failed("%s: expected a finite number above %g, got %g", name, bound, value);
  }
  void finite(const char* name, double value) {
    if (!std::isfinite(value)) failed("%s: expected a finite number, got %g", name, value);
  }
  void fraction(const char* name, double value) {
    if (!(value >= 0.0 && value < 1.0)) failed("%s: expected 0 <= value < 1, got %g", name, value);
  }

  void largest(const char* what, std::initializer_list<int64_t> sizes, int64_t most) {
    if (ok() && product(sizes, most) < 0)
      failed("%s: expected a product of at most %" PRId64 ", got %s", what, most, factors_text(sizes).c_str());
  }

  [[gnu::format(printf, 2, 3)]] void failed(const char* format, ...) {
    if (!ok()) return;
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    status_ = fail(RFN_INVALID_ARGUMENT, "%s: %s", op_, text);
  }

  // ---- tensors: dtype, letters of the shape and the sizes that they stand for ----

  // A tensor that gives sizes: needed by workspace queries too.
  void anchor(const char* name, const rfn_tensor& t, int32_t dtype, const char* letters,
              std::initializer_list<int64_t> sizes) {
    tensor(name, t, dtype, letters, sizes, Access::kRead, call_ == Call::kRun);
  }
  // One that gives sizes and whose data is not used.
  void shape(const char* name, const rfn_tensor& t, int32_t dtype, const char* letters,
             std::initializer_list<int64_t> sizes) {
    tensor(name, t, dtype, letters, sizes, Access::kRead, false);
  }
  void input(const char* name, const rfn_tensor& t, int32_t dtype, const char* letters,
             std::initializer_list<int64_t> sizes) {
    if (call_ == Call::kQuery && all_zero(t)) return;
    tensor(name, t, dtype, letters, sizes, Access::kRead, call_ == Call::kRun);
  }
  void output(const char* name, const rfn_tensor& t, int32_t dtype, const char* letters,
              std::initializer_list<int64_t> sizes) {
    if (call_ == Call::kQuery && all_zero(t)) return;
    tensor(name, t, dtype, letters, sizes, Access::kWritten, call_ == Call::kRun);
  }
  void optional_input(const char* name, const rfn_tensor& t, int32_t dtype, const char* letters,
                      std::initializer_list<int64_t> sizes) {
    if (!all_zero(t)) input(name, t, dtype, letters, sizes);
  }
  void optional_output(const char* name, const rfn_tensor& t, int32_t dtype, const char* letters,
                       std::initializer_list<int64_t> sizes) {
    if (!all_zero(t)) output(name, t, dtype, letters, sizes);
  }
  void absent(const char* name, const rfn_tensor& t, const char* why) {
    if (!all_zero(t)) failed("%s: expected an absent tensor (%s), got %s", name, why, tensor_text(t).c_str());
  }
  // A struct of results; one that the op reads is const.
  template <class Result>
  void result(const char* name, Result* data) {
    if (!ok() || call_ == Call::kQuery) return;
    if (data == nullptr) return failed("%s: expected a pointer, got NULL", name);
    if (reinterpret_cast<uintptr_t>(data) % alignof(Result) != 0) {
      return failed("%s: expected a multiple of %zu bytes, got %p", name, alignof(Result),
                    static_cast<const void*>(data));
    }
    add_span(name, data, sizeof(Result), std::is_const_v<Result> ? Access::kRead : Access::kWritten);
  }
  template <class Result>
  void optional_result(const char* name, Result* data) {
    if (data != nullptr) result(name, data);
  }
  // F32 of any shape.
  void any_shape(const char* name, const rfn_tensor& t, Access access) {
    if (call_ == Call::kQuery && all_zero(t)) return;
    described(name, t, RFN_F32, "of any shape", -1, INT64_MAX);
    data(name, t, access, call_ == Call::kRun);
  }
  // F32 of the shape of another.
  void same_shape(const char* name, const rfn_tensor& t, const char* other_name, const rfn_tensor& other,
                  Access access) {
    if (!ok()) return;
    any_shape(name, t, access);
    if (!ok()) return;
    bool same = t.rank == other.rank;
    for (int32_t i = 0; same && i < t.rank; ++i) same = t.shape[i] == other.shape[i];
    if (!same)
      failed("%s: expected the shape of %s, %s, got %s", name, other_name, tensor_text(other).c_str(),
             tensor_text(t).c_str());
  }

  // These two may be the same memory.
  void may_be_same(const char* first, const char* second) {
    same_first_ = first;
    same_second_ = second;
  }

  // Drops a tensor that was checked to the end, if it was the last and is only read.
  void forget_last_read() {
    if (span_count_ > 0 && spans_[span_count_ - 1].access == Access::kRead) --span_count_;
  }

  // Nothing that is written shares memory with anything else.
  rfn_status finish() {
    for (size_t i = 0; ok() && i < span_count_; ++i) {
      for (size_t j = i + 1; j < span_count_; ++j) {
        const Span &a = spans_[i], &b = spans_[j];
        if (a.access == Access::kRead && b.access == Access::kRead) continue;
        if (a.end <= b.begin || b.end <= a.begin) continue;
        if (a.begin == b.begin && a.end == b.end && is_pair(a.name.text, b.name.text)) continue;
        failed("%s: expected memory apart from %s, got an overlap", b.name.text, a.name.text);
        break;
      }
    }
    return status_;
  }

 private:
  struct Span {
    Name name;
    uintptr_t begin, end;
    Access access;
  };

  static std::string factors_text(std::initializer_list<int64_t> sizes) {
    std::string text;
    for (const int64_t size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
    return text;
  }

  bool is_pair(const char* a, const char* b) const {
    const auto same = [](const char* x, const char* y) { return std::strcmp(x, y) == 0; };
    return same_first_ != nullptr &&
           ((same(a, same_first_) && same(b, same_second_)) || (same(a, same_second_) && same(b, same_first_)));
  }

  void add_span(const char* name, const void* data, int64_t bytes, Access access) {
    if (span_count_ == spans_.size()) {
      status_ = fail(RFN_INTERNAL, "%s: more tensors than the overlap check has room for", op_);
      return;
    }
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
    Span& span = spans_[span_count_++];
    span.name = Name({name});
    span.begin = begin;
    span.end = begin + static_cast<uintptr_t>(bytes);
    span.access = access;
  }

  // Everything about the view itself; rank -1: any.
  void described(const char* name, const rfn_tensor& t, int32_t dtype, const char* letters, int32_t rank,
                 int64_t most) {
    if (!ok()) return;
    const char* const type = data_type(dtype).name;
    if (all_zero(t)) return failed("%s: expected %s %s, got an absent tensor", name, type, letters);
    struct_size(name, t.struct_size, sizeof(rfn_tensor));
    if (t.reserved != 0) failed("%s.reserved: expected 0, got %" PRId32, name, t.reserved);
    if (t.dtype != dtype || t.rank < 0 || t.rank > 4 || (rank >= 0 && t.rank != rank)) {
      failed("%s: expected %s %s, got %s", name, type, letters, tensor_text(t).c_str());
    }
    if (!ok()) return;
    int64_t count = 1;
    for (int32_t i = 0; i < 4; ++i) {
      if (i >= t.rank) {
        if (t.shape[i] != 0)
          failed("%s.shape[%" PRId32 "]: expected 0 behind rank %" PRId32 ", got %" PRId64, name, i, t.rank,
                 t.shape[i]);
        continue;
      }
      if (t.shape[i] < 1 || t.shape[i] > most) {
        failed("%s: expected %s %s with sizes of 1 to %" PRId64 ", got %s", name, type, letters, most,
               tensor_text(t).c_str());
      } else if (ok() && (count = product({count, t.shape[i]}, kMostElements)) < 0) {
        failed("%s: expected at most %" PRId64 " elements, got %s", name, kMostElements, tensor_text(t).c_str());
      }
    }
  }

  void data(const char* name, const rfn_tensor& t, Access access, bool needed) {
    if (!ok() || !needed) return;
    const int64_t element = data_type(t.dtype).bytes, bytes = elements(t) * element;
    if (t.data == nullptr) return failed("%s.data: expected a pointer, got NULL", name);
    if (t.bytes < bytes)
      return failed("%s.bytes: expected at least %" PRId64 " for %s, got %" PRId64, name, bytes, tensor_text(t).c_str(),
                    t.bytes);
    if (reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(element) != 0) {
      return failed("%s.data: expected a multiple of %" PRId64 " bytes, got %p", name, element, t.data);
    }
    add_span(name, t.data, bytes, access);
  }

  void tensor(const char* name, const rfn_tensor& t, int32_t dtype, const char* letters,
              std::initializer_list<int64_t> sizes, Access access, bool needs_data) {
    if (!ok()) return;
    const int32_t rank = static_cast<int32_t>(sizes.size());
    described(name, t, dtype, letters, rank, kLargestSize);
    if (!ok()) return;
    for (int32_t i = 0; i < rank; ++i) {
      if (t.shape[i] == sizes.begin()[i]) continue;
      return failed("%s: expected %s %s = %s, got %s", name, data_type(dtype).name, letters,
                    sizes_text(sizes.begin(), rank).c_str(), tensor_text(t).c_str());
    }
    data(name, t, access, needs_data);
  }

  const char* op_;
  Call call_;
  rfn_status status_ = RFN_OK;
  std::array<Span, 64> spans_;  // left uninitialised; span_count_ are in use
  size_t span_count_ = 0;
  const char* same_first_ = nullptr;
  const char* same_second_ = nullptr;
};

// ---- what several ops share ----

void check_pass(Checks& c, int32_t pass) { c.integer("pass", pass, RFN_PASS_FORWARD, RFN_PASS_BACKWARD); }
void check_layer(Checks& c, int32_t layer) { c.integer("layer", layer, -1, kLastLayer); }
void check_activation(Checks& c, int32_t activation) {
  c.integer("activation", activation, RFN_ACTIVATION_NONE, RFN_ACTIVATION_TANH);
}
void check_grid(Checks& c, int32_t exponent) { c.integer("grid_exponent", exponent, -24, -4); }

// Options of attention over T tokens in B examples of H heads.
void check_options(Checks& c, const rfn_attention_options& o, int64_t batch, int64_t length, int64_t heads) {
  c.struct_size("options", o.struct_size, sizeof(o));
  c.integer("options.kind", o.kind, RFN_ATTENTION_LSH, RFN_ATTENTION_FULL);
  c.flag("options.shared_qk", o.shared_qk);
  c.flag("options.causal", o.causal);
  c.integer("options.key_norm", o.key_norm, RFN_KEY_NORM_NONE, RFN_KEY_NORM_L2);
  c.at_least("options.logit_scale", o.logit_scale, 0);
  c.fraction("options.dropout", o.dropout);
  const bool lsh = o.kind == RFN_ATTENTION_LSH;
  int64_t rounds = 1, window = length, padded = length;
  if (lsh) {
    if (o.shared_qk != 1) c.failed("options.shared_qk: expected 1 with LSH attention, got %" PRId32, o.shared_qk);
    c.integer("options.window", o.window, RFN_WINDOW_SLOTS, RFN_WINDOW_STRICT);
    c.integer("options.duplicates", o.duplicates, RFN_DUPLICATES_NONE, RFN_DUPLICATES_LOG_COUNT);
    c.flag("options.pad_bucket", o.pad_bucket);
    c.integer("options.rounds", o.rounds, 1, INT32_MAX);
    rounds = o.rounds;
    c.integer("options.factor_count", o.factor_count, 1, kMostFactors);
    int64_t buckets = 1;
    for (int32_t i = 0; c.ok() && i < o.factor_count; ++i) {
      if (o.factors[i] < 2 || o.factors[i] % 2 != 0) {
        c.failed("options.factors[%" PRId32 "]: expected an even number of at least 2, got %" PRId32, i, o.factors[i]);
      } else if ((buckets = product({buckets, o.factors[i]}, kMostBuckets)) < 0) {
        c.failed("options.factors: expected a product of at most %" PRId64 ", got more", kMostBuckets);
      }
    }
    if (o.window == RFN_WINDOW_STRICT && o.causal != 1) {
      c.failed("options.causal: expected 1 with RFN_WINDOW_STRICT, got %" PRId32, o.causal);
    }
    if (o.window == RFN_WINDOW_STRICT && o.chunks_after != 0) {
      c.failed("options.chunks_after: expected 0 with RFN_WINDOW_STRICT, got %" PRId32, o.chunks_after);
    }
  }
  if (lsh || o.kind == RFN_ATTENTION_LOCAL) {
    c.flag("options.wrap", o.wrap);
    c.flag("options.repeat_chunks", o.repeat_chunks);
    c.integer("options.chunk_length", o.chunk_length, 1, kLargestSize);
    c.integer("options.chunks_before", o.chunks_before, 0, kMostNeighbours);
    c.integer("options.chunks_after", o.chunks_after, 0, kMostNeighbours);
    if (!c.ok()) return;
    const int64_t chunks = 1 + int64_t{o.chunks_before} + o.chunks_after;
    c.largest("options: (1 + chunks_before + chunks_after) * chunk_length", {chunks, o.chunk_length}, kLargestSize);
    window = chunks * o.chunk_length;
    padded = o.padded_length != 0 ? o.padded_length : round_up(length, o.chunk_length);
    if (padded < length || padded % o.chunk_length != 0 || padded > kLargestSize) {
      c.failed("options.padded_length: expected 0 or a multiple of chunk_length %" PRId64 " from %" PRId64
               " to %" PRId64 ", got %" PRId64,
               o.chunk_length, length, kLargestSize, o.padded_length);
    }
  }
  if (!c.ok()) return;
  const int64_t slots = product({batch, heads, rounds, padded}, kMostElements);
  c.largest("B * H * R * padded length", {batch, heads, rounds, padded}, kMostElements);
  c.largest("B * H * R * padded length * window", {slots, window}, kMostPairs);
}

// F32 [S,D,R,sum(factors)/2]
void check_rotations(Checks& c, const rfn_tensor& t, const rfn_attention_options& o, int64_t batch, int64_t heads,
                     int64_t head_size) {
  if (!c.ok()) return;
  const int64_t sets = t.shape[0];
  c.input("rotations", t, RFN_F32, "[S,D,R,sum(factors)/2]", {sets, head_size, o.rounds, rotation_columns(o)});
  if (all_zero(t) || sets == 1 || sets == heads || sets == batch * heads) return;
  c.failed("rotations: expected S = 1, H = %" PRId64 " or B*H = %" PRId64 ", got %" PRId64, heads, batch * heads, sets);
}

}  // namespace

// ---- random numbers ----

rfn_status validate(const rfn_random_normal& op, Call call, const Workspace& workspace) {
  Checks c("random_normal", call, workspace);
  check_layer(c, op.layer);
  c.integer("site", op.site, 1, 255);
  c.finite("mean", op.mean);
  c.at_least("standard_deviation", op.standard_deviation, 0);
  c.integer("reserved", op.reserved, 0, 0);
  c.any_shape("destination", op.destination, Access::kWritten);
  return c.finish();
}

// ---- embeddings ----

rfn_status validate(const rfn_embedding& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks c("embedding", call, workspace);
  check_pass(c, pass);
  c.integer("positions", op.positions, RFN_POSITIONS_NONE, RFN_POSITIONS_AXIAL);
  const bool axial = op.positions == RFN_POSITIONS_AXIAL;
  const int32_t fixed_axes = op.positions == RFN_POSITIONS_LEARNED ? 1 : 0;
  c.integer("axes", op.axes, axial ? 1 : fixed_axes, axial ? 4 : fixed_axes);
  c.fraction("dropout", op.dropout);
  c.integer("first_position", op.first_position, 0, kLargestSize);
  c.integer("residual", op.residual, RFN_RESIDUAL_FLOAT, RFN_RESIDUAL_EXACT);
  if (op.residual == RFN_RESIDUAL_EXACT) check_grid(c, op.grid_exponent);

  const int64_t b = op.ids.shape[0], t = op.ids.shape[1], v = op.word.shape[0], e = op.word.shape[1];
  c.anchor("ids", op.ids, RFN_I32, "[B,T]", {b, t});
  c.anchor("word", op.word, RFN_F32, "[V,E]", {v, e});
  c.largest("B * T", {b, t}, kLargestSize);
  int64_t positions = 1, width = 0;
  for (int32_t i = 0; c.ok() && i < op.axes; ++i) {
    const Name name("position", i);
    const rfn_tensor& table = op.position[i];
    const char* const letters = axial ? "[s,e]" : "[max,E]";
    c.anchor(name.text, table, RFN_F32, letters, {table.shape[0], axial ? table.shape[1] : e});
    if (!c.ok()) break;
    positions = product({positions, table.shape[0]}, kMostElements);
    if (positions < 0) c.failed("position: expected tables of at most %" PRId64 " positions, got more", kMostElements);
    width += table.shape[1];
  }
  if (op.axes > 0 && c.ok()) {
    if (width != e) c.failed("position: expected widths that sum to E = %" PRId64 ", got %" PRId64, e, width);
    if (op.first_position + t > positions) {
      c.failed("position: expected tables for first_position + T = %" PRId64 " positions, got %" PRId64,
               op.first_position + t, positions);
    }
  }
  if (pass == RFN_PASS_FORWARD) {
    c.output("stream1", op.stream1, RFN_F32, "[B,T,E]", {b, t, e});
    c.optional_output("stream2", op.stream2, RFN_F32, "[B,T,E]", {b, t, e});
    c.optional_result("range_report", op.range_report);
  } else {
    c.input("grad_stream1", op.grad_stream1, RFN_F32, "[B,T,E]", {b, t, e});
    c.optional_input("grad_stream2", op.grad_stream2, RFN_F32, "[B,T,E]", {b, t, e});
    c.output("grad_word", op.grad_word, RFN_F32, "[V,E]", {v, e});
    for (int32_t i = 0; c.ok() && i < op.axes; ++i) {
      const Name name("grad_position", i);
      c.output(name.text, op.grad_position[i], RFN_F32, "(shape of position)",
               {op.position[i].shape[0], op.position[i].shape[1]});
    }
  }
  return c.finish();
}

// ---- layer norm, linear, feed-forward ----

rfn_status validate(const rfn_layer_norm& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks c("layer_norm", call, workspace);
  check_pass(c, pass);
  c.more_than("epsilon", op.epsilon, 0);
  const int64_t n = op.x.shape[0], e = op.x.shape[1];
  c.anchor("x", op.x, RFN_F32, "[N,E]", {n, e});
  c.input("weight", op.weight, RFN_F32, "[E]", {e});
  c.input("bias", op.bias, RFN_F32, "[E]", {e});
  if (pass == RFN_PASS_FORWARD) {
    c.output("y", op.y, RFN_F32, "[N,E]", {n, e});
  } else {
    c.input("grad_y", op.grad_y, RFN_F32, "[N,E]", {n, e});
    c.output("grad_x", op.grad_x, RFN_F32, "[N,E]", {n, e});
    c.output("grad_weight", op.grad_weight, RFN_F32, "[E]", {e});
    c.output("grad_bias", op.grad_bias, RFN_F32, "[E]", {e});
  }
  return c.finish();
}

rfn_status validate(const rfn_linear& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks c("linear", call, workspace);
  check_pass(c, pass);
  check_activation(c, op.activation);
  const int64_t n = op.x.shape[0], k = op.x.shape[1], m = op.weight.shape[0];
  c.anchor("x", op.x, RFN_F32, "[N,K]", {n, k});
  c.anchor("weight", op.weight, RFN_F32, "[M,K]", {m, k});
  c.largest("N * M", {n, m}, kMostElements);
  c.optional_input("bias", op.bias, RFN_F32, "[M]", {m});
  if (pass == RFN_PASS_FORWARD) {
    c.output("y", op.y, RFN_F32, "[N,M]", {n, m});
  } else {
    c.input("grad_y", op.grad_y, RFN_F32, "[N,M]", {n, m});
    c.optional_output("grad_x", op.grad_x, RFN_F32, "[N,K]", {n, k});
    c.output("grad_weight", op.grad_weight, RFN_F32, "[M,K]", {m, k});
    c.optional_output("grad_bias", op.grad_bias, RFN_F32, "[M]", {m});
  }
  return c.finish();
}

rfn_status validate(const rfn_feed_forward& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks c("feed_forward", call, workspace);
  check_pass(c, pass);
  check_activation(c, op.activation);
  c.fraction("dropout", op.dropout);
  check_layer(c, op.layer);
  c.integer("chunk", op.chunk, 0, INT64_MAX);
  const int64_t n = op.x.shape[0], e = op.x.shape[1], f = op.w1.shape[0];
  c.anchor("x", op.x, RFN_F32, "[N,E]", {n, e});
  c.anchor("w1", op.w1, RFN_F32, "[F,E]", {f, e});
  c.largest("N * F", {n, f}, kMostElements);
  c.input("b1", op.b1, RFN_F32, "[F]", {f});
  c.input("w2", op.w2, RFN_F32, "[E,F]", {e, f});
  c.input("b2", op.b2, RFN_F32, "[E]", {e});
  if (pass == RFN_PASS_FORWARD) {
    c.output("y", op.y, RFN_F32, "[N,E]", {n, e});
  } else {
    c.input("grad_y", op.grad_y, RFN_F32, "[N,E]", {n, e});
    c.output("grad_x", op.grad_x, RFN_F32, "[N,E]", {n, e});
    c.output("grad_w1", op.grad_w1, RFN_F32, "[F,E]", {f, e});
    c.output("grad_b1", op.grad_b1, RFN_F32, "[F]", {f});
    c.output("grad_w2", op.grad_w2, RFN_F32, "[E,F]", {e, f});
    c.output("grad_b2", op.grad_b2, RFN_F32, "[E]", {e});
  }
  return c.finish();
}

// ---- attention ----

namespace {

struct AttentionSizes {
  int64_t b, t, h, d, r, padded;
};

AttentionSizes attention_sizes(const rfn_attention& op) {
  AttentionSizes s{op.q.shape[0], op.q.shape[1],     op.q.shape[2],
                   op.q.shape[3], op.options.rounds, op.options.padded_length};
  if (s.padded == 0 && op.options.chunk_length > 0) s.padded = round_up(s.t, op.options.chunk_length);
  return s;
}

// What whole attention and its stages share. `q_data`: q itself is read, not only its shape.
void check_attention(Checks& c, const rfn_attention& op, const AttentionSizes& s, bool q_data) {
  check_layer(c, op.layer);
  c.integer("head_group", op.head_group, 0, INT64_MAX);
  if (q_data) {
    c.anchor("q", op.q, RFN_F32, "[B,T,H,D]", {s.b, s.t, s.h, s.d});
  } else {
    c.shape("q", op.q, RFN_F32, "[B,T,H,D]", {s.b, s.t, s.h, s.d});
  }
  c.largest("H * D", {s.h, s.d}, kLargestSize);
  c.largest("B * T", {s.b, s.t}, kLargestSize);
  check_options(c, op.options, s.b, s.t, s.h);
}

}  // namespace

rfn_status validate(const rfn_attention& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks c("attention", call, workspace);
  const AttentionSizes s = attention_sizes(op);
  check_attention(c, op, s, true);
  check_pass(c, pass);
  if (!c.ok()) return c.finish();
  const bool forward = pass == RFN_PASS_FORWARD, lsh = op.options.kind == RFN_ATTENTION_LSH,
             shared = op.options.shared_qk == 1;
  const std::initializer_list<int64_t> heads = {s.b, s.t, s.h, s.d};
  if (shared) {
    c.absent("k", op.k, "options.shared_qk is 1");
  } else {
    c.input("k", op.k, RFN_F32, "[B,T,H,D]", heads);
  }
  c.input("v", op.v, RFN_F32, "[B,T,H,D]", heads);
  c.optional_input("mask", op.mask, RFN_U8, "[B,T]", {s.b, s.t});
  if (lsh) {
    if (forward) {
      c.optional_output("buckets", op.buckets, RFN_I32, "[B,H,R,T]", {s.b, s.h, s.r, s.t});
    } else {
      c.optional_input("buckets", op.buckets, RFN_I32, "[B,H,R,T]", {s.b, s.h, s.r, s.t});
    }
    if (forward || all_zero(op.buckets)) check_rotations(c, op.rotations, op.options, s.b, s.h, s.d);
  }
  if (forward) {
    c.output("out", op.out, RFN_F32, "[B,T,H,D]", heads);
    c.optional_output("log_sum_exp", op.log_sum_exp, RFN_F32, "[B,H,T]", {s.b, s.h, s.t});
  } else {
    c.input("out", op.out, RFN_F32, "[B,T,H,D]", heads);
    c.input("log_sum_exp", op.log_sum_exp, RFN_F32, "[B,H,T]", {s.b, s.h, s.t});
    c.input("grad_out", op.grad_out, RFN_F32, "[B,T,H,D]", heads);
    c.output("grad_q", op.grad_q, RFN_F32, "[B,T,H,D]", heads);
    if (shared) {
      c.absent("grad_k", op.grad_k, "options.shared_qk is 1");
    } else {
      c.output("grad_k", op.grad_k, RFN_F32, "[B,T,H,D]", heads);
    }
    c.output("grad_v", op.grad_v, RFN_F32, "[B,T,H,D]", heads);
  }
  return c.finish();
}

int32_t stage_pass(LshStage stage) {
  return stage == LshStage::lsh_combine_backward || stage == LshStage::lsh_attend_backward ? RFN_PASS_BACKWARD
                                                                                           : RFN_PASS_FORWARD;
}

rfn_status validate_stage(const rfn_attention& op, LshStage stage, const Workspace& workspace) {
#define RFN_STAGE(name) #name,
  constexpr const char* kNames[] = {RFN_LSH_STAGES(RFN_STAGE)};
#undef RFN_STAGE
  Checks c(kNames[static_cast<int>(stage)], Call::kRun, workspace);
  const bool attends = stage == LshStage::lsh_attend || stage == LshStage::lsh_attend_backward;
  const AttentionSizes s = attention_sizes(op);
  check_attention(c, op, s, attends || stage == LshStage::lsh_hash);
  if (op.options.kind != RFN_ATTENTION_LSH) {
    c.failed("options.kind: expected RFN_ATTENTION_LSH (%d), got %" PRId32, RFN_ATTENTION_LSH, op.options.kind);
  }
  if (!c.ok()) return c.finish();
  c.absent("k", op.k, "options.shared_qk is 1");
  c.optional_input("mask", op.mask, RFN_U8, "[B,T]", {s.b, s.t});
  const auto tensor = [&](bool written, const char* name, const rfn_tensor& t, int32_t dtype, const char* letters,
                          std::initializer_list<int64_t> sizes) {
    written ? c.output(name, t, dtype, letters, sizes) : c.input(name, t, dtype, letters, sizes);
  };
  const auto buckets = [&](bool written) {
    tensor(written, "buckets", op.buckets, RFN_I32, "[B,H,R,T]", {s.b, s.h, s.r, s.t});
  };
  const auto sorted = [&](bool written) {
    tensor(written, "sorted", op.sorted, RFN_I32, "[B,H,R,padded]", {s.b, s.h, s.r, s.padded});
  };
  const auto rounds = [&](bool written) {
    tensor(written, "round_out", op.round_out, RFN_F32, "[R*B,T,H,D]", {s.r * s.b, s.t, s.h, s.d});
    tensor(written, "round_log_sum_exp", op.round_log_sum_exp, RFN_F32, "[R,B,H,T]", {s.r, s.b, s.h, s.t});
  };
  const auto grad_rounds = [&](bool written) {
    tensor(written, "grad_round_out", op.grad_round_out, RFN_F32, "[R*B,T,H,D]", {s.r * s.b, s.t, s.h, s.d});
    tensor(written, "grad_round_log_sum_exp", op.grad_round_log_sum_exp, RFN_F32, "[R,B,H,T]", {s.r, s.b, s.h, s.t});
  };
  const auto heads = [&](bool written, const char* name, const rfn_tensor& t) {
    tensor(written, name, t, RFN_F32, "[B,T,H,D]", {s.b, s.t, s.h, s.d});
  };
  switch (stage) {
    case LshStage::lsh_hash:
      check_rotations(c, op.rotations, op.options, s.b, s.h, s.d);
      buckets(true);
      break;
    case LshStage::lsh_sort:
      buckets(false);
      sorted(true);
      break;
    case LshStage::lsh_attend:
      heads(false, "v", op.v);
      buckets(false);
      sorted(false);
      rounds(true);
      break;
    case LshStage::lsh_combine:
      rounds(false);
      heads(true, "out", op.out);
      c.optional_output("log_sum_exp", op.log_sum_exp, RFN_F32, "[B,H,T]", {s.b, s.h, s.t});
      break;
    case LshStage::lsh_combine_backward:
      rounds(false);
      heads(false, "out", op.out);
      c.input("log_sum_exp", op.log_sum_exp, RFN_F32, "[B,H,T]", {s.b, s.h, s.t});
      heads(false, "grad_out", op.grad_out);
      grad_rounds(true);
      break;
    case LshStage::lsh_attend_backward:
      heads(false, "v", op.v);
      buckets(false);
      sorted(false);
      rounds(false);
      grad_rounds(false);
      heads(true, "grad_q", op.grad_q);
      heads(true, "grad_v", op.grad_v);
      break;
  }
  return c.finish();
}

// ---- reversible block ----

namespace {

struct BlockSizes {
  int64_t e, projected, f;  // projected = H*D
};

using CheckTensor = void (Checks::*)(const char*, const rfn_tensor&, int32_t, const char*,
                                     std::initializer_list<int64_t>);

// Parameters (read) or gradients of them (written).
void check_block(Checks& c, const char* prefix, const rfn_block_parameters& p, const BlockSizes& s, bool shared,
                 bool output_bias, CheckTensor check) {
  c.struct_size(prefix, p.struct_size, sizeof(p));
  c.integer(Name({prefix, ".reserved"}).text, p.reserved, 0, 0);
  const auto tensor = [&](const char* name, const rfn_tensor& t, const char* letters,
                          std::initializer_list<int64_t> sizes) {
    (c.*check)(Name({prefix, ".", name}).text, t, RFN_F32, letters, sizes);
  };
  tensor("attention_norm_weight", p.attention_norm_weight, "[E]", {s.e});
  tensor("attention_norm_bias", p.attention_norm_bias, "[E]", {s.e});
  tensor("query", p.query, "[H*D,E]", {s.projected, s.e});
  if (shared) {
    c.absent(Name({prefix, ".key"}).text, p.key, "attention.shared_qk is 1");
  } else {
    tensor("key", p.key, "[H*D,E]", {s.projected, s.e});
  }
  tensor("value", p.value, "[H*D,E]", {s.projected, s.e});
  tensor("output", p.output, "[E,H*D]", {s.e, s.projected});
  if (output_bias) tensor("output_bias", p.output_bias, "[E]", {s.e});
  tensor("feed_forward_norm_weight", p.feed_forward_norm_weight, "[E]", {s.e});
  tensor("feed_forward_norm_bias", p.feed_forward_norm_bias, "[E]", {s.e});
  tensor("w1", p.w1, "[F,E]", {s.f, s.e});
  tensor("b1", p.b1, "[F]", {s.f});
  tensor("w2", p.w2, "[E,F]", {s.e, s.f});
  tensor("b2", p.b2, "[E]", {s.e});
}

// The kept tensors of a block, but for attention_result and buckets: forward takes any of them, backward the streams,
// or all. Returns whether backward is given activations.
bool check_kept(Checks& c, const rfn_reversible_block& op, const BlockSizes& s, bool forward, bool shared) {
  const int64_t b = op.stream1.shape[0], t = op.stream1.shape[1];
  const bool activations = !forward && !(all_zero(op.kept_query) && all_zero(op.kept_key) && all_zero(op.kept_value) &&
                                         all_zero(op.kept_log_sum_exp) && all_zero(op.kept_hidden));
  const bool streams = activations || (!forward && !(all_zero(op.kept_stream1) && all_zero(op.kept_stream2)));
  const auto tensor = [&](bool needed, const char* name, const rfn_tensor& view, const char* letters,
                          std::initializer_list<int64_t> sizes) {
    if (needed) return c.input(name, view, RFN_F32, letters, sizes);
    if (forward) c.optional_output(name, view, RFN_F32, letters, sizes);
  };
  if (shared) c.absent("kept_key", op.kept_key, "attention.shared_qk is 1");
  tensor(streams, "kept_stream1", op.kept_stream1, "[B,T,E]", {b, t, s.e});
  tensor(streams, "kept_stream2", op.kept_stream2, "[B,T,E]", {b, t, s.e});
  tensor(activations, "kept_query", op.kept_query, "[B,T,H*D]", {b, t, s.projected});
  if (!shared) tensor(activations, "kept_key", op.kept_key, "[B,T,H*D]", {b, t, s.projected});
  tensor(activations, "kept_value", op.kept_value, "[B,T,H*D]", {b, t, s.projected});
  tensor(activations, "kept_log_sum_exp", op.kept_log_sum_exp, "[B,H,T]", {b, op.heads, t});
  tensor(activations, "kept_hidden", op.kept_hidden, "[B*T,F]", {b * t, s.f});
  return activations;
}

}  // namespace

rfn_status validate(const rfn_reversible_block& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks c("reversible_block", call, workspace);
  check_pass(c, pass);
  c.integer("layer", op.layer, 0, kLastLayer);
  c.integer("heads", op.heads, 1, INT32_MAX);
  check_activation(c, op.activation);
  c.more_than("layer_norm_epsilon", op.layer_norm_epsilon, 0);
  c.fraction("attention_output_dropout", op.attention_output_dropout);
  c.fraction("feed_forward_dropout", op.feed_forward_dropout);
  c.integer("residual", op.residual, RFN_RESIDUAL_FLOAT, RFN_RESIDUAL_EXACT);
  const bool forward = pass == RFN_PASS_FORWARD, exact = op.residual == RFN_RESIDUAL_EXACT;
  if (exact) check_grid(c, op.grid_exponent);
  c.integer("reserved", op.reserved, 0, 0);
  c.integer("feed_forward_chunk", op.feed_forward_chunk, 0, INT64_MAX);
  c.integer("head_group", op.head_group, 0, INT64_MAX);

  const int64_t b = op.stream1.shape[0], t = op.stream1.shape[1], e = op.stream1.shape[2], h = op.heads;
  const BlockSizes sizes{e, op.parameters.query.shape[0], op.parameters.w1.shape[0]};
  // The streams are read and written; a workspace query needs the first for its sizes.
  if (call == Call::kQuery) c.shape("stream1", op.stream1, RFN_F32, "[B,T,E]", {b, t, e});
  c.output("stream1", op.stream1, RFN_F32, "[B,T,E]", {b, t, e});
  c.output("stream2", op.stream2, RFN_F32, "[B,T,E]", {b, t, e});
  c.largest("B * T", {b, t}, kLargestSize);
  c.anchor("parameters.query", op.parameters.query, RFN_F32, "[H*D,E]", {sizes.projected, e});
  c.anchor("parameters.w1", op.parameters.w1, RFN_F32, "[F,E]", {sizes.f, e});
  if (c.ok() && sizes.projected % h != 0) {
    c.failed("parameters.query: expected rows that are a multiple of heads = %" PRId64 ", got %" PRId64, h,
             sizes.projected);
  }
  if (!c.ok()) return c.finish();
  c.largest("B * T * H * D", {b, t, sizes.projected}, kMostElements);
  c.largest("B * T * F", {b, t, sizes.f}, kMostElements);
  check_options(c, op.attention, b, t, h);
  if (!c.ok()) return c.finish();

  const bool shared = op.attention.shared_qk == 1, output_bias = !all_zero(op.parameters.output_bias);
  check_block(c, "parameters", op.parameters, sizes, shared, output_bias, &Checks::input);
  c.optional_input("mask", op.mask, RFN_U8, "[B,T]", {b, t});
  const bool activations = check_kept(c, op, sizes, forward, shared);
  if (op.attention.kind == RFN_ATTENTION_LSH) {
    const std::initializer_list<int64_t> bucket_sizes = {b, h, op.attention.rounds, t};
    const bool hashes = forward || (exact && !activations);
    if (!hashes) {
      c.input("buckets", op.buckets, RFN_I32, "[B,H,R,T]", bucket_sizes);
    } else if (exact) {
      c.optional_output("buckets", op.buckets, RFN_I32, "[B,H,R,T]",
                        bucket_sizes);  // backward hashes again, to the same place
    } else {
      c.output("buckets", op.buckets, RFN_I32, "[B,H,R,T]", bucket_sizes);
    }
    if (hashes) check_rotations(c, op.rotations, op.attention, b, h, sizes.projected / h);
  }
  if (exact) c.result("range_report", op.range_report);
  if (activations) c.input("attention_result", op.attention_result, RFN_F32, "[B,T,H*D]", {b, t, sizes.projected});
  if (forward) {
    c.optional_output("attention_result", op.attention_result, RFN_F32, "[B,T,H*D]", {b, t, sizes.projected});
  } else {
    c.output("grad_stream1", op.grad_stream1, RFN_F32, "[B,T,E]", {b, t, e});
    c.output("grad_stream2", op.grad_stream2, RFN_F32, "[B,T,E]", {b, t, e});
    if (call == Call::kRun || op.gradients.struct_size != 0) {
      check_block(c, "gradients", op.gradients, sizes, shared, output_bias, &Checks::output);
    }
  }
  return c.finish();
}

// ---- cached decoding ----

rfn_status validate(const rfn_reversible_block_decode& op, Call call, const Workspace& workspace) {
  Checks c("reversible_block_decode", call, workspace);
  c.integer("layer", op.layer, 0, kLastLayer);
  c.integer("heads", op.heads, 1, INT32_MAX);
  check_activation(c, op.activation);
  c.more_than("layer_norm_epsilon", op.layer_norm_epsilon, 0);
  c.integer("residual", op.residual, RFN_RESIDUAL_FLOAT, RFN_RESIDUAL_EXACT);
  const bool exact = op.residual == RFN_RESIDUAL_EXACT;
  if (exact) check_grid(c, op.grid_exponent);
  c.integer("reserved", op.reserved, 0, 0);
  c.integer("position", op.position, 0, kLargestSize - 1);

  const int64_t b = op.stream1.shape[0], e = op.stream1.shape[2], h = op.heads, rows = op.keys.shape[1];
  const BlockSizes sizes{e, op.parameters.query.shape[0], op.parameters.w1.shape[0]};
  if (call == Call::kQuery) c.shape("stream1", op.stream1, RFN_F32, "[B,1,E]", {b, 1, e});
  c.output("stream1", op.stream1, RFN_F32, "[B,1,E]", {b, 1, e});
  c.output("stream2", op.stream2, RFN_F32, "[B,1,E]", {b, 1, e});
  c.anchor("parameters.query", op.parameters.query, RFN_F32, "[H*D,E]", {sizes.projected, e});
  c.anchor("parameters.w1", op.parameters.w1, RFN_F32, "[F,E]", {sizes.f, e});
  if (c.ok() && sizes.projected % h != 0) {
    c.failed("parameters.query: expected rows that are a multiple of heads = %" PRId64 ", got %" PRId64, h,
             sizes.projected);
  }
  if (!c.ok()) return c.finish();
  c.largest("B * F", {b, sizes.f}, kMostElements);
  const rfn_attention_options& options = op.attention;
  c.integer("options.padded_length", options.padded_length, 0, 0);
  check_options(c, options, b, op.position + 1, h);
  c.integer("options.causal", options.causal, 1, 1);
  if (options.dropout != 0) c.failed("options.dropout: expected 0, got %g", static_cast<double>(options.dropout));
  if (!c.ok()) return c.finish();

  check_block(c, "parameters", op.parameters, sizes, options.shared_qk == 1, !all_zero(op.parameters.output_bias),
              &Checks::input);
  if (call == Call::kQuery) c.shape("keys", op.keys, RFN_F32, "[B,S,H*D]", {b, rows, sizes.projected});
  c.output("keys", op.keys, RFN_F32, "[B,S,H*D]", {b, rows, sizes.projected});
  c.output("values", op.values, RFN_F32, "[B,S,H*D]", {b, rows, sizes.projected});
  int64_t least = op.position + 1;
  if (options.kind == RFN_ATTENTION_LOCAL)
    least = std::min(least, (1 + int64_t{options.chunks_before}) * options.chunk_length);
  if (c.ok() && rows < least) c.failed("keys: expected S of at least %" PRId64 " rows, got %" PRId64, least, rows);
  if (c.ok() && options.kind == RFN_ATTENTION_LSH) {
    int64_t buckets = 1;
    for (int32_t i = 0; i < options.factor_count; ++i) buckets *= options.factors[i];
    const int64_t ring = std::max<int64_t>(1, options.chunks_before * options.chunk_length);
    check_rotations(c, op.rotations, options, b, h, sizes.projected / h);
    c.output("rings", op.rings, RFN_I32, "[B*H,R,buckets,W]", {b * h, options.rounds, buckets, ring});
    c.output("counts", op.counts, RFN_I32, "[B*H,R,buckets]", {b * h, options.rounds, buckets});
  }
  if (exact) c.result("range_report", op.range_report);
  return c.finish();
}

rfn_status validate(const rfn_bucket_rings& op, Call call, const Workspace& workspace) {
  Checks c("bucket_rings", call, workspace);
  c.integer("reserved", op.reserved, 0, 0);
  const int64_t b = op.buckets.shape[0], h = op.buckets.shape[1], r = op.buckets.shape[2], t = op.buckets.shape[3];
  const int64_t buckets = op.rings.shape[2], ring = op.rings.shape[3];
  c.input("buckets", op.buckets, RFN_I32, "[B,H,R,T]", {b, h, r, t});
  if (!c.ok()) return c.finish();
  c.integer("first", op.first, 0, kLargestSize - t);
  c.output("rings", op.rings, RFN_I32, "[B*H,R,buckets,W]", {b * h, r, buckets, ring});
  c.output("counts", op.counts, RFN_I32, "[B*H,R,buckets]", {b * h, r, buckets});
  return c.finish();
}

// ---- final norm, output head ----

rfn_status validate(const rfn_final_norm& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks c("final_norm", call, workspace);
  check_pass(c, pass);
  c.integer("combine", op.combine, RFN_COMBINE_CONCATENATE, RFN_COMBINE_MEAN);
  c.more_than("epsilon", op.epsilon, 0);
  c.fraction("dropout", op.dropout);
  const int64_t n = op.stream1.shape[0], e = op.stream1.shape[1];
  c.anchor("stream1", op.stream1, RFN_F32, "[N,E]", {n, e});
  if (c.ok()) c.integer("first_row", op.first_row, 0, kLargestSize - n);
  c.input("stream2", op.stream2, RFN_F32, "[N,E]", {n, e});
  if (!c.ok()) return c.finish();
  const bool concatenate = op.combine == RFN_COMBINE_CONCATENATE;
  const int64_t w = concatenate ? 2 * e : e;
  const char* const width = concatenate ? "[2E]" : "[E]";
  const char* const rows = concatenate ? "[N,2E]" : "[N,E]";
  c.input("weight", op.weight, RFN_F32, width, {w});
  c.input("bias", op.bias, RFN_F32, width, {w});
  if (pass == RFN_PASS_FORWARD) {
    c.output("y", op.y, RFN_F32, rows, {n, w});
  } else {
    c.input("grad_y", op.grad_y, RFN_F32, rows, {n, w});
    c.output("grad_stream1", op.grad_stream1, RFN_F32, "[N,E]", {n, e});
    c.output("grad_stream2", op.grad_stream2, RFN_F32, "[N,E]", {n, e});
    c.output("grad_weight", op.grad_weight, RFN_F32, width, {w});
    c.output("grad_bias", op.grad_bias, RFN_F32, width, {w});
  }
  return c.finish();
}

rfn_status validate(const rfn_head_loss& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks c("head_loss", call, workspace);
  check_pass(c, pass);
  if (!(op.label_smoothing >= 0 && op.label_smoothing <= 1)) {
    c.failed("label_smoothing: expected 0 to 1, got %g", static_cast<double>(op.label_smoothing));
  }
  c.finite("loss_scale", op.loss_scale);
  c.at_least("normalizer", op.normalizer, 0);
  c.integer("chunk", op.chunk, 0, INT64_MAX);
  const int64_t n = op.x.shape[0], k = op.x.shape[1], v = op.weight.shape[0];
  c.anchor("x", op.x, RFN_F32, "[N,K]", {n, k});
  c.anchor("weight", op.weight, RFN_F32, "[V,K]", {v, k});
  c.largest("N * V", {n, v}, kMostElements);
  c.optional_input("bias", op.bias, RFN_F32, "[V]", {v});
  c.input("labels", op.labels, RFN_I32, "[N]", {n});
  c.result("statistics", op.statistics);
  if (pass == RFN_PASS_BACKWARD) {
    c.output("grad_x", op.grad_x, RFN_F32, "[N,K]", {n, k});
    c.output("grad_weight", op.grad_weight, RFN_F32, "[V,K]", {v, k});
    c.optional_output("grad_bias", op.grad_bias, RFN_F32, "[V]", {v});
    c.may_be_same("x", "grad_x");
  }
  return c.finish();
}

// ---- optimizers ----

rfn_status validate(const rfn_global_norm& op, Call call, const Workspace& workspace) {
  Checks c("global_norm", call, workspace);
  c.at_least("max_norm", op.max_norm, 0);
  c.integer("count", op.count, 1, kLargestSize);
  if (op.gradients == nullptr) c.failed("gradients: expected a pointer, got NULL");
  c.result("result", op.result);
  // Any number of gradients, which are only read: each is held against the result and the workspace by itself.
  for (int64_t i = 0; c.ok() && i < op.count; ++i) {
    const Name name("gradients", i);
    if (all_zero(op.gradients[i])) c.failed("%s: expected F32 of any shape, got an absent tensor", name.text);
    c.any_shape(name.text, op.gradients[i], Access::kRead);
    c.finish();
    c.forget_last_read();
  }
  return c.finish();
}

rfn_status validate(const rfn_adamw& op, Call call, const Workspace& workspace) {
  Checks c("adamw", call, workspace);
  c.at_least("learning_rate", op.learning_rate, 0);
  c.fraction("beta1", op.beta1);
  c.fraction("beta2", op.beta2);
  c.more_than("epsilon", op.epsilon, 0);
  c.at_least("weight_decay", op.weight_decay, 0);
  c.integer("step", op.step, 1, INT64_MAX);
  c.any_shape("parameter", op.parameter, Access::kWritten);
  c.same_shape("gradient", op.gradient, "parameter", op.parameter, Access::kRead);
  c.same_shape("moment1", op.moment1, "parameter", op.parameter, Access::kWritten);
  c.same_shape("moment2", op.moment2, "parameter", op.parameter, Access::kWritten);
  c.optional_result("clip", op.clip);
  return c.finish();
}

rfn_status validate(const rfn_adafactor& op, Call call, const Workspace& workspace) {
  Checks c("adafactor", call, workspace);
  c.at_least("learning_rate", op.learning_rate, 0);
  c.more_than("decay_exponent", op.decay_exponent, 0);
  c.more_than("clip_threshold", op.clip_threshold, 0);
  c.at_least("epsilon1", op.epsilon1, 0);
  c.at_least("epsilon2", op.epsilon2, 0);
  c.at_least("weight_decay", op.weight_decay, 0);
  c.flag("scale_parameter", op.scale_parameter);
  c.integer("step", op.step, 1, INT64_MAX);
  if (all_zero(op.parameter)) c.failed("parameter: expected F32 of any shape, got an absent tensor");
  c.any_shape("parameter", op.parameter, Access::kWritten);
  if (!c.ok()) return c.finish();
  c.same_shape("gradient", op.gradient, "parameter", op.parameter, Access::kRead);
  if (op.parameter.rank >= 2) {
    const int64_t columns = op.parameter.shape[op.parameter.rank - 1], rows = elements(op.parameter) / columns;
    c.output("row", op.row, RFN_F32, "[rows]", {rows});
    c.output("column", op.column, RFN_F32, "[columns]", {columns});
  } else {
    c.same_shape("moment2", op.moment2, "parameter", op.parameter, Access::kWritten);
  }
  c.optional_result("clip", op.clip);
  return c.finish();
}

// ---- sampling ----

rfn_status validate(const rfn_sample& op, Call call, const Workspace& workspace) {
  Checks c("sample", call, workspace);
  c.at_least("temperature", op.temperature, 0);
  if (!(op.top_p > 0 && op.top_p <= 1))
    c.failed("top_p: expected 0 < value <= 1, got %g", static_cast<double>(op.top_p));
  c.integer("top_k", op.top_k, 0, INT32_MAX);
  const int64_t n = op.logits.shape[0], v = op.logits.shape[1];
  c.anchor("logits", op.logits, RFN_F32, "[N,V]", {n, v});
  c.output("ids", op.ids, RFN_I32, "[N]", {n});
  return c.finish();
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
