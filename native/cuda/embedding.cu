// Embedding of tokens: e = dropout(word[id]) + dropout(position), and the gradients of its tables.
//
// A warp has kTile columns of a row, tile blockIdx.y; a lane has columns lane, lane + 32, ... of them.
//
// A row of a table's gradient is a sum of rows of grad_stream1 + grad_stream2, over many tokens or few. All sums are in
// a fixed order: parts of kPartTokens tokens are summed one token after the other; a row that is a single part is added
// to the table at once; the parts of other rows wait in a buffer and are then added up.
//  - words: the tokens are sorted by id and a part is kPartTokens places of that order, whatever ids are there. A run
//  of one id that began in an
//    earlier part leaves its sum in the part's row of the buffer; each other run is added to its word. Then a run's
//    rows are added to its word.
//  - positions: the tokens of a table's row are runs of `inner` positions, one in every inner * rows, each for all
//  examples.
#include <algorithm>

#include "core/backend.h"
#include "core/tensor.h"
#include "core/workspace_size.h"
#include "cuda/counting_sort.h"
#include "cuda/dropout.cuh"
#include "cuda/elementwise.h"
#include "cuda/grid.cuh"

namespace rfn::cuda {

RFN_DECLARE_OPS

namespace {

constexpr int kItems = kKeptItems;
constexpr int kTile = 32 * kItems;
constexpr int kWarps = 8;  // of a block
constexpr int kThreads = 32 * kWarps;
constexpr int kPartTokens = 64;
constexpr int kMostAxes = 4;

// One position table. Position p reads row p / inner % rows and writes columns [column, column + width).
struct Axis {
  int64_t rows, width, column, inner;
};

struct Shape {
  int64_t batch, length, tokens, width, vocabulary, first_position;
  int axis_count;
  Axis axes[kMostAxes];
  Dropout words, positions;
};

Shape shape_of(const rfn_embedding& op) {
  Shape s{};
  s.batch = op.ids.shape[0];
  s.length = op.ids.shape[1];
  s.tokens = s.batch * s.length;
  s.width = op.word.shape[1];
  s.vocabulary = op.word.shape[0];
  s.first_position = op.first_position;
  s.axis_count = op.positions == RFN_POSITIONS_NONE ? 0 : op.positions == RFN_POSITIONS_LEARNED ? 1 : op.axes;
  int64_t column = 0, inner = 1;
  for (int i = 0; i < s.axis_count; ++i) {
    s.axes[i] = {op.position[i].shape[0], op.position[i].shape[1], column, 0};
    column += s.axes[i].width;
  }
  for (int i = s.axis_count; i-- > 0;) {
    s.axes[i].inner = inner;
    inner *= s.axes[i].rows;
  }
  s.words = dropout_of(philox(op.seed, op.step, -1, RFN_SITE_WORD_EMBEDDING), op.dropout);
  s.positions = dropout_of(philox(op.seed, op.step, -1, RFN_SITE_POSITION_EMBEDDING), op.dropout);
  return s;
}

// The warp's number in grid.x, and the lane's first column.
RFN_DEVICE int64_t warp_number() { return int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; }
RFN_DEVICE int64_t first_column() { return int64_t{blockIdx.y} * kTile + threadIdx.x % 32; }
// The grid for `items` warps, or blocks, with rows of `width`.
dim3 grid_for(int64_t items, int64_t per_block, int64_t width) {
  return dim3(blocks_for(items, per_block), blocks_for(width, kTile));
}

RFN_DEVICE bool known(int32_t id, int64_t vocabulary) { return id >= 0 && id < vocabulary; }

// ---- forward ------------------------------------------------------------------------------------

struct Forward {
  Shape shape;
  const int32_t* ids;
  const float* word;
  const float* position[kMostAxes];
  float *stream1, *stream2;  // stream2 may be null
  bool exact;
  Grid grid;
  RangeCheck* check;  // null: not wanted
};

__global__ void __launch_bounds__(kThreads) embedding_forward_kernel(Forward f) {
  const Shape& s = f.shape;
  const int64_t token = warp_number(), first = first_column();
  if (token >= s.tokens) return;  // a whole warp
  const int32_t id = f.ids[token];
  const bool there = known(id, s.vocabulary);
  const float* const word = f.word + (there ? id : 0) * s.width;
  // Tokens and positions are less than 2^32, whose division is cheaper; an `inner` that is more has the quotient 0 all
  // the same.
  const uint32_t p =
      static_cast<uint32_t>(s.first_position) + static_cast<uint32_t>(token) % static_cast<uint32_t>(s.length);
  const int64_t place = token * s.width;
  const float* position[kMostAxes];  // of the row, moved so that the whole row's column is the index
#pragma unroll
  for (int i = 0; i < kMostAxes; ++i) {
    if (i >= s.axis_count) continue;
    const uint32_t inner = static_cast<uint32_t>(min(s.axes[i].inner, int64_t{UINT32_MAX}));
    position[i] =
        f.position[i] + p / inner % static_cast<uint32_t>(s.axes[i].rows) * s.axes[i].width - s.axes[i].column;
  }
  const uint32_t kept_word = kept_items(s.words, place + first, 32);
  const uint32_t kept_position = s.axis_count == 0 ? 0 : kept_items(s.positions, place + first, 32);
  int bad = 0;
  unsigned long long first_bad = ~0ull;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t column = first + 32 * i;
    if (column >= s.width) continue;
    float e = word[column] * kept_multiplier(s.words, kept_word, i);
    if (s.axis_count > 0) {
      const float* row = position[0];
#pragma unroll
      for (int axis = 1; axis < kMostAxes; ++axis) {
        if (axis < s.axis_count && column >= s.axes[axis].column) row = position[axis];
      }
      e += row[column] * kept_multiplier(s.positions, kept_position, i);
    }
    if (!there) e = NAN;
    if (f.exact) e = to_grid(e, f.grid);
    f.stream1[place + column] = e;
    if (f.stream2 != nullptr) f.stream2[place + column] = e;
    if (f.check != nullptr && !(fabsf(e) <= f.grid.limit)) {
      if (bad++ == 0) first_bad = static_cast<unsigned long long>(place + column);
    }
  }
  if (f.check != nullptr) add_to_check(f.check, bad, first_bad);
}

// ---- gradients ----------------------------------------------------------------------------------

// What all gradients read.
struct Source {
  const float *grad1, *grad2;  // [tokens, width]; grad2 may be null
  const int32_t* ids;
  int64_t width, vocabulary;
  Dropout dropout;
};

// sum += the token's gradient in the lane's columns: column, column + 32, ... of `end`.
RFN_DEVICE void add_token(const Source& s, int64_t token, bool there, int64_t column, int64_t end,
                          float (&sum)[kItems]) {
  const int64_t place = token * s.width + column;
  const uint32_t kept = kept_items(s.dropout, place, 32);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (column + 32 * i >= end) continue;
    float gradient = s.grad1[place + 32 * i];
    if (s.grad2 != nullptr) gradient += s.grad2[place + 32 * i];
    sum[i] += there ? gradient * kept_multiplier(s.dropout, kept, i) : 0.0f;
  }
}

// Adds up rows of `parts` in columns [begin, begin + kTile) and adds that to `gradient`. By a block: warp w has rows w,
// w + kWarps, ...
RFN_DEVICE void add_parts(const float* parts, int64_t count, int64_t width, int64_t begin, float* gradient,
                          float (*sums)[kTile]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum[kItems] = {};
  for (int64_t part = warp; part < count; part += kWarps) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t column = begin + lane + 32 * i;
      if (column < width) sum[i] += parts[part * width + column];
    }
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) sums[warp][lane + 32 * i] = sum[i];
  __syncthreads();
  for (int64_t column = threadIdx.x; column < kTile && begin + column < width; column += kThreads) {
    float total = 0.0f;
#pragma unroll
    for (int other = 0; other < kWarps; ++other) total += sums[other][column];
    gradient[begin + column] += total;
  }
}

// ---- words --------------------------------------------------------------------------------------

struct Words {
  Source source;
  const int32_t* order;  // [tokens]: tokens by id; the ids that are none come last
  int64_t tokens;
  float* parts;  // [div_up(tokens, kPartTokens), width]
  float* gradient;
};

RFN_DEVICE int32_t id_at(const Words& w, int64_t place) { return w.source.ids[w.order[place]]; }

// A warp sums the runs of one part.
__global__ void __launch_bounds__(kThreads) word_gradient_kernel(Words w) {
  const Source& s = w.source;
  const int64_t part = warp_number(), begin = part * kPartTokens, column = first_column();
  if (begin >= w.tokens) return;  // a whole warp
  const int lane = threadIdx.x % 32;
  const int count = static_cast<int>(min(int64_t{kPartTokens}, w.tokens - begin));
  const auto add_to = [&](float* row, const float(&sum)[kItems], bool overwrite) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (column + 32 * i < s.width) row[column + 32 * i] = overwrite ? sum[i] : row[column + 32 * i] + sum[i];
    }
  };
  float sum[kItems] = {};
  int32_t run = id_at(w, begin);
  bool continued = begin > 0 && id_at(w, begin - 1) == run;
  const auto end_run = [&] {
    if (known(run, s.vocabulary))
      add_to(continued ? w.parts + part * s.width : w.gradient + run * s.width, sum, continued);
  };
  for (int batch = 0; batch < count; batch += 32) {
    // The lanes read what the next 32 tokens are, all at once.
    const bool in = batch + lane < count;
    const int32_t lane_token = in ? w.order[begin + batch + lane] : 0, lane_id = in ? s.ids[lane_token] : 0;
    for (int i = 0; i < min(32, count - batch); ++i) {
      const int32_t token = __shfl_sync(kFullWarp, lane_token, i), id = __shfl_sync(kFullWarp, lane_id, i);
      if (id != run) {
        end_run();
#pragma unroll
        for (int j = 0; j < kItems; ++j) sum[j] = 0.0f;
        run = id;
        continued = false;
      }
      add_token(s, token, known(id, s.vocabulary), column, s.width, sum);
    }
  }
  end_run();
}

// A block adds the parts of the run that goes on in its part, if that is the first part it goes on in.
__global__ void __launch_bounds__(kThreads) word_parts_kernel(Words w) {
  RFN_SHARED(sums, float[kWarps][kTile]);
  const int64_t part = int64_t{blockIdx.x} + 1, place = part * kPartTokens,
                parts = (w.tokens + kPartTokens - 1) / kPartTokens;
  const int32_t id = id_at(w, place);
  const bool first = id_at(w, place - 1) == id && (part == 1 || id_at(w, place - kPartTokens - 1) != id);
  if (!first || !known(id, w.source.vocabulary)) return;  // the whole block
  int64_t last = part, past = parts;                      // the run goes on in `last`, but not in `past`
  while (past - last > 1) {
    const int64_t middle = (last + past) / 2;
    (id_at(w, middle * kPartTokens) == id ? last : past) = middle;
  }
  const int64_t width = w.source.width;
  add_parts(w.parts + part * width, past - part, width, int64_t{blockIdx.y} * kTile, w.gradient + id * width, sums);
}

rfn_status word_gradient(rfn_stream& stream, const rfn_embedding& op, const Shape& s, const Source& source,
                         int32_t* order, void* sort, float* parts) {
  // An id that is none counts as `vocabulary`.
  RFN_TRY(counting_sort(stream, {1, s.tokens, s.vocabulary + 1, i32(op.ids), 1, 1, order, s.tokens, nullptr}, sort));
  const int64_t count = div_up(s.tokens, kPartTokens);
  const Words words{source, order, s.tokens, parts, f32(op.grad_word)};
  RFN_CUDA_TRY(stream, RFN_LAUNCH(word_gradient_kernel, grid_for(count, kWarps, s.width), kThreads, 0,
                                  native_stream(stream), words));
  if (count == 1) return RFN_OK;
  RFN_CUDA_TRY(stream, RFN_LAUNCH(word_parts_kernel, grid_for(count - 1, 1, s.width), kThreads, 0,
                                  native_stream(stream), words));
  return RFN_OK;
}

// ---- positions ----------------------------------------------------------------------------------

struct Positions {
  Source source;
  Axis axis;
  int64_t batch, length, first;  // first: position of token 0 of every example
  int64_t row_parts;             // parts of a row, at most
  float* parts;                  // [rows, row_parts, width]; more than one part
  float* gradient;
};

// Positions below p that read the row.
RFN_DEVICE int64_t positions_below(const Axis& axis, int64_t row, int64_t p) {
  const int64_t period = axis.inner * axis.rows;
  return p / period * axis.inner + min(max(p % period - row * axis.inner, int64_t{0}), axis.inner);
}

// A warp sums one part of a row.
__global__ void __launch_bounds__(kThreads, 2) position_gradient_kernel(Positions p) {
  const Axis& axis = p.axis;
  const int64_t part = warp_number() % p.row_parts, row = warp_number() / p.row_parts, column = first_column();
  if (row >= axis.rows) return;  // a whole warp
  const int64_t before = positions_below(axis, row, p.first),
                entries = (positions_below(axis, row, p.first + p.length) - before) * p.batch;
  const int64_t begin = part * kPartTokens, end = min(entries, begin + kPartTokens);
  if (begin >= end) return;
  // Entry x is example x % batch at the (before + x / batch)-th position of the row.
  int64_t example = begin % p.batch, nth = before + begin / p.batch, in_run = nth % axis.inner;
  int64_t position = nth / axis.inner * axis.inner * axis.rows + row * axis.inner + in_run;
  float sum[kItems] = {};
  for (int64_t x = begin; x < end; ++x) {
    const int64_t token = example * p.length + position - p.first;
    add_token(p.source, token, known(p.source.ids[token], p.source.vocabulary), axis.column + column,
              axis.column + axis.width, sum);
    if (++example < p.batch) continue;
    example = 0;
    ++position;
    if (++in_run < axis.inner) continue;
    in_run = 0;
    position += axis.inner * (axis.rows - 1);
  }
  const bool single = p.row_parts == 1;
  float* const to = single ? p.gradient + row * axis.width : p.parts + (row * p.row_parts + part) * axis.width;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (column + 32 * i < axis.width) to[column + 32 * i] = single ? to[column + 32 * i] + sum[i] : sum[i];
  }
}

__global__ void __launch_bounds__(kThreads) position_parts_kernel(Positions p) {
  RFN_SHARED(sums, float[kWarps][kTile]);
  const int64_t row = blockIdx.x, width = p.axis.width;
  const int64_t entries =
      (positions_below(p.axis, row, p.first + p.length) - positions_below(p.axis, row, p.first)) * p.batch;
  if (entries == 0) return;  // the whole block
  add_parts(p.parts + row * p.row_parts * width, (entries + kPartTokens - 1) / kPartTokens, width,
            int64_t{blockIdx.y} * kTile, p.gradient + row * width, sums);
}

// A table of learned positions takes part with the rows in use alone: as one axis of `length` rows, from position 0 on.
Axis gradient_axis(const rfn_embedding& op, const Shape& s, int i) {
  return op.positions == RFN_POSITIONS_LEARNED ? Axis{s.length, s.width, 0, 1} : s.axes[i];
}

// The tokens of a row of the axis are at most those of the row whose run lies best.
int64_t row_parts(const Shape& s, const Axis& axis) {
  const int64_t period = axis.inner * axis.rows;
  return div_up((s.length / period * axis.inner + std::min(s.length % period, axis.inner)) * s.batch, kPartTokens);
}

rfn_status position_gradient(rfn_stream& stream, const rfn_embedding& op, const Shape& s, Source source, int i,
                             float* parts) {
  const bool learned = op.positions == RFN_POSITIONS_LEARNED;
  const Axis axis = gradient_axis(op, s, i);
  source.dropout = s.positions;
  const Positions p{source,
                    axis,
                    s.batch,
                    s.length,
                    learned ? 0 : s.first_position,
                    row_parts(s, axis),
                    parts,
                    f32(op.grad_position[i]) + (learned ? s.first_position * s.width : 0)};
  RFN_CUDA_TRY(stream, RFN_LAUNCH(position_gradient_kernel, grid_for(axis.rows * p.row_parts, kWarps, axis.width),
                                  kThreads, 0, native_stream(stream), p));
  if (p.row_parts == 1) return RFN_OK;
  RFN_CUDA_TRY(stream, RFN_LAUNCH(position_parts_kernel, grid_for(axis.rows, 1, axis.width), kThreads, 0,
                                  native_stream(stream), p));
  return RFN_OK;
}

// ---- workspaces ---------------------------------------------------------------------------------

RangeCheck* forward_layout(Arena& arena) { return arena.take<RangeCheck>(1); }

struct BackwardLayout {
  int32_t* order;  // [tokens]
  char* sort;
  float* parts;  // of one table after the other
};
BackwardLayout backward_layout(Arena& arena, const rfn_embedding& op, const Shape& s) {
  int64_t parts = div_up(s.tokens, kPartTokens) * s.width;
  for (int i = 0; i < s.axis_count; ++i) {
    const Axis axis = gradient_axis(op, s, i);
    const int64_t of_row = row_parts(s, axis);
    if (of_row > 1) parts = std::max(parts, axis.rows * of_row * axis.width);
  }
  return {arena.take<int32_t>(s.tokens), arena.take<char>(counting_sort_bytes(1, s.tokens, s.vocabulary + 1)),
          arena.take<float>(parts)};
}

}  // namespace

rfn_status embedding_workspace(const rfn_context&, const rfn_embedding& op, int32_t pass, int64_t* bytes) {
  Arena arena;
  if (pass == RFN_PASS_FORWARD) {
    forward_layout(arena);
  } else {
    backward_layout(arena, op, shape_of(op));
  }
  return workspace_size(arena, "embedding", bytes);
}

rfn_status embedding_forward(rfn_stream& stream, const rfn_embedding& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  Arena arena(workspace, workspace_bytes);
  RangeCheck* const check = forward_layout(arena);
  Forward f{};
  f.shape = shape_of(op);
  f.ids = i32(op.ids);
  f.word = f32(op.word);
  for (int i = 0; i < f.shape.axis_count; ++i) f.position[i] = f32(op.position[i]);
  f.stream1 = f32(op.stream1);
  f.stream2 = f32(op.stream2);
  f.exact = op.residual == RFN_RESIDUAL_EXACT;
  const bool report = f.exact && op.range_report != nullptr;
  if (f.exact) f.grid = grid_of(op.grid_exponent);
  if (report) {
    f.check = check;
    RFN_TRY(reset_range_check(stream, check));
  }
  RFN_CUDA_TRY(stream, RFN_LAUNCH(embedding_forward_kernel, grid_for(f.shape.tokens, kWarps, f.shape.width), kThreads,
                                  0, native_stream(stream), f));
  return report ? report_range(stream, check, op.range_report, -1, 1) : RFN_OK;
}

rfn_status embedding_backward(rfn_stream& stream, const rfn_embedding& op, void* workspace, int64_t workspace_bytes) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const Shape s = shape_of(op);
  Arena arena(workspace, workspace_bytes);
  const BackwardLayout layout = backward_layout(arena, op, s);
  const Source source{f32(op.grad_stream1), f32(op.grad_stream2), i32(op.ids), s.width, s.vocabulary, s.words};
  RFN_TRY(word_gradient(stream, op, s, source, layout.order, layout.sort, layout.parts));
  for (int i = 0; i < s.axis_count; ++i) RFN_TRY(position_gradient(stream, op, s, source, i, layout.parts));
  return RFN_OK;
}

}  // namespace rfn::cuda
