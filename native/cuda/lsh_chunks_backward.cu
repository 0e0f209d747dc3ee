// LSH attention backward over chunks (lsh_chunks.h): five products for every pair of chunks, no atomics, one launch for
// all rounds, then one kernel that sums the rounds.
//
// A block walks along key chunks. Chunk j is seen by the queries of chunks j and j + 1; rows are keys, columns queries:
//   p_ij = 2^(s_ij - log_sum_exp_i)      dV_j += p_ij dO_i      w_ij = factor_i p_ij (dO_i . v_j - delta_i)
//   as key: X_j += w_ij k_i,  along_j += w_ij k_i . k_j         as query: X_i += w_ij k_j
// A token's gradient is ln 2 / n (X - k along weight). Rows of chunk j as keys and as queries lie in the same lanes, so
// that both go into one accumulator: from its time as the chunk behind (queries of j - 1) to the end of its own step.
// w goes through shared memory once, because X_i sums over the keys of all warps. A segment begins with the pair that
// it shares with the segment before, computed again. The walk fixes the order of every sum: the same bits every time.
#include "cuda/lsh_chunks.cuh"

namespace rfn::cuda {
namespace {

constexpr int kRows = 16;  // of a warp
constexpr int kThreads = 32 * kChunkSlots / kRows;

template <int D>
struct Steps {
  static constexpr int kTile = TileRows<D>::kBytes;
  static constexpr int kKeys = 0, kValues = kTile, kGrads = 2 * kTile, kNumbers = 3 * kTile;  // of a chunk's buffer
  static constexpr int kBuffer = kNumbers + kChunkSlots * static_cast<int>(sizeof(float4));
  static constexpr int kWeights = 2 * kBuffer;  // w of the own and the next queries: rows are keys, columns queries
  static constexpr int kBytes = kWeights + 2 * TileRows<kChunkSlots>::kBytes;
};

// ---- what sees a key ----------------------------------------------------------------------------

// By which queries of the 128 columns, the own chunk and then the one behind, the keys of the lane's rows are seen.
// Queries that are not there have rows of zeros: they take part without effect. Codes are positions + 1.
template <ChunkWindow window>
struct KeyMask {
  static constexpr bool kBucket = kWithinBucket<window>;
  int32_t code[kBucket ? 1 : 2];
  int32_t begin[kBucket ? 2 : 1], end[kBucket ? 2 : 1];  // columns, less the first that the lane has of 8
  int32_t itself[window == ChunkWindow::kBucket ? 2 : 1];

  RFN_HOST_DEVICE bool sees(int i, int column, int32_t query) const {
    if constexpr (window == ChunkWindow::kSlotsCausal) return code[i] < query;
    // A key that is not there: its row of zeros could still have a weight beyond float32's range.
    if constexpr (window == ChunkWindow::kSlots) return code[i] != query && code[i] != kNoToken;
    if constexpr (window == ChunkWindow::kBucket) {
      return column >= begin[i] && column < end[i] && column != itself[i];
    }
    return column >= begin[i] && column < end[i];
  }
};

template <ChunkWindow window>
RFN_DEVICE void set_row(KeyMask<window>& mask, const ChunkBlock& block, int i, const RowPlace& at) {
  const bool there = at.code != kNoToken;
  if constexpr (!kWithinBucket<window>) {
    mask.code[i] = there ? at.code + 1 : kNoToken;
  } else {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 4 * 2);
    const Run run = there ? run_at(block, at.slot) : Run{0, 0};
    const int32_t reach = window == ChunkWindow::kStrict ? at.row + kChunkSlots + 1 : 2 * kChunkSlots;
    mask.begin[i] = (!there                           ? 2 * kChunkSlots
                     : window == ChunkWindow::kBucket ? max(at.row - run.back, 0)
                                                      : at.row + 1) -
                    lane;
    mask.end[i] = (there ? min(at.row + run.ahead, reach) : 0) - lane;
    if constexpr (window == ChunkWindow::kBucket) mask.itself[i] = at.row - lane;
  }
}

template <ChunkWindow window>
RFN_DEVICE ColumnRange visited(const KeyMask<window>& mask) {
  if constexpr (!kWithinBucket<window>) return {0, 8};
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 4 * 2);
  return {__reduce_min_sync(kFullWarp, min(mask.begin[0], mask.begin[1]) + lane) / 16,
          (__reduce_max_sync(kFullWarp, max(mask.end[0], mask.end[1]) + lane) + 15) / 16};
}

// ---- the kernel ---------------------------------------------------------------------------------

// Starts the copies of the warp's rows of a chunk; lane i has the code of row i.
template <int D>
RFN_DEVICE void load_rows(const ChunkBlock& block, unsigned char* memory, int buffer, int32_t code) {
  using S = Steps<D>;
  const unsigned thread = this_thread(), lane = thread % 32, first_row = thread / 32 * kRows;
  const RowTurns<kRows, D> turns(lane);
  unsigned char* const place = memory + opaque(buffer * S::kBuffer + first_row * TileRows<D>::kRowBytes);
  if (lane < kRows) {
    cp_async_zfill<16>(memory + buffer * S::kBuffer + S::kNumbers + (first_row + lane) * 16,
                       at_row(block.queries, code, 16), code != kNoToken ? 16 : 0);
  }
  const unsigned unit = lane % TileRows<D>::kUnits * 8;
  const uint16_t *const keys = block.keys + unit, *const values = block.values + unit,
                        *const grads = block.grad_out + unit;
#pragma unroll
  for (unsigned turn = 0; turn < turns.kTurns; ++turn) {
    const int32_t position = __shfl_sync(kFullWarp, code, static_cast<int>(turns.row(turn)));
    const int bytes = position != kNoToken ? 16 : 0;
    cp_async_zfill<16>(place + S::kKeys + turns.place(turn), at_row(keys, position, 2 * D), bytes);
    cp_async_zfill<16>(place + S::kValues + turns.place(turn), at_row(values, position, 2 * D), bytes);
    cp_async_zfill<16>(place + S::kGrads + turns.place(turn), at_row(grads, position, 2 * D), bytes);
  }
}

template <int D, ChunkWindow window>
RFN_DEVICE void differentiate(const ChunkCall& c) {
  using S = Steps<D>;
  using Weights = TileRows<kChunkSlots>;
  constexpr int kRowBytes = TileRows<D>::kRowBytes;
  RFN_DYNAMIC_SHARED(unsigned char, memory);
  RFN_SHARED(block, ChunkBlock);
  find_block<D>(c, block);
  const unsigned lane = threadIdx.x % 32, r = lane / 4, c4 = lane % 4, first_row = threadIdx.x / 32 * kRows;
  const auto fetch = [&](int32_t chunk) {
    const unsigned thread = this_thread();
    return chunk_code(c, block, chunk, static_cast<int32_t>(thread / 32 * kRows + thread % kRows));
  };

  // The chunk before the segment comes first: only its part in the gradients of the first queries counts.
  const int32_t first = block.first, last = block.last;
  int32_t mine = fetch(first - 1), next = fetch(first);  // codes of the rows that this warp loaded
  load_rows<D>(block, memory, 0, mine);
  load_rows<D>(block, memory, 1, next);
  cp_async_commit();

  const LaneOffsets<D> offsets = lane_offsets<D>();
  float x[D / 8][4] = {};
  int own = 0;  // buffer
#pragma unroll 1
  for (int32_t chunk = first - 1; chunk < last; ++chunk, own ^= 1) {
    const int32_t coming = chunk + 2 <= last ? fetch(chunk + 2) : kNoToken;
    cp_async_wait<0>();
    __syncthreads();

    uint32_t key[D / 16][4], value[D / 16][4];
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const unsigned char* const row = memory + own * S::kBuffer + first_row * kRowBytes + offsets.wide[k];
      ldmatrix_x4(key[k], row + S::kKeys);
      ldmatrix_x4(value[k], row + S::kValues);
    }
    KeyMask<window> mask;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto row = static_cast<int>(first_row + 8 * h + r);
      set_row(mask, block, h,
              {chunk * kChunkSlots + row, row, __shfl_sync(kFullWarp, mine, static_cast<int>(8 * h + r))});
    }
    const ColumnRange range = visited(mask);
    float grad_value[D / 8][4] = {}, along[2] = {};

    // 16 queries: rows from `query` of a buffer on; their w goes to the columns of `weights`.
    const auto visit = [&](const unsigned char* buffer, int query, int column, unsigned char* weights) {
      const unsigned char *const keys = buffer + S::kKeys + query * kRowBytes, *const grads = buffer + S::kGrads +
                                                                                              query * kRowBytes;
      float scores[2][4] = {}, products[2][4] = {};
      const unsigned place = (first_row + r) * Weights::kRowBytes + r * 16 + 4 * c4;  // of the lane's w, unit 0
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        uint32_t right[4];
        ldmatrix_x4(right, keys + offsets.tall[k]);
        mma_m16n8k16_bf16(scores[0], key[k], {right[0], right[1]});
        mma_m16n8k16_bf16(scores[1], key[k], {right[2], right[3]});
        ldmatrix_x4(right, grads + offsets.tall[k]);
        mma_m16n8k16_bf16(products[0], value[k], {right[0], right[1]});
        mma_m16n8k16_bf16(products[1], value[k], {right[2], right[3]});
      }
      uint32_t p[4], w[4];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float4 number[2];  // factor, log-sum-exp, delta * factor, code of the lane's two queries
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          number[e] =
              *reinterpret_cast<const float4*>(buffer + S::kNumbers + (query + 8 * n + 2 * c4 + e) * sizeof(float4));
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float probability[2], weight[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float score = scores[n][2 * h + e];
            const bool sees = mask.sees(h, column + 8 * n + e, __float_as_int(number[e].w));
            probability[e] = sees ? exp2_approx(fmaf(score, number[e].x, -number[e].y)) : 0.0f;
            weight[e] = probability[e] * fmaf(products[n][2 * h + e], number[e].x, -number[e].z);
            along[h] = fmaf(weight[e], score, along[h]);
          }
          p[2 * n + h] = pack_bf16(probability[0], probability[1]);
          w[2 * n + h] = pack_bf16(weight[0], weight[1]);
          *reinterpret_cast<uint32_t*>(weights + (place ^ (query / 8 + n) * 16) + 8 * h * Weights::kRowBytes) =
              w[2 * n + h];
        }
      }
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        uint32_t right[4];
        ldmatrix_x4_trans(right, grads + offsets.wide[d]);
        mma_m16n8k16_bf16(grad_value[2 * d], p, {right[0], right[1]});
        mma_m16n8k16_bf16(grad_value[2 * d + 1], p, {right[2], right[3]});
        ldmatrix_x4_trans(right, keys + offsets.wide[d]);
        mma_m16n8k16_bf16(x[2 * d], w, {right[0], right[1]});
        mma_m16n8k16_bf16(x[2 * d + 1], w, {right[2], right[3]});
      }
    };
    const bool counts = chunk >= first, followed = chunk + 1 < c.chunks || c.ring;
#pragma unroll 1
    for (int half = counts ? 0 : 1; half < (followed ? 2 : 1); ++half) {
      const unsigned char* const buffer = memory + (own ^ half) * S::kBuffer;
      unsigned char* const weights = memory + S::kWeights + half * Weights::kBytes;
      if constexpr (!kWithinBucket<window>) {
#pragma unroll
        for (int i = 0; i < 4; ++i) visit(buffer, 16 * i, kChunkSlots * half + 16 * i, weights);
      } else {
#pragma unroll 1
        for (int i = 0; i < 4; ++i) {
          if (4 * half + i >= range.first && 4 * half + i < range.last) {
            visit(buffer, 16 * i, kChunkSlots * half + 16 * i, weights);
            continue;
          }
#pragma unroll
          for (unsigned j = 0; j < 4; ++j) {
            *reinterpret_cast<uint32_t*>(weights + (first_row + r + j % 2 * 8) * Weights::kRowBytes +
                                         ((2 * i + j / 2) ^ r) * 16 + 4 * c4) = 0;
          }
        }
      }
    }
    __syncthreads();

    // X of this warp's 16 queries: sums over all 64 keys.
    const auto gather = [&](int half) {
      const unsigned char* const weights = memory + S::kWeights + half * Weights::kBytes;
      const unsigned char* const keys = memory + own * S::kBuffer + S::kKeys;
#pragma unroll
      for (int k = 0; k < kChunkSlots / 16; ++k) {
        uint32_t left[4];
        ldmatrix_x4_trans(left,
                          weights + Weights::place(16 * k + lane / 16 * 8 + lane % 8, first_row / 8 + lane / 8 % 2));
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
          uint32_t right[4];
          ldmatrix_x4_trans(right, keys + 16 * k * kRowBytes + offsets.wide[d]);
          mma_m16n8k16_bf16(x[2 * d], left, {right[0], right[1]});
          mma_m16n8k16_bf16(x[2 * d + 1], left, {right[2], right[3]});
        }
      }
    };
    if (counts) {
      gather(0);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float sum = group_sum<4>(along[h]);
        const int32_t code = __shfl_sync(kFullWarp, mine, static_cast<int>(8 * h + r));
        if (c4 == 0 && code != kNoToken) *at_row(block.round_sums, code, 8) = make_float2(sum, 0.0f);
      }
      // The values are this warp's alone, and nobody reads the gradients of the own queries any more.
      unsigned char* const stage = memory + opaque(own * S::kBuffer + first_row * kRowBytes);
      store_results<D>(block.round_out, stage + S::kValues, mine, x);
      store_results<D>(block.round_grad_v, stage + S::kGrads, mine, grad_value);
    }
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[d][e] = 0.0f;
    }
    if (chunk + 1 < last && followed) gather(1);
    __syncthreads();
    mine = next;
    next = coming;
    if (chunk + 2 <= last) load_rows<D>(block, memory, own, coming);
    cp_async_commit();
  }
}

// Three blocks would fit the shared memory of 9.0, but not the registers: at 168 of them the kernel spills.
template <int D, ChunkWindow window>
__global__ void __launch_bounds__(kThreads, 2) lsh_chunks_backward_kernel(const ChunkCall c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();
#else
  differentiate<D, window>(c);
#endif
}

// ---- sums over rounds ---------------------------------------------------------------------------

struct SumsCall {
  ChunkScratch scratch;
  RowSizes sizes;
  CallerRows<const float> grad_out;
  CallerRows<float> grad_q, grad_v;
  const float* log_sum_exp;
  float scale;        // of base-2 logits
  float norm_weight;  // 1 / D where the key norm is the root mean square, 1 for the length, 0 without
};

// Sums over rounds in their order, and the way back through the key norm.
template <int D>
__global__ void __launch_bounds__(kRowThreads) lsh_chunks_sums_kernel(const SumsCall c) {
  const int d = static_cast<int>(threadIdx.x) % (D / 8) * 8;
  if (thread_row<D>() >= c.sizes.rows) return;
  const RowOf at = row_of(c.sizes, thread_row<D>());
  float q[8] = {}, v[8] = {};
  if (c.sizes.mask == nullptr || c.sizes.mask[at.token] != 0) {
    float along = 0.0f;
#pragma unroll 2
    for (int32_t round = 0; round < c.sizes.rounds; ++round) {
      const int64_t row = row_of_round(c.sizes, at, round);
      float part[8];
      unpack_bf16(c.scratch.round_out + row * D + d, part);
#pragma unroll
      for (int e = 0; e < 8; ++e) q[e] += part[e];
      unpack_bf16(c.scratch.round_grad_v + row * D + d, part);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] += part[e];
      along += c.scratch.round_sums[row].x;
    }
    float key[8];
    unpack_bf16(c.scratch.keys + at.row * D + d, key);
    const float by_norm = c.scale * kLn2 / c.scratch.factors[at.row];  // factor = norm * scale
#pragma unroll
    for (int e = 0; e < 8; ++e) q[e] = by_norm * fmaf(-key[e], along * c.norm_weight, q[e]);
    if (c.log_sum_exp[at.log_sum_exp] == -INFINITY) {  // it had its own value
      float grad[8];
      load_unit(c.grad_out, c.sizes, at, d, grad);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] += grad[e];
    }
  }
  store_unit(c.grad_q, c.sizes, at, d, q);
  store_unit(c.grad_v, c.sizes, at, d, v);
}

}  // namespace

rfn_status chunks_backward(rfn_stream& stream, const Attention& a, const AttentionScratch& s) {
  RFN_TRY(chunks_prepare(stream, a, s, RFN_PASS_BACKWARD));
  const float norm_weight = a.options.key_norm == RFN_KEY_NORM_RMS  ? 1.0f / static_cast<float>(a.head_size)
                            : a.options.key_norm == RFN_KEY_NORM_L2 ? 1.0f
                                                                    : 0.0f;
  const SumsCall sums = {s.chunks,
                         row_sizes(a),
                         caller_rows(a.grad_out, a.grad_out_stride, a.head_size),
                         caller_rows(a.grad_q, a.grad_q_stride, a.head_size),
                         caller_rows(a.grad_v, a.grad_v_stride, a.head_size),
                         a.log_sum_exp,
                         logit_scale(a) * kLog2E,
                         norm_weight};
  return with_chunks(a, [&](auto size, auto window) -> rfn_status {
    constexpr int D = size.value;
    RFN_TRY(launch_chunks(stream, lsh_chunks_backward_kernel<D, window.value>, chunk_call(a, s), kThreads,
                          Steps<D>::kBytes, a.sequence_heads()));
    RFN_CUDA_TRY(stream, RFN_LAUNCH(lsh_chunks_sums_kernel<D>, blocks_for(sums.sizes.rows * (D / 8), kRowThreads),
                                    kRowThreads, 0, native_stream(stream), sums));
    return RFN_OK;
  });
}

}  // namespace rfn::cuda
