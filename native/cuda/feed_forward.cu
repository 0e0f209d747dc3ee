// Forward and backward run the same products over the same chunks, so that both compute the same bits of y.
#include "cuda/feed_forward.h"

#include <algorithm>

#include "core/backend.h"
#include "core/tensor.h"
#include "cuda/convert.h"
#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/quads.cuh"

namespace rfn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMinRows = 256;
constexpr int64_t kChunkBytes = int64_t{64} << 20;  // hidden values of an automatic chunk

// hidden: z = x W1^T + b1 becomes h = activation(dropout(z)). gradient, when not null: dh becomes dz.
__global__ void __launch_bounds__(kThreads) hidden_kernel(int32_t activation, Dropout dropout, uint64_t first,
                                                          int64_t n, float* hidden, float* gradient, bool aligned) {
  const int64_t i = quad_begin(first);
  const Quad multiplier = dropout_quad(dropout, first, i);
  Quad h = load_quad(hidden, i, n, aligned);
#pragma unroll
  for (int j = 0; j < 4; ++j) h.v[j] *= multiplier.v[j];
  if (gradient != nullptr) {
    Quad g = load_quad(gradient, i, n, aligned);
#pragma unroll
    for (int j = 0; j < 4; ++j) g.v[j] *= activation_slope(activation, h.v[j]) * multiplier.v[j];
    store_quad(gradient, i, n, aligned, g);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) h.v[j] = activation_value(activation, h.v[j]);
  store_quad(hidden, i, n, aligned, h);
}

bool relu_in_product(const FeedForward& op) { return op.activation == RFN_ACTIVATION_RELU && op.dropout == 0.0f; }

rfn_status finish_hidden(rfn_stream& stream, const FeedForward& op, int64_t first_row, int64_t rows,
                         const FeedForwardScratch& scratch, float* gradient) {
  const int64_t n = rows * op.hidden;
  // The product's ReLU leaves h, which is positive where z is.
  if (relu_in_product(op))
    return gradient == nullptr ? RFN_OK
                               : activation_backward(stream, op.activation, scratch.hidden, gradient, gradient, n);
  const uint64_t first = static_cast<uint64_t>(first_row * op.hidden);
  const bool aligned = quads_aligned(first, scratch.hidden, gradient);
  RFN_CUDA_TRY(stream, RFN_LAUNCH(hidden_kernel, blocks_for(quad_count(n, first), kThreads), kThreads, 0,
                                  native_stream(stream), op.activation, dropout_of(op.hidden_random, op.dropout), first,
                                  n, scratch.hidden, gradient, aligned));
  return RFN_OK;
}

// scratch.hidden = x W1^T + b1, or its ReLU.
rfn_status hidden_product(rfn_stream& stream, const FeedForward& op, int64_t rows, const float* x,
                          const FeedForwardScratch& scratch) {
  const Epilogue epilogue = relu_in_product(op) ? Epilogue::kBiasRelu : Epilogue::kBias;
  return gemm(stream,
              {Transpose::kNo, Transpose::kYes, rows, op.hidden, op.width, x, op.width, op.w1, op.width, 1.0f, 0.0f,
               scratch.hidden, op.hidden, epilogue, op.b1},
              scratch.gemm);
}

// y = or += h W2^T + b2.
rfn_status output_product(rfn_stream& stream, const FeedForward& op, int64_t rows, const FeedForwardScratch& scratch,
                          bool add, float* y) {
  return gemm(stream,
              {Transpose::kNo, Transpose::kYes, rows, op.width, op.hidden, scratch.hidden, op.hidden, op.w2, op.hidden,
               1.0f, add ? 1.0f : 0.0f, y, op.width, Epilogue::kBias, op.b2},
              scratch.gemm);
}

}  // namespace

int64_t feed_forward_chunk_rows(int64_t chunk, int64_t rows, int64_t hidden) {
  const int64_t automatic = std::max(kMinRows, kChunkBytes / (4 * hidden) / kMinRows * kMinRows);
  return std::min(rows, chunk > 0 ? chunk : automatic);
}

FeedForwardScratch feed_forward_layout(Arena& arena, const FeedForward& op, int64_t rows, int32_t pass, void* gemm) {
  FeedForwardScratch s{};
  s.gemm = gemm;
  s.hidden = arena.take<float>(rows * op.hidden);
  if (pass == RFN_PASS_FORWARD) return s;
  s.grad_hidden = arena.take<float>(rows * op.hidden);
  if (op.dropout > 0.0f) s.grad_output = arena.take<float>(rows * op.width);
  s.sums[0] = take_column_sums(arena, rows, op.width);
  s.sums[1] = take_column_sums(arena, rows, op.hidden);
  return s;
}

rfn_status feed_forward_chunk_forward(rfn_stream& stream, const FeedForward& op, int64_t first_row, int64_t rows,
                                      const float* x, const FeedForwardScratch& scratch, float* hidden, bool add,
                                      float* y) {
  RFN_TRY(hidden_product(stream, op, rows, x, scratch));
  // A copy: the product must not depend on where the caller wants it.
  if (hidden != nullptr) RFN_TRY(copy_floats(stream, hidden, scratch.hidden, rows * op.hidden));
  RFN_TRY(finish_hidden(stream, op, first_row, rows, scratch, nullptr));
  return output_product(stream, op, rows, scratch, add, y);
}

rfn_status feed_forward_chunk_backward(rfn_stream& stream, const FeedForward& op, int64_t first_row, int64_t rows,
                                       const float* x, const float* dy, const FeedForwardScratch& scratch,
                                       const float* hidden, float* y, float* dx, ColumnSum (&parameters)[2]) {
  if (op.dropout > 0.0f) {
    const uint64_t first = static_cast<uint64_t>(first_row * op.width);
    RFN_TRY(apply_dropout(stream, dy, scratch.grad_output, rows * op.width, op.output_random, first, op.dropout));
    dy = scratch.grad_output;
  }
  RFN_TRY(hidden == nullptr ? hidden_product(stream, op, rows, x, scratch)
                            : copy_floats(stream, scratch.hidden, hidden, rows * op.hidden));
  RFN_TRY(gemm(stream,
               {Transpose::kNo, Transpose::kNo, rows, op.hidden, op.width, dy, op.width, op.w2, op.hidden, 1.0f, 0.0f,
                scratch.grad_hidden, op.hidden},
               scratch.gemm));
  RFN_TRY(finish_hidden(stream, op, first_row, rows, scratch, scratch.grad_hidden));
  if (y != nullptr) RFN_TRY(output_product(stream, op, rows, scratch, false, y));
  RFN_TRY(gemm(stream,
               {Transpose::kNo, Transpose::kNo, rows, op.width, op.hidden, scratch.grad_hidden, op.hidden, op.w1,
                op.width, 1.0f, 0.0f, dx, op.width},
               scratch.gemm));
  // Parameters.
  RFN_TRY(gemm(stream,
               {Transpose::kYes, Transpose::kNo, op.width, op.hidden, rows, dy, op.width, scratch.hidden, op.hidden,
                1.0f, 1.0f, op.grad_w2, op.hidden},
               scratch.gemm));
  RFN_TRY(gemm(stream,
               {Transpose::kYes, Transpose::kNo, op.hidden, op.width, rows, scratch.grad_hidden, op.hidden, x, op.width,
                1.0f, 1.0f, op.grad_w1, op.width},
               scratch.gemm));
  parameters[0] = {dy, rows, op.width, op.width, op.grad_b2};
  parameters[1] = {scratch.grad_hidden, rows, op.hidden, op.hidden, op.grad_b1};
  return sum_parts(stream, parameters, scratch.sums, 2);
}

namespace {

// Of an op of BF16 or F16, beside the float32 scratch: what products take of a chunk, and its rows of the result before
// they are rounded.
struct HalfScratch {
  uint16_t* hidden;       // [rows, F]
  uint16_t* grad_hidden;  // backward [rows, F]
  uint16_t* grad_output;  // backward with dropout [rows, E]
  float* output;          // [rows, E]: y, or the gradient of y through the output dropout
};

struct Call {
  FeedForward op;
  int64_t rows, chunk;
  FeedForwardScratch scratch;
  HalfScratch half;
};

Call call_of(Arena& arena, const rfn_feed_forward& op, int32_t pass) {
  Call c{feed_forward_call(op), op.x.shape[0], 0, {}, {}};
  c.chunk = feed_forward_chunk_rows(op.chunk, c.rows, c.op.hidden);
  void* const gemm = arena.take<char>(kGemmWorkspace);
  c.scratch = feed_forward_layout(arena, c.op, c.chunk, pass, gemm);
  if (!is_half(op.x.dtype)) return c;
  c.half.hidden = arena.take<uint16_t>(c.chunk * c.op.hidden);
  c.half.output = arena.take<float>(c.chunk * c.op.width);
  if (pass == RFN_PASS_FORWARD) return c;
  c.half.grad_hidden = arena.take<uint16_t>(c.chunk * c.op.hidden);
  if (c.op.dropout > 0.0f) c.half.grad_output = arena.take<uint16_t>(c.chunk * c.op.width);
  return c;
}

// C of float32, or with `rounded` of the operands' type.
rfn_status half_product(rfn_stream& stream, const Call& c, int32_t dtype, Product product, bool rounded = false) {
  product.operands = dtype;
  if (rounded) product.result = dtype;
  return gemm(stream, product, c.scratch.gemm);
}

// scratch.hidden = x W1^T + b1, or its ReLU.
rfn_status half_hidden(rfn_stream& stream, const rfn_feed_forward& op, const Call& c, int64_t rows, const uint16_t* x) {
  const Epilogue epilogue = relu_in_product(c.op) ? Epilogue::kBiasRelu : Epilogue::kBias;
  return half_product(stream, c, op.x.dtype,
                      {Transpose::kNo, Transpose::kYes, rows, c.op.hidden, c.op.width, x, c.op.width, op.w1.data,
                       c.op.width, 1.0f, 0.0f, c.scratch.hidden, c.op.hidden, epilogue, c.op.b1});
}

// The chunk's passes with operands of BF16 or F16: what is summed, activated and dropped stays float32 until a product
// takes it, or the caller.
rfn_status half_chunk_forward(rfn_stream& stream, const rfn_feed_forward& op, const Call& c, int64_t first,
                              int64_t rows) {
  const int64_t width = c.op.width, hidden = c.op.hidden, offset = first * width;
  const int32_t dtype = op.x.dtype;
  RFN_TRY(half_hidden(stream, op, c, rows, u16(op.x) + offset));
  RFN_TRY(finish_hidden(stream, c.op, first, rows, c.scratch, nullptr));
  RFN_TRY(narrow_rows(stream, dtype, rows, hidden, c.scratch.hidden, hidden, c.half.hidden, hidden));
  RFN_TRY(half_product(stream, c, dtype,
                       {Transpose::kNo, Transpose::kYes, rows, width, hidden, c.half.hidden, hidden, op.w2.data, hidden,
                        1.0f, 0.0f, c.half.output, width, Epilogue::kBias, c.op.b2}));
  RFN_TRY(apply_dropout(stream, c.half.output, c.half.output, rows * width, c.op.output_random,
                        static_cast<uint64_t>(offset), c.op.dropout));
  return narrow_rows(stream, dtype, rows, width, c.half.output, width, u16(op.y) + offset, width);
}

rfn_status half_chunk_backward(rfn_stream& stream, const rfn_feed_forward& op, const Call& c, int64_t first,
                               int64_t rows) {
  const int64_t width = c.op.width, hidden = c.op.hidden, offset = first * width;
  const int32_t dtype = op.x.dtype;
  const uint16_t *const x = u16(op.x) + offset, *dy = u16(op.grad_y) + offset;
  RFN_TRY(widen_rows(stream, dtype, rows, width, dy, width, c.half.output, width));
  if (c.op.dropout > 0.0f) {
    RFN_TRY(apply_dropout(stream, c.half.output, c.half.output, rows * width, c.op.output_random,
                          static_cast<uint64_t>(offset), c.op.dropout));
    RFN_TRY(narrow_rows(stream, dtype, rows, width, c.half.output, width, c.half.grad_output, width));
    dy = c.half.grad_output;
  }
  RFN_TRY(half_hidden(stream, op, c, rows, x));
  RFN_TRY(half_product(stream, c, dtype,
                       {Transpose::kNo, Transpose::kNo, rows, hidden, width, dy, width, op.w2.data, hidden, 1.0f, 0.0f,
                        c.scratch.grad_hidden, hidden}));
  RFN_TRY(finish_hidden(stream, c.op, first, rows, c.scratch, c.scratch.grad_hidden));
  RFN_TRY(narrow_rows(stream, dtype, rows, hidden, c.scratch.hidden, hidden, c.half.hidden, hidden));
  RFN_TRY(narrow_rows(stream, dtype, rows, hidden, c.scratch.grad_hidden, hidden, c.half.grad_hidden, hidden));
  RFN_TRY(half_product(stream, c, dtype,
                       {Transpose::kNo, Transpose::kNo, rows, width, hidden, c.half.grad_hidden, hidden, op.w1.data,
                        width, 1.0f, 0.0f, u16(op.grad_x) + offset, width},
                       true));
  RFN_TRY(half_product(stream, c, dtype,
                       {Transpose::kYes, Transpose::kNo, width, hidden, rows, dy, width, c.half.hidden, hidden, 1.0f,
                        1.0f, c.op.grad_w2, hidden}));
  RFN_TRY(add_column_sums(stream, c.half.output, rows, width, c.scratch.sums[0], c.op.grad_b2));
  RFN_TRY(half_product(stream, c, dtype,
                       {Transpose::kYes, Transpose::kNo, hidden, width, rows, c.half.grad_hidden, hidden, x, width,
                        1.0f, 1.0f, c.op.grad_w1, width}));
  return add_column_sums(stream, c.scratch.grad_hidden, rows, hidden, c.scratch.sums[1], c.op.grad_b1);
}

}  // namespace

rfn_status feed_forward_workspace(const rfn_context&, const rfn_feed_forward& op, int32_t pass, int64_t* bytes) {
  Arena arena;
  call_of(arena, op, pass);
  if (arena.overflowed()) return fail(RFN_INVALID_ARGUMENT, "feed_forward: the workspace size overflows 64 bits");
  *bytes = arena.used();
  return RFN_OK;
}

rfn_status feed_forward_forward(rfn_stream& stream, const rfn_feed_forward& op, void* workspace,
                                int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  Arena arena(workspace, workspace_bytes);
  const Call c = call_of(arena, op, RFN_PASS_FORWARD);
  for (int64_t first = 0; first < c.rows; first += c.chunk) {
    const int64_t rows = std::min(c.chunk, c.rows - first), offset = first * c.op.width;
    if (is_half(op.x.dtype)) {
      RFN_TRY(half_chunk_forward(stream, op, c, first, rows));
      continue;
    }
    float* const y = f32(op.y) + offset;
    RFN_TRY(feed_forward_chunk_forward(stream, c.op, first, rows, f32(op.x) + offset, c.scratch, nullptr, false, y));
    RFN_TRY(apply_dropout(stream, y, y, rows * c.op.width, c.op.output_random, static_cast<uint64_t>(offset),
                          c.op.dropout));
  }
  return RFN_OK;
}

rfn_status feed_forward_backward(rfn_stream& stream, const rfn_feed_forward& op, void* workspace,
                                 int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  Arena arena(workspace, workspace_bytes);
  const Call c = call_of(arena, op, RFN_PASS_BACKWARD);
  for (int64_t first = 0; first < c.rows; first += c.chunk) {
    const int64_t rows = std::min(c.chunk, c.rows - first), offset = first * c.op.width;
    if (is_half(op.x.dtype)) {
      RFN_TRY(half_chunk_backward(stream, op, c, first, rows));
      continue;
    }
    ColumnSum parameters[2];
    RFN_TRY(feed_forward_chunk_backward(stream, c.op, first, rows, f32(op.x) + offset, f32(op.grad_y) + offset,
                                        c.scratch, nullptr, nullptr, f32(op.grad_x) + offset, parameters));
    RFN_TRY(add_columns(stream, parameters, 2));
  }
  return RFN_OK;
}

}  // namespace rfn::cuda
