// The stage that merges the rounds of LSH attention, and its backward pass: one warp for each (example, token, head).
#include "core/backend.h"
#include "core/tensor.h"
#include "cuda/device_math.cuh"
#include "cuda/half.cuh"
#include "cuda/state.h"

namespace rfn::cuda {
namespace {

struct CombineCall {
  const float *round_out, *round_log_sum_exp;  // [R,B,T,H,D], [R,B,H,T]
  const float* log_sum_exp_in;                 // backward: [B,H,T]
  const void* grad_out;                        // like out, of the type of q
  void* out;                                   // forward: an output; backward: an input
  float* log_sum_exp;                          // forward: an output, or null
  float *grad_round_out, *grad_round_log_sum_exp;
  int64_t tokens, length, heads, head_size, rounds;  // tokens = B*T
};

constexpr int kCombineThreads = 128;

struct CombineRow {
  int64_t row, log_sum_exp;  // element of D 0 in [B,T,H,D]; element in [B,H,T]
  bool there;
};
RFN_DEVICE CombineRow combine_row(const CombineCall& c) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kCombineThreads / 32) + threadIdx.x / 32,
                token = index / c.heads, head = index % c.heads;
  return {index * c.head_size, (token / c.length * c.heads + head) * c.length + token % c.length, token < c.tokens};
}

// out = sum_r w_r out_r, w_r = exp(log_sum_exp_r - log_sum_exp), log_sum_exp = log sum_r exp(log_sum_exp_r). Rounds
// without a key for a token have log_sum_exp -inf and weight 0; when all have, the token's output is that of round 0
// (its own value, or 0).
template <class Element>
__global__ void __launch_bounds__(kCombineThreads) lsh_combine_kernel(const CombineCall c) {
  using Stored = typename Element::Stored;
  const CombineRow at = combine_row(c);
  if (!at.there) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t out_size = c.tokens * c.heads * c.head_size, log_sum_exp_size = c.tokens * c.heads;
  float maximum = -INFINITY, sum = 0.0f;
  for (int64_t r = 0; r < c.rounds; ++r)
    maximum = fmaxf(maximum, c.round_log_sum_exp[r * log_sum_exp_size + at.log_sum_exp]);
  const bool lone = maximum == -INFINITY;
  for (int64_t r = 0; r < c.rounds && !lone; ++r)
    sum += expf(c.round_log_sum_exp[r * log_sum_exp_size + at.log_sum_exp] - maximum);
  const float log_sum_exp = lone ? maximum : maximum + logf(sum);
  if (lane == 0 && c.log_sum_exp != nullptr) c.log_sum_exp[at.log_sum_exp] = log_sum_exp;
  for (int64_t d = lane; d < c.head_size; d += 32) {
    float value = lone ? c.round_out[at.row + d] : 0.0f;
    for (int64_t r = 0; r < c.rounds && !lone; ++r) {
      const float weight = expf(c.round_log_sum_exp[r * log_sum_exp_size + at.log_sum_exp] - log_sum_exp);
      if (weight != 0.0f) value = fmaf(weight, c.round_out[r * out_size + at.row + d], value);
    }
    static_cast<Stored*>(c.out)[at.row + d] = Element::narrow(value);
  }
}

// d out_r = w_r dO;  d log_sum_exp_r = w_r dO . (out_r - out).
template <class Element>
__global__ void __launch_bounds__(kCombineThreads) lsh_combine_backward_kernel(const CombineCall c) {
  using Stored = typename Element::Stored;
  const CombineRow at = combine_row(c);
  if (!at.there) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t out_size = c.tokens * c.heads * c.head_size, log_sum_exp_size = c.tokens * c.heads;
  const float log_sum_exp = c.log_sum_exp_in[at.log_sum_exp];
  const bool lone = log_sum_exp == -INFINITY;
  for (int64_t r = 0; r < c.rounds; ++r) {
    const float weight =
        lone ? (r == 0 ? 1.0f : 0.0f) : expf(c.round_log_sum_exp[r * log_sum_exp_size + at.log_sum_exp] - log_sum_exp);
    float along = 0.0f;
    for (int64_t d = lane; d < c.head_size; d += 32) {
      const float gradient = Element::widen(static_cast<const Stored*>(c.grad_out)[at.row + d]),
                  out = Element::widen(static_cast<const Stored*>(c.out)[at.row + d]);
      c.grad_round_out[r * out_size + at.row + d] = weight * gradient;
      along = fmaf(gradient, c.round_out[r * out_size + at.row + d] - out, along);
    }
    along = group_sum(along);
    if (lane == 0) c.grad_round_log_sum_exp[r * log_sum_exp_size + at.log_sum_exp] = lone ? 0.0f : weight * along;
  }
}

CombineCall combine_call(const rfn_attention& op) {
  CombineCall c = {};
  c.round_out = f32(op.round_out);
  c.round_log_sum_exp = f32(op.round_log_sum_exp);
  c.log_sum_exp_in = f32(op.log_sum_exp);
  c.grad_out = op.grad_out.data;
  c.out = op.out.data;
  c.log_sum_exp = f32(op.log_sum_exp);
  c.grad_round_out = f32(op.grad_round_out);
  c.grad_round_log_sum_exp = f32(op.grad_round_log_sum_exp);
  c.length = op.q.shape[1];
  c.tokens = op.q.shape[0] * c.length;
  c.heads = op.q.shape[2];
  c.head_size = op.q.shape[3];
  c.rounds = op.options.rounds;
  return c;
}

rfn_status combine(rfn_stream& stream, const rfn_attention& op, void (*kernel)(CombineCall)) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const CombineCall c = combine_call(op);
  RFN_CUDA_TRY(stream, RFN_LAUNCH(kernel, blocks_for(c.tokens * c.heads, kCombineThreads / 32), kCombineThreads, 0,
                                  native_stream(stream), c));
  return RFN_OK;
}

}  // namespace

rfn_status lsh_combine(rfn_stream& stream, const rfn_attention& op, void*, int64_t) {
  return with_element(op.q.dtype,
                      [&](auto element) { return combine(stream, op, lsh_combine_kernel<decltype(element)>); });
}

rfn_status lsh_combine_backward(rfn_stream& stream, const rfn_attention& op, void*, int64_t) {
  return with_element(
      op.q.dtype, [&](auto element) { return combine(stream, op, lsh_combine_backward_kernel<decltype(element)>); });
}

}  // namespace rfn::cuda
