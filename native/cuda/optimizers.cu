// Optimizers: sums in float64 and in an order that depends on shapes alone; what depends on the step only is computed
// on the host.
#include <algorithm>
#include <cmath>

#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cuda/device_math.cuh"
#include "cuda/state.h"

namespace rfn::cuda {
namespace {

constexpr int kThreads = 256;

RFN_DEVICE double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

// The gradient's factor: scale 0 drops the gradient, also one that is not finite.
RFN_DEVICE float clip_scale(const rfn_norm_result* clip) { return clip == nullptr ? 1.0f : clip->scale; }
RFN_DEVICE float scaled(float scale, float gradient) { return scale == 0.0f ? 0.0f : scale * gradient; }

// ---- global norm ----
// A block sums the squares of kNormBlock elements of one tensor; one more block adds these sums. Many tensors share a
// launch, which has their pointers as parameters (at most 4 KB).

constexpr int64_t kNormBlock = 16384;
constexpr int kNormTensors = 200;
constexpr int64_t kNormBlocks = int64_t{1} << 30;  // of a launch

struct NormBatch {
  const float* data[kNormTensors];
  int64_t elements[kNormTensors];
  uint32_t first_block[kNormTensors];
  int32_t count;
};

__global__ void __launch_bounds__(kThreads) norm_sums_kernel(NormBatch batch, double* sums) {
  int tensor = 0;  // the last one that begins at or before this block
  for (int end = batch.count; end - tensor > 1;) {
    const int middle = (tensor + end) / 2;
    if (batch.first_block[middle] <= blockIdx.x)
      tensor = middle;
    else
      end = middle;
  }
  const int64_t begin = int64_t{blockIdx.x - batch.first_block[tensor]} * kNormBlock,
                left = batch.elements[tensor] - begin;
  const float* const values = batch.data[tensor] + begin;
  const int count = static_cast<int>(left < kNormBlock ? left : kNormBlock);
  double sum = 0;
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) sum += square(values[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    norm_result_kernel(const double* sums, int64_t blocks, float max_norm, rfn_norm_result* result) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += kThreads) total += sums[i];
  total = block_sum(total);
  if (threadIdx.x != 0) return;
  const float norm = static_cast<float>(sqrt(total));
  result->norm = norm;
  result->scale = !(norm < INFINITY) ? 0.0f : max_norm > 0.0f && norm > max_norm ? max_norm / norm : 1.0f;
}

int64_t norm_blocks(const rfn_global_norm& op) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < op.count; ++i) blocks += div_up(elements(op.gradients[i]), kNormBlock);
  return blocks;
}

// ---- AdamW ----

struct AdamW {
  float beta1, beta2, epsilon;
  float rate;          // learning rate over the first moment's bias correction
  float inverse_root;  // 1 / sqrt of the second's
  float decay;         // learning rate times weight decay
};

constexpr int kAdamWElements = 4;  // of a thread

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(AdamW a, int64_t n, const rfn_norm_result* __restrict__ clip, const float* __restrict__ gradient,
                 float* __restrict__ parameter, float* __restrict__ moment1, float* __restrict__ moment2) {
  const float scale = clip_scale(clip);
  const int64_t first = int64_t{blockIdx.x} * (kThreads * kAdamWElements) + threadIdx.x;
#pragma unroll
  for (int e = 0; e < kAdamWElements; ++e) {
    const int64_t i = first + e * kThreads;
    if (i >= n) continue;
    const float g = scaled(scale, gradient[i]), p = parameter[i];
    const float m = fmaf(a.beta1, moment1[i], (1.0f - a.beta1) * g),
                v = fmaf(a.beta2, moment2[i], (1.0f - a.beta2) * (g * g));
    const float update = a.rate * m / fmaf(sqrtf(v), a.inverse_root, a.epsilon);
    parameter[i] = p - fmaf(a.decay, p, update);
    moment1[i] = m;
    moment2[i] = v;
  }
}

// ---- Adafactor ----
// Second moments are moving averages of mean squares: V_ij = row_i column_j / mean(row). The parameter is a matrix
// [rows, columns]; one without factors is cut into rows of kFlatColumns, the last of which may be shorter. A block
// takes every gridDim.x-th row.

constexpr int64_t kFlatColumns = 4096;
constexpr int64_t kRowBlocks = 2048;             // at most, of a launch
constexpr int kTileColumns = 32, kTileRows = 8;  // threads of a block of column sums

struct Adafactor {
  bool factored, scale_parameter;
  int64_t n, rows, columns;
  int64_t part_rows, parts;  // rows of one part of the column sums
  double rho, fresh;         // weights of the old and the new mean
  double epsilon1, epsilon2, clip_threshold, rate;
  float decay;
  const float* gradient;
  const rfn_norm_result* clip;
  float *parameter, *row, *column, *moment2;
};

struct AdafactorBuffers {
  double* updates;      // [blocks]: sums of squared updates
  double* parameters;   // [blocks]: sums of squared parameters
  double* columns;      // [parts, columns]: sums of squared gradients
  float* row_roots;     // [rows]: 1 / sqrt(row)
  float* column_roots;  // [columns]
  float* factors;       // [2]: sqrt(mean(row)); the step
};

unsigned row_blocks(const Adafactor& a) { return static_cast<unsigned>(std::min(a.rows, kRowBlocks)); }
// Threads of a row: those of a short one would mostly idle.
unsigned row_threads(const Adafactor& a) { return a.columns <= 64 ? 32 : 128; }

Adafactor adafactor_of(const rfn_adafactor& op) {
  Adafactor a{};
  a.n = elements(op.parameter);
  a.factored = op.parameter.rank >= 2;
  a.scale_parameter = op.scale_parameter != 0;
  a.columns = a.factored ? op.parameter.shape[op.parameter.rank - 1] : std::min(a.n, kFlatColumns);
  a.rows = div_up(a.n, a.columns);
  a.part_rows = std::max<int64_t>(64, div_up(a.rows, 64));
  a.parts = div_up(a.rows, a.part_rows);
  a.rho = 1.0 - std::pow(static_cast<double>(op.step), -static_cast<double>(op.decay_exponent));
  a.fresh = 1.0 - a.rho;
  a.epsilon1 = op.epsilon1;
  a.epsilon2 = op.epsilon2;
  a.clip_threshold = op.clip_threshold;
  a.rate = op.learning_rate;
  a.decay = static_cast<float>(a.rate * static_cast<double>(op.weight_decay));
  a.gradient = f32(op.gradient);
  a.clip = op.clip;
  a.parameter = f32(op.parameter);
  a.row = f32(op.row);
  a.column = f32(op.column);
  a.moment2 = f32(op.moment2);
  return a;
}

AdafactorBuffers adafactor_buffers(Arena& arena, const Adafactor& a) {
  AdafactorBuffers b{};
  b.updates = arena.take<double>(row_blocks(a));
  b.parameters = arena.take<double>(row_blocks(a));
  b.columns = arena.take<double>(a.factored ? a.parts * a.columns : 0);
  b.row_roots = arena.take<float>(a.factored ? a.rows : 0);
  b.column_roots = arena.take<float>(a.factored ? a.columns : 0);
  b.factors = arena.take<float>(2);
  return b;
}

// 0 where nothing but zeros was seen, which only epsilon1 = 0 allows: the gradient is 0 there too.
RFN_DEVICE float inverse_root(float x) {
  return x > 0.0f ? static_cast<float>(1.0 / sqrt(static_cast<double>(x))) : 0.0f;
}

// Moves the row moments on.
__global__ void __launch_bounds__(128) adafactor_rows_kernel(Adafactor a, AdafactorBuffers b) {
  const float scale = clip_scale(a.clip);
  for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
    const float* const g = a.gradient + r * a.columns;
    double sum = 0;
#pragma unroll 4
    for (int64_t c = threadIdx.x; c < a.columns; c += blockDim.x) sum += square(scaled(scale, g[c]));
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
      const float moment = static_cast<float>(a.rho * static_cast<double>(a.row[r]) +
                                              a.fresh * (sum / static_cast<double>(a.columns) + a.epsilon1));
      a.row[r] = moment;
      b.row_roots[r] = inverse_root(moment);
    }
  }
}

// Sums of squares down the columns, part by part: block (x, y) has 32 columns of part y, a warp every eighth row of it.
__global__ void __launch_bounds__(kTileColumns* kTileRows)
    adafactor_column_sums_kernel(Adafactor a, AdafactorBuffers b) {
  RFN_SHARED(sums, double[kTileRows][kTileColumns]);
  const float scale = clip_scale(a.clip);
  const int64_t part = blockIdx.y, column = int64_t{blockIdx.x} * kTileColumns + threadIdx.x;
  const int64_t begin = part * a.part_rows, end = begin + a.part_rows < a.rows ? begin + a.part_rows : a.rows;
  double sum = 0;
  if (column < a.columns) {
#pragma unroll 4
    for (int64_t r = begin + threadIdx.y; r < end; r += kTileRows)
      sum += square(scaled(scale, a.gradient[r * a.columns + column]));
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= a.columns) return;
#pragma unroll
  for (int i = 1; i < kTileRows; ++i) sum += sums[i][threadIdx.x];
  b.columns[part * a.columns + column] = sum;
}

// Moves the column moments on, a thread each; the last block averages the row moments.
__global__ void __launch_bounds__(kThreads) adafactor_columns_kernel(Adafactor a, AdafactorBuffers b) {
  if (blockIdx.x == gridDim.x - 1) {
    double sum = 0;
    for (int64_t r = threadIdx.x; r < a.rows; r += kThreads) sum += static_cast<double>(a.row[r]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) b.factors[0] = static_cast<float>(sqrt(sum / static_cast<double>(a.rows)));
    return;
  }
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= a.columns) return;
  double sum = 0;
  for (int64_t part = 0; part < a.parts; ++part) sum += b.columns[part * a.columns + column];
  const float moment = static_cast<float>(a.rho * static_cast<double>(a.column[column]) +
                                          a.fresh * (sum / static_cast<double>(a.rows) + a.epsilon1));
  a.column[column] = moment;
  b.column_roots[column] = inverse_root(moment);
}

// Calls body(element, update) for every element of the block's rows; update: before clipping.
template <class Body>
RFN_DEVICE void for_updates(const Adafactor& a, const AdafactorBuffers& b, const Body& body) {
  const float scale = clip_scale(a.clip), row_root = a.factored ? b.factors[0] : 0.0f;
  for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
    const int64_t begin = r * a.columns, count = a.n - begin < a.columns ? a.n - begin : a.columns;
    const float factor = a.factored ? row_root * b.row_roots[r] : 0.0f;
#pragma unroll 4
    for (int64_t c = threadIdx.x; c < count; c += blockDim.x) {
      const int64_t i = begin + c;
      const float root = a.factored ? factor * b.column_roots[c] : inverse_root(a.moment2[i]);
      body(i, scaled(scale, a.gradient[i]) * root);
    }
  }
}

__global__ void __launch_bounds__(128) adafactor_moments_kernel(Adafactor a) {
  const float scale = clip_scale(a.clip);
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < a.n; i += int64_t{gridDim.x} * blockDim.x) {
    a.moment2[i] = static_cast<float>(a.rho * static_cast<double>(a.moment2[i]) +
                                      a.fresh * (square(scaled(scale, a.gradient[i])) + a.epsilon1));
  }
}

__global__ void __launch_bounds__(128) adafactor_sums_kernel(Adafactor a, AdafactorBuffers b) {
  double updates = 0, parameters = 0;
  for_updates(a, b, [&](int64_t i, float update) {
    updates += square(update);
    parameters += square(a.parameter[i]);
  });
  updates = block_sum(updates);
  parameters = block_sum(parameters);
  if (threadIdx.x == 0) {
    b.updates[blockIdx.x] = updates;
    b.parameters[blockIdx.x] = parameters;
  }
}

__global__ void __launch_bounds__(kThreads) adafactor_step_kernel(Adafactor a, AdafactorBuffers b, int blocks) {
  double updates = 0, parameters = 0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads) {
    updates += b.updates[i];
    parameters += b.parameters[i];
  }
  updates = block_sum(updates);
  parameters = block_sum(parameters);
  if (threadIdx.x != 0) return;
  const double n = static_cast<double>(a.n), clip = fmax(1.0, sqrt(updates / n) / a.clip_threshold);
  b.factors[1] = static_cast<float>(a.rate * (a.scale_parameter ? fmax(a.epsilon2, sqrt(parameters / n)) : 1.0) / clip);
}

__global__ void __launch_bounds__(128) adafactor_update_kernel(Adafactor a, AdafactorBuffers b) {
  const float step = b.factors[1];
  for_updates(a, b, [&](int64_t i, float update) {
    const float p = a.parameter[i];
    a.parameter[i] = p - fmaf(a.decay, p, step * update);
  });
}

}  // namespace

rfn_status global_norm_workspace(const rfn_context&, const rfn_global_norm& op, int64_t* bytes) {
  Arena arena;
  arena.take<double>(norm_blocks(op));
  return workspace_size(arena, "global_norm", bytes);
}

rfn_status global_norm_forward(rfn_stream& stream, const rfn_global_norm& op, void* workspace,
                               int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  Arena arena(workspace, workspace_bytes);
  const int64_t blocks = norm_blocks(op);
  double* const sums = arena.take<double>(blocks);
  int64_t first = 0;  // block of the launch
  for (int64_t tensor = 0, begin = 0; tensor < op.count;) {
    NormBatch batch{};
    int64_t launched = 0;
    while (tensor < op.count && batch.count < kNormTensors && launched < kNormBlocks) {
      const int64_t n = elements(op.gradients[tensor]),
                    count = std::min(n - begin, (kNormBlocks - launched) * kNormBlock);
      batch.data[batch.count] = f32(op.gradients[tensor]) + begin;
      batch.elements[batch.count] = count;
      batch.first_block[batch.count++] = static_cast<uint32_t>(launched);
      launched += div_up(count, kNormBlock);
      begin += count;
      if (begin == n) ++tensor, begin = 0;
    }
    RFN_CUDA_TRY(stream, RFN_LAUNCH(norm_sums_kernel, static_cast<unsigned>(launched), kThreads, 0,
                                    native_stream(stream), batch, sums + first));
    first += launched;
  }
  RFN_CUDA_TRY(stream, RFN_LAUNCH(norm_result_kernel, 1, kThreads, 0, native_stream(stream), sums, blocks, op.max_norm,
                                  op.result));
  return RFN_OK;
}

rfn_status adamw_step(rfn_stream& stream, const rfn_adamw& op) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const int64_t n = elements(op.parameter);
  const double step = static_cast<double>(op.step), rate = op.learning_rate;
  AdamW a{};
  a.beta1 = op.beta1;
  a.beta2 = op.beta2;
  a.epsilon = op.epsilon;
  a.rate = static_cast<float>(rate / (1.0 - std::pow(static_cast<double>(op.beta1), step)));
  a.inverse_root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(op.beta2), step)));
  a.decay = static_cast<float>(rate * static_cast<double>(op.weight_decay));
  RFN_CUDA_TRY(stream,
               RFN_LAUNCH(adamw_kernel, blocks_for(n, kThreads * kAdamWElements), kThreads, 0, native_stream(stream), a,
                          n, op.clip, f32(op.gradient), f32(op.parameter), f32(op.moment1), f32(op.moment2)));
  return RFN_OK;
}

rfn_status adafactor_workspace(const rfn_context&, const rfn_adafactor& op, int64_t* bytes) {
  Arena arena;
  adafactor_buffers(arena, adafactor_of(op));
  return workspace_size(arena, "adafactor", bytes);
}

rfn_status adafactor_step(rfn_stream& stream, const rfn_adafactor& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const Adafactor a = adafactor_of(op);
  Arena arena(workspace, workspace_bytes);
  const AdafactorBuffers b = adafactor_buffers(arena, a);
  const unsigned blocks = row_blocks(a), threads = row_threads(a);
  const cudaStream_t native = native_stream(stream);
  if (a.factored) {
    RFN_CUDA_TRY(stream, RFN_LAUNCH(adafactor_rows_kernel, blocks, threads, 0, native, a, b));
    RFN_CUDA_TRY(stream, RFN_LAUNCH(adafactor_column_sums_kernel,
                                    dim3(blocks_for(a.columns, kTileColumns), static_cast<unsigned>(a.parts)),
                                    dim3(kTileColumns, kTileRows), 0, native, a, b));
    RFN_CUDA_TRY(stream,
                 RFN_LAUNCH(adafactor_columns_kernel, blocks_for(a.columns, kThreads) + 1, kThreads, 0, native, a, b));
  } else {
    RFN_CUDA_TRY(stream, RFN_LAUNCH(adafactor_moments_kernel, blocks, threads, 0, native, a));
  }
  RFN_CUDA_TRY(stream, RFN_LAUNCH(adafactor_sums_kernel, blocks, threads, 0, native, a, b));
  RFN_CUDA_TRY(stream, RFN_LAUNCH(adafactor_step_kernel, 1, kThreads, 0, native, a, b, static_cast<int>(blocks)));
  RFN_CUDA_TRY(stream, RFN_LAUNCH(adafactor_update_kernel, blocks, threads, 0, native, a, b));
  return RFN_OK;
}

}  // namespace rfn::cuda
