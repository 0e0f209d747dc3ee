// The stage that merges the rounds of LSH attention, and its backward pass: one warp for each (example, token, head).
#include "core/backend.h"
#include "core/tensor.h"
#include "cuda/device_math.cuh"
#include "cuda/state.h"

namespace rfn::cuda {
namespace {

struct CombineCall {
  const float *round_out, *round_lse;  // [R,B,T,H,D], [R,B,H,T]
  const float* lse_in;                 // backward: [B,H,T]
  const float* grad_out;
  float *out, *lse;  // forward: outputs (lse may be null); backward: out is an input
  float *grad_round_out, *grad_round_lse;
  int64_t tokens, length, heads, head_size, rounds;  // tokens = B*T
};

constexpr int kCombineThreads = 128;

struct CombineRow {
  int64_t row, lse;  // element of D 0 in [B,T,H,D]; element in [B,H,T]
  bool there;
};
RFN_DEVICE CombineRow combine_row(const CombineCall& c) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kCombineThreads / 32) + threadIdx.x / 32,
                token = index / c.heads, head = index % c.heads;
  return {index * c.head_size, (token / c.length * c.heads + head) * c.length + token % c.length, token < c.tokens};
}

// out = sum_r w_r out_r, w_r = exp(lse_r - lse), lse = log sum_r exp(lse_r). Rounds without a key for a token have lse
// -inf and weight 0; when all have, the token's output is that of round 0 (its own value, or 0).
__global__ void __launch_bounds__(kCombineThreads) lsh_combine_kernel(const CombineCall c) {
  const CombineRow at = combine_row(c);
  if (!at.there) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t out_size = c.tokens * c.heads * c.head_size, lse_size = c.tokens * c.heads;
  float maximum = -INFINITY, sum = 0.0f;
  for (int64_t r = 0; r < c.rounds; ++r) maximum = fmaxf(maximum, c.round_lse[r * lse_size + at.lse]);
  const bool lone = maximum == -INFINITY;
  for (int64_t r = 0; r < c.rounds && !lone; ++r) sum += expf(c.round_lse[r * lse_size + at.lse] - maximum);
  const float lse = lone ? maximum : maximum + logf(sum);
  if (lane == 0 && c.lse != nullptr) c.lse[at.lse] = lse;
  for (int64_t d = lane; d < c.head_size; d += 32) {
    float value = lone ? c.round_out[at.row + d] : 0.0f;
    for (int64_t r = 0; r < c.rounds && !lone; ++r) {
      const float weight = expf(c.round_lse[r * lse_size + at.lse] - lse);
      if (weight != 0.0f) value = fmaf(weight, c.round_out[r * out_size + at.row + d], value);
    }
    c.out[at.row + d] = value;
  }
}

// d out_r = w_r dO;  d lse_r = w_r dO . (out_r - out).
__global__ void __launch_bounds__(kCombineThreads) lsh_combine_backward_kernel(const CombineCall c) {
  const CombineRow at = combine_row(c);
  if (!at.there) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t out_size = c.tokens * c.heads * c.head_size, lse_size = c.tokens * c.heads;
  const float lse = c.lse_in[at.lse];
  const bool lone = lse == -INFINITY;
  for (int64_t r = 0; r < c.rounds; ++r) {
    const float weight = lone ? (r == 0 ? 1.0f : 0.0f) : expf(c.round_lse[r * lse_size + at.lse] - lse);
    float along = 0.0f;
    for (int64_t d = lane; d < c.head_size; d += 32) {
      const float gradient = c.grad_out[at.row + d];
      c.grad_round_out[r * out_size + at.row + d] = weight * gradient;
      along = fmaf(gradient, c.round_out[r * out_size + at.row + d] - c.out[at.row + d], along);
    }
    along = group_sum(along);
    if (lane == 0) c.grad_round_lse[r * lse_size + at.lse] = lone ? 0.0f : weight * along;
  }
}

CombineCall combine_call(const rfn_attention& op) {
  CombineCall c = {};
  c.round_out = f32(op.round_out);
  c.round_lse = f32(op.round_lse);
  c.lse_in = f32(op.lse);
  c.grad_out = f32(op.grad_out);
  c.out = f32(op.out);
  c.lse = f32(op.lse);
  c.grad_round_out = f32(op.grad_round_out);
  c.grad_round_lse = f32(op.grad_round_lse);
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
  return combine(stream, op, lsh_combine_kernel);
}

rfn_status lsh_combine_backward(rfn_stream& stream, const rfn_attention& op, void*, int64_t) {
  return combine(stream, op, lsh_combine_backward_kernel);
}

}  // namespace rfn::cuda
