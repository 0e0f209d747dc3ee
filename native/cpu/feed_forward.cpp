// Rows are divided into items, an item's work into slices of the hidden layer: a slice of an item (at most 256 x 512
// floats) stays in the second-level cache between the two products, whatever F is. The division depends on the shape
// alone. Forward and backward run the same products over the same division, so that both compute the same bits of y.
#include "cpu/feed_forward.h"

#include <algorithm>
#include <limits>

#include "core/backend.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cpu/convert.h"
#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "cpu/vector_math.h"

namespace rfn::cpu {
namespace {

constexpr int64_t kItemRows = 256;  // at most; enough to make up for packing the weights again for every item
constexpr int64_t kMinItemRows = 32;
constexpr int64_t kItems = 8;                       // wanted of a small chunk
constexpr int64_t kSlice = 512;                     // hidden units at a time, at most
constexpr int64_t kGradientTile = 256;              // rows and columns of a weight gradient per item
constexpr int64_t kChunkBytes = int64_t{64} << 20;  // hidden values of an automatic chunk

struct Division {
  int64_t items, item_rows;
  int64_t slices, slice;
};

Division divide(const FeedForward& op, int64_t rows) {
  Division d;
  d.item_rows = std::clamp(round_up(div_up(rows, kItems), 16), kMinItemRows, kItemRows);
  d.items = div_up(rows, d.item_rows);
  d.slice = round_up(div_up(op.hidden, div_up(op.hidden, kSlice)), 16);
  d.slices = div_up(op.hidden, d.slice);
  return d;
}

// What backward keeps of a chunk. Slices lie one after the other, so that a slice of an item is one dense block, as
// forward's is.
struct Backward {
  float* hidden;       // [slices][rows, slice]: first the values before the activation, then after it
  float* grad_hidden;  // the same: gradient of the values after, then before the activation
  float* grad_output;  // [rows, E]: dy through the output dropout; unused without dropout
};

Backward take_backward(Arena& arena, const FeedForward& op, int64_t chunk_rows) {
  const Division d = divide(op, chunk_rows);
  Backward b;
  b.hidden = arena.take<float>(d.slices * d.slice * chunk_rows);
  b.grad_hidden = arena.take<float>(d.slices * d.slice * chunk_rows);
  b.grad_output = op.dropout > 0 ? arena.take<float>(chunk_rows * op.width) : nullptr;
  return b;
}

// dropout(x W1^T + b1) for hidden units [begin, begin + units), in rows that are `stride` apart.
void hidden_before_activation(const FeedForward& op, int64_t first_row, int64_t rows, int64_t begin, int64_t units,
                              const float* x, float* hidden, int64_t stride) {
  gemm({Transpose::kNo, Transpose::kYes, rows, units, op.width, x, op.width, op.w1 + begin * op.width, op.width, 0.0f,
        hidden, stride});
  for (int64_t row = 0; row < rows; ++row) {
    float* const values = hidden + row * stride;
    add(values, op.b1 + begin, units);
    apply_dropout(values, units, op.hidden_random, static_cast<uint64_t>((first_row + row) * op.hidden + begin),
                  op.dropout);
  }
}

// y (+)= hidden W2^T over these units; the last slice's caller finishes with output_end.
void output_slice(const FeedForward& op, int64_t rows, int64_t begin, int64_t units, const float* hidden, float* y) {
  gemm({Transpose::kNo, Transpose::kYes, rows, op.width, units, hidden, units, op.w2 + begin, op.hidden,
        begin == 0 ? 0.0f : 1.0f, y, op.width});
}

void output_end(const FeedForward& op, int64_t first_row, int64_t rows, float* y) {
  add_bias(y, op.b2, rows, op.width);
  apply_dropout(y, rows * op.width, op.output_random, static_cast<uint64_t>(first_row * op.width), op.dropout);
}

// A size that overflows stays one that overflows.
int64_t floats(const Arena& arena) {
  return arena.overflowed() ? std::numeric_limits<int64_t>::max() : arena.used() / static_cast<int64_t>(sizeof(float));
}

}  // namespace

int64_t feed_forward_chunk_rows(int64_t chunk, int64_t rows, int64_t, int64_t hidden) {
  const int64_t automatic = std::max(kItemRows, kChunkBytes / (4 * hidden) / kItemRows * kItemRows);
  return std::min(rows, chunk > 0 ? chunk : automatic);
}

int64_t feed_forward_forward_scratch(const FeedForward& op, int32_t threads, int64_t chunk_rows) {
  Arena arena;
  const Division d = divide(op, chunk_rows);
  arena.take<float>(threads * d.item_rows * d.slice);
  return floats(arena);
}

int64_t feed_forward_backward_scratch(const FeedForward& op, int32_t, int64_t chunk_rows) {
  Arena arena;
  take_backward(arena, op, chunk_rows);
  return floats(arena);
}

void feed_forward_chunk_forward(int32_t threads, const FeedForward& op, int64_t first_row, int64_t rows, const float* x,
                                float* scratch, float* hidden, float* y) {
  const Division d = divide(op, rows);
  parallel_for(threads, d.items, [&](int64_t item, int32_t thread) {
    const int64_t first = item * d.item_rows, count = std::min(d.item_rows, rows - first);
    float *const active = scratch + thread * d.item_rows * d.slice, *const out = y + first * op.width;
    for (int64_t begin = 0; begin < op.hidden; begin += d.slice) {
      const int64_t units = std::min(d.slice, op.hidden - begin);
      float* const before = hidden != nullptr ? hidden + first * op.hidden + begin : active;
      const int64_t stride = hidden != nullptr ? op.hidden : units;
      hidden_before_activation(op, first_row + first, count, begin, units, x + first * op.width, before, stride);
      for (int64_t row = 0; row < count; ++row)
        activation_forward(op.activation, before + row * stride, active + row * units, units);
      output_slice(op, count, begin, units, active, out);
    }
    output_end(op, first_row + first, count, out);
  });
}

void feed_forward_chunk_backward(int32_t threads, const FeedForward& op, int64_t first_row, int64_t rows,
                                 const float* x, const float* dy, float* scratch, const float* hidden, float* y,
                                 float* dx) {
  const Division d = divide(op, rows);
  Arena arena(scratch, 0);
  const Backward b = take_backward(arena, op, rows);
  const float* const dz = op.dropout > 0 ? b.grad_output : dy;

  parallel_for(threads, d.items, [&](int64_t item, int32_t) {
    const int64_t first = item * d.item_rows, count = std::min(d.item_rows, rows - first);
    const float* const x_item = x + first * op.width;
    if (op.dropout > 0) {
      std::copy_n(dy + first * op.width, count * op.width, b.grad_output + first * op.width);
      apply_dropout(b.grad_output + first * op.width, count * op.width, op.output_random,
                    static_cast<uint64_t>((first_row + first) * op.width), op.dropout);
    }
    for (int64_t begin = 0; begin < op.hidden; begin += d.slice) {
      const int64_t units = std::min(d.slice, op.hidden - begin), place = begin * rows + first * units;
      float *const active = b.hidden + place, *const grad_hidden = b.grad_hidden + place;
      const float* const before = hidden != nullptr ? hidden + first * op.hidden + begin : active;
      const int64_t stride = hidden != nullptr ? op.hidden : units;
      if (hidden == nullptr)
        hidden_before_activation(op, first_row + first, count, begin, units, x_item, active, units);
      gemm({Transpose::kNo, Transpose::kNo, count, units, op.width, dz + first * op.width, op.width, op.w2 + begin,
            op.hidden, 0.0f, grad_hidden, units});
      for (int64_t row = 0; row < count; ++row) {
        float* const gradient = grad_hidden + row * units;
        activation_backward(op.activation, before + row * stride, gradient, gradient, units);
        apply_dropout(gradient, units, op.hidden_random,
                      static_cast<uint64_t>((first_row + first + row) * op.hidden + begin), op.dropout);
        activation_forward(op.activation, before + row * stride, active + row * units, units);
      }
      if (y != nullptr) output_slice(op, count, begin, units, active, y + first * op.width);
      gemm({Transpose::kNo, Transpose::kNo, count, op.width, units, grad_hidden, units, op.w1 + begin * op.width,
            op.width, begin == 0 ? 0.0f : 1.0f, dx + first * op.width, op.width});
    }
    if (y != nullptr) output_end(op, first_row + first, count, y + first * op.width);
  });

  // Parameter gradients: every item is a tile of one weight's gradient and sums over all rows of the chunk.
  const int64_t tiles = div_up(op.width, kGradientTile), blocks = d.slices * div_up(d.slice, kGradientTile),
                per_slice = blocks / d.slices;
  parallel_for(threads, blocks * tiles * 2, [&](int64_t item, int32_t) {
    const bool second = item >= blocks * tiles;
    const int64_t block = item % (blocks * tiles) / tiles, e = item % tiles * kGradientTile,
                  columns = std::min(kGradientTile, op.width - e);
    const int64_t begin = block / per_slice * d.slice, units = std::min(d.slice, op.hidden - begin),
                  u = block % per_slice * kGradientTile;
    if (u >= units) return;
    const int64_t count = std::min(kGradientTile, units - u);
    const float *const hidden = b.hidden + begin * rows, *const grad_hidden = b.grad_hidden + begin * rows;
    if (second) {
      gemm({Transpose::kYes, Transpose::kNo, columns, count, rows, dz + e, op.width, hidden + u, units, 1.0f,
            op.grad_w2 + e * op.hidden + begin + u, op.hidden});
    } else {
      gemm({Transpose::kYes, Transpose::kNo, count, columns, rows, grad_hidden + u, units, x + e, op.width, 1.0f,
            op.grad_w1 + (begin + u) * op.width + e, op.width});
    }
  });
  parallel_for(threads, d.slices + 1, [&](int64_t slice, int32_t) {
    if (slice == d.slices) return add_column_sums(dz, rows, op.width, op.grad_b2);
    const int64_t begin = slice * d.slice;
    add_column_sums(b.grad_hidden + begin * rows, rows, std::min(d.slice, op.hidden - begin), op.grad_b1 + begin);
  });
}

namespace {

// The op over rows of floats: those of the caller, or, of BF16 and F16, scratch for the weights and for the rows of a
// chunk.
struct OpCall {
  FeedForward layer;
  int64_t rows, chunk;
  float* scratch;                    // of a chunk's passes
  float *w1, *w2, *x, *y, *dy, *dx;  // BF16 and F16
};

OpCall op_call(Arena& arena, const rfn_feed_forward& op, int32_t threads, int32_t pass) {
  OpCall call{};
  call.layer = feed_forward_call(op);
  const int64_t width = call.layer.width, hidden = call.layer.hidden;
  call.rows = op.x.shape[0];
  call.chunk = feed_forward_chunk_rows(op.chunk, call.rows, width, hidden);
  const bool forward = pass == RFN_PASS_FORWARD;
  call.scratch = arena.take<float>(forward ? feed_forward_forward_scratch(call.layer, threads, call.chunk)
                                           : feed_forward_backward_scratch(call.layer, threads, call.chunk));
  if (!is_half(op.x.dtype)) return call;
  call.layer.w1 = call.w1 = arena.take<float>(hidden * width);
  call.layer.w2 = call.w2 = arena.take<float>(hidden * width);
  for (float** const rows : {&call.x, forward ? &call.y : &call.dy, forward ? nullptr : &call.dx}) {
    if (rows != nullptr) *rows = arena.take<float>(call.chunk * width);
  }
  return call;
}

void widen_weights(int32_t threads, const rfn_feed_forward& op, const OpCall& call) {
  if (!is_half(op.x.dtype)) return;
  const int64_t width = call.layer.width, hidden = call.layer.hidden;
  widen_rows(threads, op.x.dtype, hidden, width, u16(op.w1), width, call.w1, width);
  widen_rows(threads, op.x.dtype, width, hidden, u16(op.w2), hidden, call.w2, hidden);
}

// Rows [first, first + rows) of a tensor to be read: its own, or `floats` with them.
const float* read_rows(int32_t threads, const rfn_tensor& tensor, int64_t first, int64_t rows, float* floats) {
  const int64_t width = tensor.shape[1];
  if (!is_half(tensor.dtype)) return f32(tensor) + first * width;
  widen_rows(threads, tensor.dtype, rows, width, u16(tensor) + first * width, width, floats, width);
  return floats;
}

// The same to be written, and what follows the writing.
float* written_rows(const rfn_tensor& tensor, int64_t first, float* floats) {
  return is_half(tensor.dtype) ? floats : f32(tensor) + first * tensor.shape[1];
}
void finish_rows(int32_t threads, const rfn_tensor& tensor, int64_t first, int64_t rows, const float* floats) {
  const int64_t width = tensor.shape[1];
  if (is_half(tensor.dtype))
    narrow_rows(threads, tensor.dtype, rows, width, floats, width, u16(tensor) + first * width, width);
}

}  // namespace

rfn_status feed_forward_workspace(const rfn_context& context, const rfn_feed_forward& op, int32_t pass,
                                  int64_t* bytes) {
  Arena arena;
  op_call(arena, op, context.threads, pass);
  return workspace_size(arena, "feed_forward", bytes);
}

rfn_status feed_forward_forward(rfn_stream& stream, const rfn_feed_forward& op, void* workspace,
                                int64_t workspace_bytes) {
  const int32_t threads = stream.context->threads;
  Arena arena(workspace, workspace_bytes);
  const OpCall call = op_call(arena, op, threads, RFN_PASS_FORWARD);
  widen_weights(threads, op, call);
  for (int64_t first = 0; first < call.rows; first += call.chunk) {
    const int64_t rows = std::min(call.chunk, call.rows - first);
    const float* const x = read_rows(threads, op.x, first, rows, call.x);
    feed_forward_chunk_forward(threads, call.layer, first, rows, x, call.scratch, nullptr,
                               written_rows(op.y, first, call.y));
    finish_rows(threads, op.y, first, rows, call.y);
  }
  return RFN_OK;
}

rfn_status feed_forward_backward(rfn_stream& stream, const rfn_feed_forward& op, void* workspace,
                                 int64_t workspace_bytes) {
  const int32_t threads = stream.context->threads;
  Arena arena(workspace, workspace_bytes);
  const OpCall call = op_call(arena, op, threads, RFN_PASS_BACKWARD);
  widen_weights(threads, op, call);
  for (int64_t first = 0; first < call.rows; first += call.chunk) {
    const int64_t rows = std::min(call.chunk, call.rows - first);
    const float* const x = read_rows(threads, op.x, first, rows, call.x);
    const float* const dy = read_rows(threads, op.grad_y, first, rows, call.dy);
    feed_forward_chunk_backward(threads, call.layer, first, rows, x, dy, call.scratch, nullptr, nullptr,
                                written_rows(op.grad_x, first, call.dx));
    finish_rows(threads, op.grad_x, first, rows, call.dx);
  }
  return RFN_OK;
}

}  // namespace rfn::cpu
