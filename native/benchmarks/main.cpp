// Kernels through the C ABI, beside the machine's ceilings (README.md).
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/json.h"
#include "harness.h"

namespace {

using rfn::benchmarks::settings;

int usage(const char* argument) {
  std::fprintf(
      stderr,
      "expected --device=cpu|cuda|cuda_on_host, --precision=f32|tf32|bf16|f16, --threads=N (0: all), --smoke, --lines "
      "or a --benchmark_... option, got %s\n",
      argument);
  return 2;
}

struct Name {
  const char* text;
  int32_t value;
};
constexpr Name kDevices[] = {
    {"cpu", RFN_DEVICE_CPU}, {"cuda", RFN_DEVICE_CUDA}, {"cuda_on_host", RFN_DEVICE_CUDA_ON_HOST}};
constexpr Name kPrecisions[] = {
    {"f32", RFN_PRECISION_F32}, {"tf32", RFN_PRECISION_TF32}, {"bf16", RFN_PRECISION_BF16}, {"f16", RFN_PRECISION_F16}};

template <size_t n>
bool parse(const char* text, const Name (&names)[n], int32_t* value) {
  for (const Name& name : names) {
    if (std::strcmp(text, name.text) != 0) continue;
    *value = name.value;
    return true;
  }
  return false;
}

bool parse_threads(const char* text) {
  char* end = nullptr;
  const long threads = std::strtol(text, &end, 10);
  settings.threads = static_cast<int32_t>(threads);
  return *text != '\0' && *end == '\0' && threads >= 0 && threads <= INT32_MAX;
}

// For programs: a JSON object on a line of its own for each measurement, as soon as it is there.
class Lines : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      std::printf("{\"name\": \"%s\", \"precision\": \"%s\", ", run.run_name.function_name.c_str(),
                  kPrecisions[settings.precision].text);
      if (run.error_occurred) {
        std::printf("\"error\": %s}\n", rfn::json_quoted(run.error_message).c_str());
      } else {
        std::printf("\"seconds\": %.9g, \"runs\": %lld",
                    run.real_accumulated_time / static_cast<double>(run.iterations),
                    static_cast<long long>(run.iterations));
        for (const auto& [name, counter] : run.counters) std::printf(", \"%s\": %.6g", name.c_str(), counter.value);
        std::printf("}\n");
      }
      std::fflush(stdout);
    }
  }
};

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  bool lines = false;
  for (int i = 1; i < argc; ++i) {
    const char* const argument = argv[i];
    if (std::strcmp(argument, "--smoke") == 0) {
      settings.smoke = true;
    } else if (std::strncmp(argument, "--device=", 9) == 0) {
      if (!parse(argument + 9, kDevices, &settings.device_type)) return usage(argument);
    } else if (std::strncmp(argument, "--precision=", 12) == 0) {
      if (!parse(argument + 12, kPrecisions, &settings.precision)) return usage(argument);
    } else if (std::strcmp(argument, "--lines") == 0) {
      lines = true;
    } else if (std::strncmp(argument, "--threads=", 10) == 0) {
      if (!parse_threads(argument + 10)) return usage(argument);
    } else {
      return usage(argument);
    }
  }
  char device[4096];
  try {
    const rfn::benchmarks::Device probe;  // says what is missing where there is no such device
    rfn::benchmarks::check(rfn_device_describe(settings.device_type, 0, device, sizeof(device)));
    benchmark::AddCustomContext("device", device);
    benchmark::AddCustomContext("library", rfn_build_info());
    benchmark::AddCustomContext("threads", std::to_string(probe.threads()));
    rfn::benchmarks::add_ceilings();
    rfn::benchmarks::add_attention();
    rfn::benchmarks::add_ops();
    rfn::benchmarks::add_blocks();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  Lines line_by_line;
  if (lines) std::printf("{\"device\": %s, \"library\": %s}\n", device, rfn_build_info());
  const size_t run = lines ? benchmark::RunSpecifiedBenchmarks(&line_by_line) : benchmark::RunSpecifiedBenchmarks();
  if (rfn::benchmarks::failures == 0 && run > 0) return 0;
  std::fprintf(stderr, "%d of %zu benchmarks failed\n", rfn::benchmarks::failures, run);
  return 1;
}
