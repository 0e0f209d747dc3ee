#include "cpu/row_attention.h"

#include <algorithm>
#include <limits>

#include "core/attention_window.h"
#include "cpu/simd.h"
#include "reformer_native.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/row_attention.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rfn::cpu::HWY_NAMESPACE {

constexpr int64_t kAhead = 24;  // rows fetched before they are needed: they lie anywhere in the cache of all tokens
constexpr int64_t kLine = 64 / sizeof(float);
constexpr int kVectors = 4;  // of the output at a time

HWY_INLINE void fetch(const float* row, int64_t n) {
  for (int64_t d = 0; d < n; d += kLine) hwy::Prefetch(row + d);
}

// q . k / norm of k
HWY_INLINE float score(const RowAttention& a, const float* key) {
  const F32 f;
  VecF32 product = hn::Zero(f), squares = hn::Zero(f);
  for_vectors(f, a.head_size, [&](auto load, auto, int64_t) HWY_ATTR {
    const VecF32 k = load(key);
    product = hn::MulAdd(load(a.query), k, product);
    squares = hn::MulAdd(k, k, squares);
  });
  return sum(f, product) * key_scale(sum(f, squares), a.head_size, a.key_norm);
}

// `vectors` vectors of the output from d on.
template <int vectors>
HWY_INLINE void weigh(const RowAttention& a, int64_t d, float inverse) {
  const F32 f;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(f));
  VecF32 out[vectors];
  for (int i = 0; i < vectors; ++i) out[i] = hn::Zero(f);
  for (int64_t j = 0; j < a.count; ++j) {
    const VecF32 weight = hn::Set(f, a.scores[j]);
    const float* const row = a.values + a.rows[j] * a.stride + d;
    for (int i = 0; i < vectors; ++i) out[i] = hn::MulAdd(weight, hn::LoadU(f, row + i * lanes), out[i]);
  }
  for (int i = 0; i < vectors; ++i) hn::StoreU(hn::Mul(out[i], hn::Set(f, inverse)), f, a.out + d + i * lanes);
}

void row_attention(const RowAttention& a) {
  const F32 f;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(f));
  float highest = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < std::min(kAhead, a.count); ++j) fetch(a.keys + a.rows[j] * a.stride, a.head_size);
  for (int64_t j = 0; j < a.count; ++j) {
    if (j + kAhead < a.count) fetch(a.keys + a.rows[j + kAhead] * a.stride, a.head_size);
    fetch(a.values + a.rows[j] * a.stride, a.head_size);
    a.scores[j] = a.scale * score(a, a.keys + a.rows[j] * a.stride);
    highest = std::max(highest, a.scores[j]);
  }
  VecF32 total = hn::Zero(f);
  for_vectors(f, a.count, [&](auto load, auto store, int64_t j) HWY_ATTR {
    const VecF32 p = first_or(f, hn::Exp(f, hn::Sub(load(a.scores), hn::Set(f, highest))), a.count - j, hn::Zero(f));
    total = hn::Add(total, p);
    store(p, a.scores);
  });
  const float inverse = 1.0f / sum(f, total);
  int64_t d = 0;
  for (; d + kVectors * lanes <= a.head_size; d += kVectors * lanes) weigh<kVectors>(a, d, inverse);
  for (; d + lanes <= a.head_size; d += lanes) weigh<1>(a, d, inverse);
  if (d == a.head_size) return;
  VecF32 out = hn::Zero(f);
  for (int64_t j = 0; j < a.count; ++j) {
    out = hn::MulAdd(hn::Set(f, a.scores[j]), load_first(f, a.values + a.rows[j] * a.stride + d, a.head_size - d), out);
  }
  store_first(f, hn::Mul(out, hn::Set(f, inverse)), a.out + d, a.head_size - d);
}

}  // namespace rfn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rfn::cpu {
void row_attention(const RowAttention& a) { RFN_SIMD_CHOOSE(row_attention)(a); }
}  // namespace rfn::cpu
#endif  // HWY_ONCE
