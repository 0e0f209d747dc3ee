// OpenBLAS asks for 128 MB of address space for each product that runs at a time, and goes on asking for ever when the
// system has none; and a child process that was forked while another thread held its lock waits for ever too. The
// linker sends its requests here instead (--wrap). After the first buffer nothing can fail: a product that gets none of
// its own waits for that of another.
#include "cpu/blas_memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace rfn::cpu {
namespace {

constexpr uint32_t kMostBuffers = 1024;          // products that run at a time
constexpr size_t kGuardBytes = size_t{1} << 16;  // behind a buffer; a multiple of every page size, and never touched

struct alignas(64) Buffer {
  enum State : int32_t { kNone, kFree, kTaken };
  std::atomic<int32_t> state{kNone};
  std::atomic<void*> memory{nullptr};  // once there is some it stays

  bool take(int32_t from) {
    return state.load(std::memory_order_relaxed) == from &&
           state.compare_exchange_strong(from, kTaken, std::memory_order_acquire);
  }

  void release() { state.store(memory.load() == nullptr ? kNone : kFree, std::memory_order_release); }

  bool map() {
    void* const start = mmap(nullptr, kBlasBufferBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return false;
    mprotect(static_cast<char*>(start) + kBlasBufferBytes, kGuardBytes, PROT_NONE);
    memory.store(start);
    return true;
  }
};

Buffer buffers[kMostBuffers];

// A child process has no other threads, and so no products that run.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  for (Buffer& buffer : buffers) buffer.release();
});

std::atomic<uint32_t> made{0};  // buffers that have memory, or are about to: the first ones

// A buffer that nobody else has, or nullptr. A thread looks first where it found one before, which is in the cache of
// its processor. The place follows from the address of its stack: thread-local memory is allocated at its first use,
// and the C library ends the process when there is none left.
Buffer* take_buffer() {
  constexpr int kStackBits = 21;
  const uint32_t count = made.load(std::memory_order_acquire);
  const auto first = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) >> kStackBits);
  for (uint32_t i = 0; i < count; ++i) {
    Buffer& buffer = buffers[(first + i) % count];
    if (buffer.take(Buffer::kFree)) return &buffer;
  }
  for (uint32_t i = 0; i < kMostBuffers; ++i) {
    if (!buffers[i].take(Buffer::kNone)) continue;
    if (!buffers[i].map()) {
      buffers[i].release();
      return nullptr;
    }
    uint32_t known = count;
    while (known <= i && !made.compare_exchange_weak(known, i + 1)) continue;
    return &buffers[i];
  }
  return nullptr;
}

}  // namespace

bool reserve_blas_memory() {
  if (made.load() > 0) return true;
  Buffer* const buffer = take_buffer();
  if (buffer == nullptr) return false;
  buffer->release();
  return true;
}

}  // namespace rfn::cpu

extern "C" {
void* __wrap_blas_memory_alloc(int);
void __wrap_blas_memory_free(void* memory);

void* __wrap_blas_memory_alloc(int) {
  for (;;) {
    if (auto* const buffer = rfn::cpu::take_buffer(); buffer != nullptr) return buffer->memory.load();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

void __wrap_blas_memory_free(void* memory) {
  for (auto& buffer : rfn::cpu::buffers) {
    if (buffer.memory.load() == memory) return buffer.release();
  }
}
}
