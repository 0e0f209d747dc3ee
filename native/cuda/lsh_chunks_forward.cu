// LSH attention forward over chunks (lsh_chunks.h): the sums of every round in one launch, then one kernel that
// combines the rounds.
//
// Weights need no running maximum. While factor |k|^2 is below 64, 2^logit is far from the ends of float32 and bf16
// whatever the keys are, and the reference is 0. A warp with a row beyond that makes a pass of its own that finds the
// largest logits, which become the references; the code behind it is the same. Sums of weights are one more product,
// with a constant operand; where masks say nothing of absent keys, it holds the keys' presence.
#include "cuda/lsh_chunks.cuh"

namespace rfn::cuda {
namespace {

constexpr float kLargestExponent = 64.0f;
constexpr uint32_t kTwoOnes = 0x3f803f80u;  // 1.0 twice in bf16

constexpr int kRows = 16;  // of a warp
constexpr int kThreads = 32 * kChunkSlots / kRows;

// A step is one chunk. Buffers hold the chunk before, the own one and the next, whose rows travel during this step's
// products.
template <int D>
struct Steps {
  static constexpr int kBuffers = 3;
  struct Numbers {  // of a buffer's rows
    int32_t codes[kChunkSlots];
    float factors[kChunkSlots];
    uint16_t presence[kChunkSlots];  // 1 or 0 in bf16
  };
  static constexpr int kTile = TileRows<D>::kBytes;
  static constexpr int kKeys = 0, kValues = kBuffers * kTile, kNumbers = 2 * kBuffers * kTile;
  static constexpr int kBytes = kNumbers + kBuffers * static_cast<int>(sizeof(Numbers));
};
RFN_HOST_DEVICE int next_buffer(int buffer) { return buffer < 2 ? buffer + 1 : 0; }

// ---- what queries see ---------------------------------------------------------------------------

// Of the window's 128 columns, the chunk before and then the own one, by the lane's rows.
template <ChunkWindow window>
struct QueryMask {
  static constexpr bool kBucket = kWithinBucket<window>;                  // else columns are known by their codes
  static constexpr bool kPresence = window != ChunkWindow::kSlotsCausal;  // it says nothing of absent keys
  int32_t position[kBucket ? 1 : 2];
  int32_t begin[kBucket ? 2 : 1], end[kBucket ? 2 : 1];  // columns, less the first that the lane has of 8
  int32_t itself[window == ChunkWindow::kBucket ? 2 : 1];

  RFN_HOST_DEVICE bool sees(int i, int column, int32_t code) const {
    if constexpr (window == ChunkWindow::kSlotsCausal) return code < position[i];
    if constexpr (window == ChunkWindow::kSlots) return code != position[i];
    if constexpr (window == ChunkWindow::kBucket) {
      return column >= begin[i] && column < end[i] && column != itself[i];
    }
    return column >= begin[i] && column < end[i];
  }
};

template <ChunkWindow window>
RFN_DEVICE void set_row(QueryMask<window>& mask, const ChunkBlock& block, int i, const RowPlace& at) {
  const bool there = at.code != kNoToken;
  if constexpr (window == ChunkWindow::kSlotsCausal) {
    mask.position[i] = there ? at.code : -1;
  } else if constexpr (window == ChunkWindow::kSlots) {
    mask.position[i] = at.code;
  } else {
    const int32_t own = kChunkSlots + at.row, lane = static_cast<int32_t>(threadIdx.x % 4 * 2);
    const Run run = there ? run_at(block, at.slot) : Run{0, 0};
    const int32_t reach = window == ChunkWindow::kStrict ? kChunkSlots : own;
    mask.begin[i] = (there ? own - min(run.back, reach) : 2 * kChunkSlots) - lane;
    mask.end[i] = (!there ? 0 : window == ChunkWindow::kBucket ? min(own + run.ahead, 2 * kChunkSlots) : own) - lane;
    if constexpr (window == ChunkWindow::kBucket) mask.itself[i] = own - lane;
  }
}

template <ChunkWindow window>
RFN_DEVICE ColumnRange visited(const QueryMask<window>& mask) {
  if constexpr (!kWithinBucket<window>) return {0, 8};
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 4 * 2);
  return {__reduce_min_sync(kFullWarp, min(mask.begin[0], mask.begin[1]) + lane) / 16,
          (__reduce_max_sync(kFullWarp, max(mask.end[0], mask.end[1]) + lane) + 15) / 16};
}

// ---- the kernel ---------------------------------------------------------------------------------

// Starts the copies of the warp's rows of a chunk; lane i has the code of row i.
template <int D, bool presence>
RFN_DEVICE void load_rows(const ChunkBlock& block, unsigned char* memory, int buffer, int32_t code) {
  using S = Steps<D>;
  const unsigned thread = this_thread(), lane = thread % 32, first_row = thread / 32 * kRows;
  auto* const numbers = reinterpret_cast<typename S::Numbers*>(memory + S::kNumbers) + buffer;
  if (lane < kRows) {
    numbers->codes[first_row + lane] = code;
    if (presence) numbers->presence[first_row + lane] = code != kNoToken ? kTwoOnes & 0xffffu : 0;
    cp_async_zfill<4>(&numbers->factors[first_row + lane], at_row(block.factors, code, 4), code != kNoToken ? 4 : 0);
  }
  const RowTurns<kRows, D> turns(lane);
  const uint16_t *const keys = block.keys + lane % TileRows<D>::kUnits * 8, *const values =
                                                                                block.values +
                                                                                lane % TileRows<D>::kUnits * 8;
  unsigned char* const tile = memory + opaque(buffer * S::kTile + first_row * TileRows<D>::kRowBytes);
#pragma unroll
  for (unsigned turn = 0; turn < turns.kTurns; ++turn) {
    const int32_t position = __shfl_sync(kFullWarp, code, static_cast<int>(turns.row(turn)));
    const int bytes = position != kNoToken ? 16 : 0;  // of no token: nothing is read, the row becomes 0
    cp_async_zfill<16>(tile + S::kKeys + turns.place(turn), at_row(keys, position, 2 * D), bytes);
    cp_async_zfill<16>(tile + S::kValues + turns.place(turn), at_row(values, position, 2 * D), bytes);
  }
}

template <int D, ChunkWindow window>
RFN_DEVICE void attend(const ChunkCall& c) {
  using S = Steps<D>;
  using Numbers = typename S::Numbers;
  using Mask = QueryMask<window>;
  RFN_DYNAMIC_SHARED(unsigned char, memory);
  RFN_SHARED(block, ChunkBlock);
  find_block<D>(c, block);
  auto* const numbers = reinterpret_cast<Numbers*>(memory + S::kNumbers);
  const unsigned lane = threadIdx.x % 32, r = lane / 4, c4 = lane % 4, first_row = threadIdx.x / 32 * kRows;

  // A warp loads the rows that it will own: lane i knows row i.
  const auto fetch = [&](int32_t chunk) {
    const unsigned thread = this_thread();
    return chunk_code(c, block, chunk, static_cast<int32_t>(thread / 32 * kRows + thread % kRows));
  };
  const auto load = [&](int buffer, int32_t code) { load_rows<D, Mask::kPresence>(block, memory, buffer, code); };

  int32_t chunk = block.first;
  load(0, fetch(chunk - 1));
  load(1, fetch(chunk));
  cp_async_commit();
  if (chunk + 1 < block.last) load(2, fetch(chunk + 1));
  cp_async_commit();

  const LaneOffsets<D> offsets = lane_offsets<D>();
  int before = 0;  // buffer of the chunk before
#pragma unroll 1
  for (; chunk < block.last; ++chunk, before = next_buffer(before)) {
    const int own = next_buffer(before);
    const bool more = chunk + 2 < block.last;
    const int32_t coming = more ? fetch(chunk + 2) : kNoToken;
    cp_async_wait<1>();
    __syncthreads();

    uint32_t q[D / 16][4];
    float factor[2], reference[2] = {0.0f, 0.0f};
    Mask mask;
    bool plain = true;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      ldmatrix_x4(q[k], memory + S::kKeys + own * S::kTile + first_row * TileRows<D>::kRowBytes + offsets.wide[k]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto row = static_cast<int>(first_row + 8 * h + r);
      factor[h] = numbers[own].factors[row];
      plain = plain && factor[h] * c.largest_square < kLargestExponent;
      set_row(mask, block, h, {chunk * kChunkSlots + row, row, numbers[own].codes[row]});
    }
    const ColumnRange range = visited(mask);

    // Products of the warp's rows with 16 keys.
    const auto score = [&](float(&scores)[2][4], const unsigned char* keys) {
#pragma unroll
      for (int e = 0; e < 8; ++e) scores[e / 4][e % 4] = 0.0f;
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        uint32_t right[4];
        ldmatrix_x4(right, keys + offsets.tall[k]);
        mma_m16n8k16_bf16(scores[0], q[k], {right[0], right[1]});
        mma_m16n8k16_bf16(scores[1], q[k], {right[2], right[3]});
      }
    };
    // body(place of 16 keys in the tiles, first column, codes of the lane's four columns, presence as an operand)
    const auto for_columns = [&](const auto& body) {
      const auto visit = [&](int sixteen, int buffer, int first_column) {
        const int row = sixteen * 16;
        int2 low = {}, high = {};
        if (!Mask::kBucket) {
          low = *reinterpret_cast<const int2*>(&numbers[buffer].codes[row + 2 * c4]);
          high = *reinterpret_cast<const int2*>(&numbers[buffer].codes[row + 8 + 2 * c4]);
        }
        const int32_t codes[4] = {low.x, low.y, high.x, high.y};
        uint32_t presence[2] = {kTwoOnes, kTwoOnes};
        if (Mask::kPresence) {
          const unsigned char* const at =
              memory + S::kNumbers + buffer * sizeof(Numbers) + offsetof(Numbers, presence) + 2 * (row + 2 * c4);
          presence[0] = *reinterpret_cast<const uint32_t*>(at);
          presence[1] = *reinterpret_cast<const uint32_t*>(at + 16);
        }
        body(buffer * S::kTile + row * TileRows<D>::kRowBytes, first_column + row, codes, presence);
      };
      if constexpr (!Mask::kBucket) {
#pragma unroll 1
        for (int half = chunk > 0 || c.ring ? 0 : 1; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 4; ++i) visit(i, half == 0 ? before : own, kChunkSlots * half);
        }
      } else {
#pragma unroll 1
        for (int i = range.first; i < range.last; ++i) visit(i % 4, i < 4 ? before : own, i / 4 * kChunkSlots);
      }
    };

    if (!__all_sync(kFullWarp, plain)) {
      float highest[2] = {-INFINITY, -INFINITY};
      const auto raise = [&](int place, int column, const int32_t(&codes)[4], const uint32_t(&presence)[2]) {
        float scores[2][4];
        score(scores, memory + S::kKeys + place);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int n = e / 4, h = e / 2 % 2;
          const bool sees = mask.sees(h, column + 8 * n + e % 2, codes[2 * n + e % 2]) &&
                            (presence[n] & (e % 2 == 0 ? 0xffffu : 0xffff0000u)) != 0;
          highest[h] = fmaxf(highest[h], sees ? factor[h] * scores[n][e % 4] : -INFINITY);
        }
      };
      for_columns(raise);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float x = group_maximum<4>(highest[h]);
        reference[h] = x == -INFINITY ? 0.0f : x;
      }
    }

    float out[D / 8][4] = {}, sum[4] = {};
    const auto add = [&](int place, int column, const int32_t(&codes)[4], const uint32_t(&presence)[2]) {
      float scores[2][4];
      score(scores, memory + S::kKeys + place);
      uint32_t weights[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // two neighbouring columns: row half j % 2, columns 8 (j / 2)
        float p[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float exponent = fmaf(scores[j / 2][j % 2 * 2 + e], factor[j % 2], -reference[j % 2]);
          // An absent key's logit is 0, which may be any distance above the reference; its weight has to be finite.
          if (Mask::kPresence) exponent = fminf(exponent, kLargestExponent);
          const float weight = exp2_approx(exponent);
          p[e] = mask.sees(j % 2, column + j / 2 * 8 + e, codes[j / 2 * 2 + e]) ? weight : 0.0f;
        }
        weights[j] = pack_bf16(p[0], p[1]);
      }
      mma_m16n8k16_bf16(sum, weights, presence);  // every lane of a row gets the row's sum
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        uint32_t right[4];
        ldmatrix_x4_trans(right, memory + S::kValues + place + offsets.wide[d]);
        mma_m16n8k16_bf16(out[2 * d], weights, {right[0], right[1]});
        mma_m16n8k16_bf16(out[2 * d + 1], weights, {right[2], right[3]});
      }
    };
    for_columns(add);

    // Nobody needs the chunk before any more: its buffer takes this warp's results on their way out, then its next
    // rows. Others may load into it next, so the codes are taken along.
    const int32_t mine = numbers[own].codes[first_row + lane % kRows];
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t position = __shfl_sync(kFullWarp, mine, static_cast<int>(8 * h + r));
      if (c4 == 0 && position != kNoToken)
        *at_row(block.round_sums, position, 8) = make_float2(sum[2 * h], reference[h]);
    }
    store_results<D>(block.round_out,
                     memory + opaque(S::kKeys + before * S::kTile + first_row * TileRows<D>::kRowBytes), mine, out);
    if (more) load(before, coming);
    cp_async_commit();
  }
}

template <int D, ChunkWindow window>
__global__ void __launch_bounds__(kThreads, 4) lsh_chunks_forward_kernel(const ChunkCall c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();
#else
  attend<D, window>(c);
#endif
}

// ---- combining rounds ---------------------------------------------------------------------------

struct CombineCall {
  ChunkScratch scratch;
  RowSizes sizes;
  CallerRows<const float> v;
  CallerRows<float> out;
  float* log_sum_exp;  // may be null
};

// out_i = sum_r w_r out_ir / sum_r w_r sum_ir with w_r = 2^(reference_r - the highest). A token that met nobody has
// its own value, a masked one 0.
template <int D>
__global__ void __launch_bounds__(kRowThreads) lsh_chunks_combine_kernel(const CombineCall c) {
  const int d = static_cast<int>(threadIdx.x) % (D / 8) * 8;
  if (thread_row<D>() >= c.sizes.rows) return;
  const RowOf at = row_of(c.sizes, thread_row<D>());
  const bool masked = c.sizes.mask != nullptr && c.sizes.mask[at.token] == 0;
  float highest = -INFINITY, sum = 0.0f, out[8] = {};
  for (int32_t round = 0; round < c.sizes.rounds && !masked; ++round) {
    const float2 of_round = c.scratch.round_sums[row_of_round(c.sizes, at, round)];
    if (of_round.x != 0.0f) highest = fmaxf(highest, of_round.y);
  }
  for (int32_t round = 0; round < c.sizes.rounds && !masked; ++round) {
    const int64_t row = row_of_round(c.sizes, at, round);
    const float2 of_round = c.scratch.round_sums[row];
    if (of_round.x == 0.0f) continue;
    const float weight = exp2_approx(of_round.y - highest);
    sum = fmaf(weight, of_round.x, sum);
    float part[8];
    unpack_bf16(c.scratch.round_out + row * D + d, part);
#pragma unroll
    for (int e = 0; e < 8; ++e) out[e] = fmaf(weight, part[e], out[e]);
  }
  const bool some = sum != 0.0f;
  if (d == 0 && c.log_sum_exp != nullptr)
    c.log_sum_exp[at.log_sum_exp] = some ? (highest + log2f(sum)) * kLn2 : -INFINITY;
  const float inverse = some ? 1.0f / sum : 0.0f;
#pragma unroll
  for (int e = 0; e < 8; ++e) out[e] *= inverse;
  if (!some && !masked) load_unit(c.v, c.sizes, at, d, out);
  store_unit(c.out, c.sizes, at, d, out);
}

}  // namespace

rfn_status chunks_forward(rfn_stream& stream, const Attention& a, const AttentionScratch& s) {
  RFN_TRY(chunks_prepare(stream, a, s, RFN_PASS_FORWARD));
  const CombineCall combine = {s.chunks, row_sizes(a), caller_rows(a.v, a.v_stride, a.head_size),
                               caller_rows(a.out, a.out_stride, a.head_size), a.log_sum_exp};
  return with_chunks(a, [&](auto size, auto window) -> rfn_status {
    constexpr int D = size.value;
    RFN_TRY(launch_chunks(stream, lsh_chunks_forward_kernel<D, window.value>, chunk_call(a, s), kThreads,
                          Steps<D>::kBytes, a.sequence_heads()));
    RFN_CUDA_TRY(stream, RFN_LAUNCH(lsh_chunks_combine_kernel<D>, blocks_for(combine.sizes.rows * (D / 8), kRowThreads),
                                    kRowThreads, 0, native_stream(stream), combine));
    return RFN_OK;
  });
}

}  // namespace rfn::cuda
