// Device and pinned memory of the simulated device.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

namespace rfn::cuda_on_host {

enum class MemoryKind { device, pinned, registered };

struct Allocation {
  MemoryKind kind;
  int64_t number;
  char* begin;  // the caller's bytes
  size_t bytes;
  char* mapping;  // guard page, padding, the caller's bytes, padding, guard page; nullptr for registered memory
  size_t mapping_bytes;
  void* shadow = nullptr;  // what race.h knows of it
  size_t shadow_bytes = 0;
};

// Allocations lie between guard pages, as close to the end as alignment allows, and begin as NaN. Padding keeps its
// fill or someone wrote out of bounds. Freed memory stays unreadable for a while instead of being used again. Not
// locked: the runtime is.
class Memory {
 public:
  ~Memory();
  void* allocate(MemoryKind kind, size_t bytes, size_t alignment, int64_t number);  // nullptr: the host has no more
  void add_registered(void* begin, size_t bytes, int64_t number);
  bool free(MemoryKind kind, void* begin);  // false: no such allocation
  void free_all();

  const Allocation* find(const void* address, size_t bytes) const;  // the live allocation that holds all of it
  Allocation* find(const void* address, size_t bytes) {
    return const_cast<Allocation*>(static_cast<const Memory*>(this)->find(address, bytes));
  }
  bool may_hold(const void* address) const;  // false: certainly no device memory, nor a guard page of some
  size_t device_bytes() const { return device_bytes_; }
  std::vector<Allocation> live() const;

  std::string describe(const void* address) const;  // "global memory, 4 bytes past the end of ..."
  std::string overrun() const;                      // an allocation whose padding was written, or ""
  void set_device_accessible(bool accessible);

 private:
  void unmap(const Allocation& allocation);
  char* map_device(size_t bytes);
  bool map_nothing(char* begin, size_t bytes);

  std::map<uintptr_t, Allocation> live_;  // by begin
  std::deque<Allocation> freed_;
  size_t device_bytes_ = 0;

  // Device memory lies in one range of addresses, so that one system call hides or shows all of it; a call for each
  // allocation took most of the time of tests with a thousand of them. What must never be touched in the range (guard
  // pages and freed memory) is mapped from an empty file: touching it is a fault, whatever its protection says.
  char* range_ = nullptr;
  size_t range_used_ = 0;
  int nothing_ = -1;  // the empty file
  bool device_accessible_ = true;
};

// Of the process's one simulated device; the runtime owns it.
Memory& device_memory();
size_t shared_memory_limit(int capability);  // per block, static and dynamic, opted in

}  // namespace rfn::cuda_on_host
