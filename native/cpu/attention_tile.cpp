#include "cpu/attention_tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/simd.h"
#include "reformer_native.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention_tile.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace rfn::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Ints = hn::ScalableTag<int32_t>;
using Vector = hn::Vec<Floats>;

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Accumulator block of the product kernel: rows x vectors that fit the register file (32 registers with AVX-512, 16 elsewhere).
#if HWY_TARGET == HWY_AVX3
constexpr int kRows = 6, kVectors = 4;
#else
constexpr int kRows = 6, kVectors = 2;
#endif

// C[rows, vectors] (+)= A B for one accumulator block; A(i, k) = a[i * row_step + k * column_step].
template <int rows, int vectors, bool add>
HWY_INLINE void product_block(int64_t depth, const float* HWY_RESTRICT a, int64_t row_step, int64_t column_step, const float* HWY_RESTRICT b,
                              int64_t ldb, float* HWY_RESTRICT c, int64_t ldc) {
  const Floats f;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(f));
  Vector sum[rows][vectors];
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < vectors; ++j) sum[i][j] = add ? hn::Load(f, c + i * ldc + j * lanes) : hn::Zero(f);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector right[vectors];
    for (int j = 0; j < vectors; ++j) right[j] = hn::Load(f, b + k * ldb + j * lanes);
    for (int i = 0; i < rows; ++i) {
      const Vector left = hn::Set(f, a[i * row_step + k * column_step]);
      for (int j = 0; j < vectors; ++j) sum[i][j] = hn::MulAdd(left, right[j], sum[i][j]);
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < vectors; ++j) hn::Store(sum[i][j], f, c + i * ldc + j * lanes);
  }
}

template <int vectors, bool add>
HWY_INLINE void product_panel(int64_t m, int64_t depth, const float* a, int64_t row_step, int64_t column_step, const float* b, int64_t ldb, float* c,
                              int64_t ldc) {
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows) {
    product_block<kRows, vectors, add>(depth, a + i * row_step, row_step, column_step, b, ldb, c + i * ldc, ldc);
  }
  const float* const tail = a + i * row_step;
  float* const tail_c = c + i * ldc;
  switch (m - i) {
    case 5: product_block<5, vectors, add>(depth, tail, row_step, column_step, b, ldb, tail_c, ldc); break;
    case 4: product_block<4, vectors, add>(depth, tail, row_step, column_step, b, ldb, tail_c, ldc); break;
    case 3: product_block<3, vectors, add>(depth, tail, row_step, column_step, b, ldb, tail_c, ldc); break;
    case 2: product_block<2, vectors, add>(depth, tail, row_step, column_step, b, ldb, tail_c, ldc); break;
    case 1: product_block<1, vectors, add>(depth, tail, row_step, column_step, b, ldb, tail_c, ldc); break;
    default: break;
  }
  static_assert(kRows == 6, "the tail cases above");
}

// C[m, n] (+)= A[m, depth] B[depth, n]; n is a multiple of kLanePad, b and c rows are aligned and padded.
template <bool add>
HWY_NOINLINE void product(int64_t m, int64_t n, int64_t depth, const float* a, int64_t row_step, int64_t column_step, const float* b, int64_t ldb,
                          float* c, int64_t ldc) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(Floats()));
  int64_t j = 0;
  for (; j + kVectors * lanes <= n; j += kVectors * lanes) {
    product_panel<kVectors, add>(m, depth, a, row_step, column_step, b + j, ldb, c + j, ldc);
  }
#if HWY_TARGET == HWY_AVX3
  if (j + 2 * lanes <= n) {
    product_panel<2, add>(m, depth, a, row_step, column_step, b + j, ldb, c + j, ldc);
    j += 2 * lanes;
  }
#endif
  for (; j < n; j += lanes) product_panel<1, add>(m, depth, a, row_step, column_step, b + j, ldb, c + j, ldc);
}

void pack_queries(const float* base, int64_t stride, const TileQueries& queries, float scale, const TileBuffers& t, float* HWY_RESTRICT rows,
                  float* HWY_RESTRICT transposed) {
  const int64_t wide = t.wide, head_size = t.head_size, used = (queries.count + kLanePad - 1) / kLanePad * kLanePad;
  for (int64_t i = 0; i < used; ++i) {
    float* const row = rows + i * wide;
    const int32_t position = i < queries.count ? queries.position[i] : -1;
    if (position < 0) {
      std::fill_n(row, wide, 0.0f);
      continue;
    }
    const float* const source = base + position * stride;
    for (int64_t d = 0; d < head_size; ++d) row[d] = source[d] * scale;
    std::fill(row + head_size, row + wide, 0.0f);
  }
  if (transposed == nullptr) return;
  for (int64_t i = 0; i < used; i += kLanePad) {
    for (int64_t d = 0; d < wide; ++d) {
      for (int64_t lane = 0; lane < kLanePad; ++lane) transposed[d * kTileQueries + i + lane] = rows[(i + lane) * wide + d];
    }
  }
}

void pack_keys(const float* base, int64_t stride, TileKeys& keys, int32_t key_norm, const TileBuffers& t, float* HWY_RESTRICT rows) {
  const int64_t wide = t.wide, head_size = t.head_size;
  const Floats f;
  for (int64_t j = 0; j < keys.count; ++j) {
    float* const row = rows + j * wide;
    keys.inverse_norm[j] = 1.0f;
    const int32_t position = keys.position[j];
    if (position < 0) {
      std::fill_n(row, wide, 0.0f);
      continue;
    }
    std::memcpy(row, base + position * stride, static_cast<size_t>(head_size) * sizeof(float));
    std::fill(row + head_size, row + wide, 0.0f);
    if (key_norm == RFN_KEY_NORM_NONE) continue;
    Vector squares = hn::Zero(f);
    for (int64_t d = 0; d < wide; d += static_cast<int64_t>(hn::Lanes(f))) {
      const Vector x = hn::Load(f, row + d);
      squares = hn::MulAdd(x, x, squares);
    }
    const float sum = hn::GetLane(hn::SumOfLanes(f, squares));
    const float inverse = key_norm == RFN_KEY_NORM_RMS ? 1.0f / std::sqrt(sum / static_cast<float>(head_size) + 1e-6f)
                                                       : 1.0f / std::max(std::sqrt(sum), 1e-12f);
    keys.inverse_norm[j] = inverse;
    const Vector factor = hn::Set(f, inverse);
    for (int64_t d = 0; d < wide; d += static_cast<int64_t>(hn::Lanes(f))) hn::Store(hn::Mul(hn::Load(f, row + d), factor), f, row + d);
  }
}

// Lanes whose query may attend to key j.
HWY_INLINE hn::Mask<Ints> allowed(const TileMask& mask, const TileQueries& queries, const TileKeys& keys, int64_t j, int64_t lane) {
  const Ints n;
  const auto position = hn::Load(n, queries.position + lane);
  const auto key = hn::Set(n, keys.position[j]);
  auto yes = hn::Gt(position, hn::Set(n, -1));
  if (mask.causal) yes = hn::And(yes, hn::Not(hn::Gt(key, position)));
  if (mask.exclude_self) yes = hn::And(yes, hn::Not(hn::Eq(position, key)));
  if (mask.same_bucket || mask.strict) yes = hn::And(yes, hn::Eq(hn::Load(n, queries.bucket + lane), hn::Set(n, keys.bucket[j])));
  if (mask.strict) {
    const auto ahead = hn::Sub(hn::Load(n, queries.slot + lane), hn::Set(n, keys.slot[j]));
    yes = hn::And(yes, hn::And(hn::Gt(ahead, hn::Zero(n)), hn::Not(hn::Gt(ahead, hn::Set(n, mask.span)))));
  }
  return yes;
}

// scores[j, i] = q_i . k_j - log count, -inf where forbidden.
HWY_INLINE void masked_scores(const TileMask& mask, const TileQueries& queries, const TileKeys& keys, const TileBuffers& t, int64_t used) {
  product<false>(keys.count, used, t.head_size, t.k, t.wide, 1, t.q_transposed, kTileQueries, t.scores, kTileQueries);
  const Floats f;
  const Vector forbidden = hn::Set(f, kNegativeInfinity);
  for (int64_t j = 0; j < keys.count; ++j) {
    float* const row = t.scores + j * kTileQueries;
    if (keys.position[j] < 0) {
      for (int64_t lane = 0; lane < used; lane += static_cast<int64_t>(hn::Lanes(f))) hn::Store(forbidden, f, row + lane);
      continue;
    }
    for (int64_t lane = 0; lane < used; lane += static_cast<int64_t>(hn::Lanes(f))) {
      Vector score = hn::Load(f, row + lane);
      if (t.log_count != nullptr) score = hn::Sub(score, hn::Load(f, t.log_count + j * kTileQueries + lane));
      const auto yes = hn::RebindMask(f, allowed(mask, queries, keys, j, lane));
      hn::Store(hn::IfThenElse(yes, score, forbidden), f, row + lane);
    }
  }
}

HWY_INLINE void multiply_rows(float* x, const float* y, int64_t rows, int64_t used) {
  const Floats f;
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t lane = 0; lane < used; lane += static_cast<int64_t>(hn::Lanes(f))) {
      const int64_t at = j * kTileQueries + lane;
      hn::Store(hn::Mul(hn::Load(f, x + at), hn::Load(f, y + at)), f, x + at);
    }
  }
}

void forward(const TileMask& mask, TileQueries& queries, const TileKeys& keys, const TileBuffers& t) {
  const Floats f;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(f)), used = (queries.count + kLanePad - 1) / kLanePad * kLanePad;
  masked_scores(mask, queries, keys, t, used);
  HWY_ALIGN float rescale[kTileQueries];
  bool rescaled = false;
  for (int64_t lane = 0; lane < used; lane += lanes) {
    const Vector before = hn::Load(f, queries.maximum + lane);
    Vector maximum = before;
    for (int64_t j = 0; j < keys.count; ++j) maximum = hn::Max(maximum, hn::Load(f, t.scores + j * kTileQueries + lane));
    // A query without any key so far keeps -inf; 0 stands in for it so that no exponent is (-inf) - (-inf).
    const Vector reference = hn::IfThenElse(hn::Eq(maximum, hn::Set(f, kNegativeInfinity)), hn::Zero(f), maximum);
    const Vector shrink = hn::Exp(f, hn::Sub(before, reference));
    Vector sum = hn::Zero(f);
    for (int64_t j = 0; j < keys.count; ++j) {
      float* const score = t.scores + j * kTileQueries + lane;
      const Vector p = hn::Exp(f, hn::Sub(hn::Load(f, score), reference));
      sum = hn::Add(sum, p);
      hn::Store(p, f, score);
    }
    hn::Store(maximum, f, queries.maximum + lane);
    hn::Store(hn::MulAdd(hn::Load(f, queries.sum + lane), shrink, sum), f, queries.sum + lane);
    hn::Store(shrink, f, rescale + lane);
    rescaled = rescaled || !hn::AllTrue(f, hn::Eq(shrink, hn::Set(f, 1.0f)));
  }
  if (t.dropout != nullptr) multiply_rows(t.scores, t.dropout, keys.count, used);
  if (rescaled) {
    for (int64_t i = 0; i < queries.count; ++i) {
      if (rescale[i] == 1.0f) continue;
      const Vector factor = hn::Set(f, rescale[i]);
      for (int64_t d = 0; d < t.wide; d += lanes) hn::Store(hn::Mul(hn::Load(f, t.out + i * t.wide + d), factor), f, t.out + i * t.wide + d);
    }
  }
  product<true>(queries.count, t.wide, keys.count, t.scores, 1, kTileQueries, t.v, t.wide, t.out, t.wide);
}

void backward(const TileMask& mask, const TileQueries& queries, const TileKeys& keys, const TileBuffers& t) {
  const Floats f;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(f)), used = (queries.count + kLanePad - 1) / kLanePad * kLanePad;
  masked_scores(mask, queries, keys, t, used);
  product<false>(keys.count, used, t.head_size, t.v, t.wide, 1, t.grad_out_transposed, kTileQueries, t.grad_scores, kTileQueries);
  if (t.dropout != nullptr) multiply_rows(t.grad_scores, t.dropout, keys.count, used);
  for (int64_t lane = 0; lane < used; lane += lanes) {
    // lse = -inf: no key in any round, and no score here is finite; 0 stands in.
    const Vector lse = hn::Load(f, queries.maximum + lane);
    const Vector reference = hn::IfThenElse(hn::Eq(lse, hn::Set(f, kNegativeInfinity)), hn::Zero(f), lse);
    const Vector delta = hn::Load(f, queries.delta + lane);
    for (int64_t j = 0; j < keys.count; ++j) {
      const int64_t at = j * kTileQueries + lane;
      const Vector p = hn::Exp(f, hn::Sub(hn::Load(f, t.scores + at), reference));
      hn::Store(hn::Mul(p, hn::Sub(hn::Load(f, t.grad_scores + at), delta)), f, t.grad_scores + at);
      hn::Store(p, f, t.scores + at);
    }
  }
  if (t.dropout != nullptr) multiply_rows(t.scores, t.dropout, keys.count, used);
  product<false>(keys.count, t.wide, queries.count, t.scores, kTileQueries, 1, t.grad_out, t.wide, t.grad_v, t.wide);
  product<false>(keys.count, t.wide, queries.count, t.grad_scores, kTileQueries, 1, t.q, t.wide, t.grad_k, t.wide);
  product<true>(queries.count, t.wide, keys.count, t.grad_scores, 1, kTileQueries, t.k, t.wide, t.grad_q, t.wide);
}

void add_key_gradient(float* HWY_RESTRICT destination, const TileKeys& keys, int64_t key, int32_t key_norm, const TileBuffers& t) {
  const float* const gradient = t.grad_k + key * t.wide;
  if (key_norm == RFN_KEY_NORM_NONE) {
    for (int64_t d = 0; d < t.head_size; ++d) destination[d] += gradient[d];
    return;
  }
  // k = q / n: dq = (dk - k (k . dk) c) / n, with c = 1 / D when n is the root mean square, 1 when it is the length.
  const Floats f;
  const float* const row = t.k + key * t.wide;
  Vector products = hn::Zero(f);
  for (int64_t d = 0; d < t.wide; d += static_cast<int64_t>(hn::Lanes(f))) {
    products = hn::MulAdd(hn::Load(f, row + d), hn::Load(f, gradient + d), products);
  }
  const float inverse = keys.inverse_norm[key];
  float along = hn::GetLane(hn::SumOfLanes(f, products));
  if (key_norm == RFN_KEY_NORM_RMS) along /= static_cast<float>(t.head_size);
  for (int64_t d = 0; d < t.head_size; ++d) destination[d] += inverse * (gradient[d] - row[d] * along);
}

void hash(const TileBuffers& t, int64_t count, const float* rotations, int64_t row_stride, int64_t half, int32_t bucket_stride, int32_t* buckets) {
  const Floats f;
  const Ints n;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(f)), used = (count + kLanePad - 1) / kLanePad * kLanePad;
  HWY_ALIGN float highest[kTileQueries], lowest[kTileQueries];
  HWY_ALIGN int32_t highest_at[kTileQueries], lowest_at[kTileQueries];
  std::fill_n(highest, kTileQueries, kNegativeInfinity);
  std::fill_n(lowest, kTileQueries, -kNegativeInfinity);
  std::fill_n(highest_at, kTileQueries, 0);
  std::fill_n(lowest_at, kTileQueries, 0);
  for (int64_t first = 0; first < half; first += kTileKeys) {
    const int64_t columns = std::min(kTileKeys, half - first);
    product<false>(columns, used, t.head_size, rotations + first, 1, row_stride, t.q_transposed, kTileQueries, t.scores, kTileQueries);
    for (int64_t lane = 0; lane < used; lane += lanes) {
      Vector high = hn::Load(f, highest + lane), low = hn::Load(f, lowest + lane);
      auto high_at = hn::Load(n, highest_at + lane), low_at = hn::Load(n, lowest_at + lane);
      for (int64_t j = 0; j < columns; ++j) {
        const Vector z = hn::Load(f, t.scores + j * kTileQueries + lane);
        const auto at = hn::Set(n, static_cast<int32_t>(first + j));
        const auto above = hn::Gt(z, high);
        const auto below = hn::Lt(z, low);
        high = hn::IfThenElse(above, z, high);
        low = hn::IfThenElse(below, z, low);
        high_at = hn::IfThenElse(hn::RebindMask(n, above), at, high_at);
        low_at = hn::IfThenElse(hn::RebindMask(n, below), at, low_at);
      }
      hn::Store(high, f, highest + lane);
      hn::Store(low, f, lowest + lane);
      hn::Store(high_at, n, highest_at + lane);
      hn::Store(low_at, n, lowest_at + lane);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    // The first maximum of [z, -z] wins, so the positive half does on a tie.
    const int32_t digit = highest[i] >= -lowest[i] ? highest_at[i] : static_cast<int32_t>(half) + lowest_at[i];
    buckets[i] += bucket_stride * digit;
  }
}

const TileKernels& kernels() {
  static const TileKernels table = {pack_queries, pack_keys, forward, backward, add_key_gradient, hash};
  return table;
}

}  // namespace HWY_NAMESPACE
}  // namespace rfn::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rfn::cpu {
const TileKernels& tile_kernels() {
  static const TileKernels& chosen = RFN_SIMD_CHOOSE(kernels)();
  return chosen;
}
}  // namespace rfn::cpu
#endif
