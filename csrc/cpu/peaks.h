// The largest magnitude of every query's inner products, and the atom that has it.
#pragma once

#include "stream.h"

namespace fsad {
inline namespace FSAD_ISA {

// Of every tile of atoms and every lane: the largest magnitude, and which of the tile's atoms has it first,
// as a number like the others, so that both are looked for in vectors. Threads may share a group's tiles.
template <class Real>
class Peaks {
 public:
  Peaks(Carver<Real>& carver, const IstcProblem<Real>& p, int64_t lanes)
      : best_(carver.take(tiles(p) * lanes)), where_(carver.take(tiles(p) * lanes)) {}

  // Notes the peaks of one tile's products (atoms × lanes).
  void note(const Tile<Real>& tile, const Real* products) const {
    const int64_t lanes = tile.panels.lanes, at = tile.first / tile_atoms(tile.width) * lanes;
    Real *best = best_ + at, *where = where_ + at;
    std::fill_n(best, lanes, Real(-1));
    std::fill_n(where, lanes, Real(0));
    for (int64_t atom = 0; atom < tile.count; ++atom) {
      const Real number = static_cast<Real>(atom);
      for (int64_t q = 0; q < lanes; ++q) {
        const Real magnitude = std::abs(products[atom * lanes + q]);
        where[q] = magnitude > best[q] ? number : where[q];
        best[q] = magnitude > best[q] ? magnitude : best[q];
      }
    }
  }

  // Once all tiles are noted: writes the peaks' positions in the map, and calls body(lane, magnitude).
  template <class Body>
  void conclude(const IstcProblem<Real>& p, int64_t task, int64_t first, const Panels<Real>& panels,
                int64_t* positions, Body body) const {
    for (int64_t q = 0; q < panels.count; ++q) {
      int64_t most = 0;
      for (int64_t tile = 1; tile < tiles(p); ++tile) {
        if (best_[tile * panels.lanes + q] > best_[most * panels.lanes + q]) most = tile;
      }
      const int64_t at = most * panels.lanes + q;
      const int64_t atom = most * tile_atoms(p.width) + static_cast<int64_t>(where_[at]);
      positions[task * p.queries + first + q] = p.atom_index ? p.atom_index[task * p.atoms + atom] : atom;
      body(q, best_[at]);
    }
  }

 private:
  static int64_t tiles(const IstcProblem<Real>& p) {
    return (p.atoms + tile_atoms(p.width) - 1) / tile_atoms(p.width);
  }

  Real *best_, *where_;
};

}  // namespace FSAD_ISA
}  // namespace fsad
