// One row chunk of the feed-forward layer; shared by the op and the reversible block.
#pragma once
#include <cstdint>

#include "core/feed_forward_call.h"

namespace rfn::cpu {

// Rows handed to one call when the caller does not say (0): fixed by the shape alone.
int64_t feed_forward_chunk_rows(int64_t chunk, int64_t rows, int64_t width, int64_t hidden);

// Scratch of one call, in floats; shared by all threads.
int64_t feed_forward_forward_scratch(const FeedForward& op, int32_t threads, int64_t chunk_rows);
int64_t feed_forward_backward_scratch(const FeedForward& op, int32_t threads, int64_t chunk_rows);

// y = layer(x) for `rows` rows, of which the first is row `first_row` of the whole (dropout counts from there). hidden
// [rows, F], when not null: takes the hidden values before the activation, dropout applied.
void feed_forward_chunk_forward(int32_t threads, const FeedForward& op, int64_t first_row, int64_t rows, const float* x,
                                float* scratch, float* hidden, float* y);

// Recomputes what it is not given: hidden of a forward pass, or null. y (the same bits as forward's) is written when
// not null; dx is overwritten; parameter gradients are added to. x, dy, y and dx are apart.
void feed_forward_chunk_backward(int32_t threads, const FeedForward& op, int64_t first_row, int64_t rows,
                                 const float* x, const float* dy, float* scratch, const float* hidden, float* y,
                                 float* dx);

}  // namespace rfn::cpu
