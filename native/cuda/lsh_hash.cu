// Angular LSH: z = q R for each round and factor, bucket = sum over the factors of stride * arg max [z, -z] (paper
// section 2, "LSH attention").
//
// A block hashes kTokens tokens of one (example, head) for all rounds. Its queries stay in shared memory, transposed;
// the rotations pass through it in tiles of kColumns columns of one factor. A thread has kThreadTokens x kThreadColumns
// products in registers, then their running extremes; the kLanes threads of a token meet at the end of a factor.
// Products are sums over d in order, by fused multiply-add, as on the CPU.
//
// Shared memory, floats:  queries[D][kTokens]  element (d, token) at column token ^ 4 (d mod 8): stores and 16-byte
// loads without bank conflicts
//                         rotations[D][kColumns]
#include "core/tensor.h"
#include "cuda/attention.h"
#include "cuda/lsh_extremes.cuh"

namespace rfn::cuda {
namespace {

constexpr int kTokens = 64;
constexpr int kColumns = 32;
constexpr int kThreadTokens = 4;
constexpr int kThreadColumns = 4;
constexpr int kLanes = kColumns / kThreadColumns;
constexpr int kThreads = kTokens / kThreadTokens * kLanes;
constexpr int kSharedFloatsPerDimension = kTokens + kColumns;
static_assert(kMaxHeadSize * kSharedFloatsPerDimension * sizeof(float) <= 48 * 1024,
              "shared memory that needs no opting in");

struct Hash {
  const float* q;  // at example 0, token 0, the first head
  int64_t q_stride, length, tiles;
  int64_t heads, all_heads, first_head;
  int head_size;
  const float* rotations;  // [rotation_sets, D, R, columns]
  int64_t rotation_sets, columns;
  const uint8_t* mask;  // [B,T]; null: no token goes to the bucket `pad`
  int32_t* buckets;     // at example 0, the first head; [.., bucket_heads, R, T]
  int64_t bucket_heads;
  int32_t rounds, pad, factor_count, factors[8];
};

__global__ void __launch_bounds__(kThreads) hash_kernel(Hash p) {
  RFN_DYNAMIC_SHARED(float, queries);
  float* const rotations = queries + p.head_size * kTokens;
  const int64_t pair = blockIdx.x / p.tiles, example = pair / p.heads, head = pair % p.heads,
                first = blockIdx.x % p.tiles * kTokens;
  const int lane = threadIdx.x % kLanes, token = threadIdx.x / kLanes * kThreadTokens;

  // A warp loads 8 floats of 4 tokens at a time: whole sectors of global memory, different banks of shared memory.
  const float* const q = p.q + example * p.length * p.q_stride + head * p.head_size;
  for (int begin = 0; begin < p.head_size; begin += 8) {
    const int d = begin + threadIdx.x % 8;
    for (int t = threadIdx.x / 8; t < kTokens; t += kThreads / 8) {
      if (d < p.head_size)
        queries[d * kTokens + (t ^ 4 * (d % 8))] = first + t < p.length ? q[(first + t) * p.q_stride + d] : 0.0f;
    }
  }

  const int64_t global = p.first_head + head;
  const int64_t set = rotation_set(p.rotation_sets, p.all_heads, example, global);
  const int64_t row = p.rounds * p.columns;  // of one d
  const float* factor_rotations = p.rotations + set * p.head_size * row;
  int32_t* buckets = p.buckets + (example * p.bucket_heads + head) * p.rounds * p.length + first;
  for (int32_t round = 0; round < p.rounds; ++round, buckets += p.length) {
    int32_t bucket[kThreadTokens] = {};
    int32_t stride = 1;
    for (int32_t f = 0; f < p.factor_count; ++f) {
      const int32_t half = p.factors[f] / 2;
      Extremes extremes[kThreadTokens];
      for (int32_t column = 0; column < half; column += kColumns) {
        __syncthreads();  // the queries are there; nobody reads the tile before any more
        for (int i = threadIdx.x; i < p.head_size * kColumns; i += kThreads) {
          rotations[i] =
              column + i % kColumns < half ? factor_rotations[i / kColumns * row + column + i % kColumns] : 0.0f;
        }
        __syncthreads();
        float z[kThreadTokens][kThreadColumns] = {};
#pragma unroll 4
        for (int d = 0; d < p.head_size; ++d) {
          const float4 a = *reinterpret_cast<const float4*>(queries + d * kTokens + (token ^ 4 * (d % 8)));
          const float4 b = *reinterpret_cast<const float4*>(rotations + d * kColumns + lane * kThreadColumns);
          const float as[] = {a.x, a.y, a.z, a.w}, bs[] = {b.x, b.y, b.z, b.w};
#pragma unroll
          for (int i = 0; i < kThreadTokens; ++i) {
#pragma unroll
            for (int j = 0; j < kThreadColumns; ++j) z[i][j] = fmaf(as[i], bs[j], z[i][j]);
          }
        }
#pragma unroll
        for (int j = 0; j < kThreadColumns; ++j) {
          const int32_t at = column + lane * kThreadColumns + j;
          if (at >= half) continue;
#pragma unroll
          for (int i = 0; i < kThreadTokens; ++i) include(extremes[i], z[i][j], at);
        }
      }
#pragma unroll
      for (int i = 0; i < kThreadTokens; ++i) {
        meet<kLanes>(extremes[i]);
        bucket[i] += stride * first_maximum(extremes[i], half);
      }
      factor_rotations += half;
      stride *= p.factors[f];
    }
#pragma unroll
    for (int i = 0; i < kThreadTokens; ++i) {
      if (lane != i || first + token + i >= p.length) continue;
      const bool padding = p.mask != nullptr && p.mask[example * p.length + first + token + i] == 0;
      buckets[token + i] = padding ? p.pad : bucket[i];
    }
  }
}

}  // namespace

rfn_status attention_hash(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const bool own = a.buckets != nullptr;
  Hash p{};
  p.q = a.q;
  p.q_stride = a.q_stride;
  p.length = a.length;
  p.tiles = div_up(a.length, kTokens);
  p.heads = a.heads;
  p.all_heads = a.all_heads;
  p.first_head = a.first_head;
  p.head_size = static_cast<int>(a.head_size);
  p.rotations = a.rotations;
  p.rotation_sets = a.rotation_sets;
  p.columns = rotation_columns(a.options);
  p.mask = a.options.pad_bucket != 0 ? a.mask : nullptr;
  p.buckets = own ? a.buckets + a.first_head * a.rounds() * a.length : scratch.buckets;
  p.bucket_heads = own ? a.all_heads : a.heads;
  p.rounds = a.options.rounds;
  p.pad = static_cast<int32_t>(bucket_count(a.options));
  p.factor_count = a.options.factor_count;
  for (int32_t f = 0; f < p.factor_count; ++f) p.factors[f] = a.options.factors[f];
  const size_t shared = static_cast<size_t>(a.head_size) * kSharedFloatsPerDimension * sizeof(float);
  RFN_CUDA_TRY(stream, RFN_LAUNCH(hash_kernel, blocks_for(a.sequence_heads() * p.tiles, 1), kThreads, shared,
                                  native_stream(stream), p));
  return RFN_OK;
}

}  // namespace rfn::cuda
