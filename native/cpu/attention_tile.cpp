#include "cpu/attention_tile.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "core/attention_window.h"
#include "cpu/simd.h"
#include "reformer_native.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention_tile.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rfn::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using I32 = hn::ScalableTag<int32_t>;
using VecI32 = hn::Vec<I32>;

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(F32())); }

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Accumulator blocks of the product kernel, in vectors: as wide as kVectors, and as many rows as the register file
// holds (32 registers with AVX-512, 16 elsewhere).
#if HWY_TARGET == HWY_AVX3
constexpr int kVectors = 4;
constexpr int block_rows(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : 12; }
#else
constexpr int kVectors = 2;
constexpr int block_rows(int vectors) { return vectors == 2 ? 6 : 12; }
#endif

// C[rows, vectors] (+)= A B for one accumulator block; A(i, k) = a[i * row_step + k * column_step].
template <int rows, int vectors, bool add>
HWY_INLINE void product_block(int64_t depth, const float* HWY_RESTRICT a, int64_t row_step, int64_t column_step,
                              const float* HWY_RESTRICT b, int64_t ldb, float* HWY_RESTRICT c, int64_t ldc) {
  const F32 f;
  VecF32 sum[rows][vectors];
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < vectors; ++j) sum[i][j] = add ? hn::Load(f, c + i * ldc + j * lanes()) : hn::Zero(f);
  }
  for (int64_t k = 0; k < depth; ++k) {
    VecF32 right[vectors];
    for (int j = 0; j < vectors; ++j) right[j] = hn::Load(f, b + k * ldb + j * lanes());
    for (int i = 0; i < rows; ++i) {
      const VecF32 left = hn::Set(f, a[i * row_step + k * column_step]);
      for (int j = 0; j < vectors; ++j) sum[i][j] = hn::MulAdd(left, right[j], sum[i][j]);
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < vectors; ++j) hn::Store(sum[i][j], f, c + i * ldc + j * lanes());
  }
}

// Rows fetched ahead after each accumulator block.
constexpr int64_t kRowsAhead = 8;

// The last m < rows of them.
template <int rows, int vectors, bool add>
HWY_INLINE void product_tail(int64_t m, int64_t depth, const float* a, int64_t row_step, int64_t column_step,
                             const float* b, int64_t ldb, float* c, int64_t ldc) {
  if constexpr (rows > 1) {
    if (m == rows - 1) return product_block<rows - 1, vectors, add>(depth, a, row_step, column_step, b, ldb, c, ldc);
    product_tail<rows - 1, vectors, add>(m, depth, a, row_step, column_step, b, ldb, c, ldc);
  }
}

template <int vectors, bool add>
HWY_INLINE void product_panel(int64_t m, int64_t depth, const float* a, int64_t row_step, int64_t column_step,
                              const float* b, int64_t ldb, float* c, int64_t ldc, RowsAhead* ahead) {
  constexpr int rows = block_rows(vectors);
  int64_t i = 0;
  for (; i + rows <= m; i += rows) {
    product_block<rows, vectors, add>(depth, a + i * row_step, row_step, column_step, b, ldb, c + i * ldc, ldc);
    if (ahead != nullptr) ahead->fetch(kRowsAhead);
  }
  product_tail<rows, vectors, add>(m - i, depth, a + i * row_step, row_step, column_step, b, ldb, c + i * ldc, ldc);
}

// C[m, n] (+)= A[m, depth] B[depth, n]; n is a multiple of kLanePad, b and c rows are aligned and padded.
template <bool add>
HWY_NOINLINE void product(int64_t m, int64_t n, int64_t depth, const float* a, int64_t row_step, int64_t column_step,
                          const float* b, int64_t ldb, float* c, int64_t ldc, RowsAhead* ahead) {
  int64_t j = 0;
  for (; j + kVectors * lanes() <= n; j += kVectors * lanes()) {
    product_panel<kVectors, add>(m, depth, a, row_step, column_step, b + j, ldb, c + j, ldc, ahead);
  }
#if HWY_TARGET == HWY_AVX3
  if (j + 3 * lanes() <= n)
    return product_panel<3, add>(m, depth, a, row_step, column_step, b + j, ldb, c + j, ldc, ahead);
  if (j + 2 * lanes() <= n)
    return product_panel<2, add>(m, depth, a, row_step, column_step, b + j, ldb, c + j, ldc, ahead);
#endif
  if (j < n) product_panel<1, add>(m, depth, a, row_step, column_step, b + j, ldb, c + j, ldc, ahead);
}

#if HWY_TARGET != HWY_SCALAR
// A vector of which block b, of four floats, is from[0 .. 3] of row 4 b.
template <class D>
HWY_INLINE hn::Vec<D> load_blocks(D d, const float* from, int64_t columns) {
  constexpr int64_t kHalf = hn::MaxLanes(D()) / 2;
  if constexpr (kHalf == 2) {
    return hn::Load(d, from);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, load_blocks(half, from + kHalf * columns, columns), load_blocks(half, from, columns));
  }
}
#endif

// transposed[j * kTileQueries + i] = rows[i * columns + j], as many squares of four at once as a vector has blocks.
void transpose(const float* HWY_RESTRICT rows, int64_t count, int64_t columns, float* HWY_RESTRICT transposed) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < columns; ++j) transposed[j * kTileQueries + i] = rows[i * columns + j];
  }
#else
  const F32 f;
  const hn::Repartition<double, F32> pairs;
  for (int64_t i = 0; i < count; i += lanes()) {
    for (int64_t j = 0; j < columns; j += 4) {
      const float* const from = rows + i * columns + j;
      float* const to = transposed + j * kTileQueries + i;
      const VecF32 row0 = load_blocks(f, from, columns), row1 = load_blocks(f, from + columns, columns);
      const VecF32 row2 = load_blocks(f, from + 2 * columns, columns),
                   row3 = load_blocks(f, from + 3 * columns, columns);
      const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(f, row0, row1)),
                 low23 = hn::BitCast(pairs, hn::InterleaveLower(f, row2, row3));
      const auto high01 = hn::BitCast(pairs, hn::InterleaveUpper(f, row0, row1)),
                 high23 = hn::BitCast(pairs, hn::InterleaveUpper(f, row2, row3));
      hn::Store(hn::BitCast(f, hn::InterleaveLower(pairs, low01, low23)), f, to);
      hn::Store(hn::BitCast(f, hn::InterleaveUpper(pairs, low01, low23)), f, to + kTileQueries);
      hn::Store(hn::BitCast(f, hn::InterleaveLower(pairs, high01, high23)), f, to + 2 * kTileQueries);
      hn::Store(hn::BitCast(f, hn::InterleaveUpper(pairs, high01, high23)), f, to + 3 * kTileQueries);
    }
  }
#endif
}

// exp(x) for x <= 0, 0 below -87 (where it is under 2e-38), NaN for NaN; relative error below (2 + 2 |x|) 2^-24, about
// that of a score of size |x|. Fewer instructions than the library's, which is exact for large and tiny results too.
HWY_INLINE VecF32 exp_of_negative(VecF32 x) {
  const F32 f;
  const I32 n;
  const VecF32 log2_e = hn::Set(f, 1.44269504f);
  // x log2(e) = k + r, |r| <= 1/2. Added to 3 * 2^22, k is rounded off into the lowest bits, with the bias of an
  // exponent; its float is 2^k.
  const VecF32 shift = hn::Set(f, 12582912.0f + 127.0f);
  const VecF32 shifted = hn::MulAdd(x, log2_e, shift);
  const VecF32 r = hn::MulSub(x, log2_e, hn::Sub(shifted, shift));
  const VecF32 power = hn::BitCast(f, hn::ShiftLeft<23>(hn::BitCast(n, shifted)));
  // 2^r by the polynomial of least relative error, 2e-9
  VecF32 e = hn::MulAdd(r, hn::Set(f, 1.5353362e-4f), hn::Set(f, 1.3398875e-3f));
  e = hn::MulAdd(e, r, hn::Set(f, 9.618437e-3f));
  e = hn::MulAdd(e, r, hn::Set(f, 5.5503324e-2f));
  e = hn::MulAdd(e, r, hn::Set(f, 2.4022648e-1f));
  e = hn::MulAdd(e, r, hn::Set(f, 6.931472e-1f));
  e = hn::MulAdd(e, r, hn::Set(f, 1.0f));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(f, -87.0f)), hn::Mul(e, power));
}

HWY_INLINE int64_t used_lanes(const TileQueries& queries) {
  return (queries.count + kLanePad - 1) / kLanePad * kLanePad;
}

// A row of head_size floats, times scale, padded with zeros to wide.
HWY_INLINE void pack_row(const float* HWY_RESTRICT from, float scale, const TileBuffers& t, float* HWY_RESTRICT row) {
  const F32 f;
  const VecF32 factor = hn::Set(f, scale);
  if (t.wide != t.head_size) std::fill(row + t.head_size, row + t.wide, 0.0f);
  for_vectors(f, t.head_size,
              [&](auto load, auto store, int64_t) HWY_ATTR { store(hn::Mul(load(from), factor), row); });
}

void pack_queries(const float* base, int64_t stride, const TileQueries& queries, float scale, const TileBuffers& t,
                  float* HWY_RESTRICT rows, float* HWY_RESTRICT transposed) {
  const int64_t used = used_lanes(queries);
  for (int64_t i = 0; i < used; ++i) {
    const int32_t position = i < queries.count ? queries.position[i] : -1;
    if (position < 0) {
      std::fill_n(rows + i * t.wide, t.wide, 0.0f);
    } else {
      pack_row(base + position * stride, scale, t, rows + i * t.wide);
    }
  }
  transpose(rows, used, t.wide, transposed);
}

void pack_keys(const float* keys, int64_t key_stride, const float* values, int64_t value_stride, int32_t key_norm,
               const TileBuffers& t, KeyBlock& block) {
  const F32 f;
  for (int64_t j = 0; j < block.count; ++j) {
    const float* const key = keys + block.position[j] * key_stride;
    block.scale[j] = 1.0f;
    if (key_norm != RFN_KEY_NORM_NONE) {
      VecF32 squares = hn::Zero(f);
      for_vectors(f, t.head_size, [&](auto load, auto, int64_t) HWY_ATTR {
        const VecF32 x = load(key);
        squares = hn::MulAdd(x, x, squares);
      });
      block.scale[j] = key_scale(sum(f, squares), t.head_size, key_norm);
    }
    pack_row(key, block.scale[j], t, block.k + j * t.wide);
    pack_row(values + block.position[j] * value_stride, 1.0f, t, block.v + j * t.wide);
  }
}

// ---- masks: the window's `sees` for a vector of queries and one key that the walk has found ----

enum class Window { kAll, kSameBucket, kStrict };

template <Window window_, bool causal_, bool exclude_self_>
struct MaskOf {
  static constexpr Window window = window_;
  static constexpr bool causal = causal_, exclude_self = exclude_self_;
};

// Calls body with a MaskOf that says at compile time what the window asks for.
template <class Body>
HWY_INLINE void for_mask(const AttentionWindow<>& rule, const Body& body) {
  const auto self = [&](auto all, auto without) HWY_ATTR {
    if (rule.exclude_self) {
      body(without);
    } else {
      body(all);
    }
  };
  if (rule.strict) return self(MaskOf<Window::kStrict, true, false>(), MaskOf<Window::kStrict, true, true>());
  if (rule.same_bucket && rule.causal)
    return self(MaskOf<Window::kSameBucket, true, false>(), MaskOf<Window::kSameBucket, true, true>());
  if (rule.same_bucket)
    return self(MaskOf<Window::kSameBucket, false, false>(), MaskOf<Window::kSameBucket, false, true>());
  if (rule.causal) return self(MaskOf<Window::kAll, true, false>(), MaskOf<Window::kAll, true, true>());
  self(MaskOf<Window::kAll, false, false>(), MaskOf<Window::kAll, false, true>());
}

// The queries of one vector, compared with one key after the other.
template <class M>
struct LaneQueries {
  VecI32 position, limit, slot, bucket, span;  // causal: keys up to `limit`

  HWY_INLINE void load(const AttentionWindow<>& rule, const TileQueries& queries, int64_t lane) {
    const I32 n;
    position = hn::Load(n, queries.position + lane);
    limit = M::exclude_self ? hn::Sub(position, hn::Set(n, 1)) : position;
    slot = hn::Load(n, queries.slot + lane);
    bucket = hn::Load(n, queries.bucket + lane);
    span = hn::Set(n, static_cast<int32_t>(rule.span));
  }

  // The score where the query may attend to key j, else `otherwise`.
  HWY_INLINE VecF32 select(const KeyBlock& keys, int64_t j, VecF32 score, VecF32 otherwise) const {
    const F32 f;
    const I32 n;
    const VecI32 key = hn::Set(n, keys.position[j]);
    const auto take = [&](hn::Mask<I32> forbidden)
                          HWY_ATTR { score = hn::IfThenElse(hn::RebindMask(f, forbidden), otherwise, score); };
    if (M::causal) take(hn::Gt(key, limit));
    if (M::exclude_self && !M::causal) take(hn::Eq(key, position));
    if (M::window != Window::kAll) take(hn::Ne(bucket, hn::Set(n, keys.bucket[j])));
    if (M::window == Window::kStrict) {
      const VecI32 ahead = hn::Sub(slot, hn::Set(n, keys.slot[j]));
      take(hn::Gt(hn::Set(n, 1), ahead));
      take(hn::Gt(ahead, span));
    }
    return score;
  }
};

// ---- what of a tile is computed ----

// Keys [first_key, last_key) x query lanes [first_lane, last_lane) of a tile, multiples of kLanePad.
struct Rectangle {
  int64_t first_key, last_key, first_lane, last_lane;
};

// What the mask leaves of the scores of a tile and a block of keys, by position, bucket and slot alone: a whole block
// in general, a staircase where positions or buckets of queries and keys ascend.
class Visible {
 public:
  template <class M>
  HWY_INLINE void find(const AttentionWindow<>& rule, const TileQueries& queries, const KeyBlock& keys) {
    uint64_t cuts = 0;  // a bit for each key where a range begins or has ended
    groups_ = (queries.count + kLanePad - 1) / kLanePad;
    for (int64_t g = 0; g < groups_; ++g) {
      const uint64_t seen = seen_by_any<M>(rule, queries, g * kLanePad, keys);
      first_key_[g] = seen == 0 ? 0 : __builtin_ctzll(seen);
      last_key_[g] = seen == 0 ? 0 : kBlockKeys - __builtin_clzll(seen);
      if (seen != 0) cuts |= uint64_t{1} << first_key_[g];
      if (seen != 0 && last_key_[g] < kBlockKeys) cuts |= uint64_t{1} << last_key_[g];
    }
    count_ = 0;
    while (cuts != 0) {
      const int64_t key = __builtin_ctzll(cuts);
      cuts &= cuts - 1;
      int64_t first = groups_, last = 0;
      for (int64_t g = 0; g < groups_; ++g) {
        if (key < first_key_[g] || key >= last_key_[g]) continue;
        first = std::min(first, g);
        last = g + 1;
      }
      if (last > 0)
        rectangles_[count_++] = {key, cuts == 0 ? kBlockKeys : __builtin_ctzll(cuts), first * kLanePad,
                                 last * kLanePad};
    }
  }

  bool none() const { return count_ == 0; }

  // Rectangles in the order of their keys, without a key in two of them. All that is visible lies in one.
  const Rectangle* begin() const { return rectangles_; }
  const Rectangle* end() const { return rectangles_ + count_; }

  // body(first query, last query, first key, last key) for all queries of the tile in order: what they see lies in that
  // range of keys, maybe empty, and that in the rectangles.
  template <class Body>
  HWY_INLINE void for_queries(int64_t queries, const Body& body) const {
    for (int64_t g = 0; g < groups_;) {
      int64_t end = g + 1;
      while (end < groups_ && first_key_[end] == first_key_[g] && last_key_[end] == last_key_[g]) ++end;
      body(g * kLanePad, std::min(queries, end * kLanePad), first_key_[g], last_key_[g]);
      g = end;
    }
  }

 private:
  static constexpr int64_t kLaneGroups = kTileQueries / kLanePad;
  static_assert(kBlockKeys == 64, "a bit for each key");

  // A bit for each key that some query of the kLanePad ones from `lane` on may see.
  template <class M>
  static HWY_INLINE uint64_t seen_by_any(const AttentionWindow<>& rule, const TileQueries& queries, int64_t lane,
                                         const KeyBlock& keys) {
    const I32 n;
    constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
    int32_t last_position = -1, first_bucket = kMost, last_bucket = -kMost, first_slot = kMost, last_slot = -1;
    for (int64_t i = lane; i < lane + kLanePad; ++i) {
      if (queries.position[i] < 0) continue;
      last_position = std::max(last_position, queries.position[i]);
      first_bucket = std::min(first_bucket, queries.bucket[i]);
      last_bucket = std::max(last_bucket, queries.bucket[i]);
      first_slot = std::min(first_slot, queries.slot[i]);
      last_slot = std::max(last_slot, queries.slot[i]);
    }
    if (last_position < 0) return 0;
    uint64_t seen = 0;
    for (int64_t j = 0; j < keys.count; j += lanes()) {
      auto hidden = hn::FirstN(n, 0);
      if (M::causal) hidden = hn::Gt(hn::Load(n, keys.position + j), hn::Set(n, last_position));
      if (M::window != Window::kAll) {
        const VecI32 bucket = hn::Load(n, keys.bucket + j);
        hidden =
            hn::Or(hidden, hn::Or(hn::Gt(hn::Set(n, first_bucket), bucket), hn::Gt(bucket, hn::Set(n, last_bucket))));
      }
      if (M::window == Window::kStrict) {
        const VecI32 slot = hn::Load(n, keys.slot + j);
        hidden = hn::Or(hidden, hn::Or(hn::Gt(slot, hn::Set(n, last_slot - 1)),
                                       hn::Gt(hn::Set(n, first_slot - static_cast<int32_t>(rule.span)), slot)));
      }
      uint64_t bits = 0;
      hn::StoreMaskBits(n, hn::Not(hidden), reinterpret_cast<uint8_t*>(&bits));
      seen |= bits << j;
    }
    return keys.count < kBlockKeys ? seen & ((uint64_t{1} << keys.count) - 1) : seen;
  }

  int64_t groups_, count_;
  int64_t first_key_[kLaneGroups], last_key_[kLaneGroups];
  Rectangle rectangles_[2 * kLaneGroups];
};

// Calls body(lane, group) for the lanes of a rectangle, as many vectors at a time as the registers hold beside what is
// known of one key.
template <class Body>
HWY_INLINE void for_lanes(const Rectangle& part, const Body& body) {
#if HWY_TARGET == HWY_AVX3
  constexpr int kGroup = 4;
#else
  constexpr int kGroup = 2;
#endif
  int64_t lane = part.first_lane;
  for (; lane + kGroup * lanes() <= part.last_lane; lane += kGroup * lanes())
    body(lane, std::integral_constant<int, kGroup>());
  if (kGroup > 2 && lane + 2 * lanes() <= part.last_lane) {
    body(lane, std::integral_constant<int, 2>());
    lane += 2 * lanes();
  }
  for (; lane < part.last_lane; lane += lanes()) body(lane, std::integral_constant<int, 1>());
}

// x *= y for scores.
void multiply_scores(float* HWY_RESTRICT x, const float* HWY_RESTRICT y, const Rectangle& part) {
  const F32 f;
  for (int64_t j = part.first_key; j < part.last_key; ++j) {
    for (int64_t lane = part.first_lane; lane < part.last_lane; lane += lanes()) {
      const int64_t at = j * kTileQueries + lane;
      hn::Store(hn::Mul(hn::Load(f, x + at), hn::Load(f, y + at)), f, x + at);
    }
  }
}

// scores -= log(number of rounds in which the query's window holds the key).
void subtract_log_counts(const Duplicates& d, const TileQueries& queries, const KeyBlock& block, const Rectangle& part,
                         float* HWY_RESTRICT scores) {
  const F32 f;
  const I32 n;
  const VecI32 one = hn::Set(n, 1), below = hn::Set(n, -1), width = hn::Set(n, d.width), ring = hn::Set(n, d.ring);
  const auto inside = [&](VecI32 x) HWY_ATTR { return hn::And(hn::Gt(x, below), hn::Gt(width, x)); };
  for (int64_t j = part.first_key; j < part.last_key; ++j) {
    for (int64_t lane = part.first_lane; lane < part.last_lane; lane += lanes()) {
      VecI32 count = hn::Zero(n);
      for (int64_t r = 0; r < d.rounds; ++r) {
        const int64_t query = r * kTileQueries + lane, key = r * kBlockKeys + j;
        const VecI32 distance =
            hn::Sub(hn::Load(n, queries.places.place + query), hn::Set(n, block.places.place[key] - d.shift));
        auto held = inside(distance);
        if (d.ring != 0) held = hn::Or(held, hn::Or(inside(hn::Sub(distance, ring)), inside(hn::Add(distance, ring))));
        if (d.same_bucket)
          held =
              hn::And(held, hn::Eq(hn::Load(n, queries.places.bucket + query), hn::Set(n, block.places.bucket[key])));
        count = hn::Add(count, hn::IfThenElseZero(held, one));
      }
      VecF32 log_count = hn::Set(f, d.log_counts[0]);
      for (int32_t c = 1; c <= d.rounds; ++c) {
        log_count =
            hn::IfThenElse(hn::RebindMask(f, hn::Eq(count, hn::Set(n, c))), hn::Set(f, d.log_counts[c]), log_count);
      }
      float* const score = scores + j * kTileQueries + lane;
      hn::Store(hn::Sub(hn::Load(f, score), log_count), f, score);
    }
  }
}

// scores: -inf where the query may not attend; queries.maximum: that of the scores too.
template <class M>
HWY_INLINE void mask_scores(const AttentionWindow<>& rule, TileQueries& queries, const KeyBlock& block,
                            const Rectangle& part, float* HWY_RESTRICT scores) {
  const F32 f;
  const VecF32 forbidden = hn::Set(f, kNegativeInfinity);
  for_lanes(part, [&](int64_t lane, auto group) HWY_ATTR {
    constexpr int n = decltype(group)::value;
    LaneQueries<M> lane_queries[n];
    VecF32 maximum[n];
    for (int i = 0; i < n; ++i) {
      lane_queries[i].load(rule, queries, lane + i * lanes());
      maximum[i] = hn::Load(f, queries.maximum + lane + i * lanes());
    }
    for (int64_t j = part.first_key; j < part.last_key; ++j) {
      float* const row = scores + j * kTileQueries + lane;
      for (int i = 0; i < n; ++i) {
        const VecF32 score = lane_queries[i].select(block, j, hn::Load(f, row + i * lanes()), forbidden);
        hn::Store(score, f, row + i * lanes());
        maximum[i] = hn::Max(maximum[i], score);
      }
    }
    for (int i = 0; i < n; ++i) hn::Store(maximum[i], f, queries.maximum + lane + i * lanes());
  });
}

// scores: exp(score - reference); queries.sum: those added.
HWY_INLINE void exponentials(TileQueries& queries, const float* reference, const Rectangle& part,
                             float* HWY_RESTRICT scores) {
  const F32 f;
  for_lanes(part, [&](int64_t lane, auto group) HWY_ATTR {
    constexpr int n = decltype(group)::value;
    VecF32 from[n], total[n];
    for (int i = 0; i < n; ++i) {
      from[i] = hn::Load(f, reference + lane + i * lanes());
      total[i] = hn::Load(f, queries.sum + lane + i * lanes());
    }
    for (int64_t j = part.first_key; j < part.last_key; ++j) {
      float* const row = scores + j * kTileQueries + lane;
      for (int i = 0; i < n; ++i) {
        const VecF32 p = exp_of_negative(hn::Sub(hn::Load(f, row + i * lanes()), from[i]));
        total[i] = hn::Add(total[i], p);
        hn::Store(p, f, row + i * lanes());
      }
    }
    for (int i = 0; i < n; ++i) hn::Store(total[i], f, queries.sum + lane + i * lanes());
  });
}

// A row without any allowed score so far has -inf; 0 stands in for it so that no exponent is (-inf) - (-inf).
HWY_INLINE VecF32 finite_reference(VecF32 maximum) {
  const F32 f;
  return hn::IfThenElse(hn::Eq(maximum, hn::Set(f, kNegativeInfinity)), hn::Zero(f), maximum);
}

// Part of the scores: rows of `keys` times columns of the transposed queries.
HWY_INLINE void score_product(const float* keys, const float* transposed, const Rectangle& part, const TileBuffers& t,
                              float* scores) {
  product<false>(part.last_key - part.first_key, part.last_lane - part.first_lane, t.head_size,
                 keys + part.first_key * t.wide, t.wide, 1, transposed + part.first_lane, kTileQueries,
                 scores + part.first_key * kTileQueries + part.first_lane, kTileQueries, t.ahead);
}

// rows [queries, wide] = or += sum over the keys that each sees of scores [keys, lanes] times key_rows [keys, wide].
HWY_INLINE void query_product(bool set, const Visible& visible, int64_t queries, const float* scores,
                              const float* key_rows, const TileBuffers& t, float* rows) {
  visible.for_queries(queries, [&](int64_t first, int64_t last, int64_t first_key, int64_t last_key) HWY_ATTR {
    const auto run = [&](auto kernel) HWY_ATTR {
      kernel(last - first, t.wide, last_key - first_key, scores + first_key * kTileQueries + first, int64_t{1},
             kTileQueries, key_rows + first_key * t.wide, t.wide, rows + first * t.wide, t.wide, t.ahead);
    };
    if (set) {
      run(product<false>);  // no keys: zeros
    } else if (first_key < last_key) {
      run(product<true>);
    }
  });
}

void forward(const AttentionWindow<>& rule, TileQueries& queries, const TileKeys* keys, int64_t blocks, bool first,
             const TileBuffers& t) {
  const F32 f;
  const int64_t used = used_lanes(queries);
  HWY_ALIGN float before[kTileQueries], reference[kTileQueries], rescale[kTileQueries];
  Visible visible[kTileBlocks];
  if (first) {
    std::fill_n(queries.maximum, used, kNegativeInfinity);
    std::fill_n(queries.sum, used, 0.0f);
  }
  std::copy_n(queries.maximum, used, before);
  for_mask(rule, [&](auto m) HWY_ATTR {
    for (int64_t b = 0; b < blocks; ++b) {
      const KeyBlock& block = *keys[b].block;
      float* const scores = t.scores + keys[b].row * kTileQueries;
      visible[b].template find<decltype(m)>(rule, queries, block);
      for (const Rectangle& part : visible[b]) {
        score_product(block.k, t.q_transposed, part, t, scores);
        if (t.duplicates.rounds > 0) subtract_log_counts(t.duplicates, queries, block, part, scores);
        mask_scores<decltype(m)>(rule, queries, block, part, scores);
      }
    }
  });
  for (int64_t lane = 0; lane < used; lane += lanes()) {
    const VecF32 now = finite_reference(hn::Load(f, queries.maximum + lane));
    const VecF32 shrink = exp_of_negative(hn::Sub(hn::Load(f, before + lane), now));
    hn::Store(hn::Mul(hn::Load(f, queries.sum + lane), shrink), f, queries.sum + lane);
    hn::Store(shrink, f, rescale + lane);
    hn::Store(now, f, reference + lane);
  }
  for (int64_t i = 0; !first && i < queries.count; ++i) {
    if (rescale[i] == 1.0f) continue;
    const VecF32 factor = hn::Set(f, rescale[i]);
    for (int64_t d = 0; d < t.wide; d += lanes())
      hn::Store(hn::Mul(hn::Load(f, t.out + i * t.wide + d), factor), f, t.out + i * t.wide + d);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    float* const scores = t.scores + keys[b].row * kTileQueries;
    for (const Rectangle& part : visible[b]) {
      exponentials(queries, reference, part, scores);
      if (t.dropout != nullptr) multiply_scores(scores, t.dropout + keys[b].row * kTileQueries, part);
    }
    query_product(first && b == 0, visible[b], queries.count, scores, keys[b].block->v, t, t.out);
  }
}

void merge(const TileQueries& queries, bool fresh, bool last, const TileBuffers& t, float* HWY_RESTRICT out,
           int64_t stride, RowSoftmax* merged) {
  const F32 f;
  HWY_ALIGN float highest[kTileQueries], total[kTileQueries], old_factor[kTileQueries], factor[kTileQueries];
  for (int64_t i = 0; i < queries.count; ++i) {
    const int32_t position = queries.position[i];
    const bool old = !fresh && position >= 0;
    highest[i] = old ? merged[position].maximum : kNegativeInfinity;
    total[i] = old ? merged[position].sum : 0.0f;
  }
  std::fill(highest + queries.count, highest + used_lanes(queries), kNegativeInfinity);
  std::fill(total + queries.count, total + used_lanes(queries), 0.0f);
  for (int64_t lane = 0; lane < used_lanes(queries); lane += lanes()) {
    const VecF32 old = hn::Load(f, highest + lane), tile = hn::Load(f, queries.maximum + lane),
                 both = hn::Max(old, tile);
    const VecF32 reference = finite_reference(both);
    const VecF32 a = exp_of_negative(hn::Sub(old, reference)), b = exp_of_negative(hn::Sub(tile, reference));
    const VecF32 sum = hn::MulAdd(hn::Load(f, total + lane), a, hn::Mul(hn::Load(f, queries.sum + lane), b));
    hn::Store(both, f, highest + lane);
    hn::Store(sum, f, total + lane);
    hn::Store(a, f, old_factor + lane);
    hn::Store(b, f, factor + lane);
  }
  for (int64_t i = 0; i < queries.count; ++i) {
    const int32_t position = queries.position[i];
    if (position < 0) continue;
    merged[position] = {highest[i], total[i]};
    const VecF32 a = hn::Set(f, old_factor[i]), b = hn::Set(f, factor[i]);
    const VecF32 inverse = hn::Set(f, last && total[i] > 0.0f ? 1.0f / total[i] : 1.0f);
    const float* const tile = t.out + i * t.wide;
    float* const row = out + position * stride;
    if (fresh) {
      for_vectors(f, t.head_size, [&](auto load, auto store, int64_t) HWY_ATTR {
        store(hn::Mul(hn::Mul(load(tile), b), inverse), row);
      });
    } else {
      for_vectors(f, t.head_size, [&](auto load, auto store, int64_t) HWY_ATTR {
        store(hn::Mul(hn::MulAdd(load(row), a, hn::Mul(load(tile), b)), inverse), row);
      });
    }
  }
}

// scores: the probabilities P (times dropout); grad_scores: dS = P (dP - delta), of dP = dO . v (times dropout).
template <class M>
HWY_INLINE void softmax_backward(const AttentionWindow<>& rule, const TileQueries& queries, const KeyBlock& block,
                                 const Rectangle& part, const float* HWY_RESTRICT dropout, float* HWY_RESTRICT scores,
                                 float* HWY_RESTRICT grad_scores) {
  const F32 f;
  const VecF32 forbidden = hn::Set(f, kNegativeInfinity);
  for_lanes(part, [&](int64_t lane, auto group) HWY_ATTR {
    constexpr int n = decltype(group)::value;
    LaneQueries<M> lane_queries[n];
    VecF32 reference[n], delta[n];
    for (int i = 0; i < n; ++i) {
      lane_queries[i].load(rule, queries, lane + i * lanes());
      reference[i] = finite_reference(hn::Load(f, queries.maximum + lane + i * lanes()));
      delta[i] = hn::Load(f, queries.delta + lane + i * lanes());
    }
    for (int64_t j = part.first_key; j < part.last_key; ++j) {
      for (int i = 0; i < n; ++i) {
        const int64_t at = j * kTileQueries + lane + i * lanes();
        const VecF32 score = hn::Sub(hn::Load(f, scores + at), reference[i]);
        VecF32 p = exp_of_negative(lane_queries[i].select(block, j, score, forbidden));
        VecF32 gradient = hn::Load(f, grad_scores + at);
        if (dropout != nullptr) gradient = hn::Mul(gradient, hn::Load(f, dropout + at));
        hn::Store(hn::Mul(p, hn::Sub(gradient, delta[i])), f, grad_scores + at);
        if (dropout != nullptr) p = hn::Mul(p, hn::Load(f, dropout + at));
        hn::Store(p, f, scores + at);
      }
    }
  });
}

// gradient [keys, wide] += scores [keys, lanes] times the queries' rows [lanes, wide].
HWY_INLINE void key_product(const Rectangle& part, int64_t queries, const float* scores, const float* query_rows,
                            const TileBuffers& t, float* gradient) {
  product<true>(part.last_key - part.first_key, t.wide, std::min(queries, part.last_lane) - part.first_lane,
                scores + part.first_key * kTileQueries + part.first_lane, kTileQueries, 1,
                query_rows + part.first_lane * t.wide, t.wide, gradient + part.first_key * t.wide, t.wide, t.ahead);
}

void backward(const AttentionWindow<>& rule, const TileQueries& queries, const TileKeys* keys, int64_t blocks,
              bool first, const TileBuffers& t) {
  Visible visible;
  for (int64_t b = 0; b < blocks; ++b) {
    KeyBlock& block = *keys[b].block;
    const int64_t at = keys[b].row * kTileQueries;
    float *const scores = t.scores + at, *const grad_scores = t.grad_scores + at;
    for_mask(rule, [&](auto m) HWY_ATTR {
      visible.template find<decltype(m)>(rule, queries, block);
      for (const Rectangle& part : visible) {
        score_product(block.k, t.q_transposed, part, t, scores);
        score_product(block.v, t.grad_out_transposed, part, t, grad_scores);
        if (t.duplicates.rounds > 0) subtract_log_counts(t.duplicates, queries, block, part, scores);
        softmax_backward<decltype(m)>(rule, queries, block, part, t.dropout == nullptr ? nullptr : t.dropout + at,
                                      scores, grad_scores);
      }
    });
    if (!block.has_gradient && !visible.none()) {
      // Keys outside of all rectangles keep these zeros.
      std::fill_n(block.grad_k, block.count * t.wide, 0.0f);
      std::fill_n(block.grad_v, block.count * t.wide, 0.0f);
      block.has_gradient = true;
    }
    for (const Rectangle& part : visible) {
      key_product(part, queries.count, scores, t.grad_out, t, block.grad_v);
      key_product(part, queries.count, grad_scores, t.q, t, block.grad_k);
    }
    query_product(first && b == 0, visible, queries.count, grad_scores, block.k, t, t.grad_q);
  }
}

void add_query_gradients(const TileQueries& queries, float scale, const TileBuffers& t, float* grad, int64_t stride) {
  const F32 f;
  const VecF32 factor = hn::Set(f, scale);
  for (int64_t i = 0; i < queries.count; ++i) {
    if (queries.position[i] < 0) continue;
    const float* const from = t.grad_q + i * t.wide;
    float* const row = grad + queries.position[i] * stride;
    for_vectors(f, t.head_size, [&](auto load, auto store, int64_t) HWY_ATTR {
      store(hn::MulAdd(load(from), factor, load(row)), row);
    });
  }
}

void add_key_gradients(const KeyBlock& block, int32_t key_norm, const TileBuffers& t, float* grad_k, int64_t k_stride,
                       float* grad_v, int64_t v_stride) {
  const F32 f;
  for (int64_t j = 0; j < block.count; ++j) {
    const float *const key = block.k + j * t.wide, *const key_gradient = block.grad_k + j * t.wide,
                       *const value_gradient = block.grad_v + j * t.wide;
    float *const k_row = grad_k + block.position[j] * k_stride, *const v_row = grad_v + block.position[j] * v_stride;
    // k = q / n: dq = (dk - k (k . dk) c) / n, with c = 1 / D when n is the root mean square, 1 when it is the length.
    float along = 0.0f;
    if (key_norm != RFN_KEY_NORM_NONE) {
      VecF32 products = hn::Zero(f);
      for (int64_t d = 0; d < t.wide; d += lanes())
        products = hn::MulAdd(hn::Load(f, key + d), hn::Load(f, key_gradient + d), products);
      along = sum(f, products);
      if (key_norm == RFN_KEY_NORM_RMS) along /= static_cast<float>(t.head_size);
    }
    const VecF32 factor = hn::Set(f, block.scale[j]), minus = hn::Set(f, -along);
    for_vectors(f, t.head_size, [&](auto load, auto store, int64_t) HWY_ATTR {
      store(hn::MulAdd(hn::MulAdd(load(key), minus, load(key_gradient)), factor, load(k_row)), k_row);
      store(hn::Add(load(value_gradient), load(v_row)), v_row);
    });
  }
}

// Largest of [z, -z] over the columns of one digit, per query.
struct Digit {
  alignas(64) float highest[kTileQueries], lowest[kTileQueries];
  alignas(64) int32_t highest_at[kTileQueries], lowest_at[kTileQueries];

  void start() {
    std::fill_n(highest, kTileQueries, kNegativeInfinity);
    std::fill_n(lowest, kTileQueries, -kNegativeInfinity);
    std::fill_n(highest_at, kTileQueries, 0);
    std::fill_n(lowest_at, kTileQueries, 0);
  }

  // Columns [first, first + count) of the digit, rows of z.
  HWY_INLINE void add(const float* z, int64_t first, int64_t count, int64_t used) {
    const F32 f;
    const I32 n;
    for (int64_t lane = 0; lane < used; lane += lanes()) {
      VecF32 high = hn::Load(f, highest + lane), low = hn::Load(f, lowest + lane);
      auto high_at = hn::Load(n, highest_at + lane), low_at = hn::Load(n, lowest_at + lane);
      for (int64_t j = 0; j < count; ++j) {
        const VecF32 x = hn::Load(f, z + j * kTileQueries + lane);
        const auto at = hn::Set(n, static_cast<int32_t>(first + j));
        const auto above = hn::Gt(x, high);
        const auto below = hn::Lt(x, low);
        high = hn::Max(x, high);  // not a selection by `above`: the next key would have to wait for the comparison
        low = hn::Min(x, low);
        high_at = hn::IfThenElse(hn::RebindMask(n, above), at, high_at);
        low_at = hn::IfThenElse(hn::RebindMask(n, below), at, low_at);
      }
      hn::Store(high, f, highest + lane);
      hn::Store(low, f, lowest + lane);
      hn::Store(high_at, n, highest_at + lane);
      hn::Store(low_at, n, lowest_at + lane);
    }
  }

  // The first maximum of [z, -z] wins, so the positive half does on a tie.
  int32_t of(int64_t i, int64_t half) const {
    return highest[i] >= -lowest[i] ? highest_at[i] : static_cast<int32_t>(half) + lowest_at[i];
  }
};

void hash(const TileBuffers& t, int64_t count, const float* rotations, int64_t rounds, const int32_t* factors,
          int64_t factor_count, int32_t* buckets, int64_t bucket_stride) {
  const int64_t used = (count + kLanePad - 1) / kLanePad * kLanePad;
  int64_t columns = 0;
  for (int64_t f = 0; f < factor_count; ++f) columns += factors[f] / 2;
  columns *= rounds;
  int64_t begin = 0, end = 0;  // columns whose products are in t.scores
  int64_t column = 0;
  Digit digit;
  for (int64_t round = 0; round < rounds; ++round) {
    int32_t* const bucket = buckets + round * bucket_stride;
    int32_t weight = 1;
    for (int64_t f = 0; f < factor_count; ++f) {
      const int64_t half = factors[f] / 2;
      digit.start();
      for (int64_t j = 0; j < half;) {
        if (column == end) {
          begin = end;
          end = std::min(columns, begin + kTileKeys);
          product<false>(end - begin, used, t.head_size, rotations + begin, 1, columns, t.q_transposed, kTileQueries,
                         t.scores, kTileQueries, t.ahead);
        }
        const int64_t some = std::min(half - j, end - column);
        digit.add(t.scores + (column - begin) * kTileQueries, j, some, used);
        j += some;
        column += some;
      }
      for (int64_t i = 0; i < count; ++i) bucket[i] = (f == 0 ? 0 : bucket[i]) + weight * digit.of(i, half);
      weight *= factors[f];
    }
  }
}

const TileKernels& kernels() {
  static const TileKernels table = {pack_queries,        pack_keys,         forward, merge,    backward,
                                    add_query_gradients, add_key_gradients, hash,    transpose};
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
