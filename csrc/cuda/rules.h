// What rules are made of. A rule is what a kernel computes on a pair of tiles, in terms of the skeleton; the
// host runs it once too, on a recorder, which gives the plan: the order in which the kernel will ask for
// matrices.
#pragma once

#include "streams.h"

namespace fsad::cuda {

// The sets of rows that a pass holds, N steps: r_0 … r_{N−1}, h_0 … h_N, ṙ_0 … ṙ_{N−1}, r'_0 … r'_{N−1}.
struct Sets {
  int steps;
  FSAD_HOST_DEVICE int residual(int m) const { return m; }
  FSAD_HOST_DEVICE int adjoint(int m) const { return steps + m; }
  FSAD_HOST_DEVICE int tangent(int m) const { return 2 * steps + 1 + m; }
  FSAD_HOST_DEVICE int second(int m) const { return 3 * steps + 1 + m; }
};

// Stands in for the skeleton on the host. Atom_side as in Shape.
template <class Real, bool atom_side>
struct Recorder {
  static constexpr bool kPlain = true;
  static constexpr int kPerLane = 0;
  struct Codes {
    Real v[1];
  };

  const Iteration<Real>& settings;
  Plan plan{};
  int places = 0;  // that `keep` needs

  const Iteration<Real>& iteration() const { return settings; }
  Real step() const { return 0; }
  void add_products(Codes&, int x, Atoms of) {
    add(x, of, false);
    add_slot(atom_side ? int(of) : x);
  }
  void add_atoms(int, Atoms of) { add(0, of, true); }
  void add_rows(int, int x) { add(x, Atoms::values, true); }
  void keep(int i, const Codes&) { places = i < places ? places : i + 1; }
  Codes kept(int) const { return {}; }
  void store(int, const Codes&) const {}
  Codes load(int) const { return {}; }
  int64_t column(int) const { return 0; }
  int64_t streamed_rows() const { return 0; }

 private:
  void add(int x, Atoms of, bool sum) { plan.entries[plan.count++] = {static_cast<uint8_t>(x), of, sum}; }

  void add_slot(int matrix) {
    for (int i = 0; i < plan.slots; ++i) {
      if (plan.matrix_in[i] == matrix) return;
    }
    plan.slot_of[matrix] = static_cast<uint8_t>(plan.slots);
    plan.matrix_in[plan.slots++] = static_cast<uint8_t>(matrix);
  }
};

// Calls body(i, σ and its derivatives at u_i of step m) for the codes of a lane.
#pragma nv_exec_check_disable
template <class Engine, class Body>
FSAD_HOST_DEVICE void for_each_shrunk(const Engine& engine, int m, const typename Engine::Codes& u,
                                      Body body) {
  const auto& iteration = engine.iteration();
  const auto lambda = iteration.lambda[m], tau = iteration.tau[m];
  if (iteration.shrinkage == Shrinkage::sigshrink) {
#pragma unroll
    for (int i = 0; i < Engine::kPerLane; ++i) body(i, shrink<Shrinkage::sigshrink>(u.v[i], lambda, tau));
  } else if (iteration.shrinkage == Shrinkage::soft) {
#pragma unroll
    for (int i = 0; i < Engine::kPerLane; ++i) body(i, shrink<Shrinkage::soft>(u.v[i], lambda, tau));
  } else {
#pragma unroll
    for (int i = 0; i < Engine::kPerLane; ++i) body(i, shrink<Shrinkage::none>(u.v[i], lambda, tau));
  }
}

// u = α + η p
#pragma nv_exec_check_disable
template <class Engine>
FSAD_HOST_DEVICE void advance(const Engine& engine, typename Engine::Codes& p,
                              const typename Engine::Codes& code) {
  const auto step = engine.step();
#pragma unroll
  for (int i = 0; i < Engine::kPerLane; ++i) p.v[i] = code.v[i] + step * p.v[i];
}

#pragma nv_exec_check_disable
template <class Engine>
FSAD_HOST_DEVICE void scale(const Engine& engine, typename Engine::Codes& codes) {
  const auto step = engine.step();
#pragma unroll
  for (int i = 0; i < Engine::kPerLane; ++i) codes.v[i] *= step;
}

// u_i and u̇_i from the codes and their tangents.
#pragma nv_exec_check_disable
template <class Engine>
FSAD_HOST_DEVICE void add_dual_products(Engine& e, int i, typename Engine::Codes& u,
                                        typename Engine::Codes& u_tangent) {
  const Sets sets{e.iteration().steps};
  e.add_products(u, sets.residual(i), Atoms::values);
  e.add_products(u_tangent, sets.tangent(i), Atoms::values);
  if (e.iteration().atom_tangents) e.add_products(u_tangent, sets.residual(i), Atoms::tangents);
}

// Dᵀr'_{i+1} + Ḋᵀh_{i+1} to product, Dᵀh_{i+1} to product_tangent.
#pragma nv_exec_check_disable
template <class Engine>
FSAD_HOST_DEVICE void add_second_products(Engine& e, int i, typename Engine::Codes& product,
                                          typename Engine::Codes& product_tangent) {
  const int steps = e.iteration().steps;
  const Sets sets{steps};
  e.add_products(product_tangent, sets.adjoint(i + 1), Atoms::values);
  if (e.iteration().atom_tangents) e.add_products(product, sets.adjoint(i + 1), Atoms::tangents);
  if (i + 1 < steps) e.add_products(product, sets.second(i + 1), Atoms::values);
}

// −(Dᵀr'_{i+1} + Ḋᵀh_{i+1}) to bar, −Dᵀh_{i+1} to bar_tangent. Summed on top of these, products round at
// their size. Apart from them they err less, as float64 must; but beside tensor cores' operands no registers
// are left.
#pragma nv_exec_check_disable
template <class Engine>
FSAD_HOST_DEVICE void subtract_dual_products(Engine& e, int i, typename Engine::Codes& bar,
                                             typename Engine::Codes& bar_tangent) {
  typename Engine::Codes product = {}, product_tangent = {};
  if constexpr (!Engine::kPlain) {
#pragma unroll
    for (int j = 0; j < Engine::kPerLane; ++j) {
      product.v[j] = -bar.v[j];
      product_tangent.v[j] = -bar_tangent.v[j];
      bar.v[j] = bar_tangent.v[j] = 0;
    }
  }
  add_second_products(e, i, product, product_tangent);
#pragma unroll
  for (int j = 0; j < Engine::kPerLane; ++j) {
    bar.v[j] -= product.v[j];
    bar_tangent.v[j] -= product_tangent.v[j];
  }
}

}  // namespace fsad::cuda
