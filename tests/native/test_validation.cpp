// The door: every op, given one wrong thing at a time, must refuse it with a message that names it, and leave every
// output as it was.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/complete.h"
#include "core/tensor.h"
#include "harness.h"

namespace rfn::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum class Use { kInput, kOptionalInput, kShape, kOutput, kOptionalOutput };

bool written(Use use) { return use == Use::kOutput || use == Use::kOptionalOutput; }
bool optional(Use use) { return use == Use::kOptionalInput || use == Use::kOptionalOutput; }

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
    int64_t bytes = dtype == RFN_U8 ? 1 : dtype == RFN_F64 || dtype == RFN_I64 ? 8 : 4;
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
    const std::vector<uint8_t> before(call_.bytes, call_.bytes + call_.size);
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
    std::copy(before.begin(), before.end(), call_.bytes);
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
      for (const int32_t dtype : {0, RFN_F32, RFN_F64, RFN_I32, RFN_I64, RFN_U8, 6, -1}) {
        if (dtype != t.dtype) wrong("dtype " + std::to_string(dtype), true, [&] { t.dtype = dtype; });
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

  // A size that does not fit the others: which argument the message names is the op's choice.
  void sizes() const {
    if (call_.arguments.size() == 1) return;  // nothing to fit
    for (const auto& argument : call_.arguments) {
      if (argument.view == nullptr) continue;
      rfn_tensor& t = *argument.view;
      for (int32_t i = 0; i < t.rank; ++i) {
        refused(argument.name + ": a size too large", "", false, [&] {
          t.shape[i] += 1;
          t.bytes = INT64_MAX;  // the size itself is what is wrong
        });
      }
      if (t.rank > 0 && t.rank < 4) {
        refused(argument.name + ": one rank more", "", false, [&] { t.shape[t.rank++] = 1; });
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
    const std::vector<uint8_t> before(call_.bytes, call_.bytes + call_.size);
    for (const auto& a : call_.arguments) {
      *a.data = nullptr;
      if (a.view != nullptr) a.view->bytes = 0;
    }
    int64_t bytes = -1;
    EXPECT_TRUE(Ok(query(&bytes))) << call_.name;
    EXPECT_EQ(bytes, bytes_) << call_.name;
    std::copy(before.begin(), before.end(), call_.bytes);
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
#define RFN_BACKWARD(name) #name, RFN_PASS_BACKWARD, rfn_##name##_workspace, rfn_##name##_backward

using Validation = OpTest;

TEST_F(Validation, RandomNormal_WrongArguments_Refused) {
  OpCall<rfn_random_normal> call("random_normal", [](rfn_stream* s, const rfn_random_normal* op, void*, int64_t) {
    return rfn_random_normal_forward(s, op);
  });
  rfn_random_normal& op = call.op;
  op.site = RFN_SITE_PARAMETERS;
  op.standard_deviation = 1;
  call.output("destination", op.destination, {3, 5});
  const Checker check(stream, call);
  check.all();
  check.value("layer", [&] { op.layer = -2; });
  check.value("layer", [&] { op.layer = 1 << 24; });
  check.value("site", [&] { op.site = 0; });
  check.value("site", [&] { op.site = 256; });
  check.value("mean", [&] { op.mean = kNaN; });
  check.value("mean", [&] { op.mean = kInfinity; });
  check.value("standard_deviation", [&] { op.standard_deviation = -1; });
  check.value("standard_deviation", [&] { op.standard_deviation = kNaN; });
  check.value("reserved", [&] { op.reserved = 1; });
}

void embedding(OpCall<rfn_embedding>& call, int32_t positions) {
  rfn_embedding& op = call.op;
  const int64_t b = 2, t = 5, v = 7, e = 6;
  op.positions = positions;
  op.axes = positions == RFN_POSITIONS_AXIAL ? 2 : positions == RFN_POSITIONS_LEARNED ? 1 : 0;
  call.input("ids", op.ids, {b, t}, RFN_I32);
  call.input("word", op.word, {v, e});
  const std::vector<std::vector<int64_t>> tables = positions == RFN_POSITIONS_AXIAL
                                                       ? std::vector<std::vector<int64_t>>{{3, 4}, {2, 2}}
                                                       : std::vector<std::vector<int64_t>>{{6, e}};
  const bool forward = call.pass == RFN_PASS_FORWARD;
  for (int32_t i = 0; i < op.axes; ++i) {
    const std::string index = "[" + std::to_string(i) + "]";
    call.input("position" + index, op.position[i], tables[i]);
    if (!forward) call.output("grad_position" + index, op.grad_position[i], tables[i]);
  }
  if (forward) {
    call.output("stream1", op.stream1, {b, t, e});
    call.tensor("stream2", op.stream2, {b, t, e}, Use::kOptionalOutput);
    call.result("range_report", op.range_report, Use::kOptionalOutput);
  } else {
    call.input("grad_stream1", op.grad_stream1, {b, t, e});
    call.tensor("grad_stream2", op.grad_stream2, {b, t, e}, Use::kOptionalInput);
    call.output("grad_word", op.grad_word, {v, e});
  }
}

TEST_F(Validation, EmbeddingForward_WrongArguments_Refused) {
  for (const int32_t positions : {RFN_POSITIONS_NONE, RFN_POSITIONS_LEARNED, RFN_POSITIONS_AXIAL}) {
    OpCall<rfn_embedding> call(RFN_FORWARD(embedding));
    embedding(call, positions);
    rfn_embedding& op = call.op;
    const Checker check(stream, call);
    // A larger table of positions is fine, so the sizes of the last two are tested below.
    EXPECT_TRUE(Ok(check.run()));
    check.tensors();
    check.overlaps();
    check.workspaces();
    check.struct_size();
    check.pointers();
    check.query_without_data();
    check.value("positions", [&] { op.positions = -1; });
    check.value("positions", [&] { op.positions = 3; });
    check.value("axes", [&] { op.axes = positions == RFN_POSITIONS_AXIAL ? 0 : op.axes + 1; });
    check.value("axes", [&] { op.axes = 5; });
    for (const float dropout : {-0.1f, 1.0f, kNaN}) check.value("dropout", [&] { op.dropout = dropout; });
    check.value("first_position", [&] { op.first_position = -1; });
    check.value("residual", [&] { op.residual = 2; });
    for (const int32_t exponent : {-25, -3}) {
      check.value("grid_exponent", [&] {
        op.residual = 1;
        op.grid_exponent = exponent;
      });
    }
    if (positions == RFN_POSITIONS_NONE) continue;
    check.value("position", [&] { op.first_position = 2; });          // 2 + 5 positions, tables for 6
    check.value("position", [&] { op.first_position = INT64_MAX; });  // nor does the sum overflow
    if (positions == RFN_POSITIONS_AXIAL)
      check.value("position", [&] { op.position[1].shape[1] = 3; });  // widths 4 + 3, E = 6
  }
}

TEST_F(Validation, EmbeddingBackward_WrongArguments_Refused) {
  OpCall<rfn_embedding> call(RFN_BACKWARD(embedding));
  embedding(call, RFN_POSITIONS_AXIAL);
  Checker(stream, call).all();
}

TEST_F(Validation, EmbeddingForward_IdOutOfRange_Refused) {
  OpCall<rfn_embedding> call(RFN_FORWARD(embedding));
  embedding(call, RFN_POSITIONS_NONE);
  const Checker check(stream, call);
  int32_t* const ids = static_cast<int32_t*>(call.op.ids.data);
  for (const int32_t id : {-1, 7, INT32_MAX, INT32_MIN}) {
    ids[3] = id;
    check.refused("id " + std::to_string(id), "ids", false, [] {});
  }
}

void layer_norm(OpCall<rfn_layer_norm>& call) {
  const int64_t n = 3, e = 5;
  rfn_layer_norm& op = call.op;
  op.epsilon = 1e-5f;
  call.input("x", op.x, {n, e});
  call.input("weight", op.weight, {e});
  call.input("bias", op.bias, {e});
  if (call.pass == RFN_PASS_FORWARD) return call.output("y", op.y, {n, e});
  call.input("grad_y", op.grad_y, {n, e});
  call.output("grad_x", op.grad_x, {n, e});
  call.output("grad_weight", op.grad_weight, {e});
  call.output("grad_bias", op.grad_bias, {e});
}

TEST_F(Validation, LayerNorm_WrongArguments_Refused) {
  OpCall<rfn_layer_norm> forward(RFN_FORWARD(layer_norm)), backward(RFN_BACKWARD(layer_norm));
  layer_norm(forward);
  layer_norm(backward);
  for (auto* call : {&forward, &backward}) {
    const Checker check(stream, *call);
    check.all();
    for (const float epsilon : {0.0f, -1e-5f, kNaN, kInfinity})
      check.value("epsilon", [&] { call->op.epsilon = epsilon; });
  }
}

void linear(OpCall<rfn_linear>& call) {
  const int64_t n = 3, k = 5, m = 4;
  rfn_linear& op = call.op;
  call.input("x", op.x, {n, k});
  call.input("weight", op.weight, {m, k});
  call.tensor("bias", op.bias, {m}, Use::kOptionalInput);
  if (call.pass == RFN_PASS_FORWARD) return call.output("y", op.y, {n, m});
  call.input("grad_y", op.grad_y, {n, m});
  call.tensor("grad_x", op.grad_x, {n, k}, Use::kOptionalOutput);
  call.output("grad_weight", op.grad_weight, {m, k});
  call.tensor("grad_bias", op.grad_bias, {m}, Use::kOptionalOutput);
}

TEST_F(Validation, Linear_WrongArguments_Refused) {
  OpCall<rfn_linear> forward(RFN_FORWARD(linear)), backward(RFN_BACKWARD(linear));
  linear(forward);
  linear(backward);
  for (auto* call : {&forward, &backward}) {
    const Checker check(stream, *call);
    check.all();
    for (const int32_t activation : {-1, 6}) check.value("activation", [&] { call->op.activation = activation; });
  }
}

rfn_attention_options lsh_options() {
  rfn_attention_options o = make_op<rfn_attention_options>();
  o.kind = RFN_ATTENTION_LSH;
  o.shared_qk = 1;
  o.causal = 1;
  o.wrap = 1;
  o.key_norm = RFN_KEY_NORM_RMS;
  o.rounds = 2;
  o.factor_count = 2;
  o.factors[0] = 4;
  o.factors[1] = 2;
  o.pad_bucket = 1;
  o.chunks_before = 1;
  o.chunk_length = 4;
  o.padded_length = 12;
  return o;
}

constexpr int64_t kBatch = 2, kLength = 9, kHeads = 2, kHeadSize = 3, kRounds = 2, kPadded = 12;
constexpr int64_t kColumns = 3;  // (4 + 2) / 2

void options(const Checker& check, rfn_attention_options& o) {
  const auto integer = [&](const char* name, int32_t& field, std::initializer_list<int32_t> values) {
    for (const int32_t value : values) check.value(name, [&field, value] { field = value; });
  };
  integer("kind", o.kind, {-1, 3});
  integer("shared_qk", o.shared_qk, {-1, 0, 2});
  integer("causal", o.causal, {-1, 2});
  integer("window", o.window, {-1, 3});
  integer("wrap", o.wrap, {-1, 2});
  integer("repeat_chunks", o.repeat_chunks, {-1, 2});
  integer("duplicates", o.duplicates, {-1, 2});
  integer("key_norm", o.key_norm, {-1, 3});
  integer("rounds", o.rounds, {-1, 0});
  integer("factor_count", o.factor_count, {-1, 0, 9});
  integer("factors[0]", o.factors[0], {-2, 0, 1, 3});
  integer("factors", o.factors[1], {1 << 30, INT32_MAX - 1});
  integer("pad_bucket", o.pad_bucket, {-1, 2});
  integer("chunks_before", o.chunks_before, {-1, INT32_MAX});
  integer("chunks_after", o.chunks_after, {-1, INT32_MAX});
  for (const float scale : {-1.0f, kNaN, kInfinity}) check.value("logit_scale", [&] { o.logit_scale = scale; });
  for (const float dropout : {-0.1f, 1.0f, kNaN}) check.value("dropout", [&] { o.dropout = dropout; });
  for (const int64_t length : {int64_t{-1}, int64_t{0}, INT64_MAX})
    check.value("chunk_length", [&] { o.chunk_length = length; });
  for (const int64_t length : {int64_t{-4}, int64_t{8}, int64_t{13}, INT64_MAX})
    check.value("padded_length", [&] { o.padded_length = length; });
  check.value("causal", [&] {
    o.window = RFN_WINDOW_STRICT;
    o.causal = 0;
  });
  check.value("chunks_after", [&] {
    o.window = RFN_WINDOW_STRICT;
    o.chunks_after = 1;
  });
  check.value("struct_size", [&] { o.struct_size = 0; });
}

void attention_inputs(OpCall<rfn_attention>& call) {
  rfn_attention& op = call.op;
  op.options = lsh_options();
  call.input("q", op.q, {kBatch, kLength, kHeads, kHeadSize});
  call.input("v", op.v, {kBatch, kLength, kHeads, kHeadSize});
  call.tensor("mask", op.mask, {kBatch, kLength}, Use::kOptionalInput, RFN_U8);
}

void attention(OpCall<rfn_attention>& call) {
  rfn_attention& op = call.op;
  const std::vector<int64_t> heads = {kBatch, kLength, kHeads, kHeadSize};
  attention_inputs(call);
  call.input("rotations", op.rotations, {kHeads, kHeadSize, kRounds, kColumns});
  if (call.pass == RFN_PASS_FORWARD) {
    call.tensor("buckets", op.buckets, {kBatch, kHeads, kRounds, kLength}, Use::kOptionalOutput, RFN_I32);
    call.output("out", op.out, heads);
    call.tensor("log_sum_exp", op.log_sum_exp, {kBatch, kHeads, kLength}, Use::kOptionalOutput);
    return;
  }
  call.input("out", op.out, heads);
  call.input("log_sum_exp", op.log_sum_exp, {kBatch, kHeads, kLength});
  call.input("grad_out", op.grad_out, heads);
  call.output("grad_q", op.grad_q, heads);
  call.output("grad_v", op.grad_v, heads);
}

TEST_F(Validation, AttentionForward_WrongArguments_Refused) {
  OpCall<rfn_attention> call(RFN_FORWARD(attention));
  rfn_attention& op = call.op;
  attention(call);
  const Checker check(stream, call);
  check.all();
  options(check, op.options);
  check.value("layer", [&] { op.layer = -2; });
  check.value("head_group", [&] { op.head_group = -1; });
  check.value("k", [&] { op.k = op.v; });
  check.value("rotations", [&] { op.rotations.shape[0] = 3; });
}

TEST_F(Validation, AttentionForward_RotationSets_OneHeadsOrBoth) {
  OpCall<rfn_attention> call(RFN_FORWARD(attention));
  rfn_attention& op = call.op;
  attention_inputs(call);
  call.input("rotations", op.rotations, {kBatch * kHeads, kHeadSize, kRounds, kColumns});
  call.output("out", op.out, {kBatch, kLength, kHeads, kHeadSize});
  const Checker check(stream, call);
  for (const int64_t sets : {int64_t{1}, kHeads, kBatch * kHeads}) {
    op.rotations.shape[0] = sets;
    EXPECT_TRUE(Ok(check.run())) << sets;
  }
}

TEST_F(Validation, AttentionBackward_WrongArguments_Refused) {
  OpCall<rfn_attention> call(RFN_BACKWARD(attention));
  rfn_attention& op = call.op;
  attention(call);
  const Checker check(stream, call);
  check.all();
  options(check, op.options);
  check.value("grad_k", [&] { op.grad_k = op.grad_v; });
}

TEST_F(Validation, AttentionWithOwnKeys_WrongArguments_Refused) {
  for (const int32_t kind : {RFN_ATTENTION_LOCAL, RFN_ATTENTION_FULL}) {
    OpCall<rfn_attention> forward(RFN_FORWARD(attention)), backward(RFN_BACKWARD(attention));
    for (auto* call : {&forward, &backward}) {
      rfn_attention& op = call->op;
      attention_inputs(*call);
      op.options.kind = kind;
      op.options.shared_qk = 0;
      op.options.key_norm = RFN_KEY_NORM_NONE;
      call->input("k", op.k, {kBatch, kLength, kHeads, kHeadSize});
    }
    forward.output("out", forward.op.out, {kBatch, kLength, kHeads, kHeadSize});
    backward.input("out", backward.op.out, {kBatch, kLength, kHeads, kHeadSize});
    backward.input("log_sum_exp", backward.op.log_sum_exp, {kBatch, kHeads, kLength});
    backward.input("grad_out", backward.op.grad_out, {kBatch, kLength, kHeads, kHeadSize});
    backward.output("grad_q", backward.op.grad_q, {kBatch, kLength, kHeads, kHeadSize});
    backward.output("grad_k", backward.op.grad_k, {kBatch, kLength, kHeads, kHeadSize});
    backward.output("grad_v", backward.op.grad_v, {kBatch, kLength, kHeads, kHeadSize});
    for (auto* call : {&forward, &backward}) Checker(stream, *call).all();
  }
}

using StageCall = OpCall<rfn_attention>;

void stage_tensors(StageCall& call, Stage stage) {
  rfn_attention& op = call.op;
  op.options = lsh_options();
  const std::vector<int64_t> heads = {kBatch, kLength, kHeads, kHeadSize},
                             rounds = {kRounds * kBatch, kLength, kHeads, kHeadSize},
                             log_sum_exp = {kRounds, kBatch, kHeads, kLength},
                             buckets = {kBatch, kHeads, kRounds, kLength}, sorted = {kBatch, kHeads, kRounds, kPadded};
  const bool attends = stage == rfn_lsh_attend || stage == rfn_lsh_attend_backward;
  call.tensor("q", op.q, heads, attends || stage == rfn_lsh_hash ? Use::kInput : Use::kShape);
  if (attends) call.input("v", op.v, heads);
  if (stage == rfn_lsh_hash) call.input("rotations", op.rotations, {kHeads, kHeadSize, kRounds, kColumns});
  if (stage == rfn_lsh_hash || stage == rfn_lsh_sort || attends) {
    call.tensor("buckets", op.buckets, buckets, stage == rfn_lsh_hash ? Use::kOutput : Use::kInput, RFN_I32);
  }
  if (stage == rfn_lsh_sort || attends)
    call.tensor("sorted", op.sorted, sorted, stage == rfn_lsh_sort ? Use::kOutput : Use::kInput, RFN_I32);
  if (attends || stage == rfn_lsh_combine || stage == rfn_lsh_combine_backward) {
    const Use use = stage == rfn_lsh_attend ? Use::kOutput : Use::kInput;
    call.tensor("round_out", op.round_out, rounds, use);
    call.tensor("round_log_sum_exp", op.round_log_sum_exp, log_sum_exp, use);
  }
  if (stage == rfn_lsh_combine) {
    call.output("out", op.out, heads);
    call.tensor("log_sum_exp", op.log_sum_exp, {kBatch, kHeads, kLength}, Use::kOptionalOutput);
  }
  if (stage == rfn_lsh_combine_backward) {
    call.input("out", op.out, heads);
    call.input("log_sum_exp", op.log_sum_exp, {kBatch, kHeads, kLength});
    call.input("grad_out", op.grad_out, heads);
  }
  if (stage == rfn_lsh_combine_backward || stage == rfn_lsh_attend_backward) {
    const Use use = stage == rfn_lsh_combine_backward ? Use::kOutput : Use::kInput;
    call.tensor("grad_round_out", op.grad_round_out, rounds, use);
    call.tensor("grad_round_log_sum_exp", op.grad_round_log_sum_exp, log_sum_exp, use);
  }
  if (stage == rfn_lsh_attend_backward) {
    call.output("grad_q", op.grad_q, heads);
    call.output("grad_v", op.grad_v, heads);
  }
  if (op.sorted.data != nullptr) {  // a permutation of each round
    int32_t* const positions = static_cast<int32_t*>(op.sorted.data);
    for (int64_t i = 0; i < kBatch * kHeads * kRounds * kPadded; ++i) positions[i] = static_cast<int32_t>(i % kPadded);
  }
}

TEST_F(Validation, LshStages_WrongArguments_Refused) {
#define RFN_STAGE(name)                                                                             \
  {                                                                                                 \
    const bool is_backward = std::string(#name).find("backward") != std::string::npos;              \
    StageCall call(#name, is_backward ? RFN_PASS_BACKWARD : RFN_PASS_FORWARD, nullptr, rfn_##name); \
    stage_tensors(call, rfn_##name);                                                                \
    stages(call);                                                                                   \
  }
  const auto stages = [&](StageCall& call) {
    SCOPED_TRACE(call.name);
    int64_t bytes = 0;
    ASSERT_TRUE(Ok(rfn_attention_workspace(context, &call.op, call.pass, &bytes)));
    const GuardedMemory scratch(bytes, 0);
    // Stages have no query of their own: they take attention's workspace.
    EXPECT_TRUE(Ok(call.run(stream, &call.op, scratch.data(), bytes)));
    EXPECT_TRUE(Fails(call.run(stream, &call.op, scratch.data(), bytes - 1), RFN_INVALID_ARGUMENT,
                      {call.name, "workspace_bytes"}));
    const Checker check(stream, call);
    check.tensors();
    check.sizes();
    check.overlaps();
    check.struct_size();
    EXPECT_TRUE(Fails(call.run(nullptr, &call.op, scratch.data(), bytes), RFN_INVALID_ARGUMENT, {"stream"}));
    EXPECT_TRUE(Fails(call.run(stream, nullptr, scratch.data(), bytes), RFN_INVALID_ARGUMENT, {"op"}));
    check.value("kind", [&] { call.op.options.kind = RFN_ATTENTION_LOCAL; });
    check.value("k", [&] { call.op.k = call.op.q; });
    options(check, call.op.options);
  };
  RFN_LSH_STAGES(RFN_STAGE)
#undef RFN_STAGE
}

void feed_forward(OpCall<rfn_feed_forward>& call) {
  const int64_t n = 3, e = 5, f = 7;
  rfn_feed_forward& op = call.op;
  call.input("x", op.x, {n, e});
  call.input("w1", op.w1, {f, e});
  call.input("b1", op.b1, {f});
  call.input("w2", op.w2, {e, f});
  call.input("b2", op.b2, {e});
  if (call.pass == RFN_PASS_FORWARD) return call.output("y", op.y, {n, e});
  call.input("grad_y", op.grad_y, {n, e});
  call.output("grad_x", op.grad_x, {n, e});
  call.output("grad_w1", op.grad_w1, {f, e});
  call.output("grad_b1", op.grad_b1, {f});
  call.output("grad_w2", op.grad_w2, {e, f});
  call.output("grad_b2", op.grad_b2, {e});
}

TEST_F(Validation, FeedForward_WrongArguments_Refused) {
  OpCall<rfn_feed_forward> forward(RFN_FORWARD(feed_forward)), backward(RFN_BACKWARD(feed_forward));
  feed_forward(forward);
  feed_forward(backward);
  for (auto* call : {&forward, &backward}) {
    const Checker check(stream, *call);
    check.all();
    for (const int32_t activation : {-1, 6}) check.value("activation", [&] { call->op.activation = activation; });
    for (const float dropout : {-0.1f, 1.0f, kNaN}) check.value("dropout", [&] { call->op.dropout = dropout; });
    check.value("layer", [&] { call->op.layer = -2; });
    check.value("chunk", [&] { call->op.chunk = -1; });
  }
}

enum class Kept { kNothing, kStreams, kActivations };

constexpr int64_t kWidth = 4, kHidden = 5;

void block_parameters(Call& call, const std::string& prefix, rfn_block_parameters& p, Use use, Use bias_use) {
  const int64_t e = kWidth, f = kHidden, projected = kHeads * kHeadSize;
  p = make_op<rfn_block_parameters>();
  call.tensor(prefix + ".attention_norm_weight", p.attention_norm_weight, {e}, use);
  call.tensor(prefix + ".attention_norm_bias", p.attention_norm_bias, {e}, use);
  call.tensor(prefix + ".query", p.query, {projected, e}, use);
  call.tensor(prefix + ".value", p.value, {projected, e}, use);
  call.tensor(prefix + ".output", p.output, {e, projected}, use);
  call.tensor(prefix + ".output_bias", p.output_bias, {e}, bias_use);
  call.tensor(prefix + ".feed_forward_norm_weight", p.feed_forward_norm_weight, {e}, use);
  call.tensor(prefix + ".feed_forward_norm_bias", p.feed_forward_norm_bias, {e}, use);
  call.tensor(prefix + ".w1", p.w1, {f, e}, use);
  call.tensor(prefix + ".b1", p.b1, {f}, use);
  call.tensor(prefix + ".w2", p.w2, {e, f}, use);
  call.tensor(prefix + ".b2", p.b2, {e}, use);
}

void block(OpCall<rfn_reversible_block>& call, int32_t residual, Kept kept) {
  rfn_reversible_block& op = call.op;
  const int64_t e = kWidth, projected = kHeads * kHeadSize;
  const bool forward = call.pass == RFN_PASS_FORWARD, exact = residual == RFN_RESIDUAL_EXACT;
  op.attention = lsh_options();
  op.heads = kHeads;
  op.layer_norm_epsilon = 1e-5f;
  op.residual = residual;
  op.grid_exponent = -16;
  call.output("stream1", op.stream1, {kBatch, kLength, e});
  call.output("stream2", op.stream2, {kBatch, kLength, e});
  if (!forward) {
    call.output("grad_stream1", op.grad_stream1, {kBatch, kLength, e});
    call.output("grad_stream2", op.grad_stream2, {kBatch, kLength, e});
  }
  call.tensor("mask", op.mask, {kBatch, kLength}, Use::kOptionalInput, RFN_U8);
  const bool streams = kept != Kept::kNothing, activations = kept == Kept::kActivations,
             hashes = forward || (exact && !activations);
  if (hashes) call.input("rotations", op.rotations, {kHeads, kHeadSize, kRounds, kColumns});
  call.tensor("buckets", op.buckets, {kBatch, kHeads, kRounds, kLength},
              !hashes ? Use::kInput
              : exact ? Use::kOptionalOutput
                      : Use::kOutput,
              RFN_I32);
  // Forward fills any of them; what backward is given of a level has to be all of it.
  const Use use = forward ? Use::kOptionalOutput : Use::kInput;
  if (forward || activations) call.tensor("attention_result", op.attention_result, {kBatch, kLength, projected}, use);
  if (streams) {
    call.tensor("kept_stream1", op.kept_stream1, {kBatch, kLength, e}, use);
    call.tensor("kept_stream2", op.kept_stream2, {kBatch, kLength, e}, use);
  }
  if (activations) {
    call.tensor("kept_query", op.kept_query, {kBatch, kLength, projected}, use);
    call.tensor("kept_value", op.kept_value, {kBatch, kLength, projected}, use);
    call.tensor("kept_log_sum_exp", op.kept_log_sum_exp, {kBatch, kHeads, kLength}, use);
    call.tensor("kept_hidden", op.kept_hidden, {kBatch * kLength, kHidden}, use);
  }
  if (exact) call.result("range_report", op.range_report);
  block_parameters(call, "parameters", op.parameters, Use::kInput, Use::kOptionalInput);
  if (!forward) block_parameters(call, "gradients", op.gradients, Use::kOutput, Use::kOutput);
}

TEST_F(Validation, ReversibleBlock_WrongArguments_Refused) {
  for (const int32_t residual : {RFN_RESIDUAL_FLOAT, RFN_RESIDUAL_EXACT}) {
    OpCall<rfn_reversible_block> forward(RFN_FORWARD(reversible_block)), backward(RFN_BACKWARD(reversible_block));
    for (auto* call : {&forward, &backward}) {
      rfn_reversible_block& op = call->op;
      block(*call, residual, Kept::kNothing);
      const Checker check(stream, *call);
      // Everything that is read as well as written (streams, gradients, report) is poison here; the first and last runs
      // of all() work on that.
      check.all();
      options(check, op.attention);
      for (const int32_t heads : {-1, 0, 4})
        check.value(heads == 4 ? "parameters.query" : "heads", [&] { op.heads = heads; });
      for (const int32_t activation : {-1, 6}) check.value("activation", [&] { op.activation = activation; });
      for (const float epsilon : {0.0f, kNaN})
        check.value("layer_norm_epsilon", [&] { op.layer_norm_epsilon = epsilon; });
      for (const float dropout : {-0.1f, 1.0f, kNaN}) {
        check.value("attention_output_dropout", [&] { op.attention_output_dropout = dropout; });
        check.value("feed_forward_dropout", [&] { op.feed_forward_dropout = dropout; });
      }
      for (const int32_t value : {-1, 2}) check.value("residual", [&] { op.residual = value; });
      if (residual == RFN_RESIDUAL_EXACT) {
        for (const int32_t value : {-25, -3}) check.value("grid_exponent", [&] { op.grid_exponent = value; });
      }
      check.value("layer", [&] { op.layer = -1; });
      check.value("reserved", [&] { op.reserved = 1; });
      check.value("feed_forward_chunk", [&] { op.feed_forward_chunk = -1; });
      check.value("head_group", [&] { op.head_group = -1; });
      check.value("parameters.key", [&] { op.parameters.key = op.parameters.value; });
      check.value("parameters.struct_size", [&] { op.parameters.struct_size = 8; });
      check.value("parameters.reserved", [&] { op.parameters.reserved = 1; });
    }
  }
}

TEST_F(Validation, ReversibleBlock_WrongKeptTensors_Refused) {
  for (const int32_t residual : {RFN_RESIDUAL_FLOAT, RFN_RESIDUAL_EXACT}) {
    for (const Kept kept : {Kept::kStreams, Kept::kActivations}) {
      OpCall<rfn_reversible_block> forward(RFN_FORWARD(reversible_block)), backward(RFN_BACKWARD(reversible_block));
      for (auto* call : {&forward, &backward}) {
        block(*call, residual, kept);
        const Checker check(stream, *call);
        check.all();
        check.value("kept_key",
                    [&] { call->op.kept_key = kept == Kept::kStreams ? call->op.kept_stream1 : call->op.kept_query; });
      }
      // One of a level stands for all of it.
      const Checker check(stream, backward);
      rfn_reversible_block& op = backward.op;
      if (kept == Kept::kStreams) {
        check.refused("a value without the rest", "kept_query", false, [&] { op.kept_value = op.stream1; });
        check.refused("hidden values without the rest", "kept_query", false, [&] { op.kept_hidden = op.stream1; });
      } else {
        check.refused("activations without streams", "kept_stream1", false,
                      [&] { op.kept_stream1 = op.kept_stream2 = {}; });
      }
    }
  }
}

// An op's struct that has grown at its end in two minor versions.
struct Grown {
  uint32_t struct_size;
  int32_t first;
  int64_t second;  // since the first of them
  int64_t third;   // since the second
};

}  // namespace
}  // namespace rfn::test

template <>
struct rfn::EarlierSizes<rfn::test::Grown> {
  static constexpr std::array list = {offsetof(test::Grown, second), offsetof(test::Grown, third)};
};

namespace rfn::test {
namespace {

// What programs pass that were compiled before a struct grew: what they do not know is absent, and not read from them.
TEST(EarlierMinorVersion, StructThatHasGrown_IsTakenAndItsNewFieldsAreAbsent) {
  const Grown now = {sizeof(Grown), 1, 2, 3};
  const auto given = [&](size_t size) {
    const volatile size_t given_size = size;  // the compiler would else warn of fields that are not there
    std::vector<uint8_t> bytes(given_size);   // not a byte more: a checker of memory sees reads behind it
    std::memcpy(bytes.data(), &now, size);
    const uint32_t struct_size = static_cast<uint32_t>(size);
    std::memcpy(bytes.data(), &struct_size, sizeof(struct_size));
    Grown seen = {};
    const rfn_status status =
        with_complete("grown", *reinterpret_cast<const Grown*>(bytes.data()), [&](const Grown& complete) {
          seen = complete;
          return RFN_OK;
        });
    return std::make_tuple(status, seen.struct_size, seen.first, seen.second, seen.third);
  };
  const uint32_t whole = sizeof(Grown);
  EXPECT_EQ(given(sizeof(Grown)), std::make_tuple(RFN_OK, whole, 1, int64_t{2}, int64_t{3}));
  EXPECT_EQ(given(offsetof(Grown, third)), std::make_tuple(RFN_OK, whole, 1, int64_t{2}, int64_t{0}));
  EXPECT_EQ(given(offsetof(Grown, second)), std::make_tuple(RFN_OK, whole, 1, int64_t{0}, int64_t{0}));
  for (const size_t size : {size_t{4}, size_t{12}, sizeof(Grown) - 1}) {
    EXPECT_EQ(std::get<0>(given(size)), RFN_INVALID_ARGUMENT) << size;
    EXPECT_NE(std::string(last_error()).find("grown: struct_size: expected 24"), std::string::npos) << last_error();
  }
}

// Every run adds the same token to the rings: without chunks before, a query looks at none of their positions, and
// counts stay below this one.
constexpr int64_t kPosition = 1000;

void decode(OpCall<rfn_reversible_block_decode>& call, int32_t residual) {
  rfn_reversible_block_decode& op = call.op;
  op.attention = lsh_options();
  op.attention.chunks_before = 0;
  op.attention.padded_length = 0;
  op.heads = kHeads;
  op.layer_norm_epsilon = 1e-5f;
  op.residual = residual;
  op.grid_exponent = -16;
  op.position = kPosition;
  call.output("stream1", op.stream1, {kBatch, 1, kWidth});
  call.output("stream2", op.stream2, {kBatch, 1, kWidth});
  call.output("keys", op.keys, {kBatch, kPosition + 1, kHeads * kHeadSize});
  call.output("values", op.values, {kBatch, kPosition + 1, kHeads * kHeadSize});
  call.input("rotations", op.rotations, {kHeads, kHeadSize, kRounds, kColumns});
  call.output("rings", op.rings, {kBatch * kHeads, kRounds, 8, 1}, RFN_I32);
  call.input("counts", op.counts, {kBatch * kHeads, kRounds, 8}, RFN_I32);  // written too, but poison would be refused
  if (residual == RFN_RESIDUAL_EXACT) call.result("range_report", op.range_report);
  block_parameters(call, "parameters", op.parameters, Use::kInput, Use::kOptionalInput);
}

TEST_F(Validation, Decode_WrongArguments_Refused) {
  for (const int32_t residual : {RFN_RESIDUAL_FLOAT, RFN_RESIDUAL_EXACT}) {
    OpCall<rfn_reversible_block_decode> call(RFN_ONE_PASS(reversible_block_decode, forward));
    rfn_reversible_block_decode& op = call.op;
    decode(call, residual);
    const Checker check(stream, call);
    check.all();
    options(check, op.attention);
    check.value("causal", [&] { op.attention.causal = 0; });
    check.value("dropout", [&] { op.attention.dropout = 0.5f; });
    check.value("padded_length", [&] { op.attention.padded_length = 1004; });
    for (const int64_t position : {int64_t{-1}, int64_t{INT32_MAX}, INT64_MAX})
      check.value("position", [&] { op.position = position; });
    check.value("keys", [&] { op.position = kPosition + 1; });
    const auto local = [&](int32_t before, int64_t chunk) {
      op.attention.kind = RFN_ATTENTION_LOCAL, op.attention.chunks_before = before, op.attention.chunk_length = chunk;
    };
    check.value("keys", [&] { local(1, 501), op.position = 1001; });
    check.value("keys", [&] { local(2, 501), op.position = 1001; });
    for (const int32_t heads : {-1, 0, 4})
      check.value(heads == 4 ? "parameters.query" : "heads", [&] { op.heads = heads; });
    for (const int32_t activation : {-1, 6}) check.value("activation", [&] { op.activation = activation; });
    for (const float epsilon : {0.0f, kNaN})
      check.value("layer_norm_epsilon", [&] { op.layer_norm_epsilon = epsilon; });
    for (const int32_t value : {-1, 2}) check.value("residual", [&] { op.residual = value; });
    if (residual == RFN_RESIDUAL_EXACT) {
      for (const int32_t value : {-25, -3}) check.value("grid_exponent", [&] { op.grid_exponent = value; });
    }
    check.value("layer", [&] { op.layer = -1; });
    check.value("reserved", [&] { op.reserved = 1; });
    check.value("parameters.key", [&] { op.parameters.key = op.parameters.value; });
    check.value("parameters.struct_size", [&] { op.parameters.struct_size = 8; });
  }
}

TEST_F(Validation, BucketRings_WrongArguments_Refused) {
  OpCall<rfn_bucket_rings> call("bucket_rings", [](rfn_stream* s, const rfn_bucket_rings* op, void*, int64_t) {
    return rfn_bucket_rings_forward(s, op);
  });
  rfn_bucket_rings& op = call.op;
  op.first = kPosition;
  call.input("buckets", op.buckets, {kBatch, kHeads, kRounds, 3}, RFN_I32);
  call.output("rings", op.rings, {kBatch * kHeads, kRounds, 8, 5}, RFN_I32);
  call.input("counts", op.counts, {kBatch * kHeads, kRounds, 8}, RFN_I32);  // written too, but poison would be refused
  const Checker check(stream, call);
  EXPECT_TRUE(Ok(check.run()));
  check.tensors();
  check.overlaps();
  check.struct_size();
  check.pointers();
  for (const int64_t first : {int64_t{-1}, int64_t{INT32_MAX} - 2, INT64_MAX})
    check.value("first", [&] { op.first = first; });
  check.value("reserved", [&] { op.reserved = 1; });
  for (const int i : {0, 1}) check.value("rings", [&] { op.rings.shape[i] -= 1; });
  check.value("counts", [&] { op.rings.shape[2] -= 1; });
  EXPECT_TRUE(Ok(check.run()));
}

void final_norm(OpCall<rfn_final_norm>& call, int32_t combine) {
  const int64_t n = 3, e = 5, w = combine == RFN_COMBINE_CONCATENATE ? 2 * e : e;
  rfn_final_norm& op = call.op;
  op.combine = combine;
  op.epsilon = 1e-5f;
  call.input("stream1", op.stream1, {n, e});
  call.input("stream2", op.stream2, {n, e});
  call.input("weight", op.weight, {w});
  call.input("bias", op.bias, {w});
  if (call.pass == RFN_PASS_FORWARD) return call.output("y", op.y, {n, w});
  call.input("grad_y", op.grad_y, {n, w});
  call.output("grad_stream1", op.grad_stream1, {n, e});
  call.output("grad_stream2", op.grad_stream2, {n, e});
  call.output("grad_weight", op.grad_weight, {w});
  call.output("grad_bias", op.grad_bias, {w});
}

TEST_F(Validation, FinalNorm_WrongArguments_Refused) {
  for (const int32_t combine : {RFN_COMBINE_CONCATENATE, RFN_COMBINE_MEAN}) {
    OpCall<rfn_final_norm> forward(RFN_FORWARD(final_norm)), backward(RFN_BACKWARD(final_norm));
    final_norm(forward, combine);
    final_norm(backward, combine);
    for (auto* call : {&forward, &backward}) {
      const Checker check(stream, *call);
      check.all();
      for (const int32_t value : {-1, 2}) check.value("combine", [&] { call->op.combine = value; });
      for (const float epsilon : {0.0f, kNaN}) check.value("epsilon", [&] { call->op.epsilon = epsilon; });
      for (const float dropout : {-0.1f, 1.0f, kNaN}) check.value("dropout", [&] { call->op.dropout = dropout; });
    }
  }
}

void head(OpCall<rfn_head_loss>& call) {
  rfn_head_loss& op = call.op;
  const int64_t n = 3, k = 5, v = 4;
  op.ignore_index = -100;
  op.loss_scale = 1;
  call.input("x", op.x, {n, k});
  call.input("weight", op.weight, {v, k});
  call.tensor("bias", op.bias, {v}, Use::kOptionalInput);
  call.input("labels", op.labels, {n}, RFN_I32);
  call.result("statistics", op.statistics);
  if (call.pass == RFN_PASS_FORWARD) return;
  call.output("grad_x", op.grad_x, {n, k});
  call.output("grad_weight", op.grad_weight, {v, k});
  call.tensor("grad_bias", op.grad_bias, {v}, Use::kOptionalOutput);
}

TEST_F(Validation, HeadLoss_WrongArguments_Refused) {
  OpCall<rfn_head_loss> forward(RFN_FORWARD(head_loss)), backward(RFN_BACKWARD(head_loss));
  for (auto* call : {&forward, &backward}) {
    rfn_head_loss& op = call->op;
    head(*call);
    const Checker check(stream, *call);
    check.all({{"x", "grad_x"}});
    for (const float smoothing : {-0.1f, 1.1f, kNaN})
      check.value("label_smoothing", [&] { op.label_smoothing = smoothing; });
    for (const float scale : {kInfinity, kNaN}) check.value("loss_scale", [&] { op.loss_scale = scale; });
    for (const double normalizer : {-1.0, static_cast<double>(kNaN)})
      check.value("normalizer", [&] { op.normalizer = normalizer; });
    check.value("chunk", [&] { op.chunk = -1; });
    if (call->pass == RFN_PASS_BACKWARD) {
      check.refused("grad_x in the middle of x", "grad_x", false,
                    [&] { op.grad_x.data = static_cast<float*>(op.x.data) + 1; });
    }
    int32_t* const labels = static_cast<int32_t*>(op.labels.data);
    for (const int32_t label : {-1, 4, INT32_MAX, INT32_MIN}) {
      labels[1] = label;
      check.refused("label " + std::to_string(label), "labels", false, [] {});
    }
  }
}

TEST_F(Validation, HeadLossBackward_GradXInPlaceOfX_Runs) {
  OpCall<rfn_head_loss> call(RFN_BACKWARD(head_loss));
  head(call);
  const Checker check(stream, call);
  call.op.grad_x.data = call.op.x.data;
  EXPECT_TRUE(Ok(check.run()));
}

TEST_F(Validation, GlobalNorm_WrongArguments_Refused) {
  OpCall<rfn_global_norm> call(RFN_ONE_PASS(global_norm, forward));
  rfn_global_norm& op = call.op;
  rfn_tensor gradients[3] = {};
  op.count = 3;
  op.gradients = gradients;
  call.input("gradients[0]", gradients[0], {2, 3});
  call.input("gradients[1]", gradients[1], {});
  call.input("gradients[2]", gradients[2], {2, 1, 3, 4});
  call.result("result", op.result);
  const Checker check(stream, call);
  EXPECT_TRUE(Ok(check.run()));
  // The array is not part of the op, so refused() can't restore it.
  rfn_tensor& t = gradients[1];
  const rfn_tensor before = t;
  const auto wrong = [&](const std::string& what, const std::function<void()>& change) {
    check.refused(what, "gradients[1]", false, change);
    t = before;
  };
  wrong("absent", [&] { t = {}; });
  wrong("struct_size", [&] { t.struct_size = 8; });
  wrong("dtype", [&] { t.dtype = RFN_F64; });
  wrong("rank", [&] { t.rank = 5; });
  wrong("size", [&] {
    t.rank = 1;
    t.shape[0] = 0;
  });
  wrong("overflow", [&] {
    t.rank = 2;
    t.shape[0] = t.shape[1] = INT64_MAX / 2;
  });
  wrong("data", [&] { t.data = nullptr; });
  wrong("bytes", [&] { t.bytes = 3; });
  wrong("alignment", [&] { t.data = static_cast<char*>(t.data) + 2; });
  wrong("result's memory", [&] { t.data = op.result; });
  check.value("count", [&] { op.count = 0; });
  check.value("count", [&] { op.count = -1; });
  check.value("gradients", [&] { op.gradients = nullptr; });
  for (const float norm : {-1.0f, kNaN, kInfinity}) check.value("max_norm", [&] { op.max_norm = norm; });
  check.struct_size();
  check.pointers();
  check.workspaces();
  EXPECT_TRUE(Ok(check.run()));
}

TEST_F(Validation, AdamW_WrongArguments_Refused) {
  OpCall<rfn_adamw> call("adamw",
                         [](rfn_stream* s, const rfn_adamw* op, void*, int64_t) { return rfn_adamw_step(s, op); });
  rfn_adamw& op = call.op;
  op.learning_rate = 0.1f;
  op.beta1 = 0.9f;
  op.beta2 = 0.999f;
  op.epsilon = 1e-8f;
  op.step = 1;
  call.output("parameter", op.parameter, {3, 4});
  call.input("gradient", op.gradient, {3, 4});
  call.output("moment1", op.moment1, {3, 4});
  call.output("moment2", op.moment2, {3, 4});
  call.result("clip", op.clip, Use::kOptionalInput);
  const Checker check(stream, call);
  check.all();
  for (const float value : {-1.0f, kNaN, kInfinity}) {
    check.value("learning_rate", [&] { op.learning_rate = value; });
    check.value("weight_decay", [&] { op.weight_decay = value; });
    check.value("epsilon", [&] { op.epsilon = value; });
  }
  check.value("epsilon", [&] { op.epsilon = 0; });
  for (const float value : {-0.1f, 1.0f, kNaN}) {
    check.value("beta1", [&] { op.beta1 = value; });
    check.value("beta2", [&] { op.beta2 = value; });
  }
  check.value("step", [&] { op.step = 0; });
}

TEST_F(Validation, Adafactor_WrongArguments_Refused) {
  for (const bool matrix : {true, false}) {
    OpCall<rfn_adafactor> call(RFN_ONE_PASS(adafactor, step));
    rfn_adafactor& op = call.op;
    op.learning_rate = 0.1f;
    op.decay_exponent = 0.8f;
    op.clip_threshold = 1;
    op.epsilon1 = 1e-30f;
    op.epsilon2 = 1e-3f;
    op.step = 1;
    const std::vector<int64_t> sizes = matrix ? std::vector<int64_t>{2, 3, 5} : std::vector<int64_t>{7};
    call.output("parameter", op.parameter, sizes);
    call.input("gradient", op.gradient, sizes);
    if (matrix) {
      call.output("row", op.row, {6});
      call.output("column", op.column, {5});
    } else {
      call.output("moment2", op.moment2, sizes);
    }
    call.result("clip", op.clip, Use::kOptionalInput);
    const Checker check(stream, call);
    check.all();
    for (const float value : {-1.0f, kNaN, kInfinity}) {
      check.value("learning_rate", [&] { op.learning_rate = value; });
      check.value("decay_exponent", [&] { op.decay_exponent = value; });
      check.value("clip_threshold", [&] { op.clip_threshold = value; });
      check.value("epsilon1", [&] { op.epsilon1 = value; });
      check.value("epsilon2", [&] { op.epsilon2 = value; });
      check.value("weight_decay", [&] { op.weight_decay = value; });
    }
    check.value("scale_parameter", [&] { op.scale_parameter = 2; });
    check.value("step", [&] { op.step = 0; });
  }
}

TEST_F(Validation, Sample_WrongArguments_Refused) {
  OpCall<rfn_sample> call(RFN_ONE_PASS(sample, forward));
  rfn_sample& op = call.op;
  op.temperature = 1;
  op.top_p = 1;
  call.input("logits", op.logits, {3, 5});
  call.output("ids", op.ids, {3}, RFN_I32);
  const Checker check(stream, call);
  check.tensors();
  check.overlaps();
  check.workspaces();
  check.struct_size();
  check.pointers();
  check.query_without_data();
  check.refused("rows", "ids", false, [&] { op.ids.shape[0] = 2; });
  for (const float value : {-1.0f, kNaN, kInfinity}) check.value("temperature", [&] { op.temperature = value; });
  for (const float value : {-1.0f, 0.0f, 1.1f, kNaN}) check.value("top_p", [&] { op.top_p = value; });
  check.value("top_k", [&] { op.top_k = -1; });
  EXPECT_TRUE(Ok(check.run()));
}

// One or two words of a correct call replaced by others: it runs, or is refused; no memory but its own is touched
// (guards, AddressSanitizer). Words that are part of a pointer stay: where they lead is the caller's affair.
void fuzz(const Stream& stream, Call& call, Random& random) {
  constexpr uint32_t kWords[] = {0,  1,        2,        3,          4,          5,          7,          8,
                                 64, 1u << 16, 1u << 30, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FC00000, 0x3F000000};
  constexpr int64_t kLargestWorkspace = int64_t{64} << 20;
  const Checker correct(stream, call);
  const std::vector<uint8_t> before(call.bytes, call.bytes + call.size);
  int ran = 0, refused = 0;
  for (int trial = 0; trial < 400; ++trial) {
    for (int64_t change = random.below(2); change >= 0; --change) {
      uint8_t* const word = call.bytes + 4 * random.below(static_cast<int64_t>(call.size / 4));
      bool pointer = false;
      for (const auto& a : call.arguments) {
        const uint8_t* const data = reinterpret_cast<const uint8_t*>(a.data);
        pointer = pointer || (word >= data && word < data + sizeof(void*));
      }
      if (!pointer) std::memcpy(word, &kWords[random.below(std::size(kWords))], 4);
    }
    int64_t bytes = 0;
    rfn_status status = call.has_query() ? call.query(stream.context(), call.bytes, call.pass, &bytes) : RFN_OK;
    if (status == RFN_OK && bytes <= kLargestWorkspace) {
      const GuardedMemory workspace(bytes, 0);
      status = call.run(stream, call.bytes, workspace.data(), bytes);
    }
    EXPECT_TRUE(status == RFN_OK || status == RFN_INVALID_ARGUMENT) << call.name << ": " << rfn_last_error();
    ++(status == RFN_OK ? ran : refused);
    std::copy(before.begin(), before.end(), call.bytes);
  }
  EXPECT_GT(ran, 0) << call.name;
  EXPECT_GT(refused, 0) << call.name;
}

TEST_F(Validation, AnyOp_RandomWords_RunsOrRefuses) {
  Random random(20);
#define RFN_FUZZ(op, pass, ...)  \
  {                              \
    OpCall<rfn_##op> call(pass); \
    __VA_ARGS__;                 \
    fuzz(stream, call, random);  \
  }
#define RFN_FUZZ_BOTH(op, ...) RFN_FUZZ(op, RFN_FORWARD(op), __VA_ARGS__) RFN_FUZZ(op, RFN_BACKWARD(op), __VA_ARGS__)
  RFN_FUZZ_BOTH(embedding, embedding(call, RFN_POSITIONS_AXIAL))
  RFN_FUZZ_BOTH(layer_norm, layer_norm(call))
  RFN_FUZZ_BOTH(linear, linear(call))
  RFN_FUZZ_BOTH(attention, attention(call))
  RFN_FUZZ_BOTH(feed_forward, feed_forward(call))
  RFN_FUZZ_BOTH(reversible_block, block(call, RFN_RESIDUAL_EXACT, Kept::kActivations))
  RFN_FUZZ(reversible_block_decode, RFN_ONE_PASS(reversible_block_decode, forward), decode(call, RFN_RESIDUAL_EXACT))
  RFN_FUZZ_BOTH(final_norm, final_norm(call, RFN_COMBINE_CONCATENATE))
  RFN_FUZZ_BOTH(head_loss, head(call))
#undef RFN_FUZZ_BOTH
#undef RFN_FUZZ
}

// Sizes that fit one by one and whose products do not fit 64 bits, or any memory.
TEST_F(Validation, WorkspaceQuery_ProductsOverflow_Refused) {
  const int64_t huge = INT32_MAX;
  int64_t bytes = -7;
  rfn_layer_norm norm = make_op<rfn_layer_norm>();
  norm.epsilon = 1e-5f;
  norm.x = shape({huge, huge});
  EXPECT_TRUE(Fails(rfn_layer_norm_workspace(context, &norm, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"layer_norm", "x", "elements"}));

  rfn_feed_forward feed = make_op<rfn_feed_forward>();
  feed.x = shape({huge, 1});
  feed.w1 = shape({huge, 1});
  EXPECT_TRUE(Fails(rfn_feed_forward_workspace(context, &feed, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"feed_forward", "N * F"}));

  rfn_attention attention = make_op<rfn_attention>();
  attention.options = lsh_options();
  attention.options.padded_length = 0;
  attention.q = attention.v = shape({1, huge / 8, 8, 1});
  attention.options.rounds = INT32_MAX;
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &attention, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention", "B * H * R"}));
  attention.options.rounds = 1;
  attention.q = attention.v = shape({1, 2, 65536, 65536});
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &attention, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention", "H * D"}));
  EXPECT_EQ(bytes, -7);
}

TEST_F(Validation, Messages_Tensor_NameExpectedAndGot) {
  rfn_attention op = make_op<rfn_attention>();
  op.options = lsh_options();
  op.q = shape({2, 7, 4});
  int64_t bytes = 0;
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &op, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention: q: expected F32 [B,T,H,D], got F32 rank 3 [2,7,4]"}));
  op.q = shape({2, 9, 4, 16});
  op.v = shape({2, 9, 4, 8});
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &op, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention: v: expected F32 [B,T,H,D] = [2,9,4,16], got F32 rank 4 [2,9,4,8]"}));
  op.v = shape({2, 9, 4, 16}, RFN_I32);
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &op, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention: v: expected F32 [B,T,H,D], got I32 rank 4 [2,9,4,16]"}));
}

// ---- automatic buckets: values of spec 1.2.1 ----

TEST(AutomaticBuckets, Rules_KnownSizes_GiveTheirFactors) {
  struct Row {
    int32_t rule;
    int64_t length, chunk, max_positions;
    std::vector<int32_t> factors;
  };
  const std::vector<Row> rows = {
      {RFN_BUCKETS_TRAX, 1024, 64, 0, {32}},
      {RFN_BUCKETS_TRAX, 4096, 64, 0, {128}},
      {RFN_BUCKETS_TRAX, 8192, 64, 0, {16, 16}},
      {RFN_BUCKETS_TRAX, 12288, 128, 0, {16, 12}},
      {RFN_BUCKETS_TRAX, 16384, 64, 0, {32, 16}},
      {RFN_BUCKETS_TRAX, 65536, 64, 0, {64, 32}},
      {RFN_BUCKETS_TRAX, 65536, 128, 0, {32, 32}},
      {RFN_BUCKETS_TRAX, 65536, 256, 0, {32, 16}},
      {RFN_BUCKETS_TRAX, 524288, 64, 0, {128, 128}},
      {RFN_BUCKETS_TRAX, 7, 64, 0, {2}},
      {RFN_BUCKETS_HUGGING_FACE, 1024, 64, 1024, {32}},
      {RFN_BUCKETS_HUGGING_FACE, 4096, 64, 4096, {128}},
      {RFN_BUCKETS_HUGGING_FACE, 8192, 64, 8192, {16, 16}},
      {RFN_BUCKETS_HUGGING_FACE, 12288, 128, 12288, {128}},
      {RFN_BUCKETS_HUGGING_FACE, 16384, 64, 16384, {16, 32}},
      {RFN_BUCKETS_HUGGING_FACE, 65536, 64, 65536, {32, 64}},
      {RFN_BUCKETS_HUGGING_FACE, 65536, 128, 65536, {32, 32}},
      {RFN_BUCKETS_HUGGING_FACE, 65536, 256, 65536, {512}},
      {RFN_BUCKETS_HUGGING_FACE, 524288, 64, 524288, {128, 128}},
      {RFN_BUCKETS_LUCIDRAINS, 1024, 64, 0, {16}},
      {RFN_BUCKETS_LUCIDRAINS, 12288, 128, 0, {96}},
      {RFN_BUCKETS_LUCIDRAINS, 524288, 64, 0, {8192}},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE("rule " + std::to_string(row.rule) + ", length " + std::to_string(row.length) + ", chunk " +
                 std::to_string(row.chunk));
    int32_t factors[8] = {}, count = 0;
    ASSERT_TRUE(Ok(rfn_lsh_automatic_buckets(row.rule, row.length, row.chunk, row.max_positions, factors, &count)));
    EXPECT_EQ(std::vector<int32_t>(factors, factors + count), row.factors);
  }
}

TEST(AutomaticBuckets, EveryLength_FactorsAreEven) {
  for (int64_t chunk = 1; chunk <= 3; ++chunk) {
    for (int64_t length = 1; length < 3000; ++length) {
      for (const int32_t rule : {RFN_BUCKETS_TRAX, RFN_BUCKETS_HUGGING_FACE}) {
        if (rule == RFN_BUCKETS_HUGGING_FACE && length < chunk) continue;
        int32_t factors[8] = {}, count = 0;
        ASSERT_TRUE(Ok(rfn_lsh_automatic_buckets(rule, length, chunk, length, factors, &count)));
        for (int32_t i = 0; i < count; ++i)
          ASSERT_TRUE(factors[i] >= 2 && factors[i] % 2 == 0) << length << " " << chunk << " " << factors[i];
      }
    }
  }
}

TEST(AutomaticBuckets, WrongArguments_RefusedAndNothingWritten) {
  int32_t factors[8] = {-7}, count = -7;
  const auto refused = [&](const char* argument, int32_t rule, int64_t length, int64_t chunk, int64_t max_positions) {
    EXPECT_TRUE(Fails(rfn_lsh_automatic_buckets(rule, length, chunk, max_positions, factors, &count),
                      RFN_INVALID_ARGUMENT, {argument}));
  };
  refused("rule", -1, 128, 64, 128);
  refused("rule", 3, 128, 64, 128);
  refused("length", RFN_BUCKETS_TRAX, 0, 64, 128);
  refused("length", RFN_BUCKETS_TRAX, INT64_MAX, 64, 128);
  refused("length", RFN_BUCKETS_TRAX, INT32_MAX, 1, 128);  // more than 2^30 buckets
  refused("chunk_length", RFN_BUCKETS_TRAX, 128, 0, 128);
  refused("chunk_length", RFN_BUCKETS_TRAX, 128, -64, 128);
  refused("length", RFN_BUCKETS_HUGGING_FACE, 63, 64, 128);
  refused("max_positions", RFN_BUCKETS_HUGGING_FACE, 128, 64, 0);
  refused("even", RFN_BUCKETS_LUCIDRAINS, 192, 64, 0);  // three chunks
  refused("even", RFN_BUCKETS_LUCIDRAINS, 63, 64, 0);
  EXPECT_EQ(factors[0], -7);
  EXPECT_EQ(count, -7);
  EXPECT_TRUE(Fails(rfn_lsh_automatic_buckets(0, 128, 64, 0, nullptr, &count), RFN_INVALID_ARGUMENT, {"factors"}));
  EXPECT_TRUE(
      Fails(rfn_lsh_automatic_buckets(0, 128, 64, 0, factors, nullptr), RFN_INVALID_ARGUMENT, {"factor_count"}));
}

}  // namespace
}  // namespace rfn::test
