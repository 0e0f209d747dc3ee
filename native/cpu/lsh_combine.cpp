// The stage that merges the rounds of LSH attention, and its backward pass.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/backend.h"
#include "cpu/attention.h"
#include "cpu/convert.h"

namespace rfn::cpu {

namespace {

// Rows of out and grad_out, of any type, go through floats a piece at a time.
constexpr int64_t kPiece = 256;

void load(const rfn_tensor& tensor, int64_t first, int64_t n, float* to) {
  if (is_half(tensor.dtype)) return widen(tensor.dtype, u16(tensor) + first, to, n);
  std::memcpy(to, f32(tensor) + first, static_cast<size_t>(n) * sizeof(float));
}

void store(const rfn_tensor& tensor, int64_t first, int64_t n, const float* from) {
  if (is_half(tensor.dtype)) return narrow(tensor.dtype, from, u16(tensor) + first, n);
  std::memcpy(f32(tensor) + first, from, static_cast<size_t>(n) * sizeof(float));
}

// Calls body(first, count) for the pieces of a row of n.
template <class Body>
void for_pieces(int64_t n, const Body& body) {
  for (int64_t first = 0; first < n; first += kPiece) body(first, std::min(kPiece, n - first));
}

}  // namespace

// out = sum_r w_r out_r, w_r = exp(log_sum_exp_r - log_sum_exp), log_sum_exp = log sum_r exp(log_sum_exp_r). Rounds
// without a key for a token have log_sum_exp -inf and weight 0; when all have, the token's output is that of round 0
// (its own value, or 0).
rfn_status lsh_combine(rfn_stream& stream, const rfn_attention& op, void*, int64_t) {
  const Attention call = attention_call(op);
  const int64_t rounds = call.rounds(), log_sum_exp_size = call.batch * call.all_heads * call.length,
                out_size = log_sum_exp_size * call.head_size;
  const float *const round_out = f32(op.round_out), *const round_log_sum_exp = f32(op.round_log_sum_exp);
  for_tokens(
      stream.context->threads, call, AttentionScratch{}, [&](const SequenceHead& head, int64_t first, int64_t last) {
        for (int64_t position = first; position < last; ++position) {
          const int64_t log_sum_exp_at = head.global * call.length + position,
                        row_at = (head.example * call.length + position) * call.out_stride + head.head * call.head_size;
          float maximum = kNegativeInfinity, sum = 0.0f;
          for (int64_t r = 0; r < rounds; ++r)
            maximum = std::max(maximum, round_log_sum_exp[r * log_sum_exp_size + log_sum_exp_at]);
          if (maximum == kNegativeInfinity) {
            store(op.out, row_at, call.head_size, round_out + row_at);
            if (call.log_sum_exp != nullptr) call.log_sum_exp[log_sum_exp_at] = kNegativeInfinity;
            continue;
          }
          for (int64_t r = 0; r < rounds; ++r)
            sum += std::exp(round_log_sum_exp[r * log_sum_exp_size + log_sum_exp_at] - maximum);
          const float log_sum_exp = maximum + std::log(sum);
          if (call.log_sum_exp != nullptr) call.log_sum_exp[log_sum_exp_at] = log_sum_exp;
          for_pieces(call.head_size, [&](int64_t begin, int64_t count) {
            float piece[kPiece] = {};
            for (int64_t r = 0; r < rounds; ++r) {
              const float weight = std::exp(round_log_sum_exp[r * log_sum_exp_size + log_sum_exp_at] - log_sum_exp);
              if (weight == 0.0f) continue;
              const float* const source = round_out + r * out_size + row_at + begin;
              for (int64_t d = 0; d < count; ++d) piece[d] += weight * source[d];
            }
            store(op.out, row_at + begin, count, piece);
          });
        }
      });
  return RFN_OK;
}

// d out_r = w_r dO;  d log_sum_exp_r = w_r dO . (out_r - out).
rfn_status lsh_combine_backward(rfn_stream& stream, const rfn_attention& op, void*, int64_t) {
  const Attention call = attention_call(op);
  const int64_t rounds = call.rounds(), log_sum_exp_size = call.batch * call.all_heads * call.length,
                out_size = log_sum_exp_size * call.head_size;
  const float *const round_out = f32(op.round_out), *const round_log_sum_exp = f32(op.round_log_sum_exp);
  float *const grad_round_out = f32(op.grad_round_out), *const grad_round_log_sum_exp = f32(op.grad_round_log_sum_exp);
  for_tokens(
      stream.context->threads, call, AttentionScratch{}, [&](const SequenceHead& head, int64_t first, int64_t last) {
        for (int64_t position = first; position < last; ++position) {
          const int64_t log_sum_exp_at = head.global * call.length + position,
                        row_at = (head.example * call.length + position) * call.out_stride + head.head * call.head_size;
          const float log_sum_exp = call.log_sum_exp[log_sum_exp_at];
          for (int64_t r = 0; r < rounds; ++r) {
            const float own = round_log_sum_exp[r * log_sum_exp_size + log_sum_exp_at];
            const float weight =
                log_sum_exp == kNegativeInfinity ? (r == 0 ? 1.0f : 0.0f) : std::exp(own - log_sum_exp);
            float along = 0.0f;
            for_pieces(call.head_size, [&](int64_t begin, int64_t count) {
              float gradient[kPiece], out[kPiece];
              load(op.grad_out, row_at + begin, count, gradient);
              load(op.out, row_at + begin, count, out);
              const int64_t from = r * out_size + row_at + begin;
              for (int64_t d = 0; d < count; ++d) {
                grad_round_out[from + d] = weight * gradient[d];
                along += gradient[d] * (round_out[from + d] - out[d]);
              }
            });
            grad_round_log_sum_exp[r * log_sum_exp_size + log_sum_exp_at] =
                log_sum_exp == kNegativeInfinity ? 0.0f : weight * along;
          }
        }
      });
  return RFN_OK;
}

}  // namespace rfn::cpu
