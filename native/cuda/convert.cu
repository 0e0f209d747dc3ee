// Each thread takes four neighbouring elements of a row: 8 bytes of halves and 16 of floats, in one access each where
// rows start on those boundaries.
#include "cuda/convert.h"

#include "core/tensor.h"
#include "cuda/device_math.cuh"
#include "cuda/half.cuh"

namespace rfn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kElements = 4;  // of a thread

struct Place {
  int64_t row, column;
  bool there;
};
RFN_DEVICE Place place_of(int64_t rows, int64_t columns) {
  const int64_t quads = (columns + kElements - 1) / kElements;
  const int64_t quad = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  return {quad / quads, quad % quads * kElements, quad < rows * quads};
}

template <int32_t kType>
__global__ void __launch_bounds__(kThreads)
    widen_kernel(int64_t rows, int64_t columns, const uint16_t* from, int64_t from_stride, float* to, int64_t to_stride,
                 bool aligned) {
  const Place at = place_of(rows, columns);
  if (!at.there) return;
  from += at.row * from_stride + at.column;
  to += at.row * to_stride + at.column;
  if (aligned && at.column + kElements <= columns) {
    const uint2 halves = *reinterpret_cast<const uint2*>(from);
    const auto widen = [](uint32_t half) { return Element<kType>::widen(static_cast<uint16_t>(half)); };
    *reinterpret_cast<float4*>(to) =
        make_float4(widen(halves.x), widen(halves.x >> 16), widen(halves.y), widen(halves.y >> 16));
    return;
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    if (at.column + i < columns) to[i] = Element<kType>::widen(from[i]);
  }
}

template <int32_t kType>
__global__ void __launch_bounds__(kThreads)
    narrow_kernel(int64_t rows, int64_t columns, const float* from, int64_t from_stride, uint16_t* to,
                  int64_t to_stride, bool aligned) {
  const Place at = place_of(rows, columns);
  if (!at.there) return;
  from += at.row * from_stride + at.column;
  to += at.row * to_stride + at.column;
  if (aligned && at.column + kElements <= columns) {
    const float4 floats = *reinterpret_cast<const float4*>(from);
    *reinterpret_cast<uint2*>(to) =
        make_uint2(Element<kType>::pack(floats.x, floats.y), Element<kType>::pack(floats.z, floats.w));
    return;
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    if (at.column + i < columns) to[i] = Element<kType>::narrow(from[i]);
  }
}

// Rows that follow each other without a gap are one.
struct Sizes {
  int64_t rows, columns;
  bool aligned;
  unsigned blocks;
};
Sizes sizes_of(int64_t rows, int64_t columns, const uint16_t* halves, int64_t halves_stride, const float* floats,
               int64_t floats_stride) {
  if (halves_stride == columns && floats_stride == columns) {
    columns *= rows;
    rows = 1;
  }
  const bool starts = reinterpret_cast<uintptr_t>(halves) % 8 == 0 && reinterpret_cast<uintptr_t>(floats) % 16 == 0;
  const bool strides = halves_stride % kElements == 0 && floats_stride % kElements == 0;
  return {rows, columns, starts && (rows == 1 || strides), blocks_for(rows * div_up(columns, kElements), kThreads)};
}

}  // namespace

rfn_status widen_rows(rfn_stream& stream, int32_t dtype, int64_t rows, int64_t columns, const uint16_t* from,
                      int64_t from_stride, float* to, int64_t to_stride) {
  const Sizes s = sizes_of(rows, columns, from, from_stride, to, to_stride);
  RFN_CUDA_TRY(stream,
               RFN_LAUNCH(dtype == RFN_BF16 ? widen_kernel<RFN_BF16> : widen_kernel<RFN_F16>, s.blocks, kThreads, 0,
                          native_stream(stream), s.rows, s.columns, from, from_stride, to, to_stride, s.aligned));
  return RFN_OK;
}

rfn_status narrow_rows(rfn_stream& stream, int32_t dtype, int64_t rows, int64_t columns, const float* from,
                       int64_t from_stride, uint16_t* to, int64_t to_stride) {
  const Sizes s = sizes_of(rows, columns, to, to_stride, from, from_stride);
  RFN_CUDA_TRY(stream,
               RFN_LAUNCH(dtype == RFN_BF16 ? narrow_kernel<RFN_BF16> : narrow_kernel<RFN_F16>, s.blocks, kThreads, 0,
                          native_stream(stream), s.rows, s.columns, from, from_stride, to, to_stride, s.aligned));
  return RFN_OK;
}

}  // namespace rfn::cuda
