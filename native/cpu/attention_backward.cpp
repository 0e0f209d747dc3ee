// Attention backward, from out, log-sum-exp and the permutation alone (flash form). A tile adds to rows of its queries
// and of the keys of its windows. Threads never write the same row at a time, and the order in which a row receives its
// contributions is fixed:
//  - chunked: tiles of neighbouring chunks form items; an item writes its own rows and those of up to chunks_before +
//    chunks_after chunks beside it, so that odd items, then even items, then the ones whose window wraps around (first,
//    last) never meet;
//  - full: stripes of tokens; every step pairs them up so that no stripe is in two pairs.
#include <algorithm>

#include "cpu/attention_walk.h"
#include "cpu/vector_math.h"

namespace rfn::cpu {
namespace {

class BackwardWalk : public AttentionWalk {
 public:
  BackwardWalk(const Attention& attention, const AttentionScratch& attention_scratch, int32_t thread,
               int64_t sequence_head_index, int64_t of_round = 0)
      : AttentionWalk(attention, attention_scratch, thread, RFN_PASS_BACKWARD, sequence_head_index, of_round) {}

  void chunk(int64_t chunk) {
    for (int64_t first = 0; first < slots_of(chunk); first += kTileQueries) {
      if (!load_chunk_queries(chunk, first)) continue;
      begin();
      ahead.count = ahead.next = 0;
      look_ahead(chunk + 1, first,
                 {{call.q, call.q_stride},
                  {call.v, call.v_stride},
                  {call.grad_out, call.grad_out_stride},
                  {call.grad_q, call.grad_q_stride},
                  {call.grad_v, call.grad_v_stride}});
      walk_chunk_keys(chunk);
      end();
    }
  }

  // Queries [first, last) against keys [first_key, last_key).
  void full(int64_t first, int64_t last, int64_t first_key, int64_t last_key) {
    constexpr int64_t kKeys = kPackedBlocks * kBlockKeys;
    for (int64_t key = first_key; key < last_key; key += kKeys) {
      for (int64_t query = first; query < last; query += kTileQueries) {
        const int64_t query_end = std::min(last, query + kTileQueries), key_end = end_of_full_keys(query_end);
        if (key >= key_end || !load_full_queries(query, query_end)) continue;
        begin();
        walk_full_keys(key, std::min({key + kKeys, last_key, key_end}));
        end();
      }
    }
  }

 private:
  void begin() {
    kernels.pack_queries(rows(call.q, call.q_stride), call.q_stride, queries, logit_scale(call), tile, tile.q,
                         tile.q_transposed);
    kernels.pack_queries(rows(call.grad_out, call.grad_out_stride), call.grad_out_stride, queries, 1.0f, tile,
                         tile.grad_out, tile.grad_out_transposed);
    const float* const log_sum_exp = call.log_sum_exp + log_sum_exp_of(call, head);
    for (int64_t i = 0; i < round_up(queries.count, kLanePad); ++i) {
      const int64_t position = queries.position[i];
      queries.maximum[i] = position < 0 ? kNegativeInfinity : log_sum_exp[position];
      queries.delta[i] = position < 0 ? 0.0f : scratch.delta[head.index * call.length + position];
    }
    first_step = true;
  }

  void step() override { kernels.backward(window, queries, keys, blocks, first_step, tile); }

  void end() {
    if (first_step) return;  // no keys at all
    kernels.add_query_gradients(queries, logit_scale(call), tile, rows(call.grad_q, call.grad_q_stride),
                                call.grad_q_stride);
  }
};

// delta = dO . O - grad_log_sum_exp; gradients start at 0, but dv of a token that attended to itself at its dO.
void start(int32_t threads, const Attention& call, const AttentionScratch& scratch, bool overwrite) {
  const bool own_value = call.window().exclude_self;
  for_tokens(threads, call, scratch, [&](const SequenceHead& head, int64_t first, int64_t last) {
    const float* const out = rows_of(call.out, call.out_stride, call, head);
    const float* const grad_out = rows_of(call.grad_out, call.grad_out_stride, call, head);
    float* const grad_q = rows_of(call.grad_q, call.grad_q_stride, call, head);
    float* const grad_k = rows_of(call.grad_k, call.grad_k_stride, call, head);
    float* const grad_v = rows_of(call.grad_v, call.grad_v_stride, call, head);
    const int64_t log_sum_exp_row = log_sum_exp_of(call, head);
    for (int64_t position = first; position < last; ++position) {
      const float* const dout = grad_out + position * call.grad_out_stride;
      float* const dv = grad_v + position * call.grad_v_stride;
      if (overwrite) {
        std::fill_n(grad_q + position * call.grad_q_stride, call.head_size, 0.0f);
        std::fill_n(grad_k + position * call.grad_k_stride, call.head_size, 0.0f);
        std::fill_n(dv, call.head_size, 0.0f);
      }
      float delta = 0.0f;
      if (is_real(call, head, position)) {
        if (call.log_sum_exp[log_sum_exp_row + position] == kNegativeInfinity) {
          if (own_value) add(dv, dout, call.head_size);
        } else {
          const float* const row = out + position * call.out_stride;
          for (int64_t d = 0; d < call.head_size; ++d) delta += dout[d] * row[d];
          if (call.grad_log_sum_exp != nullptr) delta -= call.grad_log_sum_exp[log_sum_exp_row + position];
        }
      }
      scratch.delta[head.index * call.length + position] = delta;
    }
  });
}

void backward_full(int32_t threads, const Attention& call, const AttentionScratch& scratch) {
  constexpr int64_t kStripes = 16;
  const int64_t tiles = div_up(call.length, kTileQueries), stripes = std::min(kStripes, tiles);
  const auto begin = [&](int64_t stripe) { return std::min(call.length, stripe * tiles / stripes * kTileQueries); };
  const auto run = [&](BackwardWalk& walk, int64_t query, int64_t key) {
    if (call.options.causal == 0 || key <= query) walk.full(begin(query), begin(query + 1), begin(key), begin(key + 1));
  };
  parallel_for(threads, call.sequence_heads() * stripes, [&](int64_t item, int32_t thread) {
    BackwardWalk walk(call, scratch, thread, item / stripes);
    run(walk, item % stripes, item % stripes);
    walk.give_up_keys();
  });
  // All pairs of stripes as the rounds of a tournament: the last player stays, the others go round in a ring. An odd
  // number gets a player who is not there.
  const int64_t ring = round_up(stripes, 2) - 1, matches = (ring + 1) / 2;
  for (int64_t day = 0; day < ring; ++day) {
    parallel_for(threads, call.sequence_heads() * matches, [&](int64_t item, int32_t thread) {
      const int64_t match = item % matches;
      const int64_t one = match == 0 ? ring : (day + match) % ring, other = (day - match + ring) % ring;
      if (one >= stripes || other >= stripes) return;
      BackwardWalk walk(call, scratch, thread, item / matches);
      run(walk, std::max(one, other), std::min(one, other));
      run(walk, std::min(one, other), std::max(one, other));
      walk.give_up_keys();
    });
  }
}

void backward_chunked(int32_t threads, const Attention& call, const AttentionScratch& scratch, int64_t first_round,
                      int64_t last_round) {
  const AttentionWindow<> window = call.window();
  const int64_t chunks = div_up(call.stored(), window.chunk), rounds = last_round - first_round;
  const int64_t per_item = std::max({window.before + window.after, kItemRows / window.chunk, int64_t{1}});
  // The last item takes the rest, so that none is shorter than per_item. Those before `stored` hold tokens.
  const int64_t items = std::max<int64_t>(1, window.per_round / per_item),
                stored = std::min(items, div_up(chunks, per_item));
  const int64_t inner = std::clamp<int64_t>(stored - 1, 0, std::max<int64_t>(0, items - 2));  // 1 .. inner never wrap
  // Parts of a round, of which items never meet: odd inner items, even ones, the first, the last.
  const int64_t part_items[kBackwardPhases] = {div_up(inner, 2), inner / 2, 1, items > 1 && stored == items ? 1 : 0};
  const auto item_of = [&](int64_t part, int64_t i) {
    return part == 0 ? 2 * i + 1 : part == 1 ? 2 * i + 2 : part == 2 ? 0 : items - 1;
  };
  Phases phases(scratch.phases, call.sequence_heads() * rounds * kBackwardPhases);
  parallel_region(threads, [&](int32_t thread) {
    const auto run_part = [&](int64_t sequence_head_index, int64_t round, int64_t part) {
      const int64_t phase = (sequence_head_index * rounds + round - first_round) * kBackwardPhases + part;
      if (round > first_round || part > 0)
        phases.wait(phase - 1, part_items[(part + kBackwardPhases - 1) % kBackwardPhases]);
      phases.work(phase, part_items[part], [&](int64_t i) {
        const int64_t item = item_of(part, i);
        const int64_t end = item == items - 1 ? chunks : std::min(chunks, (item + 1) * per_item);
        BackwardWalk walk(call, scratch, thread, sequence_head_index, round);
        for (int64_t chunk = item * per_item; chunk < end; ++chunk) walk.chunk(chunk);
        walk.give_up_keys();
      });
    };
    for_phases(call.sequence_heads(), std::max<int64_t>(threads, 1 + div_up(2 * threads, items)), first_round,
               last_round, [&](int64_t first, int64_t last, int64_t round) {
                 for (int64_t part = 0; part < kBackwardPhases; ++part) {
                   for (int64_t index = first; index < last; ++index) run_part(index, round, part);
                 }
               });
  });
}

}  // namespace

void attention_backward_rounds(int32_t threads, const Attention& call, const AttentionScratch& scratch, int64_t first,
                               int64_t last, bool overwrite) {
  start(threads, call, scratch, overwrite);
  if (call.options.kind == RFN_ATTENTION_FULL) {
    backward_full(threads, call, scratch);
  } else {
    backward_chunked(threads, call, scratch, first, last);
  }
}

}  // namespace rfn::cpu
