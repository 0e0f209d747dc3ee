#include <algorithm>

#include "core/backend.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cpu/convert.h"
#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "cpu/row_product.h"
#include "cpu/vector_math.h"

namespace rfn::cpu {
namespace {

constexpr int64_t kTileRows = 256, kTileColumns = 512;  // of y, per item: bias and activation find the tile in cache
constexpr int64_t kChunkBytes = int64_t{32} << 20;      // pre-activations that backward holds at a time
constexpr int64_t kHalfBytes = int64_t{8} << 20;        // floats that stand for rows of BF16 and F16 at a time

// y = x W^T + b for a tile.
void tile(const rfn_linear& op, int64_t row, int64_t rows, int64_t column, int64_t columns, float* y, int64_t ldy) {
  const int64_t k = op.x.shape[1];
  const float *const x = f32(op.x) + row * k, *const w = f32(op.weight) + column * k;
  if (op.x.shape[0] <= kFewRows) {
    row_products(rows, columns, k, x, k, w, k, y, ldy);
  } else {
    gemm({Transpose::kNo, Transpose::kYes, rows, columns, k, x, k, w, k, 0.0f, y, ldy});
  }
  if (!present(op.bias)) return;
  for (int64_t r = 0; r < rows; ++r) add(y + r * ldy, f32(op.bias) + column, columns);
}

template <class Body>
void for_tiles(int32_t threads, int64_t rows, int64_t columns, int64_t depth, const Body& body) {
  const int64_t width = rows <= kFewRows ? row_product_columns(depth) : kTileColumns, across = div_up(columns, width);
  parallel_for(threads, div_up(rows, kTileRows) * across, [&](int64_t item, int32_t) {
    const int64_t row = item / across * kTileRows, column = item % across * width;
    body(row, std::min(kTileRows, rows - row), column, std::min(width, columns - column));
  });
}

// Rows whose gradient with respect to the pre-activation is held at a time; all of them, in grad_y itself, without an
// activation.
int64_t chunk_rows(const rfn_linear& op) {
  const int64_t rows = op.x.shape[0], m = op.weight.shape[0];
  if (op.activation == RFN_ACTIVATION_NONE) return rows;
  return std::min(rows, std::max(kTileRows, kChunkBytes / (4 * m) / kTileRows * kTileRows));
}

float* take_gradient(Arena& arena, const rfn_linear& op) {
  return op.activation == RFN_ACTIVATION_NONE ? nullptr : arena.take<float>(chunk_rows(op) * op.weight.shape[0]);
}

// The op over float32 tensors.
void float_forward(int32_t threads, const rfn_linear& op) {
  const int64_t m = op.weight.shape[0];
  for_tiles(threads, op.x.shape[0], m, op.x.shape[1], [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
    float* const y = f32(op.y) + row * m + column;
    tile(op, row, rows, column, columns, y, m);
    for (int64_t r = 0; r < rows && op.activation != RFN_ACTIVATION_NONE; ++r)
      activation_forward(op.activation, y + r * m, y + r * m, columns);
  });
}

// gradient: of take_gradient, for at least as many rows.
void float_backward(int32_t threads, const rfn_linear& op, float* gradient) {
  const int64_t rows = op.x.shape[0], k = op.x.shape[1], m = op.weight.shape[0], chunk = chunk_rows(op);
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t count = std::min(chunk, rows - first);
    const float *dz = f32(op.grad_y) + first * m, *const x = f32(op.x) + first * k;
    if (gradient != nullptr) {
      for_tiles(threads, count, m, k, [&](int64_t row, int64_t tile_rows, int64_t column, int64_t columns) {
        float* const z = gradient + row * m + column;
        tile(op, first + row, tile_rows, column, columns, z, m);
        for (int64_t r = 0; r < tile_rows; ++r)
          activation_backward(op.activation, z + r * m, dz + (row + r) * m + column, z + r * m, columns);
      });
      dz = gradient;
    }
    if (present(op.grad_x)) {
      parallel_gemm(threads, {Transpose::kNo, Transpose::kNo, count, k, m, dz, m, f32(op.weight), k, 0.0f,
                              f32(op.grad_x) + first * k, k});
    }
    parallel_gemm(threads, {Transpose::kYes, Transpose::kNo, m, k, count, dz, m, x, k, 1.0f, f32(op.grad_weight), k});
    if (present(op.grad_bias)) add_column_sums(dz, count, m, f32(op.grad_bias));
  }
}

// An op of BF16 or F16 as one of float32 after the other: the weight converted once, the rest some rows at a time.
class Widened {
 public:
  Widened(Arena& arena, const rfn_linear& op, int32_t pass)
      : op_(op), rows_(op.x.shape[0]), k_(op.x.shape[1]), m_(op.weight.shape[0]) {
    const int64_t fit = kHalfBytes / (4 * (k_ + m_)) / kTileRows * kTileRows;
    chunk_ = std::min(rows_, std::max(kTileRows, fit));
    weight_ = arena.take<float>(m_ * k_);
    x_ = arena.take<float>(chunk_ * k_);
    y_ = arena.take<float>(chunk_ * m_);
    if (pass == RFN_PASS_FORWARD) return;
    grad_x_ = arena.take<float>(chunk_ * k_);
    gradient_ = take_gradient(arena, part(0));
  }

  void forward(int32_t threads) const {
    widen_weight(threads);
    for (int64_t first = 0; first < rows_; first += chunk_) {
      const rfn_linear some = part(first);
      const int64_t count = some.x.shape[0];
      widen_rows(threads, op_.x.dtype, count, k_, u16(op_.x) + first * k_, k_, x_, k_);
      float_forward(threads, some);
      narrow_rows(threads, op_.x.dtype, count, m_, y_, m_, u16(op_.y) + first * m_, m_);
    }
  }

  void backward(int32_t threads) const {
    widen_weight(threads);
    for (int64_t first = 0; first < rows_; first += chunk_) {
      const rfn_linear some = part(first);
      const int64_t count = some.x.shape[0];
      widen_rows(threads, op_.x.dtype, count, k_, u16(op_.x) + first * k_, k_, x_, k_);
      widen_rows(threads, op_.x.dtype, count, m_, u16(op_.grad_y) + first * m_, m_, y_, m_);
      float_backward(threads, some, gradient_);
      if (present(op_.grad_x))
        narrow_rows(threads, op_.x.dtype, count, k_, grad_x_, k_, u16(op_.grad_x) + first * k_, k_);
    }
  }

 private:
  void widen_weight(int32_t threads) const {
    widen_rows(threads, op_.x.dtype, m_, k_, u16(op_.weight), k_, weight_, k_);
  }

  // Rows [first, first + chunk) over the floats; y and grad_y have the same ones.
  rfn_linear part(int64_t first) const {
    rfn_linear some = op_;
    const int64_t count = std::min(chunk_, rows_ - first);
    for (rfn_tensor* const tensor : {&some.x, &some.y, &some.grad_y, &some.grad_x}) tensor->shape[0] = count;
    some.weight.data = weight_;
    some.x.data = x_;
    some.y.data = some.grad_y.data = y_;
    some.grad_x.data = grad_x_;
    return some;
  }

  const rfn_linear& op_;
  int64_t rows_, k_, m_, chunk_;
  float *weight_, *x_, *y_, *grad_x_ = nullptr, *gradient_ = nullptr;
};

}  // namespace

rfn_status linear_workspace(const rfn_context&, const rfn_linear& op, int32_t pass, int64_t* bytes) {
  Arena arena;
  if (is_half(op.x.dtype)) {
    Widened(arena, op, pass);
  } else if (pass == RFN_PASS_BACKWARD) {
    take_gradient(arena, op);
  }
  return workspace_size(arena, "linear", bytes);
}

rfn_status linear_forward(rfn_stream& stream, const rfn_linear& op, void* workspace, int64_t workspace_bytes) {
  Arena arena(workspace, workspace_bytes);
  if (is_half(op.x.dtype)) {
    Widened(arena, op, RFN_PASS_FORWARD).forward(stream.context->threads);
  } else {
    float_forward(stream.context->threads, op);
  }
  return RFN_OK;
}

rfn_status linear_backward(rfn_stream& stream, const rfn_linear& op, void* workspace, int64_t workspace_bytes) {
  Arena arena(workspace, workspace_bytes);
  if (is_half(op.x.dtype)) {
    Widened(arena, op, RFN_PASS_BACKWARD).backward(stream.context->threads);
  } else {
    float_backward(stream.context->threads, op, take_gradient(arena, op));
  }
  return RFN_OK;
}

}  // namespace rfn::cpu
