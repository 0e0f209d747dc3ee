// The tile engine of all attention kinds: up to 64 queries against up to 128 keys, both gathered into packed buffers.
// Scores are held transposed, one row per key and one vector lane per query, so that masks, maxima, exponentials and
// sums run along lanes without shuffles and only the query tile is ever transposed.
#pragma once
#include <cstdint>

#include "core/attention_window.h"

namespace rfn::cpu {

inline constexpr int64_t kTileQueries = 64;
inline constexpr int64_t kBlockKeys = 64;   // of one packed block
inline constexpr int64_t kTileKeys = 128;   // of all blocks of one step
inline constexpr int64_t kTileBlocks = 16;  // at most, of one step
inline constexpr int64_t kLanePad = 16;     // packed rows are padded with zeros to a multiple of the widest vector

// Places of tokens in all rounds: [R, 64], a token of the tile or block after the other. A place is a slot in strict
// windows, else a chunk.
struct RoundPlaces {
  int32_t* place = nullptr;
  int32_t* bucket = nullptr;
};

// The correction of duplicates (RFN_DUPLICATES_LOG_COUNT): a score loses the logarithm of the window's rounds_seen. A
// round counts when 0 <= query place - key place + shift < width, or that plus or minus `ring` if it is not 0, and
// equal buckets if they matter.
struct Duplicates {
  int32_t rounds = 0;  // 0: no correction
  int32_t shift = 0, width = 0, ring = 0;
  bool same_bucket = false;
  const float* log_counts = nullptr;  // [R + 1]
};

// Position -1: not there (padding). Its packed row is zero, and whatever is computed for it is thrown away.
struct TileQueries {
  int64_t count = 0;
  alignas(64) int32_t position[kTileQueries];
  alignas(64) int32_t slot[kTileQueries];
  alignas(64) int32_t bucket[kTileQueries];
  alignas(64) float maximum[kTileQueries];  // forward: maximum and sum of exponentials of the tile so far; backward:
                                            // log-sum-exp
  alignas(64) float sum[kTileQueries];
  alignas(64) float delta[kTileQueries];  // backward: dO . O - grad_log_sum_exp
  RoundPlaces places;
};

// Keys that are there, of one chunk, packed once and used by all tiles whose windows hold them.
struct KeyBlock {
  int64_t count = 0;
  alignas(64) int32_t position[kBlockKeys];
  alignas(64) int32_t slot[kBlockKeys];
  alignas(64) int32_t bucket[kBlockKeys];
  float scale[kBlockKeys];  // 1 / norm
  float* k = nullptr;       // [kBlockKeys, wide], normalised
  float* v = nullptr;       // [kBlockKeys, wide]
  float* grad_k = nullptr;  // [kBlockKeys, wide], with respect to the normalised keys
  float* grad_v = nullptr;  // [kBlockKeys, wide]
  bool has_gradient = false;
  RoundPlaces places;

  void add(int64_t key_position, int64_t key_slot, int32_t key_bucket) {
    position[count] = static_cast<int32_t>(key_position);
    slot[count] = static_cast<int32_t>(key_slot);
    bucket[count] = key_bucket;
    ++count;
  }
};

// Maximum of the scores of a query so far, and the sum of exponentials relative to it.
struct RowSoftmax {
  float maximum, sum;
};

// One block in the window of the present tile.
struct TileKeys {
  KeyBlock* block;
  int64_t row;           // of `scores`: keys of the blocks before it
  int64_t first_column;  // index in the window of slot 0, for dropout
};

// Rows that the next tile will gather. In sorted order they are all over the memory, and power-of-two strides leave
// them few places in the caches, so they are fetched a few at a time between the products of this tile.
struct RowsAhead {
  static constexpr int64_t kMost = 5 * kTileQueries;
  const float* rows[kMost];
  int64_t count = 0, next = 0;
  int64_t row_size = 0;

  void fetch(int64_t some) {
    constexpr int64_t kLine = 64 / sizeof(float);
    for (const int64_t end = next + some < count ? next + some : count; next < end; ++next) {
      for (int64_t d = 0; d < row_size; d += kLine) __builtin_prefetch(rows[next] + d, 0, 3);
    }
  }
};

// Packed buffers of one thread. `wide` = head size padded to kLanePad, `lanes` = kTileQueries.
struct TileBuffers {
  int64_t head_size;
  int64_t wide;
  RowsAhead* ahead;     // null: none
  float* q;             // [lanes, wide], times the logit scale
  float* q_transposed;  // [wide, lanes]
  float* scores;        // [kTileKeys, lanes]
  Duplicates duplicates;
  float* dropout;  // [kTileKeys, lanes]; null: no dropout
  float* out;      // [lanes, wide]
  // backward
  float* grad_out;             // [lanes, wide]
  float* grad_out_transposed;  // [wide, lanes]
  float* grad_scores;          // [kTileKeys, lanes]
  float* grad_q;               // [lanes, wide]
};

struct TileKernels {
  // Copies rows of head_size floats at base + position * stride, times scale, and pads with zeros (whole rows for
  // position -1, up to a multiple of kLanePad rows).
  void (*pack_queries)(const float* base, int64_t stride, const TileQueries& queries, float scale, const TileBuffers& t,
                       float* rows, float* transposed);
  // Copies keys, normalised (RFN_KEY_NORM_*), and values at base + position * stride; sets their scales.
  void (*pack_keys)(const float* keys, int64_t key_stride, const float* values, int64_t value_stride, int32_t key_norm,
                    const TileBuffers& t, KeyBlock& block);
  // One step of the online softmax: updates queries.maximum, queries.sum and t.out; `first` of the tile: sets them.
  void (*forward)(const AttentionWindow<>& window, TileQueries& queries, const TileKeys* keys, int64_t blocks,
                  bool first, const TileBuffers& t);
  // Merges the tile's result into rows at out + position * stride and merged[position], or sets these when `fresh`;
  // divides by the sum when `last`, unless it is 0.
  void (*merge)(const TileQueries& queries, bool fresh, bool last, const TileBuffers& t, float* out, int64_t stride,
                RowSoftmax* merged);
  // Adds to the blocks' gradients and to t.grad_q; `first` of the tile: sets the latter.
  void (*backward)(const AttentionWindow<>& window, const TileQueries& queries, const TileKeys* keys, int64_t blocks,
                   bool first, const TileBuffers& t);
  // Rows at grad + position * stride += scale * t.grad_q.
  void (*add_query_gradients)(const TileQueries& queries, float scale, const TileBuffers& t, float* grad,
                              int64_t stride);
  // Rows at grad_* + position * stride += the block's gradients, those of the keys through their norm.
  void (*add_key_gradients)(const KeyBlock& block, int32_t key_norm, const TileBuffers& t, float* grad_k,
                            int64_t k_stride, float* grad_v, int64_t v_stride);
  // Buckets of the first `count` queries in all rounds: digit f of round r is argmax over [z, -z] of z_j = q_i .
  // rotations[:, column + j], j < factors[f] / 2, the columns of factors and rounds one after the other. buckets[r *
  // bucket_stride + i].
  void (*hash)(const TileBuffers& t, int64_t count, const float* rotations, int64_t rounds, const int32_t* factors,
               int64_t factor_count, int32_t* buckets, int64_t bucket_stride);
  // transposed[j * kTileQueries + i] = rows[i * columns + j] for `count` rows; columns a multiple of 4, count one of
  // kLanePad.
  void (*transpose)(const float* rows, int64_t count, int64_t columns, float* transposed);
};

const TileKernels& tile_kernels();

}  // namespace rfn::cpu
