// Arena: one layout function both counts a workspace (no base) and carves it (with a base), so the two can't disagree.
#pragma once
#include <cstdint>

namespace rfn {

class Arena {
 public:
  static constexpr int64_t kAlignment = 256;  // bytes; cache lines, vector loads and CUDA transactions all divide it

  Arena() = default;                                                                       // counting
  Arena(void* base, int64_t bytes) : base_(static_cast<char*>(base)), capacity_(bytes) {}  // carving

  // `count` elements, 256-byte aligned relative to the base; nullptr while counting. Sizes that overflow set
  // overflowed(). Large arrays are kept kAlignment apart: rows of equal index that lie a power of two apart would
  // compete for the same places of the caches.
  template <class T>
  T* take(int64_t count) {
    int64_t bytes = 0, end = 0;
    if (count < 0 || __builtin_mul_overflow(count, static_cast<int64_t>(sizeof(T)), &bytes) ||
        __builtin_add_overflow(bytes, bytes < kLarge ? kAlignment - 1 : 2 * kAlignment - 1, &bytes) ||
        __builtin_add_overflow(used_, bytes & ~(kAlignment - 1), &end)) {
      overflowed_ = true;
      return nullptr;
    }
    T* const place = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ = end;
    return place;
  }

  int64_t used() const { return used_; }
  bool overflowed() const { return overflowed_; }
  bool counting() const { return base_ == nullptr; }
  int64_t capacity() const { return capacity_; }

 private:
  static constexpr int64_t kLarge = 4096;

  char* base_ = nullptr;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
  bool overflowed_ = false;
};

}  // namespace rfn
