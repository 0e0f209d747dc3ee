// Drawing ids from logits: a block per row. Larger logits come first, of equal ones the smaller id. top_k keeps a
// beginning of that order and top_p a beginning of what is left, so the ids kept are those above a threshold and the
// first few at it. The threshold is found by bisection over the logits' 32-bit keys, whose order is that of the logits:
// nothing is sorted or stored. Sums are float64 in an order that depends on the shape alone.
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cuda/device_math.cuh"
#include "cuda/state.h"

namespace rfn::cuda {
namespace {

constexpr int kThreads = 512;        // of a row
constexpr int64_t kShortRow = 1024;  // one warp does
constexpr uint32_t kKeyOfMinusInfinity = 0x007fffffu;

struct Sample {
  const float* logits;  // [rows, size]
  int32_t* ids;
  int32_t size, top_k;
  float temperature, top_p;
  Philox random;
};

// Keys are in the order of the logits; 0 and -0 are equal.
RFN_DEVICE uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
RFN_DEVICE float logit_of(uint32_t key) { return __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key); }

RFN_DEVICE uint32_t block_minimum(uint32_t x) {
  RFN_SHARED(smallest, uint32_t);
  __syncthreads();  // the call before this one has been read
  if (threadIdx.x == 0) smallest = x;
  __syncthreads();
  atomicMin(&smallest, x);
  __syncthreads();
  return smallest;
}

template <class T>
struct Prefix {
  T before, through, total;  // sums over the threads before this one, over those and this one, over all. A thread's
                             // `through` is the next one's `before`
};
template <class T>
RFN_DEVICE Prefix<T> block_prefix(T x) {
  RFN_SHARED(parts, T[32]);
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  T sum = x;
#pragma unroll
  for (unsigned step = 1; step < 32; step *= 2) {
    const T lower = __shfl_up_sync(kFullWarp, sum, step);
    if (lane >= step) sum += lower;
  }
  const T lower = __shfl_up_sync(kFullWarp, sum, 1);
  __syncthreads();  // the call before this one has been read
  if (lane == 31) parts[warp] = sum;
  __syncthreads();
  T warps_before = 0, total = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) {
    if (w == warp) warps_before = total;
    total += parts[w];
  }
  return {lane == 0 ? warps_before : warps_before + lower, warps_before + sum, total};
}

// Sum of value(key) over the keys of a row in (low, high].
template <class Value>
RFN_DEVICE double sum_between(const float* z, int32_t size, uint32_t low, uint32_t high, const Value& value) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
    const uint32_t key = key_of(z[i]);
    if (key > low && key <= high) sum += value(key);
  }
  return block_sum(sum);
}

// The smallest key of [least, largest] such that the keys above it have less than `wanted` in all; *above: what they
// have.
template <class Value>
RFN_DEVICE uint32_t threshold(const float* z, int32_t size, uint32_t least, uint32_t largest, double wanted,
                              const Value& value, double* above) {
  uint32_t low = least - 1, high = largest;  // too small; not too small
  *above = 0;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const double sum = *above + sum_between(z, size, middle, high, value);
    if (sum < wanted) {
      high = middle;
      *above = sum;
    } else {
      low = middle;
    }
  }
  return high;
}

// One draw: u in [0, 1). Candidates are walked in the order of their ids.
RFN_DEVICE int32_t draw(const Sample& s, const float* z, uint32_t largest, double u) {
  const double top = logit_of(largest), temperature = s.temperature;
  const auto weight = [&](uint32_t key) { return exp((static_cast<double>(logit_of(key)) - top) / temperature); };

  uint32_t least = kKeyOfMinusInfinity;  // candidates: the keys above and the first `ties` ids with this one
  int32_t ties = s.size;
  double above = 0;
  if (s.top_k > 0 && s.top_k < s.size) {
    least = threshold(
        z, s.size, least, largest, s.top_k, [](uint32_t) { return 1.0; }, &above);
    ties = s.top_k - static_cast<int32_t>(above);
  }
  if (s.top_p < 1.0f) {
    const double total = sum_between(z, s.size, least, largest, weight) + ties * weight(least);
    const double wanted = static_cast<double>(s.top_p) * total;
    const uint32_t key = threshold(z, s.size, least, largest, wanted, weight, &above);
    ties = static_cast<int32_t>(
        fmin(ceil((wanted - above) / weight(key)), static_cast<double>(key == least ? ties : s.size)));
    least = key;
  }

  // A thread has a run of neighbouring ids.
  const int64_t each = (int64_t{s.size} + blockDim.x - 1) / blockDim.x, first = each * threadIdx.x;
  const int64_t end = first + each < s.size ? first + each : s.size;
  int32_t own_ties = 0;
  for (int64_t i = first; i < end; ++i) own_ties += key_of(z[i]) == least ? 1 : 0;
  const int32_t ties_before = block_prefix(own_ties).before;
  // Calls body(id, weight) for the thread's candidates until it returns false.
  const auto for_candidates = [&](const auto& body) {
    int32_t rank = ties_before;
    for (int64_t i = first; i < end; ++i) {
      const uint32_t key = key_of(z[i]);
      if ((key > least || (key == least && rank++ < ties)) && !body(static_cast<int32_t>(i), weight(key))) break;
    }
  };
  double mass = 0;
  for_candidates([&](int32_t, double w) {
    mass += w;
    return true;
  });
  const Prefix<double> prefix = block_prefix(mass);
  const double point = u * prefix.total;
  const uint32_t chosen =
      block_minimum(mass > 0 && point < prefix.through ? threadIdx.x : UINT32_MAX);  // u < 1: there is one
  RFN_SHARED(id, int32_t);
  if (threadIdx.x == chosen) {
    double sum = prefix.before;
    for_candidates([&](int32_t i, double w) {
      if (w != 0.0) id = i;
      sum += w;
      return point >= sum;
    });
  }
  __syncthreads();
  return id;
}

__global__ void __launch_bounds__(kThreads) sample_kernel(Sample s) {
  const float* const z = s.logits + int64_t{blockIdx.x} * s.size;
  bool numbers = true;
  uint32_t largest = 0;
  for (int64_t i = threadIdx.x; i < s.size; i += blockDim.x) {
    numbers = numbers && z[i] < INFINITY;  // false for NaN
    largest = max(largest, key_of(z[i]));
  }
  largest = ~block_minimum(~largest);
  int32_t id = -1;  // of a row with a logit that is NaN or inf, or without a finite one
  if (__syncthreads_and(numbers) != 0 && largest > kKeyOfMinusInfinity) {
    if (s.temperature == 0.0f) {
      uint32_t first = UINT32_MAX;
      for (int64_t i = threadIdx.x; i < s.size && first == UINT32_MAX; i += blockDim.x) {
        if (key_of(z[i]) == largest) first = static_cast<uint32_t>(i);
      }
      id = static_cast<int32_t>(block_minimum(first));
    } else {
      id = draw(s, z, largest, static_cast<double>(philox_word(s.random, blockIdx.x)) * 0x1p-32);
    }
  }
  if (threadIdx.x == 0) s.ids[blockIdx.x] = id;
}

}  // namespace

rfn_status sample_workspace(const rfn_context&, const rfn_sample&, int64_t* bytes) {
  return workspace_size(Arena(), "sample", bytes);
}

rfn_status sample_forward(rfn_stream& stream, const rfn_sample& op, void*, int64_t) {
  const CurrentDevice current(*stream.context);
  RFN_TRY(current.status());
  const int64_t rows = op.logits.shape[0], size = op.logits.shape[1];
  Sample s{};
  s.logits = f32(op.logits);
  s.ids = i32(op.ids);
  s.size = static_cast<int32_t>(size);
  s.top_k = op.top_k;
  s.temperature = op.temperature;
  s.top_p = op.top_p;
  s.random = philox(op.seed, op.step, -1, RFN_SITE_SAMPLING);
  RFN_CUDA_TRY(stream, RFN_LAUNCH(sample_kernel, static_cast<unsigned>(rows), size <= kShortRow ? 32 : kThreads, 0,
                                  native_stream(stream), s));
  return RFN_OK;
}

}  // namespace rfn::cuda
