// Stacks with guard pages and the switch between them.
#pragma once
#include <cstddef>
#include <vector>

#include <boost/context/detail/fcontext.hpp>

#if defined(__SANITIZE_ADDRESS__)
#define RFN_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RFN_ADDRESS_SANITIZER 1
#endif
#endif

namespace rfn::cuda_on_host {

// Something that can be switched away from and back to.
struct Fiber {
  void* context = nullptr;  // where it goes on; nullptr: it has not started
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
  void* sanitizer_state = nullptr;
};

// Leaves `from` (for good when it has ended) and goes on in `to`. Returns when something switches to `from`.
void switch_fiber(Fiber& from, Fiber& to, bool from_has_ended);
// Makes `fiber`, which has a stack, start at entry. The entry calls fiber_started first.
using Transfer = boost::context::detail::transfer_t;
void prepare_fiber(Fiber& fiber, void (*entry)(Transfer));
void fiber_started(Fiber& self, Transfer transfer);

// Memory of n stacks. Each is preceded by a guard page; tops are staggered, or they would all share a few cache sets.
class Stacks {
 public:
  explicit Stacks(int count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  void give(Fiber& fiber);  // an unused stack; there is one as long as at most count are in use
  void take_back(const Fiber& fiber);
  void take_back_all();
  bool guards(const void* address) const;  // in the guard page of one of them

 private:
  char* memory_;
  size_t bytes_;
  int made_ = 0;  // stacks whose guard page exists
  std::vector<int> free_;
};

}  // namespace rfn::cuda_on_host
