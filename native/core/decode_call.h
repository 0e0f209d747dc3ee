// Cached decoding as both backends see it.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/attention_window.h"
#include "core/tensor.h"

namespace rfn {

struct DecodeShape {
  int64_t batch, width, hidden, heads, head_size, projected;
  int64_t capacity;          // rows of the cache
  int64_t row;               // of this token in it
  AttentionWindow<> window;  // of a sequence that ends with this token
  int64_t rounds, buckets, ring;
  int64_t most_keys;  // that a query may see, at any position
  bool shared, lsh;

  int64_t cache_stride() const { return capacity * projected; }  // of examples
};

inline DecodeShape decode_shape(const rfn_reversible_block_decode& op) {
  const rfn_attention_options& o = op.attention;
  DecodeShape s{};
  s.batch = op.stream1.shape[0];
  s.width = op.stream1.shape[2];
  s.hidden = op.parameters.w1.shape[0];
  s.heads = op.heads;
  s.projected = op.parameters.query.shape[0];
  s.head_size = s.projected / s.heads;
  s.shared = o.shared_qk != 0;
  s.lsh = o.kind == RFN_ATTENTION_LSH;
  s.capacity = op.keys.shape[1];
  s.row = op.position % s.capacity;
  s.window = attention_window(o, op.position + 1);
  if (s.lsh) {
    s.rounds = o.rounds;
    s.buckets = bucket_count(o);
    s.ring = s.window.bucket_ring();
    s.most_keys = s.rounds * s.ring;
  } else {
    s.most_keys = s.window.full ? s.capacity : std::min(s.capacity, (1 + s.window.before) * s.window.chunk);
  }
  return s;
}

}  // namespace rfn
