#include "harness.h"

#include <algorithm>
#include <chrono>

namespace rfn::benchmarks {

Settings settings;
int failures = 0;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRuns = 3;                   // of each ceiling, after one that is not counted
constexpr std::chrono::seconds kFresh{1};  // ceilings move, so older ones are measured again

double best_seconds(const Device& device, const std::function<void()>& run) {
  double best = 0;
  for (int i = 0; i <= kRuns; ++i) {
    const double seconds = device.seconds(run);
    if (i == 1 || (i > 1 && seconds < best)) best = seconds;
  }
  return best;
}

int64_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case RFN_F64:
    case RFN_I64:
      return 8;
    case RFN_U8:
      return 1;
    default:
      return 4;
  }
}

}  // namespace

void check(rfn_status status) {
  if (status != RFN_OK) throw std::runtime_error(rfn_last_error());
}

Device::Device(int32_t threads) {
  check(rfn_context_create(settings.device_type, 0, threads, &context_));
  check(rfn_context_set_precision(context_, settings.precision));
  check(rfn_stream_create(context_, &stream_));
  check(rfn_event_create(context_, &start_));
  check(rfn_event_create(context_, &stop_));
}

Device::~Device() {
  rfn_event_destroy(stop_);
  rfn_event_destroy(start_);
  rfn_stream_destroy(stream_);
  rfn_context_destroy(context_);
}

int32_t Device::threads() const {
  int32_t threads = 0;
  check(rfn_context_threads(context_, &threads));
  return threads;
}

double Device::seconds(const std::function<void()>& run) const {
  check(rfn_event_record(start_, stream_));
  run();
  check(rfn_event_record(stop_, stream_));
  synchronize();
  double milliseconds = 0;
  check(rfn_event_elapsed(start_, stop_, &milliseconds));
  return milliseconds / 1000;
}

Tensor::Tensor(const Device& device, const std::vector<int64_t>& sizes, int32_t dtype, float deviation)
    : device_(&device) {
  view_.struct_size = sizeof(view_);
  view_.dtype = dtype;
  view_.rank = static_cast<int32_t>(sizes.size());
  view_.bytes = element_bytes(dtype);
  for (size_t i = 0; i < sizes.size(); ++i) {
    view_.shape[i] = sizes[i];
    view_.bytes *= sizes[i];
  }
  check(rfn_buffer_allocate(device.context(), RFN_MEMORY_DEVICE, view_.bytes, &view_.data));
  if (dtype != RFN_F32 || view_.bytes == 0) {
    zero();
    return;
  }
  static int32_t count = 0;
  auto op = make_op<rfn_random_normal>();
  op.site = RFN_SITE_DATA;
  op.layer = count++;
  op.standard_deviation = deviation;
  op.destination = view_;
  check(rfn_random_normal_forward(device.stream(), &op));
}

Tensor::Tensor(const Device& device, const std::vector<int64_t>& sizes, const std::vector<int32_t>& values)
    : Tensor(device, sizes, RFN_I32) {
  check(rfn_copy(device.stream(), view_.data, values.data(), view_.bytes, RFN_COPY_HOST_TO_DEVICE));
  device.synchronize();
}

Tensor::Tensor(Tensor&& other) noexcept : device_(other.device_), view_(other.view_) { other.view_.data = nullptr; }

Tensor::~Tensor() { rfn_buffer_free(device_->context(), RFN_MEMORY_DEVICE, view_.data); }

void Tensor::zero() { check(rfn_fill_zero(device_->stream(), view_.data, view_.bytes)); }

double bytes(std::initializer_list<rfn_tensor> tensors) {
  double sum = 0;
  for (const rfn_tensor& tensor : tensors) sum += static_cast<double>(tensor.bytes);
  return sum;
}

Ceilings measure_ceilings(const Device& device) {
  if (settings.smoke || settings.device_type == RFN_DEVICE_CUDA_ON_HOST) return {};
  static Ceilings ceilings;
  static Clock::time_point measured;
  static int32_t threads = -1;
  if (threads == device.threads() && Clock::now() - measured < kFresh) return ceilings;
  {
    const Sgemm product(device);
    ceilings.flops = product.flops() / best_seconds(device, [&] { product(); });
  }
  const Copy copy(device);
  ceilings.bytes = copy.bytes() / best_seconds(device, [&] { copy(); });
  threads = device.threads();
  measured = Clock::now();
  return ceilings;
}

void add(const std::string& name, std::function<void(benchmark::State&)> make) {
  auto* const registered =
      benchmark::RegisterBenchmark(name.c_str(), [make = std::move(make)](benchmark::State& state) {
        try {
          make(state);
        } catch (const std::exception& error) {
          ++failures;
          state.SkipWithError(error.what());
        }
      });
  registered->UseManualTime()->Unit(benchmark::kMillisecond);
  if (settings.smoke) registered->Iterations(1);
}

void measure(benchmark::State& state, const Device& device, const Work& work, const std::function<void()>& run) {
  const Ceilings ceilings = measure_ceilings(device);
  device.seconds(run);  // touches memory, lets the device load its kernels
  double taken = 0;
  for ([[maybe_unused]] auto _ : state) {
    const double seconds = device.seconds(run);
    state.SetIterationTime(seconds);
    taken += seconds;
  }
  using benchmark::Counter;
  const auto iterations = static_cast<double>(state.iterations());
  if (work.flops > 0) state.counters["FLOP/s"] = Counter(work.flops * iterations, Counter::kIsRate);
  if (work.bytes > 0) state.SetBytesProcessed(static_cast<int64_t>(work.bytes * iterations));
  if (ceilings.flops == 0) return;
  const double floor = std::max(work.flops / ceilings.flops, work.bytes / ceilings.bytes);
  if (work.flops / ceilings.flops == floor) {
    state.counters["sgemm"] = Counter(ceilings.flops);
  } else {
    state.counters["copy"] = Counter(ceilings.bytes);
  }
  state.counters["of_ceiling"] = Counter(floor * iterations / taken);
}

std::vector<int64_t> lengths(std::initializer_list<int64_t> full) {
  constexpr int64_t kSmoke = 100;  // not a multiple of the chunk
  return settings.smoke ? std::vector<int64_t>{kSmoke} : std::vector<int64_t>(full);
}

}  // namespace rfn::benchmarks
