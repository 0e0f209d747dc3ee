#include "cpu/attention_walk.h"

#include <algorithm>
#include <limits>

#include "cpu/vector_math.h"

namespace rfn::cpu {
namespace {

// Blocks of imagined padding take part in the walk: they replace packed blocks, and so decide when gradients are added
// to their rows. Past so many in a row the rest of the round, which is padding too, is skipped.
constexpr int64_t kMostEmptyBlocks = 4096;

}  // namespace

int64_t packed_blocks(const Attention& call) {
  const AttentionWindow<> window = call.window();
  return window.full ? kPackedBlocks : std::min(kPackedBlocks, window.chunks_seen() * div_up(window.chunk, kBlockKeys));
}

WalkBuffers walk_layout(Arena& arena, const Attention& call, int32_t pass) {
  WalkBuffers buffers{};
  TileBuffers& tile = buffers.tile;
  tile.head_size = call.head_size;
  tile.wide = round_up(call.head_size, kLanePad);
  tile.q = arena.take<float>(kTileQueries * tile.wide);
  tile.q_transposed = arena.take<float>(tile.wide * kTileQueries);
  tile.scores = arena.take<float>(kTileKeys * kTileQueries);
  if (call.options.dropout > 0.0f) {
    tile.dropout = arena.take<float>(kTileKeys * kTileQueries);
    buffers.dropout_rows = arena.take<float>(kTileQueries * kTileKeys);
  }
  if (pass == RFN_PASS_BACKWARD) {
    tile.grad_out = arena.take<float>(kTileQueries * tile.wide);
    tile.grad_out_transposed = arena.take<float>(tile.wide * kTileQueries);
    tile.grad_scores = arena.take<float>(kTileKeys * kTileQueries);
    tile.grad_q = arena.take<float>(kTileQueries * tile.wide);
  }
  tile.out = arena.take<float>(kTileQueries * tile.wide);  // backward recomputes forward where nothing was kept
  buffers.keys = arena.take<float>(packed_blocks(call) * (pass == RFN_PASS_BACKWARD ? 4 : 2) * kBlockKeys * tile.wide);
  return buffers;
}

WalkBuffers walk_buffers(const Attention& call, const AttentionScratch& scratch, int32_t thread, int32_t pass) {
  Arena arena(scratch.tiles + thread * scratch.tile_floats, scratch.tile_floats * static_cast<int64_t>(sizeof(float)));
  return walk_layout(arena, call, pass);
}

AttentionWalk::AttentionWalk(const Attention& attention, const AttentionScratch& attention_scratch, int32_t thread,
                             int32_t pass, int64_t sequence_head_index, int64_t of_round)
    : call(attention),
      scratch(attention_scratch),
      window(attention.window()),
      head(sequence_head(attention, attention_scratch, sequence_head_index)),
      round(of_round),
      kernels(tile_kernels()),
      buffers(walk_buffers(attention, attention_scratch, thread, pass)),
      tile(buffers.tile),
      capacity(packed_blocks(attention)) {
  buffers.tile.ahead = &ahead;
  buffers.tile.duplicates = duplicates();
  ahead.row_size = call.head_size;
  const int64_t arrays = pass == RFN_PASS_BACKWARD ? 4 : 2, size = kBlockKeys * tile.wide;
  for (int64_t i = 0; i < capacity; ++i) {
    float* const memory = buffers.keys + i * arrays * size;
    block_id[i] = -1;
    packed[i].k = memory;
    packed[i].v = memory + size;
    if (arrays == 2) continue;
    packed[i].grad_k = memory + 2 * size;
    packed[i].grad_v = memory + 3 * size;
  }
  if (scratch.places == nullptr) return;
  int32_t* memory = scratch.places + thread * scratch.places_per_thread;
  const auto take = [&](RoundPlaces& places) {
    places = {memory, memory + window.rounds * kPlacesPerRound};
    memory += 2 * window.rounds * kPlacesPerRound;
  };
  take(queries.places);
  for (int64_t i = 0; i < capacity; ++i) take(packed[i].places);
}

// ---- queries ----

int64_t AttentionWalk::slots_of(int64_t chunk) const {
  return std::clamp<int64_t>(call.stored() - chunk * window.chunk, 0, window.chunk);
}

bool AttentionWalk::load_chunk_queries(int64_t chunk, int64_t first) {
  const int32_t* const sorted = window.lsh ? head.sorted + round * call.stored() : nullptr;
  queries.count = 0;
  any_query = false;
  const int64_t begin = chunk * window.chunk + first,
                end = chunk * window.chunk + std::min(slots_of(chunk), first + kTileQueries);
  for (int64_t slot = begin; slot < end; ++slot) add_query(sorted != nullptr ? sorted[slot] : slot, slot);
  return end_queries();
}

bool AttentionWalk::load_full_queries(int64_t first, int64_t last) {
  queries.count = 0;
  any_query = false;
  for (int64_t position = first; position < last; ++position) add_query(position, position);
  return end_queries();
}

void AttentionWalk::add_query(int64_t position, int64_t slot) {
  const bool there = is_real(call, head, position);
  const int64_t i = queries.count++;
  queries.position[i] = there ? static_cast<int32_t>(position) : -1;
  queries.slot[i] = static_cast<int32_t>(slot);
  queries.bucket[i] = window.same_bucket && there ? head.buckets[round * call.length + position] : 0;
  dropout_row[i] = static_cast<int64_t>(window.dropout_row(head.global, round, slot, position));
  any_query |= there;
}

// Lanes behind the last query of a partial tile are absent ones.
bool AttentionWalk::end_queries() {
  const int64_t used = round_up(queries.count, kLanePad);
  for (int64_t i = queries.count; i < used; ++i) {
    queries.position[i] = -1;
    queries.slot[i] = 0;
    queries.bucket[i] = 0;
  }
  if (any_query) find_places(queries.position, used, queries.places);
  return any_query;
}

// ---- keys ----

void AttentionWalk::walk_chunk_keys(int64_t chunk) {
  const int64_t pieces = div_up(window.chunk, kBlockKeys);
  int64_t empty = 0;  // blocks of imagined padding in a row
  for (int64_t offset = window.first_offset(chunk); offset <= window.last_offset(chunk); ++offset) {
    const WindowPlace<int64_t> place = window.place(round, chunk + offset);
    const int64_t first_slot = place.chunk * window.chunk, end_slot = first_slot + slots_of(place.chunk);
    const int32_t* const sorted = window.lsh ? head.sorted + place.round * call.stored() : nullptr;
    const auto bucket_of = [&](int64_t position) {
      if (!window.same_bucket) return 0;
      return place.round == round ? head.buckets[round * call.length + position] : kOtherRound;
    };
    for (int64_t piece = 0; piece < pieces && empty < kMostEmptyBlocks; ++piece) {
      const int64_t begin = first_slot + piece * kBlockKeys, end = std::min(end_slot, begin + kBlockKeys);
      const int64_t id = (place.round * window.per_round + place.chunk) * pieces + piece;
      empty = begin < end ? 0 : empty + 1;
      add_keys(id, (offset + window.before) * window.chunk - first_slot, [&](KeyBlock& block) {
        for (int64_t slot = begin; slot < end; ++slot) {
          const int64_t position = sorted != nullptr ? sorted[slot] : slot;
          if (is_real(call, head, position)) block.add(position, slot, bucket_of(position));
        }
      });
    }
    if (empty < kMostEmptyBlocks) continue;
    offset += window.per_round - 1 - place.chunk;
    empty = 0;
  }
  run_step();
}

void AttentionWalk::walk_full_keys(int64_t first, int64_t last) {
  for (int64_t begin = first; begin < last; begin += kBlockKeys) {
    add_keys(begin / kBlockKeys, 0, [&](KeyBlock& block) {
      for (int64_t position = begin; position < std::min(call.length, begin + kBlockKeys); ++position) {
        if (is_real(call, head, position)) block.add(position, position, 0);
      }
    });
  }
  run_step();
}

// The block of this id, which fill() makes if it is not packed already, joins the next step.
template <class Fill>
void AttentionWalk::add_keys(int64_t id, int64_t first_column, const Fill& fill) {
  int64_t i = 0;
  while (i < capacity && block_id[i] != id) ++i;
  if (i == capacity) {
    i = next_block;
    next_block = (next_block + 1) % capacity;
    if (std::any_of(keys, keys + blocks, [&](const TileKeys& used) { return used.block == &packed[i]; })) run_step();
    give_up(packed[i]);
    block_id[i] = id;
    fill(packed[i]);
    find_places(packed[i].position, packed[i].count, packed[i].places);
    kernels.pack_keys(rows(call.k, call.k_stride), call.k_stride, rows(call.v, call.v_stride), call.v_stride,
                      call.options.key_norm, tile, packed[i]);
  }
  KeyBlock& block = packed[i];
  if (block.count == 0) return;
  if (blocks == kTileBlocks || key_count + block.count > kTileKeys) run_step();
  keys[blocks++] = {&block, key_count, first_column};
  key_count += block.count;
}

void AttentionWalk::run_step() {
  if (blocks == 0) return;
  if (tile.dropout != nullptr) fill_dropout();
  step();
  first_step = false;
  blocks = key_count = 0;
}

void AttentionWalk::give_up(KeyBlock& block) {
  if (block.has_gradient) {
    kernels.add_key_gradients(block, call.options.key_norm, tile, rows(call.grad_k, call.grad_k_stride),
                              call.grad_k_stride, rows(call.grad_v, call.grad_v_stride), call.grad_v_stride);
  }
  block.has_gradient = false;
  block.count = 0;
}

void AttentionWalk::give_up_keys() {
  for (int64_t i = 0; i < capacity; ++i) {
    give_up(packed[next_block]);  // the oldest first
    next_block = (next_block + 1) % capacity;
  }
}

void AttentionWalk::look_ahead(int64_t chunk, int64_t first, std::initializer_list<Rows> arrays) {
  const int64_t end = std::min(slots_of(chunk), first + kTileQueries);
  if (!window.lsh || first >= end) return;
  const int32_t* const sorted = head.sorted + round * call.stored() + chunk * window.chunk;
  for (const Rows& array : arrays) {
    const float* const base = rows(array.base, array.stride);
    for (int64_t x = first; x < end; ++x) {
      if (sorted[x] < call.length) ahead.rows[ahead.count++] = base + sorted[x] * array.stride;
    }
  }
}

// ---- fast forms of what the window says ----

// Of its dropout_column: elements of one query's row ascend with the columns, or in strict windows descend with the
// slots.
void AttentionWalk::fill_dropout() {
  int64_t element[kTileKeys];
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t j = 0; j < keys[b].block->count; ++j) {
      const int64_t slot = keys[b].block->slot[j];
      element[keys[b].row + j] = window.strict ? -slot - 1 : keys[b].first_column + slot;
    }
  }
  const int64_t used = round_up(queries.count, kLanePad), direction = window.strict ? -1 : 1;
  std::fill_n(buffers.dropout_rows, used * kTileKeys, 1.0f);
  for (int64_t i = 0; i < queries.count; ++i) {
    float* const row = buffers.dropout_rows + i * kTileKeys;
    const int64_t base = dropout_row[i] + (window.strict ? queries.slot[i] : 0);
    for (int64_t j = 0; j < key_count;) {  // runs of consecutive elements
      int64_t end = j + 1;
      while (end < key_count && element[end] == element[end - 1] + direction) ++end;
      apply_dropout(row + j, end - j, call.dropout,
                    static_cast<uint64_t>(base + (window.strict ? element[end - 1] : element[j])),
                    call.options.dropout);
      if (window.strict) std::reverse(row + j, row + end);
      j = end;
    }
  }
  kernels.transpose(buffers.dropout_rows, used, kTileKeys, tile.dropout);
}

// Of its rounds_seen, for a vector of queries and one key: a distance within a width, on the ring either way round.
Duplicates AttentionWalk::duplicates() const {
  Duplicates form;
  if (scratch.places == nullptr) return form;
  form.rounds = static_cast<int32_t>(window.rounds);
  form.same_bucket = window.same_bucket;
  form.log_counts = scratch.log_counts;
  if (window.strict) {
    form.shift = -1;
    form.width = static_cast<int32_t>(window.span);
    return form;
  }
  form.shift = static_cast<int32_t>(window.after);
  form.width = static_cast<int32_t>(window.chunks_seen());
  // No window reaches round a longer ring.
  if (!window.ring || window.total > std::numeric_limits<int32_t>::max()) return form;
  form.ring = static_cast<int32_t>(window.total);
  if (form.width >= form.ring) {  // it holds everything
    form.shift = 0;
    form.width = form.ring;
  }
  return form;
}

// Slots (chunks, where the window is one of chunks) and buckets in all rounds of tokens that are there; of others,
// those of token 0.
void AttentionWalk::find_places(const int32_t* positions, int64_t count, const RoundPlaces& places) const {
  if (places.place == nullptr) return;
  const int64_t unit = window.strict ? 1 : window.chunk;
  for (int64_t of_round = 0; of_round < window.rounds; ++of_round) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = of_round * call.length + std::max(positions[i], 0);
      places.place[of_round * kPlacesPerRound + i] = static_cast<int32_t>(head.slot_of[at] / unit);
      places.bucket[of_round * kPlacesPerRound + i] = head.buckets[at];
    }
  }
}

}  // namespace rfn::cpu
