// A block has one (example, head) and kPartKeys of the keys that its token may see, one per thread:
//   1. LSH: hashes the query. Products are sums over d in order, by fused multiply-add, as in lsh_hash.cu.
//   2. Finds the row of the cache of each key.
//   3. Logits, kKeyLanes lanes a key.
//   4. exp(logit - largest) and their sum.
//   5. The sum of values with these weights, kValueQuads threads a key, and over the groups of threads in order.
// Where one part is all, the block divides and is done; otherwise a second kernel adds up the parts in order. The last
// kernel puts the token into the rings, which nobody reads any more.
//
// Contents that the CPU would refuse: a count out of range counts as that of all positions, a position out of range as
// the last one.
#include "cuda/row_attention.h"

#include <algorithm>

#include "core/attention_window.h"
#include "core/error.h"
#include "cuda/attention.h"
#include "cuda/lsh_extremes.cuh"
#include "cuda/quads.cuh"

namespace rfn::cuda {
namespace {

constexpr int kThreads = kPartKeys;
constexpr int kWarps = kThreads / 32;
constexpr int kKeyLanes = 8;
constexpr int kValueQuads = 16;  // quads of a value at a time
constexpr int kGroups = kThreads / kValueQuads;
constexpr int kMergeThreads = 128;
static_assert(kMergeThreads >= kMaxHeadSize, "a thread for each element of a head");

// Positions, rows of the cache, places in rings and keys of a token stay below 2^31.
struct Call {
  RowAttention a;
  const float *keys, *values;  // [B, capacity, H*D]
  int64_t heads, parts;
  int head_size;
  int64_t projected;
  float scale;
  int32_t key_norm;
  bool aligned;  // rows may be read four elements at a time
  uint32_t capacity, position;
  uint32_t first, keys_seen;  // local, full: positions; LSH: 0, places in the rings of all rounds
  // LSH
  bool lsh, once;          // once: a key counts in one round alone
  const float* rotations;  // [sets, D, R, columns]
  int64_t rotation_sets, columns;
  int32_t rounds, factor_count, factors[8];
  uint32_t ring, span;
  int64_t buckets;
  int32_t *rings, *counts;  // [B*H, R, buckets(, ring)]
};

// Digits of the query's buckets, each times its place's weight: a bucket is the sum over the factors. A warp has a
// factor of a round.
RFN_DEVICE void hash(const Call& c, int64_t example, int64_t head, const float* query, int32_t* digits) {
  const int64_t set = rotation_set(c.rotation_sets, c.heads, example, head), row = c.rounds * c.columns;
  const float* const rotations = c.rotations + set * c.head_size * row;
  const int lane = threadIdx.x % 32;
  for (int64_t item = threadIdx.x / 32; item < int64_t{c.rounds} * c.factor_count; item += kWarps) {
    int64_t first = item / c.factor_count * c.columns;
    int32_t weight = 1;
    const int factor = static_cast<int>(item % c.factor_count);
    for (int f = 0; f < factor; ++f) {
      first += c.factors[f] / 2;
      weight *= c.factors[f];
    }
    const int32_t half = c.factors[factor] / 2;
    Extremes extremes;
    for (int32_t column = lane; column < half; column += 32) {
      float z = 0.0f;
#pragma unroll 16
      for (int d = 0; d < c.head_size; ++d) z = fmaf(query[d], rotations[d * row + first + column], z);
      include(extremes, z, column);
    }
    __syncwarp();
    meet<32>(extremes);
    if (lane == 0) digits[item] = weight * first_maximum(extremes, half);
  }
}

// The bucket of the query in a round: its ring and its count.
RFN_DEVICE int64_t ring_index(const Call& c, int64_t pair, uint32_t round, const int32_t* digits) {
  int64_t bucket = 0;
  for (int f = 0; f < c.factor_count; ++f) bucket += digits[int64_t{round} * c.factor_count + f];
  return (pair * c.rounds + round) * c.buckets + bucket;
}
RFN_DEVICE uint32_t count_of(const Call& c, int64_t index) {
  return min(static_cast<uint32_t>(c.counts[index]), c.position);
}
RFN_DEVICE uint32_t position_at(const Call& c, int64_t index, uint32_t place) {
  return min(static_cast<uint32_t>(c.rings[index * c.ring + place]), c.position - 1);
}

// Whether a ring, whose positions ascend from its oldest on, holds a position.
RFN_DEVICE bool holds(const Call& c, int64_t index, uint32_t position) {
  const uint32_t count = count_of(c, index), held = min(count, c.span), oldest = (count - held) % c.ring;
  const auto at = [&](uint32_t i) {
    return position_at(c, index, oldest + i < c.ring ? oldest + i : oldest + i - c.ring);
  };
  uint32_t low = 0, high = held;  // the first that is not below the position is in [low, high]
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (at(middle) < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < held && at(low) == position;
}

// The row of the cache that a key is in, -1: none.
RFN_DEVICE int32_t row_of(const Call& c, int64_t pair, uint32_t key, const int32_t* digits) {
  if (key >= c.keys_seen) return -1;
  if (!c.lsh) return static_cast<int32_t>((c.first + key) % c.capacity);
  const uint32_t round = key / c.ring, place = key % c.ring;
  const int64_t index = ring_index(c, pair, round, digits);
  if (place >= min(count_of(c, index), c.span)) return -1;
  const uint32_t position = position_at(c, index, place);
  for (uint32_t r = 0; c.once && r < round; ++r) {
    if (holds(c, ring_index(c, pair, r, digits), position)) return -1;
  }
  return static_cast<int32_t>(position);
}

// After the last look at the rings: the threads of a block put the token into them.
RFN_DEVICE void append(const Call& c, int64_t pair, const int32_t* digits) {
  if (!c.lsh) return;
  for (uint32_t round = threadIdx.x; round < static_cast<uint32_t>(c.rounds); round += blockDim.x) {
    const int64_t index = ring_index(c, pair, round, digits);
    const uint32_t count = count_of(c, index);
    c.rings[index * c.ring + count % c.ring] = static_cast<int32_t>(c.position);
    c.counts[index] = static_cast<int32_t>(count + 1);
  }
}

// What a token that sees no key attends to, as a last resort: itself.
RFN_DEVICE float own_value(const Call& c, int64_t example, int64_t head, int d) {
  return c.values[(example * c.capacity + c.position % c.capacity) * c.projected + head * c.head_size + d];
}

__global__ void __launch_bounds__(kThreads) row_attention_kernel(Call c) {
  RFN_SHARED(query, float[kMaxHeadSize]);
  RFN_SHARED(rows, int32_t[kPartKeys]);
  RFN_SHARED(weights, float[kPartKeys]);
  RFN_SHARED(results, float[2][kWarps]);
  RFN_SHARED(sums, float[kGroups][4 * kValueQuads]);
  const int64_t pair = blockIdx.x / c.parts, part = blockIdx.x % c.parts, example = pair / c.heads,
                head = pair % c.heads;
  const int64_t offset = example * c.capacity * c.projected + head * c.head_size;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int32_t* const digits = c.a.digits + blockIdx.x * (int64_t{c.rounds} * c.factor_count);

  if (thread < kMaxHeadSize)
    query[thread] = thread < c.head_size ? c.a.query[example * c.a.query_stride + head * c.head_size + thread] : 0.0f;
  __syncthreads();
  if (c.lsh) {
    hash(c, example, head, query, digits);
    __syncthreads();
  }
  rows[thread] = row_of(c, pair, static_cast<uint32_t>(part * kPartKeys + thread), digits);
  __syncthreads();

  const int64_t left = int64_t{c.keys_seen} - part * kPartKeys;
  const int count = left < kPartKeys ? static_cast<int>(left) : kPartKeys;
#pragma unroll 2
  for (int first = 0; first < count; first += kThreads / kKeyLanes) {
    const int key = first + thread / kKeyLanes;
    const int32_t row = rows[key];
    float product = 0.0f, squares = 0.0f;
    if (row >= 0) {
      const float* const from = c.keys + offset + row * c.projected;
#pragma unroll 4
      for (int d = 4 * (lane % kKeyLanes); d < c.head_size; d += 4 * kKeyLanes) {
        const Quad k = load_quad(from, d, c.head_size, c.aligned);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          product = fmaf(query[d + j], k.v[j], product);
          squares = fmaf(k.v[j], k.v[j], squares);
        }
      }
    }
    __syncwarp();
    product = group_sum<kKeyLanes>(product);
    squares = group_sum<kKeyLanes>(squares);
    if (lane % kKeyLanes == 0) weights[key] = c.scale * product * key_scale(squares, c.head_size, c.key_norm);
  }
  __syncthreads();

  const bool seen = rows[thread] >= 0;
  const float logit = seen ? weights[thread] : -INFINITY;
  float largest = group_maximum(logit);
  if (lane == 0) results[0][warp] = largest;
  __syncthreads();
  largest = group_maximum<kWarps>(results[0][lane % kWarps]);
  const float weight = seen ? expf(logit - largest) : 0.0f;
  weights[thread] = weight;
  float total = group_sum(weight);
  if (lane == 0) results[1][warp] = total;
  __syncthreads();
  total = group_sum<kWarps>(results[1][lane % kWarps]);  // 0: no key is seen, since the largest has weight 1

  const bool whole = c.parts == 1;
  const float inverse = 1.0f / total;
  for (int begin = 0; begin < c.head_size; begin += 4 * kValueQuads) {
    const int d = begin + 4 * (thread % kValueQuads);
    float sum[4] = {};
#pragma unroll 4
    for (int key = thread / kValueQuads; key < count; key += kGroups) {
      const int32_t row = rows[key];
      if (row < 0 || d >= c.head_size) continue;
      const Quad v = load_quad(c.values + offset + row * c.projected, d, c.head_size, c.aligned);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] = fmaf(weights[key], v.v[j], sum[j]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[thread / kValueQuads][4 * (thread % kValueQuads) + j] = sum[j];
    __syncthreads();
    const int at = begin + thread;
    if (thread < 4 * kValueQuads && at < c.head_size) {
      float value = 0.0f;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) value += sums[group][thread];
      if (whole) {
        c.a.result[example * c.projected + head * c.head_size + at] =
            total == 0.0f ? own_value(c, example, head, at) : value * inverse;
      } else {
        c.a.partial[int64_t{blockIdx.x} * c.head_size + at] = value;
      }
    }
    __syncthreads();
  }
  if (whole) {
    append(c, pair, digits);
  } else if (thread == 0) {
    c.a.weights[blockIdx.x] = make_float2(largest, total);
  }
}

// A block has one (example, head): its parts, in order.
__global__ void __launch_bounds__(kMergeThreads) merge_parts_kernel(Call c) {
  RFN_SHARED(factors, float[kMergeThreads]);
  RFN_SHARED(totals, float[kMergeThreads]);
  RFN_SHARED(maxima, float[kMergeThreads / 32]);
  const int64_t pair = blockIdx.x, example = pair / c.heads, head = pair % c.heads;
  const float2* const weights = c.a.weights + pair * c.parts;
  const float* const partial = c.a.partial + pair * c.parts * c.head_size;
  const int thread = static_cast<int>(threadIdx.x);
  float largest = -INFINITY;
  for (int64_t part = thread; part < c.parts; part += kMergeThreads) largest = fmaxf(largest, weights[part].x);
  largest = group_maximum(largest);
  if (thread % 32 == 0) maxima[thread / 32] = largest;
  __syncthreads();
  largest = group_maximum<kMergeThreads / 32>(maxima[thread % (kMergeThreads / 32)]);
  float total = 0.0f, value = 0.0f;
  for (int64_t begin = 0; begin < c.parts; begin += kMergeThreads) {
    const int count = c.parts - begin < kMergeThreads ? static_cast<int>(c.parts - begin) : kMergeThreads;
    __syncthreads();  // the parts before have been read
    if (thread < count) {
      const float2 w = weights[begin + thread];
      factors[thread] = w.y == 0.0f ? 0.0f : expf(w.x - largest);  // no key is seen: its largest logit is -inf
      totals[thread] = w.y;
    }
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      total = fmaf(factors[i], totals[i], total);
      if (thread < c.head_size) value = fmaf(factors[i], partial[(begin + i) * c.head_size + thread], value);
    }
  }
  if (thread < c.head_size) {
    c.a.result[example * c.projected + head * c.head_size + thread] =
        total == 0.0f ? own_value(c, example, head, thread) : value / total;
  }
  append(c, pair, c.a.digits + pair * c.parts * (int64_t{c.rounds} * c.factor_count));
}

int64_t parts_of(int64_t keys) { return std::max<int64_t>(1, div_up(keys, kPartKeys)); }

}  // namespace

void take_row_attention(Arena& arena, const rfn_reversible_block_decode& op, const DecodeShape& s, RowAttention* a) {
  const int64_t pairs = s.batch * s.heads, parts = parts_of(s.most_keys);
  if (s.lsh) a->digits = arena.take<int32_t>(pairs * parts * s.rounds * op.attention.factor_count);
  if (parts == 1) return;
  a->partial = arena.take<float>(pairs * parts * s.head_size);
  a->weights = arena.take<float2>(pairs * parts);
}

rfn_status row_attention(rfn_stream& stream, const rfn_reversible_block_decode& op, const DecodeShape& s,
                         const RowAttention& a) {
  Call c{};
  c.a = a;
  c.keys = f32(op.keys);
  c.values = f32(op.values);
  c.capacity = static_cast<uint32_t>(s.capacity);
  c.heads = s.heads;
  c.head_size = static_cast<int>(s.head_size);
  c.projected = s.projected;
  c.scale = logit_scale(op.attention, s.head_size);
  c.key_norm = op.attention.key_norm;
  c.aligned = s.head_size % 4 == 0 && quads_aligned(0, c.keys, c.values);
  c.position = static_cast<uint32_t>(op.position);
  c.lsh = s.lsh;
  if (s.lsh) {
    c.keys_seen = s.window.span == 0 ? 0 : static_cast<uint32_t>(s.most_keys);
    c.once = s.window.log_counts;  // exp(s - log count), count times, is exp(s) once
    c.rotations = f32(op.rotations);
    c.rotation_sets = op.rotations.shape[0];
    c.columns = rotation_columns(op.attention);
    c.rounds = op.attention.rounds;
    c.factor_count = op.attention.factor_count;
    std::copy_n(op.attention.factors, c.factor_count, c.factors);
    c.buckets = s.buckets;
    c.ring = static_cast<uint32_t>(s.ring);
    c.span = static_cast<uint32_t>(s.window.span);
    c.rings = i32(op.rings);
    c.counts = i32(op.counts);
  } else {
    c.first = static_cast<uint32_t>(s.window.first_seen(op.position));
    c.keys_seen = static_cast<uint32_t>(s.window.end_seen(op.position)) - c.first;
  }
  c.parts = parts_of(c.keys_seen);
  const int64_t pairs = s.batch * s.heads;
  RFN_CUDA_TRY(stream,
               RFN_LAUNCH(row_attention_kernel, blocks_for(pairs * c.parts, 1), kThreads, 0, native_stream(stream), c));
  if (c.parts == 1) return RFN_OK;
  RFN_CUDA_TRY(stream,
               RFN_LAUNCH(merge_parts_kernel, blocks_for(pairs, 1), kMergeThreads, 0, native_stream(stream), c));
  return RFN_OK;
}

}  // namespace rfn::cuda
