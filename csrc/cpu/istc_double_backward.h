// Double backward: with v a cotangent of z̄, ⟨v, z̄⟩ = ⟨G, ṙ_N⟩ where ṙ is the tangent of the iteration along
// ż = v (and Ḋ for a cotangent of D̄). So it is the reverse pass over the iteration on dual numbers.
#pragma once

#include "istc_backward.h"

namespace fsad {
inline namespace FSAD_ISA {

// Tiles (d × lanes) of the query side, and what the reverse pass makes of them.
template <class Real>
struct DualQueries {
  Buffer<Real> query, tangent;          // z, ż
  Buffer<Real> sum_query, sum_tangent;  // adjoints of z and ż

  explicit DualQueries(int64_t size) : query(size), tangent(size), sum_query(size), sum_tangent(size) {}
};

template <class Real, Shrinkage shrinkage>
class DoubleBackwardTile {
 public:
  DoubleBackwardTile(const IstcDoubleBackward<Real>& p, const QueryTile& tile,
                     const AtomGradient<Real>& grad_atoms, DualQueries<Real>& dual)
      : p(p),
        tile(tile),
        grad_atoms(grad_atoms),
        dual(dual),
        lanes(tile.lanes),
        tile_size(p.width * lanes),
        codes_size(p.atoms * lanes),
        step(p.step[tile.task]),
        atoms(p, p.atom_map.data, tile.task, lanes),
        tangents(p, p.tangent_atoms, tile.task, lanes),
        residuals(p.iterations * tile_size),
        residual_tangents((p.iterations + 1) * tile_size),
        u(p.iterations * codes_size),
        u_tangent(p.iterations * codes_size) {}

  void run() {
    differentiate();
    store_tile(residual_tangents.get() + p.iterations * tile_size, tile.count, p.width, lanes,
               p.grad_grad_residual + row() * p.width, p.width);
    reverse();
  }

 private:
  int64_t row() const { return tile.task * p.queries + tile.first; }

  template <class Body>
  void for_each_tile(Body body) {
    atoms.for_each_tile([&](int64_t first, int64_t count) {
      if (p.tangent_atoms) tangents.select(first, count);
      body(first, count);
    });
  }

  // u̇_m = α̇_m + η(Dᵀṙ_m + Ḋᵀr_m);  α̇_{m+1} = σ'(u_m) u̇_m;  ṙ_{m+1} = ż − Dα̇_{m+1} − Ḋα_{m+1}.
  void differentiate() {
    Buffer<Real> alpha(codes_size), alpha_tangent(codes_size), sum(tile_size);
    std::copy_n(dual.query.get(), tile_size, residuals.get());
    std::copy_n(dual.tangent.get(), tile_size, residual_tangents.get());
    std::fill_n(alpha.get(), codes_size, Real(0));
    std::fill_n(alpha_tangent.get(), codes_size, Real(0));
    for (int m = 0; m < p.iterations; ++m) {
      Real* residual = residuals.get() + m * tile_size;
      Real* tangent = residual_tangents.get() + m * tile_size;
      if (m > 0) load_history(p, p.history, m, tile, residual);
      std::fill_n(sum.get(), tile_size, Real(0));
      for_each_tile([&](int64_t first, int64_t count) {
        Real* code = alpha.get() + first * lanes;
        Real* code_tangent = alpha_tangent.get() + first * lanes;
        Real* tile_u = u.get() + m * codes_size + first * lanes;
        Real* tile_u_tangent = u_tangent.get() + m * codes_size + first * lanes;
        std::copy_n(code, count * lanes, tile_u);
        std::copy_n(code_tangent, count * lanes, tile_u_tangent);
        atoms.products(residual, tile_u, step, true);
        atoms.products(tangent, tile_u_tangent, step, true);
        if (p.tangent_atoms) tangents.products(residual, tile_u_tangent, step, true);
        for (int64_t i = 0; i < count * lanes; i += kLanes<Real>) {
          const auto shrunk = shrink<shrinkage>(load(tile_u + i), p.lambda[m], p.tau[m]);
          store(code + i, shrunk.value);
          store(code_tangent + i, shrunk.first * load(tile_u_tangent + i));
        }
        atoms.weighted_sum(code_tangent, sum.get(), Real(1));
        if (p.tangent_atoms) tangents.weighted_sum(code, sum.get(), Real(1));
      });
      for (int64_t i = 0; i < tile_size; ++i) {
        tangent[tile_size + i] = dual.tangent.get()[i] - sum.get()[i];
      }
    }
  }

  // Adjoints of tangents carry a dot. From ṙ'_N = G, r'_N = 0, for m = N−1 … 0:
  //   α̇' −= Dᵀṙ'_{m+1};  α' −= Dᵀr'_{m+1} + Ḋᵀṙ'_{m+1};  D̄ −= α_{m+1} r'_{m+1}ᵀ + α̇_{m+1} ṙ'_{m+1}ᵀ
  //   u̇' = σ'(u) α̇';  u' = σ'(u) α' + σ''(u) u̇ α̇'   (the next α̇', α')
  //   ṙ'_m = ηDu̇';  r'_m = ηDu' + ηḊu̇';  D̄ += η(u' r_mᵀ + u̇' ṙ_mᵀ)
  // and the adjoints of z and ż are the sums of r' and ṙ' over all m.
  void reverse() {
    const int64_t padded = grad_atoms.padded_width, turned = grad_atoms.sum ? lanes * padded : 0;
    Buffer<Real> bar(codes_size), bar_tangent(codes_size), alpha(kTileAtoms * lanes),
        alpha_tangent(kTileAtoms * lanes);
    Buffer<Real> after(tile_size), after_tangent(tile_size), before(tile_size), before_tangent(tile_size);
    Buffer<Real> residual_rows(turned), tangent_rows(turned), after_rows(turned), after_tangent_rows(turned);
    std::fill_n(bar.get(), codes_size, Real(0));
    std::fill_n(bar_tangent.get(), codes_size, Real(0));
    std::fill_n(after.get(), tile_size, Real(0));
    load_tile(p.grad_residual + row() * p.width, tile.count, p.width, lanes, after_tangent.get());
    std::copy_n(after.get(), tile_size, dual.sum_query.get());
    std::copy_n(after_tangent.get(), tile_size, dual.sum_tangent.get());
    for (int m = p.iterations - 1; m >= 0; --m) {
      std::fill_n(before.get(), tile_size, Real(0));
      std::fill_n(before_tangent.get(), tile_size, Real(0));
      if (grad_atoms.sum) {
        turn_tile(residuals.get() + m * tile_size, p.width, lanes, padded, residual_rows.get());
        turn_tile(residual_tangents.get() + m * tile_size, p.width, lanes, padded, tangent_rows.get());
        turn_tile(after.get(), p.width, lanes, padded, after_rows.get());
        turn_tile(after_tangent.get(), p.width, lanes, padded, after_tangent_rows.get());
      }
      for_each_tile([&](int64_t first, int64_t count) {
        Real* tile_bar = bar.get() + first * lanes;
        Real* tile_bar_tangent = bar_tangent.get() + first * lanes;
        const Real* tile_u = u.get() + m * codes_size + first * lanes;
        const Real* tile_u_tangent = u_tangent.get() + m * codes_size + first * lanes;
        atoms.products(after_tangent.get(), tile_bar_tangent, Real(-1), true);
        if (m + 1 < p.iterations) atoms.products(after.get(), tile_bar, Real(-1), true);
        if (p.tangent_atoms) tangents.products(after_tangent.get(), tile_bar, Real(-1), true);
        for (int64_t i = 0; i < count * lanes; i += kLanes<Real>) {
          const auto shrunk = shrink<shrinkage>(load(tile_u + i), p.lambda[m], p.tau[m]);
          const Vector<Real> dot = load(tile_u_tangent + i), adjoint = load(tile_bar_tangent + i);
          store(alpha.get() + i, shrunk.value);
          store(alpha_tangent.get() + i, shrunk.first * dot);
          store(tile_bar + i, shrunk.first * load(tile_bar + i) + shrunk.second * dot * adjoint);
          store(tile_bar_tangent + i, shrunk.first * adjoint);
        }
        atoms.weighted_sum(tile_bar_tangent, before_tangent.get(), step);
        atoms.weighted_sum(tile_bar, before.get(), step);
        if (p.tangent_atoms) tangents.weighted_sum(tile_bar_tangent, before.get(), step);
        if (grad_atoms.sum) {
          grad_atoms.add(first, count, alpha.get(), after_rows.get(), Real(-1));
          grad_atoms.add(first, count, alpha_tangent.get(), after_tangent_rows.get(), Real(-1));
          grad_atoms.add(first, count, tile_bar, residual_rows.get(), step);
          grad_atoms.add(first, count, tile_bar_tangent, tangent_rows.get(), step);
        }
      });
      for (int64_t i = 0; i < tile_size; ++i) {
        dual.sum_query.get()[i] += before.get()[i];
        dual.sum_tangent.get()[i] += before_tangent.get()[i];
      }
      std::swap(before, after);
      std::swap(before_tangent, after_tangent);
    }
  }

  const IstcDoubleBackward<Real>& p;
  const QueryTile& tile;
  const AtomGradient<Real>& grad_atoms;
  DualQueries<Real>& dual;
  const int64_t lanes, tile_size, codes_size;
  const Real step;
  Stream<Real> atoms, tangents;
  Buffer<Real> residuals, residual_tangents;  // r_m and ṙ_m
  Buffer<Real> u, u_tangent;                  // u_m and u̇_m
};

template <class Real>
void istc_double_backward(const IstcDoubleBackward<Real>& p) {
  with_shrinkage(p.shrinkage, [&](auto shrinkage) {
    reverse<Real>(p, [&](const QueryTile& tile, const AtomGradient<Real>& gradient, Real* rows) {
      // z = s·x and ż = s·ẋ + ṡ·x for the patch x, its scale s and their tangents.
      const int64_t size = p.width * tile.lanes, row = tile.task * p.queries + tile.first;
      Buffer<Real> patches(size), patch_tangents(size), scale(tile.lanes), scale_tangent(tile.lanes);
      DualQueries<Real> dual(size);
      load_queries(p, p.query_map.data, tile, patches.get());
      load_queries(p, p.tangent_queries, tile, patch_tangents.get());
      load_scale(p, p.scale, tile, scale.get());
      load_scale(p, p.tangent_scale, tile, scale_tangent.get());
      scale_lanes(patches.get(), scale.get(), p.width, tile.lanes, dual.query.get());
      for (int64_t i = 0; i < size; ++i) {
        const int64_t q = i % tile.lanes;
        dual.tangent.get()[i] =
            patch_tangents.get()[i] * scale.get()[q] + patches.get()[i] * scale_tangent.get()[q];
      }
      DoubleBackwardTile<Real, decltype(shrinkage)::value>(p, tile, gradient, dual).run();
      finish_queries<Real>(p, tile, dual.sum_query.get(), patches.get(), rows);
      for (int64_t q = 0; q < tile.count; ++q) {
        Real product = 0;
        for (int64_t i = 0; i < p.width; ++i) {
          const Real adjoint = dual.sum_tangent.get()[i * tile.lanes + q];
          product += adjoint * patch_tangents.get()[i * tile.lanes + q];
          rows[(row + q) * p.width + i] += adjoint * scale_tangent.get()[q];
        }
        p.grad_scale[row + q] += product;
      }
    });
  });
}

}  // namespace FSAD_ISA
}  // namespace fsad
