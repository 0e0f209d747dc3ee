// What a query sees: the one place that knows what follows from the options of attention about chunks, the ring,
// causality, self-exclusion, buckets, duplicate counts, dropout's elements and the key norm. Plain C++ for the host and
// for devices.
//
// Both backends walk over chunks and decide about pairs of a query and a key by vectors or by fragments of a tile.
// Those are fast forms of `sees` and `rounds_seen`, and test_attention_window.cpp holds them to it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/philox.h"
#include "core/tensor.h"
#include "reformer_native.h"

namespace rfn {

// A token as a window meets it. Chunk and slot are counted from the first of the query's round, along the ring without
// wrapping: in the rounds before they are negative.
template <class Int = int64_t>
struct WindowToken {
  Int position;  // in the sequence; negative: padding, or none
  Int slot;      // in the order that is walked: by bucket (LSH), else by position
  Int bucket;    // in the query's round; kOtherRound for a key of another round, whose buckets are not comparable
  Int chunk;
};
inline constexpr int32_t kOtherRound = -1;

// A chunk of some round; round -1: there is none.
template <class Int = int64_t>
struct WindowPlace {
  Int round, chunk;
};

// Int is what the backend counts slots in: 64 bits on the CPU, 32 on CUDA (attention_supported).
template <class Int = int64_t>
struct AttentionWindow {
  Int length;         // T, tokens
  Int chunk;          // slots of a chunk; full attention is one chunk
  Int rounds;         // 1 but for LSH
  Int per_round;      // chunks of a round
  Int total;          // chunks of all rounds: the ring
  Int before, after;  // chunks around its own that a query sees
  Int span;           // strict windows: slots ahead of its own that a query sees
  bool lsh, full;
  bool causal;        // key position <= query position
  bool exclude_self;  // key position != query position; a query that sees nobody then has its own value
  bool same_bucket;   // equal buckets
  bool strict;        // 0 < query slot - key slot <= span
  bool ring;          // the chunks of all rounds follow each other, and the first follows the last
  bool repeat;        // a chunk that is met twice on a short ring counts twice
  bool log_counts;    // scores lose the logarithm of rounds_seen
  bool free_order;    // only the chunk decides: slots within it may be in any order

  RFN_HOST_DEVICE Int slots() const { return per_round * chunk; }              // of a round
  RFN_HOST_DEVICE Int chunks_seen() const { return before + 1 + after; }       // by one query, of one round
  RFN_HOST_DEVICE Int columns() const { return chunks_seen() * chunk; }        // slots of those
  RFN_HOST_DEVICE Int most_seen() const { return strict ? span : columns(); }  // keys of one round

  // Where a chunk is that is counted along the ring from the first of `round`.
  RFN_HOST_DEVICE WindowPlace<Int> place(Int round, Int from_first) const {
    if (!ring)
      return from_first < 0 || from_first >= per_round ? WindowPlace<Int>{-1, 0} : WindowPlace<Int>{round, from_first};
    Int on_ring = (round * per_round + from_first) % total;
    if (on_ring < 0) on_ring += total;
    return {on_ring / per_round, on_ring % per_round};
  }

  // Whether a window holds the chunk at an offset from the query's own. On a ring that is shorter than the window a
  // chunk that was met is met again `total` offsets later.
  RFN_HOST_DEVICE bool reaches(Int offset) const {
    return offset >= -before && offset <= after && !(ring && !repeat && offset - total >= -before);
  }

  // The offsets that `reaches` and `place` allow from a chunk of its round are those from first_offset to last_offset.
  Int first_offset(Int from_first) const { return ring ? -before : std::max(-before, -from_first); }
  Int last_offset(Int from_first) const {
    if (!ring) return std::min(after, per_round - 1 - from_first);
    return repeat ? after : std::min(after, total - 1 - before);
  }

  // Whether a query attends to a key that it meets.
  RFN_HOST_DEVICE bool sees(const WindowToken<Int>& query, const WindowToken<Int>& key) const {
    if (query.position < 0 || key.position < 0) return false;
    if (causal && key.position > query.position) return false;
    if (exclude_self && key.position == query.position) return false;
    if (!reaches(key.chunk - query.chunk)) return false;
    if (same_bucket && query.bucket != key.bucket) return false;
    return !strict || in_span(query.slot, key.slot);
  }

  RFN_HOST_DEVICE bool in_span(Int query_slot, Int key_slot) const {
    return query_slot > key_slot && query_slot - key_slot <= span;
  }

  // Number of rounds in which the query's window holds the key (paper, equations 13 to 16): chunks count once even if
  // they are met twice, and pairs that only meet across the boundary of two rounds not at all. slot_of, buckets: [R,T].
  RFN_HOST_DEVICE int32_t rounds_seen(const int32_t* slot_of, const int32_t* buckets, Int query, Int key) const {
    int32_t seen = 0;
    for (Int round = 0; round < rounds; ++round) {
      const int64_t row = static_cast<int64_t>(round) * length;
      if (same_bucket && buckets[row + query] != buckets[row + key]) continue;
      const Int from = slot_of[row + query], to = slot_of[row + key];
      if (strict) {
        seen += in_span(from, to) ? 1 : 0;
        continue;
      }
      Int offset = to / chunk - from / chunk + before;  // 0 .. before + after: inside
      if (ring) offset = (offset % total + total) % total;
      seen += offset >= 0 && offset <= before + after ? 1 : 0;
    }
    return seen;
  }

  // Dropout's element of a query and a key is the sum of these. Strict windows count by positions and distances, which
  // do not depend on later tokens. sequence_head: example * heads of the model + head.
  RFN_HOST_DEVICE uint64_t dropout_row(int64_t sequence_head, Int round, Int slot, Int position) const {
    const int64_t row = (sequence_head * rounds + round) * slots() + (strict ? position : slot);
    return static_cast<uint64_t>(row * columns());
  }
  RFN_HOST_DEVICE Int dropout_column(const WindowToken<Int>& query, const WindowToken<Int>& key) const {
    return strict ? query.slot - key.slot - 1 : key.slot - (query.chunk - before) * chunk;
  }

  // ---- decoding with a cache of the tokens before ----

  // Whether a token sees what it would see without the tokens after it.
  bool prefix_causal() const {
    if (!causal || full) return causal;
    return lsh ? strict : !ring || (after == 0 && (before < 2 || !repeat));
  }
  Int bucket_ring() const { return std::max<Int>(1, span); }  // LSH: latest positions of every bucket that are kept
  // Local and full: the positions that a token with nothing after it sees.
  Int first_seen(Int position) const { return std::max<Int>(0, position / chunk - before) * chunk; }
  Int end_seen(Int position) const { return exclude_self ? position : position + 1; }
};

template <class Int = int64_t>
AttentionWindow<Int> attention_window(const rfn_attention_options& options, int64_t length) {
  const bool lsh = options.kind == RFN_ATTENTION_LSH, full = options.kind == RFN_ATTENTION_FULL;
  const int64_t chunk = full ? length : options.chunk_length, rounds = lsh ? options.rounds : 1;
  const int64_t slots = full ? length : options.padded_length != 0 ? options.padded_length : round_up(length, chunk);
  AttentionWindow<Int> window = {};
  window.length = static_cast<Int>(length);
  window.chunk = static_cast<Int>(chunk);
  window.rounds = static_cast<Int>(rounds);
  window.per_round = static_cast<Int>(slots / chunk);
  window.total = static_cast<Int>(slots / chunk * rounds);
  window.before = full ? 0 : options.chunks_before;
  window.after = full ? 0 : options.chunks_after;
  window.span = window.before * window.chunk;
  window.lsh = lsh;
  window.full = full;
  window.causal = options.causal != 0;
  window.exclude_self = options.shared_qk != 0;
  window.strict = lsh && options.window == RFN_WINDOW_STRICT;
  window.same_bucket = window.strict || (lsh && options.window == RFN_WINDOW_SAME_BUCKET);
  window.ring = !full && options.wrap != 0 && !window.strict;  // a strict window never leaves its round
  window.repeat = options.repeat_chunks != 0;
  window.log_counts = lsh && options.duplicates == RFN_DUPLICATES_LOG_COUNT;
  window.free_order = lsh && !window.same_bucket && options.dropout == 0.0f;
  return window;
}

// What stands for rounds_seen under the logarithm; 1e-9 for 0 as in the implementation that the correction comes from.
RFN_HOST_DEVICE float countable(int32_t rounds_seen) {
  return rounds_seen > 0 ? static_cast<float>(rounds_seen) : 1e-9f;
}

// 1 / norm of a key (RFN_KEY_NORM_*) from the sum of its squares.
RFN_HOST_DEVICE float key_scale(float squares, int64_t head_size, int32_t key_norm) {
  if (key_norm == RFN_KEY_NORM_NONE) return 1.0f;
  if (key_norm == RFN_KEY_NORM_RMS) return 1.0f / sqrtf(squares / static_cast<float>(head_size) + 1e-6f);
  const float norm = sqrtf(squares);
  return 1.0f / (norm < 1e-12f ? 1e-12f : norm);
}

inline float logit_scale(const rfn_attention_options& options, int64_t head_size) {
  return options.logit_scale != 0.0f ? options.logit_scale : 1.0f / std::sqrt(static_cast<float>(head_size));
}

// ---- buckets of LSH attention ----

// Product of the factors: the bucket of padding is one more.
inline int64_t bucket_count(const rfn_attention_options& options) {
  int64_t count = 1;
  for (int32_t i = 0; i < options.factor_count; ++i) count *= options.factors[i];
  return count;
}
// Columns of one round's rotations: half the sum of the factors.
inline int64_t rotation_columns(const rfn_attention_options& options) {
  int64_t columns = 0;
  for (int32_t i = 0; i < options.factor_count; ++i) columns += options.factors[i] / 2;
  return columns;
}

}  // namespace rfn
