// Sorting positions by bucket: a stable counting sort in at most four launches, whatever the number of buckets. The
// first three sort by the upper digit of the keys, of at most kDigitBits bits, tile by tile:
//   histogram  counts[segment, digit, tile] = keys of the tile with that digit
//   scan       the exclusive prefix sum over (digit, tile) of a segment: where the tile's keys of that digit begin
//   scatter    begin + rank of the key among the tile's keys with its digit
// With at most kMostDigits buckets that is all. Otherwise the keys with one upper digit are a range of their own now,
// and
//   range      sorts it by the digits below, least significant first, by one block
// A short segment is a range from the start, which is a single launch. Work and memory grow with the tokens and not
// with the buckets.
//
// A tile is kTile places in the order so far, each warp's share a contiguous run of it, which the warp walks 32 at a
// time: the lanes with the same digit find each other (match), and the warp's count of the digit so far plus the number
// of such lanes before it is a key's rank in the run. So ranks follow the order of the keys, whatever the schedule.
#include <algorithm>

#include "core/error.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "cuda/attention.h"
#include "cuda/counting_sort.h"
#include "cuda/device_math.cuh"

namespace rfn::cuda {
namespace {

constexpr int kDigitBits = 9;
constexpr int kMostDigits = 1 << kDigitBits;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kItems = 16;  // of a thread
constexpr int kTile = kThreads * kItems;
constexpr int64_t kShortSegment = 2 * kTile;  // more would keep one block busy longer than two launches take
constexpr int kScanThreads = 1024;
constexpr int kScanItems = 4;  // of a thread at a time
constexpr int64_t kMostBlocks = INT32_MAX;

// The digits of a sort: an upper one, of no bits where a segment is one range, and `passes` below it.
struct Digits {
  int upper_bits;
  int passes, bits;  // of a range; bits of each of its digits
};

struct Sort {
  CountingSort sort;
  Digits digits;
  int64_t tiles;    // of a segment
  int32_t* counts;  // [segments, upper digits, tiles]
  int32_t* swap;    // [segments, length]; where a range has more passes than are left for `sorted`
};

// Keys below `end` of a segment's order from place `first` of the calling thread on, and a digit of each.
struct Source {
  const int32_t* keys;  // of the segment
  const int32_t* from;  // of the segment: positions as they are sorted so far; null: in order
  int64_t end;
  uint32_t largest;
  int shift, digits;  // digit = key >> shift & (digits - 1)
};
RFN_DEVICE const int32_t* keys_of(const CountingSort& sort, int64_t segment) {
  return sort.keys + (segment / sort.group * sort.group_stride + segment % sort.group) * sort.length;
}
// Of a thread in a tile.
RFN_DEVICE int64_t first_item() { return threadIdx.x / 32 * (32 * kItems) + threadIdx.x % 32; }

// Position at place i, and its digit; an i past the end has the digit `digits`, which no key has.
struct Entry {
  int32_t position, digit;
};
RFN_DEVICE Entry load(const Source& s, int64_t i) {
  if (i >= s.end) return {0, s.digits};
  const int32_t position = s.from == nullptr ? static_cast<int32_t>(i) : s.from[i];
  const uint32_t key = min(static_cast<uint32_t>(s.keys[position]), s.largest);
  return {position, static_cast<int32_t>(key >> s.shift) & (s.digits - 1)};
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

using Counts = int32_t[kWarps][kMostDigits];  // of the warps' runs

// Adds the digits of a tile to the warp's counts.
RFN_DEVICE void count_tile(const Source& s, int64_t first, int32_t* mine) {
  int32_t digit[kItems];  // all of them first: loads do not cross the warp's meetings
#pragma unroll
  for (int item = 0; item < kItems; ++item) digit[item] = load(s, first + item * 32).digit;
#pragma unroll
  for (int item = 0; item < kItems; ++item) rank_in_run(mine, digit[item], s.digits);
}

RFN_DEVICE int32_t count_of(const Counts& counts, int32_t digit) {
  int32_t sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += counts[warp][digit];
  return sum;
}

// Writes the positions of a tile to their slots. begin_of(digit, count) says where the tile's keys with a digit begin,
// of which there are `count`; each digit is asked for once.
template <class Begin>
RFN_DEVICE void scatter_tile(const Source& s, int64_t first, Counts& counts, int32_t* to, int32_t* slot_of,
                             const Begin& begin_of) {
  int32_t* const mine = counts[threadIdx.x / 32];
  clear(mine, s.digits);
  int32_t position[kItems], place[kItems];  // place: digit and, in the upper half, rank: both are less than 2^15
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const Entry entry = load(s, first + item * 32);
    position[item] = entry.position;
    place[item] = entry.digit;
  }
#pragma unroll
  for (int item = 0; item < kItems; ++item) place[item] |= rank_in_run(mine, place[item], s.digits) << 16;
  __syncthreads();
  for (int32_t digit = threadIdx.x; digit < s.digits; digit += kThreads) {
    int32_t begin = begin_of(digit, count_of(counts, digit));
    for (int warp = 0; warp < kWarps; ++warp) {  // from counts to where the runs begin
      const int32_t count = counts[warp][digit];
      counts[warp][digit] = begin;
      begin += count;
    }
  }
  __syncthreads();
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int32_t digit = place[item] & 0xffff;
    if (digit >= s.digits) continue;
    const int32_t slot = mine[digit] + (place[item] >> 16);
    to[slot] = position[item];
    if (slot_of != nullptr) slot_of[position[item]] = slot;
  }
}

// The slots behind a segment's keys, by a block.
RFN_DEVICE void write_padding(const CountingSort& sort, int64_t segment) {
  for (int64_t slot = sort.length + threadIdx.x; slot < sort.sorted_length; slot += kThreads)
    sort.sorted[segment * sort.sorted_length + slot] = static_cast<int32_t>(slot);
}

RFN_DEVICE int32_t* slots_of(const CountingSort& sort, int64_t segment) {
  return sort.slot_of == nullptr ? nullptr : sort.slot_of + segment * sort.length;
}
// Where the keys are after `left` more passes have to come: the last one leaves them in `sorted`.
RFN_DEVICE int32_t* order_before(const Sort& p, int64_t segment, int left) {
  return left % 2 == 0 ? p.sort.sorted + segment * p.sort.sorted_length : p.swap + segment * p.sort.length;
}
RFN_DEVICE Source source_of(const Sort& p, int64_t segment, int64_t end) {
  return {keys_of(p.sort, segment), nullptr, end, static_cast<uint32_t>(p.sort.values - 1), 0, 1 << p.digits.bits};
}
RFN_DEVICE Source upper_source(const Sort& p, int64_t segment) {
  Source s = source_of(p, segment, p.sort.length);
  s.shift = p.digits.passes * p.digits.bits;
  s.digits = 1 << p.digits.upper_bits;
  return s;
}

__global__ void __launch_bounds__(kThreads) sort_histogram_kernel(Sort p) {
  RFN_SHARED(counts, Counts);
  const int64_t segment = blockIdx.x / p.tiles, tile = blockIdx.x % p.tiles;
  const Source s = upper_source(p, segment);
  int32_t* const mine = counts[threadIdx.x / 32];
  clear(mine, s.digits);
  count_tile(s, tile * kTile + first_item(), mine);
  __syncthreads();
  for (int32_t digit = threadIdx.x; digit < s.digits; digit += kThreads)
    p.counts[(segment * s.digits + digit) * p.tiles + tile] = count_of(counts, digit);
}

RFN_DEVICE int32_t scan_warp(int32_t x) {  // inclusive
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int32_t left = __shfl_up_sync(kFullWarp, x, step);
    if (static_cast<int>(threadIdx.x % 32) >= step) x += left;
  }
  return x;
}

// Exclusive prefix sum of each segment's n counts, in place. One block per segment.
__global__ void __launch_bounds__(kScanThreads) sort_scan_kernel(int32_t* counts, int64_t n) {
  RFN_SHARED(warp_sums, int32_t[2][kScanThreads / 32]);
  int32_t* const segment = counts + blockIdx.x * n;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
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

__global__ void __launch_bounds__(kThreads, 3) sort_scatter_kernel(Sort p) {
  RFN_SHARED(counts, Counts);
  const int64_t segment = blockIdx.x / p.tiles, tile = blockIdx.x % p.tiles;
  const Source s = upper_source(p, segment);
  const bool last = p.digits.passes == 0;
  scatter_tile(s, tile * kTile + first_item(), counts, order_before(p, segment, p.digits.passes),
               last ? slots_of(p.sort, segment) : nullptr,
               [&](int32_t digit, int32_t) { return p.counts[(segment * s.digits + digit) * p.tiles + tile]; });
  if (last && tile == p.tiles - 1) write_padding(p.sort, segment);
}

// Exclusive prefix sum of a range's counts, in place, from `first` on. The block has read and written them.
RFN_DEVICE void scan_digits(int32_t* counts, int32_t digits, int32_t first, int32_t* warp_sums) {
  constexpr int kEach = kMostDigits / kThreads;
  const int32_t at = threadIdx.x * kEach;
  int32_t item[kEach], sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    item[i] = at + i < digits ? counts[at + i] : 0;
    sum += item[i];
  }
  const int32_t inclusive = scan_warp(sum);
  if (threadIdx.x % 32 == 31) warp_sums[threadIdx.x / 32] = inclusive;
  __syncthreads();
  int32_t begin = first + inclusive - sum;
  for (int warp = 0; warp < static_cast<int>(threadIdx.x / 32); ++warp) begin += warp_sums[warp];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (at + i < digits) counts[at + i] = begin;
    begin += item[i];
  }
  __syncthreads();
}

// A block sorts a range: a segment, or the keys of a segment that have one upper digit.
__global__ void __launch_bounds__(kThreads, 2) sort_range_kernel(Sort p) {
  RFN_SHARED(counts, Counts);
  RFN_SHARED(begins, int32_t[kMostDigits]);
  RFN_SHARED(warp_sums, int32_t[kWarps]);
  const int64_t upper = int64_t{1} << p.digits.upper_bits, segment = blockIdx.x / upper;
  const int64_t range = blockIdx.x;  // ranges of all segments follow each other like their counts
  const bool whole = upper == 1, last = (range + 1) % upper == 0;
  const int32_t first = whole ? 0 : p.counts[range * p.tiles];
  const int64_t end = last ? p.sort.length : p.counts[(range + 1) * p.tiles];
  if (last) write_padding(p.sort, segment);
  if (first == end) return;  // the whole block
  Source s = source_of(p, segment, end);
  int32_t* const mine = counts[threadIdx.x / 32];
  s.from = whole ? nullptr : order_before(p, segment, p.digits.passes);
  for (int left = p.digits.passes - 1; left >= 0; --left) {
    clear(mine, s.digits);
    for (int64_t tile = first; tile < end; tile += kTile) count_tile(s, tile + first_item(), mine);
    __syncthreads();
    for (int32_t digit = threadIdx.x; digit < s.digits; digit += kThreads) begins[digit] = count_of(counts, digit);
    __syncthreads();
    scan_digits(begins, s.digits, first, warp_sums);
    int32_t* const to = order_before(p, segment, left);
    for (int64_t tile = first; tile < end; tile += kTile) {
      scatter_tile(s, tile + first_item(), counts, to, left == 0 ? slots_of(p.sort, segment) : nullptr,
                   [&](int32_t digit, int32_t count) {
                     const int32_t begin = begins[digit];
                     begins[digit] = begin + count;
                     return begin;
                   });
      __syncthreads();  // all positions are written, and the counts free
    }
    s.from = to;
    s.shift += p.digits.bits;
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

// Of equal width, so that few buckets have few counts.
Digits digits_of(int64_t length, int64_t values) {
  const int bits = key_bits(values), passes = static_cast<int>(div_up(bits, kDigitBits));
  const int equal = static_cast<int>(div_up(bits, passes));
  if (length <= kShortSegment) return {0, passes, equal};
  return {bits - (passes - 1) * equal, passes - 1, equal};
}

struct Scratch {
  int32_t* counts;  // [segments, upper digits, tiles]
  int32_t* swap;    // [segments, length]; where there are digits enough to take turns
};
Scratch layout(Arena& arena, int64_t segments, int64_t length, int64_t values) {
  const Digits digits = digits_of(length, values);
  const bool turns = digits.passes > (digits.upper_bits == 0 ? 1 : 0);
  return {arena.take<int32_t>(digits.upper_bits == 0 ? 0 : (segments << digits.upper_bits) * div_up(length, kTile)),
          arena.take<int32_t>(turns ? segments * length : 0)};
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
  const Digits digits = digits_of(sort.length, sort.values);
  const Sort p{sort, digits, div_up(sort.length, kTile), s.counts, s.swap};
  const int64_t tiles = sort.segments * p.tiles, ranges = sort.segments << digits.upper_bits;
  if (std::max(tiles, ranges) > kMostBlocks)
    return fail(RFN_UNSUPPORTED, "sort: more tiles of %d keys, or ranges of keys, than a CUDA grid has blocks", kTile);
  if (digits.upper_bits > 0) {
    const unsigned blocks = static_cast<unsigned>(tiles);
    RFN_CUDA_TRY(stream, RFN_LAUNCH(sort_histogram_kernel, blocks, kThreads, 0, native, p));
    RFN_CUDA_TRY(stream, RFN_LAUNCH(sort_scan_kernel, static_cast<unsigned>(sort.segments), kScanThreads, 0, native,
                                    s.counts, p.tiles << digits.upper_bits));
    RFN_CUDA_TRY(stream, RFN_LAUNCH(sort_scatter_kernel, blocks, kThreads, 0, native, p));
  }
  if (digits.passes > 0)
    RFN_CUDA_TRY(stream, RFN_LAUNCH(sort_range_kernel, static_cast<unsigned>(ranges), kThreads, 0, native, p));
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
