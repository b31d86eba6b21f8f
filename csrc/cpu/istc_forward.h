// Forward: the iteration itself, and the search for the most correlated atom.
#pragma once

#include "stream.h"

namespace fsad {
inline namespace FSAD_ISA {

template <class Real, Shrinkage shrinkage>
void forward_tile(const IstcForward<Real>& p, const QueryTile& tile) {
  const int64_t lanes = tile.lanes, tile_size = p.width * lanes;
  const Real step = p.step[tile.task];
  Stream<Real> stream(p, p.atom_map.data, tile.task, lanes);
  Buffer<Real> scale(lanes), query(tile_size), residual(tile_size), sum(tile_size);
  Buffer<Real> codes(p.atoms * lanes), products(kTileAtoms * lanes);
  load_queries(p, p.query_map.data, tile, query.get());
  load_scale(p, p.scale, tile, scale.get());
  scale_lanes(query.get(), scale.get(), p.width, lanes, query.get());
  std::copy_n(query.get(), tile_size, residual.get());

  for (int m = 0; m < p.iterations; ++m) {
    std::fill_n(sum.get(), tile_size, Real(0));
    stream.for_each_tile([&](int64_t first, int64_t count) {
      Real* alpha = codes.get() + first * lanes;
      stream.products(residual.get(), products.get(), step, false);
      for (int64_t i = 0; i < count * lanes; i += kLanes<Real>) {
        Vector<Real> u = load(products.get() + i);
        if (m > 0) u += load(alpha + i);
        store(alpha + i, shrink<shrinkage>(u, p.lambda[m], p.tau[m]).value);
      }
      stream.weighted_sum(alpha, sum.get(), Real(1));
    });
    for (int64_t i = 0; i < tile_size; ++i) residual.get()[i] = query.get()[i] - sum.get()[i];
    Real* target = m + 1 < p.iterations ? p.history + m * p.tasks * p.queries * p.width : p.residual;
    store_tile(residual.get(), tile.count, p.width, lanes,
               target + (tile.task * p.queries + tile.first) * p.width, p.width);
  }
}

template <class Real>
void peak_tile(const PeakAtom<Real>& p, const QueryTile& tile) {
  const int64_t lanes = tile.lanes;
  IstcProblem<Real> problem{};
  problem.atoms = p.atoms;
  problem.width = p.width;
  problem.query_map = p.query_map;
  problem.atom_map = p.atom_map;
  problem.atom_index = p.atom_index;
  Stream<Real> stream(problem, p.atom_map.data, tile.task, lanes);
  Buffer<Real> query(p.width * lanes), products(kTileAtoms * lanes), best(lanes);
  Buffer<int64_t> where(lanes);
  load_queries(problem, p.query_map.data, tile, query.get());
  std::fill_n(best.get(), lanes, Real(-1));
  std::fill_n(where.get(), lanes, 0);
  stream.for_each_tile([&](int64_t first, int64_t count) {
    stream.products(query.get(), products.get(), Real(1), false);
    for (int64_t atom = 0; atom < count; ++atom) {
      for (int64_t q = 0; q < lanes; ++q) {
        const Real value = products.get()[atom * lanes + q];
        const Real magnitude = value < 0 ? -value : value;
        const bool better = magnitude > best.get()[q];
        best.get()[q] = better ? magnitude : best.get()[q];
        where.get()[q] = better ? first + atom : where.get()[q];
      }
    }
  });
  for (int64_t q = 0; q < tile.count; ++q) {
    const int64_t atom = where.get()[q];
    p.peak[tile.task * p.queries + tile.first + q] =
        p.atom_index ? p.atom_index[tile.task * p.atoms + atom] : atom;
  }
}

// Calls body(tile) for every tile of queries of every task, on torch's threads.
template <class Real, class Body>
void for_each_query_tile(int64_t tasks, int64_t queries, Body body) {
  const int64_t lanes = tile_lanes(tasks, queries, kBlock<Real>);
  const int64_t tiles = (queries + lanes - 1) / lanes;
  torch::stable::parallel_for(0, tasks * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % tiles * lanes;
      body(QueryTile{i / tiles, first, std::min(lanes, queries - first), lanes});
    }
  });
}

template <class Real>
void istc_forward(const IstcForward<Real>& p) {
  with_shrinkage(p.shrinkage, [&](auto shrinkage) {
    for_each_query_tile<Real>(p.tasks, p.queries, [&](const QueryTile& tile) {
      forward_tile<Real, decltype(shrinkage)::value>(p, tile);
    });
  });
}

template <class Real>
void peak_atom(const PeakAtom<Real>& p) {
  for_each_query_tile<Real>(p.tasks, p.queries, [&](const QueryTile& tile) { peak_tile(p, tile); });
}

}  // namespace FSAD_ISA
}  // namespace fsad
