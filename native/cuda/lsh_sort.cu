// Sorting positions by bucket: a stable counting sort, least significant digit first. A pass sorts by a digit of at
// most 8 bits, tile by tile:
//   histogram  counts[segment, digit, tile] = keys of the tile with that digit
//   scan       the exclusive prefix sum over (digit, tile) of a segment: where the tile's keys of that digit begin
//   scatter    begin + rank of the key among the tile's keys with its digit
// Work and memory grow with the tokens and not with the buckets: 32,768 buckets are two passes of counts[256, tiles].
//
// A block has a tile of kTile positions, each of its warps a contiguous run of it, which it walks 32 at a time: the
// lanes with the same digit find each other (match), and the warp's count of the digit so far plus the number of such
// lanes before it is a key's rank in the run. So ranks follow the order of the keys, whatever the schedule.
#include <algorithm>

#include "core/error.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "cuda/attention.h"
#include "cuda/counting_sort.h"
#include "cuda/device_math.cuh"

namespace rfn::cuda {
namespace {

constexpr int kDigitBits = 8;
constexpr int kMaximumDigits = 1 << kDigitBits;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kItems = 16;  // of a thread
constexpr int kTile = kThreads * kItems;
constexpr int kScanThreads = 1024;
constexpr int kScanItems = 4;  // of a thread at a time
constexpr int64_t kMostBlocks = INT32_MAX;

// One pass over one digit.
struct Pass {
  CountingSort sort;
  int64_t tiles;        // of a segment
  int shift, digits;    // digit = key >> shift & (digits - 1)
  const int32_t* from;  // [segments, from_length]: positions as the passes before have sorted them; null: in order
  int64_t from_length;
  int32_t* to;  // [segments, to_length]
  int64_t to_length;
  bool last;
  int32_t* counts;  // [segments, digits, tiles]
};

// A block's place in a pass, and what its threads read there.
struct Tile {
  const int32_t* keys;  // of the segment
  const int32_t* from;  // of the segment, or null
  int64_t segment, tile;
  int64_t first;  // the thread's first place in the segment's order
};
RFN_DEVICE Tile block_tile(const Pass& p) {
  Tile t;
  t.segment = blockIdx.x / p.tiles;
  t.tile = blockIdx.x % p.tiles;
  t.keys = p.sort.keys + (t.segment / p.sort.group * p.sort.group_stride + t.segment % p.sort.group) * p.sort.length;
  t.from = p.from == nullptr ? nullptr : p.from + t.segment * p.from_length;
  t.first = t.tile * kTile + threadIdx.x / 32 * (32 * kItems) + threadIdx.x % 32;
  return t;
}

// Position at place i of the order so far, and its digit; an i past the end has the digit `digits`, which no key has.
struct Entry {
  int32_t position, digit;
};
RFN_DEVICE Entry load(const Pass& p, const Tile& t, int64_t i) {
  if (i >= p.sort.length) return {0, p.digits};
  const int32_t position = t.from == nullptr ? static_cast<int32_t>(i) : t.from[i];
  const uint32_t key = min(static_cast<uint32_t>(t.keys[position]), static_cast<uint32_t>(p.sort.values - 1));
  return {position, static_cast<int32_t>(key >> p.shift) & (p.digits - 1)};
}

// Rank of the lane's digit among those of its warp since `counts` was zero. Lanes with the digit `digits` only take
// part in the match.
RFN_DEVICE int32_t rank_in_run(int32_t* counts, int32_t digit, int32_t digits) {
  const unsigned same = __match_any_sync(kFullWarp, digit), before = same & ((1u << threadIdx.x % 32) - 1u);
  const int32_t count = digit < digits ? counts[digit] : 0;
  __syncwarp();
  if (digit < digits && before == 0) counts[digit] = count + __popc(same);
  __syncwarp();
  return count + __popc(before);
}

RFN_DEVICE void clear(int32_t* counts, int32_t digits) {
  for (int32_t digit = threadIdx.x % 32; digit < digits; digit += 32) counts[digit] = 0;
  __syncwarp();
}

__global__ void __launch_bounds__(kThreads) sort_histogram_kernel(Pass p) {
  RFN_SHARED(counts, int32_t[kWarps][kMaximumDigits]);
  const Tile t = block_tile(p);
  int32_t* const mine = counts[threadIdx.x / 32];
  clear(mine, p.digits);
  int32_t digit[kItems];  // all of them first: loads do not cross the warp's meetings
#pragma unroll
  for (int item = 0; item < kItems; ++item) digit[item] = load(p, t, t.first + item * 32).digit;
#pragma unroll
  for (int item = 0; item < kItems; ++item) rank_in_run(mine, digit[item], p.digits);
  __syncthreads();
  for (int32_t d = threadIdx.x; d < p.digits; d += kThreads) {
    int32_t sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += counts[warp][d];
    p.counts[(t.segment * p.digits + d) * p.tiles + t.tile] = sum;
  }
}

// Exclusive prefix sum of each segment's n counts, in place. One block per segment.
__global__ void __launch_bounds__(kScanThreads) sort_scan_kernel(int32_t* counts, int64_t n) {
  RFN_SHARED(warp_sums, int32_t[2][kScanThreads / 32]);
  int32_t* const segment = counts + blockIdx.x * n;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto scan_warp = [&](int32_t x) {  // inclusive
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int32_t left = __shfl_up_sync(kFullWarp, x, step);
      if (lane >= step) x += left;
    }
    return x;
  };
  int32_t carry = 0;
  int turn =
      0;  // two sets of sums in turn: one barrier separates their writers from the readers of the turn before last
  for (int64_t begin = 0; begin < n; begin += kScanThreads * kScanItems, turn ^= 1) {
    const int64_t first = begin + threadIdx.x * kScanItems;
    int32_t item[kScanItems], sum = 0;
#pragma unroll
    for (int i = 0; i < kScanItems; ++i) {
      item[i] = first + i < n ? segment[first + i] : 0;
      sum += item[i];
    }
    const int32_t inclusive = scan_warp(sum);
    if (lane == 31) warp_sums[turn][warp] = inclusive;
    __syncthreads();
    const int32_t warps = scan_warp(warp_sums[turn][lane]);
    const int32_t before = __shfl_sync(kFullWarp, warps, max(warp - 1, 0));
    int32_t at = carry + (warp == 0 ? 0 : before) + inclusive - sum;
#pragma unroll
    for (int i = 0; i < kScanItems; ++i) {
      if (first + i < n) segment[first + i] = at;
      at += item[i];
    }
    carry += __shfl_sync(kFullWarp, warps, 31);
  }
}

__global__ void __launch_bounds__(kThreads, 3) sort_scatter_kernel(Pass p) {
  RFN_SHARED(begins, int32_t[kWarps][kMaximumDigits]);  // counts of the warps' runs, then where they begin
  const Tile t = block_tile(p);
  int32_t* const mine = begins[threadIdx.x / 32];
  clear(mine, p.digits);
  int32_t position[kItems], place[kItems];  // place: digit and, in the upper half, rank: both are less than 2^15
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const Entry entry = load(p, t, t.first + item * 32);
    position[item] = entry.position;
    place[item] = entry.digit;
  }
#pragma unroll
  for (int item = 0; item < kItems; ++item) place[item] |= rank_in_run(mine, place[item], p.digits) << 16;
  __syncthreads();
  for (int32_t digit = threadIdx.x; digit < p.digits; digit += kThreads) {
    int32_t begin = p.counts[(t.segment * p.digits + digit) * p.tiles + t.tile];
    for (int warp = 0; warp < kWarps; ++warp) {
      const int32_t count = begins[warp][digit];
      begins[warp][digit] = begin;
      begin += count;
    }
  }
  __syncthreads();
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int32_t digit = place[item] & 0xffff;
    if (digit >= p.digits) continue;
    const int32_t slot = mine[digit] + (place[item] >> 16);
    p.to[t.segment * p.to_length + slot] = position[item];
    if (p.last && p.sort.slot_of != nullptr) p.sort.slot_of[t.segment * p.sort.length + position[item]] = slot;
  }
}

// Slots behind the keys.
__global__ void __launch_bounds__(kThreads) sort_padding_kernel(CountingSort sort) {
  const int64_t padding = sort.sorted_length - sort.length;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < sort.segments * padding;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t slot = sort.length + i % padding;
    sort.sorted[i / padding * sort.sorted_length + slot] = static_cast<int32_t>(slot);
  }
}

__global__ void __launch_bounds__(kThreads)
    index_slots_kernel(const int32_t* sorted, int32_t* slot_of, int64_t segments, int64_t slots, int64_t length) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < segments * slots;
       i += int64_t{gridDim.x} * kThreads) {
    const int32_t position = sorted[i];
    if (position >= 0 && position < length) slot_of[i / slots * length + position] = static_cast<int32_t>(i % slots);
  }
}

unsigned stride_blocks(int64_t n) { return static_cast<unsigned>(std::min(div_up(n, kThreads), kMostBlocks)); }

int key_bits(int64_t values) {
  int bits = 1;
  while (((values - 1) >> bits) != 0) ++bits;
  return bits;
}

// Digits of equal width, so that few buckets have few counts.
struct Digits {
  int passes, bits;  // of a digit
};
Digits digits_of(int64_t values) {
  const int bits = key_bits(values), passes = static_cast<int>(div_up(bits, kDigitBits));
  return {passes, static_cast<int>(div_up(bits, passes))};
}

struct Scratch {
  int32_t* counts;  // [segments, digits, tiles]
  int32_t* swap;    // [segments, length]; more than one pass
};
Scratch layout(Arena& arena, int64_t segments, int64_t length, int64_t values) {
  const Digits digits = digits_of(values);
  return {arena.take<int32_t>((segments << digits.bits) * div_up(length, kTile)),
          arena.take<int32_t>(digits.passes > 1 ? segments * length : 0)};
}

CountingSort sort_of(const Attention& a, const AttentionScratch& scratch) {
  const int64_t rounds = a.rounds();
  const bool own = a.buckets != nullptr;
  return {a.sequence_heads() * rounds,
          a.length,
          bucket_count(a.options) + 1,
          own ? a.buckets + a.first_head * rounds * a.length : scratch.buckets,
          a.heads * rounds,
          (own ? a.all_heads : a.heads) * rounds,
          scratch.sorted,
          a.stored(),
          scratch.slot_of};
}

}  // namespace

int64_t counting_sort_bytes(int64_t segments, int64_t length, int64_t values) {
  Arena arena;
  layout(arena, segments, length, values);
  return arena.used();
}

rfn_status counting_sort(rfn_stream& stream, const CountingSort& sort, void* scratch) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const cudaStream_t native = native_stream(stream);
  Arena arena(scratch, counting_sort_bytes(sort.segments, sort.length, sort.values));
  const Scratch s = layout(arena, sort.segments, sort.length, sort.values);
  const Digits digits = digits_of(sort.values);
  const int64_t tiles = div_up(sort.length, kTile);
  if (sort.segments * tiles > kMostBlocks)
    return fail(RFN_UNSUPPORTED, "sort: more tiles of %d keys than a CUDA grid has blocks", kTile);
  const unsigned blocks = static_cast<unsigned>(sort.segments * tiles);
  Pass pass{sort, tiles, 0, 1 << digits.bits, nullptr, 0, nullptr, 0, false, s.counts};
  for (int i = 0; i < digits.passes; ++i) {
    pass.last = i == digits.passes - 1;
    const bool to_sorted =
        (digits.passes - 1 - i) % 2 == 0;  // the two buffers take turns so that the last pass writes `sorted`
    pass.to = to_sorted ? sort.sorted : s.swap;
    pass.to_length = to_sorted ? sort.sorted_length : sort.length;
    RFN_CUDA_TRY(stream, RFN_LAUNCH(sort_histogram_kernel, blocks, kThreads, 0, native, pass));
    RFN_CUDA_TRY(stream, RFN_LAUNCH(sort_scan_kernel, static_cast<unsigned>(sort.segments), kScanThreads, 0, native,
                                    s.counts, tiles << digits.bits));
    RFN_CUDA_TRY(stream, RFN_LAUNCH(sort_scatter_kernel, blocks, kThreads, 0, native, pass));
    pass.from = pass.to;
    pass.from_length = pass.to_length;
    pass.shift += digits.bits;
  }
  const int64_t padding = sort.segments * (sort.sorted_length - sort.length);
  if (padding == 0) return RFN_OK;
  RFN_CUDA_TRY(stream, RFN_LAUNCH(sort_padding_kernel, stride_blocks(padding), kThreads, 0, native, sort));
  return RFN_OK;
}

int64_t sort_scratch_bytes(const Attention& a) {
  return counting_sort_bytes(a.sequence_heads() * a.rounds(), a.length, bucket_count(a.options) + 1);
}

rfn_status attention_sort(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch) {
  return counting_sort(stream, sort_of(a, scratch), scratch.sort);
}

rfn_status attention_index_slots(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch) {
  if (scratch.slot_of == nullptr) return RFN_OK;
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const int64_t segments = a.sequence_heads() * a.rounds(), slots = a.stored();
  RFN_CUDA_TRY(stream, RFN_LAUNCH(index_slots_kernel, stride_blocks(segments * slots), kThreads, 0,
                                  native_stream(stream), scratch.sorted, scratch.slot_of, segments, slots, a.length));
  return RFN_OK;
}

}  // namespace rfn::cuda
