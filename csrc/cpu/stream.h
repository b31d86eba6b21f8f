// The skeleton that every kernel here is an instance of: stream the atoms past a tile of queries.
//
// Inner products of a few query-side tiles X_i with every atom, a pointwise rule on them, a weighted sum of
// the atoms:  S_i = D X_i,  W = rule(S_0, S_1, …),  Y += Dᵀ W.  (Atoms are rows here.)
#pragma once

#include <torch/csrc/stable/ops.h>

#include "tiles.h"

namespace fsad {
inline namespace FSAD_ISA {

// One tile of queries of one task.
struct QueryTile {
  int64_t task, first, count, lanes;
};

// The atoms of one task past one tile of queries. All arrays have `lanes` columns.
template <class Real>
class Stream {
 public:
  Stream(const IstcProblem<Real>& problem, const Real* atoms, int64_t task, int64_t lanes)
      : atoms_(problem.atom_map, atoms, problem.atom_index, task, problem.atoms, problem.width),
        count_(problem.atoms),
        width_(problem.width),
        lanes_(lanes) {}

  // Calls body(first, count) for every tile of atoms, after which products and sums refer to that tile.
  template <class Body>
  void for_each_tile(Body body) {
    for (int64_t first = 0; first < count_; first += kTileAtoms) {
      select(first, std::min(kTileAtoms, count_ - first));
      body(first, tile_count_);
    }
  }

  void select(int64_t first, int64_t count) {
    tile_count_ = count;
    rows_ = atoms_.rows(first, count);
  }

  // S (atoms × lanes) = factor · D X, or += with X (d × lanes).
  void products(const Real* x, Real* s, Real factor, bool accumulate) const {
    gemm<Real>(tile_count_, lanes_, width_, {rows_, width_, 1}, x, lanes_, s, lanes_, factor, accumulate);
  }

  // Y (d × lanes) += factor · Dᵀ W with W (atoms × lanes).
  void weighted_sum(const Real* w, Real* y, Real factor) const {
    gemm<Real>(width_, lanes_, tile_count_, {rows_, 1, width_}, w, lanes_, y, lanes_, factor, true);
  }

 private:
  AtomRows<Real> atoms_;
  int64_t count_, width_, lanes_, tile_count_ = 0;
  const Real* rows_ = nullptr;
};

// One thread's part of the dictionary gradient: D̄ (k × padded d) += factor · W Xᵀ.
template <class Real>
struct AtomGradient {
  Real* sum;  // null: not wanted
  int64_t padded_width, lanes;

  // W (atoms × lanes) of the tile at `first`, X given row by row (lanes × padded d).
  void add(int64_t first, int64_t count, const Real* w, const Real* x_rows, Real factor) const {
    gemm<Real>(count, padded_width, lanes, {w, lanes, 1}, x_rows, padded_width, sum + first * padded_width,
               padded_width, factor, true);
  }
};

// A tile (d × lanes) read across, row by row (lanes × padded d), as AtomGradient takes it.
template <class Real>
void turn_tile(const Real* tile, int64_t width, int64_t lanes, int64_t padded_width, Real* rows) {
  store_tile(tile, lanes, width, lanes, rows, padded_width);
  for (int64_t q = 0; q < lanes; ++q) {
    std::fill(rows + q * padded_width + width, rows + (q + 1) * padded_width, Real(0));
  }
}

// Scaled query patches (d × lanes) of a tile, and the patches before scaling.
template <class Real>
void load_queries(const IstcProblem<Real>& p, const Real* data, const QueryTile& tile, Real* patches) {
  gather_queries(p.query_map, data + tile.task * p.query_map.task_size(), tile.first, tile.count, tile.lanes,
                 patches);
}

// scale of every lane; zero in unused ones.
template <class Real>
void load_scale(const IstcProblem<Real>& p, const Real* scale, const QueryTile& tile, Real* lanes) {
  for (int64_t q = 0; q < tile.lanes; ++q) {
    lanes[q] = q < tile.count ? scale[tile.task * p.queries + tile.first + q] : Real(0);
  }
}

// y = x · s lane by lane, for all d rows.
template <class Real>
void scale_lanes(const Real* x, const Real* s, int64_t width, int64_t lanes, Real* y) {
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t q = 0; q < lanes; ++q) y[i * lanes + q] = x[i * lanes + q] * s[q];
  }
}

// r_m (T, n, d) of the saved residuals into a tile; m ≥ 1.
template <class Real>
void load_history(const IstcProblem<Real>& p, const Real* history, int m, const QueryTile& tile,
                  Real* residual) {
  const int64_t row = ((m - 1) * p.tasks + tile.task) * p.queries + tile.first;
  load_tile(history + row * p.width, tile.count, p.width, tile.lanes, residual);
}

// Queries a tile: as many as the caches like, fewer if threads would idle. A query's result does not depend
// on it.
inline int64_t tile_lanes(int64_t tasks, int64_t queries, int64_t block) {
  int64_t lanes = kTileQueries;
  const int64_t wanted = 2 * torch::stable::get_num_threads();
  while (lanes > block && tasks * ((queries + lanes - 1) / lanes) < wanted) lanes /= 2;
  return lanes;
}

// Calls body(shrinkage tag) with the shrinkage as a compile-time constant.
template <class Body>
void with_shrinkage(Shrinkage shrinkage, Body body) {
  switch (shrinkage) {
    case Shrinkage::none:
      return body(std::integral_constant<Shrinkage, Shrinkage::none>());
    case Shrinkage::soft:
      return body(std::integral_constant<Shrinkage, Shrinkage::soft>());
    default:
      return body(std::integral_constant<Shrinkage, Shrinkage::sigshrink>());
  }
}

}  // namespace FSAD_ISA
}  // namespace fsad
