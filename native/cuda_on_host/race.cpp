#include "cuda_on_host/race.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>

#include "cuda_on_host/executor.h"
#include "cuda_on_host/memory.h"

namespace rfn::cuda_on_host {
namespace {

bool instrumented = false;

}  // namespace

bool race_checking() { return instrumented; }

// ---- order --------------------------------------------------------------------------------------

void RaceChecker::begin_launch() { launch_ = block_ = ++interval_; }

void RaceChecker::begin_block(const void* shared, size_t shared_bytes) {
  block_ = ++interval_;
  shared_ = static_cast<const char*>(shared);
  shared_cells_.resize((shared_bytes + 1) / 2);
}

uint16_t* RaceChecker::clocks(int thread) {
  uint16_t* known = &clocks_[static_cast<size_t>(thread) * kClocks];
  if (clocks_interval_[static_cast<size_t>(thread)] != interval_) {
    clocks_interval_[static_cast<size_t>(thread)] = interval_;
    std::fill(known, known + kClocks, uint16_t{0});
    known[thread % kLanes] = 1;
  }
  return known;
}

bool RaceChecker::knows(const Thread& thread, int other, uint16_t clock) {
  return other == thread.number || (other / kLanes == thread.warp && clocks(thread.number)[other % kLanes] >= clock);
}

void RaceChecker::warp_barrier(Thread* lanes, uint32_t mask) {
  uint16_t joined[kLanes] = {};
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const uint16_t* known = clocks(lanes[__builtin_ctz(rest)].number);
    for (int l = 0; l < kLanes; ++l) joined[l] = std::max(joined[l], known[l]);
  }
  const uint16_t most = *std::max_element(joined, joined + kLanes);
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    uint16_t* known = clocks(lanes[lane].number);
    std::copy(joined, joined + kLanes, known);
    ++known[lane];
    known[kLanes] = most;
  }
}

// ---- one place ----------------------------------------------------------------------------------

RaceChecker::Problem RaceChecker::check(const Thread& thread, Cell& cell, unsigned halves, Access access, bool shared) {
  const bool writes = access != Access::read;
  if (cell.write_halves & halves) {  // against the last write
    if (cell.in_flight && cell.write_interval >= block_) return Problem::InFlight;
    const bool both_atomic = cell.atomic && access == Access::atomic;
    if (cell.write_interval == interval_ && !both_atomic) {
      const bool followed = cell.writer / kLanes == thread.warp || interval_ != named_barrier_interval_;
      if (followed && !knows(thread, cell.writer, cell.write_clock)) return Problem::AfterWrite;
    }
    if (!shared && cell.write_interval >= launch_ && cell.write_interval < block_ && !both_atomic)
      return Problem::AfterWriteOfBlock;
  }
  if (!writes) {
    if (shared && cell.write_interval < block_) return Problem::NeverWritten;
    remember_read(thread, cell, halves);
    return Problem::None;
  }
  if (cell.read_halves & halves) {  // against the last reads
    if (cell.read_interval == interval_) {
      const bool followed = interval_ != named_barrier_interval_;
      if (followed && (cell.many_warps || cell.read_warp != thread.warp)) return Problem::AfterReadOfWarp;
      if (cell.read_warp == thread.warp) {
        for (uint32_t rest = cell.read_lanes; rest != 0; rest &= rest - 1) {
          if (!knows(thread, thread.warp * kLanes + __builtin_ctz(rest), cell.read_clock))
            return Problem::AfterReadOfLane;
        }
      }
    }
    const bool by_block = cell.read_interval < block_ || cell.earlier_block;
    if (!shared && cell.read_interval >= launch_ && by_block) return Problem::AfterReadOfBlock;
  }
  const bool same = cell.write_interval == interval_ && cell.writer == static_cast<unsigned>(thread.number);
  cell.write_halves = (same ? cell.write_halves | halves : halves) & 3;
  cell.write_interval = interval_;
  cell.write_clock = clocks(thread.number)[thread.lane];
  cell.writer = static_cast<uint16_t>(thread.number) & 1023;
  cell.atomic = access == Access::atomic;
  cell.in_flight = access == Access::async_write;
  return Problem::None;
}

void RaceChecker::remember_read(const Thread& thread, Cell& cell, unsigned halves) {
  const uint32_t bit = 1u << thread.lane;
  const uint16_t* known = clocks(thread.number);
  const uint16_t now = known[thread.lane];
  if (cell.read_interval != interval_) {
    cell.earlier_block = cell.read_interval >= launch_ && (cell.read_interval < block_ || cell.earlier_block);
    cell.read_interval = interval_;
    cell.read_warp = static_cast<uint8_t>(thread.warp);
    cell.read_lanes = bit;
    cell.read_clock = now;
    cell.read_halves = halves & 3;
    cell.many_warps = 0;
    return;
  }
  cell.read_halves = (cell.read_halves | halves) & 3;
  if (cell.read_warp != thread.warp) {
    cell.many_warps = 1;
    return;
  }
  if (known[kLanes] < cell.read_clock) {  // knows of none of the earlier readers: one more
    cell.read_clock = std::min(cell.read_clock, now);
    cell.read_lanes |= bit;
    return;
  }
  uint32_t unordered = 0;  // readers that a later writer could race with although it knows this one
  for (uint32_t rest = cell.read_lanes & ~bit; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (known[lane] < cell.read_clock) unordered |= 1u << lane;
  }
  cell.read_clock = unordered != 0 ? std::min(cell.read_clock, now) : now;
  cell.read_lanes = unordered | bit;
}

std::string RaceChecker::words(Problem problem, const Cell& cell, Access access) {
  const std::string kind = access == Access::read ? "read" : "write";
  const auto thread = [](int number) { return "thread number " + std::to_string(number) + " of the block"; };
  switch (problem) {
    case Problem::None:
      break;
    case Problem::InFlight:
      return kind + " while a cp.async to it is in flight, issued by " + thread(cell.writer);
    case Problem::AfterWrite:
      return kind + " after a write by " + thread(cell.writer) + " with no barrier between";
    case Problem::AfterWriteOfBlock:
      return kind + " after a write by another block";
    case Problem::NeverWritten:
      return "read of shared memory that the block has not written";
    case Problem::AfterReadOfWarp:
      return "write after a read by another warp with no barrier between";
    case Problem::AfterReadOfLane:
      return "write after a read by another lane with no __syncwarp between";
    case Problem::AfterReadOfBlock:
      return "write after a read by another block";
  }
  return "";
}

std::string RaceChecker::walk(const Thread& thread, Cell* cells, size_t offset, size_t bytes, Access access,
                              bool shared) {
  const size_t end = offset + bytes;
  Cell before{}, after{};  // neighbours mostly have the same history, so that what changes is the same too
  bool known = false;
  for (size_t at = offset; at < end;) {
    const bool odd = at % 2 != 0, both = !odd && at + 1 < end;
    Cell& cell = cells[at / 2];
    if (both && known && std::memcmp(&cell, &before, sizeof cell) == 0) {
      cell = after;
    } else {
      before = cell;
      const Problem problem = check(thread, cell, both ? 3 : odd ? 2 : 1, access, shared);
      if (problem != Problem::None) return words(problem, cell, access);
      after = cell;
      known = both;
    }
    at += both ? 2 : 1;
  }
  return "";
}

std::string RaceChecker::shared_access(const Thread& thread, const void* address, size_t bytes, Access access) {
  return walk(thread, shared_cells_.data(), static_cast<size_t>(static_cast<const char*>(address) - shared_), bytes,
              access, true);
}

std::string RaceChecker::global_access(const Thread& thread, Allocation& allocation, const void* address, size_t bytes,
                                       Access access) {
  if (allocation.shadow == nullptr) {
    allocation.shadow_bytes = (allocation.bytes + 1) / 2 * sizeof(Cell);
    void* mapped = mmap(nullptr, allocation.shadow_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return "no memory to check races with";
    allocation.shadow = mapped;
  }
  return walk(thread, static_cast<Cell*>(allocation.shadow),
              static_cast<size_t>(static_cast<const char*>(address) - allocation.begin), bytes, access, false);
}

void RaceChecker::landed(const Thread& thread, const void* shared, size_t bytes) {
  const auto offset = static_cast<size_t>(static_cast<const char*>(shared) - shared_);
  for (size_t at = offset; at < offset + bytes; at += 2) {
    Cell& cell = shared_cells_[at / 2];
    cell.in_flight = 0;
    cell.write_interval = interval_;
    cell.write_clock = clocks(thread.number)[thread.lane];
  }
}

// ---- of the running thread ----------------------------------------------------------------------

void Executor::check_access(const Thread& thread, const void* address, size_t bytes, RaceChecker::Access access,
                            const void* code) {
  const char* at = static_cast<const char*>(address);
  const char* stack = static_cast<const char*>(current_->fiber.stack_bottom);
  if (at >= stack && at < stack + current_->fiber.stack_bytes) return;
  const auto offset = static_cast<size_t>(at - shared_memory_);
  {
    std::string problem, place;
    if (offset < shared_bytes()) {
      problem = owns_shared(address, bytes) ? races_.shared_access(thread, address, bytes, access) : "out of bounds";
      if (problem.empty()) return;
      place = name_of_shared(address);
    } else {
      if (at < last_begin_ || at + bytes > last_end_) {
        if (!device_memory().may_hold(address)) return;  // parameters, thread-locals, constants
        Allocation* found = device_memory().find(address, bytes);
        if (found == nullptr) {
          problem = "out of bounds";
        } else {
          last_ = found;
          last_begin_ = found->begin;
          last_end_ = found->begin + found->bytes;
        }
      }
      if (problem.empty()) problem = races_.global_access(thread, *last_, address, bytes, access);
      if (problem.empty()) return;
      place = device_memory().describe(address);
    }
    const std::string size =
        std::to_string(bytes) + (access == RaceChecker::Access::read ? " byte read of " : " byte write to ");
    failure_ = {cudaErrorLaunchFailure, std::string(launch_->name) + ", " + where(thread) + ": " + problem + ": " +
                                            size + place + code_place(code)};
  }  // the words are gone before the fiber is left: it will not be unwound
  leave_block();
}

// " (file:line)" of a return address, by addr2line when there is one.
std::string Executor::code_place(const void* code) {
  Dl_info info{};
  if (code == nullptr || dladdr(code, &info) == 0 || info.dli_fname == nullptr) return "";
  const auto offset =
      static_cast<size_t>(static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase)) - 1;
  char command[1024], line[512] = {};
  std::snprintf(command, sizeof command, "addr2line -s -e '%s' 0x%zx 2>/dev/null", info.dli_fname, offset);
  if (FILE* pipe = popen(command, "r")) {
    if (std::fgets(line, sizeof line, pipe) == nullptr) line[0] = 0;
    pclose(pipe);
  }
  line[std::strcspn(line, "\n ")] = 0;
  return line[0] == 0 || line[0] == '?' ? "" : std::string(" (") + line + ")";
}

namespace {
void access(const void* address, size_t bytes, bool write, const void* code) {
  if (running_executor != nullptr && running_executor->running()) {
    Executor& executor = *running_executor;
    executor.check_access(executor.current(), address, bytes,
                          write ? RaceChecker::Access::write : RaceChecker::Access::read, code);
  }
}
}  // namespace
}  // namespace rfn::cuda_on_host

// ---- what -fsanitize=thread calls ---------------------------------------------------------------

extern "C" {

void __tsan_init() { rfn::cuda_on_host::instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define RFN_ACCESS(name, bytes, write) \
  void name(void* address) { rfn::cuda_on_host::access(address, bytes, write, __builtin_return_address(0)); }
#define RFN_ACCESSES(bytes)                              \
  RFN_ACCESS(__tsan_read##bytes, bytes, false)           \
  RFN_ACCESS(__tsan_write##bytes, bytes, true)           \
  RFN_ACCESS(__tsan_unaligned_read##bytes, bytes, false) \
  RFN_ACCESS(__tsan_unaligned_write##bytes, bytes, true) \
  RFN_ACCESS(__tsan_volatile_read##bytes, bytes, false)  \
  RFN_ACCESS(__tsan_volatile_write##bytes, bytes, true)
RFN_ACCESSES(1)
RFN_ACCESSES(2)
RFN_ACCESSES(4)
RFN_ACCESSES(8)
RFN_ACCESSES(16)
void __tsan_read_range(void* address, size_t bytes) {
  rfn::cuda_on_host::access(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  rfn::cuda_on_host::access(address, bytes, true, __builtin_return_address(0));
}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}

// Atomics of the C++ library in the same files (reference counts, statics); a kernel's go through kernel_language.h.
#define RFN_ATOMICS(bits, T)                                                                                        \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_and(volatile T* p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_or(volatile T* p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }   \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* e, T v, int, int) {                           \
    return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                         \
  }                                                                                                                 \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* e, T v, int, int) {                             \
    return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                         \
  }
RFN_ATOMICS(8, uint8_t)
RFN_ATOMICS(16, uint16_t)
RFN_ATOMICS(32, uint32_t)
RFN_ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // extern "C"
