// Backward: the reverse pass over the iteration, its codes recomputed from the saved residuals.
#pragma once

#include "reverse.h"

namespace fsad {
inline namespace FSAD_ISA {

// What a group keeps. Weights are ū_m (atoms × lanes), where σ'(u_m) stands until then; and α_{m+1} before
// them if the dictionary gradient is wanted.
template <class Real>
struct BackwardArrays {
  Real *patches, *stepped, *scale, *columns;  // x, ηx
  Real *residuals, *adjoints, *bar;           // tiles (d × lanes): ηr_0 … ηr_{N−1}, −h_0 … −h_N, z̄
  AtomSide<Real> side;
  int first_slope;

  static int parts(const IstcBackward<Real>& p) { return p.grad_atoms ? 2 * p.iterations : p.iterations; }

  BackwardArrays(Carver<Real>& carver, const IstcBackward<Real>& p, int64_t lanes)
      : patches(carver.take(tile_numbers<Real>(p.width, lanes))),
        stepped(carver.take(tile_numbers<Real>(p.width, lanes))),
        scale(carver.take(lanes)),
        columns(carver.take(Diagonals<Real>::group_size(p, lanes))),
        residuals(carver.take(p.iterations * tile_numbers<Real>(p.width, lanes))),
        adjoints(carver.take((p.iterations + 1) * tile_numbers<Real>(p.width, lanes))),
        bar(carver.take(tile_numbers<Real>(p.width, lanes))),
        side(carver, p, lanes, parts(p), p.grad_atoms != nullptr),
        first_slope(parts(p) - p.iterations) {}

  Real* codes(int m) const { return side.weight(m); }
  Real* slopes(int m) const { return side.weight(first_slope + m); }
};

// ηr_0 … ηr_{N−1} (d × lanes each) of a group: scaled patches, then what the forward pass has saved.
template <class Real>
void load_residuals(const IstcBackward<Real>& p, int64_t task, int64_t first, const Panels<Real>& panels,
                    const Real* patches, const Real* scale, Real* residuals) {
  scale_lanes(panels, patches, scale, p.width, false, residuals);
  for (int m = 1; m < p.iterations; ++m) {
    const int64_t row = ((m - 1) * p.tasks + task) * p.queries + first;
    load_rows(panels, p.history + row * p.width, p.width, residuals + m * panels.size(p.width));
  }
  scale_tile(residuals, p.step[task], p.iterations * panels.size(p.width), residuals);
}

// With G = ∂/∂r_N:  h_N = G, ᾱ = 0;  for m = N−1 … 0:  ᾱ −= D h_{m+1};  D̄ −= α_{m+1} h_{m+1}ᵀ;
// ū = ᾱ ← σ'(u_m) ᾱ;  h_m = ηDᵀū;  D̄ += η ū r_mᵀ.  Then z̄ = Σ_m h_m.
template <class Real, Shrinkage shrinkage>
void backward_group(const IstcBackward<Real>& p, const Stream<Real>& stream, int64_t task, int64_t first,
                    const Panels<Real>& panels, const BackwardArrays<Real>& own) {
  const int64_t tile_size = panels.size(p.width);
  const int last = p.iterations - 1;
  const Real negligible = shrinkage == Shrinkage::soft ? Real(0) : Real(-1);
  gather_queries(panels, p.query_map, p.query_map.data + task * p.query_map.task_size(), first, own.patches);
  load_scale(p, p.scale, task, first, panels, own.scale);
  load_residuals(p, task, first, panels, own.patches, own.scale, own.residuals);
  scale_tile(own.patches, p.step[task], tile_size, own.stepped);
  load_rows(panels, p.grad_residual + (task * p.queries + first) * p.width, p.width,
            own.adjoints + p.iterations * tile_size);
  scale_tile(own.adjoints + p.iterations * tile_size, Real(-1), tile_size,
             own.adjoints + p.iterations * tile_size);

  const auto diagonals = Diagonals<Real>::of(p, task, first, panels, own.columns);

  // u_m, hence σ'(u_m) and α_{m+1}, of one tile of atoms and all m.
  const auto recode = [&](const Tile<Real>& tile) {
    Real* alpha = tile.local[0];
    for (int m = 0; m < p.iterations; ++m) {
      Real* slopes = own.slopes(m) + tile.at();
      Real* codes = p.grad_atoms ? own.codes(m) + tile.at() : alpha;
      const Real lambda = p.lambda[m], tau = p.tau[m];
      if (m > 0) {
        // Parts of the depth are added to the code, as in the forward pass.
        std::copy_n(alpha, tile.size(), slopes);
        tile.products(tile.atoms, own.residuals + m * tile_size, slopes, true);
      } else {
        tile.first_products(diagonals, own.stepped, p.step[task], own.scale, slopes);
      }
      for_each_vector<Real>(tile.size(), [&](int64_t i) {
        const auto shrunk = shrink<shrinkage>(load(slopes + i), lambda, tau);
        store(alpha + i, shrunk.value);
        store(codes + i, shrunk.value);
        store(slopes + i, shrunk.first);
      });
    }
  };

  for (int m = last; m >= 0; --m) {
    const Real* after = own.adjoints + (m + 1) * tile_size;
    stream.sweep(task, panels, 1, own.adjoints + m * tile_size, [&](const Tile<Real>& tile) {
      if (m == last) recode(tile);
      Real *bar = tile.local[1], *slopes = own.slopes(m) + tile.at();
      if (m < last) std::copy_n(own.slopes(m + 1) + tile.at(), tile.size(), bar);
      tile.products(tile.atoms, after, bar, m < last);
      for_each_vector<Real>(tile.size(),
                            [&](int64_t i) { store(slopes + i, load(slopes + i) * load(bar + i)); });
      tile.weighted_sum(tile.atoms, slopes, tile.sums, negligible);
    });
    scale_tile(own.adjoints + m * tile_size, -p.step[task], tile_size, own.adjoints + m * tile_size);
  }
  std::fill_n(own.bar, tile_size, Real(0));
  for (int m = 0; m <= p.iterations; ++m) {
    for (int64_t i = 0; i < tile_size; ++i) own.bar[i] -= own.adjoints[m * tile_size + i];
  }
  if (!p.grad_atoms) return;
  for (int m = 0; m < p.iterations; ++m) {
    own.side.turn(panels, m, own.adjoints + (m + 1) * tile_size, p.width);
    own.side.turn(panels, p.iterations + m, own.residuals + m * tile_size, p.width);
  }
}

template <class Real>
void istc_backward(const IstcBackward<Real>& p) {
  const Stream<Real> stream(p, BackwardArrays<Real>::parts(p), p.grad_atoms);
  const int64_t lanes = stream.plan.lanes;
  const Slots<Real, BackwardArrays<Real>> slots(stream.slots(), p, lanes);
  with_shrinkage(p.shrinkage, [&](auto shrinkage) {
    const auto body = [&](int64_t task, int64_t first, const Panels<Real>& panels, int64_t slot, Real* rows,
                          Real* grad_scale) {
      const BackwardArrays<Real> own = slots.at(slot, p, lanes);
      backward_group<Real, decltype(shrinkage)::value>(p, stream, task, first, panels, own);
      add_query_gradients(panels, p.width, own.bar, own.patches, own.scale, rows, grad_scale);
    };
    reverse(p, stream, body, [&](int64_t slot) { return slots.at(slot, p, lanes).side; });
  });
}

}  // namespace FSAD_ISA
}  // namespace fsad
