// One call of attention as both backends see it: sizes, options and row pointers of a range of heads. Filled from
// rfn_attention, or by the reversible block.
#pragma once
#include <cstdint>

#include "core/attention_window.h"
#include "core/philox.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "reformer_native.h"

namespace rfn {

// Rows of a BF16 or F16 tensor as the caller has them, laid out like the rows of floats below, and the floats that
// stand for them in a call: the scratch of take_float_rows.
struct TypedRows {
  uint16_t* data = nullptr;
  int64_t stride = 0;
  float* floats = nullptr;
};

// Heads [first_head, first_head + heads) of all examples. Row pointers are at (example 0, token 0, first head); a
// token's row is `stride` floats after the one before it and a head's `head_size` floats after the one before it, so
// that a slice of a [B,T,H,D] tensor and a buffer that holds only these heads look the same.
struct Attention {
  rfn_attention_options options;
  int64_t batch = 0, length = 0, all_heads = 0, first_head = 0, heads = 0, head_size = 0;
  const float *q = nullptr, *k = nullptr, *v = nullptr;  // k is q when shared
  int64_t q_stride = 0, k_stride = 0, v_stride = 0;
  const uint8_t* mask = nullptr;     // [B,T]
  const float* rotations = nullptr;  // [rotation_sets, D, R, sum(factors)/2]
  int64_t rotation_sets = 0;         // 1, all_heads or batch * all_heads
  int32_t* buckets = nullptr;        // [B, all_heads, R, T]; null: kept in the scratch
  bool given_slots = false;          // the caller has the permutation, whose imagined padding may be at any slot
  Philox dropout{};
  float* out = nullptr;
  int64_t out_stride = 0;
  float* log_sum_exp = nullptr;  // [B, log_sum_exp_heads, T], at the first head; null: not wanted (forward)
  int64_t log_sum_exp_heads = 0;
  const float* grad_out = nullptr;
  int64_t grad_out_stride = 0;
  const float* grad_log_sum_exp = nullptr;                        // like log_sum_exp; optional
  float *grad_q = nullptr, *grad_k = nullptr, *grad_v = nullptr;  // grad_k is grad_q when shared
  int64_t grad_q_stride = 0, grad_k_stride = 0, grad_v_stride = 0;

  // RFN_BF16 or RFN_F16 where that is the type of q, k, v, out and their gradients: the caller's rows are then these,
  // and the floats above are scratch. The door of a backend converts between the two (attention_op); kernels that read
  // typed rows themselves find them here.
  int32_t dtype = RFN_F32;
  TypedRows typed_q, typed_k, typed_v, typed_out, typed_grad_out, typed_grad_q, typed_grad_k, typed_grad_v;

  AttentionWindow<> window() const { return attention_window(options, length); }
  bool lsh() const { return options.kind == RFN_ATTENTION_LSH; }
  int64_t rounds() const { return lsh() ? options.rounds : 1; }
  int64_t padded() const { return window().slots(); }  // slots of one round
  // Slots of one round that may hold a token. What follows is imagined padding, which is neither stored nor visited, so
  // that a call costs the same however much of it there is.
  int64_t stored() const { return given_slots ? padded() : length; }
  int64_t sequence_heads() const { return batch * heads; }
};

inline float logit_scale(const Attention& a) { return logit_scale(a.options, a.head_size); }

inline Attention attention_call(const rfn_attention& op) {
  Attention a;
  a.options = op.options;
  a.batch = op.q.shape[0];
  a.length = op.q.shape[1];
  a.all_heads = op.q.shape[2];
  a.head_size = op.q.shape[3];
  a.heads = a.all_heads;
  const bool shared = op.options.shared_qk != 0;
  const int64_t stride = a.all_heads * a.head_size;
  a.q_stride = a.k_stride = a.v_stride = a.out_stride = a.grad_out_stride = stride;
  a.grad_q_stride = a.grad_k_stride = a.grad_v_stride = stride;
  if (is_half(op.q.dtype)) {
    const auto typed = [&](const rfn_tensor& tensor) { return TypedRows{u16(tensor), stride}; };
    a.dtype = op.q.dtype;
    a.typed_q = typed(op.q);
    a.typed_k = typed(op.k);
    a.typed_v = typed(op.v);
    a.typed_out = typed(op.out);
    a.typed_grad_out = typed(op.grad_out);
    a.typed_grad_q = typed(op.grad_q);
    a.typed_grad_k = typed(op.grad_k);
    a.typed_grad_v = typed(op.grad_v);
  } else {
    a.q = f32(op.q);
    a.k = shared ? a.q : f32(op.k);
    a.v = f32(op.v);
    a.out = f32(op.out);
    a.grad_out = f32(op.grad_out);
    a.grad_q = f32(op.grad_q);
    a.grad_k = shared ? a.grad_q : f32(op.grad_k);
    a.grad_v = f32(op.grad_v);
  }
  a.mask = u8(op.mask);
  a.rotations = f32(op.rotations);
  a.rotation_sets = present(op.rotations) ? op.rotations.shape[0] : 0;
  a.buckets = i32(op.buckets);
  a.given_slots = present(op.sorted);
  a.dropout = philox(op.seed, op.step, op.layer, RFN_SITE_ATTENTION_PROBABILITIES);
  a.log_sum_exp = f32(op.log_sum_exp);
  a.log_sum_exp_heads = a.all_heads;
  return a;
}

// The same call for heads [first, first + heads).
inline Attention slice_heads(const Attention& whole, int64_t first, int64_t heads) {
  Attention a = whole;
  a.first_head = whole.first_head + first;
  a.heads = heads;
  const int64_t offset = first * a.head_size, statistic = first * a.length;
  const auto move = [](auto*& pointer, int64_t by) {
    if (pointer != nullptr) pointer += by;
  };
  move(a.q, offset);
  move(a.k, offset);
  move(a.v, offset);
  move(a.out, offset);
  move(a.grad_out, offset);
  move(a.grad_q, offset);
  move(a.grad_k, offset);
  move(a.grad_v, offset);
  for (TypedRows* const rows : {&a.typed_q, &a.typed_k, &a.typed_v, &a.typed_out, &a.typed_grad_out, &a.typed_grad_q,
                                &a.typed_grad_k, &a.typed_grad_v}) {
    move(rows->data, offset);
  }
  move(a.log_sum_exp, statistic);
  move(a.grad_log_sum_exp, statistic);
  return a;
}

// Scratch floats for the rows of a call of BF16 or F16, of its heads alone; takes nothing for other calls. In a
// workspace query the call becomes the one that the pass will see.
inline void take_float_rows(Arena& arena, Attention& a, int32_t pass) {
  if (!is_half(a.dtype)) return;
  const bool shared = a.options.shared_qk != 0;
  const int64_t stride = a.heads * a.head_size, floats = a.batch * a.length * stride;
  const auto take = [&](TypedRows& rows) { return rows.floats = arena.take<float>(floats); };
  a.q_stride = a.k_stride = a.v_stride = a.out_stride = a.grad_out_stride = stride;
  a.grad_q_stride = a.grad_k_stride = a.grad_v_stride = stride;
  a.q = take(a.typed_q);
  a.k = shared ? a.q : take(a.typed_k);
  a.v = take(a.typed_v);
  a.out = take(a.typed_out);
  if (pass == RFN_PASS_FORWARD) return;
  a.grad_out = take(a.typed_grad_out);
  a.grad_q = take(a.typed_grad_q);
  a.grad_k = shared ? a.grad_q : take(a.typed_grad_k);
  a.grad_v = take(a.typed_grad_v);
}

// View of the call in which round r alone gives out and log_sum_exp.
inline Attention round_view(const Attention& a, const rfn_attention& op, int64_t round) {
  Attention one = a;
  one.out_stride = one.grad_out_stride = a.all_heads * a.head_size;
  const int64_t rows = round * a.batch * a.length * one.out_stride + a.first_head * a.head_size;
  const int64_t statistic = round * a.batch * a.all_heads * a.length + a.first_head * a.length;
  one.out = f32(op.round_out) + rows;
  one.log_sum_exp = f32(op.round_log_sum_exp) + statistic;
  if (op.grad_round_out.data != nullptr) one.grad_out = f32(op.grad_round_out) + rows;
  if (op.grad_round_log_sum_exp.data != nullptr) one.grad_log_sum_exp = f32(op.grad_round_log_sum_exp) + statistic;
  return one;
}

}  // namespace rfn
