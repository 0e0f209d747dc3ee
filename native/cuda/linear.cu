#include <algorithm>

#include "core/backend.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "cuda/elementwise.h"
#include "cuda/gemm.h"

namespace rfn::cuda {
namespace {

constexpr int64_t kChunkBytes = int64_t{64} << 20;  // pre-activations that backward holds at a time
constexpr int64_t kMinRows = 256;

struct Shape {
  int64_t rows, in, out;
  int64_t chunk;  // rows whose gradient with respect to the pre-activation is held at a time; all of them, in grad_y
                  // itself, without activation
  bool activation;
};

Shape shape_of(const rfn_linear& op) {
  Shape s{op.x.shape[0], op.x.shape[1], op.weight.shape[0], op.x.shape[0], op.activation != RFN_ACTIVATION_NONE};
  if (s.activation) s.chunk = std::min(s.rows, std::max(kMinRows, kChunkBytes / (4 * s.out) / kMinRows * kMinRows));
  return s;
}

struct Scratch {
  void* gemm;
  float* gradient;  // backward with activation [chunk, M]
  float* sums;      // backward with grad_bias
};

Scratch layout(Arena& arena, const rfn_linear& op, const Shape& s, int32_t pass) {
  Scratch scratch{};
  scratch.gemm = arena.take<char>(kGemmWorkspace);
  if (pass == RFN_PASS_FORWARD) return scratch;
  if (s.activation) scratch.gradient = arena.take<float>(s.chunk * s.out);
  if (present(op.grad_bias)) scratch.sums = take_column_sums(arena, s.chunk, s.out);
  return scratch;
}

// y = x W^T + b for rows that begin at x; with relu, that of it.
rfn_status product(rfn_stream& stream, const rfn_linear& op, const Shape& s, int64_t rows, const float* x, float* y,
                   bool relu, void* workspace) {
  const Epilogue epilogue = !present(op.bias) ? Epilogue::kNone : relu ? Epilogue::kBiasRelu : Epilogue::kBias;
  return gemm(stream,
              {Transpose::kNo, Transpose::kYes, rows, s.out, s.in, x, s.in, f32(op.weight), s.in, 1.0f, 0.0f, y, s.out,
               epilogue, f32(op.bias)},
              workspace);
}

}  // namespace

rfn_status linear_workspace(const rfn_context&, const rfn_linear& op, int32_t pass, int64_t* bytes) {
  Arena arena;
  layout(arena, op, shape_of(op), pass);
  if (arena.overflowed()) return fail(RFN_INVALID_ARGUMENT, "linear: the workspace size overflows 64 bits");
  *bytes = arena.used();
  return RFN_OK;
}

rfn_status linear_forward(rfn_stream& stream, const rfn_linear& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const Shape s = shape_of(op);
  Arena arena(workspace, workspace_bytes);
  const Scratch scratch = layout(arena, op, s, RFN_PASS_FORWARD);
  const bool fused = op.activation == RFN_ACTIVATION_RELU && present(op.bias);
  RFN_TRY(product(stream, op, s, s.rows, f32(op.x), f32(op.y), fused, scratch.gemm));
  if (!s.activation || fused) return RFN_OK;
  return activation_forward(stream, op.activation, f32(op.y), f32(op.y), s.rows * s.out);
}

rfn_status linear_backward(rfn_stream& stream, const rfn_linear& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const Shape s = shape_of(op);
  Arena arena(workspace, workspace_bytes);
  const Scratch scratch = layout(arena, op, s, RFN_PASS_BACKWARD);
  for (int64_t first = 0; first < s.rows; first += s.chunk) {
    const int64_t rows = std::min(s.chunk, s.rows - first);
    const float *dz = f32(op.grad_y) + first * s.out, *const x = f32(op.x) + first * s.in;
    if (s.activation) {
      RFN_TRY(product(stream, op, s, rows, x, scratch.gradient, false, scratch.gemm));
      RFN_TRY(activation_backward(stream, op.activation, scratch.gradient, dz, scratch.gradient, rows * s.out));
      dz = scratch.gradient;
    }
    if (present(op.grad_x)) {
      RFN_TRY(gemm(stream,
                   {Transpose::kNo, Transpose::kNo, rows, s.in, s.out, dz, s.out, f32(op.weight), s.in, 1.0f, 0.0f,
                    f32(op.grad_x) + first * s.in, s.in},
                   scratch.gemm));
    }
    RFN_TRY(gemm(
        stream,
        {Transpose::kYes, Transpose::kNo, s.out, s.in, rows, dz, s.out, x, s.in, 1.0f, 1.0f, f32(op.grad_weight), s.in},
        scratch.gemm));
    if (present(op.grad_bias)) RFN_TRY(add_column_sums(stream, dz, rows, s.out, scratch.sums, f32(op.grad_bias)));
  }
  return RFN_OK;
}

}  // namespace rfn::cuda
