#include "cuda_on_host/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "cuda_on_host/fiber.h"

#ifdef RFN_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace rfn::cuda_on_host {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kRangeBytes = size_t{1} << 40;  // of addresses; device memory never gets one a second time
constexpr size_t kRemembered = 512;              // freed allocations that stay unreadable
constexpr int kFill = 0xff;

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }
char* padding_end(const Allocation& a) { return a.mapping + a.mapping_bytes - kPage; }

// New zeroed pages, at an address if there is one; nullptr: the host has no more.
char* map(char* begin, size_t bytes, int protection) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (begin == nullptr ? 0 : MAP_FIXED);
  void* mapped = mmap(begin, bytes, protection, flags, -1, 0);
  return mapped == MAP_FAILED ? nullptr : static_cast<char*>(mapped);
}

bool filled(const char* from, const char* to) {
  // Of a thousand allocations after every kernel, so in blocks.
  static const std::vector<char> fill(kPage, static_cast<char>(kFill));
  for (; to - from > static_cast<ptrdiff_t>(kPage); from += kPage)
    if (std::memcmp(from, fill.data(), kPage) != 0) return false;
  return std::memcmp(from, fill.data(), static_cast<size_t>(to - from)) == 0;
}

const char* name_of(MemoryKind kind) {
  return kind == MemoryKind::device   ? "device memory"
         : kind == MemoryKind::pinned ? "pinned memory"
                                      : "registered memory";
}

}  // namespace

Memory::~Memory() { free_all(); }

void* Memory::allocate(MemoryKind kind, size_t bytes, size_t alignment, int64_t number) {
  const size_t content = round_up(bytes, alignment), middle = round_up(content, kPage),
               mapping_bytes = middle + 2 * kPage;
  const bool device = kind == MemoryKind::device;
  char* mapping = device ? map_device(mapping_bytes) : map(nullptr, mapping_bytes, PROT_NONE);
  if (mapping == nullptr) return nullptr;
  if (map(mapping + kPage, middle, PROT_READ | PROT_WRITE) == nullptr) {
    if (!device) munmap(mapping, mapping_bytes);
    return nullptr;
  }
  std::memset(mapping + kPage, kFill, middle);
  if (device && !device_accessible_) mprotect(mapping + kPage, middle, PROT_NONE);
  char* begin = mapping + kPage + (middle - content);
  const Allocation allocation{kind, number, begin, bytes, mapping, mapping_bytes, nullptr, 0};
  ASAN_POISON_MEMORY_REGION(mapping + kPage, static_cast<size_t>(begin - mapping) - kPage);
  ASAN_POISON_MEMORY_REGION(begin + bytes, static_cast<size_t>(padding_end(allocation) - begin) - bytes);
  live_.emplace(reinterpret_cast<uintptr_t>(begin), allocation);
  if (device) device_bytes_ += bytes;
  return begin;
}

void Memory::add_registered(void* begin, size_t bytes, int64_t number) {
  live_.emplace(reinterpret_cast<uintptr_t>(begin),
                Allocation{MemoryKind::registered, number, static_cast<char*>(begin), bytes, nullptr, 0, nullptr, 0});
}

bool Memory::free(MemoryKind kind, void* begin) {
  const auto found = live_.find(reinterpret_cast<uintptr_t>(begin));
  if (found == live_.end() || found->second.kind != kind) return false;
  const Allocation allocation = found->second;
  live_.erase(found);
  if (kind == MemoryKind::device) device_bytes_ -= allocation.bytes;
  if (allocation.mapping == nullptr) return true;
  if (kind == MemoryKind::device)
    map_nothing(allocation.mapping, allocation.mapping_bytes);
  else
    map(allocation.mapping, allocation.mapping_bytes, PROT_NONE);
  freed_.push_back(allocation);
  if (freed_.size() > kRemembered) {
    unmap(freed_.front());
    freed_.pop_front();
  }
  return true;
}

void Memory::unmap(const Allocation& allocation) {
  if (allocation.shadow != nullptr) munmap(allocation.shadow, allocation.shadow_bytes);
  ASAN_UNPOISON_MEMORY_REGION(allocation.mapping, allocation.mapping_bytes);
  if (allocation.kind != MemoryKind::device) munmap(allocation.mapping, allocation.mapping_bytes);
}

char* Memory::map_device(size_t bytes) {
  if (range_ == nullptr) {
    if (nothing_ < 0) nothing_ = memfd_create("nothing", MFD_CLOEXEC);
    void* range = mmap(nullptr, kRangeBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (nothing_ < 0 || range == MAP_FAILED) return nullptr;
    range_ = static_cast<char*>(range);
  }
  if (bytes > kRangeBytes - range_used_) return nullptr;
  char* begin = range_ + range_used_;
  if (!map_nothing(begin, bytes)) return nullptr;
  range_used_ += bytes;
  return begin;
}

bool Memory::map_nothing(char* begin, size_t bytes) {
  const int protection = device_accessible_ ? PROT_READ | PROT_WRITE : PROT_NONE;
  return mmap(begin, bytes, protection, MAP_SHARED | MAP_FIXED, nothing_, begin - range_) != MAP_FAILED;
}

void Memory::free_all() {
  for (const auto& entry : live_)
    if (entry.second.mapping != nullptr) unmap(entry.second);
  for (const auto& allocation : freed_) unmap(allocation);
  live_.clear();
  freed_.clear();
  device_bytes_ = 0;
  if (range_ != nullptr) munmap(range_, kRangeBytes);
  if (nothing_ >= 0) close(nothing_);
  range_ = nullptr;
  range_used_ = 0;
  nothing_ = -1;
}

const Allocation* Memory::find(const void* address, size_t bytes) const {
  const auto at = reinterpret_cast<uintptr_t>(address);
  auto next = live_.upper_bound(at);
  if (next == live_.begin()) return nullptr;
  const Allocation& allocation = std::prev(next)->second;
  const size_t offset = at - reinterpret_cast<uintptr_t>(allocation.begin);
  return offset <= allocation.bytes && bytes <= allocation.bytes - offset ? &allocation : nullptr;
}

bool Memory::may_hold(const void* address) const {
  const char* at = static_cast<const char*>(address);
  const auto holds = [&](const Allocation& a) {
    return a.mapping != nullptr && at >= a.mapping && at < a.mapping + a.mapping_bytes;
  };
  const auto next = live_.upper_bound(reinterpret_cast<uintptr_t>(address));
  return (next != live_.end() && holds(next->second)) || (next != live_.begin() && holds(std::prev(next)->second)) ||
         std::any_of(freed_.begin(), freed_.end(), holds);
}

std::vector<Allocation> Memory::live() const {
  std::vector<Allocation> all;
  for (const auto& entry : live_) all.push_back(entry.second);
  return all;
}

std::string Memory::describe(const void* address) const {
  const char* at = static_cast<const char*>(address);
  const auto inside = [&](const Allocation& a) {
    return a.mapping != nullptr && at >= a.mapping && at < a.mapping + a.mapping_bytes;
  };
  const auto name = [&](const Allocation& a) {
    return std::to_string(a.bytes) + " bytes of " + name_of(a.kind) + " (object " + std::to_string(a.number) + ")";
  };
  for (const auto& entry : live_) {
    const Allocation& a = entry.second;
    if (!inside(a)) continue;
    if (at < a.begin) return "global memory, " + std::to_string(a.begin - at) + " bytes before " + name(a);
    const bool past = at >= a.begin + a.bytes;
    return "global memory at byte " + std::to_string(at - a.begin) + (past ? ", past the end of " : " of ") + name(a);
  }
  for (const auto& a : freed_)
    if (inside(a)) return "freed memory at byte " + std::to_string(at - a.begin) + " of " + name(a);
  char text[32];
  std::snprintf(text, sizeof text, "%p", address);
  return std::string("address ") + text + ", which was never allocated";
}

std::string Memory::overrun() const {
  for (const auto& entry : live_) {
    const Allocation& a = entry.second;
    if (a.kind != MemoryKind::device) continue;
    ASAN_UNPOISON_MEMORY_REGION(a.begin + a.bytes, static_cast<size_t>(padding_end(a) - a.begin) - a.bytes);
    ASAN_UNPOISON_MEMORY_REGION(a.mapping + kPage, static_cast<size_t>(a.begin - a.mapping) - kPage);
    const bool before = !filled(a.mapping + kPage, a.begin), after = !filled(a.begin + a.bytes, padding_end(a));
    ASAN_POISON_MEMORY_REGION(a.begin + a.bytes, static_cast<size_t>(padding_end(a) - a.begin) - a.bytes);
    ASAN_POISON_MEMORY_REGION(a.mapping + kPage, static_cast<size_t>(a.begin - a.mapping) - kPage);
    if (before || after) {
      return std::string("wrote ") + (before ? "before" : "past the end of") + " " + std::to_string(a.bytes) +
             " bytes of device memory (object " + std::to_string(a.number) + ")";
    }
  }
  return "";
}

void Memory::set_device_accessible(bool accessible) {
  if (accessible == device_accessible_) return;
  device_accessible_ = accessible;
  if (range_used_ > 0) mprotect(range_, range_used_, accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
}

}  // namespace rfn::cuda_on_host
