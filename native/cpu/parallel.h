// Threads over fixed work items. The items, and the order in which their results are combined, never depend on the
// number of threads: that is why results have the same bits for any of them, and for fewer than were asked for.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <new>
#include <thread>

namespace rfn::cpu {

// Calls body(closure, thread) with thread 0 on the calling thread and with 1 to threads - 1 on others, each once. There
// are fewer others when they are busy in other calls or the system grants no more threads; the call returns when all
// that began have ended. An exception of body ends its thread's part, and one of them is thrown again here.
void run_on_threads(int32_t threads, void (*body)(const void* closure, int32_t thread), const void* closure);

// The number of threads that wait for work or do it, beside the callers. They live as long as the process.
int32_t worker_count();

// Calls body(thread) once on each of at most `threads` threads; thread 0 is the calling one.
template <class Body>
void parallel_region(int32_t threads, const Body& body) {
  if (threads <= 1) return body(0);
  run_on_threads(
      threads, [](const void* closure, int32_t thread) { (*static_cast<const Body*>(closure))(thread); }, &body);
}

// Calls body(item, thread) once for each item in [0, items), thread in [0, threads).
template <class Body>
void parallel_for(int32_t threads, int64_t items, const Body& body) {
  alignas(64) std::atomic<int64_t> next{0};
  parallel_region(static_cast<int32_t>(std::min<int64_t>(threads, items)), [&](int32_t thread) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(item, thread);
  });
}

// Tells the processor that this thread spins.
inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
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
    Taken taken{phases_[phase]};
    for (int64_t item; (item = taken.phase.next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      if (++taken.count == 1) prepare();
      body(item);
    }
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
  // Items of a phase that this thread took. They count as done when they end with an exception too, so that no other
  // thread waits for ever.
  struct Taken {
    Phase& phase;
    int64_t count = 0;
    ~Taken() { phase.done.fetch_add(count, std::memory_order_acq_rel); }
  };

  // Tens of microseconds of spinning, then room for the threads that are waited for.
  static void pause(int waited) {
    constexpr int kSpins = 2048, kYields = 64;
    if (waited >= kSpins + kYields) return std::this_thread::sleep_for(std::chrono::microseconds(50));
    if (waited >= kSpins) return std::this_thread::yield();
    spin_pause();
  }

  Phase* const phases_;
};

}  // namespace rfn::cpu
