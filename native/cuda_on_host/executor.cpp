#include "cuda_on_host/executor.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "cuda_on_host/memory.h"

#ifdef RFN_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

#define RFN_KERNEL_VARIABLE __thread __attribute__((tls_model("initial-exec")))
RFN_KERNEL_VARIABLE uint3 threadIdx;
RFN_KERNEL_VARIABLE uint3 blockIdx;
RFN_KERNEL_VARIABLE dim3 blockDim;
RFN_KERNEL_VARIABLE dim3 gridDim;
#undef RFN_KERNEL_VARIABLE

namespace rfn::cuda_on_host {

__thread __attribute__((tls_model("initial-exec"))) Executor* running_executor = nullptr;

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kCanary = 16;  // bytes after each static shared variable
constexpr size_t kStaticArena = 2 * kMaxStaticShared;
constexpr size_t kArena = kStaticArena + kPage + kMaxShared + kPage;
static_assert(kStaticArena % kPage == 0 && kMaxShared % kPage == 0 && kPage % kSharedAlignment == 0);

constexpr size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

std::string text_of(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

// One of the set bits of mask, by a random starting point.
int pick_bit(uint32_t mask, uint64_t random) {
  const int start = static_cast<int>(random & 31);
  const uint32_t turned = mask >> start | (start == 0 ? 0 : mask << (32 - start));
  return (__builtin_ctz(turned) + start) & 31;
}

}  // namespace

// ---- construction -------------------------------------------------------------------------------

Executor::Executor() : stacks_(kMaxThreads), threads_(kMaxThreads) {
  for (int i = 0; i < kMaxThreads; ++i) {
    Thread& thread = threads_[static_cast<size_t>(i)];
    thread.number = i;
    thread.lane = i % kWarpLanes;
    thread.warp = i / kWarpLanes;
  }
  void* memory = mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  shared_memory_ = static_cast<char*>(memory);
  dynamic_end_ = shared_memory_ + kArena - kPage;
  mprotect(shared_memory_ + kStaticArena, kPage, PROT_NONE);
  mprotect(dynamic_end_, kPage, PROT_NONE);
  std::memset(shared_memory_, kPoison, kStaticArena);
}

Executor::~Executor() {
  ASAN_UNPOISON_MEMORY_REGION(shared_memory_, kArena);
  munmap(shared_memory_, kArena);
}

// ---- one block ----------------------------------------------------------------------------------

Failure Executor::run(const Launch& launch, uint3 block, uint64_t order, const Settings& settings) {
  settings_ = &settings;
  prepare(launch, block, order);
  install_fault_handler();
  running_executor = this;
  Thread& first = *next();
  stacks_.give(first.fiber);
  prepare_fiber(first.fiber, entry);
  enter(first);
  ++statistics_.switches;
  switch_fiber(host_, first.fiber, false);
  running_executor = nullptr;
  if (fault_.signal != 0) failure_ = failure_of_fault();
  if (failure_.error == cudaSuccess) check_what_is_left();
  ++statistics_.blocks;
  statistics_.threads += static_cast<uint64_t>(count_);
  return std::move(failure_);
}

void Executor::prepare(const Launch& launch, uint3 block, uint64_t order) {
  launch_ = &launch;
  block_ = block;
  failure_ = {};
  fault_ = {};
  host_ = {};
  random_state_ = order | 1;
  const uint64_t seed = settings_->seed;
  order_ = seed == 0       ? Order::ascending
           : seed == 1     ? Order::descending
           : seed % 2 == 0 ? Order::random
                           : Order::priority;

  blockIdx = block;
  blockDim = launch.block;
  gridDim = launch.grid;
  count_ = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  done_ = at_barrier_ = votes_ = 0;
  uint3 index{0, 0, 0};
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[static_cast<size_t>(i)];
    thread.fiber = {};
    thread.index = index;
    thread.state = State::not_waiting;
    thread.copies.clear();
    thread.copy_groups.clear();
    if (++index.x == launch.block.x) {
      index.x = 0;
      if (++index.y == launch.block.y) {
        index.y = 0;
        ++index.z;
      }
    }
  }
  for (auto& barrier : named_barriers_) barrier = {};
  for (auto& meetings : meetings_) meetings.clear();
  stacks_.take_back_all();

  make_all_ready();

  ASAN_UNPOISON_MEMORY_REGION(shared_memory_, kArena);
  std::memset(shared_memory_, kPoison, static_used_);
  static_used_ = 0;
  shared_variables_.clear();
  const size_t bytes = launch.dynamic_shared_bytes;
  dynamic_shared_ = dynamic_end_ - round_up(bytes, kSharedAlignment);
  std::memset(dynamic_shared_, kPoison, static_cast<size_t>(dynamic_end_ - dynamic_shared_));
  ASAN_POISON_MEMORY_REGION(shared_memory_, kStaticArena);
  ASAN_POISON_MEMORY_REGION(dynamic_shared_ + bytes, static_cast<size_t>(dynamic_end_ - dynamic_shared_) - bytes);
  if (race_checking()) {
    races_.begin_block(shared_memory_, kArena);
    last_begin_ = last_end_ = nullptr;
  }
}

void Executor::entry(Transfer transfer) {
  Executor& self = *running_executor;
  fiber_started(self.current_->fiber, transfer);
  try {
    self.run_current_and_successors();
  } catch (const BlockFailed&) {
  }
  self.leave_block();
}

void Executor::run_current_and_successors() {
  for (;;) {
    launch_->body();
    Thread& ended = *current_;
    ended.state = State::done;
    ++done_;
    Thread* following = next();
    if (following == nullptr) return;
    if (following->fiber.stack_bottom == nullptr) {  // has not started: runs on this very stack
      following->fiber.stack_bottom = ended.fiber.stack_bottom;
      following->fiber.stack_bytes = ended.fiber.stack_bytes;
      enter(*following);
      continue;
    }
    stacks_.take_back(ended.fiber);
    enter(*following);
    ++statistics_.switches;
    switch_fiber(ended.fiber, following->fiber, true);
    __builtin_unreachable();
  }
}

void Executor::leave_block() {
  Thread& last = *current_;
  current_ = nullptr;
  switch_fiber(last.fiber, host_, true);
  __builtin_unreachable();
}

void Executor::enter(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  ++statistics_.slices;
}

void Executor::fail(cudaError_t error, const std::string& what) {
  failure_ = {error, std::string(launch_->name) + ", " + where(*current_) + ": " + what};
  throw BlockFailed();  // unwinds this fiber; the others are abandoned, nothing on their stacks needs destroying
}

void Executor::leave_after_fault(const Fault& fault) {
  fault_ = fault;
  faulted_ = current_;
  leave_block();
}

Failure Executor::failure_of_fault() const {
  const auto failed = [&](cudaError_t error, const std::string& what) {
    return Failure{error, std::string(launch_->name) + ", " + where(*faulted_) + ": " + what};
  };
  const void* address = fault_.address;
  if (fault_.signal == SIGFPE) return failed(cudaErrorLaunchFailure, "integer division by zero");
  if (fault_.signal == SIGILL || fault_.signal == SIGTRAP)
    return failed(cudaErrorIllegalInstruction, "illegal instruction");
  if (stacks_.guards(address))
    return failed(cudaErrorIllegalAddress, "stack overflow: local variables need more than a thread's stack");
  const std::string access = fault_.write ? "write to " : "read of ";
  if (address == nullptr)
    return failed(cudaErrorMisalignedAddress, access + "a null, misaligned or impossible address");
  const char* at = static_cast<const char*>(address);
  if (at >= shared_memory_ && at < shared_memory_ + kArena) {
    return failed(cudaErrorIllegalAddress, access + "shared memory out of bounds, at byte " +
                                               std::to_string(at - dynamic_shared_) + " of " +
                                               std::to_string(launch_->dynamic_shared_bytes) + " dynamic bytes");
  }
  return failed(cudaErrorIllegalAddress, access + device_memory().describe(address));
}

// ---- schedule -----------------------------------------------------------------------------------

uint64_t Executor::random() {  // xorshift64
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return random_state_ * 0x2545f4914f6cdd1du >> 16;
}

bool Executor::coin() {
  if (order_ == Order::ascending) return false;
  if (order_ == Order::descending) return true;
  return random() & 1;
}

void Executor::draw_priorities() {
  const int warps = (count_ + kWarpLanes - 1) / kWarpLanes;
  for (int i = 0; i < warps; ++i)
    warp_of_rank_[static_cast<size_t>(i)] = static_cast<uint8_t>(order_ == Order::descending ? warps - 1 - i : i);
  if (order_ == Order::priority)
    for (size_t i = static_cast<size_t>(warps); i > 1; --i)
      std::swap(warp_of_rank_[i - 1], warp_of_rank_[random() % i]);
  for (int i = 0; i < warps; ++i) rank_of_warp_[warp_of_rank_[static_cast<size_t>(i)]] = static_cast<uint8_t>(i);
}

void Executor::make_all_ready() {
  draw_priorities();
  const int warps = (count_ + kWarpLanes - 1) / kWarpLanes, rest = count_ % kWarpLanes;
  ready_warps_ = warps == kMaxWarps ? ~0u : (1u << warps) - 1;
  for (int warp = 0; warp < warps; ++warp) ready_lanes_[static_cast<size_t>(warp)] = ~0u;
  if (rest != 0) ready_lanes_[static_cast<size_t>(warps - 1)] = (1u << rest) - 1;
}

void Executor::make_ready(Thread& thread) {
  ready_lanes_[static_cast<size_t>(thread.warp)] |= 1u << thread.lane;
  ready_warps_ |= 1u << rank_of_warp_[static_cast<size_t>(thread.warp)];
}

Thread* Executor::next() {
  if (ready_warps_ == 0) {
    if (done_ == count_) return nullptr;
    resolve();
  }
  const int rank = order_ == Order::random ? pick_bit(ready_warps_, random()) : __builtin_ctz(ready_warps_);
  const size_t warp = warp_of_rank_[static_cast<size_t>(rank)];
  uint32_t& lanes = ready_lanes_[warp];
  const int lane = order_ == Order::ascending    ? __builtin_ctz(lanes)
                   : order_ == Order::descending ? 31 - __builtin_clz(lanes)
                                                 : pick_bit(lanes, random());
  lanes &= ~(1u << lane);
  if (lanes == 0) ready_warps_ &= ~(1u << rank);
  return &threads_[warp * kWarpLanes + static_cast<size_t>(lane)];
}

void Executor::wait_for_turn() {
  Thread& self = *current_;
  Thread& to = *next();
  if (&to == &self) {
    ++statistics_.slices;
    return;
  }
  if (to.fiber.stack_bottom == nullptr) {
    stacks_.give(to.fiber);
    prepare_fiber(to.fiber, entry);
  }
  enter(to);
  ++statistics_.switches;
  switch_fiber(self.fiber, to.fiber, false);
}

void Executor::interleave() {
  if (order_ == Order::ascending || order_ == Order::descending) return;
  make_ready(*current_);
  wait_for_turn();
}

void Executor::resolve() {
  if (at_barrier_ == count_) return release_block_barrier();
  if (at_barrier_ > 0 && at_barrier_ + done_ == count_) {
    fail(cudaErrorLaunchFailure, "divergent barrier: " + std::to_string(done_) + " threads have ended while " +
                                     std::to_string(at_barrier_) + " wait at the block barrier of " +
                                     place(first_at_barrier_->site));
  }
  fail(cudaErrorLaunchFailure, "deadlock: " + waiting_threads());
}

// ---- shared memory ------------------------------------------------------------------------------

void* Executor::shared_variable(int number, size_t bytes, const char* name) {
  for (const auto& variable : shared_variables_)
    if (variable.number == number) return variable.address;
  size_t total = round_up(bytes, kSharedAlignment);
  for (const auto& variable : shared_variables_) total += round_up(variable.bytes, kSharedAlignment);
  if (total > kMaxStaticShared) {
    fail(cudaErrorLaunchFailure,
         "static shared memory: " + std::to_string(total) + " bytes with " + name + ", at most 49152");
  }
  const size_t limit = shared_memory_limit(settings_->capability);
  if (total + launch_->dynamic_shared_bytes > limit) {
    fail(cudaErrorLaunchFailure, "shared memory: " + std::to_string(total) + " static and " +
                                     std::to_string(launch_->dynamic_shared_bytes) +
                                     " dynamic bytes, this device has " + std::to_string(limit));
  }
  char* address = shared_memory_ + static_used_;
  static_used_ += round_up(bytes, kSharedAlignment) + kCanary;
  if (static_used_ > kStaticArena) fail(cudaErrorLaunchFailure, "too many static shared variables");
  ASAN_UNPOISON_MEMORY_REGION(address, bytes);
  shared_variables_.push_back({number, address, bytes, name});
  return address;
}

bool Executor::owns_shared(const void* address, size_t bytes) const {
  const char* at = static_cast<const char*>(address);
  if (at >= dynamic_shared_ && at + bytes <= dynamic_shared_ + launch_->dynamic_shared_bytes) return true;
  for (const auto& variable : shared_variables_)
    if (at >= variable.address && at + bytes <= variable.address + variable.bytes) return true;
  return false;
}

size_t Executor::shared_bytes() const { return kArena; }

std::string Executor::name_of_shared(const void* address) const {
  const char* at = static_cast<const char*>(address);
  const std::string bytes = " bytes of shared memory";
  for (const auto& v : shared_variables_) {
    if (at >= v.address && at < v.address + round_up(v.bytes, kSharedAlignment) + kCanary) {
      return "byte " + std::to_string(at - v.address) + " of " + v.name + ", " + std::to_string(v.bytes) + bytes;
    }
  }
  return "byte " + std::to_string(at - dynamic_shared_) + " of " + std::to_string(launch_->dynamic_shared_bytes) +
         " dynamic" + bytes;
}

void Executor::check_what_is_left() {
  ASAN_UNPOISON_MEMORY_REGION(shared_memory_, kArena);
  const auto intact = [](const char* from, const char* to) {
    return std::all_of(from, to, [](char byte) { return static_cast<uint8_t>(byte) == kPoison; });
  };
  for (const NamedBarrier& barrier : named_barriers_) {
    if (barrier.arrived == 0) continue;
    failure_ = {cudaErrorLaunchFailure, std::string(launch_->name) + ", block " + text_of(block_) +
                                            ": the block ended with " + std::to_string(barrier.arrived) + " of " +
                                            std::to_string(barrier.expected) +
                                            " threads arrived at the named barrier of " + place(barrier.site)};
    return;
  }
  std::string name;
  for (const auto& variable : shared_variables_) {
    if (!intact(variable.address + variable.bytes,
                variable.address + round_up(variable.bytes, kSharedAlignment) + kCanary))
      name = variable.name;
  }
  if (!intact(dynamic_shared_ + launch_->dynamic_shared_bytes, dynamic_end_)) name = "the dynamic part";
  if (!name.empty()) {
    failure_ = {cudaErrorIllegalAddress, std::string(launch_->name) + ", block " + text_of(block_) +
                                             ": wrote past the end of shared memory: " + name};
  }
}

// ---- words --------------------------------------------------------------------------------------

std::string Executor::where(const Thread& thread) const {
  return "block " + text_of(block_) + ", thread " + text_of(thread.index);
}

std::string Executor::place(Site site) const {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash != nullptr ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

}  // namespace rfn::cuda_on_host
