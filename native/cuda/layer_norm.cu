#include "cuda/layer_norm.h"

#include "core/backend.h"
#include "core/workspace_size.h"
#include "cuda/layer_norm_half.h"
#include "cuda/norm_rows.cuh"

namespace rfn::cuda {

RFN_DECLARE_OPS

namespace {

// Dense rows. dx may be dy: both belong to the same thread.
struct DenseRows {
  static constexpr bool kDropout = false;
  const float* x;
  float* y;  // forward
  const float* dy;
  float* dx;
  int64_t width;
  bool add;

  __device__ float value(int64_t row, int64_t column) const { return x[row * width + column]; }
  __device__ void store(int64_t row, int64_t column, float value) const { y[row * width + column] = value; }
  __device__ float gradient(int64_t row, int64_t column) const { return dy[row * width + column]; }
  __device__ void store_gradient(int64_t row, int64_t column, float value) const {
    float* const place = dx + row * width + column;
    *place = add ? *place + value : value;
  }
};

}  // namespace

rfn_status layer_norm_rows(rfn_stream& stream, int64_t rows, int64_t width, float epsilon, const float* x,
                           const float* weight, const float* bias, float* y) {
  return norm_forward(stream, DenseRows{x, y, nullptr, nullptr, width, false}, rows, width, epsilon, weight, bias);
}

float* take_norm_sums(Arena& arena, int64_t rows, int64_t width) { return take_norm_parts(arena, rows, width); }

rfn_status layer_norm_rows_backward(rfn_stream& stream, int64_t rows, int64_t width, float epsilon, const float* x,
                                    const float* weight, const float* dy, float* dx, bool add, float* sums,
                                    float* grad_weight, float* grad_bias, ColumnSum (&parameters)[2]) {
  return norm_backward(stream, DenseRows{x, nullptr, dy, dx, width, add}, rows, width, epsilon, weight, sums,
                       grad_weight, grad_bias, parameters);
}

rfn_status layer_norm_workspace(const rfn_context&, const rfn_layer_norm& op, int32_t pass, int64_t* bytes) {
  Arena arena;
  if (pass == RFN_PASS_BACKWARD) take_norm_sums(arena, op.x.shape[0], op.x.shape[1]);
  return workspace_size(arena, "layer_norm", bytes);
}

rfn_status layer_norm_forward(rfn_stream& stream, const rfn_layer_norm& op, void*, int64_t) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  if (is_half(op.y.dtype)) return layer_norm_half_forward(stream, op);
  return layer_norm_rows(stream, op.x.shape[0], op.x.shape[1], op.epsilon, f32(op.x), f32(op.weight), f32(op.bias),
                         f32(op.y));
}

rfn_status layer_norm_backward(rfn_stream& stream, const rfn_layer_norm& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const int64_t rows = op.x.shape[0], width = op.x.shape[1];
  Arena arena(workspace, workspace_bytes);
  float* const sums = take_norm_sums(arena, rows, width);
  if (is_half(op.grad_y.dtype)) return layer_norm_half_backward(stream, op, sums);
  ColumnSum parameters[2];
  RFN_TRY(layer_norm_rows_backward(stream, rows, width, op.epsilon, f32(op.x), f32(op.weight), f32(op.grad_y),
                                   f32(op.grad_x), false, sums, f32(op.grad_weight), f32(op.grad_bias), parameters));
  return add_columns(stream, parameters, 2);
}

}  // namespace rfn::cuda
