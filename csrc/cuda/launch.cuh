// Blocks, threads and launches, the same for all kernels.
//
// Kernels are templates over the number type; their parameter is one plain struct, at times with a step
// number. Their names do not change: `forward_step<float>` is the entry
// _ZN4fsad4cuda12forward_stepIfEEvNS0_11ForwardPassIT_EEi. With 128 threads a block, any grid gives the same
// result, and shared memory is as in launch_shares (stream.cuh).
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace fsad::cuda {

constexpr int kLanes = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kLanes;
constexpr int64_t kMaxBlocks = INT32_MAX;  // kernels loop over the rest

// Enqueues `blocks` blocks (any number) of kernel(params...).
template <class... Params, class... Arguments>
void launch(void (*kernel)(Params...), int64_t blocks, size_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
  if (blocks == 0) return;  // CUDA refuses an empty grid
  kernel<<<static_cast<unsigned>(std::min(blocks, kMaxBlocks)), kThreads, shared_bytes, stream>>>(
      arguments...);
}

// What went wrong since the last call, or null.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

__device__ __forceinline__ int lane_index() { return threadIdx.x % kLanes; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / kLanes; }

// Calls body(item) for every item of [0, items), each on one warp of the grid.
template <class Body>
__device__ __forceinline__ void for_each_warp_item(int64_t items, Body body) {
  const int64_t stride = int64_t(gridDim.x) * kWarps;
  for (int64_t item = int64_t(blockIdx.x) * kWarps + warp_index(); item < items; item += stride) {
    body(item);
  }
}

inline int64_t warp_item_blocks(int64_t items) { return (items + kWarps - 1) / kWarps; }

// The sum over the warp, the same bits in every lane: each level adds the same two numbers.
template <class Real>
__device__ __forceinline__ Real warp_sum(Real value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// The number that lane `lane` holds.
template <class Real>
__device__ __forceinline__ Real from_lane(Real value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

}  // namespace fsad::cuda
