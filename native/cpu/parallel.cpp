// The threads of the CPU backend: workers of the whole process, made when they are first needed, that help the calls
// that are running. docs/decisions/0007 says why they are our own.
//
// A call publishes a job with some places, wakes workers, and works itself. A worker takes a place, runs the job's
// body, and counts itself finished. When the caller has ended its own part it closes the places that nobody took, and
// waits for those that were taken. Nothing here allocates, locks or fails: without workers the caller does everything.
#include "cpu/parallel.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <exception>
#include <new>

namespace rfn::cpu {
namespace {

constexpr int32_t kMostJobs = 64;       // regions that have helpers at a time, one bit each
constexpr int32_t kMostWorkers = 4096;  // of all regions together
constexpr size_t kStackBytes = size_t{2} << 20;
// How long a thread waits awake before it sleeps. Waking takes about as long, so a wait costs at most twice what it
// must; between the regions of a training step there are mostly a few microseconds.
constexpr std::chrono::microseconds kSpin(100);

// One parallel region. Lives for ever and is used by one caller after the other, so that a late worker finds no freed
// memory, only a job without places.
struct alignas(64) Job {
  std::atomic<uint32_t> places{0};    // helpers that may still join
  std::atomic<uint32_t> finished{0};  // helpers that joined and have ended
  std::atomic<uint32_t> wake_at{0};   // value of finished that the caller sleeps for, 0: it is awake
  // Written before places and read after one was taken:
  uint32_t helpers = 0;
  void (*body)(const void* closure, int32_t thread) = nullptr;
  const void* closure = nullptr;
  std::exception_ptr* failure = nullptr;  // the caller's; the first to fail writes it
  std::atomic<bool> failed{false};
};

struct Pool {
  std::atomic<uint64_t> used{0};               // jobs that have a caller
  std::atomic<uint64_t> open{0};               // jobs that may have places
  std::atomic<uint32_t> workers{0};            // threads that were made
  std::atomic<uint32_t> wanted{0};             // helpers that the running regions ask for
  std::atomic<bool> making{false};             // one caller makes workers at a time
  alignas(64) std::atomic<uint32_t> epoch{0};  // counts published jobs; waiting workers watch it
  alignas(64) std::atomic<uint32_t> spinning{0};
  std::atomic<uint32_t> sleeping{0};
  Job jobs[kMostJobs];
};

// Has no destructor: workers outlive every static object.
Pool pool;

// A child process has the forking thread alone. Its pool is as new, and it makes workers of its own.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { new (&pool) Pool(); });

// Sleeps while the word has the value, or returns at once. May return early.
void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  static_assert(sizeof(word) == sizeof(uint32_t), "the kernel reads the word itself");
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake(std::atomic<uint32_t>& word, uint32_t threads) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
}

// Waits awake until ready() or for kSpin; returns ready().
template <class Ready>
bool spin(const Ready& ready) {
  constexpr int kPausesPerLook = 16;  // at the clock
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (ready()) return true;
      spin_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

void run(Job& job, int32_t thread) {
  try {
    job.body(job.closure, thread);
  } catch (...) {
    if (!job.failed.exchange(true, std::memory_order_relaxed)) *job.failure = std::current_exception();
  }
}

// Takes part in a job if it has a place.
bool help(Job& job) {
  uint32_t places = job.places.load(std::memory_order_relaxed);
  do {
    if (places == 0) return false;
  } while (!job.places.compare_exchange_weak(places, places - 1, std::memory_order_acquire, std::memory_order_relaxed));
  run(job, static_cast<int32_t>(job.helpers - places + 1));
  // From here on the job may be another caller's; waking that one early does no harm.
  if (job.finished.fetch_add(1) + 1 == job.wake_at.load()) wake(job.finished, 1);
  return true;
}

void wait_for_job(uint32_t seen) {
  pool.spinning.fetch_add(1);
  const bool changed = spin([&] { return pool.epoch.load(std::memory_order_relaxed) != seen; });
  pool.spinning.fetch_sub(1);
  if (changed) return;
  pool.sleeping.fetch_add(1);
  sleep_while(pool.epoch, seen);
  pool.sleeping.fetch_sub(1);
}

void* work(void*) {
  for (;;) {
    const uint32_t seen = pool.epoch.load();
    bool helped = false;
    for (uint64_t open = pool.open.load(); open != 0; open &= open - 1) {
      helped |= help(pool.jobs[__builtin_ctzll(open)]);
    }
    if (!helped) wait_for_job(seen);
  }
}

// Makes workers until there are `wanted`, or the system refuses one.
void make_workers(uint32_t wanted) {
  wanted = std::min<uint32_t>(wanted, kMostWorkers);
  if (pool.workers.load(std::memory_order_relaxed) >= wanted || pool.making.exchange(true)) return;
  // The process's signals are for its own threads, but for those that a thread causes itself.
  sigset_t blocked, before;
  sigfillset(&blocked);
  for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF}) sigdelset(&blocked, own);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) == 0) {
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    pthread_t thread;
    while (pool.workers.load(std::memory_order_relaxed) < wanted &&
           pthread_create(&thread, &attributes, work, nullptr) == 0) {
      pool.workers.fetch_add(1, std::memory_order_relaxed);
    }
    pthread_attr_destroy(&attributes);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pool.making.store(false);
}

// Offers a job to workers, and wakes as many as do not watch already.
void publish(Job& job, uint64_t bit) {
  job.places.store(job.helpers, std::memory_order_release);
  pool.open.fetch_or(bit);
  make_workers(pool.wanted.fetch_add(job.helpers) + job.helpers);
  pool.epoch.fetch_add(1);
  const uint32_t spinning = pool.spinning.load();
  if (spinning < job.helpers && pool.sleeping.load() > 0) wake(pool.epoch, job.helpers - spinning);
}

// Returns when every helper that joined has ended, and lets no other join.
void close(Job& job, uint64_t bit) {
  pool.open.fetch_and(~bit);
  const uint32_t joined = job.helpers - job.places.exchange(0);
  pool.wanted.fetch_sub(job.helpers);
  const auto ended = [&] { return job.finished.load() == joined; };
  if (ended() || spin(ended)) return;
  job.wake_at.store(joined);
  for (uint32_t finished; (finished = job.finished.load()) != joined;) sleep_while(job.finished, finished);
}

// The bit of a job that no call uses, taken for this one; 0: there is none.
uint64_t take_job() {
  uint64_t used = pool.used.load(std::memory_order_relaxed), bit = 0;
  do {
    bit = ~used & (used + 1);
    if (bit == 0) return 0;
  } while (!pool.used.compare_exchange_weak(used, used | bit, std::memory_order_acquire, std::memory_order_relaxed));
  return bit;
}

}  // namespace

void run_on_threads(int32_t threads, void (*body)(const void* closure, int32_t thread), const void* closure) {
  const uint64_t bit = threads > 1 ? take_job() : 0;
  if (bit == 0) return body(closure, 0);
  std::exception_ptr failure;
  Job& job = pool.jobs[__builtin_ctzll(bit)];
  job.finished.store(0, std::memory_order_relaxed);
  job.wake_at.store(0, std::memory_order_relaxed);
  job.failed.store(false, std::memory_order_relaxed);
  job.helpers = static_cast<uint32_t>(threads - 1);
  job.body = body;
  job.closure = closure;
  job.failure = &failure;
  publish(job, bit);
  run(job, 0);
  close(job, bit);
  pool.used.fetch_and(~bit, std::memory_order_release);
  if (failure) std::rethrow_exception(failure);
}

int32_t worker_count() { return static_cast<int32_t>(pool.workers.load(std::memory_order_relaxed)); }

}  // namespace rfn::cpu
