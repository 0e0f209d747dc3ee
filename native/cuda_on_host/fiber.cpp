#include "cuda_on_host/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef RFN_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace rfn::cuda_on_host {
namespace {

constexpr size_t kGuardBytes = 4096;
#ifdef RFN_ADDRESS_SANITIZER
constexpr size_t kStackBytes = 512 << 10;  // instrumented frames are several times larger
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
constexpr size_t kSlotBytes = kGuardBytes + kStackBytes;
constexpr size_t kStagger = 832;  // 13 cache lines: successive tops walk through all 64 sets of a 4 KB page

}  // namespace

void fiber_started([[maybe_unused]] Fiber& self, Transfer transfer) {
  Fiber& previous = *static_cast<Fiber*>(transfer.data);
#ifdef RFN_ADDRESS_SANITIZER
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(self.sanitizer_state, &bottom, &bytes);
  if (previous.stack_bottom == nullptr) {  // the thread that launched: only the sanitizer knows its stack
    previous.stack_bottom = bottom;
    previous.stack_bytes = bytes;
  }
#endif
  previous.context = transfer.fctx;
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool from_has_ended) {
#ifdef RFN_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(from_has_ended ? nullptr : &from.sanitizer_state, to.stack_bottom, to.stack_bytes);
#endif
  fiber_started(from, boost::context::detail::jump_fcontext(to.context, &from));
}

void prepare_fiber(Fiber& fiber, void (*entry)(Transfer)) {
  char* top = static_cast<char*>(const_cast<void*>(fiber.stack_bottom)) + fiber.stack_bytes;
  fiber.sanitizer_state = nullptr;
  fiber.context = boost::context::detail::make_fcontext(top, fiber.stack_bytes, entry);
}

Stacks::Stacks(int count) : bytes_(kSlotBytes * static_cast<size_t>(count)) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  free_.reserve(static_cast<size_t>(count));
}

Stacks::~Stacks() {
#ifdef RFN_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(memory_, bytes_);
#endif
  munmap(memory_, bytes_);
}

void Stacks::give(Fiber& fiber) {
  int slot;
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
  } else {
    slot = made_++;
    mprotect(memory_ + kSlotBytes * static_cast<size_t>(slot), kGuardBytes, PROT_NONE);
  }
  char* bottom = memory_ + kSlotBytes * static_cast<size_t>(slot) + kGuardBytes;
  fiber.stack_bottom = bottom;
  fiber.stack_bytes = kStackBytes - (static_cast<size_t>(slot) * kStagger % 4096) / 64 * 64;
#ifdef RFN_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(bottom, kStackBytes);  // left poisoned by a fiber that was abandoned
#endif
}

void Stacks::take_back(const Fiber& fiber) {
  free_.push_back(static_cast<int>((static_cast<const char*>(fiber.stack_bottom) - memory_) /
                                   static_cast<std::ptrdiff_t>(kSlotBytes)));
}

void Stacks::take_back_all() {
  free_.clear();
  for (int slot = made_; slot-- > 0;) free_.push_back(slot);
}

bool Stacks::guards(const void* address) const {
  const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(memory_);
  return offset < bytes_ && offset % kSlotBytes < kGuardBytes;
}

}  // namespace rfn::cuda_on_host
