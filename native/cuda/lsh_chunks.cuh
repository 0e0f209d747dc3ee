// What the forward and backward kernels of lsh_chunks.h share: the call, swizzled tiles of bf16 rows, and masks.
//
// A block walks along a segment of chunks of one round of one sequence-head. A chunk's rows serve as queries and own
// keys, then as the keys of the chunk behind. Shared projections mean q_i = n_i k_i with the norm n_i, so that the
// base-2 logit s_ij = factor_i k_i . k_j needs one number per row, and |s_ij| <= factor_i |k|^2 is known before any
// product.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/attention.h"
#include "cuda/attention_tile.cuh"
#include "cuda/lsh_chunks.h"

// The kernels are empty for devices below 8.0, which do not have these instructions: nothing here is used by them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#pragma nv_diag_suppress 177
#endif

namespace rfn::cuda {

// ---- the call -----------------------------------------------------------------------------------

struct ChunkCall {
  ChunkScratch scratch;
  const int32_t* sorted;  // [S,R,stored] position at a slot
  const uint8_t* mask;    // [B,T] or null
  int64_t heads;          // of an example
  int32_t length, stored;
  int32_t chunks, rounds;     // of a round; of the call
  int32_t segment, segments;  // chunks of a block; blocks of a round
  float largest_square;       // of a key's length; infinite when it is not known
  bool ring;                  // before a round's first chunk comes the last chunk of the round before
};

// A key's code in a tile: its position, or this when there is no key (padding, masked tokens, behind the last slot).
inline constexpr int32_t kNoToken = 0x7fffffff;

// Where a block is and where its rows are. It lies in shared memory: a load where a pointer is needed is cheaper than
// registers through the products or 64-bit arithmetic.
struct ChunkBlock {
  int32_t round, first, last;  // chunks [first, last) of the round
  const uint16_t *keys, *values, *grad_out;
  const float* factors;
  const float4* queries;
  const int32_t* sorted;  // of the round's slot 0; the other rounds of the sequence-head lie before and behind
  const uint32_t* runs;
  const uint8_t* mask;
  uint16_t *round_out, *round_grad_v;  // of the round's position 0
  float2* round_sums;
};

// Thread 0 fills it in; the blocks that run at the same time share a sequence-head, whose rows stay in the cache.
template <int D>
RFN_DEVICE void find_block(const ChunkCall& c, ChunkBlock& block) {
  if (threadIdx.x == 0) {
    const int64_t number = block_number() / static_cast<unsigned>(c.segments);  // of the sequence-head and round
    const int64_t head = number / c.rounds, rows = head * c.length, round_rows = number * c.length;
    block.round = static_cast<int32_t>(number - head * c.rounds);
    block.first = static_cast<int32_t>(block_number() % static_cast<unsigned>(c.segments)) * c.segment;
    block.last = min(block.first + c.segment, c.chunks);
    block.keys = c.scratch.keys + rows * D;
    block.values = c.scratch.values + rows * D;
    block.grad_out = c.scratch.grad_out + rows * D;
    block.factors = c.scratch.factors + rows;
    block.queries = c.scratch.queries + rows;
    block.sorted = c.sorted + number * c.stored;
    block.runs = c.scratch.runs + number * c.stored;
    block.mask = c.mask == nullptr ? nullptr : c.mask + head / c.heads * c.length;
    block.round_out = c.scratch.round_out + round_rows * D;
    block.round_grad_v = c.scratch.round_grad_v + round_rows * D;
    block.round_sums = c.scratch.round_sums + round_rows;
  }
  __syncthreads();
}

// The code at row `row` of a chunk counted from the round's first: -1 is the last of the round before and `chunks` the
// first of the round behind, on a ring.
RFN_DEVICE int32_t chunk_code(const ChunkCall& c, const ChunkBlock& block, int32_t chunk, int32_t row) {
  int32_t round = 0;  // from the block's own
  if (chunk < 0 || chunk >= c.chunks) {
    if (!c.ring || chunk > c.chunks) return kNoToken;
    round = chunk < 0 ? (block.round == 0 ? c.rounds - 1 : -1) : (block.round == c.rounds - 1 ? 1 - c.rounds : 1);
    chunk = chunk < 0 ? c.chunks - 1 : 0;
  }
  const int32_t slot = chunk * kChunkSlots + row;
  if (slot >= c.stored) return kNoToken;
  const int32_t position = block.sorted[static_cast<int64_t>(round) * c.stored + slot];
  if (position < 0 || position >= c.length) return kNoToken;
  return block.mask != nullptr && block.mask[position] == 0 ? kNoToken : position;
}

// ---- registers ----------------------------------------------------------------------------------

#if defined(__CUDACC__)
// The thread's number read anew, so that rows and places of copies are not kept through the products.
RFN_DEVICE unsigned this_thread() {
  unsigned x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}
// base + index * bytes in one instruction. The compiler would share index * bytes between bases and add in 64 bits.
template <class T>
RFN_DEVICE T* at_row(T* base, int32_t index, int32_t bytes) {
  T* p;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(p) : "r"(index), "r"(bytes), "l"(base));
  return p;
}
// An offset in shared memory to be kept as it is, so that constants are added by the instruction that uses it.
RFN_DEVICE unsigned opaque(unsigned x) {
  asm("" : "+r"(x));
  return x;
}
RFN_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#else
RFN_DEVICE unsigned this_thread() { return threadIdx.x; }
template <class T>
RFN_DEVICE T* at_row(T* base, int32_t index, int32_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + static_cast<int64_t>(index) * bytes);
}
RFN_DEVICE unsigned opaque(unsigned x) { return x; }
RFN_DEVICE float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
#endif

// 16 bytes of bf16 as numbers, and back.
RFN_DEVICE void unpack_bf16(const uint16_t* from, float (&x)[8]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int e = 0; e < 8; ++e) x[e] = __uint_as_float(e % 2 == 0 ? words[e / 2] << 16 : words[e / 2] & 0xffff0000u);
}
RFN_DEVICE uint4 pack_bf16(const float (&x)[8]) {
  return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

// ---- the caller's rows, by D / 8 lanes each -------------------------------------------------------

// A tensor of the call, of float32.
template <class T>
struct CallerRows {
  T* data;  // at example 0, token 0, head 0 of the call
  int64_t stride;
  bool aligned;  // every head's row can be read 16 bytes at a time
};
template <class T>
CallerRows<T> caller_rows(T* data, int64_t stride, int64_t head_size) {
  return {data, stride, reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 4 == 0 && head_size % 4 == 0};
}

// Sizes of the call, and what its rows are asked for.
struct RowSizes {
  int64_t rows, heads, log_sum_exp_heads;  // rows: S T
  int32_t length, rounds, head_size;
  const uint8_t* mask;  // [B,T] or null
};
inline RowSizes row_sizes(const Attention& a) {
  return {a.sequence_heads() * a.length,
          a.heads,
          a.log_sum_exp_heads,
          static_cast<int32_t>(a.length),
          static_cast<int32_t>(a.rounds()),
          static_cast<int32_t>(a.head_size),
          a.mask};
}

constexpr int kRowThreads = 256;  // of a block of the kernels that go through rows

// The row of the calling thread and its place in the tensors.
struct RowOf {
  int64_t row, sequence_head, position;
  int64_t token, column;  // example * T + position; head * head size
  int64_t log_sum_exp;
};
RFN_DEVICE RowOf row_of(const RowSizes& sizes, int64_t row) {
  RowOf at;
  at.row = row;
  at.sequence_head = row / sizes.length;
  at.position = row - at.sequence_head * sizes.length;
  const int64_t example = at.sequence_head / sizes.heads, head = at.sequence_head % sizes.heads;
  at.token = example * sizes.length + at.position;
  at.column = head * sizes.head_size;
  at.log_sum_exp = (example * sizes.log_sum_exp_heads + head) * sizes.length + at.position;
  return at;
}
template <int D>
RFN_DEVICE int64_t thread_row() {
  return (static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x) / (D / 8);
}
RFN_DEVICE int64_t row_of_round(const RowSizes& sizes, const RowOf& at, int32_t round) {
  return (at.sequence_head * sizes.rounds + round) * sizes.length + at.position;
}

// Elements d .. d + 7 of a row; zeros behind its end.
template <class T>
RFN_DEVICE void load_unit(const CallerRows<T>& rows, const RowSizes& sizes, const RowOf& at, int d, float (&x)[8]) {
  const float* const row = rows.data + at.token * rows.stride + at.column;
  if (rows.aligned && d + 8 <= sizes.head_size) {
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + d + e);
      x[e] = four.x;
      x[e + 1] = four.y;
      x[e + 2] = four.z;
      x[e + 3] = four.w;
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) x[e] = d + e < sizes.head_size ? row[d + e] : 0.0f;
}
RFN_DEVICE void store_unit(const CallerRows<float>& rows, const RowSizes& sizes, const RowOf& at, int d,
                           const float (&x)[8]) {
  float* const row = rows.data + at.token * rows.stride + at.column;
  if (rows.aligned && d + 8 <= sizes.head_size) {
#pragma unroll
    for (int e = 0; e < 8; e += 4)
      *reinterpret_cast<float4*>(row + d + e) = make_float4(x[e], x[e + 1], x[e + 2], x[e + 3]);
    return;
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (d + e < sizes.head_size) row[d + e] = x[e];
  }
}

// ---- tiles of 64 rows of D bf16 -------------------------------------------------------------------

// Rows are not padded. The 16-byte units of a row are exchanged by its number, so that eight rows of one unit lie in
// eight different groups of four banks; a unit's place is an exclusive or, and for ldmatrix a lane needs one offset
// for every 16 columns, whatever the row of the tile.
template <int D>
struct TileRows {
  static constexpr int kUnits = D / 8;  // of a row
  static constexpr int kRowBytes = 2 * D;
  static constexpr int kBytes = kChunkSlots * kRowBytes;
  static RFN_HOST_DEVICE unsigned exchange(unsigned row) { return D == 32 ? row / 2 % 4 : row % 8; }
  static RFN_HOST_DEVICE unsigned place(unsigned row, unsigned unit) {
    return row * kRowBytes + (unit ^ exchange(row)) * 16;
  }
};

// The lane's offsets for ldmatrix in a tile, from row 0; 16 rows further are 16 * kRowBytes bytes.
template <int D>
struct LaneOffsets {
  unsigned wide[D / 16];  // row lane % 16, the upper half 8 columns further: A operands, transposed B operands
  unsigned tall[D / 16];  // rows 0 to 7: columns, 8 further; then rows 8 to 15: B operands, rows are output columns
};
template <int D>
RFN_DEVICE LaneOffsets<D> lane_offsets() {
  const unsigned lane = threadIdx.x % 32;
  LaneOffsets<D> offsets;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    offsets.wide[k] = TileRows<D>::place(lane % 16, 2 * k + lane / 16);
    offsets.tall[k] = TileRows<D>::place(lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2);
  }
  return offsets;
}

// How a warp copies `rows` rows of a tile that begin at a multiple of `rows`, 16 bytes a lane and turn.
template <int rows, int D>
struct RowTurns {
  static constexpr unsigned kUnits = TileRows<D>::kUnits, kRowsOfTurn = 32 / kUnits, kTurns = rows / kRowsOfTurn;
  unsigned first, unit;  // the lane's row in turn 0, and its unit's place there
  RFN_HOST_DEVICE explicit RowTurns(unsigned lane)
      : first(lane / kUnits), unit((lane % kUnits) ^ TileRows<D>::exchange(lane / kUnits)) {}
  RFN_HOST_DEVICE unsigned row(unsigned turn) const { return first + turn * kRowsOfTurn; }
  RFN_HOST_DEVICE unsigned place(unsigned turn) const {  // bits of `first` and of turn * kRowsOfTurn do not meet
    return first * TileRows<D>::kRowBytes + turn * kRowsOfTurn * TileRows<D>::kRowBytes +
           (unit ^ TileRows<D>::exchange(turn * kRowsOfTurn)) * 16;
  }
};

// Writes a warp's 16 rows of results, accumulators of mma.sync, to [.., D] bf16 by position. They pass through `stage`,
// 16 rows of a tile that are free, so that a row leaves in whole sectors. Lane i has the code of row i.
template <int D>
RFN_DEVICE void store_results(uint16_t* out, unsigned char* stage, int32_t code, const float (&x)[D / 8][4]) {
  const unsigned lane = this_thread() % 32, r = lane / 4, c4 = lane % 4;
#pragma unroll
  for (int d = 0; d < D / 8; ++d) {
    const unsigned at = r * TileRows<D>::kRowBytes + 4 * c4 + (d ^ TileRows<D>::exchange(r)) * 16;
    unsigned char* const place = stage + opaque(at);
    *reinterpret_cast<uint32_t*>(place) = pack_bf16(x[d][0], x[d][1]);
    *reinterpret_cast<uint32_t*>(place + 8 * TileRows<D>::kRowBytes) = pack_bf16(x[d][2], x[d][3]);
  }
  __syncwarp();
  const RowTurns<16, D> turns(lane);
  uint16_t* const unit = out + lane % TileRows<D>::kUnits * 8;
#pragma unroll
  for (unsigned turn = 0; turn < turns.kTurns; ++turn) {
    const int32_t position = __shfl_sync(kFullWarp, code, static_cast<int>(turns.row(turn)));
    const uint4 bits = *reinterpret_cast<const uint4*>(stage + turns.place(turn));
    if (position != kNoToken) *reinterpret_cast<uint4*>(at_row(unit, position, 2 * D)) = bits;
  }
  __syncwarp();
}

// ---- windows --------------------------------------------------------------------------------------

// Fast forms of AttentionWindow::sees for these calls. Windows of slots compare positions, on the ring too. Windows
// within a bucket are an interval of the round's slots, since slots are sorted by bucket and then by position.
enum class ChunkWindow { kSlotsCausal, kSlots, kStrict, kBucketCausal, kBucket };

template <ChunkWindow window>
inline constexpr bool kWithinBucket = window >= ChunkWindow::kStrict;

// 16-column blocks [first, last) of 8 that a warp has to visit.
struct ColumnRange {
  int first, last;
};

// A row: its slot in the round, its number in the chunk, its code.
struct RowPlace {
  int32_t slot, row, code;
};

// The slots of a row's own bucket, no further than the windows reach: `back` slots before it, `ahead` from it on.
struct Run {
  int32_t back, ahead;
};
RFN_DEVICE Run run_at(const ChunkBlock& block, int32_t slot) {
  const uint32_t word = block.runs[slot];
  return {static_cast<int32_t>(word & 0xffffu), static_cast<int32_t>(word >> 16)};
}

// ---- host side ------------------------------------------------------------------------------------

ChunkCall chunk_call(const Attention& a, const AttentionScratch& s);
ChunkWindow chunk_window(const Attention& a);

// Calls run(D, window) as integral constants.
template <class Run>
rfn_status with_chunks(const Attention& a, const Run& run) {
  const auto with_window = [&](auto size) -> rfn_status {
    switch (chunk_window(a)) {
      case ChunkWindow::kSlotsCausal:
        return run(size, std::integral_constant<ChunkWindow, ChunkWindow::kSlotsCausal>());
      case ChunkWindow::kSlots:
        return run(size, std::integral_constant<ChunkWindow, ChunkWindow::kSlots>());
      case ChunkWindow::kStrict:
        return run(size, std::integral_constant<ChunkWindow, ChunkWindow::kStrict>());
      case ChunkWindow::kBucketCausal:
        return run(size, std::integral_constant<ChunkWindow, ChunkWindow::kBucketCausal>());
      default:
        return run(size, std::integral_constant<ChunkWindow, ChunkWindow::kBucket>());
    }
  };
  return a.head_size <= 32 ? with_window(std::integral_constant<int, 32>())
                           : with_window(std::integral_constant<int, 64>());
}

// One block for every segment of every round and sequence-head.
template <class Kernel>
rfn_status launch_chunks(rfn_stream& stream, Kernel kernel, const ChunkCall& call, int threads, int bytes,
                         int64_t sequence_heads) {
  const int64_t blocks = sequence_heads * call.rounds * call.segments;
  if (blocks > 0x7fffffff) {
    return fail(RFN_UNSUPPORTED, "attention: expected at most 2147483647 blocks over all heads and examples, got %lld",
                static_cast<long long>(blocks));
  }
  RFN_CUDA_TRY(stream, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  RFN_CUDA_TRY(stream, RFN_LAUNCH(kernel, static_cast<unsigned>(blocks), threads, bytes, native_stream(stream), call));
  return RFN_OK;
}

}  // namespace rfn::cuda
