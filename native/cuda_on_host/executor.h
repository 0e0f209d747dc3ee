// Runs the threads of one block as fibers on one OS thread. One executor per OS thread; nothing in it is shared.
//
// A thread that never waits costs no switch: a fiber that finishes one thread starts the next one on the same stack.
// Switches go from thread to thread directly; the OS thread's own stack is entered again only when the block has ended
// or failed.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_on_host/control.h"
#include "cuda_on_host/fiber.h"
#include "cuda_on_host/kernel_language.h"
#include "cuda_on_host/launch.h"
#include "cuda_on_host/race.h"

namespace rfn::cuda_on_host {

inline constexpr int kWarpLanes = 32;
inline constexpr int kMaxThreads = 1024;
inline constexpr int kMaxWarps = kMaxThreads / kWarpLanes;
inline constexpr int kNamedBarriers = 16;
inline constexpr size_t kMaxStaticShared = 48 << 10;
inline constexpr size_t kMaxShared = 228 << 10;
inline constexpr uint8_t kPoison = 0xff;  // NaN in every float format, -1 in integers

struct Site {
  const char* file;
  int line;
  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

struct AsyncCopy {
  void* shared;
  const void* global;
  int bytes, source_bytes;
  bool has_landed;
};

// What a thread last waited for. A thread that is ready again keeps it: only when nobody is ready does it say who waits
// where.
enum class State : uint8_t { not_waiting, at_block_barrier, at_named_barrier, in_collective, done };

struct Thread;

// What lanes that meet do: exchange runs once, on the lane that arrives last, over the words of all lanes in mask.
struct Collective {
  const char* name;
  void (*exchange)(Thread* lanes, uint32_t mask);
};

struct Thread {
  Fiber fiber;
  uint3 index;
  int number, lane, warp;
  State state;
  Site site;      // where it waits
  uint32_t mask;  // lanes it waits for; named barrier: its number
  const Collective* collective;
  alignas(8) std::array<uint32_t, 12> words;  // what it brings to a collective, then what it takes away
  std::vector<AsyncCopy> copies;              // cp.async: issued and not landed, oldest first
  std::vector<size_t> copy_groups;            // for each committed group, how many of copies it ends after
};

// Why a block stopped.
struct Failure {
  cudaError_t error = cudaSuccess;
  std::string text;
};

// A signal of the running CUDA thread.
struct Fault {
  int signal = 0;
  const void* address = nullptr;
  bool write = false;
};

struct BlockFailed {};  // thrown by fail, caught where the fiber began

class Executor {
 public:
  Executor();
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Runs one block on the calling OS thread. `order` seeds this block's schedule; device limits come from settings.
  Failure run(const Launch& launch, uint3 block, uint64_t order, const Settings& settings);
  Statistics& statistics() { return statistics_; }

  // ---- called by the running CUDA thread ----
  Thread& current() { return *current_; }
  bool running() const { return current_ != nullptr; }
  Thread* lanes() { return &threads_[static_cast<size_t>(current_->warp) * kWarpLanes]; }
  const Settings& settings() const { return *settings_; }
  Votes block_barrier(bool predicate, Site site);
  void named_barrier(int barrier, int threads, bool wait, Site site);
  void meet(uint32_t mask, const Collective& collective, Site site);
  void interleave();  // random schedules: another thread may go first
  bool coin();
  void* dynamic_shared() { return dynamic_shared_; }
  void* shared_variable(int number, size_t bytes, const char* name);
  bool owns_shared(const void* address, size_t bytes) const;
  RaceChecker& races() { return races_; }
  // Leaves the block when the access, at `code`, is out of bounds or races; not by fail: instrumented code is not
  // unwound through.
  void check_access(const Thread& thread, const void* address, size_t bytes, RaceChecker::Access access,
                    const void* code = nullptr);
  [[noreturn]] void fail(cudaError_t error, const std::string& what);  // "<kernel>, block (..), thread (..): what"

  // Called where the signal handler lands, which is on a stack for nothing else: never returns, says what happened
  // later.
  void leave_after_fault(const Fault& fault);

 private:
  struct SharedVariable {
    int number;
    char* address;
    size_t bytes;
    const char* name;
  };
  struct Meeting {  // lanes that wait for the rest of their mask
    uint32_t mask, arrived;
    const Collective* collective;
    Site site;
  };
  struct NamedBarrier {
    int expected = 0, arrived = 0;
    Site site{};
    std::vector<Thread*> waiting;
  };
  enum class Order { ascending, descending, random, priority };

  static void entry(Transfer transfer);
  void prepare(const Launch& launch, uint3 block, uint64_t order);
  void run_current_and_successors();
  void make_ready(Thread& thread);
  void make_all_ready();
  Thread* next();  // a ready thread, no longer marked ready; nullptr: all have ended
  void resolve();  // nobody is ready: releases the block barrier or fails
  void release_block_barrier();
  void draw_priorities();
  void wait_for_turn();  // gives the OS thread to another one until this one is picked
  void enter(Thread& thread);
  void leave_block();           // for good
  size_t shared_bytes() const;  // from shared_memory_ on, guard pages included
  std::string name_of_shared(const void* address) const;
  static std::string code_place(const void* code);
  Failure failure_of_fault() const;
  void check_what_is_left();  // of a block that ended well: bytes between shared variables, named barriers
  uint64_t random();
  std::string where(const Thread& thread) const;
  std::string place(Site site) const;
  std::string waiting_threads() const;

  const Settings* settings_ = nullptr;
  const Launch* launch_ = nullptr;
  uint3 block_{};
  Order order_ = Order::ascending;
  uint64_t random_state_ = 1;
  Failure failure_;
  Fault fault_;
  Thread* faulted_ = nullptr;
  Statistics statistics_{};

  Stacks stacks_;
  std::vector<Thread> threads_;
  Fiber host_;
  Thread* current_ = nullptr;
  int count_ = 0, done_ = 0;

  // Ready threads. ready_warps_ has a bit per rank, not per warp: the lowest rank goes first.
  std::array<uint32_t, kMaxWarps> ready_lanes_{};
  uint32_t ready_warps_ = 0;
  std::array<uint8_t, kMaxWarps> rank_of_warp_{}, warp_of_rank_{};

  int at_barrier_ = 0, votes_ = 0;
  Thread* first_at_barrier_ = nullptr;
  Votes released_votes_{};
  std::array<NamedBarrier, kNamedBarriers> named_barriers_;
  std::array<std::vector<Meeting>, kMaxWarps> meetings_;

  char* shared_memory_ = nullptr;  // static part, guard page, dynamic part, guard page
  char* dynamic_end_ = nullptr;
  char* dynamic_shared_ = nullptr;
  size_t static_used_ = 0;
  std::vector<SharedVariable> shared_variables_;

  RaceChecker races_;
  Allocation* last_ = nullptr;  // the allocation accessed last
  const char *last_begin_ = nullptr, *last_end_ = nullptr;
};

// The executor of this OS thread; only while it runs a block.
extern __thread __attribute__((tls_model("initial-exec"))) Executor* running_executor;

// Routes memory faults of the running CUDA thread to fail_access. Per OS thread; cheap when repeated.
void install_fault_handler();

}  // namespace rfn::cuda_on_host
