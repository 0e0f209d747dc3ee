// Vector loads, stores and sums that several files of the CPU backend share. Compiled once per instruction set: include
// it after <hwy/highway.h>, as Highway's own *-inl.h files are.
#if defined(RFN_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RFN_CPU_SIMD_INL_H_
#undef RFN_CPU_SIMD_INL_H_
#else
#define RFN_CPU_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace rfn::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using VecF32 = hn::Vec<F32>;

// The first `count` lanes from memory, the others zero; nothing beyond them is read. For the ends of rows.
template <class D>
HWY_INLINE hn::Vec<D> load_first(D d, const hn::TFromD<D>* from, int64_t count) {
  HWY_ALIGN hn::TFromD<D> lanes[hn::MaxLanes(d)] = {};
  std::memcpy(lanes, from, static_cast<size_t>(count) * sizeof(lanes[0]));
  return hn::Load(d, lanes);
}

template <class D>
HWY_INLINE void store_first(D d, hn::Vec<D> v, hn::TFromD<D>* to, int64_t count) {
  HWY_ALIGN hn::TFromD<D> lanes[hn::MaxLanes(d)];
  hn::Store(v, d, lanes);
  std::memcpy(to, lanes, static_cast<size_t>(count) * sizeof(lanes[0]));
}

// The first `count` lanes of v (all of them if there are fewer), then `other`.
template <class D>
HWY_INLINE hn::Vec<D> first_or(D d, hn::Vec<D> v, int64_t count, hn::Vec<D> other) {
  return count >= static_cast<int64_t>(hn::Lanes(d))
             ? v
             : hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(count)), v, other);
}

template <class D>
HWY_INLINE hn::TFromD<D> sum(D d, hn::Vec<D> v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

// body(load, store, i) for every vector of a row of n: load(p) reads p[i ...], store(v, p) writes p[i ...], both only
// as far as n. Lanes past the end hold zeros.
template <class D, class Body>
HWY_INLINE void for_vectors(D d, int64_t n, const Body& body) {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    body([d, i](const T* p) HWY_ATTR { return hn::LoadU(d, p + i); },
         [d, i](V v, T* p) HWY_ATTR { hn::StoreU(v, d, p + i); }, i);
  }
  if (i < n) {
    body([d, i, n](const T* p) HWY_ATTR { return load_first(d, p + i, n - i); },
         [d, i, n](V v, T* p) HWY_ATTR { store_first(d, v, p + i, n - i); }, i);
  }
}

}  // namespace rfn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
