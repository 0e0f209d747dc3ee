// The device under test: which it is, its memory, its schedules.
#include <cstdio>
#include <cstdlib>
#include <new>

#include "harness.h"

#ifdef RFN_TEST_CUDA_ON_HOST
#include "cuda_on_host/control.h"
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define RFN_POISON_GUARD(start, bytes) __asan_poison_memory_region(start, bytes)
#define RFN_UNPOISON_GUARD(start, bytes) __asan_unpoison_memory_region(start, bytes)
#else
#define RFN_POISON_GUARD(start, bytes) static_cast<void>(0)
#define RFN_UNPOISON_GUARD(start, bytes) static_cast<void>(0)
#endif

namespace rfn::test {
namespace {

int32_t device_type_from_environment() {
  const char* const text = std::getenv("RFN_TEST_DEVICE");
  const std::string name = text == nullptr ? "cpu" : text;
  if (name == "cpu") return RFN_DEVICE_CPU;
  if (name == "cuda") return RFN_DEVICE_CUDA;
  if (name == "cuda_on_host") return RFN_DEVICE_CUDA_ON_HOST;
  std::fprintf(stderr, "RFN_TEST_DEVICE: expected cpu, cuda_on_host or cuda, got %s\n", name.c_str());
  std::exit(2);
}

}  // namespace

int32_t device_type() {
  static const int32_t type = device_type_from_environment();
  return type;
}

// ---- schedules ----

void for_each_schedule(const std::function<void(int32_t)>& body, [[maybe_unused]] uint64_t schedules) {
  if (on_cpu()) {
    for (const int32_t threads : {1, 2, 3, 8}) body(threads);
    return;
  }
#ifdef RFN_TEST_CUDA_ON_HOST
  if (device_type() == RFN_DEVICE_CUDA_ON_HOST) {
    cuda_on_host::Settings settings = cuda_on_host::settings();
    const uint64_t before = settings.seed;
    for (settings.seed = 0; settings.seed < schedules; ++settings.seed) {
      const testing::ScopedTrace trace(__FILE__, __LINE__, "schedule " + std::to_string(settings.seed));
      cuda_on_host::set_settings(settings);
      body(1);
    }
    settings.seed = before;
    cuda_on_host::set_settings(settings);
    return;
  }
#endif
  for (int run = 0; run < 2; ++run) body(1);
}

std::string fault_report() {
#ifdef RFN_TEST_CUDA_ON_HOST
  if (device_type() == RFN_DEVICE_CUDA_ON_HOST) return cuda_on_host::last_report();
#endif
  return "";
}

// ---- precisions ----

namespace {

struct Precision {
  const char* name;
  double limit;  // of results of a forward pass
};
constexpr Precision kPrecisions[] = {{"F32", 0}, {"TF32", 2e-3}, {"BF16", 2e-2}, {"F16", 2e-3}};  // by RFN_PRECISION_*

}  // namespace

std::vector<int32_t> precisions() {
  const Context context;
  std::vector<int32_t> have;
  for (const int32_t precision : {RFN_PRECISION_F32, RFN_PRECISION_TF32, RFN_PRECISION_BF16, RFN_PRECISION_F16}) {
    const rfn_status status = rfn_context_set_precision(context, precision);
    EXPECT_TRUE(status == RFN_OK || (precision != RFN_PRECISION_F32 && status == RFN_UNSUPPORTED)) << rfn_last_error();
    if (status == RFN_OK) have.push_back(precision);
  }
  return have;
}

const char* precision_name(int32_t precision) { return kPrecisions[precision].name; }

double forward_limit(int32_t precision, double f32) {
  return precision == RFN_PRECISION_F32 ? f32 : kPrecisions[precision].limit;
}

double gradient_limit(int32_t precision, double f32) {
  return precision == RFN_PRECISION_F32 ? f32 : 2 * kPrecisions[precision].limit;
}

// ---- memory ----

namespace {

constexpr int64_t kGuard = 256;
constexpr uint32_t kGuardWord = 0xFFA5A5A5u;  // a NaN; as an integer far below zero

void fill(uint8_t* bytes, int64_t count, uint32_t word) {
  for (int64_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(word >> 8 * (i % 4));
}

// A context and a stream of the device that all guarded memory uses.
struct MemoryDevice {
  rfn_context* context = nullptr;
  rfn_stream* stream = nullptr;
};
MemoryDevice memory_device;

MemoryDevice& memory() {
  if (memory_device.context == nullptr && (!Ok(rfn_context_create(device_type(), 0, 1, &memory_device.context)) ||
                                           !Ok(rfn_stream_create(memory_device.context, &memory_device.stream)))) {
    throw std::runtime_error(rfn_last_error());
  }
  return memory_device;
}

uint8_t* allocate(int64_t bytes) {
  void* block = nullptr;
  if (on_cpu()) {
    block = std::aligned_alloc(64, static_cast<size_t>(bytes));
    if (block == nullptr) throw std::bad_alloc();
  } else if (rfn_buffer_allocate(memory().context, RFN_MEMORY_DEVICE, bytes, &block) != RFN_OK) {
    throw std::runtime_error(rfn_last_error() + ("\n" + fault_report()));
  }
  return static_cast<uint8_t*>(block);
}

void release(uint8_t* block) {
  if (on_cpu()) {
    std::free(block);
  } else {
    EXPECT_TRUE(Ok(rfn_buffer_free(memory().context, RFN_MEMORY_DEVICE, block)));
  }
}

// Between the host and the memory under test.
void copy(void* destination, const void* source, int64_t bytes, int32_t direction) {
  if (on_cpu()) {
    std::memcpy(destination, source, static_cast<size_t>(bytes));
    return;
  }
  EXPECT_TRUE(Ok(rfn_copy(memory().stream, destination, source, bytes, direction)));
  EXPECT_TRUE(Ok(rfn_stream_synchronize(memory().stream)));
}

}  // namespace

void close_device() {
  rfn_stream_destroy(memory_device.stream);
  rfn_context_destroy(memory_device.context);
  memory_device = {};
#ifdef RFN_TEST_CUDA_ON_HOST
  if (device_type() != RFN_DEVICE_CUDA_ON_HOST || cuda_on_host::last_report().empty()) return;
  const cuda_on_host::Settings settings = cuda_on_host::settings();
  cuda_on_host::reset();
  cuda_on_host::set_settings(settings);
#endif
}

// Guard zone, offset, contents, guard zone. Behind an allocation cuda_on_host has a guard of its own, which it checks
// after every kernel.
GuardedMemory::GuardedMemory(int64_t bytes, int64_t offset) : bytes_(bytes), total_(kGuard + offset + bytes) {
  if (device_type() != RFN_DEVICE_CUDA_ON_HOST) total_ = (total_ + kGuard + 63) / 64 * 64;
  block_ = allocate(total_);
  start_ = block_ + kGuard + offset;
  std::vector<uint8_t> image(static_cast<size_t>(total_));
  fill(image.data(), total_, kGuardWord);
  fill(image.data() + (start_ - block_), bytes_, kPoison);
  copy(block_, image.data(), total_, RFN_COPY_HOST_TO_DEVICE);
  if (!on_cpu()) return;
  RFN_POISON_GUARD(block_, start_ - block_);
  RFN_POISON_GUARD(start_ + bytes_, block_ + total_ - start_ - bytes_);
}

GuardedMemory::~GuardedMemory() {
  if (block_ == nullptr) return;
  if (on_cpu()) RFN_UNPOISON_GUARD(block_, total_);
  std::vector<uint8_t> image(static_cast<size_t>(total_)), guards(image);
  copy(image.data(), block_, total_, RFN_COPY_DEVICE_TO_HOST);
  fill(guards.data(), total_, kGuardWord);
  const auto start = start_ - block_, end = start + bytes_;
  EXPECT_TRUE(std::equal(image.begin(), image.begin() + start, guards.begin()))
      << "memory before a buffer of " << bytes_ << " bytes was written";
  EXPECT_TRUE(std::equal(image.begin() + end, image.end(), guards.begin() + end))
      << "memory behind a buffer of " << bytes_ << " bytes was written";
  release(block_);
}

void GuardedMemory::poison_contents() {
  std::vector<uint8_t> image(static_cast<size_t>(bytes_));
  fill(image.data(), bytes_, kPoison);
  write(image.data());
}

void GuardedMemory::read(void* destination) const { copy(destination, start_, bytes_, RFN_COPY_DEVICE_TO_HOST); }

void GuardedMemory::write(const void* source) { copy(start_, source, bytes_, RFN_COPY_HOST_TO_DEVICE); }

}  // namespace rfn::test
