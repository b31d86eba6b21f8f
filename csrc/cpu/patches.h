// How maps become patches: gathering them (Im2Col) and scattering them back (Col2Im), and tiles of atoms.
#pragma once

#include <algorithm>
#include <cstring>

#include "blocks.h"
#include "istc.h"
#include "scratch.h"

namespace fsad {
inline namespace FSAD_ISA {

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

// As memcpy, which takes longer to be called than to copy so few numbers.
template <class Real, int kCount = kLanes<Real>>
inline void copy_numbers(const Real* source, int64_t count, Real* target) {
  constexpr size_t bytes = kCount * sizeof(Real);
  if constexpr (kCount > 1) {
    if (count < kCount) return copy_numbers<Real, kCount / 2>(source, count, target);
  }
  for (int64_t i = 0; i < count; i += kCount) {
    const int64_t at = std::min(i, count - kCount);  // the last overlaps the one before
    __builtin_memcpy(target + at, source + at, bytes);
  }
}

// Where a tile's atoms are read: where they lie, or packed, all of them once or tile by tile.
enum class Packing { none, all, tiles };

// The patches that serve as atoms.
template <class Real>
class AtomRows {
 public:
  // `packed`: memory for all tasks' atoms, or null.
  AtomRows(const IstcProblem<Real>& p, const Real* maps, Real* packed)
      : map_(p.atom_map), index_(p.atom_index), atoms_(p.atoms), width_(p.width), packed_(packed) {
    map_.data = maps;
  }

  // `single`: for a single query every number of an atom is read once, wherever it lies.
  static bool are_packed(const IstcProblem<Real>& p, bool single) {
    const bool conflicts = p.width * sizeof(Real) % 1024 == 0 && !single;
    return p.atom_index || p.atom_map.receptive_field > 1 || conflicts;
  }

  // Numbers from one packed row to the next. Rows that are a multiple of 1 KiB apart would share a few sets
  // of the first cache, so these never are.
  static int64_t packed_stride(int64_t width) { return width % 64 ? width : width + 16; }

  // Packs atoms [first, first + count), counted over all tasks.
  void pack(int64_t first, int64_t count, Real* target) const {
    const Real* maps = map_.data + first / atoms_ * map_.task_size();
    int64_t atom = first % atoms_;
    Place place = place_of(atom);
    for (int64_t i = first; i < first + count; ++i, target += packed_stride(width_)) {
      if (index_) place = place_of(index_[i]);
      gather(maps, place, target);
      next(place);
      if (++atom < atoms_) continue;
      atom = 0;
      maps += map_.task_size();
      place = place_of(atom);
    }
  }

  // Atoms [first, first + count) of a task; `tile`: memory for them if they are packed tile by tile.
  Rows<Real> rows(int64_t task, int64_t first, int64_t count, Real* tile) const {
    const int64_t stride = packed_stride(width_);
    if (packed_) return {packed_ + (task * atoms_ + first) * stride, stride};
    if (!tile) return {map_.data + task * map_.task_size() + first * width_, width_};
    pack(task * atoms_ + first, count, tile);
    return {tile, stride};
  }

 private:
  struct Place {
    int64_t row, y, x;  // row: of all images' rows
  };

  Place place_of(int64_t position) const {
    const int64_t row = position / map_.width;
    return {row, row % map_.height, position - row * map_.width};
  }

  void next(Place& place) const {
    if (++place.x < map_.width) return;
    place.x = 0;
    ++place.row;
    if (++place.y == map_.height) place.y = 0;
  }

  // A patch is l pieces of the map's rows, l² vectors: neighbours in a row lie beside each other. Narrow ones
  // of few queries take longer to gather than to multiply.
  void gather(const Real* maps, const Place& place, Real* target) const {
    const int64_t field = map_.receptive_field, margin = field / 2, c = map_.channels;
    const int64_t left = std::max<int64_t>(margin - place.x, 0);
    const int64_t right = std::max<int64_t>(place.x + margin + 1 - map_.width, 0);
    for (int64_t dy = -margin; dy <= margin; ++dy, target += field * c) {
      const bool inside = place.y + dy >= 0 && place.y + dy < map_.height;
      const int64_t known = inside ? std::max<int64_t>(field - left - right, 0) : 0;
      const int64_t before = known ? left : field;
      if (before) std::memset(target, 0, before * c * sizeof(Real));
      if (!known) continue;
      const Real* source = maps + ((place.row + dy) * map_.width + place.x - margin + left) * c;
      copy_numbers(source, known * c, target + left * c);
      if (right) std::memset(target + (left + known) * c, 0, right * c * sizeof(Real));
    }
  }

  PatchMap<const Real> map_;
  const int64_t* index_;
  int64_t atoms_, width_;
  const Real* packed_;
};

}  // namespace FSAD_ISA
}  // namespace fsad
