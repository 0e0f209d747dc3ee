#include "cuda/layer_norm_half.h"

#include "core/tensor.h"
#include "cuda/half.cuh"
#include "cuda/norm_rows.cuh"

namespace rfn::cuda {
namespace {

// Rows of float32 whose norm is stored as Element.
template <class Element>
struct HalfRows {
  static constexpr bool kDropout = false;
  const float* x;
  uint16_t* y;  // forward
  const uint16_t* dy;
  float* dx;
  int64_t width;

  __device__ float value(int64_t row, int64_t column) const { return x[row * width + column]; }
  __device__ void store(int64_t row, int64_t column, float value) const {
    y[row * width + column] = Element::narrow(value);
  }
  __device__ float gradient(int64_t row, int64_t column) const { return Element::widen(dy[row * width + column]); }
  __device__ void store_gradient(int64_t row, int64_t column, float value) const { dx[row * width + column] = value; }
};

template <class Element>
rfn_status forward(rfn_stream& stream, const rfn_layer_norm& op) {
  const int64_t rows = op.x.shape[0], width = op.x.shape[1];
  return norm_forward(stream, HalfRows<Element>{f32(op.x), u16(op.y), nullptr, nullptr, width}, rows, width, op.epsilon,
                      f32(op.weight), f32(op.bias));
}

template <class Element>
rfn_status backward(rfn_stream& stream, const rfn_layer_norm& op, float* sums) {
  const int64_t rows = op.x.shape[0], width = op.x.shape[1];
  ColumnSum parameters[2];
  RFN_TRY(norm_backward(stream, HalfRows<Element>{f32(op.x), nullptr, u16(op.grad_y), f32(op.grad_x), width}, rows,
                        width, op.epsilon, f32(op.weight), sums, f32(op.grad_weight), f32(op.grad_bias), parameters));
  return add_columns(stream, parameters, 2);
}

}  // namespace

rfn_status layer_norm_half_forward(rfn_stream& stream, const rfn_layer_norm& op) {
  return op.y.dtype == RFN_BF16 ? forward<Element<RFN_BF16>>(stream, op) : forward<Element<RFN_F16>>(stream, op);
}

rfn_status layer_norm_half_backward(rfn_stream& stream, const rfn_layer_norm& op, float* sums) {
  return op.grad_y.dtype == RFN_BF16 ? backward<Element<RFN_BF16>>(stream, op, sums)
                                     : backward<Element<RFN_F16>>(stream, op, sums);
}

}  // namespace rfn::cuda
