// What the fused kernels compute on a pair of tiles: inner products in, a pointwise rule, weighted sums out.
// Codes are recomputed from the residuals wherever they are needed. What need not lie in registers during a
// product is kept in shared memory. Equations as in cpu/istc_forward.h and its neighbours.
#pragma once

#include "rules.h"

namespace fsad::cuda {

// ---- forward: r_{m+1} = z − Dα_{m+1} -------------------------------------------------------------------

struct ForwardStep {
  int m;

#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
    const Sets sets{e.iteration().steps};
    typename Engine::Codes code = {};
#pragma unroll 1
    for (int i = 0; i <= m; ++i) {
      typename Engine::Codes u = {};
      e.add_products(u, sets.residual(i), Atoms::values);
      advance(e, u, code);
      for_each_shrunk(e, i, u, [&](int j, auto shrunk) { code.v[j] = shrunk.value; });
    }
    e.keep(0, code);
    e.add_atoms(0, Atoms::values);
  }
};

// ---- backward ------------------------------------------------------------------------------------------
//
// With h_N = G, ᾱ = 0, for m = N−1 … 0:  ᾱ −= Dᵀh_{m+1};  ū_m = ᾱ ← σ'(u_m) ᾱ;  h_m = ηDū_m.
// Then z̄ = Σ h_m and D̄ = Σ η r_m ū_mᵀ − h_{m+1} α_{m+1}ᵀ.

// h_m from h_{m+1} … h_N.
struct BackwardStep {
  int m;

#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
    using Codes = typename Engine::Codes;
    const int steps = e.iteration().steps;
    const Sets sets{steps};
    Codes code = {};
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      Codes u = {};
      e.add_products(u, sets.residual(i), Atoms::values);
      advance(e, u, code);
      for_each_shrunk(e, i, u, [&](int j, auto shrunk) {
        code.v[j] = shrunk.value;
        u.v[j] = shrunk.first;
      });
      if (i >= m) e.keep(i, u);
    }
    Codes bar = {};
#pragma unroll 1
    for (int i = steps - 1; i >= m; --i) {
      Codes product = {};
      e.add_products(product, sets.adjoint(i + 1), Atoms::values);
      const Codes slope = e.kept(i);
#pragma unroll
      for (int j = 0; j < Engine::kPerLane; ++j) bar.v[j] = slope.v[j] * (bar.v[j] - product.v[j]);
    }
    scale(e, bar);
    e.keep(m, bar);
    e.add_atoms(m, Atoms::values);
  }
};

// The rows of D̄.
struct BackwardAtoms {
#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
    using Codes = typename Engine::Codes;
    const int steps = e.iteration().steps;
    const Sets sets{steps};
    Codes code = {};
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      Codes u = {};
      e.add_products(u, sets.residual(i), Atoms::values);
      advance(e, u, code);
      e.keep(i, u);
      for_each_shrunk(e, i, u, [&](int j, auto shrunk) { code.v[j] = shrunk.value; });
    }
    Codes bar = {};
#pragma unroll 1
    for (int i = steps - 1; i >= 0; --i) {
      Codes product = {};
      e.add_products(product, sets.adjoint(i + 1), Atoms::values);
      for_each_shrunk(e, i, e.kept(i), [&](int j, auto shrunk) {
        code.v[j] = -shrunk.value;
        bar.v[j] = shrunk.first * (bar.v[j] - product.v[j]);
      });
      e.keep(i, code);
      e.add_rows(i, sets.adjoint(i + 1));
      Codes weight = bar;
      scale(e, weight);
      e.keep(i, weight);
      e.add_rows(i, sets.residual(i));
    }
  }
};

// ---- double backward -----------------------------------------------------------------------------------
//
// With v a cotangent of z̄, ⟨v, z̄⟩ = ⟨G, ṙ_N⟩ where ṙ is the tangent of the iteration along ż = v (and Ḋ for a
// cotangent of D̄). So it is the reverse pass over the iteration on dual numbers:
//
//   u̇_m = α̇_m + η(Dᵀṙ_m + Ḋᵀr_m);  α̇_{m+1} = σ'(u_m) u̇_m;  ṙ_{m+1} = ż − Dα̇_{m+1} − Ḋα_{m+1}
//
// and with h_m, the adjoint of ṙ_m, from the backward's recursion, r'_N = 0, for m = N−1 … 0:
//
//   α̇' −= Dᵀh_{m+1};  α' −= Dᵀr'_{m+1} + Ḋᵀh_{m+1}
//   u̇' = σ'(u) α̇';  u' = σ'(u) α' + σ''(u) u̇ α̇'   (the next α̇', α');  r'_m = ηDu' + ηḊu̇'
//   D̄ += η(u' r_mᵀ + u̇' ṙ_mᵀ) − α_{m+1} r'_{m+1}ᵀ − α̇_{m+1} h_{m+1}ᵀ
//
// The adjoints of z and ż are Σ r'_m and Σ h_m.

// ṙ_{m+1} from ṙ_0 … ṙ_m.
struct TangentStep {
  int m;

#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
    using Codes = typename Engine::Codes;
    Codes code = {}, tangent = {};
    e.keep(0, code);
    e.keep(1, tangent);
#pragma unroll 1
    for (int i = 0; i <= m; ++i) {
      Codes u = {}, u_tangent = {};
      add_dual_products(e, i, u, u_tangent);
      advance(e, u, e.kept(0));
      advance(e, u_tangent, e.kept(1));
      for_each_shrunk(e, i, u, [&](int j, auto shrunk) {
        code.v[j] = shrunk.value;
        tangent.v[j] = shrunk.first * u_tangent.v[j];
      });
      e.keep(0, code);
      e.keep(1, tangent);
    }
    e.add_atoms(1, Atoms::values);
    if (e.iteration().atom_tangents) e.add_atoms(0, Atoms::tangents);
  }
};

// r'_m from r'_{m+1} … r'_{N−1}.
struct SecondStep {
  int m;

#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
    using Codes = typename Engine::Codes;
    const int steps = e.iteration().steps;
    Codes code = {}, tangent = {};
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      Codes u = {}, u_tangent = {};
      e.keep(2 * i, code);
      e.keep(2 * i + 1, tangent);
      add_dual_products(e, i, u, u_tangent);
      advance(e, u, e.kept(2 * i));
      advance(e, u_tangent, e.kept(2 * i + 1));
      for_each_shrunk(e, i, u, [&](int j, auto shrunk) {
        code.v[j] = shrunk.value;
        tangent.v[j] = shrunk.first * u_tangent.v[j];
        u.v[j] = shrunk.first;
        u_tangent.v[j] *= shrunk.second;
      });
      e.keep(2 * i, u);
      e.keep(2 * i + 1, u_tangent);
    }
    Codes bar = {}, bar_tangent = {};
#pragma unroll 1
    for (int i = steps - 1; i >= m; --i) {
      subtract_dual_products(e, i, bar, bar_tangent);
      const Codes slope = e.kept(2 * i), bend = e.kept(2 * i + 1);
#pragma unroll
      for (int j = 0; j < Engine::kPerLane; ++j) {
        bar.v[j] = slope.v[j] * bar.v[j] + bend.v[j] * bar_tangent.v[j];
        bar_tangent.v[j] *= slope.v[j];
      }
    }
    scale(e, bar);
    scale(e, bar_tangent);
    e.keep(0, bar);
    e.keep(1, bar_tangent);
    e.add_atoms(0, Atoms::values);
    if (e.iteration().atom_tangents) e.add_atoms(1, Atoms::tangents);
  }
};

// The rows of D̄.
struct SecondAtoms {
#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
    using Codes = typename Engine::Codes;
    const int steps = e.iteration().steps;
    const Sets sets{steps};
    Codes code = {}, tangent = {};
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      Codes u = {}, u_tangent = {};
      e.keep(2 * i, code);
      e.keep(2 * i + 1, tangent);
      add_dual_products(e, i, u, u_tangent);
      advance(e, u, e.kept(2 * i));
      advance(e, u_tangent, e.kept(2 * i + 1));
      for_each_shrunk(e, i, u, [&](int j, auto shrunk) {
        code.v[j] = shrunk.value;
        tangent.v[j] = shrunk.first * u_tangent.v[j];
      });
      e.keep(2 * i, u);
      e.keep(2 * i + 1, u_tangent);
    }
    Codes bar = {}, bar_tangent = {};
#pragma unroll 1
    for (int i = steps - 1; i >= 0; --i) {
      subtract_dual_products(e, i, bar, bar_tangent);
      const Codes u_tangent = e.kept(2 * i + 1);
      for_each_shrunk(e, i, e.kept(2 * i), [&](int j, auto shrunk) {
        code.v[j] = -shrunk.value;
        tangent.v[j] = -shrunk.first * u_tangent.v[j];
        bar.v[j] = shrunk.first * bar.v[j] + shrunk.second * u_tangent.v[j] * bar_tangent.v[j];
        bar_tangent.v[j] *= shrunk.first;
      });
      e.keep(2 * i, code);
      e.keep(2 * i + 1, tangent);
      if (i + 1 < steps) e.add_rows(2 * i, sets.second(i + 1));
      e.add_rows(2 * i + 1, sets.adjoint(i + 1));
      Codes weight = bar;
      scale(e, weight);
      e.keep(2 * i, weight);
      e.add_rows(2 * i, sets.residual(i));
      weight = bar_tangent;
      scale(e, weight);
      e.keep(2 * i, weight);
      e.add_rows(2 * i, sets.tangent(i));
    }
  }
};

}  // namespace fsad::cuda
