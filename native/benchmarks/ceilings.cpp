// What the machine can do at most: the figures that all others are a share of.
#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"
#include "harness.h"

namespace rfn::benchmarks {
namespace {

// The sum of the floats in [begin, end), in as many partial sums as keep several loads in flight.
float sum(const float* begin, const float* end) {
  constexpr int kLanes = 64;
  float lanes[kLanes] = {};
  for (; end - begin >= kLanes; begin += kLanes) {
    for (int i = 0; i < kLanes; ++i) lanes[i] += begin[i];
  }
  float total = 0;
  for (const float lane : lanes) total += lane;
  return total;
}

// work(begin, end) over the floats of a buffer, with the device's threads.
template <class Function>
void in_parallel(const Device& device, int64_t floats, const Function& work) {
  const int32_t threads = device.threads();
  cpu::parallel_for(threads, threads,
                    [&](int64_t part, int32_t) { work(floats * part / threads, floats * (part + 1) / threads); });
}

void sgemm(benchmark::State& state, int32_t threads) {
  const Device device(threads);
  const Sgemm product(device);
  device.seconds([&] { product(); });
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(device.seconds([&] { product(); }));
  state.counters["FLOP/s"] =
      benchmark::Counter(product.flops() * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void copy(benchmark::State& state) {
  const Device device;
  const Copy run(device);
  device.seconds([&] { run(); });
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(device.seconds([&] { run(); }));
  state.SetBytesProcessed(static_cast<int64_t>(run.bytes()) * static_cast<int64_t>(state.iterations()));
}

void read(benchmark::State& state) {
  const Device device;
  const Tensor source(device, {memory_floats()});
  const rfn_tensor view = source;
  const auto* const data = static_cast<const float*>(view.data);
  const auto run = [&] {
    in_parallel(device, memory_floats(),
                [&](int64_t begin, int64_t end) { benchmark::DoNotOptimize(sum(data + begin, data + end)); });
  };
  device.seconds([&] { run(); });
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(device.seconds([&] { run(); }));
  state.SetBytesProcessed(view.bytes * static_cast<int64_t>(state.iterations()));
}

}  // namespace

int64_t memory_floats() { return large_size(int64_t{1} << 26, 1 << 10); }

namespace {

int64_t sgemm_size() { return size(settings.device_type == RFN_DEVICE_CUDA ? 8192 : 2048, 64); }

rfn_linear product(const Tensor& x, const Tensor& weight, const Tensor& y) {
  auto op = make_op<rfn_linear>();
  op.x = x;
  op.weight = weight;
  op.y = y;
  return op;
}

}  // namespace

Sgemm::Sgemm(const Device& device)
    : x_(device, {sgemm_size(), sgemm_size()}),
      weight_(device, {sgemm_size(), sgemm_size()}),
      y_(device, {sgemm_size(), sgemm_size()}),
      call_(device, product(x_, weight_, y_), rfn_linear_workspace, RFN_PASS_FORWARD, rfn_linear_forward) {}

double Sgemm::flops() const {
  const auto n = static_cast<double>(sgemm_size());
  return 2 * n * n * n;
}

void Sgemm::operator()() const { call_(); }

Copy::Copy(const Device& device)
    : device_(device),
      bytes_(memory_floats() * static_cast<int64_t>(sizeof(float))),
      source_(device, {memory_floats()}),
      destination_(device, {memory_floats()}) {}

void Copy::operator()() const {
  const rfn_tensor source = source_, destination = destination_;
  if (settings.device_type != RFN_DEVICE_CPU) {
    check(rfn_copy(device_.stream(), destination.data, source.data, bytes_, RFN_COPY_DEVICE_TO_DEVICE));
    return;
  }
  in_parallel(device_, memory_floats(), [&](int64_t begin, int64_t end) {
    std::memcpy(static_cast<float*>(destination.data) + begin, static_cast<const float*>(source.data) + begin,
                static_cast<size_t>(end - begin) * sizeof(float));
  });
}

void add_ceilings() {
  if (settings.device_type == RFN_DEVICE_CPU) {
    const int32_t all = Device().threads();
    add("ceiling/sgemm/threads:1", [](benchmark::State& state) { sgemm(state, 1); });
    if (all > 1)
      add("ceiling/sgemm/threads:" + std::to_string(all),
          [](benchmark::State& state) { sgemm(state, settings.threads); });
    add("ceiling/read", read);  // a device's own memory is not read from here
  } else {
    add("ceiling/sgemm", [](benchmark::State& state) { sgemm(state, 0); });
  }
  add("ceiling/copy", copy);
}

}  // namespace rfn::benchmarks
