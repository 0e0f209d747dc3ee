// The tile engine of all attention kinds: up to 64 queries against up to 128 keys, both gathered into packed buffers. Scores are held transposed,
// one row per key and one vector lane per query, so that masks, maxima, exponentials and sums run along lanes without shuffles and only the query
// tile is ever transposed.
#pragma once
#include <cstdint>

namespace rfn::cpu {

inline constexpr int64_t kTileQueries = 64;
inline constexpr int64_t kTileKeys = 128;
inline constexpr int64_t kLanePad = 16;  // packed rows are padded with zeros to a multiple of the widest vector

struct TileMask {
  bool causal = false;        // key position <= query position
  bool exclude_self = false;  // key position != query position
  bool same_bucket = false;   // equal buckets
  bool strict = false;        // 0 < query slot - key slot <= span
  int32_t span = 0;
};

// Position -1: not there (padding).
struct TileQueries {
  int64_t count = 0;
  alignas(64) int32_t position[kTileQueries];
  alignas(64) int32_t slot[kTileQueries];
  alignas(64) int32_t bucket[kTileQueries];
  alignas(64) float maximum[kTileQueries];  // forward: running maximum and sum of exponentials; backward: log-sum-exp
  alignas(64) float sum[kTileQueries];
  alignas(64) float delta[kTileQueries];  // backward: dO . O - dlse
};

struct TileKeys {
  int64_t count = 0;
  int32_t position[kTileKeys];
  int32_t slot[kTileKeys];
  int32_t bucket[kTileKeys];
  int32_t column[kTileKeys];  // index in the window, for dropout
  float inverse_norm[kTileKeys];
};

// Packed buffers of one thread. `wide` = head size padded to kLanePad, `lanes` = kTileQueries.
struct TileBuffers {
  int64_t head_size;
  int64_t wide;
  float* q;             // [lanes, wide], times the logit scale
  float* q_transposed;  // [wide, lanes]
  float* k;             // [kTileKeys, wide], normalised
  float* v;             // [kTileKeys, wide]
  float* scores;        // [kTileKeys, lanes]
  float* log_count;     // [kTileKeys, lanes]; null: no duplicate correction
  float* dropout;       // [kTileKeys, lanes]; null: no dropout
  float* out;           // [lanes, wide]
  // backward
  float* grad_out;             // [lanes, wide]
  float* grad_out_transposed;  // [wide, lanes]
  float* grad_scores;          // [kTileKeys, lanes]
  float* grad_q;               // [lanes, wide]
  float* grad_k;               // [kTileKeys, wide], with respect to the normalised keys
  float* grad_v;               // [kTileKeys, wide]
};

struct TileKernels {
  // Copies rows of head_size floats at base + position * stride, times scale, and pads with zeros (whole rows for position -1, and up to 64 rows).
  void (*pack_queries)(const float* base, int64_t stride, const TileQueries& queries, float scale, const TileBuffers& t, float* rows,
                       float* transposed);
  // Copies and normalises (RFN_KEY_NORM_*); fills keys.inverse_norm.
  void (*pack_keys)(const float* base, int64_t stride, TileKeys& keys, int32_t key_norm, const TileBuffers& t, float* rows);
  // One step of the online softmax: updates queries.maximum, queries.sum and t.out.
  void (*forward)(const TileMask& mask, TileQueries& queries, const TileKeys& keys, const TileBuffers& t);
  // Adds to t.grad_q; overwrites t.grad_k and t.grad_v.
  void (*backward)(const TileMask& mask, const TileQueries& queries, const TileKeys& keys, const TileBuffers& t);
  // grad_q row += gradient through the key norm of row `key` of t.grad_k.
  void (*add_key_gradient)(float* destination, const TileKeys& keys, int64_t key, int32_t key_norm, const TileBuffers& t);
  // buckets[i] += stride * argmax over [z, -z] of z_j = q_i . rotations[:, j], j < half: one factor of one round. rotations rows are `row_stride` apart.
  void (*hash)(const TileBuffers& t, int64_t count, const float* rotations, int64_t row_stride, int64_t half, int32_t bucket_stride, int32_t* buckets);
};

const TileKernels& tile_kernels();

}  // namespace rfn::cpu
