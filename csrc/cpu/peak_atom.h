// The most correlated atom of every query: the skeleton without weighted sums.
#pragma once

#include "istc_forward.h"

namespace fsad {
inline namespace FSAD_ISA {

// A tile of queries, and of every tile of atoms the largest |⟨query, atom⟩| of each lane.
template <class Real>
struct PeakArrays {
  Real *query, *best;

  PeakArrays(Carver<Real>& carver, const IstcProblem<Real>& p, int64_t lanes) {
    query = carver.take(tile_numbers<Real>(p.width, lanes));
    best = carver.take(tiles(p) * lanes);
  }

  static int64_t tiles(const IstcProblem<Real>& p) {
    return (p.atoms + tile_atoms(p.width) - 1) / tile_atoms(p.width);
  }
};

// The largest magnitude of each lane in one tile's products (atoms × lanes), and the first atom that has it.
template <class Real>
void find_peaks(const Real* products, int64_t atoms, int64_t lanes, Real* best, int* where) {
  std::fill_n(best, lanes, Real(-1));
  std::fill_n(where, lanes, 0);
  for (int atom = 0; atom < atoms; ++atom) {
    for (int64_t q = 0; q < lanes; ++q) {
      const Real magnitude = std::abs(products[atom * lanes + q]);
      where[q] = magnitude > best[q] ? atom : where[q];
      best[q] = magnitude > best[q] ? magnitude : best[q];
    }
  }
}

template <class Real>
void peak_group(const PeakAtom<Real>& p, const Stream<Real>& stream, int64_t task, int64_t first,
                const Panels<Real>& panels, const PeakArrays<Real>& own, int* where) {
  const int64_t lanes = panels.lanes, step = tile_atoms(p.width);
  gather_queries(panels, p.query_map, p.query_map.data + task * p.query_map.task_size(), first, own.query);
  stream.sweep(task, panels, 0, nullptr, [&](const Tile<Real>& tile) {
    const int64_t at = tile.first / step * lanes;
    tile.products(tile.atoms, own.query, tile.local[0], false);
    find_peaks(tile.local[0], tile.count, lanes, own.best + at, where + at);
  });
  for (int64_t q = 0; q < panels.count; ++q) {
    int64_t best = 0;
    for (int64_t t = 1; t * step < p.atoms; ++t) {
      if (own.best[t * lanes + q] > own.best[best * lanes + q]) best = t;
    }
    const int64_t atom = best * step + where[best * lanes + q];
    p.peak[task * p.queries + first + q] = p.atom_index ? p.atom_index[task * p.atoms + atom] : atom;
  }
}

template <class Real>
void peak_atom(const PeakAtom<Real>& p) {
  IstcProblem<Real> problem{};
  problem.tasks = p.tasks;
  problem.queries = p.queries;
  problem.atoms = p.atoms;
  problem.width = p.width;
  problem.query_map = p.query_map;
  problem.atom_map = p.atom_map;
  problem.atom_index = p.atom_index;
  const Stream<Real> stream(problem, 0, false);
  const int64_t lanes = stream.plan.lanes, per_slot = PeakArrays<Real>::tiles(problem) * lanes;
  const Slots<Real, PeakArrays<Real>> slots(stream.slots(), problem, lanes);
  const Buffer<int> where(stream.slots() * per_slot);
  stream.for_each(stream.groups(), stream.plan.grain, [&](int64_t group, int64_t slot) {
    stream.with_group(group, [&](int64_t task, int64_t first, const Panels<Real>& panels) {
      peak_group(p, stream, task, first, panels, slots.at(slot, problem, lanes),
                 where.get() + slot * per_slot);
    });
  });
}

}  // namespace FSAD_ISA
}  // namespace fsad
