// Backward and double backward: reverse passes over the iteration, its codes recomputed tile by tile.
#pragma once

#include "istc_forward.h"

namespace fsad {
inline namespace FSAD_ISA {

// Parts that the queries of a task are split into for the dictionary gradient. Each part sums on its own and
// the parts are added in order, so that results do not depend on the number of threads.
constexpr int64_t kGradientParts = 8;

// With G = ∂/∂r_N:  h_N = G, ᾱ = 0;  for m = N−1 … 0:  ᾱ −= D h_{m+1};  D̄ −= α_{m+1} h_{m+1}ᵀ;
// ū = ᾱ ← σ'(u_m) ᾱ;  h_m = ηDᵀū;  D̄ += η ū r_mᵀ.  Then z̄ = Σ_m h_m.
template <class Real, Shrinkage shrinkage>
void backward_tile(const IstcBackward<Real>& p, const QueryTile& tile, Real* sum_queries,
                   const AtomGradient<Real>& grad_atoms) {
  const int64_t lanes = tile.lanes, tile_size = p.width * lanes, codes_size = p.atoms * lanes;
  const int64_t turned_size = grad_atoms.sum ? lanes * grad_atoms.padded_width : 0;
  const Real step = p.step[tile.task];
  Stream<Real> stream(p, p.atom_map.data, tile.task, lanes);
  Buffer<Real> scale(lanes), residuals(p.iterations * tile_size), products(kTileAtoms * lanes);
  Buffer<Real> alpha(kTileAtoms * lanes), slope(p.iterations * codes_size), bar(codes_size);
  Buffer<Real> codes(grad_atoms.sum ? p.iterations * codes_size : 0);
  Buffer<Real> before(tile_size), after(tile_size), turned_residual(turned_size), turned_after(turned_size);
  load_queries(p, p.query_map.data, tile, residuals.get());
  load_scale(p, p.scale, tile, scale.get());
  scale_lanes(residuals.get(), scale.get(), p.width, lanes, residuals.get());
  for (int m = 1; m < p.iterations; ++m) {
    load_history(p, p.history, m, tile, residuals.get() + m * tile_size);
  }
  load_tile(p.grad_residual + (tile.task * p.queries + tile.first) * p.width, tile.count, p.width, lanes,
            after.get());
  std::copy_n(after.get(), tile_size, sum_queries);
  std::fill_n(bar.get(), codes_size, Real(0));

  // u_m, hence σ'(u_m) and α_{m+1}, of one tile of atoms and all m.
  const auto recode = [&](int64_t first, int64_t count) {
    for (int m = 0; m < p.iterations; ++m) {
      const int64_t at = m * codes_size + first * lanes;
      stream.products(residuals.get() + m * tile_size, products.get(), step, false);
      for (int64_t i = 0; i < count * lanes; i += kLanes<Real>) {
        Vector<Real> u = load(products.get() + i);
        if (m > 0) u += load(alpha.get() + i);
        const auto shrunk = shrink<shrinkage>(u, p.lambda[m], p.tau[m]);
        store(alpha.get() + i, shrunk.value);
        store(slope.get() + at + i, shrunk.first);
        if (grad_atoms.sum) store(codes.get() + at + i, shrunk.value);
      }
    }
  };

  for (int m = p.iterations - 1; m >= 0; --m) {
    std::fill_n(before.get(), tile_size, Real(0));
    if (grad_atoms.sum) {
      turn_tile(residuals.get() + m * tile_size, p.width, lanes, grad_atoms.padded_width,
                turned_residual.get());
      turn_tile(after.get(), p.width, lanes, grad_atoms.padded_width, turned_after.get());
    }
    stream.for_each_tile([&](int64_t first, int64_t count) {
      if (m == p.iterations - 1) recode(first, count);
      Real* tile_bar = bar.get() + first * lanes;
      const int64_t at = m * codes_size + first * lanes;
      stream.products(after.get(), tile_bar, Real(-1), true);
      for (int64_t i = 0; i < count * lanes; i += kLanes<Real>) {
        store(tile_bar + i, load(tile_bar + i) * load(slope.get() + at + i));
      }
      stream.weighted_sum(tile_bar, before.get(), step);
      if (grad_atoms.sum) {
        grad_atoms.add(first, count, codes.get() + at, turned_after.get(), Real(-1));
        grad_atoms.add(first, count, tile_bar, turned_residual.get(), step);
      }
    });
    for (int64_t i = 0; i < tile_size; ++i) sum_queries[i] += before.get()[i];
    std::swap(before, after);
  }
}

// The tile's z̄ becomes the gradients of the query patches (rows) and of their scale.
template <class Real>
void finish_queries(const IstcBackward<Real>& p, const QueryTile& tile, const Real* sum_queries,
                    const Real* patches, Real* patch_rows) {
  const int64_t row = tile.task * p.queries + tile.first;
  for (int64_t q = 0; q < tile.count; ++q) {
    Real product = 0;
    for (int64_t i = 0; i < p.width; ++i) {
      const Real value = sum_queries[i * tile.lanes + q];
      product += value * patches[i * tile.lanes + q];
      patch_rows[(row + q) * p.width + i] += value * p.scale[row + q];
    }
    p.grad_scale[row + q] += product;
  }
}

// Runs body(tile, atom gradient, patch rows) over all tiles, then adds up what tiles share: the dictionary
// gradient's parts, and overlapping query patches.
template <class Real, class Body>
void reverse(const IstcBackward<Real>& p, Body body) {
  const int64_t padded = round_up(p.width, kBlock<Real>), lanes = kTileQueries;
  const int64_t tiles = (p.queries + lanes - 1) / lanes;
  const int64_t parts = p.grad_atoms ? std::min(kGradientParts, std::max<int64_t>(tiles, 1)) : 1;
  const int64_t part_size = p.atoms * padded, rows_size = p.tasks * p.queries * p.width;
  Buffer<Real> gradients(p.grad_atoms ? p.tasks * parts * part_size : 0);
  Buffer<Real> rows(rows_size);
  std::fill_n(rows.get(), rows_size, Real(0));
  std::fill_n(p.grad_scale, p.tasks * p.queries, Real(0));
  if (p.grad_atoms) {
    torch::stable::parallel_for(0, p.tasks * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t part = i % parts;
        const AtomGradient<Real> gradient{gradients.get() + i * part_size, padded, lanes};
        std::fill_n(gradient.sum, part_size, Real(0));
        for (int64_t t = part * tiles / parts; t < (part + 1) * tiles / parts; ++t) {
          body(QueryTile{i / parts, t * lanes, std::min(lanes, p.queries - t * lanes), lanes}, gradient,
               rows.get());
        }
      }
    });
  } else {
    for_each_query_tile<Real>(p.tasks, p.queries, [&](const QueryTile& tile) {
      body(tile, AtomGradient<Real>{nullptr, padded, tile.lanes}, rows.get());
    });
  }
  torch::stable::parallel_for(0, p.tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const PatchMap<Real> queries = writable(p.query_map, p.grad_queries);
      scatter_rows<Real>(queries, queries.data + task * queries.task_size(), nullptr, p.queries,
                         rows.get() + task * p.queries * p.width, p.width);
      if (!p.grad_atoms) continue;
      Real* total = gradients.get() + task * parts * part_size;
      for (int64_t i = part_size; i < parts * part_size; ++i) total[i % part_size] += total[i];
      const PatchMap<Real> atoms = writable(p.atom_map, p.grad_atoms);
      scatter_rows<Real>(atoms, atoms.data + task * atoms.task_size(),
                         p.atom_index ? p.atom_index + task * p.atoms : nullptr, p.atoms, total, padded);
    }
  });
}

template <class Real>
void istc_backward(const IstcBackward<Real>& p) {
  with_shrinkage(p.shrinkage, [&](auto shrinkage) {
    reverse(p, [&](const QueryTile& tile, const AtomGradient<Real>& gradient, Real* rows) {
      Buffer<Real> sum(p.width * tile.lanes), patches(p.width * tile.lanes);
      load_queries(p, p.query_map.data, tile, patches.get());
      backward_tile<Real, decltype(shrinkage)::value>(p, tile, sum.get(), gradient);
      finish_queries(p, tile, sum.get(), patches.get(), rows);
    });
  });
}

}  // namespace FSAD_ISA
}  // namespace fsad
