// Finds accesses of two threads to one place, at least one of them a write, that no barrier orders: whatever the
// schedule, and whether or not the result is wrong. Sees every access of kernels compiled with -fsanitize=thread, whose
// calls (__tsan_read4 and so on) land here; the sanitizer's own runtime is not linked.
//
// Order between threads of a block: block barriers; among lanes of a warp also __syncwarp (not shuffles and votes: they
// order no memory). Between blocks of a launch there is none, whether or not one happens to run before the other.
// Atomics do not race with each other.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <cuda_runtime.h>

namespace rfn::cuda_on_host {

class Executor;
struct Thread;
struct Allocation;

// True once code compiled with -fsanitize=thread is in the process.
bool race_checking();

class RaceChecker {
 public:
  enum class Access { read, write, atomic, async_write };  // async_write: cp.async, in flight until landed

  void begin_launch();
  void begin_block(const void* shared, size_t shared_bytes);
  void block_barrier() { ++interval_; }
  void named_barrier() { named_barrier_interval_ = interval_; }
  void warp_barrier(Thread* lanes, uint32_t mask);

  // What is wrong with the access, or "".
  std::string shared_access(const Thread& thread, const void* address, size_t bytes, Access access);
  std::string global_access(const Thread& thread, Allocation& allocation, const void* address, size_t bytes,
                            Access access);
  void landed(const Thread& thread, const void* shared, size_t bytes);

 private:
  // One per two bytes. `interval` counts block barriers and blocks over the life of the process, so that nothing is
  // ever cleared.
  struct Cell {
    uint32_t write_interval, read_interval;
    uint32_t read_lanes;  // of read_warp
    uint16_t write_clock, read_clock;
    uint16_t writer : 10, write_halves : 2, atomic : 1, in_flight : 1;
    uint8_t read_warp;
    uint8_t read_halves : 2, many_warps : 1, earlier_block : 1;
  };
  static constexpr int kLanes = 32, kThreads = 1024, kClocks = kLanes + 1;

  enum class Problem {
    None,
    InFlight,
    AfterWrite,
    AfterWriteOfBlock,
    NeverWritten,
    AfterReadOfWarp,
    AfterReadOfLane,
    AfterReadOfBlock,
  };
  Problem check(const Thread& thread, Cell& cell, unsigned halves, Access access, bool shared);
  void remember_read(const Thread& thread, Cell& cell, unsigned halves);
  std::string walk(const Thread& thread, Cell* cells, size_t offset, size_t bytes, Access access, bool shared);
  static std::string words(Problem problem, const Cell& cell, Access access);
  bool knows(const Thread& thread, int other,
             uint16_t clock);    // `thread` comes after what `other` did at clock, in this interval
  uint16_t* clocks(int thread);  // what it knows of its warp's lanes, itself included; last: most of others

  uint32_t interval_ = 1, launch_ = 1, block_ = 1;  // now; when the launch, the block began
  uint32_t named_barrier_interval_ =
      0;  // the last interval with a named barrier: order between warps is not followed there
  const char* shared_ = nullptr;
  std::vector<Cell> shared_cells_;
  std::vector<uint16_t> clocks_ = std::vector<uint16_t>(kThreads * kClocks);
  std::vector<uint32_t> clocks_interval_ = std::vector<uint32_t>(kThreads);
};

}  // namespace rfn::cuda_on_host
