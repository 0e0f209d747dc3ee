// The threads of the CPU backend, compiled into the tests; also built by itself under the thread sanitizer.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

namespace rfn::cpu {
namespace {

// Plain memory, so that the thread sanitizer sees whether the end of a call follows everything in it.
void expect_each_item_once(int32_t threads, int64_t items) {
  std::vector<int32_t> runs(static_cast<size_t>(items), 0);
  std::vector<int32_t> thread_of(static_cast<size_t>(items), -1);
  parallel_for(threads, items, [&](int64_t item, int32_t thread) {
    ++runs[item];
    thread_of[item] = thread;
  });
  for (int64_t item = 0; item < items; ++item) {
    ASSERT_EQ(runs[item], 1) << "item " << item << " of " << items << ", " << threads << " threads";
    ASSERT_GE(thread_of[item], 0);
    ASSERT_LT(thread_of[item], std::max(threads, 1));
  }
}

TEST(Threads, ParallelFor_EachItemOnce) {
  for (const int32_t threads : {1, 2, 3, 8, 64}) {
    for (const int64_t items : {0, 1, 2, 7, 1000}) expect_each_item_once(threads, items);
  }
}

TEST(Threads, ParallelRegion_EachThreadAtMostOnceAndTheCallerAlways) {
  for (int run = 0; run < 200; ++run) {
    std::vector<std::atomic<int32_t>> calls(8);
    const std::thread::id caller = std::this_thread::get_id();
    parallel_region(8, [&](int32_t thread) {
      ++calls[thread];
      EXPECT_EQ(thread == 0, std::this_thread::get_id() == caller);
    });
    EXPECT_EQ(calls[0], 1);
    for (const auto& count : calls) EXPECT_LE(count, 1);
  }
}

TEST(Threads, ParallelRegion_HelpersComeWhenThereIsWork) {
  // Thread 0 waits until another thread is there: with no helper this would not end.
  std::atomic<bool> helped{false};
  parallel_region(2, [&](int32_t thread) {
    if (thread == 1) helped = true;
    while (!helped) std::this_thread::yield();
  });
  EXPECT_GE(worker_count(), 1);
}

TEST(Threads, SleepingWorkers_Wake) {
  for (int run = 0; run < 30; ++run) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than any worker waits awake
    std::atomic<bool> helped{false};
    parallel_region(2, [&](int32_t thread) {
      if (thread == 1) helped = true;
      while (!helped) std::this_thread::yield();
    });
  }
}

TEST(Threads, IdleWorkers_TakeNoTime) {
  expect_each_item_once(8, 1000);
  std::this_thread::sleep_for(std::chrono::milliseconds(10));  // longer than any worker waits awake
  const std::clock_t before = std::clock();                    // processor time of all threads
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_LT(std::clock() - before, CLOCKS_PER_SEC / 20);
}

TEST(Threads, SleepingCaller_Wakes) {
  for (int run = 0; run < 10; ++run) {
    int32_t written = 0;
    std::atomic<bool> begun{false};
    parallel_region(2, [&](int32_t thread) {
      if (thread == 0) {
        while (!begun) std::this_thread::yield();
        return;  // and then the caller waits for the other's two milliseconds
      }
      begun = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      written = 1;
    });
    ASSERT_EQ(written, 1);
  }
}

TEST(Threads, ManyCallersAtOnce_EachItemOnce) {
  constexpr int kCallers = 80;  // more than there are jobs
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([caller] {
      for (int run = 0; run < 20; ++run) expect_each_item_once(1 + (caller + run) % 5, 40);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(Threads, RegionsInsideRegions_EachItemOnce) {
  parallel_for(4, 8, [](int64_t, int32_t) { expect_each_item_once(3, 20); });
}

TEST(Threads, Exceptions_ReachTheCallerAndLeaveTheThreadsUsable) {
  for (int run = 0; run < 50; ++run) {
    EXPECT_THROW(parallel_for(4, 100,
                              [&](int64_t item, int32_t) {
                                if (item % 10 == run % 10) throw std::bad_alloc();
                              }),
                 std::bad_alloc);
    EXPECT_THROW(parallel_region(4, [](int32_t) { throw std::runtime_error("every thread"); }), std::runtime_error);
    expect_each_item_once(4, 100);
  }
}

// Rows of phases: an item of one phase adds to what the phase before left.
TEST(Threads, Phases_OneFollowsTheOther) {
  constexpr int64_t kPhases = 20, kItems = 7;
  for (const int32_t threads : {1, 2, 3, 8}) {
    for (int run = 0; run < 20; ++run) {
      std::vector<Phases::Phase> memory(kPhases);
      Phases phases(memory.data(), kPhases);
      std::vector<int64_t> values(kItems, 0);
      parallel_region(threads, [&](int32_t) {
        for (int64_t phase = 0; phase < kPhases; ++phase) {
          if (phase > 0) phases.wait(phase - 1, kItems);
          phases.work(phase, kItems, [&](int64_t item) { values[(item + phase) % kItems] += 1; });
        }
      });
      for (const int64_t value : values) ASSERT_EQ(value, kPhases);
    }
  }
}

TEST(Threads, PhasesWithAnException_HoldNobodyUp) {
  for (int run = 0; run < 50; ++run) {
    std::vector<Phases::Phase> memory(2);
    Phases phases(memory.data(), 2);
    EXPECT_THROW(parallel_region(3,
                                 [&](int32_t) {
                                   phases.work(0, 5, [](int64_t item) {
                                     if (item == 2) throw std::bad_alloc();
                                   });
                                   phases.wait(0, 3);
                                   phases.work(1, 5, [](int64_t) {});
                                 }),
                 std::bad_alloc);
  }
}

}  // namespace
}  // namespace rfn::cpu
