// LSH attention in bf16 over chunks of 64 slots with one chunk before: shared projections, no duplicate correction, no
// dropout. All rounds are one launch, and a row is loaded once as a query, an own key and a key of the chunk behind.
// Every other call of attention goes through the tiles of attention_tile.cuh, which decide about each pair.
//
//   prepare   lsh_chunks_prepare.cu   q to normalised keys and a factor for each row, v and dO, in bf16
//   attend    lsh_chunks_forward.cu   each round's sums of values and of weights, then their combination
//   gradients lsh_chunks_backward.cu  each round's gradients, then their sums
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "core/attention_call.h"
#include "core/workspace.h"
#include "cuda/state.h"

namespace rfn::cuda {

struct AttentionScratch;

inline constexpr int kChunkSlots = 64;

// Scratch of one call, in device memory. S: sequence-heads of the call; D: head size, padded with zeros to 32 or 64.
struct ChunkScratch {
  uint16_t *keys, *values;  // [S,T,D] bf16. keys: q over its norm
  float* factors;           // [S,T] norm * scale * log2(e): the base-2 logit of (i, j) is factor_i k_i . k_j
  uint32_t* runs;           // [S,R,stored], windows within a bucket: runs_kernel
  uint16_t* round_out;      // [S,R,T,D] bf16: sums over keys of 2^(logit - reference) v; backward: gradients of q
  float2* round_sums;       // [S,R,T] sum of 2^(logit - reference), reference; backward: sum of w s, unused
  uint16_t* grad_out;       // backward [S,T,D] bf16
  float4* queries;          // backward [S,T]: factor, base-2 log-sum-exp, delta * factor, position + 1 as bits
  uint16_t* round_grad_v;   // backward [S,R,T,D] bf16
};
ChunkScratch chunk_scratch(Arena& arena, const Attention& a, int32_t pass);

// Whether these kernels take the call; then its scratch has a ChunkScratch.
bool takes_chunks(const rfn_context& context, const Attention& a);

// From the permutation in the scratch to out and log_sum_exp, and from these to the gradients, which are overwritten.
rfn_status chunks_forward(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch);
rfn_status chunks_backward(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch);

// What the parts share (lsh_chunks_prepare.cu): the rows in bf16; with grad_out and queries for the backward pass.
rfn_status chunks_prepare(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch, int32_t pass);

}  // namespace rfn::cuda
