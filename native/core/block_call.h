// The reversible block as both backends see it: its sizes and the calls of its two halves.
#pragma once
#include <cstdint>

#include "core/attention_call.h"
#include "core/feed_forward_call.h"

namespace rfn {

struct BlockShape {
  int64_t batch, length, rows, width, hidden, heads, head_size, projected;  // rows = B*T, projected = H*D
  bool shared;
};

inline BlockShape block_shape(const rfn_reversible_block& op) {
  BlockShape s{};
  s.batch = op.stream1.shape[0];
  s.length = op.stream1.shape[1];
  s.width = op.stream1.shape[2];
  s.rows = s.batch * s.length;
  s.hidden = op.parameters.w1.shape[0];
  s.heads = op.heads;
  s.projected = op.parameters.query.shape[0];
  s.head_size = s.projected / s.heads;
  s.shared = op.attention.shared_qk != 0;
  return s;
}

// What the forward pass kept for the backward pass; validation has seen that nothing of a level is missing.
inline bool keeps_streams(const rfn_reversible_block& op) { return present(op.kept_stream1); }
inline bool keeps_activations(const rfn_reversible_block& op) { return present(op.kept_hidden); }

// Of some heads; without rows, which are buffers of the backend.
inline Attention attention_call(const rfn_reversible_block& op, const BlockShape& s, int64_t first_head,
                                int64_t heads) {
  Attention a;
  a.options = op.attention;
  a.batch = s.batch;
  a.length = s.length;
  a.all_heads = s.heads;
  a.first_head = first_head;
  a.heads = heads;
  a.head_size = s.head_size;
  a.mask = u8(op.mask);
  a.rotations = f32(op.rotations);
  a.rotation_sets = present(op.rotations) ? op.rotations.shape[0] : 0;
  a.buckets = i32(op.buckets);
  a.dropout = philox(op.seed, op.step, op.layer, RFN_SITE_ATTENTION_PROBABILITIES);
  return a;
}

inline FeedForward feed_forward_call(const rfn_reversible_block& op, const BlockShape& s) {
  FeedForward f{};
  f.width = s.width;
  f.hidden = s.hidden;
  f.activation = op.activation;
  f.dropout = op.feed_forward_dropout;
  f.hidden_random = philox(op.seed, op.step, op.layer, RFN_SITE_FEED_FORWARD_HIDDEN);
  f.output_random = philox(op.seed, op.step, op.layer, RFN_SITE_FEED_FORWARD_OUTPUT);
  f.w1 = f32(op.parameters.w1);
  f.b1 = f32(op.parameters.b1);
  f.w2 = f32(op.parameters.w2);
  f.b2 = f32(op.parameters.b2);
  f.grad_w1 = f32(op.gradients.w1);
  f.grad_b1 = f32(op.gradients.b1);
  f.grad_w2 = f32(op.gradients.w2);
  f.grad_b2 = f32(op.gradients.b2);
  return f;
}

}  // namespace rfn
