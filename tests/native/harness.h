// Contexts, tensors and workspaces for tests of the C ABI: guarded, poisoned, and gone at the end of the scope.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "compare.h"
#include "core/backend.h"
#include "reformer_native.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define RFN_POISON_GUARD(start, bytes) __asan_poison_memory_region(start, bytes)
#define RFN_UNPOISON_GUARD(start, bytes) __asan_unpoison_memory_region(start, bytes)
#else
#define RFN_POISON_GUARD(start, bytes) static_cast<void>(0)
#define RFN_UNPOISON_GUARD(start, bytes) static_cast<void>(0)
#endif

namespace rfn::test {

// RFN_OK, or the message.
inline testing::AssertionResult Ok(rfn_status status) {
  if (status == RFN_OK) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "status " << status << ": " << rfn_last_error();
}

// `status` is the expected failure and its message contains every one of the texts.
inline testing::AssertionResult Fails(rfn_status status, rfn_status expected, std::initializer_list<std::string> texts) {
  if (status != expected) {
    return testing::AssertionFailure() << "expected status " << expected << ", got " << status << (status == RFN_OK ? "" : rfn_last_error());
  }
  const std::string message = rfn_last_error();
  for (const std::string& text : texts) {
    if (message.find(text) == std::string::npos) return testing::AssertionFailure() << "expected '" << text << "' in '" << message << "'";
  }
  return testing::AssertionSuccess();
}

class Context {
 public:
  explicit Context(int32_t threads = 2) { EXPECT_TRUE(Ok(rfn_context_create(RFN_DEVICE_CPU, 0, threads, &context_))); }
  ~Context() { rfn_context_destroy(context_); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  operator rfn_context*() const { return context_; }

 private:
  rfn_context* context_ = nullptr;
};

class Stream {
 public:
  explicit Stream(rfn_context* context) : context_(context) { EXPECT_TRUE(Ok(rfn_stream_create(context, &stream_))); }
  ~Stream() { rfn_stream_destroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator rfn_stream*() const { return stream_; }
  rfn_context* context() const { return context_; }

 private:
  rfn_context* context_;
  rfn_stream* stream_ = nullptr;
};

// Bytes between two guard zones; at the end of its life it fails the test if a guard was written (AddressSanitizer says so at once, and where).
// `offset` moves the start away from a 64-byte boundary.
class GuardedMemory {
 public:
  GuardedMemory(int64_t bytes, int64_t offset)
      : bytes_(bytes), total_((kGuard + offset + bytes + kGuard + 63) / 64 * 64), block_(static_cast<uint8_t*>(std::aligned_alloc(64, total_))) {
    if (block_ == nullptr) throw std::bad_alloc();
    start_ = block_ + kGuard + offset;
    std::memset(block_, kGuardByte, total_);
    poison_contents();
    RFN_POISON_GUARD(block_, start_ - block_);
    RFN_POISON_GUARD(end(), block_ + total_ - end());
  }
  ~GuardedMemory() {
    if (block_ == nullptr) return;
    RFN_UNPOISON_GUARD(block_, total_);
    const auto intact = [](uint8_t byte) { return byte == kGuardByte; };
    EXPECT_TRUE(std::all_of(block_, start_, intact)) << "memory before a buffer of " << bytes_ << " bytes was written";
    EXPECT_TRUE(std::all_of(end(), block_ + total_, intact)) << "memory behind a buffer of " << bytes_ << " bytes was written";
    std::free(block_);
  }
  GuardedMemory(GuardedMemory&& other) noexcept
      : bytes_(other.bytes_), total_(other.total_), block_(std::exchange(other.block_, nullptr)), start_(other.start_) {}
  GuardedMemory& operator=(GuardedMemory&&) = delete;

  void poison_contents() {
    for (int64_t i = 0; i < bytes_; ++i) start_[i] = static_cast<uint8_t>(kPoison >> 8 * (i % 4));
  }
  void* data() const { return start_; }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kGuard = 256;
  static constexpr uint8_t kGuardByte = 0xA5;

  uint8_t* end() const { return start_ + bytes_; }

  int64_t bytes_;
  int64_t total_;
  uint8_t* block_;
  uint8_t* start_ = nullptr;
};

template <class T>
struct TypeOf;
template <>
struct TypeOf<float> : std::integral_constant<int32_t, RFN_F32> {};
template <>
struct TypeOf<double> : std::integral_constant<int32_t, RFN_F64> {};
template <>
struct TypeOf<int32_t> : std::integral_constant<int32_t, RFN_I32> {};
template <>
struct TypeOf<int64_t> : std::integral_constant<int32_t, RFN_I64> {};
template <>
struct TypeOf<uint8_t> : std::integral_constant<int32_t, RFN_U8> {};

// A view of memory that is described but not there, for workspace queries: shape({2, 3}).
inline rfn_tensor shape(const std::vector<int64_t>& sizes, int32_t dtype = RFN_F32) {
  rfn_tensor view = {};
  view.struct_size = sizeof(view);
  view.dtype = dtype;
  view.rank = static_cast<int32_t>(sizes.size());
  std::copy(sizes.begin(), sizes.end(), view.shape);
  return view;
}

// A tensor with its memory, which starts off every vector register's alignment. Without values it is poisoned. Converts to rfn_tensor:
//   Tensor<float> x({n, e}, random.floats(n * e)), y({n, e});   op.x = x; op.y = y;
template <class T>
class Tensor {
 public:
  explicit Tensor(std::vector<int64_t> sizes) : sizes_(std::move(sizes)), memory_(count(sizes_) * sizeof(T), sizeof(T)) {}
  Tensor(std::vector<int64_t> sizes, const std::vector<T>& values) : Tensor(std::move(sizes)) { set(values); }
  static Tensor zeros(std::vector<int64_t> sizes) {
    const int64_t n = count(sizes);
    return Tensor(std::move(sizes), std::vector<T>(static_cast<size_t>(n)));
  }

  operator rfn_tensor() const { return view(); }
  rfn_tensor view() const {
    rfn_tensor view = shape(sizes_, TypeOf<T>::value);
    view.data = memory_.data();
    view.bytes = memory_.bytes();
    return view;
  }
  std::vector<T> values() const { return std::vector<T>(data(), data() + size()); }
  void set(const std::vector<T>& values) {
    ASSERT_EQ(static_cast<int64_t>(values.size()), size());
    std::copy(values.begin(), values.end(), data());
  }
  void poison() { memory_.poison_contents(); }
  T* data() const { return static_cast<T*>(memory_.data()); }
  int64_t size() const { return count(sizes_); }

 private:
  static int64_t count(const std::vector<int64_t>& sizes) {
    int64_t n = 1;
    for (const int64_t size : sizes) n *= size;
    return n;
  }

  std::vector<int64_t> sizes_;
  GuardedMemory memory_;
};

template <class Op>
Op make_op() {
  Op op = {};
  op.struct_size = sizeof(Op);
  return op;
}

// forward(stream, op), backward(stream, op) and the stages of LSH attention, with a poisoned workspace of exactly the bytes that the op asks for.
template <class Op, class Workspace, class Run>
rfn_status run_op(const Stream& stream, const Op& op, int32_t pass, Workspace workspace, Run run) {
  int64_t bytes = -1;
  const rfn_status status = workspace(stream.context(), &op, pass, &bytes);
  if (status != RFN_OK) return status;
  const GuardedMemory memory(bytes, 0);
  return run(stream, &op, memory.data(), memory.bytes());
}

#define RFN_TEST_OP(name)                                                                                   \
  inline rfn_status forward(const Stream& stream, const rfn_##name& op) {                                   \
    return run_op(stream, op, RFN_PASS_FORWARD, rfn_##name##_workspace, rfn_##name##_forward);              \
  }
RFN_OPS_WITH_BACKWARD(RFN_TEST_OP)
RFN_OPS_FORWARD_ONLY(RFN_TEST_OP)
#undef RFN_TEST_OP
#define RFN_TEST_OP(name)                                                                                   \
  inline rfn_status backward(const Stream& stream, const rfn_##name& op) {                                  \
    return run_op(stream, op, RFN_PASS_BACKWARD, rfn_##name##_workspace, rfn_##name##_backward);            \
  }
RFN_OPS_WITH_BACKWARD(RFN_TEST_OP)
#undef RFN_TEST_OP
#define RFN_TEST_OP(name) \
  inline rfn_status forward(const Stream& stream, const rfn_##name& op) { return rfn_##name##_forward(stream, &op); }
RFN_OPS_WITHOUT_WORKSPACE(RFN_TEST_OP)
#undef RFN_TEST_OP

// stage(stream, op, rfn_lsh_hash): with the workspace of the pass it belongs to.
using Stage = rfn_status (*)(rfn_stream*, const rfn_attention*, void*, int64_t);
inline rfn_status stage(const Stream& stream, const rfn_attention& op, Stage run) {
  const bool is_backward = run == rfn_lsh_combine_backward || run == rfn_lsh_attend_backward;
  return run_op(stream, op, is_backward ? RFN_PASS_BACKWARD : RFN_PASS_FORWARD, rfn_attention_workspace, run);
}

// Tests of ops: a context of two threads and a stream.
class OpTest : public testing::Test {
 protected:
  Context context{2};
  Stream stream{context};
};

}  // namespace rfn::test
