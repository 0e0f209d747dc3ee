// Angular LSH: the bucket of every token in every round (paper, section 2).
#include <algorithm>
#include <numeric>

#include "cpu/attention_walk.h"

namespace rfn::cpu {

void attention_hash(int32_t threads, const Attention& call, const AttentionScratch& scratch) {
  const int64_t tiles = div_up(call.length, kTileQueries), rounds = call.rounds();
  const int64_t rotation_size = call.head_size * rounds * rotation_columns(call.options);  // of one set
  const int32_t pad = static_cast<int32_t>(bucket_count(call.options));
  const TileKernels& kernels = tile_kernels();
  parallel_for(threads, call.sequence_heads() * tiles, [&](int64_t item, int32_t thread) {
    const SequenceHead head = sequence_head(call, scratch, item / tiles);
    const float* const q = rows_of(call.q, call.q_stride, call, head);
    const int64_t first = item % tiles * kTileQueries, count = std::min(kTileQueries, call.length - first);
    TileQueries queries;
    queries.count = count;
    std::iota(queries.position, queries.position + count, static_cast<int32_t>(first));
    RowsAhead ahead;
    ahead.row_size = call.head_size;
    for (int64_t next = first + count; next < std::min(call.length, first + count + kTileQueries); ++next)
      ahead.rows[ahead.count++] = q + next * call.q_stride;
    TileBuffers tile = walk_buffers(call, scratch, thread, RFN_PASS_FORWARD).tile;
    tile.ahead = &ahead;
    kernels.pack_queries(q, call.q_stride, queries, 1.0f, tile, tile.q, tile.q_transposed);
    const int64_t set = call.rotation_sets == 1                ? 0
                        : call.rotation_sets == call.all_heads ? call.first_head + head.head
                                                               : head.global;
    int32_t* const buckets = head.buckets + first;
    kernels.hash(tile, count, call.rotations + set * rotation_size, rounds, call.options.factors,
                 call.options.factor_count, buckets, call.length);
    if (call.options.pad_bucket == 0 || head.mask == nullptr) return;
    for (int64_t round = 0; round < rounds; ++round) {
      for (int64_t i = 0; i < count; ++i) {
        if (head.mask[first + i] == 0) buckets[round * call.length + i] = pad;
      }
    }
  });
}

}  // namespace rfn::cpu
