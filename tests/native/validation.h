// The door's tests: every op, given one wrong thing at a time, must refuse it with a message that names it, and leave
// every output as it was. A correct call of each op, and the checks that all ops share.
#pragma once
#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "harness.h"

namespace rfn::test {

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum class Use { kInput, kOptionalInput, kShape, kOutput, kOptionalOutput };

inline bool written(Use use) { return use == Use::kOutput || use == Use::kOptionalOutput; }
inline bool optional(Use use) { return use == Use::kOptionalInput || use == Use::kOptionalOutput; }

// A correct call of one pass of an op, with memory for all its tensors; the op's type is known to OpCall alone, so that
// the checks are compiled once.
class Call {
 public:
  struct Argument {
    std::string name;
    rfn_tensor* view;  // null: a pointer to a struct of results
    void** data;       // where the op has the argument's address
    Use use;
    std::shared_ptr<GuardedMemory> memory;
    bool any_float = false;  // its type may be any of those that numbers are stored in, whatever the others'
  };

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  virtual ~Call() = default;

  // The op's functions, on any memory that claims to be such an op.
  virtual rfn_status run(rfn_stream* stream, const void* any_op, void* workspace, int64_t bytes) const = 0;
  virtual rfn_status query(const rfn_context* context, const void* any_op, int32_t any_pass, int64_t* bytes) const = 0;
  virtual bool has_query() const = 0;
  virtual bool has_passes() const = 0;  // its query is told which one is meant

  void tensor(const std::string& argument, rfn_tensor& view, const std::vector<int64_t>& sizes, Use use,
              int32_t dtype = RFN_F32) {
    int64_t bytes = dtype == RFN_U8 ? 1 : is_half(dtype) ? 2 : dtype == RFN_F64 || dtype == RFN_I64 ? 8 : 4;
    for (const int64_t size : sizes) bytes *= size;
    auto memory = std::make_shared<GuardedMemory>(bytes, 8);
    view = shape(sizes, dtype);
    view.data = memory->data();
    view.bytes = bytes;
    if (!written(use)) std::memset(memory->data(), 0, static_cast<size_t>(bytes));
    arguments.push_back({argument, &view, &view.data, use, memory});
  }
  template <class Result>
  void result(const std::string& argument, Result*& pointer, Use use = Use::kOutput) {
    auto memory = std::make_shared<GuardedMemory>(sizeof(Result), 8);
    pointer = static_cast<Result*>(memory->data());
    if (!written(use)) std::memset(memory->data(), 0, sizeof(Result));
    arguments.push_back({argument, nullptr,
                         reinterpret_cast<void**>(const_cast<std::remove_const_t<Result>**>(&pointer)), use, memory});
  }
  void input(const std::string& argument, rfn_tensor& view, const std::vector<int64_t>& sizes,
             int32_t dtype = RFN_F32) {
    tensor(argument, view, sizes, Use::kInput, dtype);
  }
  void output(const std::string& argument, rfn_tensor& view, const std::vector<int64_t>& sizes,
              int32_t dtype = RFN_F32) {
    tensor(argument, view, sizes, Use::kOutput, dtype);
  }

  const std::string name;
  const int32_t pass;
  uint8_t* const bytes;  // of the op
  const size_t size;
  std::vector<Argument> arguments;

 protected:
  Call(std::string op_name, int32_t op_pass, void* op_bytes, size_t op_size)
      : name(std::move(op_name)), pass(op_pass), bytes(static_cast<uint8_t*>(op_bytes)), size(op_size) {}
};

template <class Op>
class OpCall : public Call {
 public:
  using Workspace = rfn_status (*)(const rfn_context*, const Op*, int32_t, int64_t*);
  using OnePassWorkspace = rfn_status (*)(const rfn_context*, const Op*, int64_t*);
  using Run = rfn_status (*)(rfn_stream*, const Op*, void*, int64_t);

  // An op that has no workspace.
  OpCall(std::string op_name, Run op_run) : Call(std::move(op_name), RFN_PASS_FORWARD, &op, sizeof(op)), run_(op_run) {}
  OpCall(std::string op_name, OnePassWorkspace op_workspace, Run op_run)
      : Call(std::move(op_name), RFN_PASS_FORWARD, &op, sizeof(op)), one_pass_(op_workspace), run_(op_run) {}
  OpCall(std::string op_name, int32_t op_pass, Workspace op_workspace, Run op_run)
      : Call(std::move(op_name), op_pass, &op, sizeof(op)), workspace_(op_workspace), run_(op_run) {}

  rfn_status run(rfn_stream* stream, const void* any_op, void* workspace, int64_t workspace_bytes) const override {
    return run_(stream, static_cast<const Op*>(any_op), workspace, workspace_bytes);
  }
  rfn_status query(const rfn_context* context, const void* any_op, int32_t any_pass, int64_t* needed) const override {
    const Op* const asked = static_cast<const Op*>(any_op);
    return has_passes() ? workspace_(context, asked, any_pass, needed) : one_pass_(context, asked, needed);
  }
  bool has_query() const override { return has_passes() || one_pass_ != nullptr; }
  bool has_passes() const override { return workspace_ != nullptr; }

  Op op = make_op<Op>();

 private:
  Workspace workspace_ = nullptr;
  OnePassWorkspace one_pass_ = nullptr;
  Run run_;
};

class Checker {
  // The op, and its tensors, which may stand outside of it, as they are now; puts them back at its end.
  class Before {
   public:
    explicit Before(Call& call) : call_(call), bytes_(call.bytes, call.bytes + call.size) {
      for (const auto& a : call.arguments) tensors_.push_back(a.view == nullptr ? rfn_tensor{} : *a.view);
    }
    ~Before() {
      std::copy(bytes_.begin(), bytes_.end(), call_.bytes);
      for (size_t i = 0; i < tensors_.size(); ++i) {
        if (call_.arguments[i].view != nullptr) *call_.arguments[i].view = tensors_[i];
      }
    }
    Before(const Before&) = delete;
    Before& operator=(const Before&) = delete;

   private:
    Call& call_;
    const std::vector<uint8_t> bytes_;
    std::vector<rfn_tensor> tensors_;
  };

 public:
  Checker(const Stream& stream, Call& call) : stream_(stream), call_(call) {
    if (!call.has_query()) return;
    EXPECT_TRUE(Ok(query(&bytes_))) << call.name;
    scratch_ = std::make_unique<GuardedMemory>(bytes_, 0);
  }

  rfn_status run() const { return run(scratch_ == nullptr ? nullptr : scratch_->data(), bytes_); }

  // The changed op is refused with the op's and the argument's name, in the workspace query too if `in_query`; nothing
  // was written. Afterwards it is as before.
  void refused(const std::string& what, const std::string& argument, bool in_query,
               const std::function<void()>& change) const {
    SCOPED_TRACE(call_.name + (call_.pass == RFN_PASS_FORWARD ? " forward: " : " backward: ") + what);
    const Before before(call_);
    change();
    for (const auto& a : call_.arguments) {
      if (written(a.use)) a.memory->poison_contents();
    }
    EXPECT_TRUE(Fails(run(), RFN_INVALID_ARGUMENT, {call_.name, argument}));
    for (const auto& a : call_.arguments) {
      if (!written(a.use)) continue;
      const auto* const bytes = static_cast<const uint8_t*>(a.memory->data());
      for (int64_t i = 0; i < a.memory->bytes(); ++i) {
        if (bytes[i] == static_cast<uint8_t>(kPoison >> 8 * (i % 4))) continue;
        ADD_FAILURE() << a.name << " was written at byte " << i;
        break;
      }
    }
    if (in_query && call_.has_query()) {
      int64_t bytes = -7;
      EXPECT_TRUE(Fails(query(&bytes), RFN_INVALID_ARGUMENT, {call_.name}));
      EXPECT_EQ(bytes, -7);
    }
  }

  // Whatever can be wrong with a tensor.
  void tensors() const {
    for (const auto& argument : call_.arguments) {
      const std::string& name = argument.name;
      const bool data = argument.use != Use::kShape;
      const auto wrong = [&](const std::string& what, bool in_query, const std::function<void()>& change) {
        refused(name + ": " + what, name, in_query, change);
      };
      if (argument.view == nullptr) {
        if (!optional(argument.use)) wrong("no data", false, [&] { *argument.data = nullptr; });
        wrong("not aligned", false, [&] { *argument.data = static_cast<char*>(*argument.data) + 1; });
        continue;
      }
      rfn_tensor& t = *argument.view;
      if (!optional(argument.use)) wrong("absent", false, [&] { t = {}; });
      wrong("struct_size", true, [&] { t.struct_size -= 8; });
      wrong("struct_size 0", true, [&] { t.struct_size = 0; });
      wrong("reserved", true, [&] { t.reserved = 1; });
      for (const int32_t dtype : {0, RFN_F32, RFN_F64, RFN_I32, RFN_I64, RFN_U8, RFN_BF16, RFN_F16, 8, -1}) {
        const bool fits = argument.any_float && (dtype == RFN_F32 || is_half(dtype));
        if (dtype != t.dtype && !fits) wrong("dtype " + std::to_string(dtype), true, [&] { t.dtype = dtype; });
      }
      for (const int32_t rank : {-1, 5, 1 << 30}) wrong("rank " + std::to_string(rank), true, [&] { t.rank = rank; });
      for (int32_t i = t.rank; i < 4; ++i) wrong("size behind the rank", true, [&] { t.shape[i] = 1; });
      for (int32_t i = 0; i < t.rank; ++i) {
        for (const int64_t size : {int64_t{0}, int64_t{-1}, INT64_MAX, INT64_MIN}) {
          wrong("size " + std::to_string(size), true, [&] { t.shape[i] = size; });
        }
      }
      if (!data) continue;
      wrong("no data", false, [&] { t.data = nullptr; });
      wrong("short by a byte", false, [&] { t.bytes -= 1; });
      wrong("negative capacity", false, [&] { t.bytes = -1; });
      if (t.dtype != RFN_U8) wrong("not aligned", false, [&] { t.data = static_cast<char*>(t.data) + 1; });
    }
  }

  // A size that does not fit the others: which argument the message names is the op's choice. Where it names the one
  // that is wrong it gives its shape in letters and in numbers, and a letter means the same number in all messages.
  void sizes() const {
    if (call_.arguments.size() == 1) return;  // nothing to fit
    std::vector<std::pair<std::string, int64_t>> named;
    for (const auto& argument : call_.arguments) {
      if (argument.view == nullptr) continue;
      rfn_tensor& t = *argument.view;
      for (int32_t i = 0; i < t.rank; ++i) {
        refused(argument.name + ": a size too large", "", false, [&] {
          t.shape[i] += 1;
          t.bytes = INT64_MAX;  // the size itself is what is wrong
        });
        const std::string message = rfn_last_error(), start = call_.name + ": " + argument.name + ": expected ";
        if (message.rfind(start, 0) == 0) add_named_sizes(message, &named);
      }
      if (t.rank > 0 && t.rank < 4) {
        refused(argument.name + ": one rank more", "", false, [&] { t.shape[t.rank++] = 1; });
      }
    }
    expect_consistent(named);
  }

  // The pairs of "[B,2E] = [3, 8]" in a message.
  static void add_named_sizes(const std::string& message, std::vector<std::pair<std::string, int64_t>>* named) {
    const size_t between = message.find("] = ["), begin = message.rfind('[', between);
    if (between == std::string::npos || begin == std::string::npos) return;
    std::stringstream letters(message.substr(begin + 1, between - begin - 1)), numbers(message.substr(between + 5));
    std::string name, number;
    while (std::getline(letters, name, ',') && std::getline(numbers, number, ','))
      named->emplace_back(name, std::stoll(number));
  }

  // A size is a name, or a product of names and of numbers in front of them: 2E, H*D.
  static void expect_consistent(const std::vector<std::pair<std::string, int64_t>>& named) {
    std::map<std::string, int64_t> values;
    const auto is_product = [](const std::string& name) {
      return name.find('*') != std::string::npos || std::isdigit(name[0]) != 0;
    };
    for (const auto& [name, number] : named) {
      if (is_product(name)) continue;
      const int64_t first = values.emplace(name, number).first->second;
      EXPECT_EQ(number, first) << "what messages call " << name;
    }
    for (const auto& [name, number] : named) {
      if (!is_product(name)) continue;
      std::stringstream factors(name);
      std::string factor;
      int64_t product = 1;
      bool known = true;
      while (known && std::getline(factors, factor, '*')) {
        size_t digits = 0;
        while (std::isdigit(factor[digits]) != 0) ++digits;
        const auto found = values.find(factor.substr(digits));
        known = found != values.end();
        if (known) product *= found->second * (digits == 0 ? 1 : std::stoll(factor));
      }
      if (known) {
        EXPECT_EQ(number, product) << "what messages call " << name;
      }
    }
  }

  // Outputs may not share memory with anything, inputs included, but for the pairs in `allowed`.
  void overlaps(const std::vector<std::pair<std::string, std::string>>& allowed = {}) const {
    for (const auto& a : call_.arguments) {
      if (!written(a.use)) continue;
      for (const auto& b : call_.arguments) {
        if (&a == &b || b.use == Use::kShape) continue;
        bool may = false;
        for (const auto& [x, y] : allowed) may = may || (x == a.name && y == b.name) || (y == a.name && x == b.name);
        if (may) continue;
        refused(a.name + " is " + b.name, "", false, [&] {
          // The smaller one's memory lies in the larger one's.
          if (a.memory->bytes() <= b.memory->bytes()) {
            *a.data = *b.data;
          } else {
            *b.data = *a.data;
          }
        });
      }
      if (scratch_ == nullptr || bytes_ == 0) continue;
      refused(a.name + " ends in the workspace", "workspace", false,
              [&] { *a.data = static_cast<char*>(scratch_->data()) + 8 - round_up(a.memory->bytes(), 8); });
    }
  }

  void value(const std::string& argument, const std::function<void()>& change) const {
    refused(argument, argument, true, change);
  }

  void workspaces() const {
    if (bytes_ == 0) return;
    SCOPED_TRACE(call_.name);
    char* const data = static_cast<char*>(scratch_->data());
    const std::string needed = std::to_string(bytes_), one_less = std::to_string(bytes_ - 1);
    EXPECT_TRUE(Fails(run(data, bytes_ - 1), RFN_INVALID_ARGUMENT, {call_.name, "workspace_bytes", needed, one_less}));
    EXPECT_TRUE(Fails(run(data, -1), RFN_INVALID_ARGUMENT, {call_.name, "workspace_bytes", needed}));
    EXPECT_TRUE(Fails(run(nullptr, bytes_), RFN_INVALID_ARGUMENT, {call_.name, "workspace", "NULL"}));
    for (const int offset : {1, 8, 32}) {
      EXPECT_TRUE(Fails(run(data + offset, bytes_), RFN_INVALID_ARGUMENT, {call_.name, "workspace", "64"}));
    }
  }

  // struct_size decides what may be read at all: the struct behind it is not there.
  void struct_size() const {
    const uint32_t right = static_cast<uint32_t>(call_.size);
    for (const uint32_t size : {uint32_t{0}, uint32_t{4}, right - 8, right + 8, UINT32_MAX}) {
      const std::unique_ptr<uint32_t> only(new uint32_t(size));
      EXPECT_TRUE(Fails(call_.run(stream_, only.get(), nullptr, 0), RFN_INVALID_ARGUMENT,
                        {"struct_size", std::to_string(right), std::to_string(size)}));
      if (!call_.has_query()) continue;
      int64_t bytes = -7;
      EXPECT_TRUE(
          Fails(call_.query(stream_.context(), only.get(), call_.pass, &bytes), RFN_INVALID_ARGUMENT, {"struct_size"}));
      EXPECT_EQ(bytes, -7);
    }
  }

  void pointers() const {
    EXPECT_TRUE(Fails(call_.run(nullptr, call_.bytes, nullptr, 0), RFN_INVALID_ARGUMENT, {"stream", "NULL"}));
    EXPECT_TRUE(Fails(call_.run(stream_, nullptr, nullptr, 0), RFN_INVALID_ARGUMENT, {"op", "NULL"}));
    if (!call_.has_query()) return;
    int64_t bytes = 0;
    EXPECT_TRUE(
        Fails(call_.query(nullptr, call_.bytes, call_.pass, &bytes), RFN_INVALID_ARGUMENT, {"context", "NULL"}));
    EXPECT_TRUE(
        Fails(call_.query(stream_.context(), nullptr, call_.pass, &bytes), RFN_INVALID_ARGUMENT, {"op", "NULL"}));
    EXPECT_TRUE(Fails(query(nullptr), RFN_INVALID_ARGUMENT, {"bytes", "NULL"}));
    if (!call_.has_passes()) return;
    for (const int32_t pass : {-1, 2}) {
      EXPECT_TRUE(
          Fails(call_.query(stream_.context(), call_.bytes, pass, &bytes), RFN_INVALID_ARGUMENT, {call_.name, "pass"}));
    }
  }

  // A workspace query reads shapes only, and gives the same answer without data.
  void query_without_data() const {
    if (!call_.has_query()) return;
    const Before before(call_);
    for (const auto& a : call_.arguments) {
      *a.data = nullptr;
      if (a.view != nullptr) a.view->bytes = 0;
    }
    int64_t bytes = -1;
    EXPECT_TRUE(Ok(query(&bytes))) << call_.name;
    EXPECT_EQ(bytes, bytes_) << call_.name;
  }

  void all(const std::vector<std::pair<std::string, std::string>>& allowed = {}) const {
    EXPECT_TRUE(Ok(run())) << call_.name << " with correct arguments";
    tensors();
    sizes();
    overlaps(allowed);
    workspaces();
    struct_size();
    pointers();
    query_without_data();
    EXPECT_TRUE(Ok(run())) << call_.name << " with correct arguments, again";
  }

 private:
  rfn_status run(void* workspace, int64_t bytes) const { return call_.run(stream_, call_.bytes, workspace, bytes); }
  rfn_status query(int64_t* bytes) const { return call_.query(stream_.context(), call_.bytes, call_.pass, bytes); }

  const Stream& stream_;
  Call& call_;
  int64_t bytes_ = 0;
  std::unique_ptr<GuardedMemory> scratch_;
};

#define RFN_FORWARD(name) #name, RFN_PASS_FORWARD, rfn_##name##_workspace, rfn_##name##_forward
#define RFN_ONE_PASS(name, pass) #name, rfn_##name##_workspace, rfn_##name##_##pass
// clang-format off
#define RFN_NO_WORKSPACE(name, pass) \
  #name, [](rfn_stream* s, const rfn_##name* op, void*, int64_t) { return rfn_##name##_##pass(s, op); }
// clang-format on
#define RFN_BACKWARD(name) #name, RFN_PASS_BACKWARD, rfn_##name##_workspace, rfn_##name##_backward

using Validation = OpTest;

// ---- correct calls, each in the file of its op's tests; the pass is that of the call ----

inline constexpr int64_t kBatch = 2, kLength = 9, kHeads = 2, kHeadSize = 3, kRounds = 2, kPadded = 12;
inline constexpr int64_t kColumns = 3;  // (4 + 2) / 2

rfn_attention_options lsh_options();
// Every option of attention with wrong values.
void options(const Checker& check, rfn_attention_options& o);

enum class Kept { kNothing, kStreams, kActivations };

void embedding(OpCall<rfn_embedding>& call, int32_t positions);
void layer_norm(OpCall<rfn_layer_norm>& call, int32_t dtype = RFN_F32);
void linear(OpCall<rfn_linear>& call, int32_t dtype = RFN_F32);
void attention(OpCall<rfn_attention>& call, int32_t dtype = RFN_F32);
void stage_tensors(OpCall<rfn_attention>& call, Stage stage);
void feed_forward(OpCall<rfn_feed_forward>& call, int32_t dtype = RFN_F32);
void block(OpCall<rfn_reversible_block>& call, int32_t residual, Kept kept);
void decode(OpCall<rfn_reversible_block_decode>& call, int32_t residual);
void final_norm(OpCall<rfn_final_norm>& call, int32_t combine);
void head(OpCall<rfn_head_loss>& call);
void random_normal(OpCall<rfn_random_normal>& call);
void bucket_rings(OpCall<rfn_bucket_rings>& call);
void sample(OpCall<rfn_sample>& call);

}  // namespace rfn::test
