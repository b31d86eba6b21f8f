// Patches to rows and back: what the passes do once, before and after their iterations.
#include "patches.cuh"

namespace fsad::cuda {

template <class Real>
__device__ __forceinline__ int64_t patch_width(const PatchMap<Real>& map) {
  return map.channels * map.receptive_field * map.receptive_field;
}

// One warp a patch.
template <class Real>
__global__ void __launch_bounds__(kThreads) pack_patches(const PackRows<Real> p) {
  for_each_warp_item(p.tasks * p.map.positions(), [&](int64_t row) {
    const int64_t task = row / p.map.positions();
    const PatchMap<const Real> map = task_map(p.map, p.map.data, task);
    const Real scale = p.scale ? p.scale[row] : Real(1);
    const Real other_scale = p.other ? p.other_scale[row] : Real(0);
    visit_patch(map, locate(map, row % map.positions()), [&](int offset, const Real* vector) {
      Real* target = p.rows + row * patch_width(map) + offset * map.channels;
      const Real* other = p.other && vector ? p.other + (vector - p.map.data) : nullptr;
      for (int64_t c = lane_index(); c < map.channels; c += kLanes) {
        Real value = vector ? scale * vector[c] : Real(0);
        if (other) value += other_scale * other[c];
        target[c] = value;
      }
    });
  });
}

template <class Real>
__global__ void __launch_bounds__(kThreads) forget_positions(const UnpackRows<Real> p) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  const int64_t size = p.tasks * p.map.positions();
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    p.row_of_position[i] = -1;
  }
}

template <class Real>
__global__ void __launch_bounds__(kThreads) invert_index(const UnpackRows<Real> p) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  const int64_t size = p.tasks * p.count;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    const int64_t task = i / p.count;
    p.row_of_position[task * p.map.positions() + p.index[i]] = i - task * p.count;
  }
}

// One warp a vector of the map. The vector stands at offset (dy, dx) in the patch whose centre lies at
// (−dy, −dx) from it.
template <class Real>
__global__ void __launch_bounds__(kThreads) sum_patches(const UnpackRows<Real> p) {
  const int margin = p.map.receptive_field / 2;
  const int64_t width = patch_width(p.map);
  for_each_warp_item(p.tasks * p.map.positions(), [&](int64_t item) {
    const int64_t task = item / p.map.positions(), position = item % p.map.positions();
    const int64_t y = position / p.map.width % p.map.height, x = position % p.map.width;
    for (int64_t c = lane_index(); c < p.map.channels; c += kLanes) {
      Real sum = 0;
      int offset = 0;
      for (int dy = -margin; dy <= margin; ++dy) {
        for (int dx = -margin; dx <= margin; ++dx, ++offset) {
          if (y < dy || y - dy >= p.map.height || x < dx || x - dx >= p.map.width) continue;
          const int64_t center = position - dy * p.map.width - dx;
          const int64_t row = p.index ? p.row_of_position[task * p.map.positions() + center] : center;
          if (row < 0) continue;  // no atom
          sum += p.rows[(task * p.count + row) * width + offset * p.map.channels + c];
        }
      }
      p.map.data[item * p.map.channels + c] = sum;
    }
  });
}

inline int64_t thread_blocks(int64_t items) { return (items + kThreads - 1) / kThreads; }

template <class Real>
void pack_rows(const PackRows<Real>& p, Stream stream) {
  launch(pack_patches<Real>, warp_item_blocks(p.tasks * p.map.positions()), 0, stream, p);
}

template <class Real>
void unpack_rows(const UnpackRows<Real>& p, Stream stream) {
  if (p.index) {
    launch(forget_positions<Real>, thread_blocks(p.tasks * p.map.positions()), 0, stream, p);
    launch(invert_index<Real>, thread_blocks(p.tasks * p.count), 0, stream, p);
  }
  launch(sum_patches<Real>, warp_item_blocks(p.tasks * p.map.positions()), 0, stream, p);
}

template void pack_rows(const PackRows<float>&, Stream);
template void pack_rows(const PackRows<double>&, Stream);
template void unpack_rows(const UnpackRows<float>&, Stream);
template void unpack_rows(const UnpackRows<double>&, Stream);

}  // namespace fsad::cuda
