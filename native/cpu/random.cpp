#include <algorithm>
#include <cmath>

#include "core/backend.h"
#include "core/philox.h"
#include "core/tensor.h"
#include "cpu/parallel.h"

namespace rfn::cpu {
namespace {

constexpr int64_t kItem = 4096;  // elements; a multiple of 4

}  // namespace

// Box-Muller: the words of a quad make two pairs (u1 in (0,1], u2 in [0,1)), a pair makes two elements. In float64,
// rounded once, so that every platform's mathematics library gives the same float32 but for rare last bits.
rfn_status random_normal_forward(rfn_stream& stream, const rfn_random_normal& op) {
  constexpr double kTau = 6.283185307179586476925286766559;
  const Philox random = philox(op.seed, op.step, op.layer, op.site);
  const int64_t n = elements(op.destination);
  float* const out = f32(op.destination);
  const double mean = op.mean, deviation = op.standard_deviation;
  parallel_for(stream.context->threads, div_up(n, kItem), [&](int64_t item, int32_t) {
    const int64_t end = std::min(n, (item + 1) * kItem);
    for (int64_t quad = item * kItem; quad < end; quad += 4) {
      const PhiloxWords words = philox_quad(random, static_cast<uint64_t>(quad) / 4);
      for (int64_t pair = 0; pair < 4 && quad + pair < end; pair += 2) {
        const double u1 = static_cast<double>((words.w[pair] >> 8) + 1) * 0x1p-24,
                     u2 = static_cast<double>(words.w[pair + 1] >> 8) * 0x1p-24;
        const double radius = deviation * std::sqrt(-2.0 * std::log(u1)), angle = kTau * u2;
        out[quad + pair] = static_cast<float>(mean + radius * std::cos(angle));
        if (quad + pair + 1 < end) out[quad + pair + 1] = static_cast<float>(mean + radius * std::sin(angle));
      }
    }
  });
  return RFN_OK;
}

}  // namespace rfn::cpu
