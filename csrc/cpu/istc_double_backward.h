// Double backward: with v a cotangent of z̄, ⟨v, z̄⟩ = ⟨G, ṙ_N⟩ where ṙ is the tangent of the iteration along
// ż = v (and Ḋ for a cotangent of D̄). So it is the reverse pass over the iteration on dual numbers. If G is
// the gradient w·r_N of an energy, it moves with r_N, which gets an adjoint besides: one pass serves both.
#pragma once

#include "istc_backward.h"

namespace fsad {
inline namespace FSAD_ISA {

// What a group keeps. Weights are u'_m and u̇'_m (atoms × lanes), where u_m and u̇_m stand until then; and
// α_{m+1}, α̇_{m+1} before them if the dictionary gradient is wanted.
template <class Real>
struct DualArrays {
  Real *patches, *patch_tangents, *scale, *scale_tangent, *factor;
  Real *stepped, *columns;  // ηx
  Real* query_tangent;
  Real *residuals, *residual_tangents;  // tiles: ηr_0 … ηr_{N−1} and ηṙ_0 … ηṙ_{N−1}, then ṙ_N
  Real* adjoints;                       // pairs of tiles: −r'_0, −ṙ'_0, −r'_1, … −ṙ'_N
  Real *bar, *bar_tangent;              // adjoints of z and ż
  AtomSide<Real> side;
  int iterations, first_u;

  static int parts(const IstcDoubleBackward<Real>& p) { return (p.grad_atoms ? 4 : 2) * p.iterations; }

  DualArrays(Carver<Real>& carver, const IstcDoubleBackward<Real>& p, int64_t lanes)
      : patches(carver.take(tile_numbers<Real>(p.width, lanes))),
        patch_tangents(carver.take(tile_numbers<Real>(p.width, lanes))),
        scale(carver.take(lanes)),
        scale_tangent(carver.take(lanes)),
        factor(carver.take(lanes)),
        stepped(carver.take(tile_numbers<Real>(p.width, lanes))),
        columns(carver.take(Diagonals<Real>::group_size(p, lanes))),
        query_tangent(carver.take(tile_numbers<Real>(p.width, lanes))),
        residuals(carver.take(p.iterations * tile_numbers<Real>(p.width, lanes))),
        residual_tangents(carver.take((p.iterations + 1) * tile_numbers<Real>(p.width, lanes))),
        adjoints(carver.take(2 * (p.iterations + 1) * tile_numbers<Real>(p.width, lanes))),
        bar(carver.take(tile_numbers<Real>(p.width, lanes))),
        bar_tangent(carver.take(tile_numbers<Real>(p.width, lanes))),
        side(carver, p, lanes, parts(p), p.grad_atoms != nullptr),
        iterations(p.iterations),
        first_u(parts(p) - 2 * p.iterations) {}

  Real* codes(int m) const { return side.weight(m); }
  Real* code_tangents(int m) const { return side.weight(iterations + m); }
  Real* u(int m) const { return side.weight(first_u + m); }
  Real* u_tangent(int m) const { return side.weight(first_u + iterations + m); }
};

// u̇_m = α̇_m + η(Dᵀṙ_m + Ḋᵀr_m);  α̇_{m+1} = σ'(u_m) u̇_m;  ṙ_{m+1} = ż − Dα̇_{m+1} − Ḋα_{m+1}.
template <class Real, Shrinkage shrinkage>
void differentiate(const IstcDoubleBackward<Real>& p, const Stream<Real>& stream, int64_t task, int64_t first,
                   const Panels<Real>& panels, const DualArrays<Real>& own) {
  const int64_t tile_size = panels.size(p.width);
  const auto diagonals = Diagonals<Real>::of(p, task, first, panels, own.columns);
  scale_tile(own.patches, p.step[task], tile_size, own.stepped);
  scale_tile(own.query_tangent, p.step[task], tile_size, own.residual_tangents);
  for (int m = 0; m < p.iterations; ++m) {
    const Real* residual = own.residuals + m * tile_size;
    Real* tangent = own.residual_tangents + m * tile_size;
    stream.sweep(task, panels, 1, tangent + tile_size, [&](const Tile<Real>& tile) {
      Real *u = own.u(m) + tile.at(), *dot = own.u_tangent(m) + tile.at();
      Real *code = tile.local[0], *code_tangent = tile.local[1];
      if (m > 0) {
        const Real *u_before = own.u(m - 1) + tile.at(), *dot_before = own.u_tangent(m - 1) + tile.at();
        const Real lambda = p.lambda[m - 1], tau = p.tau[m - 1];
        for_each_vector<Real>(tile.size(), [&](int64_t i) {
          const auto shrunk = shrink<shrinkage>(load(u_before + i), lambda, tau);
          store(u + i, shrunk.value);
          store(dot + i, shrunk.first * load(dot_before + i));
        });
      }
      if (m > 0) {
        tile.products(tile.atoms, residual, u, true);
      } else {
        tile.first_products(diagonals, own.stepped, p.step[task], own.scale, u);
      }
      tile.products(tile.atoms, tangent, dot, m > 0);
      if (p.tangent_atoms) tile.products(tile.tangents, residual, dot, true);
      const Real lambda = p.lambda[m], tau = p.tau[m];
      for_each_vector<Real>(tile.size(), [&](int64_t i) {
        const auto shrunk = shrink<shrinkage>(load(u + i), lambda, tau);
        store(code + i, shrunk.value);
        store(code_tangent + i, shrunk.first * load(dot + i));
      });
      tile.weighted_sum(tile.atoms, code_tangent, tile.sums, Real(-1));
      if (p.tangent_atoms) tile.weighted_sum(tile.tangents, code, tile.sums, Real(-1));
    });
    const Real factor = m + 1 < p.iterations ? p.step[task] : Real(1);
    for (int64_t i = 0; i < tile_size; ++i) {
      tangent[tile_size + i] = factor * (own.query_tangent[i] - tangent[tile_size + i]);
    }
  }
}

// Adjoints of tangents carry a dot. From ṙ'_N = G, r'_N = 0 or wṙ_N + κG, for m = N−1 … 0:
//   α̇' −= Dᵀṙ'_{m+1};  α' −= Dᵀr'_{m+1} + Ḋᵀṙ'_{m+1};  D̄ −= α_{m+1} r'_{m+1}ᵀ + α̇_{m+1} ṙ'_{m+1}ᵀ
//   u̇' = σ'(u) α̇';  u' = σ'(u) α' + σ''(u) u̇ α̇'   (the next α̇', α')
//   ṙ'_m = ηDu̇';  r'_m = ηDu' + ηḊu̇';  D̄ += η(u' r_mᵀ + u̇' ṙ_mᵀ)
// and the adjoints of z and ż are the sums of r' and ṙ' over all m.
template <class Real, Shrinkage shrinkage>
void reverse_dual(const IstcDoubleBackward<Real>& p, const Stream<Real>& stream, int64_t task,
                  const Panels<Real>& panels, const DualArrays<Real>& own) {
  const int64_t tile_size = panels.size(p.width);
  const int last = p.iterations - 1;
  for (int m = last; m >= 0; --m) {
    const Real *after = own.adjoints + 2 * (m + 1) * tile_size, *after_tangent = after + tile_size;
    stream.sweep(task, panels, 2, own.adjoints + 2 * m * tile_size, [&](const Tile<Real>& tile) {
      Real *u = own.u(m) + tile.at(), *dot = own.u_tangent(m) + tile.at();
      Real *bar = tile.local[0], *bar_tangent = tile.local[1];
      if (m < last) {
        std::copy_n(own.u(m + 1) + tile.at(), tile.size(), bar);
        std::copy_n(own.u_tangent(m + 1) + tile.at(), tile.size(), bar_tangent);
      }
      if (m < last || p.energy_factors) {
        tile.products(tile.atoms, after, bar, m < last);
      } else {
        std::fill_n(bar, tile.size(), Real(0));
      }
      tile.products(tile.atoms, after_tangent, bar_tangent, m < last);
      if (p.tangent_atoms) tile.products(tile.tangents, after_tangent, bar, true);
      Real* code = p.grad_atoms ? own.codes(m) + tile.at() : nullptr;
      Real* code_tangent = p.grad_atoms ? own.code_tangents(m) + tile.at() : nullptr;
      const Real lambda = p.lambda[m], tau = p.tau[m];
      for_each_vector<Real>(tile.size(), [&](int64_t i) {
        const auto shrunk = shrink<shrinkage>(load(u + i), lambda, tau);
        const Vector<Real> u_dot = load(dot + i), adjoint = load(bar_tangent + i);
        if (code) {
          store(code + i, shrunk.value);
          store(code_tangent + i, shrunk.first * u_dot);
        }
        store(u + i, shrunk.first * load(bar + i) + shrunk.second * u_dot * adjoint);
        store(dot + i, shrunk.first * adjoint);
      });
      tile.weighted_sum(tile.atoms, u, tile.sums, Real(-1));
      if (p.tangent_atoms) tile.weighted_sum(tile.tangents, dot, tile.sums, Real(-1));
      tile.weighted_sum(tile.atoms, dot, tile.sums + tile_size, Real(-1));
    });
    Real* before = own.adjoints + 2 * m * tile_size;
    scale_tile(before, -p.step[task], 2 * tile_size, before);
  }
}

template <class Real, Shrinkage shrinkage>
void double_backward_group(const IstcDoubleBackward<Real>& p, const Stream<Real>& stream, int64_t task,
                           int64_t first, const Panels<Real>& panels, const DualArrays<Real>& own) {
  const int64_t tile_size = panels.size(p.width), row = task * p.queries + first;
  const int64_t maps = task * p.query_map.task_size();
  gather_queries(panels, p.query_map, p.query_map.data + maps, first, own.patches);
  gather_queries(panels, p.query_map, p.tangent_queries + maps, first, own.patch_tangents);
  load_scale(p, p.scale, task, first, panels, own.scale);
  load_scale(p, p.tangent_scale, task, first, panels, own.scale_tangent);
  load_residuals(p, task, first, panels, own.patches, own.scale, own.residuals);
  // z = s·x and ż = s·ẋ + ṡ·x for the patch x, its scale s and their tangents.
  scale_lanes(panels, own.patch_tangents, own.scale, p.width, false, own.query_tangent);
  scale_lanes(panels, own.patches, own.scale_tangent, p.width, true, own.query_tangent);

  differentiate<Real, shrinkage>(p, stream, task, first, panels, own);
  store_rows(panels, own.residual_tangents + p.iterations * tile_size, p.width,
             p.grad_grad_residual + row * p.width);

  Real* end = own.adjoints + 2 * p.iterations * tile_size;
  load_rows(panels, p.grad_residual + row * p.width, p.width, end + tile_size);
  std::fill_n(end, tile_size, Real(0));
  if (p.energy_factors) {
    load_scale(p, p.energy_factors, task, first, panels, own.factor);
    scale_lanes(panels, own.residual_tangents + p.iterations * tile_size, own.factor, p.width, true, end);
    load_scale(p, p.energy_factors + p.tasks * p.queries, task, first, panels, own.factor);
    scale_lanes(panels, end + tile_size, own.factor, p.width, true, end);
  }
  scale_tile(end, Real(-1), 2 * tile_size, end);
  reverse_dual<Real, shrinkage>(p, stream, task, panels, own);

  std::fill_n(own.bar, tile_size, Real(0));
  std::fill_n(own.bar_tangent, tile_size, Real(0));
  for (int m = 0; m <= p.iterations; ++m) {
    const Real* adjoints = own.adjoints + 2 * m * tile_size;
    for (int64_t i = 0; i < tile_size; ++i) {
      own.bar[i] -= adjoints[i];
      own.bar_tangent[i] -= adjoints[tile_size + i];
    }
  }
  if (!p.grad_atoms) return;
  const auto turn = [&](int part, const Real* x) { own.side.turn(panels, part, x, p.width); };
  for (int m = 0, n = p.iterations; m < n; ++m) {
    turn(m, own.adjoints + 2 * (m + 1) * tile_size);
    turn(n + m, own.adjoints + (2 * (m + 1) + 1) * tile_size);
    turn(2 * n + m, own.residuals + m * tile_size);
    turn(3 * n + m, own.residual_tangents + m * tile_size);
  }
}

template <class Real>
void istc_double_backward(const IstcDoubleBackward<Real>& p) {
  const Stream<Real> stream(p, DualArrays<Real>::parts(p), p.grad_atoms, p.tangent_atoms);
  const int64_t lanes = stream.plan.lanes;
  const Slots<Real, DualArrays<Real>> slots(stream.slots(), p, lanes);
  with_shrinkage(p.shrinkage, [&](auto shrinkage) {
    const auto body = [&](int64_t task, int64_t first, const Panels<Real>& panels, int64_t slot, Real* rows,
                          Real* grad_scale) {
      const DualArrays<Real> own = slots.at(slot, p, lanes);
      double_backward_group<Real, decltype(shrinkage)::value>(p, stream, task, first, panels, own);
      add_query_gradients(panels, p.width, own.bar, own.patches, own.scale, rows, grad_scale);
      add_query_gradients(panels, p.width, own.bar_tangent, own.patch_tangents, own.scale_tangent, rows,
                          grad_scale);
    };
    reverse<Real>(p, stream, body, [&](int64_t slot) { return slots.at(slot, p, lanes).side; });
  });
}

}  // namespace FSAD_ISA
}  // namespace fsad
