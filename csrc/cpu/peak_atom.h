// The most correlated atom of every query: the skeleton without weighted sums.
#pragma once

#include "peaks.h"

namespace fsad {
inline namespace FSAD_ISA {

template <class Real>
struct PeakArrays {
  Real* query;
  Peaks<Real> peaks;

  PeakArrays(Carver<Real>& carver, const IstcProblem<Real>& p, int64_t lanes)
      : query(carver.take(tile_numbers<Real>(p.width, lanes))), peaks(carver, p, lanes) {}
};

template <class Real>
void peak_group(const IstcProblem<Real>& p, const Stream<Real>& stream, int64_t task, int64_t first,
                const Panels<Real>& panels, const PeakArrays<Real>& own, int64_t* positions) {
  gather_queries(panels, p.query_map, p.query_map.data + task * p.query_map.task_size(), first, own.query);
  stream.sweep(task, panels, 0, nullptr, [&](const Tile<Real>& tile) {
    tile.products(tile.atoms, own.query, tile.local[0], false);
    own.peaks.note(tile, tile.local[0]);
  });
  own.peaks.conclude(p, task, first, panels, positions, [](int64_t, Real) {});
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
  const Slots<Real, PeakArrays<Real>> slots(stream.slots(), problem, stream.plan.lanes);
  stream.for_each(stream.groups(), stream.plan.grain, [&](int64_t group, int64_t slot) {
    stream.with_group(group, [&](int64_t task, int64_t first, const Panels<Real>& panels) {
      peak_group(problem, stream, task, first, panels, slots.at(slot, problem, stream.plan.lanes), p.peak);
    });
  });
}

}  // namespace FSAD_ISA
}  // namespace fsad
