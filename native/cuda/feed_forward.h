// One row chunk of the feed-forward layer; shared by the op and the reversible block.
#pragma once
#include <cstdint>

#include "core/feed_forward_call.h"
#include "core/workspace.h"
#include "cuda/elementwise.h"
#include "cuda/state.h"

namespace rfn::cuda {

int64_t feed_forward_chunk_rows(int64_t chunk, int64_t rows, int64_t hidden);

// Scratch for chunks of up to `rows` rows; gemm: kGemmWorkspace bytes, shared with the caller's own products.
struct FeedForwardScratch {
  float* hidden;       // [rows, F]
  float* grad_hidden;  // backward [rows, F]
  float* grad_output;  // backward with dropout [rows, E]
  float* sums[2];      // backward: of the gradients of b2 and b1
  void* gemm;
};
FeedForwardScratch feed_forward_layout(Arena& arena, const FeedForward& op, int64_t rows, int32_t pass, void* gemm);

// y = layer(x), or with add y += layer(x), without its last dropout, which the caller applies (elements (first_row + i)
// * E + j of output_random), for `rows` rows of which the first is row `first_row` of the whole. hidden [rows, F], when
// not null: takes what the first product gives.
rfn_status feed_forward_chunk_forward(rfn_stream& stream, const FeedForward& op, int64_t first_row, int64_t rows,
                                      const float* x, const FeedForwardScratch& scratch, float* hidden, bool add,
                                      float* y);
// `parameters` becomes the sums that the gradients of b2 and b1 are still to be given; they stand in the scratch.
// Recomputes what it is not given: hidden of a forward pass, or null. y (without add the same bits as forward's) is
// written when not null; dx is overwritten; parameter gradients are added to.
rfn_status feed_forward_chunk_backward(rfn_stream& stream, const FeedForward& op, int64_t first_row, int64_t rows,
                                       const float* x, const float* dy, const FeedForwardScratch& scratch,
                                       const float* hidden, float* y, float* dx, ColumnSum (&parameters)[2]);

}  // namespace rfn::cuda
