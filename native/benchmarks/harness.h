// What the benchmarks share: the device they run on, tensors there, and the measurement of a call beside the machine's
// ceilings.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "reformer_native.h"

namespace rfn::benchmarks {

struct Settings {
  int32_t device_type = RFN_DEVICE_CPU;
  int32_t precision = RFN_PRECISION_F32;
  int32_t threads = 0;  // CPU: 0 = all processors
  bool smoke = false;   // every benchmark once, with tiny sizes
};
extern Settings settings;

// Calls that failed; the program's exit status.
extern int failures;

// Throws with the library's message.
void check(rfn_status status);

// A context of the chosen precision, and a stream.
class Device {
 public:
  explicit Device(int32_t threads = settings.threads);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  rfn_context* context() const { return context_; }
  rfn_stream* stream() const { return stream_; }
  int32_t threads() const;
  void synchronize() const { check(rfn_stream_synchronize(stream_)); }
  // What the stream took for what `run` puts on it, between two events; waits for it.
  double seconds(const std::function<void()>& run) const;

 private:
  rfn_context* context_ = nullptr;
  rfn_stream* stream_ = nullptr;
  rfn_event *start_ = nullptr, *stop_ = nullptr;
};

// A tensor on the device. Floats hold normal numbers of that standard deviation, integers zeros.
class Tensor {
 public:
  Tensor(const Device& device, const std::vector<int64_t>& sizes, int32_t dtype = RFN_F32, float deviation = 1);
  Tensor(const Device& device, const std::vector<int64_t>& sizes, const std::vector<int32_t>& values);
  ~Tensor();
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&&) = delete;

  operator rfn_tensor() const { return view_; }
  template <class Result>
  Result* as() const {
    return static_cast<Result*>(view_.data);
  }
  void zero();

 private:
  const Device* device_;
  rfn_tensor view_ = {};
};

template <class Op>
Op make_op() {
  Op op = {};
  op.struct_size = sizeof(Op);
  return op;
}

// One pass of an op, with a workspace of its own.
class Call {
 public:
  template <class Op>
  Call(const Device& device, const Op& op, rfn_status (*workspace)(const rfn_context*, const Op*, int32_t, int64_t*),
       int32_t pass, rfn_status (*run)(rfn_stream*, const Op*, void*, int64_t))
      : device_(&device) {
    check(workspace(device.context(), &op, pass, &bytes_));
    set_run(op, run);
  }
  template <class Op>
  Call(const Device& device, const Op& op, rfn_status (*workspace)(const rfn_context*, const Op*, int64_t*),
       rfn_status (*run)(rfn_stream*, const Op*, void*, int64_t))
      : device_(&device) {
    check(workspace(device.context(), &op, &bytes_));
    set_run(op, run);
  }
  template <class Op>
  Call(const Device& device, const Op& op, rfn_status (*run)(rfn_stream*, const Op*)) : device_(&device) {
    run_ = [this, op, run] { check(run(device_->stream(), &op)); };
  }
  ~Call() { rfn_buffer_free(device_->context(), RFN_MEMORY_DEVICE, workspace_); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void operator()() const { run_(); }

 private:
  template <class Op>
  void set_run(const Op& op, rfn_status (*run)(rfn_stream*, const Op*, void*, int64_t)) {
    check(rfn_buffer_allocate(device_->context(), RFN_MEMORY_DEVICE, bytes_, &workspace_));
    run_ = [this, op, run] { check(run(device_->stream(), &op, workspace_, bytes_)); };
  }

  const Device* device_;
  int64_t bytes_ = 0;
  void* workspace_ = nullptr;
  std::function<void()> run_;
};

// What a call has to do at least: FLOPs of its products (a multiplication and an addition are two), bytes that it must
// read and write once.
struct Work {
  double flops = 0;
  double bytes = 0;
};

// Bytes of tensors that are there.
double bytes(std::initializer_list<rfn_tensor> tensors);

// What the device reaches right now: a square product in the chosen precision in FLOP/s, a copy in bytes/s (read plus
// written). 0 for a simulated device.
struct Ceilings {
  double flops = 0;
  double bytes = 0;
};
Ceilings measure_ceilings(const Device& device);
// The product [n,n] x [n,n] through rfn_linear, n = 2048, on a GPU 8192.
class Sgemm {
 public:
  explicit Sgemm(const Device& device);
  double flops() const;
  void operator()() const;

 private:
  Tensor x_, weight_, y_;
  Call call_;
};
// Copies memory of the device with all of its threads; bytes() are those that a call reads and writes.
class Copy {
 public:
  explicit Copy(const Device& device);
  double bytes() const { return 2.0 * static_cast<double>(bytes_); }
  void operator()() const;

 private:
  const Device& device_;
  int64_t bytes_;
  Tensor source_, destination_;
};
// Floats of memory that the copy and the read work on: far beyond any cache.
int64_t memory_floats();

// Registers a benchmark. `make` builds tensors and calls in the device and measures them.
void add(const std::string& name, std::function<void(benchmark::State&)> make);

// The loop: times `run`, which ends in calls on the device, and reports FLOP/s, bytes/s and `of_ceiling`: the time that
// the ceilings, measured just before, would need for the work, over the time taken.
void measure(benchmark::State& state, const Device& device, const Work& work, const std::function<void()>& run);

// Lengths, or the one tiny length of a smoke run.
std::vector<int64_t> lengths(std::initializer_list<int64_t> full);
// A size, or what a smoke run takes for it.
inline int64_t size(int64_t full, int64_t smoke) { return settings.smoke ? smoke : full; }
// A size of tensors that are to be beyond the caches, which on a GPU are larger.
inline int64_t large_size(int64_t full, int64_t smoke) {
  return size(settings.device_type == RFN_DEVICE_CUDA ? 16 * full : full, smoke);
}

// Those of a model of width 512.
struct Sizes {
  int64_t rows = large_size(4096, 5);
  int64_t width = size(512, 8);
  int64_t inner = size(2048, 12);
  int64_t heads = size(8, 2);
  int64_t head_size = width / heads;
};

// FLOPs of a matrix product.
inline double product(int64_t m, int64_t n, int64_t k) {
  return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

// LSH attention in the form of Trax and Hugging Face, with as many buckets as they take.
rfn_attention_options lsh_options(int64_t length, int32_t rounds, bool causal, int64_t chunk);
// Columns of its rotations.
int64_t rotation_columns(const rfn_attention_options& options);

void add_ceilings();
void add_attention();
void add_ops();
void add_blocks();

}  // namespace rfn::benchmarks
