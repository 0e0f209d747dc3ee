// The CPU backend: its table, and everything in it that is not an op. A stream has finished whatever it was given when
// the call returns.
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>

#include "core/embedded.h"
#include "core/error.h"
#include "core/json.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "cpu/blas_memory.h"
#include "cpu/gemm.h"
#include "cpu/host.h"
#include "cpu/simd.h"

namespace rfn {
namespace cpu {

RFN_DECLARE_OPS

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kHugePage = int64_t{2} << 20;
// Buffers from here on start on a huge page: with fewer page faults and TLB misses for arrays that are swept through.
constexpr int64_t kHugePageBuffer = 2 * kHugePage;
// Large buffers start at different distances from the page, one after the other. Rows of tensors often lie a power of
// two apart; at equal distances the rows of one token in all tensors would compete for the same few places of every
// cache.
constexpr int64_t kColours = 16;
// Buffers from here on are held against the memory that is left. Linux grants address space for more than there is, and
// kills the process that uses it; asking costs a dozen small files.
constexpr int64_t kCheckedBuffer = int64_t{1} << 20;

struct Mapping {
  void* start;
  size_t bytes;
};

// Buffers of a context.
struct Memory {
  std::mutex mutex;
  std::unordered_map<void*, Mapping> buffers;
  int64_t next_colour = 0;
};

Memory& memory_of(rfn_context& context) { return *static_cast<Memory*>(context.native); }

rfn_status device_count(int32_t* count) {
  *count = 1;
  return RFN_OK;
}

rfn_status device_describe(int32_t index, char* text, int64_t capacity) {
  if (index != 0)
    return fail(RFN_INVALID_ARGUMENT, "rfn_device_describe: device_index: expected 0, got %" PRId32, index);
  const HostMemory memory = host_memory();
  return JsonObject()
      .text("name", host_processor_name())
      .text("type", "cpu")
      .number("memory_bytes", memory.total_bytes)
      .number("free_bytes", memory.free_bytes)
      .number("processors", host_processors())
      .text("simd", simd_name(simd()))
      .copy_to("rfn_device_describe", text, capacity);
}

rfn_status context_create(rfn_context& context) {
  if (const char* const refused = simd_refused(); refused != nullptr) {
    return fail(RFN_UNSUPPORTED,
                "RFN_SIMD: expected portable, avx2 or avx512 as far as this processor has them, got %s", refused);
  }
  if (!reserve_blas_memory()) {
    const HostMemory memory = host_memory();
    return fail(RFN_OUT_OF_MEMORY,
                "rfn_context_create: matrix products work in %zu bytes, but %" PRId64 " of %" PRId64 " are free",
                kBlasBufferBytes, memory.free_bytes, memory.total_bytes);
  }
  if (context.threads == 0) context.threads = host_processors();
  context.native = new Memory;
  return RFN_OK;
}

void context_destroy(rfn_context& context) { delete static_cast<Memory*>(context.native); }

rfn_status context_set_precision(rfn_context&, int32_t precision) {
  if (precision == RFN_PRECISION_F32) return RFN_OK;
  return fail(RFN_UNSUPPORTED,
              "rfn_context_set_precision: precision: the CPU has RFN_PRECISION_F32 (0) alone, got %" PRId32, precision);
}

rfn_status memory_info(const rfn_context&, int64_t* free_bytes, int64_t* total_bytes) {
  const HostMemory memory = host_memory();
  *free_bytes = memory.free_bytes;
  *total_bytes = memory.total_bytes;
  return RFN_OK;
}

rfn_status stream_create(rfn_stream&) { return RFN_OK; }

rfn_status stream_wrap(rfn_stream&, void*) {
  return fail(RFN_UNSUPPORTED, "rfn_stream_wrap: the CPU has no streams of its own to wrap");
}

void stream_destroy(rfn_stream&) {}

rfn_status stream_synchronize(rfn_stream&) { return RFN_OK; }

struct Event {
  bool recorded = false;
  Clock::time_point time;
};

Event& event_of(rfn_event& event) { return *static_cast<Event*>(event.native); }

rfn_status event_create(rfn_event& event) {
  event.native = new Event;
  return RFN_OK;
}

void event_destroy(rfn_event& event) { delete &event_of(event); }

rfn_status event_record(rfn_event& event, rfn_stream&) {
  event_of(event) = {true, Clock::now()};
  return RFN_OK;
}

rfn_status event_wait(rfn_event&, rfn_stream&) { return RFN_OK; }  // all earlier work is done

rfn_status event_elapsed(rfn_event& start, rfn_event& stop, double* milliseconds) {
  if (!event_of(start).recorded || !event_of(stop).recorded) {
    return fail(RFN_INVALID_ARGUMENT, "rfn_event_elapsed: %s: expected a recorded event",
                event_of(start).recorded ? "stop" : "start");
  }
  *milliseconds = std::chrono::duration<double, std::milli>(event_of(stop).time - event_of(start).time).count();
  return RFN_OK;
}

rfn_status out_of_memory(int64_t bytes) {
  const HostMemory memory = host_memory();
  return fail(RFN_OUT_OF_MEMORY,
              "rfn_buffer_allocate: bytes: asked for %" PRId64 ", but %" PRId64 " of %" PRId64 " are free", bytes,
              memory.free_bytes, memory.total_bytes);
}

rfn_status buffer_allocate(rfn_context& context, int32_t, int64_t bytes, void** out) {
  if (bytes >= kCheckedBuffer && bytes > host_memory().free_bytes) return out_of_memory(bytes);
  const int64_t page = sysconf(_SC_PAGESIZE);
  const bool huge = bytes >= kHugePageBuffer;
  const int64_t used = round_up(bytes == 0 ? 1 : bytes, page) + (huge ? kColours * Arena::kAlignment : 0);
  const int64_t mapped = huge ? used + kHugePage : used;
  char* const start = static_cast<char*>(
      mmap(nullptr, static_cast<size_t>(mapped), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (start == MAP_FAILED) return out_of_memory(bytes);
  char* buffer = start;
  if (huge) {
    buffer = reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(start), kHugePage));
    madvise(buffer, static_cast<size_t>(round_up(used, page)),
            MADV_HUGEPAGE);  // advice: a kernel without huge pages serves small ones
  }
  Memory& memory = memory_of(context);
  try {
    const std::lock_guard<std::mutex> lock(memory.mutex);
    if (huge) buffer += memory.next_colour++ % kColours * Arena::kAlignment;
    memory.buffers[buffer] = {start, static_cast<size_t>(mapped)};
  } catch (...) {
    munmap(start, static_cast<size_t>(mapped));
    throw;
  }
  *out = buffer;
  return RFN_OK;
}

rfn_status buffer_free(rfn_context& context, int32_t, void* buffer) {
  Memory& memory = memory_of(context);
  Mapping mapping;
  {
    const std::lock_guard<std::mutex> lock(memory.mutex);
    const auto found = memory.buffers.find(buffer);
    if (found == memory.buffers.end()) {
      return fail(RFN_INVALID_ARGUMENT,
                  "rfn_buffer_free: buffer: expected one that this context allocated and has not freed, got %p",
                  buffer);
    }
    mapping = found->second;
    memory.buffers.erase(found);
  }
  munmap(mapping.start, mapping.bytes);
  return RFN_OK;
}

rfn_status copy(rfn_stream&, void* destination, const void* source, int64_t bytes, int32_t) {
  std::memcpy(destination, source, static_cast<size_t>(bytes));
  return RFN_OK;
}

rfn_status fill_zero(rfn_stream&, void* destination, int64_t bytes) {
  std::memset(destination, 0, static_cast<size_t>(bytes));
  return RFN_OK;
}

}  // namespace

const Backend& table_of_ops() {
  static const Backend table = [] {
    Backend table = {};
    RFN_FILL_DEVICE("CPU")
    RFN_FILL_OPS
    return table;
  }();
  return table;
}

}  // namespace cpu

const Backend* embedded_backend() { return &cpu::table_of_ops(); }

void describe_embedded_backend(JsonObject& build) {
  std::string available;
  for (const cpu::Simd simd : {cpu::Simd::kAvx512, cpu::Simd::kAvx2, cpu::Simd::kPortable}) {
    if (!cpu::simd_supported(simd)) continue;
    if (!available.empty()) available += ", ";
    available += json_quoted(cpu::simd_name(simd));
  }
  const std::string blas = cpu::blas_name();  // "OpenBLAS 0.3.21"
  const size_t space = blas.find(' ');
  build.text("simd", cpu::simd_name(cpu::simd()))
      .json("simd_available", "[" + available + "]")
      .json("blas", JsonObject()
                        .text("name", blas.substr(0, space))
                        .text("version", space == std::string::npos ? "" : blas.substr(space + 1))
                        .text("kernel", cpu::blas_kernel())
                        .str());
}

}  // namespace rfn
