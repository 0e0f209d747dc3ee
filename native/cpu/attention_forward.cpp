// Attention forward: out and log-sum-exp. A token is a query once per round, and rounds follow each other, so no two
// threads ever write the same row at a time and its contributions have a fixed order.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/attention_walk.h"

namespace rfn::cpu {
namespace {

class ForwardWalk : public AttentionWalk {
 public:
  ForwardWalk(const Attention& attention, const AttentionScratch& attention_scratch, int32_t thread,
              int64_t sequence_head_index, int64_t of_round = 0)
      : AttentionWalk(attention, attention_scratch, thread, RFN_PASS_FORWARD, sequence_head_index, of_round) {}

  // fresh: nothing comes before this round. last: nothing follows it.
  void chunk(int64_t chunk, bool fresh, bool last) {
    for (int64_t first = 0; first < slots_of(chunk); first += kTileQueries) {
      if (!load_chunk_queries(chunk, first)) continue;
      begin();
      ahead.count = ahead.next = 0;
      if (!fresh) look_ahead(chunk, first, {{call.out, call.out_stride}});
      look_ahead(chunk + 1, first, {{call.q, call.q_stride}, {call.v, call.v_stride}});
      walk_chunk_keys(chunk);
      end(fresh, last);
    }
  }

  // Queries [first, last) against all keys they may see.
  void full(int64_t first, int64_t last) {
    constexpr int64_t kKeys = kPackedBlocks * kBlockKeys;
    for (int64_t key = 0; key < end_of_full_keys(last); key += kKeys) {
      for (int64_t query = first; query < last; query += kTileQueries) {
        const int64_t query_end = std::min(last, query + kTileQueries), key_end = end_of_full_keys(query_end);
        if (key >= key_end || !load_full_queries(query, query_end)) continue;
        begin();
        walk_full_keys(key, std::min(key + kKeys, key_end));
        end(key == 0, key + kKeys >= key_end);
      }
    }
  }

 private:
  void begin() {
    kernels.pack_queries(rows(call.q, call.q_stride), call.q_stride, queries, logit_scale(call), tile, tile.q,
                         tile.q_transposed);
    first_step = true;
  }

  void step() override { kernels.forward(window, queries, keys, blocks, first_step, tile); }

  // Merges with the rounds or keys before, unless there are none.
  void end(bool fresh, bool last) {
    if (first_step) {  // no keys at all
      const int64_t used = round_up(queries.count, kLanePad);
      std::fill_n(queries.maximum, used, kNegativeInfinity);
      std::fill_n(queries.sum, used, 0.0f);
      std::fill_n(tile.out, queries.count * tile.wide, 0.0f);
    }
    kernels.merge(queries, fresh, last, tile, rows(call.out, call.out_stride), call.out_stride,
                  scratch.merged + head.index * call.length);
  }
};

// The log-sum-exp; tokens without any key get their own value (shared QK) or 0. The others are divided by their sum
// already.
void finish(int32_t threads, const Attention& call, const AttentionScratch& scratch) {
  const bool own_value = call.window().exclude_self;
  for_tokens(threads, call, scratch, [&](const SequenceHead& head, int64_t first, int64_t last) {
    float* const out = rows_of(call.out, call.out_stride, call, head);
    const float* const v = rows_of(call.v, call.v_stride, call, head);
    float* const log_sum_exp = call.log_sum_exp == nullptr ? nullptr : call.log_sum_exp + log_sum_exp_of(call, head);
    for (int64_t position = first; position < last; ++position) {
      float* const row = out + position * call.out_stride;
      const bool there = is_real(call, head, position);
      const RowSoftmax merged =
          there ? scratch.merged[head.index * call.length + position] : RowSoftmax{kNegativeInfinity, 0.0f};
      if (merged.sum != 0.0f) {
        if (log_sum_exp != nullptr) log_sum_exp[position] = merged.maximum + std::log(merged.sum);
        continue;
      }
      if (there && own_value) {
        std::memcpy(row, v + position * call.v_stride, static_cast<size_t>(call.head_size) * sizeof(float));
      } else {
        std::fill_n(row, call.head_size, 0.0f);
      }
      if (log_sum_exp != nullptr) log_sum_exp[position] = kNegativeInfinity;
    }
  });
}

void forward_full(int32_t threads, const Attention& call, const AttentionScratch& scratch) {
  constexpr int64_t kRows = 256;  // of one work item
  const int64_t items = div_up(call.length, kRows);
  parallel_for(threads, call.sequence_heads() * items, [&](int64_t item, int32_t thread) {
    // The long tiles of causal attention first.
    const int64_t first = (items - 1 - item % items) * kRows;
    ForwardWalk(call, scratch, thread, item / items).full(first, std::min(call.length, first + kRows));
  });
}

void forward_chunked(int32_t threads, const Attention& call, const AttentionScratch& scratch, int64_t first_round,
                     int64_t last_round) {
  const int64_t chunk_length = call.options.chunk_length, chunks = div_up(call.stored(), chunk_length);
  const int64_t per_item = std::max<int64_t>(1, kItemRows / chunk_length), items = div_up(chunks, per_item);
  const int64_t rounds = last_round - first_round;
  Phases phases(scratch.phases, call.sequence_heads() * rounds);
  parallel_region(threads, [&](int32_t thread) {
    const auto run_round = [&](int64_t sequence_head_index, int64_t round) {
      const int64_t phase = sequence_head_index * rounds + round - first_round;
      if (round > first_round) phases.wait(phase - 1, items);
      phases.work(phase, items, [&](int64_t item) {
        ForwardWalk walk(call, scratch, thread, sequence_head_index, round);
        for (int64_t chunk = item * per_item; chunk < std::min(chunks, (item + 1) * per_item); ++chunk)
          walk.chunk(chunk, round == first_round, round == last_round - 1);
      });
    };
    for_phases(call.sequence_heads(), 1 + div_up(2 * threads, items), first_round, last_round,
               [&](int64_t first, int64_t last, int64_t round) {
                 for (int64_t index = first; index < last; ++index) run_round(index, round);
               });
  });
}

}  // namespace

void attention_forward_rounds(int32_t threads, const Attention& call, const AttentionScratch& scratch, int64_t first,
                              int64_t last) {
  if (call.options.kind == RFN_ATTENTION_FULL) {
    forward_full(threads, call, scratch);
  } else {
    forward_chunked(threads, call, scratch, first, last);
  }
  finish(threads, call, scratch);
}

}  // namespace rfn::cpu
