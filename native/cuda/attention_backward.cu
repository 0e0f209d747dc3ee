// Attention backward, from out, log-sum-exp and the permutation alone (flash form): for each round a launch whose rows
// are queries gives dq, then for each round a launch whose rows are keys gives dk and dv. A gradient row has one writer
// in a launch, launches follow each other, so sums have a fixed order without atomics; the price is that scores and dO
// . v are computed in both.
#include "cuda/attention_tile.cuh"

namespace rfn::cuda {
namespace {

constexpr int kDeltaThreads = 256;
constexpr int kDeltaLanes = 8;  // of one row

// delta = dO . O - grad_log_sum_exp for every (example, head, token) of the call.
__global__ void __launch_bounds__(kDeltaThreads) attention_delta_kernel(const TileCall c) {
  const int lane = static_cast<int>(threadIdx.x) % kDeltaLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kDeltaThreads / kDeltaLanes) + threadIdx.x / kDeltaLanes;
  const bool there = row < c.attention.batch * c.attention.heads * c.window.length;
  const SequenceHead p = tile_sequence_head(c, there ? row / c.window.length : 0);
  const int64_t position = there ? row % c.window.length : 0;
  const float* const out = head_rows(c, p, c.attention.out, c.attention.out_stride) + position * c.attention.out_stride;
  const float* const grad =
      head_rows(c, p, c.attention.grad_out, c.attention.grad_out_stride) + position * c.attention.grad_out_stride;
  float delta = 0.0f;
  for (int64_t d = lane; d < c.attention.head_size; d += kDeltaLanes) delta = fmaf(grad[d], out[d], delta);
  delta = group_sum<kDeltaLanes>(delta);
  if (!there || lane != 0) return;
  if (c.attention.grad_log_sum_exp != nullptr) delta -= c.attention.grad_log_sum_exp[p.log_sum_exp + position];
  c.scratch.delta[p.index * c.window.length + position] = delta;
}

// kKeys false: rows are queries, row tiles q and dO, column tiles k and v:      dq  = sum_j ds_ij k_j
// kKeys true:  rows are keys, row tiles k and v, column tiles q and dO:         dk' = sum_i ds_ij q_i,  dv = sum_i p_ij
// m_ij dO_i with p = exp(s - log_sum_exp), ds = p (m dO . v - delta), m the dropout multiplier, k' the normalised key.
template <int precision, int D, bool kKeys>
RFN_DEVICE void differentiate(const TileCall& c, bool first, bool overwrite) {
  using Sizes = Tile<precision, D, true>;
  using Element = typename Sizes::Element;
  constexpr int N = Sizes::kColumns, kRows = Sizes::kRows;
  RFN_SHARED(rows, Token[kRows]);
  RFN_SHARED(columns, Token[2][N]);
  RFN_SHARED(numbers, QueryNumbers[2][kKeys ? N : 1]);
  RFN_SHARED(dropout_rows, uint64_t[kKeys ? 1 : kRows]);
  RFN_SHARED(inverse_norms, float[kRows]);
  RFN_SHARED(edge_of_rows, int32_t[1]);
  RFN_DYNAMIC_SHARED(unsigned char, memory);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, r = lane / 4,
            c4 = lane % 4;
  const int head_size = static_cast<int>(c.attention.head_size);
  const int32_t key_norm = c.attention.options.key_norm;
  const float query_factor = c.scale * kLog2E;

  const Source q = {c.attention.q, c.attention.q_stride}, k = {c.attention.k, c.attention.k_stride},
               v = {c.attention.v, c.attention.v_stride},
               grad_out = {c.attention.grad_out, c.attention.grad_out_stride};
  const Walk walk = walk_of<kKeys, kRows>(c, block_slot<kRows, !kKeys>(c));
  const int32_t edge = load_row_tokens<kKeys, kRows>(c, block_slot<kRows, !kKeys>(c), rows, dropout_rows, edge_of_rows);
  if (kKeys) {
    load_row_tile<Sizes, precision, D>(c, memory, 0, rows, k, key_norm, 1.0f, inverse_norms);
    load_row_tile<Sizes, precision, D>(c, memory, 1, rows, v, RFN_KEY_NORM_NONE, 1.0f, nullptr);
  } else {
    load_row_tile<Sizes, precision, D>(c, memory, 0, rows, q, RFN_KEY_NORM_NONE, query_factor, nullptr);
    load_row_tile<Sizes, precision, D>(c, memory, 1, rows, grad_out, RFN_KEY_NORM_NONE, 1.0f, nullptr);
  }
  const Element* const row0 = reinterpret_cast<const Element*>(memory) + warp * 16 * Sizes::kStride;
  const Element* const row1 = reinterpret_cast<const Element*>(memory + Sizes::kRowBytes) + warp * 16 * Sizes::kStride;
  Element *const column0 = reinterpret_cast<Element*>(memory + Sizes::kColumnTile0), *const column1 =
                                                                                         reinterpret_cast<Element*>(
                                                                                             memory +
                                                                                             Sizes::kColumnTile1);
  float *const raw0 = reinterpret_cast<float*>(memory + Sizes::kStage0), *const raw1 = reinterpret_cast<float*>(
                                                                             memory + Sizes::kStage1);
  uint8_t* const counts = memory + Sizes::kCounts + warp * 16 * N;

  // This lane's two rows.
  int32_t position[2];
  float row_log_sum_exp[2] = {}, row_delta[2] = {};  // of query rows, log_sum_exp in base 2
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    position[h] = rows[warp * 16 + r + 8 * h].x;
    if (!kKeys && position[h] >= 0) {
      const SequenceHead p = block_sequence_head(c);
      row_log_sum_exp[h] = c.attention.log_sum_exp[p.log_sum_exp + position[h]] * kLog2E;
      row_delta[h] = c.scratch.delta[p.index * c.window.length + position[h]];
    }
  }
  float sum0[D / 8][4] = {}, sum1[kKeys ? D / 8 : 1][4] = {};

  const auto load = [&](const Token* tokens) {
    load_rows<D>(c, raw0, tokens, N, kKeys ? q : k);
    load_rows<D>(c, raw1, tokens, N, kKeys ? grad_out : v);
    cp_async_commit();
  };
  int now = 0;
  int32_t start = next_columns<kKeys, N>(c, walk, walk.begin, edge, columns[now], numbers[now]);
  if (start < walk.end) load(columns[now]);
  while (start < walk.end) {
    cp_async_wait_all();
    __syncthreads();  // the copies of all threads have landed, and nobody works on the operands any more
    make_operand<precision, D>(raw0, column0, N, kKeys ? RFN_KEY_NORM_NONE : key_norm, kKeys ? query_factor : 1.0f,
                               head_size, nullptr);
    make_operand<precision, D>(raw1, column1, N, RFN_KEY_NORM_NONE, 1.0f, head_size, nullptr);
    const int32_t next = next_columns<kKeys, N>(c, walk, start + N, edge, columns[now ^ 1], numbers[now ^ 1]);
    __syncthreads();  // operands are complete, the stage is free
    if (Sizes::kStaged && next < walk.end) load(columns[now ^ 1]);

    const PairBits<N> bits = pair_bits<kKeys, N>(c, rows + warp * 16, dropout_rows + (kKeys ? 0 : warp * 16),
                                                 columns[now], numbers[now], counts);
    if (any_visible(bits)) {
      float scores[N / 8][4] = {}, products[N / 8][4] = {};
      multiply_transposed<precision, D, N>(scores, row0, column0);
      multiply_transposed<precision, D, N>(products, row1, column1);  // dO . v
      const RowBits<N> row = row_bits(c, bits);
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = 8 * n + 2 * c4 + e % 2, h = e / 2;
          const bool yes = (row.visible[h][n / 4] >> (column % 32) & 1u) != 0;
          if (c.window.log_counts && yes) scores[n][e] -= log2_count(counts[(r + 8 * h) * N + column]);
          const float log_sum_exp = kKeys ? numbers[now][kKeys ? column : 0].log_sum_exp : row_log_sum_exp[h];
          const float delta = kKeys ? numbers[now][kKeys ? column : 0].delta : row_delta[h];
          const float probability = yes ? exp2f(scores[n][e] - log_sum_exp) : 0.0f;
          const bool keep = (row.kept[h][n / 4] >> (column % 32) & 1u) != 0;
          const float multiplier = c.threshold == 0 ? 1.0f : keep ? c.keep_inverse : 0.0f;
          scores[n][e] = yes ? probability * (multiplier * products[n][e] - delta) : 0.0f;
          products[n][e] = probability * multiplier;
        }
      }
      multiply<precision, D, N>(sum0, scores, column0);
      if constexpr (kKeys) multiply<precision, D, N>(sum1, products, column1);
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
    const int32_t at = row_position(position[h]);
    const bool there = position[h] >= 0;
    const SequenceHead p = block_sequence_head(c);
    const auto store = [&](float* row, int column, float value, bool replace) {
      if (column >= head_size || (!there && !replace)) return;
      row[column] = replace ? value : row[column] + value;
    };
    if constexpr (!kKeys) {
      float* const row =
          head_rows(c, p, c.attention.grad_q, c.attention.grad_q_stride) + at * c.attention.grad_q_stride;
#pragma unroll
      for (int d = 0; d < D / 8; ++d) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (at >= 0) store(row, 8 * d + 2 * c4 + e, there ? sum0[d][2 * h + e] * c.scale : 0.0f, overwrite);
        }
      }
    } else {
      // k' = k / n: dk = (dk' - k' (k' . dk') w) / n, with w = 1 / D when n is the root mean square, 1 when it is the
      // length. The sum holds dk' log2(e), since the queries carry the scale in base 2.
      const float inverse = key_norm == RFN_KEY_NORM_NONE ? 1.0f : inverse_norms[warp * 16 + r + 8 * h];
      const float* const k_row =
          head_rows(c, p, c.attention.k, c.attention.k_stride) + (there ? at : 0) * c.attention.k_stride;
      const float* const dout_row = head_rows(c, p, c.attention.grad_out, c.attention.grad_out_stride) +
                                    (there ? at : 0) * c.attention.grad_out_stride;
      const bool lone = first && there && c.window.exclude_self &&
                        c.attention.log_sum_exp[p.log_sum_exp + at] == -INFINITY;  // it had its own value
      float along = 0.0f;
#pragma unroll
      for (int d = 0; d < D / 8; ++d) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * d + 2 * c4 + e;
          if (column < head_size) along = fmaf(k_row[column] * inverse, sum0[d][2 * h + e] * kLn2, along);
        }
      }
      along = key_norm == RFN_KEY_NORM_NONE ? 0.0f : group_sum<4>(along);
      if (key_norm == RFN_KEY_NORM_RMS) along /= static_cast<float>(head_size);
      if (at < 0) continue;
      // With shared projections dq is there already, in the same place.
      float* const dk = head_rows(c, p, c.attention.grad_k, c.attention.grad_k_stride) + at * c.attention.grad_k_stride;
      float* const dv = head_rows(c, p, c.attention.grad_v, c.attention.grad_v_stride) + at * c.attention.grad_v_stride;
#pragma unroll
      for (int d = 0; d < D / 8; ++d) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * d + 2 * c4 + e;
          const bool inside = column < head_size;
          const float key = inside ? k_row[column] * inverse : 0.0f;
          const float gradient = inverse * (sum0[d][2 * h + e] * kLn2 - key * along);
          store(dk, column, there ? gradient : 0.0f, overwrite && c.attention.grad_k != c.attention.grad_q);
          store(dv, column, there ? sum1[d][2 * h + e] + (lone && inside ? dout_row[column] : 0.0f) : 0.0f, overwrite);
        }
      }
    }
  }
}

// Key gradients of head sizes 32 and 64 need a few registers more than three blocks leave them.
template <int precision, int D, bool kKeys>
constexpr int kBackwardBlocks = kKeys&& D <= 64 ? 2 : Tile<precision, D, true>::kBlocks;

template <int precision, int D, bool kKeys>
__global__ void __launch_bounds__((Tile<precision, D, true>::kThreads), (kBackwardBlocks<precision, D, kKeys>))
    attention_backward_kernel(const TileCall c, int first, int overwrite) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  if constexpr (precision != RFN_PRECISION_F32)
    __trap();
  else
#endif
    differentiate<precision, D, kKeys>(c, first != 0, overwrite != 0);
}

}  // namespace

rfn_status attention_backward_rounds(rfn_stream& stream, const Attention& a, const AttentionScratch& s, int64_t first,
                                     int64_t last, bool overwrite) {
  if (takes_chunks(*stream.context, a)) return chunks_backward(stream, a, s);
  RFN_CUDA_TRY(
      stream, RFN_LAUNCH(attention_delta_kernel, blocks_for(a.sequence_heads() * a.length, kDeltaThreads / kDeltaLanes),
                         kDeltaThreads, 0, native_stream(stream), tile_call(a, s, first)));
  return with_tile(*stream.context, a.head_size, [&](auto precision, auto size) -> rfn_status {
    using Sizes = Tile<precision.value, size.value, true>;
    const auto queries = attention_backward_kernel<precision.value, size.value, false>;
    const auto keys = attention_backward_kernel<precision.value, size.value, true>;
    for (int64_t round = first; round < last; ++round) {
      RFN_TRY(launch_tiles<Sizes>(stream, queries, tile_call(a, s, round), 0, overwrite && round == first ? 1 : 0));
    }
    // Queries of some rounds alone can still have keys of all, across the ring.
    TileCall call = tile_call(a, s, first);
    const bool all = call.window.ring && last - first < a.rounds();
    const int64_t first_keys = all ? 0 : first, last_keys = all ? a.rounds() : last;
    for (int64_t round = first_keys; round < last_keys; ++round) {
      call = tile_call(a, s, round);
      call.first_query_round = static_cast<int32_t>(first);
      call.last_query_round = static_cast<int32_t>(last);
      const int is_first = round == first_keys ? 1 : 0;
      RFN_TRY(launch_tiles<Sizes>(stream, keys, call, is_first, overwrite ? is_first : 0));
    }
    return RFN_OK;
  });
}

}  // namespace rfn::cuda
