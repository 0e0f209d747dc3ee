// Optimizers: sums in float64 and in an order that depends on shapes alone; what depends on the step only is computed
// on the host.
//
// An op has all tensors in one launch, as many as its parameters (at most 4 KB) have room for; those that are left go
// into further launches. Parameters and not a table in device memory, as a copy of it from the host would be read when
// a captured graph is replayed: what a launch is given by value is copied when it is recorded.
#include <algorithm>
#include <cmath>

#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cuda/device_math.cuh"
#include "cuda/quads.cuh"
#include "cuda/state.h"

namespace rfn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = int64_t{1} << 30;  // of a launch
constexpr size_t kMostParameters = 4096;           // bytes that a launch may be given by value

RFN_DEVICE double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

// The gradient's factor: scale 0 drops the gradient, also one that is not finite.
RFN_DEVICE float clip_scale(const rfn_norm_result* clip) { return clip == nullptr ? 1.0f : clip->scale; }
RFN_DEVICE float scaled(float scale, float gradient) { return scale == 0.0f ? 0.0f : scale * gradient; }

// The tensor of a block: the last of `count` whose first block is at or before it.
RFN_DEVICE int tensor_of_block(const uint32_t* first_block, int32_t count) {
  int tensor = 0;
  for (int end = count; end - tensor > 1;) {
    const int middle = (tensor + end) / 2;
    if (first_block[middle] <= blockIdx.x)
      tensor = middle;
    else
      end = middle;
  }
  return tensor;
}

// Elements of tensors in blocks of `each`, up to `most` tensors in a launch: put(place in the launch, tensor, first
// element, elements, first block) for each of them, then launch(tensors, blocks).
template <class Put, class Launch>
rfn_status for_launches(int64_t count, const rfn_tensor* tensors, int64_t each, int32_t most, const Put& put,
                        const Launch& launch) {
  for (int64_t tensor = 0, begin = 0; tensor < count;) {
    int32_t place = 0;
    int64_t blocks = 0;
    while (tensor < count && place < most && blocks < kMostBlocks) {
      const int64_t n = elements(tensors[tensor]), part = std::min(n - begin, (kMostBlocks - blocks) * each);
      put(place++, tensor, begin, part, static_cast<uint32_t>(blocks));
      blocks += div_up(part, each);
      begin += part;
      if (begin == n) ++tensor, begin = 0;
    }
    RFN_TRY(launch(place, static_cast<unsigned>(blocks)));
  }
  return RFN_OK;
}

// ---- global norm ----
// A block sums the squares of kNormBlock elements of one tensor; one more block adds these sums.

constexpr int64_t kNormBlock = 16384;
constexpr int kNormTensors = 200;

struct NormBatch {
  const float* data[kNormTensors];
  int64_t elements[kNormTensors];
  uint32_t first_block[kNormTensors];
  int32_t count;
};

__global__ void __launch_bounds__(kThreads) norm_sums_kernel(NormBatch batch, double* sums) {
  const int tensor = tensor_of_block(batch.first_block, batch.count);
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
  int32_t count;
  const rfn_norm_result* clip;
};

constexpr int64_t kAdamWBlock = 4 * kThreads;  // elements: four neighbours a thread
constexpr int kAdamWTensors = 84;

struct AdamWBatch {
  AdamW a;
  float* parameter[kAdamWTensors];
  const float* gradient[kAdamWTensors];
  float* moment1[kAdamWTensors];
  float* moment2[kAdamWTensors];
  int64_t elements[kAdamWTensors];
  float decay[kAdamWTensors];  // learning rate times weight decay
  uint32_t first_block[kAdamWTensors];
};
static_assert(sizeof(AdamWBatch) <= kMostParameters && sizeof(AdamWBatch) + 48 > kMostParameters);

__global__ void __launch_bounds__(kThreads) adamw_kernel(AdamWBatch batch) {
  const AdamW& a = batch.a;
  const int tensor = tensor_of_block(batch.first_block, a.count);
  float *const parameter = batch.parameter[tensor], *const moment1 = batch.moment1[tensor],
               *const moment2 = batch.moment2[tensor];
  const float* const gradient = batch.gradient[tensor];
  const int64_t n = batch.elements[tensor],
                i = int64_t{blockIdx.x - batch.first_block[tensor]} * kAdamWBlock + 4 * threadIdx.x;
  const bool aligned = (reinterpret_cast<uintptr_t>(parameter) | reinterpret_cast<uintptr_t>(gradient) |
                        reinterpret_cast<uintptr_t>(moment1) | reinterpret_cast<uintptr_t>(moment2)) %
                           16 ==
                       0;
  const float scale = clip_scale(a.clip), decay = batch.decay[tensor];
  const Quad gradients = load_quad(gradient, i, n, aligned);
  Quad p = load_quad(parameter, i, n, aligned), m = load_quad(moment1, i, n, aligned),
       v = load_quad(moment2, i, n, aligned);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float g = scaled(scale, gradients.v[j]);
    m.v[j] = fmaf(a.beta1, m.v[j], (1.0f - a.beta1) * g);
    v.v[j] = fmaf(a.beta2, v.v[j], (1.0f - a.beta2) * (g * g));
    const float update = a.rate * m.v[j] / fmaf(sqrtf(v.v[j]), a.inverse_root, a.epsilon);
    p.v[j] = p.v[j] - fmaf(decay, p.v[j], update);
  }
  store_quad(parameter, i, n, aligned, p);
  store_quad(moment1, i, n, aligned, m);
  store_quad(moment2, i, n, aligned, v);
}

// ---- Adafactor ----
// Second moments are moving averages of mean squares: V_ij = row_i column_j / mean(row), so the updates are
//   u_ij = sqrt(mean(row)) w_ij,  w_ij = g_ij / sqrt(row_i column_j).
// Three launches, each of which has what the one before left in the workspace:
//   moments  row moments and their sums, a warp per row; sums of squares down pieces of columns
//   sums     column moments, by every block for its own columns; sums of w^2 and of p^2
//   update   adds those sums up, by every block, and updates the parameter
// A matrix is cut into pieces of kPieceColumns columns by rows in equal parts, a block each. A parameter without
// factors is cut into pieces of a row, and its moments need no second launch.

constexpr int kPieceColumns = 32, kPieceRows = kThreads / kPieceColumns;  // threads of a block of a piece
constexpr uint32_t kLeastPartRows = 128;                                  // of a piece
constexpr uint32_t kMostPieces = 1024;                                    // where that leaves a piece's columns whole
constexpr uint32_t kWarps = kThreads / 32;
constexpr uint32_t kFlatBlock = 2048;  // elements of a piece of a row, at least
constexpr int kAdafactorTensors = 77;

struct Adafactor {
  double rho, fresh;  // weights of the old and the new mean
  double epsilon1, epsilon2, clip_threshold, rate;
  const rfn_norm_result* clip;
  char* workspace;
  int32_t count, scale_parameter;
};

struct AdafactorBatch {
  Adafactor a;
  float* parameter[kAdafactorTensors];
  const float* gradient[kAdafactorTensors];
  float* row[kAdafactorTensors];                                 // without factors: the second moments
  float* column[kAdafactorTensors];                              // null without factors
  uint32_t rows[kAdafactorTensors], columns[kAdafactorTensors];  // without factors: high and low half of the elements
  uint32_t scratch[kAdafactorTensors];                           // in units of kScratchUnit
  uint32_t first_block[kAdafactorTensors];
  float decay[kAdafactorTensors];
};
static_assert(sizeof(AdafactorBatch) <= kMostParameters && sizeof(AdafactorBatch) + 52 > kMostParameters);

constexpr int64_t kScratchUnit = Arena::kAlignment;

// How a parameter is cut up; its scratch follows from that.
struct Pieces {
  bool factored;
  int64_t n;
  uint32_t rows, columns;
  uint32_t warp_rows, row_blocks;    // rows of a warp; blocks of row moments
  uint32_t tiles, parts, part_rows;  // tiles: of kPieceColumns columns
  uint32_t flat_block;
  uint32_t pieces;

  RFN_HOST_DEVICE Pieces(bool has_factors, int64_t elements, uint32_t row_count, uint32_t column_count)
      : factored(has_factors), n(elements), rows(row_count), columns(column_count) {
    if (factored) {
      warp_rows = at_least(4, up(rows, kWarps * kMostPieces));
      row_blocks = up(rows, kWarps * warp_rows);
      tiles = up(columns, kPieceColumns);
      const uint32_t most = kMostPieces / tiles, wanted = up(rows, kLeastPartRows);
      parts = most < 1 ? 1 : wanted < most ? wanted : most;
      part_rows = up(rows, parts);
      flat_block = 0;
      pieces = tiles * parts;
    } else {
      flat_block = at_least(kFlatBlock, static_cast<uint32_t>((n + kMostPieces - 1) / kMostPieces));
      pieces = static_cast<uint32_t>((n + flat_block - 1) / flat_block);
      warp_rows = row_blocks = tiles = parts = part_rows = 0;
    }
  }

 private:
  RFN_HOST_DEVICE static uint32_t up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
  RFN_HOST_DEVICE static uint32_t at_least(uint32_t a, uint32_t b) { return a < b ? b : a; }
};

struct AdafactorScratch {
  double* updates;      // [pieces]: sums of squares of w
  double* parameters;   // [pieces]: sums of squared parameters
  double* row_sums;     // [row_blocks]: of row moments
  double* column_sums;  // [parts, columns]: of squared gradients
  float* row_roots;     // [rows]: 1 / sqrt(row)
  float* column_roots;  // [columns]
  float* columns;       // [columns]: new moments, which `sums` may not write where other blocks read the old ones
};

RFN_HOST_DEVICE AdafactorScratch scratch_of(const Pieces& p, char* base, int64_t* bytes) {
  AdafactorScratch s{};
  s.updates = reinterpret_cast<double*>(base);
  s.parameters = s.updates + p.pieces;
  s.row_sums = s.parameters + p.pieces;
  s.column_sums = s.row_sums + p.row_blocks;
  s.row_roots =
      reinterpret_cast<float*>(s.column_sums + static_cast<int64_t>(p.parts) * p.columns * (p.factored ? 1 : 0));
  s.column_roots = s.row_roots + (p.factored ? p.rows : 0);
  s.columns = s.column_roots + (p.factored ? p.columns : 0);
  *bytes = reinterpret_cast<char*>(s.columns + (p.factored ? p.columns : 0)) - base;
  return s;
}

// 0 where nothing but zeros was seen, which only epsilon1 = 0 allows: the gradient is 0 there too.
RFN_DEVICE float inverse_root(float x) {
  return x > 0.0f ? static_cast<float>(1.0 / sqrt(static_cast<double>(x))) : 0.0f;
}

// What a block works on.
struct BlockTensor {
  int tensor;
  uint32_t block;  // of the tensor
  float scale;
  float* parameter;
  const float* gradient;
};
RFN_DEVICE BlockTensor block_tensor(const AdafactorBatch& batch) {
  const int tensor = tensor_of_block(batch.first_block, batch.a.count);
  return {tensor, blockIdx.x - batch.first_block[tensor], clip_scale(batch.a.clip), batch.parameter[tensor],
          batch.gradient[tensor]};
}
RFN_DEVICE Pieces block_pieces(const AdafactorBatch& batch, int tensor) {
  const bool factored = batch.column[tensor] != nullptr;
  const uint32_t rows = batch.rows[tensor], columns = batch.columns[tensor];
  const int64_t n = factored ? int64_t{rows} * columns : static_cast<int64_t>(uint64_t{rows} << 32 | columns);
  return {factored, n, rows, columns};
}
RFN_DEVICE AdafactorScratch block_scratch(const AdafactorBatch& batch, const BlockTensor& t, const Pieces& p) {
  int64_t unused = 0;
  return scratch_of(p, batch.a.workspace + batch.scratch[t.tensor] * kScratchUnit, &unused);
}
RFN_DEVICE float moved(const Adafactor& a, float moment, double mean_square) {
  return static_cast<float>(a.rho * static_cast<double>(moment) + a.fresh * (mean_square + a.epsilon1));
}

// A piece of a matrix: the thread's column, and its rows begin, begin + kPieceRows, ...
struct Piece {
  uint32_t part, column, begin, end;
  bool inside;
};
RFN_DEVICE Piece piece_of(const Pieces& p, uint32_t number) {
  const uint32_t part = number / p.tiles, column = number % p.tiles * kPieceColumns + threadIdx.x % kPieceColumns;
  const uint32_t first = part * p.part_rows;
  return {part, column, first + threadIdx.x / kPieceColumns, min(p.rows, first + p.part_rows), column < p.columns};
}

// Sum over the threads of each column of a piece; the first kPieceColumns threads get it.
RFN_DEVICE double column_sum(double (*parts)[kPieceColumns], double x) {
  const int lane = threadIdx.x % kPieceColumns, row = threadIdx.x / kPieceColumns;
  parts[row][lane] = x;
  __syncthreads();
  if (row != 0) return 0.0;
#pragma unroll
  for (int other = 1; other < kPieceRows; ++other) x += parts[other][lane];
  return x;
}

__global__ void __launch_bounds__(kThreads) adafactor_moments_kernel(AdafactorBatch batch) {
  RFN_SHARED(parts, double[kPieceRows][kPieceColumns]);
  const BlockTensor t = block_tensor(batch);
  const Pieces p = block_pieces(batch, t.tensor);
  const AdafactorScratch s = block_scratch(batch, t, p);
  float* const row = batch.row[t.tensor];
  if (!p.factored) {
    const int64_t begin = int64_t{t.block} * p.flat_block, end = min(p.n, begin + p.flat_block);
    double updates = 0, parameters = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const float g = scaled(t.scale, t.gradient[i]), moment = moved(batch.a, row[i], square(g));
      row[i] = moment;
      updates += square(g * inverse_root(moment));
      parameters += square(t.parameter[i]);
    }
    updates = block_sum(updates);
    parameters = block_sum(parameters);
    if (threadIdx.x == 0) {
      s.updates[t.block] = updates;
      s.parameters[t.block] = parameters;
    }
  } else if (t.block < p.row_blocks) {
    const uint32_t lane = threadIdx.x % 32, begin = (t.block * kWarps + threadIdx.x / 32) * p.warp_rows,
                   end = min(p.rows, begin + p.warp_rows);
    double moments = 0;
    for (uint32_t r = begin; r < end; ++r) {
      const float* const g = t.gradient + int64_t{r} * p.columns;
      double sum = 0;
#pragma unroll 4
      for (uint32_t c = lane; c < p.columns; c += 32) sum += square(scaled(t.scale, g[c]));
      sum = group_sum(sum);
      const float moment = moved(batch.a, row[r], sum / static_cast<double>(p.columns));
      __syncwarp();  // every lane has read the old moment
      if (lane == 0) {
        row[r] = moment;
        s.row_roots[r] = inverse_root(moment);
      }
      moments += static_cast<double>(moment);
    }
    moments = block_sum(lane == 0 ? moments : 0.0);
    if (threadIdx.x == 0) s.row_sums[t.block] = moments;
  } else {
    const Piece piece = piece_of(p, t.block - p.row_blocks);
    double sum = 0;
    if (piece.inside) {
#pragma unroll 4
      for (uint32_t r = piece.begin; r < piece.end; r += kPieceRows)
        sum += square(scaled(t.scale, t.gradient[int64_t{r} * p.columns + piece.column]));
    }
    sum = column_sum(parts, sum);
    if (threadIdx.x < kPieceColumns && piece.inside)
      s.column_sums[int64_t{piece.part} * p.columns + piece.column] = sum;
  }
}

// For matrices alone.
__global__ void __launch_bounds__(kThreads) adafactor_sums_kernel(AdafactorBatch batch) {
  RFN_SHARED(parts, double[kPieceRows][kPieceColumns]);
  RFN_SHARED(roots, float[kPieceColumns]);
  const BlockTensor t = block_tensor(batch);
  const Pieces p = block_pieces(batch, t.tensor);
  const AdafactorScratch s = block_scratch(batch, t, p);
  const Piece piece = piece_of(p, t.block);
  double sum = 0;
  if (piece.inside) {
    for (uint32_t part = threadIdx.x / kPieceColumns; part < p.parts; part += kPieceRows)
      sum += s.column_sums[int64_t{part} * p.columns + piece.column];
  }
  sum = column_sum(parts, sum);
  if (threadIdx.x < kPieceColumns && piece.inside) {
    const float moment = moved(batch.a, batch.column[t.tensor][piece.column], sum / static_cast<double>(p.rows));
    const float root = inverse_root(moment);
    roots[threadIdx.x] = root;
    if (piece.part == 0) {
      s.columns[piece.column] = moment;
      s.column_roots[piece.column] = root;
    }
  }
  __syncthreads();
  double updates = 0, parameters = 0;
  if (piece.inside) {
    const float root = roots[threadIdx.x % kPieceColumns];
#pragma unroll 4
    for (uint32_t r = piece.begin; r < piece.end; r += kPieceRows) {
      const int64_t i = int64_t{r} * p.columns + piece.column;
      updates += square(scaled(t.scale, t.gradient[i]) * s.row_roots[r] * root);
      parameters += square(t.parameter[i]);
    }
  }
  updates = block_sum(updates);
  parameters = block_sum(parameters);
  if (threadIdx.x == 0) {
    s.updates[t.block] = updates;
    s.parameters[t.block] = parameters;
  }
}

RFN_DEVICE double sum_of(const double* values, uint32_t count) {
  double sum = 0;
  for (uint32_t i = threadIdx.x; i < count; i += kThreads) sum += values[i];
  return block_sum(sum);
}

__global__ void __launch_bounds__(kThreads) adafactor_update_kernel(AdafactorBatch batch) {
  const Adafactor& a = batch.a;
  const BlockTensor t = block_tensor(batch);
  const Pieces p = block_pieces(batch, t.tensor);
  const AdafactorScratch s = block_scratch(batch, t, p);
  const double n = static_cast<double>(p.n);
  const double mean = p.factored ? sum_of(s.row_sums, p.row_blocks) / static_cast<double>(p.rows) : 1.0;
  const double updates = mean * sum_of(s.updates, p.pieces), clip = fmax(1.0, sqrt(updates / n) / a.clip_threshold);
  double rate = a.rate / clip;
  if (a.scale_parameter != 0) rate *= fmax(a.epsilon2, sqrt(sum_of(s.parameters, p.pieces) / n));
  const float step = static_cast<float>(rate * sqrt(mean)), decay = batch.decay[t.tensor];
  // From the left: the product of two roots may be too large.
  const auto update = [&](int64_t i, float row_root, float column_root) {
    const float value = t.parameter[i], w = scaled(t.scale, t.gradient[i]) * row_root * column_root;
    t.parameter[i] = value - fmaf(decay, value, step * w);
  };
  if (!p.factored) {
    const float* const moment2 = batch.row[t.tensor];
    const int64_t begin = int64_t{t.block} * p.flat_block, end = min(p.n, begin + p.flat_block);
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) update(i, inverse_root(moment2[i]), 1.0f);
    return;
  }
  const Piece piece = piece_of(p, t.block);
  if (!piece.inside) return;
  if (piece.part == 0 && threadIdx.x < kPieceColumns) batch.column[t.tensor][piece.column] = s.columns[piece.column];
  const float root = s.column_roots[piece.column];
#pragma unroll 4
  for (uint32_t r = piece.begin; r < piece.end; r += kPieceRows)
    update(int64_t{r} * p.columns + piece.column, s.row_roots[r], root);
}

template <class Op>
float decay_of(const Op& op, int64_t tensor) {
  if (op.weight_decays == nullptr) return 0.0f;
  return static_cast<float>(static_cast<double>(op.learning_rate) * static_cast<double>(op.weight_decays[tensor]));
}

Pieces pieces_of(const rfn_tensor& parameter) {
  const int64_t n = elements(parameter);
  if (parameter.rank < 2) return {false, n, static_cast<uint32_t>(n >> 32), static_cast<uint32_t>(n)};
  const int64_t columns = parameter.shape[parameter.rank - 1];
  return {true, n, static_cast<uint32_t>(n / columns), static_cast<uint32_t>(columns)};
}

// Bytes of a parameter's scratch, a whole number of units.
int64_t scratch_bytes(const Pieces& p) {
  int64_t bytes = 0;
  scratch_of(p, nullptr, &bytes);
  return round_up(bytes, kScratchUnit);
}

// Numbers of the kernels that have 32 bits.
rfn_status adafactor_supported(const rfn_adafactor& op) {
  constexpr int64_t kMost = INT32_MAX;
  for (int64_t i = 0; i < op.count; ++i) {
    const rfn_tensor& parameter = op.parameters[i];
    const int64_t n = elements(parameter), columns = parameter.rank < 2 ? 1 : parameter.shape[parameter.rank - 1],
                  rows = parameter.rank < 2 ? div_up(n, kMostPieces) : n / columns;
    if (rows > kMost || columns > kMost) {
      return fail(RFN_UNSUPPORTED, "adafactor: parameters[%lld]: expected at most %lld rows and columns on CUDA",
                  static_cast<long long>(i), static_cast<long long>(kMost));
    }
  }
  return RFN_OK;
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
  NormBatch batch{};
  const auto put = [&](int32_t place, int64_t tensor, int64_t begin, int64_t n, uint32_t block) {
    batch.data[place] = f32(op.gradients[tensor]) + begin;
    batch.elements[place] = n;
    batch.first_block[place] = block;
  };
  RFN_TRY(for_launches(
      op.count, op.gradients, kNormBlock, kNormTensors, put, [&](int32_t tensors, unsigned launched) -> rfn_status {
        batch.count = tensors;
        RFN_CUDA_TRY(stream,
                     RFN_LAUNCH(norm_sums_kernel, launched, kThreads, 0, native_stream(stream), batch, sums + first));
        first += launched;
        return RFN_OK;
      }));
  RFN_CUDA_TRY(stream, RFN_LAUNCH(norm_result_kernel, 1, kThreads, 0, native_stream(stream), sums, blocks, op.max_norm,
                                  op.result));
  return RFN_OK;
}

rfn_status adamw_step(rfn_stream& stream, const rfn_adamw& op) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const double step = static_cast<double>(op.step), rate = op.learning_rate;
  AdamWBatch batch{};
  AdamW& a = batch.a;
  a.beta1 = op.beta1;
  a.beta2 = op.beta2;
  a.epsilon = op.epsilon;
  a.rate = static_cast<float>(rate / (1.0 - std::pow(static_cast<double>(op.beta1), step)));
  a.inverse_root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(op.beta2), step)));
  a.clip = op.clip;
  const auto put = [&](int32_t place, int64_t tensor, int64_t begin, int64_t n, uint32_t block) {
    batch.parameter[place] = f32(op.parameters[tensor]) + begin;
    batch.gradient[place] = f32(op.gradients[tensor]) + begin;
    batch.moment1[place] = f32(op.moments1[tensor]) + begin;
    batch.moment2[place] = f32(op.moments2[tensor]) + begin;
    batch.elements[place] = n;
    batch.decay[place] = decay_of(op, tensor);
    batch.first_block[place] = block;
  };
  return for_launches(
      op.count, op.parameters, kAdamWBlock, kAdamWTensors, put, [&](int32_t tensors, unsigned blocks) -> rfn_status {
        a.count = tensors;
        RFN_CUDA_TRY(stream, RFN_LAUNCH(adamw_kernel, blocks, kThreads, 0, native_stream(stream), batch));
        return RFN_OK;
      });
}

rfn_status adafactor_workspace(const rfn_context&, const rfn_adafactor& op, int64_t* bytes) {
  RFN_TRY(adafactor_supported(op));
  Arena arena;
  for (int64_t i = 0; i < op.count; ++i) arena.take<char>(scratch_bytes(pieces_of(op.parameters[i])));
  return workspace_size(arena, "adafactor", bytes);
}

rfn_status adafactor_step(rfn_stream& stream, const rfn_adafactor& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  Arena arena(workspace, workspace_bytes);
  AdafactorBatch batch{};
  Adafactor& a = batch.a;
  a.rho = 1.0 - std::pow(static_cast<double>(op.step), -static_cast<double>(op.decay_exponent));
  a.fresh = 1.0 - a.rho;
  a.epsilon1 = op.epsilon1;
  a.epsilon2 = op.epsilon2;
  a.clip_threshold = op.clip_threshold;
  a.rate = op.learning_rate;
  a.clip = op.clip;
  a.workspace = static_cast<char*>(workspace);
  a.scale_parameter = op.scale_parameter;
  // Blocks of a parameter in each launch.
  using Blocks = int64_t (*)(const Pieces& p);
  const Blocks moments = [](const Pieces& p) { return int64_t{p.row_blocks} + p.pieces; };
  const Blocks sums = [](const Pieces& p) { return int64_t{p.factored ? p.pieces : 0}; };
  const Blocks update = [](const Pieces& p) { return int64_t{p.pieces}; };
  for (int64_t first = 0; first < op.count; first += a.count) {
    int64_t most = 0;  // blocks of a launch
    a.count = 0;
    for (int64_t tensor = first; tensor < op.count && a.count < kAdafactorTensors; ++tensor, ++a.count) {
      const Pieces p = pieces_of(op.parameters[tensor]);
      most += moments(p);
      if (most > kMostBlocks && a.count > 0) break;
      const int32_t place = a.count;
      batch.parameter[place] = f32(op.parameters[tensor]);
      batch.gradient[place] = f32(op.gradients[tensor]);
      batch.row[place] = f32(p.factored ? op.rows[tensor] : op.moments2[tensor]);
      batch.column[place] = p.factored ? f32(op.columns[tensor]) : nullptr;
      batch.rows[place] = p.rows;
      batch.columns[place] = p.columns;
      batch.scratch[place] = static_cast<uint32_t>((arena.take<char>(scratch_bytes(p)) - a.workspace) / kScratchUnit);
      batch.decay[place] = decay_of(op, tensor);
    }
    const auto launch = [&](void (*kernel)(AdafactorBatch), Blocks of) -> rfn_status {
      int64_t blocks = 0;
      for (int32_t place = 0; place < a.count; ++place) {
        batch.first_block[place] = static_cast<uint32_t>(blocks);
        blocks += of(pieces_of(op.parameters[first + place]));
      }
      if (blocks == 0) return RFN_OK;
      RFN_CUDA_TRY(stream,
                   RFN_LAUNCH(kernel, static_cast<unsigned>(blocks), kThreads, 0, native_stream(stream), batch));
      return RFN_OK;
    };
    RFN_TRY(launch(adafactor_moments_kernel, moments));
    RFN_TRY(launch(adafactor_sums_kernel, sums));
    RFN_TRY(launch(adafactor_update_kernel, update));
  }
  return RFN_OK;
}

}  // namespace rfn::cuda
