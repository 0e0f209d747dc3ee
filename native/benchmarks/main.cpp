// Kernels through the C ABI, beside the machine's ceilings (README.md).
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "harness.h"

namespace {

using rfn::benchmarks::settings;

int usage(const char* argument) {
  std::fprintf(
      stderr,
      "expected --device=cpu|cuda|cuda_on_host, --threads=N (0: all), --smoke or a --benchmark_... option, got %s\n",
      argument);
  return 2;
}

bool parse_device(const char* name) {
  constexpr struct {
    const char* name;
    int32_t type;
  } kDevices[] = {{"cpu", RFN_DEVICE_CPU}, {"cuda", RFN_DEVICE_CUDA}, {"cuda_on_host", RFN_DEVICE_CUDA_ON_HOST}};
  for (const auto& device : kDevices) {
    if (std::strcmp(name, device.name) == 0) {
      settings.device_type = device.type;
      return true;
    }
  }
  return false;
}

bool parse_threads(const char* text) {
  char* end = nullptr;
  const long threads = std::strtol(text, &end, 10);
  settings.threads = static_cast<int32_t>(threads);
  return *text != '\0' && *end == '\0' && threads >= 0 && threads <= INT32_MAX;
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const char* const argument = argv[i];
    if (std::strcmp(argument, "--smoke") == 0) {
      settings.smoke = true;
    } else if (std::strncmp(argument, "--device=", 9) == 0) {
      if (!parse_device(argument + 9)) return usage(argument);
    } else if (std::strncmp(argument, "--threads=", 10) == 0) {
      if (!parse_threads(argument + 10)) return usage(argument);
    } else {
      return usage(argument);
    }
  }
  try {
    char device[4096];
    const rfn::benchmarks::Device probe;  // says what is missing where there is no such device
    rfn::benchmarks::check(rfn_device_describe(settings.device_type, 0, device, sizeof(device)));
    benchmark::AddCustomContext("device", device);
    benchmark::AddCustomContext("library", rfn_build_info());
    benchmark::AddCustomContext("threads", std::to_string(probe.threads()));
    rfn::benchmarks::add_ceilings();
    rfn::benchmarks::add_attention();
    rfn::benchmarks::add_ops();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  const size_t run = benchmark::RunSpecifiedBenchmarks();
  if (rfn::benchmarks::failures == 0 && run > 0) return 0;
  std::fprintf(stderr, "%d of %zu benchmarks failed\n", rfn::benchmarks::failures, run);
  return 1;
}
