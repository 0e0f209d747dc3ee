// Output head and cross entropy, a chunk of rows of logits at a time: logits = x W^T + bias, then one kernel over rows
// that finds the loss and turns the logits into their gradients, then the products of the backward pass. Losses are
// added up in float64, in the order of the rows' blocks and chunks.
#include <algorithm>
#include <cstdint>

#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cuda/device_math.cuh"
#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/state.h"

namespace rfn::cuda {
namespace {

constexpr int64_t kLogitBytes = int64_t{16}
                                << 20;  // of an automatic chunk: stays in the second-level cache of recent GPUs
constexpr int64_t kMinChunkRows = 512;  // the weight's gradient is read and written once a chunk
constexpr int64_t kMostTerms =
    4096;  // of one sum over the vocabulary: rounding errors of float32 sums grow with their length
constexpr int kSumThreads = 1024;
constexpr int kRowThreads = 512;     // of a long row
constexpr int64_t kShortRow = 1024;  // one warp does
constexpr int kShortRowsPerBlock = 4;

struct RowLosses {
  double* loss;
  int32_t* hit;  // 1: the first largest logit is the label's
};

struct Buffers {
  int64_t chunk;
  int64_t stride;  // of the logits' rows: V rounded up to 16 bytes, as products on tensor cores need it
  float* logits;   // [chunk, stride]; then their gradients
  RowLosses rows;  // [chunk]
  float* sums;     // of the bias's gradient
  void* gemm;
};

Buffers take_buffers(Arena& arena, const rfn_head_loss& op, int32_t pass) {
  const int64_t rows = op.x.shape[0], vocabulary = op.weight.shape[0];
  const int64_t automatic = std::max(kMinChunkRows, kLogitBytes / (4 * vocabulary) / 64 * 64);
  Buffers b{};
  b.chunk = std::min(rows, op.chunk > 0 ? op.chunk : automatic);
  b.stride = round_up(vocabulary, 4);
  int64_t logits = 0;
  if (__builtin_mul_overflow(b.chunk, b.stride, &logits)) logits = INT64_MAX;
  b.logits = arena.take<float>(logits);
  b.rows.loss = arena.take<double>(b.chunk);
  b.rows.hit = arena.take<int32_t>(b.chunk);
  if (pass == RFN_PASS_BACKWARD) b.sums = take_column_sums(arena, b.chunk, vocabulary);
  b.gemm = arena.take<char>(kGemmWorkspace);
  return b;
}

// statistics = {0, rows counted, 0}
__global__ void __launch_bounds__(kSumThreads)
    count_rows_kernel(const int32_t* labels, int64_t rows, int32_t ignore_index, rfn_loss_statistics* statistics) {
  double counted = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kSumThreads) counted += labels[row] != ignore_index ? 1.0 : 0.0;
  counted = block_sum(counted);
  if (threadIdx.x != 0) return;
  *statistics = {0.0, counted, 0.0};
}

__global__ void __launch_bounds__(kSumThreads)
    add_rows_kernel(RowLosses losses, int64_t rows, rfn_loss_statistics* statistics) {
  double loss = 0, hits = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kSumThreads) {
    loss += losses.loss[row];
    hits += losses.hit[row];
  }
  loss = block_sum(loss);
  hits = block_sum(hits);
  if (threadIdx.x != 0) return;
  statistics->loss += loss;
  statistics->correct += hits;
}

// The target of a row is (1 - smoothing) onehot(label) + smoothing / V.
struct RowLossCall {
  int64_t rows, vocabulary, stride;
  const int32_t* labels;
  int32_t ignore_index;
  double smoothing, per_label, loss_scale, normalizer;  // per_label: smoothing / V
  const rfn_loss_statistics* statistics;
  float* logits;
  RowLosses losses;
};

// Sums and the like over the threads of a row: a warp, or a block.
template <int kThreads>
RFN_DEVICE double row_sum(double x) {
  if constexpr (kThreads == 32)
    return group_sum(x);
  else
    return block_sum(x);
}
template <int kThreads>
RFN_DEVICE float row_maximum(float x) {
  x = group_maximum(x);
  if constexpr (kThreads > 32) {
    RFN_SHARED(parts, float[32]);
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (lane == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = group_maximum(lane < kThreads / 32 ? parts[lane] : -INFINITY);
  }
  return x;
}
template <int kThreads>
RFN_DEVICE bool row_any(bool x) {
  if constexpr (kThreads == 32)
    return __any_sync(kFullWarp, x) != 0;
  else
    return __syncthreads_or(x) != 0;
}

// A row of logits by kThreads threads; kGradient: the logits become loss_scale / normalizer times the gradient of the
// row's loss. Threads add in float32 over their own elements (at most V / kThreads), which are added in float64. A
// label out of range makes loss and gradient NaN.
template <int kThreads, bool kGradient>
__global__ void __launch_bounds__(kThreads == 32 ? 32 * kShortRowsPerBlock : kThreads) row_loss_kernel(RowLossCall c) {
  const int64_t row =
      kThreads == 32 ? int64_t{blockIdx.x} * kShortRowsPerBlock + threadIdx.x / 32 : int64_t{blockIdx.x};
  const int thread = static_cast<int>(threadIdx.x % kThreads);
  if (row >= c.rows) return;  // a whole warp of a short row; else never
  float* const z = c.logits + row * c.stride;
  const int32_t label = c.labels[row];
  const bool counts = label != c.ignore_index;
  if (!counts || label < 0 || label >= c.vocabulary) {  // the same for all threads of the row
    const float value = counts ? NAN : 0.0f;
    if (kGradient) {
      for (int64_t i = thread; i < c.vocabulary; i += kThreads) z[i] = value;
    }
    if (thread == 0) {
      c.losses.loss[row] = value;
      c.losses.hit[row] = 0;
    }
    return;
  }

  const float label_logit = z[label];
  float largest = -INFINITY, own_sum = 0.0f;
  for (int64_t i = thread; i < c.vocabulary; i += kThreads) {
    largest = fmaxf(largest, z[i]);
    own_sum += z[i];
  }
  largest = row_maximum<kThreads>(largest);
  const double z_sum = row_sum<kThreads>(own_sum);

  float own_exp_sum = 0.0f;
  bool earlier = false;
  for (int64_t i = thread; i < c.vocabulary; i += kThreads) {
    own_exp_sum += expf(z[i] - largest);
    earlier = earlier || (z[i] == largest && i < label);
  }
  const double exp_sum = row_sum<kThreads>(own_exp_sum);
  const bool hit = !row_any<kThreads>(earlier) && label_logit == largest;

  // fmaxf passes over a NaN; the sum of the logits does not.
  const double nan = z_sum != z_sum ? z_sum : 0.0;
  if (thread == 0) {
    double loss =
        static_cast<double>(largest) + log(exp_sum) - (1.0 - c.smoothing) * static_cast<double>(label_logit) + nan;
    if (c.smoothing > 0) loss -= c.per_label * z_sum;
    c.losses.loss[row] = loss;
    c.losses.hit[row] = hit ? 1 : 0;
  }
  if (kGradient) {
    if (kThreads == 32) __syncwarp();  // z[label] has been read
    const double scale = c.loss_scale / (c.normalizer != 0 ? c.normalizer : c.statistics->rows);
    const float factor = static_cast<float>(scale / exp_sum + nan), others = static_cast<float>(scale * c.per_label);
    const float at_label = static_cast<float>(scale * (1.0 - c.smoothing));
    for (int64_t i = thread; i < c.vocabulary; i += kThreads) {
      const float gradient = fmaf(expf(z[i] - largest), factor, -others);
      z[i] = i == label ? gradient - at_label : gradient;
    }
  }
}

template <bool kGradient>
cudaError_t launch_row_loss(cudaStream_t stream, const RowLossCall& call) {
  if (call.vocabulary <= kShortRow) {
    return RFN_LAUNCH((row_loss_kernel<32, kGradient>), blocks_for(call.rows, kShortRowsPerBlock),
                      32 * kShortRowsPerBlock, 0, stream, call);
  }
  return RFN_LAUNCH((row_loss_kernel<kRowThreads, kGradient>), static_cast<unsigned>(call.rows), kRowThreads, 0, stream,
                    call);
}

rfn_status run(rfn_stream& stream, const rfn_head_loss& op, void* workspace, int64_t workspace_bytes, int32_t pass) {
  const int64_t rows = op.x.shape[0], k = op.x.shape[1], vocabulary = op.weight.shape[0];
  Arena arena(workspace, workspace_bytes);
  const Buffers b = take_buffers(arena, op, pass);
  RFN_CUDA_TRY(stream, RFN_LAUNCH(count_rows_kernel, 1, kSumThreads, 0, native_stream(stream), i32(op.labels), rows,
                                  op.ignore_index, op.statistics));

  for (int64_t first = 0; first < rows; first += b.chunk) {
    const int64_t count = std::min(b.chunk, rows - first);
    Product logits;
    logits.transpose_b = Transpose::kYes;
    logits.m = count, logits.n = vocabulary, logits.k = k;
    logits.a = f32(op.x) + first * k, logits.lda = k;
    logits.b = f32(op.weight), logits.ldb = k;
    logits.c = b.logits, logits.ldc = b.stride;
    if (present(op.bias)) logits.epilogue = Epilogue::kBias, logits.bias = f32(op.bias);
    RFN_TRY(gemm(stream, logits, b.gemm));

    RowLossCall call{};
    call.rows = count;
    call.vocabulary = vocabulary;
    call.stride = b.stride;
    call.labels = i32(op.labels) + first;
    call.ignore_index = op.ignore_index;
    call.smoothing = op.label_smoothing;
    call.per_label = call.smoothing / static_cast<double>(vocabulary);
    call.loss_scale = op.loss_scale;
    call.normalizer = op.normalizer;
    call.statistics = op.statistics;
    call.logits = b.logits;
    call.losses = b.rows;
    const bool gradient = pass == RFN_PASS_BACKWARD;
    RFN_CUDA_TRY(stream, gradient ? launch_row_loss<true>(native_stream(stream), call)
                                  : launch_row_loss<false>(native_stream(stream), call));
    RFN_CUDA_TRY(stream,
                 RFN_LAUNCH(add_rows_kernel, 1, kSumThreads, 0, native_stream(stream), b.rows, count, op.statistics));
    if (!gradient) continue;

    // The weight's gradient reads x before grad_x, which may be the same memory, is written.
    Product grad_weight;
    grad_weight.transpose_a = Transpose::kYes;
    grad_weight.m = vocabulary, grad_weight.n = k, grad_weight.k = count;
    grad_weight.a = b.logits, grad_weight.lda = b.stride;
    grad_weight.b = f32(op.x) + first * k, grad_weight.ldb = k;
    grad_weight.beta = 1.0f;
    grad_weight.c = f32(op.grad_weight), grad_weight.ldc = k;
    RFN_TRY(gemm(stream, grad_weight, b.gemm));
    if (present(op.grad_bias))
      RFN_TRY(add_column_sums(stream, b.logits, count, vocabulary, b.sums, f32(op.grad_bias), b.stride));
    const int64_t terms = round_up(div_up(vocabulary, div_up(vocabulary, kMostTerms)), 4);
    for (int64_t column = 0; column < vocabulary; column += terms) {
      Product grad_x;
      grad_x.m = count, grad_x.n = k, grad_x.k = std::min(terms, vocabulary - column);
      grad_x.a = b.logits + column, grad_x.lda = b.stride;
      grad_x.b = f32(op.weight) + column * k, grad_x.ldb = k;
      grad_x.beta = column == 0 ? 0.0f : 1.0f;
      grad_x.c = f32(op.grad_x) + first * k, grad_x.ldc = k;
      RFN_TRY(gemm(stream, grad_x, b.gemm));
    }
  }
  return RFN_OK;
}

}  // namespace

rfn_status head_loss_workspace(const rfn_context&, const rfn_head_loss& op, int32_t pass, int64_t* bytes) {
  Arena arena;
  take_buffers(arena, op, pass);
  return workspace_size(arena, "head_loss", bytes);
}

rfn_status head_loss_forward(rfn_stream& stream, const rfn_head_loss& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  return run(stream, op, workspace, workspace_bytes, RFN_PASS_FORWARD);
}

rfn_status head_loss_backward(rfn_stream& stream, const rfn_head_loss& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  return run(stream, op, workspace, workspace_bytes, RFN_PASS_BACKWARD);
}

}  // namespace rfn::cuda
