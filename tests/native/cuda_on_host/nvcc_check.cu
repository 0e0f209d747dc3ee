// The demonstration kernels and everything of device.cuh through nvcc: what runs on the host layer is what a device
// would be given.
#include "kernels.cuh"

namespace rfn::cuda {

template <int Bytes>
__device__ void copies(void* shared, const void* global, int bytes) {
  cp_async<Bytes>(shared, global);
  cp_async_zfill<Bytes>(shared, global, bytes);
}

__global__ void everything_kernel(const uint16_t* in, float* out, int n) {
  RFN_SHARED(tile, float[16][17]);
  RFN_DYNAMIC_SHARED(uint16_t, dynamic);
  RFN_DEVICE_ASSERT(n > 0);
  uint16_t* const row = dynamic + threadIdx.x * 8;
  copies<4>(row, in, n);
  copies<8>(row, in, n);
  copies<16>(row, in, n);
  cp_async_commit();
  cp_async_wait<0>();
  cp_async_wait_all();
  tile[threadIdx.x % 16][0] = f16_to_float(float_to_f16(1.0f));
  __syncthreads();
  uint32_t a[4], b[2], x[1];
  float d[4] = {tile[0][0], bf16_to_float(float_to_bf16(2.0f))};
  ldmatrix_x4(a, row);
  ldmatrix_x2(b, row);
  mma_m16n8k16_bf16(d, a, b);
  ldmatrix_x4_trans(a, row);
  ldmatrix_x2_trans(b, row);
  mma_m16n8k16_f16(d, a, b);
  ldmatrix_x1(x, row);
  a[0] = x[0] ^ round_to_tf32(d[0]);
  ldmatrix_x1_trans(x, row);
  a[1] = x[0] ^ pack_bf16(d[0], d[1]) ^ pack_f16(d[2], d[3]);
  mma_m16n8k8_tf32(d, a, b);
  named_barrier_arrive(1, 64);
  named_barrier_sync(2, 64);
  out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}

cudaError_t launch_everything(const uint16_t* in, float* out, int* ints, cudaStream_t stream) {
  cudaError_t error = cudaFuncSetAttribute(everything_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536);
  if (error == cudaSuccess) error = RFN_LAUNCH(everything_kernel, 1, 64, 1024, stream, in, out, 4);
  if (error == cudaSuccess)
    error = RFN_LAUNCH((matmul_kernel<Bug::None>), dim3(4, 4), dim3(kTile, kTile), 0, stream, out, out, out, 64);
  if (error == cudaSuccess) error = RFN_LAUNCH((reduce_kernel<Bug::None>), 4, 256, 0, stream, ints, ints, 64);
  if (error == cudaSuccess) error = RFN_LAUNCH((histogram_kernel<Bug::None>), 4, 256, 0, stream, ints, ints, 64);
  if (error == cudaSuccess) error = RFN_LAUNCH((warp_reverse_kernel<Bug::None>), 4, 256, 0, stream, ints);
  if (error == cudaSuccess)
    error =
        RFN_LAUNCH((gemm_kernel<64, 64, 32, 32, 32, Bug::None>), dim3(1, 1), 128, 16384, stream, in, in, out, 64, 64);
  if (error == cudaSuccess) error = RFN_LAUNCH((row_sum_kernel<Bug::None>), 4, 128, 0, stream, out, ints, out, 64);
  if (error == cudaSuccess) error = RFN_LAUNCH((pipeline_kernel<Bug::None>), 1, 64, 0, stream, ints, ints, 4);
  return error;
}

}  // namespace rfn::cuda
