// How maps become tiles: gathering patches (Im2Col), scattering them back (Col2Im), and the scratch memory.
//
// A query tile holds up to kTileQueries queries in the lanes: arrays (d × lanes), row by row. Atoms come in
// tiles of kTileAtoms rows (atoms × d), straight from the caller's map where a patch is one row of it.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "gemm.h"
#include "istc.h"

namespace fsad {
inline namespace FSAD_ISA {

constexpr int64_t kTileQueries = 64;  // codes of a tile, k × 64, pass through the outer caches
constexpr int64_t kTileAtoms = 48;    // with their d columns about half of a first-level cache at d = 64

// Scratch memory, aligned to cache lines.
template <class Real>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    const size_t bytes = (std::max<int64_t>(size, 1) * sizeof(Real) + 63) / 64 * 64;
    data_.reset(static_cast<Real*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
  }
  Real* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(Real* data) const { std::free(data); }
  };
  std::unique_ptr<Real, Free> data_;
};

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Calls visit(offset, vector) for the l² feature vectors of the patch at `position` of one task's map;
// nullptr stands for a vector of padding.
template <class Real, class Visit>
inline void visit_patch(const PatchMap<Real>& map, Real* task, int64_t position, Visit visit) {
  const int64_t area = map.height * map.width;
  const int64_t image = position / area, y = position % area / map.width, x = position % map.width;
  const int margin = map.receptive_field / 2;
  int offset = 0;
  for (int dy = -margin; dy <= margin; ++dy) {
    for (int dx = -margin; dx <= margin; ++dx, ++offset) {
      const bool inside = y + dy >= 0 && y + dy < map.height && x + dx >= 0 && x + dx < map.width;
      const int64_t vector = (image * map.height + y + dy) * map.width + x + dx;
      visit(offset, inside ? task + vector * map.channels : nullptr);
    }
  }
}

// Rows of atoms [first, first + count) of one task, as the left operand of a product.
template <class Real>
struct AtomRows {
  const PatchMap<const Real>& map;
  const Real* task;
  const int64_t* index;
  int64_t width;
  Buffer<Real> packed;

  AtomRows(const PatchMap<const Real>& map, const Real* data, const int64_t* index, int64_t task,
           int64_t atoms, int64_t width)
      : map(map),
        task(data ? data + task * map.task_size() : nullptr),
        index(index ? index + task * atoms : nullptr),
        width(width),
        packed(kTileAtoms * width) {}

  const Real* rows(int64_t first, int64_t count) {
    if (!index && map.receptive_field == 1) return task + first * width;
    for (int64_t i = 0; i < count; ++i) {
      Real* row = packed.get() + i * width;
      visit_patch(map, task, index ? index[first + i] : first + i, [&](int offset, const Real* vector) {
        Real* target = row + offset * map.channels;
        if (vector) {
          std::memcpy(target, vector, map.channels * sizeof(Real));
        } else {
          std::memset(target, 0, map.channels * sizeof(Real));
        }
      });
    }
    return packed.get();
  }
};

// The patches [first, first + count) of a query map into a tile (d × lanes); unused lanes are zero.
template <class Real>
void gather_queries(const PatchMap<const Real>& map, const Real* task, int64_t first, int64_t count,
                    int64_t lanes, Real* tile) {
  std::memset(tile, 0, map.channels * map.receptive_field * map.receptive_field * lanes * sizeof(Real));
  for (int64_t query = 0; query < count; ++query) {
    visit_patch(map, task, first + query, [&](int offset, const Real* vector) {
      if (!vector) return;
      for (int64_t c = 0; c < map.channels; ++c) {
        tile[(offset * map.channels + c) * lanes + query] = vector[c];
      }
    });
  }
}

// Rows (count × d) to a tile (d × lanes) and back.
template <class Real>
void load_tile(const Real* rows, int64_t count, int64_t width, int64_t lanes, Real* tile) {
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t q = 0; q < lanes; ++q) tile[i * lanes + q] = q < count ? rows[q * width + i] : Real(0);
  }
}

template <class Real>
void store_tile(const Real* tile, int64_t count, int64_t width, int64_t lanes, Real* rows,
                int64_t row_stride) {
  for (int64_t q = 0; q < count; ++q) {
    for (int64_t i = 0; i < width; ++i) rows[q * row_stride + i] = tile[i * lanes + q];
  }
}

// Adds rows of patches (count × d) back to one task's map, in the order of the rows.
template <class Real>
void scatter_rows(const PatchMap<Real>& map, Real* task, const int64_t* index, int64_t count,
                  const Real* rows, int64_t row_stride) {
  for (int64_t i = 0; i < count; ++i) {
    visit_patch(map, task, index ? index[i] : i, [&](int offset, Real* vector) {
      if (!vector) return;
      const Real* row = rows + i * row_stride + offset * map.channels;
      for (int64_t c = 0; c < map.channels; ++c) vector[c] += row[c];
    });
  }
}

// A map that is written where another is read.
template <class Real>
PatchMap<Real> writable(const PatchMap<const Real>& map, Real* data) {
  return {data, map.images, map.height, map.width, map.channels, map.receptive_field};
}

}  // namespace FSAD_ISA
}  // namespace fsad
