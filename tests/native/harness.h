// Contexts, tensors and workspaces for tests of the C ABI: guarded, poisoned, and gone at the end of the scope.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "compare.h"
#include "core/backend.h"
#include "reformer_native.h"

inline bool operator==(const rfn_range_report& a, const rfn_range_report& b) {
  return a.count == b.count && a.layer == b.layer && a.stream == b.stream && a.index == b.index;
}

namespace rfn::test {

std::string fault_report();  // what the kernel that faulted did, where it ran on the host; else ""

// RFN_OK, or the message.
inline testing::AssertionResult Ok(rfn_status status) {
  if (status == RFN_OK) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "status " << status << ": " << rfn_last_error() << "\n" << fault_report();
}

// `status` is the expected failure and its message contains every one of the texts.
inline testing::AssertionResult Fails(rfn_status status, rfn_status expected,
                                      std::initializer_list<std::string> texts) {
  if (status != expected) {
    return testing::AssertionFailure() << "expected status " << expected << ", got " << status
                                       << (status == RFN_OK ? "" : ": ") << (status == RFN_OK ? "" : rfn_last_error());
  }
  const std::string message = rfn_last_error();
  for (const std::string& text : texts) {
    if (message.find(text) == std::string::npos)
      return testing::AssertionFailure() << "expected '" << text << "' in '" << message << "'";
  }
  return testing::AssertionSuccess();
}

// ---- the device under test ----

// RFN_TEST_DEVICE = cpu (the default), cuda_on_host or cuda, as RFN_DEVICE_*.
int32_t device_type();
inline bool on_cpu() { return device_type() == RFN_DEVICE_CPU; }

// Runs `body(threads)` for everything that the order of work may depend on: on the CPU for several numbers of threads,
// on cuda_on_host for schedules 0, 1 .. (the first few are the extremes), on a device twice.
void for_each_schedule(const std::function<void(int32_t)>& body, uint64_t schedules = 10);

// The precisions that the device has: F32 alone on the CPU.
std::vector<int32_t> precisions();
const char* precision_name(int32_t precision);

// How far results in a precision may be from float64, relative to the largest expected value; gradients twice as far.
// F32 has the tests' own limits.
double forward_limit(int32_t precision, double f32);
double gradient_limit(int32_t precision, double f32);

// Ends what the tests' memory holds of the device, until the next use. After a fault on cuda_on_host, gives the next
// test a fresh device.
void close_device();

class Context {
 public:
  explicit Context(int32_t threads = 2, int32_t precision = RFN_PRECISION_F32) {
    EXPECT_TRUE(Ok(rfn_context_create(device_type(), 0, threads, &context_)));
    EXPECT_TRUE(precision == RFN_PRECISION_F32 || Ok(rfn_context_set_precision(context_, precision)));
  }
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

// Bytes between two guard zones, in the memory of the device under test; at the end of its life it fails the test if a
// guard was written (AddressSanitizer and cuda_on_host say so at once, and where). Read as numbers, guards are NaN.
// `offset` moves the start away from an alignment of 256 bytes on a device, 64 on the CPU.
class GuardedMemory {
 public:
  GuardedMemory(int64_t bytes, int64_t offset);
  ~GuardedMemory();
  GuardedMemory(GuardedMemory&& other) noexcept
      : bytes_(other.bytes_),
        total_(other.total_),
        block_(std::exchange(other.block_, nullptr)),
        start_(other.start_) {}
  GuardedMemory& operator=(GuardedMemory&&) = delete;

  void poison_contents();
  void read(void* destination) const;  // all of it, into host memory
  void write(const void* source);
  void* data() const { return start_; }  // an address of the device: only ops may follow it, unless it is the CPU
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_;
  int64_t total_;
  uint8_t* block_;
  uint8_t* start_;
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

// Where tensors start: off every vector's alignment, or, with RFN_TEST_ALIGNED=1 and in the second of two runs
// (--gtest_repeat=2), on the largest one, for code that has a faster path there.
inline bool tensors_are_aligned = false;

// A tensor with its memory on the device under test. Without values it is poisoned. Converts to rfn_tensor:
//   Tensor<float> x({n, e}, random.floats(n * e)), y({n, e});   op.x = x; op.y = y;
template <class T>
class Tensor {
 public:
  explicit Tensor(std::vector<int64_t> sizes)
      : sizes_(std::move(sizes)), memory_(count(sizes_) * sizeof(T), tensors_are_aligned ? 0 : sizeof(T)) {}
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
  std::vector<T> values() const {
    std::vector<T> values(static_cast<size_t>(size()));
    memory_.read(values.data());
    return values;
  }
  void set(const std::vector<T>& values) {
    ASSERT_EQ(static_cast<int64_t>(values.size()), size());
    memory_.write(values.data());
  }
  void poison() { memory_.poison_contents(); }
  T* data() const { return static_cast<T*>(memory_.data()); }  // an address of the device
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

// A struct of results in the memory of the device under test, zeros at first: Result<rfn_norm_result> norm;
// op.result = norm;
template <class T>
class Result {
 public:
  explicit Result(const T& value = {}) : memory_(sizeof(T), 8) { set(value); }
  operator T*() const { return static_cast<T*>(memory_.data()); }  // an address of the device
  void set(const T& value) { memory_.write(&value); }
  void poison() { memory_.poison_contents(); }
  T value() const {
    T value;
    memory_.read(&value);
    return value;
  }

 private:
  GuardedMemory memory_;
};

template <class Op>
Op make_op() {
  Op op = {};
  op.struct_size = sizeof(Op);
  return op;
}

// Waits, so that the workspace may go and the results can be read.
inline rfn_status finish(const Stream& stream, rfn_status status) {
  return status == RFN_OK ? rfn_stream_synchronize(stream) : status;
}

// forward(stream, op), backward(stream, op) and the stages of LSH attention, with a poisoned workspace of exactly the
// bytes that the op asks for.
template <class Op, class Workspace, class Run>
rfn_status run_op(const Stream& stream, const Op& op, int32_t pass, Workspace workspace, Run run) {
  int64_t bytes = -1;
  const rfn_status status = workspace(stream.context(), &op, pass, &bytes);
  if (status != RFN_OK) return status;
  const GuardedMemory memory(bytes, 0);
  return finish(stream, run(stream, &op, memory.data(), memory.bytes()));
}

#define RFN_TEST_OP(name)                                                                        \
  inline rfn_status forward(const Stream& stream, const rfn_##name& op) {                        \
    return run_op(stream, op, RFN_PASS_FORWARD, rfn_##name##_workspace, rfn_##name##_forward);   \
  }                                                                                              \
  inline rfn_status backward(const Stream& stream, const rfn_##name& op) {                       \
    return run_op(stream, op, RFN_PASS_BACKWARD, rfn_##name##_workspace, rfn_##name##_backward); \
  }
RFN_OPS_WITH_BACKWARD(RFN_TEST_OP)
#undef RFN_TEST_OP
// The only pass of an op is `forward` here, whatever its name.
#define RFN_TEST_OP(name, pass)                                                                               \
  inline rfn_status forward(const Stream& stream, const rfn_##name& op) {                                     \
    const auto workspace = [](const rfn_context* context, const rfn_##name* asked, int32_t, int64_t* bytes) { \
      return rfn_##name##_workspace(context, asked, bytes);                                                   \
    };                                                                                                        \
    return run_op(stream, op, RFN_PASS_FORWARD, workspace, rfn_##name##_##pass);                              \
  }
RFN_OPS_OF_ONE_PASS(RFN_TEST_OP)
#undef RFN_TEST_OP
#define RFN_TEST_OP(name, pass)                                           \
  inline rfn_status forward(const Stream& stream, const rfn_##name& op) { \
    return finish(stream, rfn_##name##_##pass(stream, &op));              \
  }
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
