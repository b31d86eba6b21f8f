// What the kernels of a band compute on a pair of tiles: one step each, on codes that the workspace holds.
//
// Where rows are too wide for a block to form their sums beside the codes, or the steps so many that
// recomputing costs more than memory, the codes of a band of queries go to a workspace of bounded size. Its
// places:
//
//   slopes   m           σ'(u_m), then ū_m (backward), u'_m (double backward)
//   bends    N + m       σ''(u_m)u̇_m, then u̇'_m; double backward only
//   codes    α_{m+1}, and tangents, α̇_{m+1}: of every step if D̄ is wanted, else of the last
//
// Equations as in cpu/istc_forward.h and its neighbours.
#pragma once

#include "rules.h"

namespace fsad::cuda {

// The places of a pass.
struct Places {
  int steps;
  bool dual;        // double backward
  bool every_code;  // of all steps: D̄ is wanted

  FSAD_HOST_DEVICE int slope(int m) const { return m; }
  FSAD_HOST_DEVICE int bend(int m) const { return steps + m; }
  FSAD_HOST_DEVICE int code(int m) const { return (dual ? 2 : 1) * steps + (every_code ? m - 1 : 0); }  // α_m
  FSAD_HOST_DEVICE int tangent(int m) const { return code(m) + (every_code ? steps : 1); }              // α̇_m
  FSAD_HOST_DEVICE int count() const { return (dual ? tangent(steps) : code(steps)) + 1; }
};

// ---- inner products and rules --------------------------------------------------------------------------

// α_{m+1} from α_m and r_m; with σ'(u_m) if the reverse pass follows.
struct BandCodes {
  Places places;
  int m;
  bool slopes;

#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
    using Codes = typename Engine::Codes;
    Codes u = {}, code = {};
    e.add_products(u, Sets{e.iteration().steps}.residual(m), Atoms::values);
    if (m > 0) code = e.load(places.code(m));
    advance(e, u, code);
    for_each_shrunk(e, m, u, [&](int j, auto shrunk) {
      code.v[j] = shrunk.value;
      u.v[j] = shrunk.first;
    });
    e.store(places.code(m + 1), code);
    if (slopes) e.store(places.slope(m), u);
  }
};

// ū_m = σ'(u_m)(ū_{m+1} − Dᵀh_{m+1})
struct BandAdjoint {
  Places places;
  int m;

#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
    using Codes = typename Engine::Codes;
    const int steps = e.iteration().steps;
    Codes product = {}, bar = {};
    e.add_products(product, Sets{steps}.adjoint(m + 1), Atoms::values);
    if (m + 1 < steps) bar = e.load(places.slope(m + 1));
    const Codes slope = e.load(places.slope(m));
#pragma unroll
    for (int j = 0; j < Engine::kPerLane; ++j) bar.v[j] = slope.v[j] * (bar.v[j] - product.v[j]);
    e.store(places.slope(m), bar);
  }
};

// α_{m+1} and α̇_{m+1} from r_m and ṙ_m, with σ'(u_m) and σ''(u_m)u̇_m.
struct BandTangent {
  Places places;
  int m;

#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
    using Codes = typename Engine::Codes;
    Codes u = {}, u_tangent = {}, code = {}, tangent = {};
    add_dual_products(e, m, u, u_tangent);
    if (m > 0) {
      code = e.load(places.code(m));
      tangent = e.load(places.tangent(m));
    }
    advance(e, u, code);
    advance(e, u_tangent, tangent);
    for_each_shrunk(e, m, u, [&](int j, auto shrunk) {
      code.v[j] = shrunk.value;
      tangent.v[j] = shrunk.first * u_tangent.v[j];
      u.v[j] = shrunk.first;
      u_tangent.v[j] *= shrunk.second;
    });
    e.store(places.code(m + 1), code);
    e.store(places.tangent(m + 1), tangent);
    e.store(places.slope(m), u);
    e.store(places.bend(m), u_tangent);
  }
};

// u'_m and u̇'_m from those of m + 1, h_{m+1} and r'_{m+1}.
struct BandSecond {
  Places places;
  int m;

#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
    using Codes = typename Engine::Codes;
    Codes bar = {}, bar_tangent = {};
    if (m + 1 < e.iteration().steps) {
      bar = e.load(places.slope(m + 1));
      bar_tangent = e.load(places.bend(m + 1));
    }
    subtract_dual_products(e, m, bar, bar_tangent);
    const Codes slope = e.load(places.slope(m)), bend = e.load(places.bend(m));
#pragma unroll
    for (int j = 0; j < Engine::kPerLane; ++j) {
      bar.v[j] = slope.v[j] * bar.v[j] + bend.v[j] * bar_tangent.v[j];
      bar_tangent.v[j] *= slope.v[j];
    }
    e.store(places.slope(m), bar);
    e.store(places.bend(m), bar_tangent);
  }
};

// ---- weighted sums -------------------------------------------------------------------------------------

enum class Factor : uint8_t { one, minus_one, step };

// Σ factor · codes in a place · atoms `of` (query side) or rows x (atom side).
template <bool atom_side>
struct BandSums {
  struct Term {
    uint8_t place, x;
    Atoms of;
    Factor factor;
  };
  Term terms[Plan::kMaxEntries];
  int count = 0;

  void add(int place, Factor factor, Atoms of) {
    terms[count++] = {static_cast<uint8_t>(place), 0, of, factor};
  }
  void add(int place, Factor factor, int x) {
    terms[count++] = {static_cast<uint8_t>(place), static_cast<uint8_t>(x), Atoms::values, factor};
  }

#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) const {
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      typename Engine::Codes weights = e.load(terms[i].place);
      const auto factor = terms[i].factor == Factor::step  ? e.step()
                          : terms[i].factor == Factor::one ? 1
                                                           : -1;
#pragma unroll
      for (int j = 0; j < Engine::kPerLane; ++j) weights.v[j] *= factor;
      e.keep(0, weights);
      if constexpr (atom_side) {
        e.add_rows(0, terms[i].x);
      } else {
        e.add_atoms(0, terms[i].of);
      }
    }
  }
};

}  // namespace fsad::cuda
