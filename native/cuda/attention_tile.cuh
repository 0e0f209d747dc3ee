// The tile engine of all attention kinds on a CUDA device, forward and backward.
//
// A block owns kRows slots of the sorted order of one round (LSH), or of the sequence (local; full is one chunk that
// holds everything), and walks over the tokens that its rows can meet, kColumns at a time. Rows are the queries and
// columns the keys, or the other way round for the gradients of keys and values: then a block owns keys and walks over
// the queries whose windows hold them, so that every gradient row has one writer and no atomics are needed. Each warp
// has 16 rows; its accumulators have the layout of mma.sync's C fragment (device.cuh) in every precision: with r = lane
// / 4, c = lane % 4, value e of column tile n is row r + 8 (e / 2), column 8 n + 2 c + e % 2.
#pragma once
#include <type_traits>

#include "cuda/attention.h"
#include "cuda/device_math.cuh"

namespace rfn::cuda {

inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLn2 = 0.69314718055994531f;

// ---- the call, as kernels see it ----------------------------------------------------------------

struct TileCall {
  Attention attention;
  AttentionScratch scratch;
  AttentionWindow<int32_t> window;
  int32_t stored;                               // slots of a round that may hold a token
  int32_t chunk_columns;                        // slots of a chunk that may: what lies behind them is not walked
  int32_t round;                                // of this launch's rows
  int32_t first_query_round, last_query_round;  // key rows: columns are queries of rounds [first, last)
  int32_t tiles;                                // blocks of one sequence-head
  float scale;                                  // of the logits
  uint32_t threshold;                           // dropout: 0 = none
  float keep_inverse;
  bool aligned;  // every row starts on 16 bytes
};

// One (example, head).
struct SequenceHead {
  int64_t index, rows;  // in the scratch; example * T
  int64_t head;         // of the call
  int64_t global;       // example * all heads + head of the model
  int64_t log_sum_exp;  // of position 0 in a.log_sum_exp and a.grad_log_sum_exp
  const int32_t *sorted, *buckets, *slot_of;
  const uint8_t* mask;
};

RFN_DEVICE SequenceHead tile_sequence_head(const TileCall& c, int64_t index) {
  const int64_t example = index / c.attention.heads;
  SequenceHead p;
  p.index = index;
  p.rows = example * c.window.length;
  p.head = index % c.attention.heads;
  p.global = example * c.attention.all_heads + c.attention.first_head + p.head;
  p.log_sum_exp = (example * c.attention.log_sum_exp_heads + p.head) * c.window.length;
  p.sorted = c.window.lsh ? c.scratch.sorted + index * c.window.rounds * c.stored : nullptr;
  p.buckets = !c.window.lsh                    ? nullptr
              : c.attention.buckets != nullptr ? c.attention.buckets + p.global * c.window.rounds * c.window.length
                                               : c.scratch.buckets + index * c.window.rounds * c.window.length;
  p.slot_of = c.scratch.slot_of != nullptr ? c.scratch.slot_of + index * c.window.rounds * c.window.length : nullptr;
  p.mask = c.attention.mask != nullptr ? c.attention.mask + p.rows : nullptr;
  return p;
}

// This block's. Computed anew wherever it is used: it would take 20 registers through the products.
RFN_DEVICE SequenceHead block_sequence_head(const TileCall& c) {
  return tile_sequence_head(c, block_number() / static_cast<unsigned>(c.tiles));
}

template <class T>
RFN_DEVICE T* head_rows(const TileCall& c, const SequenceHead& p, T* base, int64_t stride) {
  return base + p.rows * stride + p.head * c.attention.head_size;
}

// ---- tokens -------------------------------------------------------------------------------------

// A token of a tile, the fields of a WindowToken: x position, or -1 (none), or -2 - position (it takes no part, but has
// a row in the outputs); y slot; z bucket; w chunk.
using Token = int4;
inline constexpr int32_t kNone = -1;

RFN_DEVICE int32_t row_position(int32_t x) { return x >= 0 ? x : -2 - x; }  // -1 for none

RFN_DEVICE Token token_at(const TileCall& c, const SequenceHead& p, const WindowPlace<int32_t>& place, int32_t chunk,
                          int32_t x) {
  Token token = {kNone, chunk * c.window.chunk + x, 0, chunk};
  const int32_t slot = place.chunk * c.window.chunk + x;
  if (place.round < 0 || slot >= c.stored) return token;
  const int32_t position = c.window.lsh ? p.sorted[static_cast<int64_t>(place.round) * c.stored + slot] : slot;
  if (position < 0 || position >= c.window.length) return token;
  token.x = p.mask != nullptr && p.mask[position] == 0 ? -2 - position : position;
  if (c.window.same_bucket) {
    token.z =
        place.round == c.round ? p.buckets[static_cast<int64_t>(c.round) * c.window.length + position] : kOtherRound;
  }
  return token;
}

RFN_DEVICE WindowToken<int32_t> window_token(const Token& token) { return {token.x, token.y, token.z, token.w}; }

// Base-2 logarithm of the rounds in which a query's window holds a key.
RFN_DEVICE float log2_count(int32_t rounds_seen) { return log2f(countable(rounds_seen)); }

// ---- operands -----------------------------------------------------------------------------------

// How a precision holds its operands in shared memory. Rows are padded by 16 bytes: eight rows then start in different
// groups of four banks, which makes ldmatrix, 16-byte row reads and the strided reads of the tf32 fragments free of
// bank conflicts.
template <int precision>
struct Operand {
  using Element = uint16_t;
  static constexpr int kPad = 8;
  static constexpr bool kStaged =
      true;  // float32 rows land in a buffer of their own, so that the next ones travel during the products
};
template <>
struct Operand<RFN_PRECISION_F32> {
  using Element = float;
  static constexpr int kPad = 4;
  static constexpr bool kStaged = false;  // converted in place
};
template <>
struct Operand<RFN_PRECISION_TF32> : Operand<RFN_PRECISION_F32> {};

template <int precision>
RFN_DEVICE uint32_t pack(float low, float high) {
  if constexpr (precision == RFN_PRECISION_BF16)
    return pack_bf16(low, high);
  else
    return pack_f16(low, high);
}

constexpr int kMostColumns = 64;  // of a step of any walk

// Sizes of a tile. Shared memory stays under what every capability that runs the kernel grants a block: 64 KB on 7.5
// (float32), 99 KB on 8.6 and 8.9.
template <int precision, int D, bool kBackward>
struct Tile {
  using Element = typename Operand<precision>::Element;
  static constexpr bool kFloat32 = precision == RFN_PRECISION_F32;
  static constexpr bool kStaged = Operand<precision>::kStaged;
  static constexpr int kWarps = kFloat32 && D == 128 ? 2 : 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kBlocks = !kFloat32 && D <= 64 ? 3 : 2;  // of a multiprocessor at least, as far as registers go
  static constexpr int kColumns = D == 128 ? (kBackward ? 16 : 32) : kBackward && D == 64 ? 32 : 64;
  static_assert(kMostColumns % kColumns == 0, "chunks begin where steps begin");
  static constexpr int kStride = D + Operand<precision>::kPad;  // elements of an operand row
  static constexpr int kRaw = D + 4;                            // floats of a staged row
  static constexpr int kRowTiles = kBackward ? 2 : 1;
  static constexpr int kRowBytes = kRows * kStride * static_cast<int>(sizeof(Element));
  static constexpr int kColumnBytes = kColumns * kStride * static_cast<int>(sizeof(Element));
  static constexpr int kStageBytes = kStaged ? 2 * kColumns * kRaw * 4 : 0;
  static constexpr int kCountBytes = kRows * kColumns;  // duplicate counts
  static constexpr int kBytes = kRowTiles * kRowBytes + 2 * kColumnBytes + kStageBytes;
  static constexpr int kPiece =
      kStaged && 2 * kColumns < kRows ? 2 * kColumns : kRows;  // rows that pass through the stage at a time
  static_assert(kRows % kPiece == 0 && kPiece % (kThreads / 8) == 0 && kColumns % (kThreads / 8) == 0,
                "make_operand's eight lanes a row");

  // Places in dynamic shared memory.
  static constexpr int kColumnTile0 = kRowTiles * kRowBytes,
                       kColumnTile1 = kColumnTile0 + kColumnBytes;  // row tile i: i * kRowBytes
  static constexpr int kStage0 = kStaged ? kColumnTile1 + kColumnBytes : kColumnTile0;
  static constexpr int kStage1 = kStaged ? kStage0 + kColumns * kRaw * 4 : kColumnTile1;
  static constexpr int kCounts = kBytes;
};

// Starts the copies of `count` rows of head_size floats, zero-padded to D, to rows of D + 4 floats. A wait and a
// barrier must follow.
template <int D>
RFN_DEVICE void load_rows(float* to, const Token* tokens, int count, const float* base, int64_t stride, int head_size,
                          bool aligned) {
  for (int i = static_cast<int>(threadIdx.x); i < count * (D / 4); i += static_cast<int>(blockDim.x)) {
    const int row = i / (D / 4), d = i % (D / 4) * 4, position = tokens[row].x;
    float* const place = to + row * (D + 4) + d;
    if (position < 0 || d >= head_size) {
      *reinterpret_cast<float4*>(place) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      continue;
    }
    const float* const from = base + position * stride + d;
    if (aligned) {
      cp_async<16>(place, from);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (d + j < head_size)
        cp_async<4>(place + j, from + j);
      else
        place[j] = 0.0f;
    }
  }
}

// A tensor of the call: its rows for this block's head.
struct Source {
  const float* base;  // at example 0, head 0 of the call
  int64_t stride;
};
template <int D>
RFN_DEVICE void load_rows(const TileCall& c, float* to, const Token* tokens, int count, const Source& source) {
  load_rows<D>(to, tokens, count, head_rows(c, block_sequence_head(c), source.base, source.stride), source.stride,
               static_cast<int>(c.attention.head_size), c.aligned);
}

// Turns rows of float32 into operands: times `factor`, or with a key norm divided by the row's norm, whose inverse goes
// to `inverse` when wanted. Eight lanes have one row; count is a multiple of the rows that the block has at a time.
template <int precision, int D>
RFN_DEVICE void make_operand(const float* from, typename Operand<precision>::Element* to, int count, int32_t key_norm,
                             float factor, int head_size, float* inverse) {
  if (precision == RFN_PRECISION_F32 && key_norm == RFN_KEY_NORM_NONE && factor == 1.0f) return;  // in place already
  const int lane = static_cast<int>(threadIdx.x) % 8;
  for (int row = static_cast<int>(threadIdx.x) / 8; row < count; row += static_cast<int>(blockDim.x) / 8) {
    float4 x[D / 32];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
      x[i] = *reinterpret_cast<const float4*>(from + row * (D + 4) + i * 32 + lane * 4);
      squares = fmaf(x[i].x, x[i].x, fmaf(x[i].y, x[i].y, fmaf(x[i].z, x[i].z, fmaf(x[i].w, x[i].w, squares))));
    }
    float times = factor;
    if (key_norm != RFN_KEY_NORM_NONE) {
      squares = group_sum<8>(squares);
      times = key_scale(squares, head_size, key_norm);
      if (inverse != nullptr && lane == 0) inverse[row] = times;
    }
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
      const float4 y = make_float4(x[i].x * times, x[i].y * times, x[i].z * times, x[i].w * times);
      typename Operand<precision>::Element* const place = to + row * (D + Operand<precision>::kPad) + i * 32 + lane * 4;
      if constexpr (precision == RFN_PRECISION_F32) {
        *reinterpret_cast<float4*>(place) = y;
      } else if constexpr (precision == RFN_PRECISION_TF32) {
        *reinterpret_cast<uint4*>(place) =
            make_uint4(round_to_tf32(y.x), round_to_tf32(y.y), round_to_tf32(y.z), round_to_tf32(y.w));
      } else {
        *reinterpret_cast<uint2*>(place) = make_uint2(pack<precision>(y.x, y.y), pack<precision>(y.z, y.w));
      }
    }
  }
}

// ---- products -----------------------------------------------------------------------------------

// acc[16, N] += A[16, D] B[N, D]^T; a: the warp's first row.
template <int precision, int D, int N>
RFN_DEVICE void multiply_transposed(float (&acc)[N / 8][4], const typename Operand<precision>::Element* a,
                                    const typename Operand<precision>::Element* b) {
  constexpr int kStride = D + Operand<precision>::kPad;
  const int lane = static_cast<int>(threadIdx.x) % 32, r = lane / 4, c = lane % 4;
  if constexpr (precision == RFN_PRECISION_F32) {
#pragma unroll 2
    for (int k = 0; k < D; k += 4) {
      const float4 a0 = *reinterpret_cast<const float4*>(a + r * kStride + k),
                   a1 = *reinterpret_cast<const float4*>(a + (r + 8) * kStride + k);
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float4 y = *reinterpret_cast<const float4*>(b + (8 * n + 2 * c + e) * kStride + k);
          acc[n][e] = fmaf(a0.w, y.w, fmaf(a0.z, y.z, fmaf(a0.y, y.y, fmaf(a0.x, y.x, acc[n][e]))));
          acc[n][2 + e] = fmaf(a1.w, y.w, fmaf(a1.z, y.z, fmaf(a1.y, y.y, fmaf(a1.x, y.x, acc[n][2 + e]))));
        }
      }
    }
  } else if constexpr (precision == RFN_PRECISION_TF32) {
#pragma unroll 2
    for (int k = 0; k < D; k += 8) {
      const uint32_t left[4] = {__float_as_uint(a[r * kStride + k + c]), __float_as_uint(a[(r + 8) * kStride + k + c]),
                                __float_as_uint(a[r * kStride + k + c + 4]),
                                __float_as_uint(a[(r + 8) * kStride + k + c + 4])};
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
        const uint32_t right[2] = {__float_as_uint(b[(8 * n + r) * kStride + k + c]),
                                   __float_as_uint(b[(8 * n + r) * kStride + k + c + 4])};
        mma_m16n8k8_tf32(acc[n], left, right);
      }
    }
  } else {
    const auto* const a_row = a + lane % 16 * kStride + lane / 16 * 8;  // matrices: rows 0, rows 8, then k + 8
    const auto* const b_row =
        b + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;  // columns 0: k, k + 8; columns 8: k, k + 8
    [[maybe_unused]] constexpr int kUnroll =
        D == 128 ? 2 : D / 16;  // at 128 the loads of more steps would not fit the registers
#pragma unroll kUnroll
    for (int k = 0; k < D; k += 16) {
      uint32_t left[4];
      ldmatrix_x4(left, a_row + k);
#pragma unroll
      for (int n = 0; n < N / 8; n += 2) {
        uint32_t right[4];
        ldmatrix_x4(right, b_row + n * 8 * kStride + k);
        const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
        if constexpr (precision == RFN_PRECISION_BF16) {
          mma_m16n8k16_bf16(acc[n], left, first);
          mma_m16n8k16_bf16(acc[n + 1], left, second);
        } else {
          mma_m16n8k16_f16(acc[n], left, first);
          mma_m16n8k16_f16(acc[n + 1], left, second);
        }
      }
    }
  }
}

// out[16, D] += P[16, N] B[N, D]; P in accumulator layout.
template <int precision, int D, int N>
RFN_DEVICE void multiply(float (&out)[D / 8][4], const float (&p)[N / 8][4],
                         const typename Operand<precision>::Element* b) {
  constexpr int kStride = D + Operand<precision>::kPad;
  const int lane = static_cast<int>(threadIdx.x) % 32, r = lane / 4, c = lane % 4;
  if constexpr (precision == RFN_PRECISION_F32) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int owner = (lane & ~3) | (j / 2);  // the lane of the same rows that has column j
        const float p0 = __shfl_sync(kFullWarp, p[n][j % 2], owner),
                    p1 = __shfl_sync(kFullWarp, p[n][2 + j % 2], owner);
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
          const float2 y = *reinterpret_cast<const float2*>(b + (8 * n + j) * kStride + 8 * d + 2 * c);
          out[d][0] = fmaf(p0, y.x, out[d][0]);
          out[d][1] = fmaf(p0, y.y, out[d][1]);
          out[d][2] = fmaf(p1, y.x, out[d][2]);
          out[d][3] = fmaf(p1, y.y, out[d][3]);
        }
      }
    }
  } else if constexpr (precision == RFN_PRECISION_TF32) {
    // The order of k in a sum is free: A's k = c takes column 2c of P and k = c + 4 column 2c + 1, which this lane has,
    // and B's rows follow.
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
      const uint32_t left[4] = {round_to_tf32(p[n][0]), round_to_tf32(p[n][2]), round_to_tf32(p[n][1]),
                                round_to_tf32(p[n][3])};
#pragma unroll
      for (int d = 0; d < D / 8; ++d) {
        const uint32_t right[2] = {__float_as_uint(b[(8 * n + 2 * c) * kStride + 8 * d + r]),
                                   __float_as_uint(b[(8 * n + 2 * c + 1) * kStride + 8 * d + r])};
        mma_m16n8k8_tf32(out[d], left, right);
      }
    }
  } else {
    const auto* const b_row = b + lane % 16 * kStride + lane / 16 * 8;  // transposed matrices: k, k + 8; then d + 8
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
      const uint32_t left[4] = {pack<precision>(p[n][0], p[n][1]), pack<precision>(p[n][2], p[n][3]),
                                pack<precision>(p[n + 1][0], p[n + 1][1]), pack<precision>(p[n + 1][2], p[n + 1][3])};
#pragma unroll
      for (int d = 0; d < D / 8; d += 2) {
        uint32_t right[4];
        ldmatrix_x4_trans(right, b_row + n * 8 * kStride + d * 8);
        const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
        if constexpr (precision == RFN_PRECISION_BF16) {
          mma_m16n8k16_bf16(out[d], left, first);
          mma_m16n8k16_bf16(out[d + 1], left, second);
        } else {
          mma_m16n8k16_f16(out[d], left, first);
          mma_m16n8k16_f16(out[d + 1], left, second);
        }
      }
    }
  }
}

// ---- the walk -----------------------------------------------------------------------------------

// Columns [begin, end) of a tile: chunk first_chunk + w / chunk_columns, place w % chunk_columns.
struct Walk {
  int32_t first_chunk, begin, end;
};

// kKeys: rows are keys, columns queries.
template <bool kKeys, int kRows>
RFN_DEVICE Walk walk_of(const TileCall& c, int32_t first_slot) {
  const int32_t last_slot = min(first_slot + kRows, c.stored) - 1, first = first_slot / c.window.chunk,
                last = last_slot / c.window.chunk;
  const int32_t behind = kKeys ? c.window.after : c.window.before, ahead = kKeys ? c.window.before : c.window.after;
  Walk walk = {first - behind, 0, (last - first + 1 + behind + ahead) * c.chunk_columns};
  if (c.window.full && c.window.causal) {  // one chunk: slots are positions
    if (kKeys)
      walk.begin = first_slot;
    else
      walk.end = last_slot + 1;
  }
  return walk;
}

// Per-column numbers that only key rows need: of the query.
struct QueryNumbers {
  float log_sum_exp, delta;  // log_sum_exp in base 2
  uint64_t dropout_row;
};

// Loads the tokens of kColumns columns from `start` on; steps on while no row can see any of them. Returns where it
// stopped: walk.end or later when nothing is left. `edge`: the last position among query rows, the first among key
// rows. Ends with a barrier if it loaded anything.
template <bool kKeys, int kColumns>
RFN_DEVICE int32_t next_columns(const TileCall& c, const Walk& walk, int32_t start, int32_t edge, Token* tokens,
                                QueryNumbers* numbers) {
  const SequenceHead p = block_sequence_head(c);
  for (; start < walk.end; start += kColumns) {
    bool useful = false;
    if (static_cast<int>(threadIdx.x) < kColumns) {
      const int32_t column = start + static_cast<int32_t>(threadIdx.x);
      Token token = {kNone, 0, 0, 0};
      QueryNumbers query = {0.0f, 0.0f, 0};
      if (column < walk.end) {
        const int32_t chunk = walk.first_chunk + column / c.chunk_columns, x = column % c.chunk_columns;
        const WindowPlace<int32_t> place = c.window.place(c.round, chunk);
        token = token_at(c, p, place, chunk, x);
        if (kKeys && (place.round < c.first_query_round || place.round >= c.last_query_round)) token.x = kNone;
        if (kKeys && token.x >= 0) {
          const float log_sum_exp = c.attention.log_sum_exp[p.log_sum_exp + token.x];
          if (log_sum_exp == -INFINITY)
            token.x = kNone;  // it saw nobody
          else
            query = {log_sum_exp * kLog2E, c.scratch.delta[p.index * c.window.length + token.x],
                     c.window.dropout_row(p.global, place.round, place.chunk * c.window.chunk + x, token.x)};
        }
        useful = token.x >= 0 && (!c.window.causal || (kKeys ? token.x >= edge : token.x <= edge));
      }
      tokens[threadIdx.x] = token;
      if (kKeys) numbers[threadIdx.x] = query;
    }
    if (__syncthreads_or(useful)) break;
  }
  return start;
}

// What the 16 x N pairs of a warp may do, one bit each; lane i < 16 has row i's.
template <int N>
struct PairBits {
  static constexpr int kWords = (N + 31) / 32;
  uint32_t visible[kWords];
  uint32_t kept[kWords];  // by dropout
};

// rows: the warp's first; row_numbers: dropout rows of query rows. counts: [16, N] duplicate counts of the warp,
// written where they are needed.
template <bool kKeys, int N>
RFN_DEVICE PairBits<N> pair_bits(const TileCall& c, const Token* rows, const uint64_t* row_dropout,
                                 const Token* columns, const QueryNumbers* numbers, uint8_t* counts) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  PairBits<N> bits;
  SequenceHead p = {};
  if (c.window.log_counts) p = block_sequence_head(c);
#pragma unroll
  for (int w = 0; w < PairBits<N>::kWords; ++w) {
    bits.visible[w] = 0;
    bits.kept[w] = 0xffffffffu;
    const int column = 32 * w + lane;
    const Token mine = column < N ? columns[column] : Token{kNone, 0, 0, 0};
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {
      const Token row = rows[i];
      const Token &query = kKeys ? mine : row, &key = kKeys ? row : mine;
      const bool yes = c.window.sees(window_token(query), window_token(key));
      const uint32_t visible_row = __ballot_sync(kFullWarp, yes);
      if (lane == i) bits.visible[w] = visible_row;
      if (c.threshold != 0) {
        bool keep = false;
        if (yes) {
          const uint64_t element = (kKeys ? numbers[column].dropout_row : row_dropout[i]) +
                                   c.window.dropout_column(window_token(query), window_token(key));
          keep = (philox_word(c.attention.dropout, element) >> 8) >= c.threshold;
        }
        const uint32_t kept_row = __ballot_sync(kFullWarp, keep);
        if (lane == i) bits.kept[w] = kept_row;
      }
      if (c.window.log_counts && yes)
        counts[i * N + column] = static_cast<uint8_t>(c.window.rounds_seen(p.slot_of, p.buckets, query.x, key.x));
    }
  }
  if (c.window.log_counts) __syncwarp();
  return bits;
}

// Whether any of the warp's pairs is visible.
template <int N>
RFN_DEVICE bool any_visible(const PairBits<N>& bits) {
  bool any = false;
#pragma unroll
  for (int w = 0; w < PairBits<N>::kWords; ++w) any = any || bits.visible[w] != 0;
  return __any_sync(kFullWarp, any) != 0;
}

// The bits of a lane's two rows.
template <int N>
struct RowBits {
  uint32_t visible[2][PairBits<N>::kWords], kept[2][PairBits<N>::kWords];
};
template <int N>
RFN_DEVICE RowBits<N> row_bits(const TileCall& c, const PairBits<N>& bits) {
  const int r = static_cast<int>(threadIdx.x) % 32 / 4;
  RowBits<N> rows;
#pragma unroll
  for (int w = 0; w < PairBits<N>::kWords; ++w) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rows.visible[h][w] = __shfl_sync(kFullWarp, bits.visible[w], r + 8 * h);
      rows.kept[h][w] = c.threshold != 0 ? __shfl_sync(kFullWarp, bits.kept[w], r + 8 * h) : 0xffffffffu;
    }
  }
  return rows;
}

// ---- blocks -------------------------------------------------------------------------------------

// First slot of this block.
template <int kRows, bool kLastFirst>
RFN_DEVICE int32_t block_slot(const TileCall& c) {
  const int32_t tile = static_cast<int32_t>(block_number() % static_cast<unsigned>(c.tiles));
  return (kLastFirst && c.window.full ? c.tiles - 1 - tile : tile) *
         kRows;  // the longest walks of causal full attention begin first
}

// Loads the tokens of the block's rows; returns the edge that next_columns asks for. dropout_rows for query rows only.
// Ends with a barrier.
template <bool kKeys, int kRows>
RFN_DEVICE int32_t load_row_tokens(const TileCall& c, int32_t first_slot, Token* rows, uint64_t* dropout_rows,
                                   int32_t* edge) {
  const SequenceHead p = block_sequence_head(c);
  if (threadIdx.x == 0) *edge = kKeys ? c.window.length : -1;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < kRows) {
    const int32_t slot = first_slot + static_cast<int32_t>(threadIdx.x), chunk = slot / c.window.chunk,
                  x = slot % c.window.chunk;
    const Token token = token_at(c, p, {c.round, chunk}, chunk, x);
    rows[threadIdx.x] = token;
    if (!kKeys && token.x >= 0) dropout_rows[threadIdx.x] = c.window.dropout_row(p.global, c.round, slot, token.x);
    if (token.x >= 0) {
      if (kKeys)
        atomicMin(edge, token.x);
      else
        atomicMax(edge, token.x);
    }
  }
  __syncthreads();
  return *edge;
}

// Row tile i: rows through the stage, a piece at a time, or in place. Ends with a barrier.
template <class Sizes, int precision, int D>
RFN_DEVICE void load_row_tile(const TileCall& c, unsigned char* memory, int i, const Token* rows, const Source& source,
                              int32_t key_norm, float factor, float* inverse) {
#pragma unroll 1
  for (int first = 0; first < Sizes::kRows; first += Sizes::kPiece) {
    auto* const tile =
        reinterpret_cast<typename Sizes::Element*>(memory + i * Sizes::kRowBytes) + first * Sizes::kStride;
    float* const raw =
        Sizes::kStaged ? reinterpret_cast<float*>(memory + Sizes::kStage0) : reinterpret_cast<float*>(tile);
    load_rows<D>(c, raw, rows + first, Sizes::kPiece, source);
    cp_async_commit();
    cp_async_wait_all();
    __syncthreads();
    make_operand<precision, D>(raw, tile, Sizes::kPiece, key_norm, factor, static_cast<int>(c.attention.head_size),
                               inverse == nullptr ? nullptr : inverse + first);
    __syncthreads();
  }
}

// ---- host side ----------------------------------------------------------------------------------

// Without `tiles`, which launch_tiles fills in.
TileCall tile_call(const Attention& a, const AttentionScratch& s, int64_t round);

// Launches one block for every kRows slots of every (example, head).
template <class Sizes, class Kernel, class... Arguments>
rfn_status launch_tiles(rfn_stream& stream, Kernel kernel, TileCall call, Arguments... arguments) {
  call.tiles = static_cast<int32_t>(div_up(call.stored, Sizes::kRows));
  const int64_t blocks = call.attention.sequence_heads() * call.tiles;
  if (blocks > 0x7fffffff) {
    return fail(RFN_UNSUPPORTED, "attention: expected at most 2147483647 tiles over all heads and examples, got %lld",
                static_cast<long long>(blocks));
  }
  const int bytes = Sizes::kBytes + (call.window.log_counts ? Sizes::kCountBytes : 0);
  RFN_CUDA_TRY(stream, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            Sizes::kBytes + Sizes::kCountBytes));
  RFN_CUDA_TRY(stream, RFN_LAUNCH(kernel, static_cast<unsigned>(blocks), Sizes::kThreads, bytes, native_stream(stream),
                                  call, arguments...));
  return RFN_OK;
}

// Calls run(precision, D) for the context's precision and the smallest D that holds the head size, as integral
// constants.
template <class Run>
rfn_status with_tile(const rfn_context& context, int64_t head_size, const Run& run) {
  const auto with_size = [&](auto precision) {
    if (head_size <= 32) return run(precision, std::integral_constant<int, 32>());
    if (head_size <= 64) return run(precision, std::integral_constant<int, 64>());
    return run(precision, std::integral_constant<int, 128>());
  };
  switch (context.precision) {
    case RFN_PRECISION_TF32:
      return with_size(std::integral_constant<int, RFN_PRECISION_TF32>());
    case RFN_PRECISION_BF16:
      return with_size(std::integral_constant<int, RFN_PRECISION_BF16>());
    case RFN_PRECISION_F16:
      return with_size(std::integral_constant<int, RFN_PRECISION_F16>());
    default:
      return with_size(std::integral_constant<int, RFN_PRECISION_F32>());
  }
}

}  // namespace rfn::cuda
