// Normal random numbers: Box-Muller over the words of a Philox quad, in float64 and rounded once, as on the CPU. A
// thread makes the four elements of a quad: words (0, 1) and (2, 3) are pairs (u1 in (0,1], u2 in [0,1)), and a pair
// makes two elements.
#include "core/tensor.h"
#include "cuda/device_math.cuh"
#include "cuda/state.h"

namespace rfn::cuda {
namespace {

constexpr int kThreads = 128;

RFN_DEVICE void normal_pair(uint32_t word1, uint32_t word2, double mean, double deviation, int64_t left, float* out) {
  const double u1 = static_cast<double>((word1 >> 8) + 1) * 0x1p-24, u2 = static_cast<double>(word2 >> 8) * 0x1p-24;
  const double radius = deviation * sqrt(-2.0 * log(u1));
  double sine, cosine;
  sincospi(2.0 * u2, &sine, &cosine);
  if (left > 0) out[0] = static_cast<float>(mean + radius * cosine);
  if (left > 1) out[1] = static_cast<float>(mean + radius * sine);
}

__global__ void __launch_bounds__(kThreads)
    random_normal_kernel(Philox random, double mean, double deviation, int64_t n, float* out) {
  const int64_t quad = int64_t{blockIdx.x} * kThreads + threadIdx.x, place = 4 * quad;
  if (place >= n) return;
  const PhiloxWords words = philox_quad(random, static_cast<uint64_t>(quad));
  normal_pair(words.w[0], words.w[1], mean, deviation, n - place, out + place);
  normal_pair(words.w[2], words.w[3], mean, deviation, n - place - 2, out + place + 2);
}

}  // namespace

rfn_status random_normal_forward(rfn_stream& stream, const rfn_random_normal& op) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const int64_t n = elements(op.destination);
  RFN_CUDA_TRY(stream, RFN_LAUNCH(random_normal_kernel, blocks_for(n, 4 * kThreads), kThreads, 0, native_stream(stream),
                                  philox(op.seed, op.step, op.layer, op.site), double{op.mean},
                                  double{op.standard_deviation}, n, f32(op.destination)));
  return RFN_OK;
}

}  // namespace rfn::cuda
