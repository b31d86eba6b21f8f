// Queries in the lanes: how the vectors of a group of queries lie beside each other.
//
// A tile (d × lanes) is cut into panels of kBlock columns, the last one perhaps of half or a quarter as many;
// a panel lies row by row. Codes and other numbers of atoms × lanes lie row by row, all lanes together.
#pragma once

#include "patches.h"

namespace fsad {
inline namespace FSAD_ISA {

// Memory for rows of `lanes` numbers: whole vectors.
template <class Real>
int64_t tile_numbers(int64_t rows, int64_t lanes) {
  return round_up(rows * lanes, kLanes<Real>);
}

template <class Real>
struct Panels {
  int64_t count;  // queries
  int64_t lanes;  // columns; those beyond the queries are zero
  int64_t block;  // columns of a whole panel: kBlock, or 1 where queries are too few for vectors of them

  // So few queries that vectors along the atoms waste less than vectors of queries. Decided by all queries
  // of a task, as the order of sums depends on it.
  static bool are_single(int64_t queries) { return queries <= kLanes<Real> / 4; }

  Panels(int64_t count, bool single)
      : count(count),
        lanes(single ? count : round_up(count, is_half(count) ? kLanes<Real> / 2 : kLanes<Real>)),
        block(single ? 1 : kBlock<Real>) {}

  static bool is_half(int64_t queries) { return kHasHalves && queries <= kLanes<Real> / 2; }

  // Calls body(panel, its first lane, its columns).
  template <class Body>
  void for_each(int64_t width, Body body) const {
    for (int64_t lane = 0; lane < lanes; lane += block) {
      body(lane * width, lane, std::min(block, lanes - lane));
    }
  }

  int64_t size(int64_t width) const { return tile_numbers<Real>(width, lanes); }
};

// Calls body(i) for i = 0, kLanes, 2 kLanes … below size.
template <class Real, class Body>
inline void for_each_vector(int64_t size, Body body) {
  for (int64_t i = 0; i < size; i += kLanes<Real>) body(i);
}

// Rows (count × d) into a tile.
template <class Real>
void load_rows(const Panels<Real>& panels, const Real* rows, int64_t width, Real* tile) {
  panels.for_each(width, [&](int64_t panel, int64_t lane, int64_t columns) {
    for (int64_t q = 0; q < columns; ++q) {
      const Real* row = rows + (lane + q) * width;
      Real* column = tile + panel + q;
      const bool used = lane + q < panels.count;
      for (int64_t i = 0; i < width; ++i) column[i * columns] = used ? row[i] : Real(0);
    }
  });
}

// A tile into rows (count × d).
template <class Real>
void store_rows(const Panels<Real>& panels, const Real* tile, int64_t width, Real* rows) {
  panels.for_each(width, [&](int64_t panel, int64_t lane, int64_t columns) {
    for (int64_t q = 0; q < columns && lane + q < panels.count; ++q) {
      Real* row = rows + (lane + q) * width;
      for (int64_t i = 0; i < width; ++i) row[i] = tile[panel + i * columns + q];
    }
  });
}

// The patches [first, first + count) of a query map into a tile.
template <class Real>
void gather_queries(const Panels<Real>& panels, const PatchMap<const Real>& map, const Real* task,
                    int64_t first, Real* tile) {
  const int64_t width = map.channels * map.receptive_field * map.receptive_field;
  std::memset(tile, 0, panels.size(width) * sizeof(Real));
  panels.for_each(width, [&](int64_t panel, int64_t lane, int64_t columns) {
    for (int64_t q = 0; q < columns && lane + q < panels.count; ++q) {
      visit_patch(map, task, first + lane + q, [&](int offset, const Real* vector) {
        if (!vector) return;
        Real* column = tile + panel + offset * map.channels * columns + q;
        for (int64_t c = 0; c < map.channels; ++c) column[c * columns] = vector[c];
      });
    }
  });
}

// y = or += x · s, s a factor for every lane.
template <class Real>
void scale_lanes(const Panels<Real>& panels, const Real* x, const Real* s, int64_t width, bool accumulate,
                 Real* y) {
  panels.for_each(width, [&](int64_t panel, int64_t lane, int64_t columns) {
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t q = 0; q < columns; ++q) {
        const int64_t at = panel + i * columns + q;
        const Real product = x[at] * s[lane + q];
        y[at] = accumulate ? y[at] + product : product;
      }
    }
  });
}

// y = factor · x for a whole tile.
template <class Real>
void scale_tile(const Real* x, Real factor, int64_t size, Real* y) {
  for (int64_t i = 0; i < size; ++i) y[i] = factor * x[i];
}

// A tile, turned: for every kBlock columns of its transpose (lanes × d) a panel of `rows` rows, of
// which this fills those from `first` on. What is beyond d is zero.
template <class Real>
void turn_tile(const Panels<Real>& panels, const Real* tile, int64_t width, int64_t rows, int64_t first,
               Real* turned) {
  constexpr int64_t block = kBlock<Real>;
  panels.for_each(width, [&](int64_t panel, int64_t lane, int64_t columns) {
    for (int64_t start = 0; start < width; start += block) {
      for (int64_t q = 0; q < columns; ++q) {
        Real* row = turned + start * rows + (first + lane + q) * block;
        for (int64_t i = 0; i < block; ++i) {
          row[i] = start + i < width ? tile[panel + (start + i) * columns + q] : Real(0);
        }
      }
    }
  });
}

}  // namespace FSAD_ISA
}  // namespace fsad
