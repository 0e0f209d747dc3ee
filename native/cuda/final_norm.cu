#include "core/backend.h"
#include "core/workspace_size.h"
#include "cuda/norm_rows.cuh"

namespace rfn::cuda {

RFN_DECLARE_OPS

namespace {

// Rows of both streams, combined as they are read; a gradient goes back to both as it is written.
struct CombinedRows {
  static constexpr bool kDropout = true;
  const float *stream1, *stream2;
  float* y;         // forward
  const float* dy;  // backward
  float *grad1, *grad2;
  int64_t width;     // E
  int64_t combined;  // 2E: one after the other; E: the mean
  Dropout dropout;
  int64_t first_row;  // of dropout: what row 0 is in the whole tensor

  __device__ bool concatenates() const { return combined != width; }

  __device__ float value(int64_t row, int64_t column) const {
    if (!concatenates()) return 0.5f * stream1[row * width + column] + 0.5f * stream2[row * width + column];
    return column < width ? stream1[row * width + column] : stream2[row * width + column - width];
  }
  __device__ void store(int64_t row, int64_t column, float value) const { y[row * combined + column] = value; }
  __device__ float gradient(int64_t row, int64_t column) const { return dy[row * combined + column]; }
  __device__ void store_gradient(int64_t row, int64_t column, float value) const {
    if (!concatenates()) {
      grad1[row * width + column] = grad2[row * width + column] = 0.5f * value;
    } else if (column < width) {
      grad1[row * width + column] = value;
    } else {
      grad2[row * width + column - width] = value;
    }
  }
};

CombinedRows rows_of(const rfn_final_norm& op) {
  const int64_t width = op.stream1.shape[1];
  return {f32(op.stream1),
          f32(op.stream2),
          f32(op.y),
          f32(op.grad_y),
          f32(op.grad_stream1),
          f32(op.grad_stream2),
          width,
          op.combine == RFN_COMBINE_CONCATENATE ? 2 * width : width,
          dropout_of(philox(op.seed, op.step, -1, RFN_SITE_FINAL_NORM), op.dropout),
          op.first_row};
}

}  // namespace

rfn_status final_norm_workspace(const rfn_context&, const rfn_final_norm& op, int32_t pass, int64_t* bytes) {
  Arena arena;
  if (pass == RFN_PASS_BACKWARD) take_norm_parts(arena, op.stream1.shape[0], rows_of(op).combined);
  return workspace_size(arena, "final_norm", bytes);
}

rfn_status final_norm_forward(rfn_stream& stream, const rfn_final_norm& op, void*, int64_t) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const CombinedRows rows = rows_of(op);
  return norm_forward(stream, rows, op.stream1.shape[0], rows.combined, op.epsilon, f32(op.weight), f32(op.bias));
}

rfn_status final_norm_backward(rfn_stream& stream, const rfn_final_norm& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const CombinedRows rows = rows_of(op);
  Arena arena(workspace, workspace_bytes);
  float* const sums = take_norm_parts(arena, op.stream1.shape[0], rows.combined);
  ColumnSum parameters[2];
  RFN_TRY(norm_backward(stream, rows, op.stream1.shape[0], rows.combined, op.epsilon, f32(op.weight), sums,
                        f32(op.grad_weight), f32(op.grad_bias), parameters));
  return add_columns(stream, parameters, 2);
}

}  // namespace rfn::cuda
