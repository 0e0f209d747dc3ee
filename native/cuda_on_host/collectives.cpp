// Barriers, warp collectives and atomics of kernel_language.h over the executor.
#include "cuda_on_host/executor.h"

namespace rfn::cuda_on_host {
namespace {

Executor& self() { return *running_executor; }

template <class F>
void each_lane(uint32_t mask, F f) {
  for (; mask != 0; mask &= mask - 1) f(__builtin_ctz(mask));
}

uint64_t word_of(const Thread& thread) {
  uint64_t value;
  std::memcpy(&value, thread.words.data(), sizeof value);
  return value;
}
void set_word(Thread& thread, uint64_t value) { std::memcpy(thread.words.data(), &value, sizeof value); }

// words: value (2), source lane (1)
void exchange_shuffle(Thread* lanes, uint32_t mask) {
  uint64_t values[kWarpLanes];
  each_lane(mask, [&](int l) { values[l] = word_of(lanes[l]); });
  each_lane(mask, [&](int l) { set_word(lanes[l], values[lanes[l].words[2]]); });
}
void exchange_ballot(Thread* lanes, uint32_t mask) {
  uint32_t ballot = 0;
  each_lane(mask, [&](int l) { ballot |= lanes[l].words[0] << l; });
  each_lane(mask, [&](int l) { lanes[l].words[0] = ballot; });
}
void exchange_match_any(Thread* lanes, uint32_t mask) {
  uint64_t values[kWarpLanes];
  each_lane(mask, [&](int l) { values[l] = word_of(lanes[l]); });
  each_lane(mask, [&](int l) {
    uint32_t equal = 0;
    each_lane(mask, [&](int other) { equal |= uint32_t{values[other] == values[l]} << other; });
    lanes[l].words[0] = equal;
  });
}
void exchange_match_all(Thread* lanes, uint32_t mask) {
  const uint64_t first = word_of(lanes[__builtin_ctz(mask)]);
  bool equal = true;
  each_lane(mask, [&](int l) { equal = equal && word_of(lanes[l]) == first; });
  each_lane(mask, [&](int l) { lanes[l].words[0] = equal ? mask : 0; });
}
template <class T, class F>
void exchange_reduce(Thread* lanes, uint32_t mask, F combine) {
  const int first = __builtin_ctz(mask);
  T total = static_cast<T>(lanes[first].words[0]);
  each_lane(mask & (mask - 1), [&](int l) { total = combine(total, static_cast<T>(lanes[l].words[0])); });
  each_lane(mask, [&](int l) { lanes[l].words[0] = static_cast<uint32_t>(total); });
}
#define RFN_REDUCTION(name, T, expression)                                     \
  void name(Thread* lanes, uint32_t mask) {                                    \
    exchange_reduce<T>(lanes, mask, [](T a, T b) -> T { return expression; }); \
  }
RFN_REDUCTION(reduce_add, uint32_t, a + b)
RFN_REDUCTION(reduce_and, uint32_t, a& b)
RFN_REDUCTION(reduce_or, uint32_t, a | b)
RFN_REDUCTION(reduce_xor, uint32_t, a ^ b)
RFN_REDUCTION(reduce_min, uint32_t, a < b ? a : b)
RFN_REDUCTION(reduce_max, uint32_t, a < b ? b : a)
RFN_REDUCTION(reduce_min_signed, int32_t, a < b ? a : b)
RFN_REDUCTION(reduce_max_signed, int32_t, a < b ? b : a)
#undef RFN_REDUCTION

void exchange_warp_barrier(Thread* lanes, uint32_t mask) {
  if (race_checking()) self().races().warp_barrier(lanes, mask);
}

constexpr Collective kWarpBarrier{"__syncwarp", exchange_warp_barrier};
constexpr Collective kBallot{"a vote (__ballot_sync, __any_sync, __all_sync)", exchange_ballot};
constexpr Collective kMatchAny{"__match_any_sync", exchange_match_any};
constexpr Collective kMatchAll{"__match_all_sync", exchange_match_all};
constexpr Collective kShuffles[] = {{"__shfl_sync", exchange_shuffle},
                                    {"__shfl_up_sync", exchange_shuffle},
                                    {"__shfl_down_sync", exchange_shuffle},
                                    {"__shfl_xor_sync", exchange_shuffle}};
// By Reduction; signed minimum and maximum behind them.
constexpr Collective kReductions[] = {
    {"__reduce_add_sync", reduce_add},        {"__reduce_min_sync", reduce_min},
    {"__reduce_max_sync", reduce_max},        {"__reduce_and_sync", reduce_and},
    {"__reduce_or_sync", reduce_or},          {"__reduce_xor_sync", reduce_xor},
    {"__reduce_min_sync", reduce_min_signed}, {"__reduce_max_sync", reduce_max_signed}};

}  // namespace

void block_barrier(const char* file, int line) { self().block_barrier(false, {file, line}); }
Votes block_vote(bool predicate, const char* file, int line) { return self().block_barrier(predicate, {file, line}); }
void warp_barrier(uint32_t mask, const char* file, int line) { self().meet(mask, kWarpBarrier, {file, line}); }
void fence() { self().interleave(); }
void trap(const char* file, int line) {
  self().fail(cudaErrorIllegalInstruction, std::string("trap at ") + file + ":" + std::to_string(line));
}
void failed_assertion(const char* condition, const char* file, int line) {
  self().fail(cudaErrorAssert,
              std::string("assertion failed at ") + file + ":" + std::to_string(line) + ": " + condition);
}

uint64_t shuffle(uint32_t mask, uint64_t value, Shuffle kind, int argument, int width, const char* file, int line) {
  Thread& thread = self().current();
  const auto fail = [&](const std::string& what) {
    self().fail(cudaErrorLaunchFailure,
                kShuffles[static_cast<int>(kind)].name + what + " at " + file + ":" + std::to_string(line));
  };
  if (width < 1 || width > kWarpLanes || (width & (width - 1)) != 0) fail(": width " + std::to_string(width));
  const int lane = thread.lane, segment = lane & ~(width - 1), end = segment + width;
  int source = lane;
  switch (kind) {
    case Shuffle::index:
      source = segment + (argument & (width - 1));
      break;
    case Shuffle::up:
      source = lane - argument < segment ? lane : lane - argument;
      break;
    case Shuffle::down:
      source = lane + argument >= end ? lane : lane + argument;
      break;
    case Shuffle::exclusive_or:
      source = (lane ^ argument) >= end ? lane : lane ^ argument;
      break;
  }
  if (source < 0 || (mask >> source & 1) == 0)
    fail(" reads lane " + std::to_string(source) + ", which is not in the mask,");
  set_word(thread, value);
  thread.words[2] = static_cast<uint32_t>(source);
  self().meet(mask, kShuffles[static_cast<int>(kind)], {file, line});
  return word_of(thread);
}

uint32_t ballot(uint32_t mask, bool predicate, const char* file, int line) {
  Thread& thread = self().current();
  thread.words[0] = predicate;
  self().meet(mask, kBallot, {file, line});
  return thread.words[0];
}

uint32_t match_any(uint32_t mask, uint64_t value, const char* file, int line) {
  Thread& thread = self().current();
  set_word(thread, value);
  self().meet(mask, kMatchAny, {file, line});
  return thread.words[0];
}

uint32_t match_all(uint32_t mask, uint64_t value, const char* file, int line) {
  Thread& thread = self().current();
  set_word(thread, value);
  self().meet(mask, kMatchAll, {file, line});
  return thread.words[0];
}

uint32_t reduce(uint32_t mask, uint32_t value, Reduction kind, bool is_signed, const char* file, int line) {
  Thread& thread = self().current();
  if (self().settings().capability < 80)
    self().fail(cudaErrorIllegalInstruction, "__reduce_*_sync needs compute capability 8.0");
  thread.words[0] = value;
  const bool ordered = kind == Reduction::minimum || kind == Reduction::maximum;
  self().meet(mask, kReductions[static_cast<int>(kind) + (is_signed && ordered ? 5 : 0)], {file, line});
  return thread.words[0];
}

// ---- atomics: sequentially consistent, and a place where another thread may run first -----------

namespace {

void prepare_atomic(const void* address, size_t bytes) {
  self().interleave();
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    self().fail(cudaErrorMisalignedAddress, "atomic on a misaligned address");
  if (race_checking()) self().check_access(self().current(), address, bytes, RaceChecker::Access::atomic);
}

template <class T>
T atomic_operation(T* address, Atomic kind, T value) {
  prepare_atomic(address, sizeof(T));
  T old = __atomic_load_n(address, __ATOMIC_SEQ_CST), updated;
  do {
    switch (kind) {
      case Atomic::add:
        updated =
            static_cast<T>(static_cast<std::make_unsigned_t<T>>(old) + static_cast<std::make_unsigned_t<T>>(value));
        break;
      case Atomic::minimum:
        updated = value < old ? value : old;
        break;
      case Atomic::maximum:
        updated = old < value ? value : old;
        break;
      case Atomic::exchange:
        updated = value;
        break;
      case Atomic::bit_and:
        updated = old & value;
        break;
      case Atomic::bit_or:
        updated = old | value;
        break;
      default:
        updated = old ^ value;
        break;
    }
  } while (!__atomic_compare_exchange_n(address, &old, updated, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}

template <class T>
T compare_and_swap(T* address, T expected, T value) {
  prepare_atomic(address, sizeof(T));
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}

}  // namespace

uint32_t atomic(uint32_t* address, Atomic kind, uint32_t value) { return atomic_operation(address, kind, value); }
int32_t atomic(int32_t* address, Atomic kind, int32_t value) { return atomic_operation(address, kind, value); }
uint64_t atomic(uint64_t* address, Atomic kind, uint64_t value) { return atomic_operation(address, kind, value); }
uint32_t atomic_compare_and_swap(uint32_t* address, uint32_t expected, uint32_t value) {
  return compare_and_swap(address, expected, value);
}
uint64_t atomic_compare_and_swap(uint64_t* address, uint64_t expected, uint64_t value) {
  return compare_and_swap(address, expected, value);
}

// ---- what launch.h asks for ---------------------------------------------------------------------

void* dynamic_shared() { return self().dynamic_shared(); }
void* shared_variable(int number, size_t bytes, const char* name) {
  return self().shared_variable(number, bytes, name);
}
int new_shared_variable() {
  static int numbers = 0;
  return __atomic_fetch_add(&numbers, 1, __ATOMIC_RELAXED);
}

}  // namespace rfn::cuda_on_host
