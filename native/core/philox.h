// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): the only source of randomness. Shared by both backends, host and
// device. Key: seed. Counter: quad index (64 bits), (layer + 1) * 256 + site, low word of step. Element e of a site is
// word e % 4 of quad e / 4.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define RFN_HOST_DEVICE __host__ __device__ inline
#else
#define RFN_HOST_DEVICE inline
#endif

namespace rfn {

struct Philox {
  uint32_t key0, key1, stream, step;
};

struct PhiloxWords {
  uint32_t w[4];
};

RFN_HOST_DEVICE Philox philox(uint64_t seed, uint64_t step, int32_t layer, int32_t site) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(layer + 1) * 256u + static_cast<uint32_t>(site), static_cast<uint32_t>(step)};
}

RFN_HOST_DEVICE PhiloxWords philox_quad(const Philox& p, uint64_t quad) {
  uint32_t c0 = static_cast<uint32_t>(quad), c1 = static_cast<uint32_t>(quad >> 32), c2 = p.stream, c3 = p.step;
  uint32_t k0 = p.key0, k1 = p.key1;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t n0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

RFN_HOST_DEVICE uint32_t philox_word(const Philox& p, uint64_t element) {
  const PhiloxWords quad = philox_quad(p, element / 4);
  const uint32_t even = (element & 2) == 0 ? quad.w[0] : quad.w[2],
                 odd = (element & 2) == 0 ? quad.w[1] : quad.w[3];  // no index: it would
  return (element & 1) == 0 ? even : odd;                           // put w on a GPU's stack
}

// Dropout keeps an element when (word >> 8) >= threshold, threshold = ceil(p 2^24): the comparison u >= p in exact
// arithmetic.
RFN_HOST_DEVICE uint32_t dropout_threshold(float p) {
  const double scaled = static_cast<double>(p) * 16777216.0;
  const uint32_t floor = static_cast<uint32_t>(scaled);
  return floor + (static_cast<double>(floor) < scaled ? 1u : 0u);
}

// 0 or 1 / (1 - p).
RFN_HOST_DEVICE float dropout_multiplier(uint32_t word, uint32_t threshold, float keep_inverse) {
  return (word >> 8) >= threshold ? keep_inverse : 0.0f;
}

}  // namespace rfn
