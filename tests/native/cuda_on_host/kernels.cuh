// Demonstration kernels. Bug selects a mutation, None is the right kernel: the tests show that each mutation is
// noticed.
#pragma once
#include "cuda/device.cuh"

namespace rfn::cuda {

enum class Bug { None, First, Second, Third };

// ---- C = A B, float32 [n,n], n a multiple of 16; a block per 16x16 tile, a thread per element
// ----------------------------------------------- First: no barrier after the tiles are loaded; Second: none before the
// next ones are; Third: a barrier in two branches.

inline constexpr int kTile = 16;

template <Bug bug>
__global__ void matmul_kernel(const float* a, const float* b, float* c, int n) {
  RFN_SHARED(tile_a, float[kTile][kTile]);
  RFN_SHARED(tile_b, float[kTile][kTile]);
  const int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * kTile + y, column = blockIdx.x * kTile + x;
  float sum = 0.0f;
  for (int k = 0; k < n; k += kTile) {
    tile_a[y][x] = a[row * n + k + x];
    tile_b[y][x] = b[(k + y) * n + column];
    if (bug == Bug::Third) {
      if (y < 8) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    } else if (bug != Bug::First) {
      __syncthreads();
    }
    for (int i = 0; i < kTile; ++i) sum += tile_a[y][i] * tile_b[i][x];
    if (bug != Bug::Second) __syncthreads();
  }
  c[row * n + column] = sum;
}

// ---- sums[block] = sum of the block's elements; 256 threads
// -------------------------------------------------------------------------------- First: no barrier before the warps'
// sums are read; Second: a full mask where 8 lanes shuffle; Third: the last warp's range not masked.

template <Bug bug>
__global__ void reduce_kernel(const int* values, int* sums, int n) {
  RFN_SHARED(warp_sums, int[32]);
  const int thread = threadIdx.x;
  int sum = 0;
  for (int i = blockIdx.x * blockDim.x + thread; bug == Bug::Third ? i <= n : i < n; i += gridDim.x * blockDim.x)
    sum += values[i];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (thread % 32 == 0) warp_sums[thread / 32] = sum;
  if (bug != Bug::First) __syncthreads();
  if (thread < (bug == Bug::Second ? 8 : 32)) {
    sum = thread < static_cast<int>(blockDim.x) / 32 ? warp_sums[thread] : 0;
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (thread == 0) sums[blockIdx.x] = sum;
  }
}

// ---- histogram of 64 bins, first in shared memory
// ------------------------------------------------------------------------------------------ First: bins not cleared;
// Second: no barrier between clearing and counting; Third: an addition that is not atomic, with the load and the store
// of one thread split by another's fence.

template <Bug bug>
__global__ void histogram_kernel(const int* values, int* bins, int n) {
  RFN_SHARED(local, int[64]);
  const int thread = threadIdx.x;
  if (bug != Bug::First && thread < 64) local[thread] = 0;
  if (bug != Bug::Second) __syncthreads();
  for (int i = blockIdx.x * blockDim.x + thread; i < n; i += gridDim.x * blockDim.x) {
    if (bug == Bug::Third) {
      const int count = local[values[i]];
      __threadfence_block();
      local[values[i]] = count + 1;
    } else {
      atomicAdd(&local[values[i]], 1);
    }
  }
  __syncthreads();
  if (thread < 64) atomicAdd(&bins[thread], local[thread]);
}

// ---- each warp reverses 32 values through shared memory, four times
// --------------------------------------------------------------------------- First: no __syncwarp between write and
// read; Second: none between read and the next write; Third: half a mask, called by all.

template <Bug bug>
__global__ void warp_reverse_kernel(int* values) {
  RFN_SHARED(buffer, int[8][32]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int value = values[blockIdx.x * blockDim.x + threadIdx.x];
  for (int round = 0; round < 4; ++round) {
    buffer[warp][lane] = value + round;
    if (bug != Bug::First) __syncwarp(bug == Bug::Third ? 0x0000ffffu : 0xffffffffu);
    value = buffer[warp][31 - lane];
    if (bug != Bug::Second) __syncwarp();
  }
  values[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

// ---- C = A B^T, bf16 [m,k], [n,k] to float32 [m,n]; cp.async double buffer, ldmatrix, mma
// ------------------------------------------------------ A block of (BM/WM)*(BN/WN) warps makes BM x BN, in steps of
// BK. Dynamic shared memory: 2 (BM + BN) BK elements. First: one group too many left in flight; Second: no barrier
// before a buffer is filled again; Third: no barrier after the wait.

template <int BM, int BN, int BK, int WM, int WN, Bug bug>
__global__ void gemm_kernel(const uint16_t* a, const uint16_t* b, float* c, int n, int k) {
  RFN_DYNAMIC_SHARED(uint16_t, shared_a);
  uint16_t* const shared_b = shared_a + 2 * BM * BK;
  constexpr int kThreads = (BM / WM) * (BN / WN) * 32;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int warp_m = warp % (BM / WM) * WM, warp_n = warp / (BM / WM) * WN;
  const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
  float d[WM / 16][WN / 8][4] = {};
  const auto load = [&](int stage, int from) {
    for (int i = thread * 8; i < BM * BK; i += kThreads * 8) {
      cp_async<16>(shared_a + stage * BM * BK + i, a + static_cast<int64_t>(m0 + i / BK) * k + from + i % BK);
    }
    for (int i = thread * 8; i < BN * BK; i += kThreads * 8) {
      cp_async<16>(shared_b + stage * BN * BK + i, b + static_cast<int64_t>(n0 + i / BK) * k + from + i % BK);
    }
    cp_async_commit();
  };
  load(0, 0);
  for (int from = 0, stage = 0; from < k; from += BK, stage ^= 1) {
    if (from + BK < k) {
      load(stage ^ 1, from + BK);
    } else {
      cp_async_commit();
    }
    cp_async_wait<bug == Bug::First ? 2 : 1>();
    if (bug != Bug::Third) __syncthreads();
#pragma unroll
    for (int kk = 0; kk < BK; kk += 16) {
      uint32_t fa[WM / 16][4], fb[WN / 8][2];
#pragma unroll
      for (int i = 0; i < WM / 16; ++i) {
        ldmatrix_x4(fa[i], shared_a + stage * BM * BK + (warp_m + i * 16 + lane % 16) * BK + kk + lane / 16 * 8);
      }
#pragma unroll
      for (int j = 0; j < WN / 8; ++j) {
        ldmatrix_x2(fb[j], shared_b + stage * BN * BK + (warp_n + j * 8 + lane % 8) * BK + kk + lane / 8 % 2 * 8);
      }
#pragma unroll
      for (int i = 0; i < WM / 16; ++i) {
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) mma_m16n8k16_bf16(d[i][j], fa[i], fb[j]);
      }
    }
    if (bug != Bug::Second) __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < WM / 16; ++i) {
#pragma unroll
    for (int j = 0; j < WN / 8; ++j) {
      float* to = c + static_cast<int64_t>(m0 + warp_m + i * 16 + lane / 4) * n + n0 + warp_n + j * 8 + lane % 4 * 2;
      to[0] = d[i][j][0];
      to[1] = d[i][j][1];
      to[8 * n] = d[i][j][2];
      to[8 * n + 1] = d[i][j][3];
    }
  }
}

// ---- out[row] = sum of row's first lengths[row] values; a warp per row, 64 columns, rows staged with cp.async
// --------------------------------- Lengths are even, so 8-byte copies are all or nothing. First: what lies past the
// length is copied instead of zeroed; Second: the copies are not committed; Third: no __syncwarp after the wait, while
// lanes read what others copied.

template <Bug bug>
__global__ void row_sum_kernel(const float* rows, const int* lengths, float* out, int count) {
  RFN_SHARED(staged, float[4][64]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.x * 4 + warp;
  if (row < count) {  // whole warps
    const int here = lane * 2 < lengths[row] || bug == Bug::First ? 8 : 0;
    cp_async_zfill<8>(&staged[warp][lane * 2], rows + row * 64 + lane * 2, here);
    if (bug != Bug::Second) cp_async_commit();
    cp_async_wait<0>();
    if (bug != Bug::Third) __syncwarp();
    float sum = staged[warp][lane] + staged[warp][lane + 32];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (lane == 0) out[row] = sum;
  }
}

// ---- producer and consumer warps over named barriers: out = 2 in, by way of shared memory
// ----------------------------------------------------- Warp 0 writes, warp 1 reads. Barrier 1: full, barrier 2: empty.
// First: the consumer does not wait for full; Second: the producer does not wait for empty; Third: the two sides expect
// different numbers of threads.

template <Bug bug>
__global__ void pipeline_kernel(const int* in, int* out, int steps) {
  RFN_SHARED(buffer, int[32]);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    for (int i = 0; i < steps; ++i) {
      if (i > 0 && bug != Bug::Second) named_barrier_sync(2, 64);
      buffer[lane] = in[i * 32 + lane];
      if (bug != Bug::First) named_barrier_arrive(1, 64);
    }
  } else {
    for (int i = 0; i < steps; ++i) {
      if (bug != Bug::First) named_barrier_sync(1, bug == Bug::Third ? 32 : 64);
      out[i * 32 + lane] = 2 * buffer[31 - lane];
      if (i + 1 < steps && bug != Bug::Second) named_barrier_arrive(2, 64);
    }
  }
}

}  // namespace rfn::cuda
