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
                                << 20;   // of an automatic chunk: stays in the second-level cache of recent GPUs
constexpr int64_t kMinChunkRows = 4096;  // the weight and its gradient are read and written once a chunk
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

// Rows that count: for gradients that are divided by their number, before the first of them.
__global__ void __launch_bounds__(kSumThreads)
    count_rows_kernel(const int32_t* labels, int64_t rows, int32_t ignore_index, rfn_loss_statistics* statistics) {
  double counted = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kSumThreads) counted += labels[row] != ignore_index ? 1.0 : 0.0;
  counted = block_sum(counted);
  if (threadIdx.x == 0) statistics->rows = counted;
}

// Statistics of a chunk, which the first one overwrites. has_count: count_rows_kernel has counted.
__global__ void __launch_bounds__(kSumThreads)
    add_rows_kernel(RowLosses losses, const int32_t* labels, int64_t rows, int32_t ignore_index, bool first,
                    bool has_count, rfn_loss_statistics* statistics) {
  double loss = 0, counted = 0, hits = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kSumThreads) {
    loss += losses.loss[row];
    counted += labels[row] != ignore_index ? 1.0 : 0.0;
    hits += losses.hit[row];
  }
  loss = block_sum(loss);
  counted = block_sum(counted);
  hits = block_sum(hits);
  if (threadIdx.x != 0) return;
  statistics->loss = first ? loss : statistics->loss + loss;
  statistics->correct = first ? hits : statistics->correct + hits;
  if (!has_count) statistics->rows = first ? counted : statistics->rows + counted;
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

// What a thread has seen of a row: the largest logit and the first column that has it, the sum of exp(logit - largest),
// and that of the logits.
struct Seen {
  float largest = -INFINITY, exp_sum = 0.0f, sum = 0.0f;
  int64_t first = 0;
};
// exp(-inf - x) is 0 for every largest logit x so far, none included.
RFN_DEVICE float shifted_exp(float z, float largest) { return expf(z - (largest == -INFINITY ? 0.0f : largest)); }
// Columns of a thread come in ascending order.
RFN_DEVICE void see(Seen& seen, const float4& quad, int64_t column, int64_t vocabulary) {
  const float z[] = {quad.x, quad.y, quad.z, quad.w};
  const float before = seen.largest;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (column + j >= vocabulary || !(z[j] > seen.largest)) continue;
    seen.largest = z[j];
    seen.first = column + j;
  }
  if (seen.largest > before) seen.exp_sum *= expf(before - seen.largest);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (column + j >= vocabulary) continue;
    seen.exp_sum += shifted_exp(z[j], seen.largest);
    seen.sum += z[j];
  }
}

// A row of logits by kThreads threads, 16 bytes at a time; kGradient: the logits become loss_scale / normalizer times
// the gradient of the row's loss. Threads add in float32 over their own elements (at most V / kThreads), which are
// added in float64. A label out of range makes loss and gradient NaN.
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
  Seen seen;
#pragma unroll 2
  for (int64_t i = 4 * thread; i < c.vocabulary; i += 4 * kThreads)
    see(seen, *reinterpret_cast<const float4*>(z + i), i, c.vocabulary);
  const float largest = row_maximum<kThreads>(seen.largest);
  const double z_sum = row_sum<kThreads>(seen.sum);
  const double exp_sum = row_sum<kThreads>(seen.exp_sum * shifted_exp(seen.largest, largest));
  const bool earlier = seen.largest == largest && seen.first < label;
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
#pragma unroll 2
    for (int64_t i = 4 * thread; i < c.vocabulary; i += 4 * kThreads) {  // what is behind the last logit is nobody's
      float4* const place = reinterpret_cast<float4*>(z + i);
      const float4 quad = *place;
      const auto gradient = [&](float logit, int64_t column) {
        const float value = fmaf(expf(logit - largest), factor, -others);
        return column == label ? value - at_label : value;
      };
      *place =
          make_float4(gradient(quad.x, i), gradient(quad.y, i + 1), gradient(quad.z, i + 2), gradient(quad.w, i + 3));
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
  const bool gradient = pass == RFN_PASS_BACKWARD, counts_first = gradient && op.normalizer == 0;
  if (counts_first) {
    RFN_CUDA_TRY(stream, RFN_LAUNCH(count_rows_kernel, 1, kSumThreads, 0, native_stream(stream), i32(op.labels), rows,
                                    op.ignore_index, op.statistics));
  }
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
    RFN_CUDA_TRY(stream, gradient ? launch_row_loss<true>(native_stream(stream), call)
                                  : launch_row_loss<false>(native_stream(stream), call));
    RFN_CUDA_TRY(stream, RFN_LAUNCH(add_rows_kernel, 1, kSumThreads, 0, native_stream(stream), b.rows, call.labels,
                                    count, op.ignore_index, first == 0, counts_first, op.statistics));
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
