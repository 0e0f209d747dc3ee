// The feed-forward layer as both backends see it. Filled from rfn_feed_forward, or by the reversible block.
#pragma once
#include <cstdint>

#include "core/philox.h"
#include "core/tensor.h"
#include "reformer_native.h"

namespace rfn {

struct FeedForward {
  int64_t width;   // E
  int64_t hidden;  // F
  int32_t activation;
  float dropout;
  Philox hidden_random, output_random;
  const float *w1, *b1, *w2, *b2;                // weights of an op of BF16 or F16: the backend's affair
  float *grad_w1, *grad_b1, *grad_w2, *grad_b2;  // backward; added to
};

inline FeedForward feed_forward_call(const rfn_feed_forward& op) {
  FeedForward f{};
  f.width = op.w1.shape[1];
  f.hidden = op.w1.shape[0];
  f.activation = op.activation;
  f.dropout = op.dropout;
  f.hidden_random = philox(op.seed, op.step, op.layer, RFN_SITE_FEED_FORWARD_HIDDEN);
  f.output_random = philox(op.seed, op.step, op.layer, RFN_SITE_FEED_FORWARD_OUTPUT);
  if (!is_half(op.x.dtype)) {
    f.w1 = f32(op.w1);
    f.w2 = f32(op.w2);
  }
  f.b1 = f32(op.b1);
  f.b2 = f32(op.b2);
  f.grad_w1 = f32(op.grad_w1);
  f.grad_b1 = f32(op.grad_b1);
  f.grad_w2 = f32(op.grad_w2);
  f.grad_b2 = f32(op.grad_b2);
  return f;
}

}  // namespace rfn
