// Threads over fixed work items. The items, and the order in which their results are combined, never depend on the
// number of threads: that is why results have the same bits for any of them.
#pragma once
#include <omp.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <new>
#include <thread>

namespace rfn::cpu {

// Calls body(item, thread) once for each item in [0, items), thread in [0, threads).
template <class Body>
void parallel_for(int32_t threads, int64_t items, const Body& body) {
  if (items <= 1 || threads <= 1) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t item = 0; item < items; ++item) body(item, omp_get_thread_num());
}

// Phases of one parallel region: sets of items, some of which begin when others have ended. Every thread goes through
// the phases in the same order. Waiting is a short spin, since a region of its own for every phase would cost more than
// a short phase takes; a thread that comes late holds nobody up.
class Phases {
 public:
  struct alignas(64) Phase {
    std::atomic<int64_t> next{0}, done{0};
  };

  // memory: for `count` phases.
  Phases(Phase* memory, int64_t count) : phases_(memory) {
    for (int64_t i = 0; i < count; ++i) new (memory + i) Phase();
  }

  // Calls body(item) for the items of a phase that no other thread has taken, prepare() before the first.
  template <class Prepare, class Body>
  void work(int64_t phase, int64_t items, const Prepare& prepare, const Body& body) {
    Phase& p = phases_[phase];
    int64_t done = 0;
    for (int64_t item; (item = p.next.fetch_add(1, std::memory_order_relaxed)) < items; ++done) {
      if (done == 0) prepare();
      body(item);
    }
    p.done.fetch_add(done, std::memory_order_acq_rel);
  }

  template <class Body>
  void work(int64_t phase, int64_t items, const Body& body) {
    work(
        phase, items, [] {}, body);
  }

  // Returns when all items of a phase have ended.
  void wait(int64_t phase, int64_t items) const {
    for (int waited = 0; phases_[phase].done.load(std::memory_order_acquire) < items; ++waited) pause(waited);
  }

 private:
  // Tens of microseconds of spinning, then room for the threads that are waited for.
  static void pause(int waited) {
    constexpr int kSpins = 2048, kYields = 64;
    if (waited >= kSpins + kYields) return std::this_thread::sleep_for(std::chrono::microseconds(50));
    if (waited >= kSpins) return std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  Phase* const phases_;
};

// Calls body(thread) once on each of `threads` threads, fewer if there are not as many.
template <class Body>
void parallel_region(int32_t threads, const Body& body) {
  if (threads <= 1) return body(0);
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num());
}

}  // namespace rfn::cpu
