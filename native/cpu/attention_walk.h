// The walk over the tiles of one sequence-head, and one round if there are rounds: queries of a chunk 64 at a time,
// each tile against the keys of its window in blocks. attention_forward.cpp and attention_backward.cpp say what a step
// does.
//
// Keys are packed (gathered, normalised) a block at a time and stay packed while the walk goes on to the next tiles
// whose windows hold them; so do their gradients, which are added to their rows when the block is given up.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "cpu/attention.h"

namespace rfn::cpu {

inline constexpr int64_t kItemRows = 512;       // query rows of one work item, roughly
inline constexpr int64_t kPackedBlocks = 8;     // blocks of keys that a thread holds, at most
inline constexpr int64_t kPlacesPerRound = 64;  // of one tile or block
static_assert(kPlacesPerRound == kTileQueries && kPlacesPerRound == kBlockKeys, "tiles and blocks have places alike");

// Blocks of keys to hold: those of one window, if they are not too many.
int64_t packed_blocks(const Attention& call);

// What a thread works in.
struct WalkBuffers {
  TileBuffers tile;
  float* dropout_rows;  // [lanes, kTileKeys]; null: no dropout
  float* keys;          // [packed blocks, 2 (backward: 4), kBlockKeys, wide]: k, v, grad_k, grad_v
};
WalkBuffers walk_layout(Arena& arena, const Attention& call, int32_t pass);
WalkBuffers walk_buffers(const Attention& call, const AttentionScratch& scratch, int32_t thread, int32_t pass);

class AttentionWalk {
 public:
  AttentionWalk(const Attention& attention, const AttentionScratch& attention_scratch, int32_t thread, int32_t pass,
                int64_t sequence_head_index, int64_t of_round);
  virtual ~AttentionWalk() = default;
  AttentionWalk(const AttentionWalk&) = delete;
  AttentionWalk& operator=(const AttentionWalk&) = delete;

  // Adds the gradients of the keys that are still packed.
  void give_up_keys();

 protected:
  // The next step: `queries` against the `blocks` blocks of `keys`; first_step: nothing came before it in this tile.
  virtual void step() = 0;

  // Slots of a chunk of a round, without imagined padding.
  int64_t slots_of(int64_t chunk) const;

  // Queries: from the slot `first` of a chunk on; at positions [first, last). False: none of them is there.
  bool load_chunk_queries(int64_t chunk, int64_t first);
  bool load_full_queries(int64_t first, int64_t last);

  // Steps through the keys of the window of a chunk; through those at positions [first, last).
  void walk_chunk_keys(int64_t chunk);
  void walk_full_keys(int64_t first, int64_t last);

  // Keys past this position are seen by no query before `last`.
  int64_t end_of_full_keys(int64_t last) const { return window.causal ? last : call.length; }

  struct Rows {
    const float* base;
    int64_t stride;
  };
  // The rows of these arrays that the tile of a later chunk will gather.
  void look_ahead(int64_t chunk, int64_t first, std::initializer_list<Rows> arrays);

  template <class T>
  T* rows(T* base, int64_t stride) const {
    return rows_of(base, stride, call, head);
  }

  const Attention& call;
  const AttentionScratch& scratch;
  const AttentionWindow<> window;
  const SequenceHead head;
  const int64_t round;
  const TileKernels& kernels;
  WalkBuffers buffers;
  const TileBuffers& tile;  // of the buffers

  TileQueries queries;
  TileKeys keys[kTileBlocks];  // of the next step
  int64_t blocks = 0;
  bool first_step = true;
  RowsAhead ahead;

 private:
  Duplicates duplicates() const;
  void find_places(const int32_t* positions, int64_t count, const RoundPlaces& places) const;
  void add_query(int64_t position, int64_t slot);
  bool end_queries();
  template <class Fill>
  void add_keys(int64_t id, int64_t first_column, const Fill& fill);
  void run_step();
  void give_up(KeyBlock& block);
  void fill_dropout();

  bool any_query = false;
  int64_t dropout_row[kTileQueries];  // dropout's element of (query, column 0)
  int64_t key_count = 0;              // of the next step

  const int64_t capacity;          // packed blocks
  KeyBlock packed[kPackedBlocks];  // in the order of a ring: next_block is the oldest
  int64_t block_id[kPackedBlocks];
  int64_t next_block = 0;
};

}  // namespace rfn::cpu
