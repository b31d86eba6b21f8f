// Patches of a map, read in place: Im2Col as a gather, and its adjoint.
#pragma once

#include "launch.cuh"

namespace fsad::cuda {

// A map from its first task's data to that of `task`.
template <class Real>
__device__ __forceinline__ PatchMap<Real> task_map(PatchMap<Real> map, Real* data, int64_t task) {
  map.data = data + task * map.task_size();
  return map;
}

// Where a patch lies: the number of its central vector, and that vector's row and column in its image.
struct Patch {
  int64_t center, y, x;
};

template <class Real>
__device__ __forceinline__ Patch locate(const PatchMap<Real>& map, int64_t position) {
  if (map.receptive_field == 1) return {position, 0, 0};  // inside whatever the image; spares divisions
  return {position, position / map.width % map.height, position % map.width};
}

// Calls visit(offset, vector) for the l² feature vectors of a patch; nullptr stands for a vector of padding.
template <class Real, class Visit>
__device__ __forceinline__ void visit_patch(const PatchMap<Real>& map, const Patch& patch, Visit visit) {
  const int margin = map.receptive_field / 2;
  int offset = 0;
  for (int dy = -margin; dy <= margin; ++dy) {
    for (int dx = -margin; dx <= margin; ++dx, ++offset) {
      const int64_t y = patch.y + dy, x = patch.x + dx;
      const bool inside = y >= 0 && y < map.height && x >= 0 && x < map.width;
      const int64_t vector = patch.center + dy * map.width + dx;
      visit(offset, inside ? map.data + vector * map.channels : nullptr);
    }
  }
}

// ⟨patch, row⟩ by one warp, in all lanes.
template <class Real>
__device__ __forceinline__ Real dot(const PatchMap<const Real>& map, const Patch& patch, const Real* row) {
  Real sum = 0;
  visit_patch(map, patch, [&](int offset, const Real* vector) {
    if (!vector) return;
    const Real* part = row + offset * map.channels;
    for (int64_t c = lane_index(); c < map.channels; c += kLanes) sum += vector[c] * part[c];
  });
  return warp_sum(sum);
}

// ---- whole maps (patches.cu) -------------------------------------------------------------------------

// rows (T, n, d) = scale · patches of map; + other_scale · patches of other, if given. scale null: 1.
template <class Real>
struct PackRows {
  int64_t tasks;
  PatchMap<const Real> map;
  const Real* scale;
  const Real *other, *other_scale;
  Real* rows;
};

template <class Real>
void pack_rows(const PackRows<Real>&, Stream);

// map (T, …) = Σ of the rows (T, count, d) of all patches that hold a vector, in the order of the offsets.
// The rows are those of all positions, or of the `count` positions in `index` (T, count), which must be
// distinct: row_of_position (T, positions) is filled with the inverse of it.
template <class Real>
struct UnpackRows {
  int64_t tasks, count;
  PatchMap<Real> map;
  const Real* rows;
  const int64_t* index;
  int64_t* row_of_position;
};

template <class Real>
void unpack_rows(const UnpackRows<Real>&, Stream);

// A map that is written where another is read.
template <class Real>
PatchMap<Real> writable(const PatchMap<const Real>& map, Real* data) {
  return {data, map.images, map.height, map.width, map.channels, map.receptive_field};
}

}  // namespace fsad::cuda
