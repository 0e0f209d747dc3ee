#include <algorithm>

#include "core/backend.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "cuda/convert.h"
#include "cuda/elementwise.h"
#include "cuda/gemm.h"

namespace rfn::cuda {
namespace {

constexpr int64_t kChunkBytes = int64_t{64} << 20;  // pre-activations that backward holds at a time
constexpr int64_t kMinRows = 256;

struct Shape {
  int64_t rows, in, out;
  int64_t chunk;  // rows whose gradient with respect to the pre-activation is held at a time; all of them, in grad_y
                  // itself, of F32 without activation. Of BF16 and F16 also rows of y before they are rounded
  bool activation, half;
};

Shape shape_of(const rfn_linear& op) {
  Shape s{op.x.shape[0],      op.x.shape[1], op.weight.shape[0], op.x.shape[0], op.activation != RFN_ACTIVATION_NONE,
          is_half(op.x.dtype)};
  if (s.activation || s.half)
    s.chunk = std::min(s.rows, std::max(kMinRows, kChunkBytes / (4 * s.out) / kMinRows * kMinRows));
  return s;
}

struct Scratch {
  void* gemm;
  float* gradient;     // backward with activation [chunk, M]
  float* sums;         // backward with grad_bias
  float* values;       // BF16 and F16 [chunk, M]: y, or grad_y
  uint16_t* narrowed;  // the same, backward with activation: gradient
};

Scratch layout(Arena& arena, const rfn_linear& op, const Shape& s, int32_t pass) {
  Scratch scratch{};
  scratch.gemm = arena.take<char>(kGemmWorkspace);
  if (s.half) scratch.values = arena.take<float>(s.chunk * s.out);
  if (pass == RFN_PASS_FORWARD) return scratch;
  if (s.half && s.activation) scratch.narrowed = arena.take<uint16_t>(s.chunk * s.out);
  if (s.activation) scratch.gradient = arena.take<float>(s.chunk * s.out);
  if (present(op.grad_bias)) scratch.sums = take_column_sums(arena, s.chunk, s.out);
  return scratch;
}

// y = x W^T + b for rows that begin at x; with relu, that of it.
rfn_status product(rfn_stream& stream, const rfn_linear& op, const Shape& s, int64_t rows, const void* x, float* y,
                   bool relu, void* workspace) {
  const Epilogue epilogue = !present(op.bias) ? Epilogue::kNone : relu ? Epilogue::kBiasRelu : Epilogue::kBias;
  return gemm(stream,
              {Transpose::kNo, Transpose::kYes, rows, s.out, s.in, x, s.in, op.weight.data, s.in, 1.0f, 0.0f, y, s.out,
               epilogue, f32(op.bias), op.x.dtype},
              workspace);
}

// What the product leaves to be done for y, whose floats these are.
rfn_status finish(rfn_stream& stream, const rfn_linear& op, const Shape& s, int64_t rows, bool relu_done, float* y) {
  if (!s.activation || relu_done) return RFN_OK;
  return activation_forward(stream, op.activation, y, y, rows * s.out);
}

// The gradients of x and of the weight from those of the pre-activation, whose type is that of x.
rfn_status gradient_products(rfn_stream& stream, const rfn_linear& op, const Shape& s, int64_t rows, const void* dz,
                             const void* x, void* grad_x, void* workspace) {
  if (present(op.grad_x)) {
    RFN_TRY(gemm(stream,
                 {Transpose::kNo, Transpose::kNo, rows, s.in, s.out, dz, s.out, op.weight.data, s.in, 1.0f, 0.0f,
                  grad_x, s.in, Epilogue::kNone, nullptr, op.x.dtype, op.x.dtype},
                 workspace));
  }
  return gemm(stream,
              {Transpose::kYes, Transpose::kNo, s.out, s.in, rows, dz, s.out, x, s.in, 1.0f, 1.0f, f32(op.grad_weight),
               s.in, Epilogue::kNone, nullptr, op.x.dtype},
              workspace);
}

// BF16 and F16: y is rounded once, after bias and activation.
rfn_status half_forward(rfn_stream& stream, const rfn_linear& op, const Shape& s, const Scratch& scratch, bool relu) {
  if (!s.activation && !present(op.bias)) {
    return gemm(stream,
                {Transpose::kNo, Transpose::kYes, s.rows, s.out, s.in, op.x.data, s.in, op.weight.data, s.in, 1.0f,
                 0.0f, op.y.data, s.out, Epilogue::kNone, nullptr, op.x.dtype, op.x.dtype},
                scratch.gemm);
  }
  for (int64_t first = 0; first < s.rows; first += s.chunk) {
    const int64_t rows = std::min(s.chunk, s.rows - first);
    RFN_TRY(product(stream, op, s, rows, u16(op.x) + first * s.in, scratch.values, relu, scratch.gemm));
    RFN_TRY(finish(stream, op, s, rows, relu, scratch.values));
    RFN_TRY(narrow_rows(stream, op.x.dtype, rows, s.out, scratch.values, s.out, u16(op.y) + first * s.out, s.out));
  }
  return RFN_OK;
}

rfn_status half_backward(rfn_stream& stream, const rfn_linear& op, const Shape& s, const Scratch& scratch) {
  for (int64_t first = 0; first < s.rows; first += s.chunk) {
    const int64_t rows = std::min(s.chunk, s.rows - first), n = rows * s.out;
    const uint16_t *dz = u16(op.grad_y) + first * s.out, *const x = u16(op.x) + first * s.in;
    const float* sums_of = scratch.values;
    if (s.activation || present(op.grad_bias))
      RFN_TRY(widen_rows(stream, op.x.dtype, rows, s.out, dz, s.out, scratch.values, s.out));
    if (s.activation) {
      RFN_TRY(product(stream, op, s, rows, x, scratch.gradient, false, scratch.gemm));
      RFN_TRY(activation_backward(stream, op.activation, scratch.gradient, scratch.values, scratch.gradient, n));
      RFN_TRY(narrow_rows(stream, op.x.dtype, rows, s.out, scratch.gradient, s.out, scratch.narrowed, s.out));
      dz = scratch.narrowed;
      sums_of = scratch.gradient;
    }
    uint16_t* const grad_x = present(op.grad_x) ? u16(op.grad_x) + first * s.in : nullptr;
    RFN_TRY(gradient_products(stream, op, s, rows, dz, x, grad_x, scratch.gemm));
    if (present(op.grad_bias)) RFN_TRY(add_column_sums(stream, sums_of, rows, s.out, scratch.sums, f32(op.grad_bias)));
  }
  return RFN_OK;
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
  if (s.half) return half_forward(stream, op, s, scratch, fused);
  RFN_TRY(product(stream, op, s, s.rows, f32(op.x), f32(op.y), fused, scratch.gemm));
  return finish(stream, op, s, s.rows, fused, f32(op.y));
}

rfn_status linear_backward(rfn_stream& stream, const rfn_linear& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const Shape s = shape_of(op);
  Arena arena(workspace, workspace_bytes);
  const Scratch scratch = layout(arena, op, s, RFN_PASS_BACKWARD);
  if (s.half) return half_backward(stream, op, s, scratch);
  for (int64_t first = 0; first < s.rows; first += s.chunk) {
    const int64_t rows = std::min(s.chunk, s.rows - first);
    const float *dz = f32(op.grad_y) + first * s.out, *const x = f32(op.x) + first * s.in;
    if (s.activation) {
      RFN_TRY(product(stream, op, s, rows, x, scratch.gradient, false, scratch.gemm));
      RFN_TRY(activation_backward(stream, op.activation, scratch.gradient, dz, scratch.gradient, rows * s.out));
      dz = scratch.gradient;
    }
    float* const grad_x = present(op.grad_x) ? f32(op.grad_x) + first * s.in : nullptr;
    RFN_TRY(gradient_products(stream, op, s, rows, dz, x, grad_x, scratch.gemm));
    if (present(op.grad_bias)) RFN_TRY(add_column_sums(stream, dz, rows, s.out, scratch.sums, f32(op.grad_bias)));
  }
  return RFN_OK;
}

}  // namespace rfn::cuda
