// Attention forward: out and log-sum-exp of one round after the other, merged through the running maximum and sum of
// every token, so that no round has an output of its own. A token is a row of exactly one block of a launch.
#include "cuda/attention_tile.cuh"

namespace rfn::cuda {
namespace {

template <int precision, int D>
RFN_DEVICE void attend(const TileCall& c, bool fresh, bool last) {
  using Sizes = Tile<precision, D, false>;
  using Element = typename Sizes::Element;
  constexpr int N = Sizes::kColumns, kRows = Sizes::kRows;
  RFN_SHARED(rows, Token[kRows]);
  RFN_SHARED(columns, Token[2][N]);
  RFN_SHARED(dropout_rows, uint64_t[kRows]);
  RFN_SHARED(edge_of_rows, int32_t[1]);
  RFN_DYNAMIC_SHARED(unsigned char, memory);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, r = lane / 4,
            c4 = lane % 4;
  const int head_size = static_cast<int>(c.attention.head_size);

  const Walk walk = walk_of<false, kRows>(c, block_slot<kRows, true>(c));
  const int32_t edge = load_row_tokens<false, kRows>(c, block_slot<kRows, true>(c), rows, dropout_rows, edge_of_rows);
  load_row_tile<Sizes, precision, D>(c, memory, 0, rows, {c.attention.q, c.attention.q_stride}, RFN_KEY_NORM_NONE,
                                     c.scale * kLog2E, nullptr);
  const Element* const q = reinterpret_cast<const Element*>(memory) + warp * 16 * Sizes::kStride;
  Element *const keys = reinterpret_cast<Element*>(memory + Sizes::kColumnTile0), *const values =
                                                                                      reinterpret_cast<Element*>(
                                                                                          memory + Sizes::kColumnTile1);
  float *const raw_keys = reinterpret_cast<float*>(memory + Sizes::kStage0), *const raw_values =
                                                                                 reinterpret_cast<float*>(
                                                                                     memory + Sizes::kStage1);
  uint8_t* const counts = memory + Sizes::kCounts + warp * 16 * N;

  // This lane's two rows.
  int32_t position[2];
  float maximum[2], sum[2];
  float out[D / 8][4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const SequenceHead p = block_sequence_head(c);
    position[h] = rows[warp * 16 + r + 8 * h].x;
    const float* const out_row =
        head_rows(c, p, c.attention.out, c.attention.out_stride) + position[h] * c.attention.out_stride;
    const bool resume = !fresh && position[h] >= 0;
    maximum[h] = resume ? c.scratch.maximum[p.index * c.window.length + position[h]] : -INFINITY;
    sum[h] = resume && c4 == 0 ? c.scratch.sum[p.index * c.window.length + position[h]]
                               : 0.0f;  // lanes add up their columns; the sum so far is one lane's
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int at = 8 * d + 2 * c4 + e;
        out[d][2 * h + e] = resume && at < head_size ? out_row[at] : 0.0f;
      }
    }
  }

  const auto load = [&](const Token* tokens) {
    load_rows<D>(c, raw_keys, tokens, N, {c.attention.k, c.attention.k_stride});
    load_rows<D>(c, raw_values, tokens, N, {c.attention.v, c.attention.v_stride});
    cp_async_commit();
  };
  int now = 0;
  int32_t start = next_columns<false, N>(c, walk, walk.begin, edge, columns[now], nullptr);
  if (start < walk.end) load(columns[now]);
  while (start < walk.end) {
    cp_async_wait_all();
    __syncthreads();  // the copies of all threads have landed, and nobody works on the operands any more
    make_operand<precision, D>(raw_keys, keys, N, c.attention.options.key_norm, 1.0f, head_size, nullptr);
    make_operand<precision, D>(raw_values, values, N, RFN_KEY_NORM_NONE, 1.0f, head_size, nullptr);
    const int32_t next = next_columns<false, N>(c, walk, start + N, edge, columns[now ^ 1], nullptr);
    __syncthreads();  // operands are complete, the stage is free
    if (Sizes::kStaged && next < walk.end) load(columns[now ^ 1]);

    const PairBits<N> bits =
        pair_bits<false, N>(c, rows + warp * 16, dropout_rows + warp * 16, columns[now], nullptr, counts);
    if (any_visible(bits)) {
      float scores[N / 8][4] = {};
      multiply_transposed<precision, D, N>(scores, q, keys);
      const RowBits<N> row = row_bits(c, bits);
      float highest[2] = {maximum[0], maximum[1]};
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = 8 * n + 2 * c4 + e % 2, h = e / 2;
          const bool yes = (row.visible[h][n / 4] >> (column % 32) & 1u) != 0;
          if (c.window.log_counts && yes) scores[n][e] -= log2_count(counts[(r + 8 * h) * N + column]);
          scores[n][e] = yes ? scores[n][e] : -INFINITY;
          highest[h] = fmaxf(highest[h], scores[n][e]);
        }
      }
      float shrink[2], reference[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        highest[h] = group_maximum<4>(highest[h]);
        // A query without a key so far keeps -inf; 0 stands in for it so that no exponent is (-inf) - (-inf).
        reference[h] = highest[h] == -INFINITY ? 0.0f : highest[h];
        shrink[h] = exp2f(maximum[h] - reference[h]);
        maximum[h] = highest[h];
        sum[h] *= shrink[h];
      }
#pragma unroll
      for (int d = 0; d < D / 8; ++d) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[d][e] *= shrink[e / 2];
      }
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = 8 * n + 2 * c4 + e % 2, h = e / 2;
          const float probability = exp2f(scores[n][e] - reference[h]);
          sum[h] += probability;
          const bool keep = (row.kept[h][n / 4] >> (column % 32) & 1u) != 0;
          scores[n][e] = c.threshold == 0 ? probability : keep ? probability * c.keep_inverse : 0.0f;
        }
      }
      multiply<precision, D, N>(out, scores, values);
    }
    if (!Sizes::kStaged) {
      __syncthreads();
      if (next < walk.end) load(columns[now ^ 1]);
    }
    start = next;
    now ^= 1;
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sum[h] = group_sum<4>(sum[h]);
    const int32_t at = row_position(position[h]);
    if (at < 0) continue;
    const SequenceHead p = block_sequence_head(c);
    const bool there = position[h] >= 0, some = there && sum[h] != 0.0f;
    if (!last) {
      if (!there) continue;
      if (c4 == 0) {
        c.scratch.maximum[p.index * c.window.length + at] = maximum[h];
        c.scratch.sum[p.index * c.window.length + at] = sum[h];
      }
    } else if (c4 == 0 && c.attention.log_sum_exp != nullptr) {
      c.attention.log_sum_exp[p.log_sum_exp + at] = some ? (maximum[h] + log2f(sum[h])) * kLn2 : -INFINITY;
    }
    const float factor = !last ? 1.0f : some ? 1.0f / sum[h] : 0.0f;
    const bool own = last && there && !some && c.window.exclude_self;  // it met nobody: its own value
    const float* const v_row = head_rows(c, p, c.attention.v, c.attention.v_stride) + at * c.attention.v_stride;
    float* const out_row = head_rows(c, p, c.attention.out, c.attention.out_stride) + at * c.attention.out_stride;
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = 8 * d + 2 * c4 + e;
        if (column < head_size)
          out_row[column] = own ? v_row[column] : last && !some ? 0.0f : out[d][2 * h + e] * factor;
      }
    }
  }
}

template <int precision, int D>
__global__ void __launch_bounds__((Tile<precision, D, false>::kThreads), (Tile<precision, D, false>::kBlocks))
    attention_forward_kernel(const TileCall c, int fresh, int last) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  if constexpr (precision != RFN_PRECISION_F32)
    __trap();
  else
#endif
    attend<precision, D>(c, fresh != 0, last != 0);
}

}  // namespace

rfn_status attention_forward_rounds(rfn_stream& stream, const Attention& a, const AttentionScratch& s, int64_t first,
                                    int64_t last) {
  if (takes_chunks(*stream.context, a)) return chunks_forward(stream, a, s);
  for (int64_t round = first; round < last; ++round) {
    const TileCall call = tile_call(a, s, round);
    RFN_TRY(with_tile(*stream.context, a.head_size, [&](auto precision, auto size) -> rfn_status {
      using Sizes = Tile<precision.value, size.value, false>;
      const auto kernel = attention_forward_kernel<precision.value, size.value>;
      return launch_tiles<Sizes>(stream, kernel, call, round == first ? 1 : 0, round == last - 1 ? 1 : 0);
    }));
  }
  return RFN_OK;
}

}  // namespace rfn::cuda
