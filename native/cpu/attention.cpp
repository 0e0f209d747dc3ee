// Attention on the CPU: LSH, local and full, forward and backward, over the tile engine.
//
// Every kind is the same walk: tiles of queries, each against the keys of its window in blocks. LSH walks the sorted
// order of one round after the other, the rounds of a token merged by the running maximum and sum that the token
// carries; local walks the sequence itself; full has one window that holds everything. Nothing of size [rounds, tokens,
// width] or [tokens, window] exists.
//
// Threads never write the same row at a time, and the order in which a row receives its contributions is fixed:
//  - forward: a token is a query once per round, and rounds follow each other;
//  - backward, chunked: tiles of neighbouring chunks form items; an item writes its own rows and those of up to
//    chunks_before + chunks_after chunks beside it, so that odd items, then even items, then the ones whose window
//    wraps around (first, last) never meet;
//  - backward, full: S stripes of tokens; every step pairs them up so that no stripe is in two pairs.
//
// Keys are packed (gathered, normalised) a block at a time and stay packed while the walk goes on to the next tiles
// whose windows hold them; so do their gradients, which are added to their rows when the block is given up.
#include "cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <numeric>

#include "core/backend.h"
#include "core/error.h"
#include "core/tensor.h"
#include "cpu/parallel.h"
#include "cpu/vector_math.h"

namespace rfn::cpu {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kItemRows = 512;       // query rows of one work item, roughly
constexpr int64_t kPackedBlocks = 8;     // blocks of keys that a thread holds, at most
constexpr int64_t kTokensPerItem = 512;  // of element-wise passes
constexpr int64_t kFullRows = 256;       // full attention, forward: query rows of one work item
constexpr int64_t kStripes = 16;         // full attention, backward
constexpr int64_t kParts = 4;            // of a chunked backward round: odd inner items, even ones, the first, the last
constexpr int64_t kPlacesPerRound = kTileQueries;
static_assert(kTileQueries == kBlockKeys, "queries of a tile and keys of a block have places alike");
constexpr int64_t kHeadGroupBytes = int64_t{256} << 20;

// Shape of the chunked walk.
struct Chunks {
  int64_t length, per_round, total;
  int64_t before, after;
  int64_t stored;  // of a round, from its first on: the others hold nothing but imagined padding
};

Chunks chunks_of(const Attention& a) {
  const int64_t length = a.options.chunk_length, per_round = a.padded() / length;
  return {length,
          per_round,
          per_round * a.rounds(),
          a.options.chunks_before,
          a.options.chunks_after,
          div_up(a.stored(), length)};
}

// One (example, head) of the call.
struct Pair {
  int64_t index;  // in the scratch
  int64_t example;
  int64_t head;         // of the call
  int64_t global;       // example * all_heads + head of the model: dropout and rotations count by it
  const uint8_t* mask;  // [T] or null
  int32_t* buckets;     // [R,T]
  const int32_t* sorted;
  const int32_t* slot_of;
};

Pair pair_of(const Attention& a, const AttentionScratch& s, int64_t index) {
  Pair p{};
  p.index = index;
  p.example = index / a.heads;
  p.head = index % a.heads;
  p.global = p.example * a.all_heads + a.first_head + p.head;
  p.mask = a.mask == nullptr ? nullptr : a.mask + p.example * a.length;
  const int64_t rounds = a.rounds();
  if (a.lsh() && s.sorted != nullptr) {
    p.buckets = a.buckets != nullptr ? a.buckets + p.global * rounds * a.length : s.buckets + index * rounds * a.length;
    p.sorted = s.sorted + index * rounds * a.stored();
    if (s.slot_of != nullptr) p.slot_of = s.slot_of + index * rounds * a.length;
  }
  return p;
}

template <class T>
T* row_base(T* base, int64_t stride, const Attention& a, const Pair& p) {
  return base + p.example * a.length * stride + p.head * a.head_size;
}

bool real(const Attention& a, const Pair& p, int64_t position) {
  return position < a.length && (p.mask == nullptr || p.mask[position] != 0);
}

TileMask tile_mask(const Attention& a) {
  TileMask m;
  m.causal = a.options.causal != 0;
  m.exclude_self = a.options.shared_qk != 0;
  if (a.lsh()) {
    m.same_bucket = a.options.window != RFN_WINDOW_SLOTS;
    m.strict = a.options.window == RFN_WINDOW_STRICT;
    m.span = static_cast<int32_t>(a.options.chunks_before * a.options.chunk_length);
  }
  return m;
}

// Within a chunk any order of slots will do when nothing but the chunk decides what a query sees. Ascending positions
// then turn a causal mask into a staircase, and what lies behind it is never computed.
bool orders_chunks(const Attention& a) {
  return a.lsh() && a.options.causal != 0 && a.options.window == RFN_WINDOW_SLOTS &&
         a.options.dropout == 0.0f;  // dropout counts by slots
}

// Blocks of keys to hold: those of one window, if they are not too many.
int64_t packed_blocks(const Attention& a) {
  if (a.options.kind == RFN_ATTENTION_FULL) return kPackedBlocks;
  const Chunks c = chunks_of(a);
  return std::min(kPackedBlocks, (1 + c.before + c.after) * div_up(c.length, kBlockKeys));
}

// What a thread works in.
struct ThreadBuffers {
  TileBuffers tile;
  float* dropout_rows;  // [lanes, kTileKeys]; null: no dropout
  float* keys;          // [packed blocks, 2 (backward: 4), kBlockKeys, wide]: k, v, grad_k, grad_v
};

ThreadBuffers thread_layout(Arena& arena, const Attention& a, int32_t pass) {
  ThreadBuffers b{};
  TileBuffers& t = b.tile;
  t.head_size = a.head_size;
  t.wide = round_up(a.head_size, kLanePad);
  t.q = arena.take<float>(kTileQueries * t.wide);
  t.q_transposed = arena.take<float>(t.wide * kTileQueries);
  t.scores = arena.take<float>(kTileKeys * kTileQueries);
  if (a.options.dropout > 0.0f) {
    t.dropout = arena.take<float>(kTileKeys * kTileQueries);
    b.dropout_rows = arena.take<float>(kTileQueries * kTileKeys);
  }
  if (pass == RFN_PASS_BACKWARD) {
    t.grad_out = arena.take<float>(kTileQueries * t.wide);
    t.grad_out_transposed = arena.take<float>(t.wide * kTileQueries);
    t.grad_scores = arena.take<float>(kTileKeys * kTileQueries);
    t.grad_q = arena.take<float>(kTileQueries * t.wide);
  }
  t.out = arena.take<float>(kTileQueries * t.wide);  // backward recomputes forward where nothing was kept
  b.keys = arena.take<float>(packed_blocks(a) * (pass == RFN_PASS_BACKWARD ? 4 : 2) * kBlockKeys * t.wide);
  return b;
}

ThreadBuffers thread_buffers(const Attention& a, const AttentionScratch& s, int32_t thread, int32_t pass) {
  Arena arena(s.tiles + thread * s.tile_floats, s.tile_floats * static_cast<int64_t>(sizeof(float)));
  return thread_layout(arena, a, pass);
}

// Everything a thread needs to walk the tiles of one (example, head), and one round if there are rounds.
class Walker {
 public:
  Walker(const Attention& attention, const AttentionScratch& scratch, int32_t thread, int32_t pass, const Pair& pair,
         int64_t of_round = 0)
      : a(attention),
        s(scratch),
        kernels(tile_kernels()),
        buffers(thread_buffers(attention, scratch, thread, pass)),
        t(buffers.tile),
        mask(tile_mask(attention)),
        p(pair),
        round(of_round),
        c(attention.options.kind == RFN_ATTENTION_FULL ? Chunks{} : chunks_of(attention)),
        capacity(packed_blocks(attention)) {
    buffers.tile.ahead = &ahead;
    buffers.tile.duplicates = duplicates();
    ahead.row_size = a.head_size;
    const int64_t arrays = pass == RFN_PASS_BACKWARD ? 4 : 2, size = kBlockKeys * t.wide;
    for (int64_t i = 0; i < capacity; ++i) {
      float* const memory = buffers.keys + i * arrays * size;
      block_id[i] = -1;
      packed[i].k = memory;
      packed[i].v = memory + size;
      if (arrays == 2) continue;
      packed[i].grad_k = memory + 2 * size;
      packed[i].grad_v = memory + 3 * size;
    }
    if (s.places == nullptr) return;
    int32_t* memory = s.places + thread * s.places_per_thread;
    const auto take = [&](RoundPlaces& places) {
      places = {memory, memory + a.rounds() * kPlacesPerRound};
      memory += 2 * a.rounds() * kPlacesPerRound;
    };
    take(queries.places);
    for (int64_t i = 0; i < capacity; ++i) take(packed[i].places);
  }

  // ---- whole tiles ----

  void forward_chunk(int64_t chunk, bool fresh, bool last) {
    for (int64_t first = 0; first < slots_of(chunk); first += kTileQueries) {
      if (!load_chunk_queries(chunk, first)) continue;
      begin_forward();
      ahead.count = ahead.next = 0;
      if (!fresh) look_ahead(chunk, first, {{a.out, a.out_stride}});
      look_ahead(chunk + 1, first, {{a.q, a.q_stride}, {a.v, a.v_stride}});
      for_chunk_keys(chunk, [&] { forward_step(); });
      end_forward(fresh, last);
    }
  }

  void backward_chunk(int64_t chunk) {
    for (int64_t first = 0; first < slots_of(chunk); first += kTileQueries) {
      if (!load_chunk_queries(chunk, first)) continue;
      begin_backward();
      ahead.count = ahead.next = 0;
      look_ahead(chunk + 1, first,
                 {{a.q, a.q_stride},
                  {a.v, a.v_stride},
                  {a.grad_out, a.grad_out_stride},
                  {a.grad_q, a.grad_q_stride},
                  {a.grad_v, a.grad_v_stride}});
      for_chunk_keys(chunk, [&] { backward_step(); });
      end_backward();
    }
  }

  // Queries [first, last) against all keys they may see.
  void forward_full(int64_t first, int64_t last) {
    constexpr int64_t kKeys = kPackedBlocks * kBlockKeys;
    for (int64_t key = 0; key < last_full_key(last); key += kKeys) {
      for (int64_t query = first; query < last; query += kTileQueries) {
        const int64_t end = std::min(last, query + kTileQueries);
        if (key >= last_full_key(end) || !load_full_queries(query, end)) continue;
        begin_forward();
        for_full_keys(key, std::min(key + kKeys, last_full_key(end)), [&] { forward_step(); });
        end_forward(key == 0, key + kKeys >= last_full_key(end));
      }
    }
  }

  // Queries [first, last) against keys [first_key, last_key).
  void backward_full(int64_t first, int64_t last, int64_t first_key, int64_t last_key) {
    constexpr int64_t kKeys = kPackedBlocks * kBlockKeys;
    for (int64_t key = first_key; key < last_key; key += kKeys) {
      for (int64_t query = first; query < last; query += kTileQueries) {
        const int64_t end = std::min(last, query + kTileQueries);
        if (key >= last_full_key(end) || !load_full_queries(query, end)) continue;
        begin_backward();
        for_full_keys(key, std::min({key + kKeys, last_key, last_full_key(end)}), [&] { backward_step(); });
        end_backward();
      }
    }
  }

  // Adds the gradients of the keys that are still packed.
  void give_up_keys() {
    for (int64_t i = 0; i < capacity; ++i) {
      give_up(packed[next_block]);  // the oldest first
      next_block = (next_block + 1) % capacity;
    }
  }

 private:
  // Of a chunk of the round, without imagined padding that is not stored.
  int64_t slots_of(int64_t chunk) const { return std::clamp<int64_t>(a.stored() - chunk * c.length, 0, c.length); }

  // ---- queries ----

  // Rows [first, ...) of a chunk; false: none of them is there.
  bool load_chunk_queries(int64_t chunk, int64_t first) {
    const int64_t window = c.length * (1 + c.before + c.after);
    queries.count = 0;
    any_query = false;
    for (int64_t x = first; x < std::min(slots_of(chunk), first + kTileQueries); ++x) {
      const int64_t slot = chunk * c.length + x;
      const int64_t position = a.lsh() ? p.sorted[round * a.stored() + slot] : slot;
      const bool there = real(a, p, position);
      const int32_t bucket = mask.same_bucket && there ? p.buckets[round * a.length + position] : 0;
      add_query(position, slot, bucket, there,
                ((p.global * a.rounds() + round) * a.padded() + (mask.strict ? position : slot)) * window);
    }
    return end_queries();
  }

  bool load_full_queries(int64_t first, int64_t last) {
    queries.count = 0;
    any_query = false;
    for (int64_t position = first; position < last; ++position) {
      add_query(position, position, 0, real(a, p, position), (p.global * a.length + position) * a.length);
    }
    return end_queries();
  }

  void add_query(int64_t position, int64_t slot, int32_t bucket, bool there, int64_t element) {
    const int64_t i = queries.count++;
    queries.position[i] = there ? static_cast<int32_t>(position) : -1;
    queries.slot[i] = static_cast<int32_t>(slot);
    queries.bucket[i] = bucket;
    dropout_row[i] = element;
    any_query |= there;
  }

  // Lanes behind the last query of a partial tile are absent ones.
  bool end_queries() {
    for (int64_t i = queries.count; i < round_up(queries.count, kLanePad); ++i) {
      queries.position[i] = -1;
      queries.slot[i] = 0;
      queries.bucket[i] = 0;
    }
    if (any_query) find_places(queries.position, round_up(queries.count, kLanePad), queries.places);
    return any_query;
  }

  // ---- keys ----

  // Calls step() with the keys of the window of a chunk, up to kTileKeys at a time.
  template <class Step>
  void for_chunk_keys(int64_t chunk, const Step& step) {
    const int64_t center = round * c.per_round + chunk, pieces = div_up(c.length, kBlockKeys);
    const bool ring = a.options.wrap != 0 && !mask.strict;  // the strict window never leaves its round
    int64_t first = -c.before, last = c.after;
    if (!ring) {
      first = std::max(first, -chunk);
      last = std::min(last, c.per_round - 1 - chunk);
    } else if (a.options.repeat_chunks == 0) {
      last = std::min(last, c.total - 1 - c.before);  // a chunk met before is met again `total` offsets later
    }
    int64_t empty = 0;  // blocks of imagined padding in a row
    for (int64_t offset = first; offset <= last; ++offset) {
      const int64_t other = ring ? ((center + offset) % c.total + c.total) % c.total : center + offset;
      const int64_t other_round = other / c.per_round, other_chunk = other % c.per_round;
      const int64_t first_slot = other_chunk * c.length, end_slot = first_slot + slots_of(other_chunk);
      const int32_t* const sorted = a.lsh() ? p.sorted + other_round * a.stored() : nullptr;
      const int32_t* const buckets = mask.same_bucket && other_round == round ? p.buckets + round * a.length : nullptr;
      for (int64_t piece = 0; piece < pieces && empty < kPackedBlocks; ++piece) {
        const int64_t begin = first_slot + piece * kBlockKeys, end = std::min(end_slot, begin + kBlockKeys);
        empty = begin < end ? 0 : empty + 1;
        add_keys(other * pieces + piece, (offset + c.before) * c.length - first_slot, step, [&](KeyBlock& block) {
          for (int64_t slot = begin; slot < end; ++slot) {
            const int64_t position = sorted != nullptr ? sorted[slot] : slot;
            if (!real(a, p, position)) continue;
            add_key(block, position, slot,
                    buckets != nullptr ? buckets[position]
                    : mask.same_bucket ? -1
                                       : 0);  // -1: no query's
          }
        });
      }
      // As many empty blocks as a thread holds have replaced all others, and the rest of the round is empty too.
      if (empty < kPackedBlocks) continue;
      offset += c.per_round - 1 - other_chunk;
      empty = 0;
    }
    run(step);
  }

  template <class Step>
  void for_full_keys(int64_t first, int64_t last, const Step& step) {
    for (int64_t begin = first; begin < last; begin += kBlockKeys) {
      add_keys(begin / kBlockKeys, 0, step, [&](KeyBlock& block) {
        for (int64_t position = begin; position < std::min(a.length, begin + kBlockKeys); ++position) {
          if (real(a, p, position)) add_key(block, position, position, 0);
        }
      });
    }
    run(step);
  }

  // Keys past this one are seen by no query before `last`.
  int64_t last_full_key(int64_t last) const { return a.options.causal != 0 ? last : a.length; }

  void add_key(KeyBlock& block, int64_t position, int64_t slot, int32_t bucket) const {
    block.position[block.count] = static_cast<int32_t>(position);
    block.slot[block.count] = static_cast<int32_t>(slot);
    block.bucket[block.count] = bucket;
    ++block.count;
  }

  // The block of this id, which fill() makes if it is not packed already, joins the next step.
  template <class Step, class Fill>
  void add_keys(int64_t id, int64_t first_column, const Step& step, const Fill& fill) {
    int64_t i = 0;
    while (i < capacity && block_id[i] != id) ++i;
    if (i == capacity) {
      i = next_block;
      next_block = (next_block + 1) % capacity;
      if (std::any_of(keys, keys + blocks, [&](const TileKeys& used) { return used.block == &packed[i]; })) run(step);
      give_up(packed[i]);
      block_id[i] = id;
      fill(packed[i]);
      find_places(packed[i].position, packed[i].count, packed[i].places);
      kernels.pack_keys(row_base(a.k, a.k_stride, a, p), a.k_stride, row_base(a.v, a.v_stride, a, p), a.v_stride,
                        a.options.key_norm, t, packed[i]);
    }
    KeyBlock& block = packed[i];
    if (block.count == 0) return;
    if (blocks == kTileBlocks || key_count + block.count > kTileKeys) run(step);
    keys[blocks++] = {&block, key_count, first_column};
    key_count += block.count;
  }

  template <class Step>
  void run(const Step& step) {
    if (blocks == 0) return;
    if (t.dropout != nullptr) fill_dropout();
    step();
    first_step = false;
    blocks = key_count = 0;
  }

  void give_up(KeyBlock& block) {
    if (block.has_gradient) {
      kernels.add_key_gradients(block, a.options.key_norm, t, row_base(a.grad_k, a.grad_k_stride, a, p),
                                a.grad_k_stride, row_base(a.grad_v, a.grad_v_stride, a, p), a.grad_v_stride);
    }
    block.has_gradient = false;
    block.count = 0;
  }

  struct Rows {
    const float* base;
    int64_t stride;
  };

  // The rows of these arrays that the tile of a later chunk will gather.
  void look_ahead(int64_t chunk, int64_t first, std::initializer_list<Rows> arrays) {
    if (!a.lsh() || chunk >= c.stored) return;
    const int32_t* const sorted = p.sorted + round * a.stored() + chunk * c.length;
    for (const Rows& array : arrays) {
      const float* const base = row_base(array.base, array.stride, a, p);
      for (int64_t x = first; x < std::min(slots_of(chunk), first + kTileQueries); ++x) {
        if (sorted[x] < a.length) ahead.rows[ahead.count++] = base + sorted[x] * array.stride;
      }
    }
  }

  void fill_dropout() {
    int64_t element[kTileKeys];  // of the key in the query's row: ascending by column, or with strict windows
                                 // descending by slot
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t j = 0; j < keys[b].block->count; ++j) {
        const int64_t slot = keys[b].block->slot[j];
        element[keys[b].row + j] = mask.strict ? -slot - 1 : keys[b].first_column + slot;
      }
    }
    const int64_t used = round_up(queries.count, kLanePad), step = mask.strict ? -1 : 1;
    std::fill_n(buffers.dropout_rows, used * kTileKeys, 1.0f);
    for (int64_t i = 0; i < queries.count; ++i) {
      float* const row = buffers.dropout_rows + i * kTileKeys;
      const int64_t base = dropout_row[i] + (mask.strict ? queries.slot[i] : 0);
      for (int64_t j = 0; j < key_count;) {  // runs of consecutive elements
        int64_t end = j + 1;
        while (end < key_count && element[end] == element[end - 1] + step) ++end;
        apply_dropout(row + j, end - j, a.dropout,
                      static_cast<uint64_t>(base + (mask.strict ? element[end - 1] : element[j])), a.options.dropout);
        if (mask.strict) std::reverse(row + j, row + end);
        j = end;
      }
    }
    kernels.transpose(buffers.dropout_rows, used, kTileKeys, t.dropout);
  }

  // Paper eqs. 13-16. A pair that is visible only across the boundary of two rounds has count 0. A chunk that is met
  // twice is one round all the same.
  Duplicates duplicates() const {
    Duplicates d;
    if (s.places == nullptr) return d;
    d.rounds = static_cast<int32_t>(a.rounds());
    d.same_bucket = mask.same_bucket;
    d.log_counts = s.log_counts;
    if (mask.strict) {
      d.shift = -1;
      d.width = mask.span;
      return d;
    }
    const int64_t width = c.before + 1 + c.after;
    d.shift = static_cast<int32_t>(c.after);
    d.width = static_cast<int32_t>(width);
    if (a.options.wrap != 0 &&
        c.total <= std::numeric_limits<int32_t>::max()) {  // no window reaches round a longer ring
      d.ring = static_cast<int32_t>(c.total);
      if (width >= c.total) d.shift = 0, d.width = d.ring;  // it holds everything
    }
    return d;
  }

  // Slots (chunks, where the window is one of chunks) and buckets in all rounds of tokens that are there; of others,
  // those of token 0.
  void find_places(const int32_t* positions, int64_t count, const RoundPlaces& places) const {
    if (places.place == nullptr) return;
    const int64_t unit = mask.strict ? 1 : c.length;
    for (int64_t r = 0; r < a.rounds(); ++r) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = r * a.length + std::max(positions[i], 0);
        places.place[r * kPlacesPerRound + i] = static_cast<int32_t>(p.slot_of[at] / unit);
        places.bucket[r * kPlacesPerRound + i] = p.buckets[at];
      }
    }
  }

  // ---- steps ----

  void begin_forward() {
    kernels.pack_queries(row_base(a.q, a.q_stride, a, p), a.q_stride, queries, logit_scale(a), t, t.q, t.q_transposed);
    first_step = true;
  }

  void forward_step() { kernels.forward(mask, queries, keys, blocks, first_step, t); }

  // Merges with the rounds or keys before, unless there are none (`fresh`); `last`: nothing follows.
  void end_forward(bool fresh, bool last) {
    if (first_step) {  // no keys at all
      const int64_t used = round_up(queries.count, kLanePad);
      std::fill_n(queries.maximum, used, kNegativeInfinity);
      std::fill_n(queries.sum, used, 0.0f);
      std::fill_n(t.out, queries.count * t.wide, 0.0f);
    }
    kernels.merge(queries, fresh, last, t, row_base(a.out, a.out_stride, a, p), a.out_stride,
                  s.merged + p.index * a.length);
  }

  void begin_backward() {
    kernels.pack_queries(row_base(a.q, a.q_stride, a, p), a.q_stride, queries, logit_scale(a), t, t.q, t.q_transposed);
    kernels.pack_queries(row_base(a.grad_out, a.grad_out_stride, a, p), a.grad_out_stride, queries, 1.0f, t, t.grad_out,
                         t.grad_out_transposed);
    const float* const lse = a.lse + (p.example * a.lse_heads + p.head) * a.length;
    for (int64_t i = 0; i < round_up(queries.count, kLanePad); ++i) {
      const int64_t position = queries.position[i];
      queries.maximum[i] = position < 0 ? kNegativeInfinity : lse[position];
      queries.delta[i] = position < 0 ? 0.0f : s.delta[p.index * a.length + position];
    }
    first_step = true;
  }

  void backward_step() { kernels.backward(mask, queries, keys, blocks, first_step, t); }

  void end_backward() {
    if (first_step) return;  // no keys at all
    kernels.add_query_gradients(queries, logit_scale(a), t, row_base(a.grad_q, a.grad_q_stride, a, p), a.grad_q_stride);
  }

  const Attention& a;
  const AttentionScratch& s;
  const TileKernels& kernels;
  ThreadBuffers buffers;
  const TileBuffers& t;
  const TileMask mask;
  const Pair p;
  const int64_t round;
  const Chunks c;
  const int64_t capacity;  // packed blocks

  TileQueries queries;
  bool any_query = false;
  int64_t dropout_row[kTileQueries];  // element index of (query, column 0)

  RowsAhead ahead;

  KeyBlock packed[kPackedBlocks];  // in the order of a ring: next_block is the oldest
  int64_t block_id[kPackedBlocks];
  int64_t next_block = 0;

  TileKeys keys[kTileBlocks];  // of the next step
  int64_t blocks = 0, key_count = 0;
  bool first_step = true;  // of the tile
};

// Calls body(pair, first token, last token) in parallel.
template <class Body>
void for_tokens(int32_t threads, const Attention& a, const AttentionScratch& s, const Body& body) {
  const int64_t blocks = div_up(a.length, kTokensPerItem);
  parallel_for(threads, a.pairs() * blocks, [&](int64_t item, int32_t) {
    const int64_t first = item % blocks * kTokensPerItem;
    body(pair_of(a, s, item / blocks), first, std::min(a.length, first + kTokensPerItem));
  });
}

// The log-sum-exp; tokens without any key get their own value (shared QK) or 0. The others are divided by their sum
// already.
void finish_forward(int32_t threads, const Attention& a, const AttentionScratch& s) {
  for_tokens(threads, a, s, [&](const Pair& p, int64_t first, int64_t last) {
    float* const out = row_base(a.out, a.out_stride, a, p);
    const float* const v = row_base(a.v, a.v_stride, a, p);
    float* const lse = a.lse == nullptr ? nullptr : a.lse + (p.example * a.lse_heads + p.head) * a.length;
    for (int64_t position = first; position < last; ++position) {
      float* const row = out + position * a.out_stride;
      const bool there = real(a, p, position);
      const RowSoftmax merged = there ? s.merged[p.index * a.length + position] : RowSoftmax{kNegativeInfinity, 0.0f};
      if (merged.sum != 0.0f) {
        if (lse != nullptr) lse[position] = merged.maximum + std::log(merged.sum);
        continue;
      }
      if (there && a.options.shared_qk != 0) {
        std::memcpy(row, v + position * a.v_stride, static_cast<size_t>(a.head_size) * sizeof(float));
      } else {
        std::fill_n(row, a.head_size, 0.0f);
      }
      if (lse != nullptr) lse[position] = kNegativeInfinity;
    }
  });
}

// delta = dO . O - dlse; gradients start at 0, but dv of a token that attended to itself at its dO.
void start_backward(int32_t threads, const Attention& a, const AttentionScratch& s, bool overwrite) {
  for_tokens(threads, a, s, [&](const Pair& p, int64_t first, int64_t last) {
    const float* const out = row_base(a.out, a.out_stride, a, p);
    const float* const grad_out = row_base(a.grad_out, a.grad_out_stride, a, p);
    float* const grad_q = row_base(a.grad_q, a.grad_q_stride, a, p);
    float* const grad_k = row_base(a.grad_k, a.grad_k_stride, a, p);
    float* const grad_v = row_base(a.grad_v, a.grad_v_stride, a, p);
    const int64_t lse_row = (p.example * a.lse_heads + p.head) * a.length;
    for (int64_t position = first; position < last; ++position) {
      const float* const dout = grad_out + position * a.grad_out_stride;
      float* const dv = grad_v + position * a.grad_v_stride;
      if (overwrite) {
        std::fill_n(grad_q + position * a.grad_q_stride, a.head_size, 0.0f);
        std::fill_n(grad_k + position * a.grad_k_stride, a.head_size, 0.0f);
        std::fill_n(dv, a.head_size, 0.0f);
      }
      float delta = 0.0f;
      if (real(a, p, position)) {
        if (a.lse[lse_row + position] == kNegativeInfinity) {
          if (a.options.shared_qk != 0) add(dv, dout, a.head_size);
        } else {
          const float* const row = out + position * a.out_stride;
          for (int64_t d = 0; d < a.head_size; ++d) delta += dout[d] * row[d];
          if (a.grad_lse != nullptr) delta -= a.grad_lse[lse_row + position];
        }
      }
      s.delta[p.index * a.length + position] = delta;
    }
  });
}

void forward_full(int32_t threads, const Attention& a, const AttentionScratch& s) {
  const int64_t items = div_up(a.length, kFullRows);
  parallel_for(threads, a.pairs() * items, [&](int64_t item, int32_t thread) {
    // The long tiles of causal attention first.
    const int64_t first = (items - 1 - item % items) * kFullRows;
    Walker(a, s, thread, RFN_PASS_FORWARD, pair_of(a, s, item / items))
        .forward_full(first, std::min(a.length, first + kFullRows));
  });
}

void backward_full(int32_t threads, const Attention& a, const AttentionScratch& s) {
  const int64_t tiles = div_up(a.length, kTileQueries), stripes = std::min(kStripes, tiles);
  const auto begin = [&](int64_t stripe) { return std::min(a.length, stripe * tiles / stripes * kTileQueries); };
  const auto run = [&](Walker& w, int64_t query, int64_t key) {
    if (a.options.causal == 0 || key <= query)
      w.backward_full(begin(query), begin(query + 1), begin(key), begin(key + 1));
  };
  parallel_for(threads, a.pairs() * stripes, [&](int64_t item, int32_t thread) {
    Walker w(a, s, thread, RFN_PASS_BACKWARD, pair_of(a, s, item / stripes));
    run(w, item % stripes, item % stripes);
    w.give_up_keys();
  });
  // All pairs of stripes as the rounds of a tournament: the last player stays, the others go round in a ring. An odd
  // number gets a player who is not there.
  const int64_t ring = round_up(stripes, 2) - 1, matches = (ring + 1) / 2;
  for (int64_t day = 0; day < ring; ++day) {
    parallel_for(threads, a.pairs() * matches, [&](int64_t item, int32_t thread) {
      const int64_t match = item % matches;
      const int64_t one = match == 0 ? ring : (day + match) % ring, other = (day - match + ring) % ring;
      if (one >= stripes || other >= stripes) return;
      Walker w(a, s, thread, RFN_PASS_BACKWARD, pair_of(a, s, item / matches));
      run(w, std::max(one, other), std::min(one, other));
      run(w, std::min(one, other), std::max(one, other));
      w.give_up_keys();
    });
  }
}

// The chunked kinds: phases of (example, head) pairs and rounds, in groups of a few pairs that go through all rounds
// together, so that their rows stay in a cache from round to round. The phases of one pair follow each other; while the
// last items of one end there are those of another to take.
template <class Body>
void for_phases(int64_t pairs, int64_t group, int64_t first_round, int64_t last_round, const Body& body) {
  for (int64_t first = 0; first < pairs; first += group) {
    for (int64_t round = first_round; round < last_round; ++round) body(first, std::min(pairs, first + group), round);
  }
}

void forward_chunked(int32_t threads, const Attention& a, const AttentionScratch& s, int64_t first_round,
                     int64_t last_round) {
  const Chunks c = chunks_of(a);
  const int64_t per_item = std::max<int64_t>(1, kItemRows / c.length), items = div_up(c.stored, per_item),
                rounds = last_round - first_round;
  Phases phases(s.phases, a.pairs() * rounds);
  parallel_region(threads, [&](int32_t thread) {
    for_phases(a.pairs(), 1 + div_up(2 * threads, items), first_round, last_round,
               [&](int64_t first_pair, int64_t last_pair, int64_t round) {
                 for (int64_t pair = first_pair; pair < last_pair; ++pair) {
                   const int64_t phase = pair * rounds + round - first_round;
                   if (round > first_round) phases.wait(phase - 1, items);
                   phases.work(phase, items, [&](int64_t item) {
                     Walker w(a, s, thread, RFN_PASS_FORWARD, pair_of(a, s, pair), round);
                     for (int64_t chunk = item * per_item; chunk < std::min(c.stored, (item + 1) * per_item); ++chunk) {
                       w.forward_chunk(chunk, round == first_round, round == last_round - 1);
                     }
                   });
                 }
               });
  });
}

void backward_chunked(int32_t threads, const Attention& a, const AttentionScratch& s, int64_t first_round,
                      int64_t last_round) {
  const Chunks c = chunks_of(a);
  const int64_t per_item = std::max({c.before + c.after, kItemRows / c.length, int64_t{1}}),
                rounds = last_round - first_round;
  // The last item takes the rest, so that none is shorter than per_item. Of all items those before `stored` hold
  // tokens.
  const int64_t items = std::max<int64_t>(1, c.per_round / per_item),
                stored = std::min(items, div_up(c.stored, per_item));
  const int64_t inner = std::clamp<int64_t>(stored - 1, 0, std::max<int64_t>(0, items - 2));  // 1 .. inner never wrap
  const int64_t part_items[kParts] = {div_up(inner, 2), inner / 2, 1, items > 1 && stored == items ? 1 : 0};
  const auto item_of = [&](int64_t part, int64_t i) {
    return part == 0 ? 2 * i + 1 : part == 1 ? 2 * i + 2 : part == 2 ? 0 : items - 1;
  };
  Phases phases(s.phases, a.pairs() * rounds * kParts);
  parallel_region(threads, [&](int32_t thread) {
    const int64_t group = std::max<int64_t>(threads, 1 + div_up(2 * threads, items));
    for_phases(a.pairs(), group, first_round, last_round, [&](int64_t first_pair, int64_t last_pair, int64_t round) {
      for (int64_t part = 0; part < kParts; ++part) {
        for (int64_t pair = first_pair; pair < last_pair; ++pair) {
          const int64_t phase = (pair * rounds + round - first_round) * kParts + part;
          if (round > first_round || part > 0) phases.wait(phase - 1, part_items[(part + kParts - 1) % kParts]);
          phases.work(phase, part_items[part], [&](int64_t i) {
            const int64_t item = item_of(part, i);
            Walker w(a, s, thread, RFN_PASS_BACKWARD, pair_of(a, s, pair), round);
            const int64_t end = item == items - 1 ? c.stored : std::min(c.stored, (item + 1) * per_item);
            for (int64_t chunk = item * per_item; chunk < end; ++chunk) w.backward_chunk(chunk);
            w.give_up_keys();
          });
        }
      }
    });
  });
}

}  // namespace

rfn_status check_indices(const rfn_tensor& tensor, int64_t limit, const char* what) {
  const int32_t* const values = i32(tensor);
  for (int64_t i = 0, count = elements(tensor); i < count; ++i) {
    if (values[i] < 0 || values[i] >= limit) {
      return fail(RFN_INVALID_ARGUMENT, "%s: expected values from 0 to %lld, got %d at element %lld", what,
                  static_cast<long long>(limit - 1), values[i], static_cast<long long>(i));
    }
  }
  return RFN_OK;
}

int64_t head_group(int64_t asked, int64_t heads, int64_t bytes_per_head) {
  if (asked > 0) return std::min(asked, heads);
  int64_t group = std::clamp<int64_t>(kHeadGroupBytes / std::max<int64_t>(bytes_per_head, 1), 1, heads);
  while (heads % group != 0) --group;
  return group;
}

AttentionScratch attention_layout(Arena& arena, const Attention& a, int32_t threads, int32_t pass) {
  AttentionScratch s;
  const int64_t pairs = a.pairs(), rounds = a.rounds();
  if (a.lsh()) {
    s.buckets = arena.take<int32_t>(pairs * rounds * a.length);
    s.sorted = arena.take<int32_t>(pairs * rounds * a.stored());
    if (corrects_duplicates(a)) {
      s.slot_of = arena.take<int32_t>(pairs * rounds * a.length);
      s.places_per_thread = 2 * rounds * kPlacesPerRound * (1 + packed_blocks(a));
      s.places = arena.take<int32_t>(threads * s.places_per_thread);
      s.log_counts = arena.take<float>(rounds + 1);
    }
    s.counts_per_thread =
        round_up(std::max(sort_counts(bucket_product(a.options) + 1, a.length),
                          orders_chunks(a) ? chunk_order_counts(a.stored(), a.options.chunk_length) : 0),
                 64);
    s.counts = arena.take<int32_t>(threads * s.counts_per_thread);
  }
  s.merged = arena.take<RowSoftmax>(pairs * a.length);
  if (pass == RFN_PASS_BACKWARD) s.delta = arena.take<float>(pairs * a.length);
  if (a.options.kind != RFN_ATTENTION_FULL)
    s.phases = arena.take<Phases::Phase>(pairs * rounds * (pass == RFN_PASS_BACKWARD ? kParts : 1));
  Arena tile;
  thread_layout(tile, a, pass);
  s.tile_floats = tile.used() / static_cast<int64_t>(sizeof(float));
  s.tiles = arena.take<float>(threads * s.tile_floats);
  return s;
}

void attention_hash(int32_t threads, const Attention& a, const AttentionScratch& s) {
  const int64_t tiles = div_up(a.length, kTileQueries), rounds = a.rounds();
  const int32_t pad = static_cast<int32_t>(bucket_product(a.options));
  const TileKernels& kernels = tile_kernels();
  parallel_for(threads, a.pairs() * tiles, [&](int64_t item, int32_t thread) {
    const Pair p = pair_of(a, s, item / tiles);
    const int64_t first = item % tiles * kTileQueries, count = std::min(kTileQueries, a.length - first);
    TileQueries queries;
    queries.count = count;
    std::iota(queries.position, queries.position + count, static_cast<int32_t>(first));
    RowsAhead ahead;
    ahead.row_size = a.head_size;
    for (int64_t next = first + count; next < std::min(a.length, first + count + kTileQueries); ++next) {
      ahead.rows[ahead.count++] = row_base(a.q, a.q_stride, a, p) + next * a.q_stride;
    }
    TileBuffers t = thread_buffers(a, s, thread, RFN_PASS_FORWARD).tile;
    t.ahead = &ahead;
    kernels.pack_queries(row_base(a.q, a.q_stride, a, p), a.q_stride, queries, 1.0f, t, t.q, t.q_transposed);
    const int64_t set = a.rotation_sets == 1 ? 0 : a.rotation_sets == a.all_heads ? a.first_head + p.head : p.global;
    const float* const rotations = a.rotations + set * a.head_size * rounds * rotation_columns(a.options);
    int32_t* const buckets = p.buckets + first;
    kernels.hash(t, count, rotations, rounds, a.options.factors, a.options.factor_count, buckets, a.length);
    if (a.options.pad_bucket == 0 || p.mask == nullptr) return;
    for (int64_t r = 0; r < rounds; ++r) {
      for (int64_t i = 0; i < count; ++i) {
        if (p.mask[first + i] == 0) buckets[r * a.length + i] = pad;
      }
    }
  });
}

namespace {

void sort_by_bucket(int32_t threads, const Attention& a, const AttentionScratch& s) {
  const int64_t rounds = a.rounds(), stored = a.stored(), buckets = bucket_product(a.options) + 1;
  parallel_for(threads, a.pairs() * rounds, [&](int64_t item, int32_t thread) {
    const Pair p = pair_of(a, s, item / rounds);
    const int64_t round = item % rounds;
    int32_t* const sorted = s.sorted + item * stored;
    counting_sort(p.buckets + round * a.length, a.length, buckets, sorted, s.counts + thread * s.counts_per_thread);
    for (int64_t slot = a.length; slot < stored; ++slot) sorted[slot] = static_cast<int32_t>(slot);
  });
}

}  // namespace

void attention_sort(int32_t threads, const Attention& a, const AttentionScratch& s) {
  sort_by_bucket(threads, a, s);
  attention_arrange_slots(threads, a, s);
}

void attention_arrange_slots(int32_t threads, const Attention& a, const AttentionScratch& s) {
  const bool order = orders_chunks(a);
  if (!order && s.slot_of == nullptr) return;
  for (int64_t count = 0; s.log_counts != nullptr && count <= a.rounds(); ++count) {
    s.log_counts[count] = std::log(count > 0 ? static_cast<float>(count)
                                             : 1e-9f);  // 1e-9 as in the implementation that this option comes from
  }
  const int64_t rounds = a.rounds(), stored = a.stored();
  parallel_for(threads, a.pairs() * rounds, [&](int64_t item, int32_t thread) {
    int32_t* const sorted = s.sorted + item * stored;
    if (order) order_chunks(sorted, stored, a.options.chunk_length, s.counts + thread * s.counts_per_thread);
    if (s.slot_of == nullptr) return;
    for (int64_t slot = 0; slot < stored; ++slot) {
      if (sorted[slot] < a.length) s.slot_of[item * a.length + sorted[slot]] = static_cast<int32_t>(slot);
    }
  });
}

void attention_forward_rounds(int32_t threads, const Attention& a, const AttentionScratch& s, int64_t first,
                              int64_t last) {
  if (a.options.kind == RFN_ATTENTION_FULL) {
    forward_full(threads, a, s);
  } else {
    forward_chunked(threads, a, s, first, last);
  }
  finish_forward(threads, a, s);
}

void attention_backward_rounds(int32_t threads, const Attention& a, const AttentionScratch& s, int64_t first,
                               int64_t last, bool overwrite) {
  start_backward(threads, a, s, overwrite);
  if (a.options.kind == RFN_ATTENTION_FULL) {
    backward_full(threads, a, s);
  } else {
    backward_chunked(threads, a, s, first, last);
  }
}

// ---- the op -------------------------------------------------------------------------------------

namespace {

int64_t bytes_per_head(const Attention& a) {
  return a.batch * (a.rounds() * (a.length + a.stored()) * static_cast<int64_t>(sizeof(int32_t)) +
                    3 * a.length * static_cast<int64_t>(sizeof(float)));
}

// Calls body(heads of the call, scratch) for one group of heads after the other.
template <class Body>
void for_head_groups(const rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t bytes, int32_t pass,
                     const Body& body) {
  const Attention whole = attention_call(op);
  const int64_t group = head_group(op.head_group, whole.heads, bytes_per_head(whole));
  for (int64_t first = 0; first < whole.heads; first += group) {
    const Attention a = slice_heads(whole, first, std::min(group, whole.heads - first));
    Arena arena(workspace, bytes);
    body(a, attention_layout(arena, a, stream.context->threads, pass));
  }
}

// The permutation of a group of heads between the caller's [B,H,R,padded] and the scratch's [B,heads,R,padded].
void copy_sorted(const Attention& a, const AttentionScratch& s, int32_t* outside, bool from_outside) {
  const int64_t row = a.rounds() * a.stored();
  for (int64_t pair = 0; pair < a.pairs(); ++pair) {
    int32_t* const theirs = outside + pair_of(a, s, pair).global * row;
    int32_t* const ours = s.sorted + pair * row;
    std::memcpy(from_outside ? ours : theirs, from_outside ? theirs : ours, static_cast<size_t>(row) * sizeof(int32_t));
  }
}

// Refuses slots of which a row is not each of 0 .. padded - 1 once, before anything but the scratch is written: a
// position that is missing would get no result, and two slots of one position two writers. Linear like the copy that
// follows it; the scratch, not filled yet, remembers who was met.
rfn_status check_permutations(const rfn_stream& stream, const rfn_attention& op, const char* what, void* workspace,
                              int64_t bytes, int32_t pass) {
  std::atomic<int64_t> wrong{std::numeric_limits<int64_t>::max()};  // the first element that is
  for_head_groups(stream, op, workspace, bytes, pass, [&](const Attention& a, const AttentionScratch& s) {
    const int64_t rounds = a.rounds(), padded = a.padded();
    parallel_for(stream.context->threads, a.pairs() * rounds, [&](int64_t item, int32_t) {
      const int64_t row = pair_of(a, s, item / rounds).global * rounds + item % rounds;
      const int32_t* const slots = i32(op.sorted) + row * padded;
      int32_t* const met = s.sorted + item * padded;
      std::fill_n(met, padded, 0);
      for (int64_t slot = 0; slot < padded; ++slot) {
        if (slots[slot] >= 0 && slots[slot] < padded && met[slots[slot]]++ == 0) continue;
        int64_t first = wrong.load(std::memory_order_relaxed);
        while (row * padded + slot < first && !wrong.compare_exchange_weak(first, row * padded + slot)) {
        }
        return;
      }
    });
  });
  const int64_t element = wrong.load();
  if (element == std::numeric_limits<int64_t>::max()) return RFN_OK;
  return fail(RFN_INVALID_ARGUMENT,
              "%s: sorted: expected in each row every position from 0 to %lld once, got %d at element %lld", what,
              static_cast<long long>(attention_call(op).padded() - 1), i32(op.sorted)[element],
              static_cast<long long>(element));
}

}  // namespace

rfn_status attention_workspace(const rfn_context& context, const rfn_attention& op, int32_t pass, int64_t* bytes) {
  Attention a = attention_call(op);
  a.heads = head_group(op.head_group, a.heads, bytes_per_head(a));
  Arena arena;
  attention_layout(arena, a, context.threads, pass);
  if (arena.overflowed()) return fail(RFN_INVALID_ARGUMENT, "attention: the workspace size overflows 64 bits");
  *bytes = arena.used();
  return RFN_OK;
}

rfn_status attention_forward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  const int32_t threads = stream.context->threads;
  for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                  [&](const Attention& a, const AttentionScratch& s) {
                    if (a.lsh()) {
                      attention_hash(threads, a, s);
                      attention_sort(threads, a, s);
                    }
                    attention_forward_rounds(threads, a, s, 0, a.rounds());
                  });
  return RFN_OK;
}

rfn_status attention_backward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  if (op.options.kind == RFN_ATTENTION_LSH && op.buckets.data != nullptr) {
    RFN_TRY(check_indices(op.buckets, bucket_product(op.options) + 1, "attention: buckets"));
  }
  const int32_t threads = stream.context->threads;
  for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_BACKWARD,
                  [&](const Attention& a, const AttentionScratch& s) {
                    if (a.lsh()) {
                      if (a.buckets == nullptr) attention_hash(threads, a, s);
                      attention_sort(threads, a, s);
                    }
                    attention_backward_rounds(threads, a, s, 0, a.rounds(), true);
                  });
  return RFN_OK;
}

rfn_status lsh_hash(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  for_head_groups(
      stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
      [&](const Attention& a, const AttentionScratch& s) { attention_hash(stream.context->threads, a, s); });
  return RFN_OK;
}

rfn_status lsh_sort(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  RFN_TRY(check_indices(op.buckets, bucket_product(op.options) + 1, "lsh_sort: buckets"));
  for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                  [&](const Attention& a, const AttentionScratch& s) {
                    sort_by_bucket(stream.context->threads, a, s);
                    copy_sorted(a, s, i32(op.sorted), false);
                  });
  return RFN_OK;
}

rfn_status lsh_attend(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  RFN_TRY(check_permutations(stream, op, "lsh_attend", workspace, workspace_bytes, RFN_PASS_FORWARD));
  const int32_t threads = stream.context->threads;
  for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD,
                  [&](const Attention& a, const AttentionScratch& s) {
                    copy_sorted(a, s, i32(op.sorted), true);
                    attention_arrange_slots(threads, a, s);
                    for (int64_t r = 0; r < a.rounds(); ++r)
                      attention_forward_rounds(threads, round_view(a, op, r), s, r, r + 1);
                  });
  return RFN_OK;
}

rfn_status lsh_attend_backward(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes) {
  RFN_TRY(check_permutations(stream, op, "lsh_attend_backward", workspace, workspace_bytes, RFN_PASS_BACKWARD));
  const int32_t threads = stream.context->threads;
  for_head_groups(stream, op, workspace, workspace_bytes, RFN_PASS_BACKWARD,
                  [&](const Attention& a, const AttentionScratch& s) {
                    copy_sorted(a, s, i32(op.sorted), true);
                    attention_arrange_slots(threads, a, s);
                    for (int64_t r = 0; r < a.rounds(); ++r)
                      attention_backward_rounds(threads, round_view(a, op, r), s, r, r + 1, r == 0);
                  });
  return RFN_OK;
}

// out = sum_r w_r out_r, w_r = exp(lse_r - lse), lse = log sum_r exp(lse_r). Rounds without a key for a token have lse
// -inf and weight 0; when all have, the token's output is that of round 0 (its own value, or 0).
rfn_status lsh_combine(rfn_stream& stream, const rfn_attention& op, void*, int64_t) {
  const Attention a = attention_call(op);
  const int64_t rounds = a.rounds(), lse_size = a.batch * a.all_heads * a.length, out_size = lse_size * a.head_size;
  const float *const round_out = f32(op.round_out), *const round_lse = f32(op.round_lse);
  for_tokens(stream.context->threads, a, AttentionScratch{}, [&](const Pair& p, int64_t first, int64_t last) {
    for (int64_t position = first; position < last; ++position) {
      const int64_t lse_at = p.global * a.length + position,
                    row_at = (p.example * a.length + position) * a.out_stride + p.head * a.head_size;
      float maximum = kNegativeInfinity, sum = 0.0f;
      for (int64_t r = 0; r < rounds; ++r) maximum = std::max(maximum, round_lse[r * lse_size + lse_at]);
      if (maximum == kNegativeInfinity) {
        std::memcpy(a.out + row_at, round_out + row_at, static_cast<size_t>(a.head_size) * sizeof(float));
        if (a.lse != nullptr) a.lse[lse_at] = kNegativeInfinity;
        continue;
      }
      for (int64_t r = 0; r < rounds; ++r) sum += std::exp(round_lse[r * lse_size + lse_at] - maximum);
      const float lse = maximum + std::log(sum);
      if (a.lse != nullptr) a.lse[lse_at] = lse;
      std::fill_n(a.out + row_at, a.head_size, 0.0f);
      for (int64_t r = 0; r < rounds; ++r) {
        const float weight = std::exp(round_lse[r * lse_size + lse_at] - lse);
        if (weight == 0.0f) continue;
        const float* const source = round_out + r * out_size + row_at;
        for (int64_t d = 0; d < a.head_size; ++d) a.out[row_at + d] += weight * source[d];
      }
    }
  });
  return RFN_OK;
}

// d out_r = w_r dO;  d lse_r = w_r dO . (out_r - out).
rfn_status lsh_combine_backward(rfn_stream& stream, const rfn_attention& op, void*, int64_t) {
  const Attention a = attention_call(op);
  const int64_t rounds = a.rounds(), lse_size = a.batch * a.all_heads * a.length, out_size = lse_size * a.head_size;
  const float *const round_out = f32(op.round_out), *const round_lse = f32(op.round_lse);
  float *const grad_round_out = f32(op.grad_round_out), *const grad_round_lse = f32(op.grad_round_lse);
  for_tokens(stream.context->threads, a, AttentionScratch{}, [&](const Pair& p, int64_t first, int64_t last) {
    for (int64_t position = first; position < last; ++position) {
      const int64_t lse_at = p.global * a.length + position,
                    row_at = (p.example * a.length + position) * a.out_stride + p.head * a.head_size;
      const float lse = a.lse[lse_at];
      for (int64_t r = 0; r < rounds; ++r) {
        const float own = round_lse[r * lse_size + lse_at];
        const float weight = lse == kNegativeInfinity ? (r == 0 ? 1.0f : 0.0f) : std::exp(own - lse);
        float along = 0.0f;
        for (int64_t d = 0; d < a.head_size; ++d) {
          const float gradient = a.grad_out[row_at + d];
          grad_round_out[r * out_size + row_at + d] = weight * gradient;
          along += gradient * (round_out[r * out_size + row_at + d] - a.out[row_at + d]);
        }
        grad_round_lse[r * lse_size + lse_at] = lse == kNegativeInfinity ? 0.0f : weight * along;
      }
    }
  });
  return RFN_OK;
}

}  // namespace rfn::cpu
