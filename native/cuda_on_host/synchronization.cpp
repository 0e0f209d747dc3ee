// How the threads of a block wait for each other: block barrier, named barriers, warp collectives.
#include <algorithm>
#include <cstdio>

#include "cuda_on_host/executor.h"

namespace rfn::cuda_on_host {
namespace {

std::string text_of(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

}  // namespace

// ---- barriers -----------------------------------------------------------------------------------

Votes Executor::block_barrier(bool predicate, Site site) {
  Thread& self = *current_;
  if (at_barrier_ == 0) {
    first_at_barrier_ = &self;
    votes_ = 0;
  } else if (!(first_at_barrier_->site == site)) {
    fail(cudaErrorLaunchFailure, "divergent barrier: this thread waits at " + place(site) + ", " +
                                     where(*first_at_barrier_) + " at " + place(first_at_barrier_->site));
  }
  self.state = State::at_block_barrier;
  self.site = site;
  votes_ += predicate;
  ++at_barrier_;
  wait_for_turn();
  return released_votes_;
}

void Executor::release_block_barrier() {
  released_votes_ = {votes_, votes_ == count_, votes_ > 0};
  at_barrier_ = 0;
  ++statistics_.barriers;
  races_.block_barrier();
  make_all_ready();
}

void Executor::named_barrier(int number, int threads, bool wait, Site site) {
  if (number < 1 || number >= kNamedBarriers || threads <= 0 || threads % kWarpLanes != 0 || threads > count_) {
    fail(cudaErrorLaunchFailure, "named barrier " + std::to_string(number) + " of " + std::to_string(threads) +
                                     " threads at " + place(site) +
                                     ": expected a number from 1 to 15 and a multiple of 32 threads within the block");
  }
  NamedBarrier& barrier = named_barriers_[static_cast<size_t>(number)];
  if (barrier.arrived == 0) {
    barrier.expected = threads;
    barrier.site = site;
  } else if (barrier.expected != threads) {
    fail(cudaErrorLaunchFailure, "named barrier " + std::to_string(number) + ": " + std::to_string(threads) +
                                     " threads expected at " + place(site) + ", " + std::to_string(barrier.expected) +
                                     " at " + place(barrier.site));
  }
  if (++barrier.arrived == barrier.expected) {
    ++statistics_.barriers;
    races_.named_barrier();
    barrier.arrived = 0;
    for (Thread* waiting : barrier.waiting) make_ready(*waiting);
    barrier.waiting.clear();
    interleave();
  } else if (wait) {
    Thread& self = *current_;
    self.state = State::at_named_barrier;
    self.site = site;
    self.mask = static_cast<uint32_t>(number);
    barrier.waiting.push_back(&self);
    wait_for_turn();
  }
}

void Executor::meet(uint32_t mask, const Collective& collective, Site site) {
  Thread& self = *current_;
  const uint32_t bit = 1u << self.lane;
  const int lanes_here = std::min(kWarpLanes, count_ - self.warp * kWarpLanes);
  if ((mask & bit) == 0) {
    fail(cudaErrorLaunchFailure,
         std::string(collective.name) + " at " + place(site) + ": the calling lane is not in its own mask");
  }
  if (lanes_here < kWarpLanes && mask >> lanes_here != 0) {
    fail(cudaErrorLaunchFailure,
         std::string(collective.name) + " at " + place(site) + ": the mask names lanes that the block does not have");
  }
  auto& meetings = meetings_[static_cast<size_t>(self.warp)];
  size_t i = 0;
  while (i < meetings.size() && meetings[i].mask != mask) ++i;
  if (i == meetings.size()) {
    meetings.push_back({mask, 0, &collective, site});
  } else if (meetings[i].collective != &collective || !(meetings[i].site == site)) {
    fail(cudaErrorLaunchFailure, std::string("divergent warp: this lane is in ") + collective.name + " at " +
                                     place(site) + ", others of its mask are in " + meetings[i].collective->name +
                                     " at " + place(meetings[i].site));
  }
  Meeting& meeting = meetings[i];
  meeting.arrived |= bit;
  if (meeting.arrived != mask) {
    self.state = State::in_collective;
    self.site = site;
    self.mask = mask;
    self.collective = &collective;
    wait_for_turn();
    return;
  }
  meeting = meetings.back();
  meetings.pop_back();
  ++statistics_.collectives;
  if (collective.exchange != nullptr) collective.exchange(lanes(), mask);
  if (mask != bit) {
    ready_lanes_[static_cast<size_t>(self.warp)] |= mask & ~bit;
    ready_warps_ |= 1u << rank_of_warp_[static_cast<size_t>(self.warp)];
    interleave();
  }
}

std::string Executor::waiting_threads() const {
  std::string text;
  int named = 0, waiting = 0;
  for (int i = 0; i < count_; ++i) {
    const Thread& thread = threads_[static_cast<size_t>(i)];
    if (thread.state == State::done) continue;
    ++waiting;
    if (named == 4) continue;
    ++named;
    char hexadecimal[16];
    std::snprintf(hexadecimal, sizeof hexadecimal, "0x%08x", thread.mask);
    text += "thread " + text_of(thread.index);
    text += thread.state == State::at_block_barrier ? " at the block barrier of "
            : thread.state == State::at_named_barrier
                ? " at named barrier " + std::to_string(thread.mask) + " of "
                : std::string(" in ") + thread.collective->name + " with mask " + hexadecimal + " of ";
    text += place(thread.site) + "; ";
  }
  text += std::to_string(waiting) + " wait, " + std::to_string(done_) + " have ended";
  return text;
}

}  // namespace rfn::cuda_on_host
