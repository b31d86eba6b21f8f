// Forward: the iteration itself.
#pragma once

#include "peaks.h"

namespace fsad {
inline namespace FSAD_ISA {

// Codes up to which an atom needs no weighted sum: with soft shrinkage zeros alone, with SigShrink what is
// below rounding even if all atoms' come together. Below zero where SigShrink, at a sharpness τλ that leaves
// no code so small, makes it useless to look.
template <Shrinkage shrinkage, class Real>
Real negligible_code(Real lambda, Real tau) {
  if (shrinkage == Shrinkage::soft) return 0;
  const int bits = VectorOf<Real>::kMantissa + 17;
  const bool any = shrinkage == Shrinkage::sigshrink && tau * lambda > bits * Real(0.7);
  return any ? std::ldexp(lambda, -bits) : Real(-1);
}

// What a group keeps: tiles (d × lanes), of which `residual` holds ηr, a factor for every lane, and its codes
// (atoms × lanes).
template <class Real>
struct ForwardArrays {
  Real *query, *residual, *sum, *scale, *codes, *columns;
  Peaks<Real> peaks;

  ForwardArrays(Carver<Real>& carver, const IstcProblem<Real>& p, int64_t lanes) : peaks(carver, p, lanes) {
    const int64_t tile = tile_numbers<Real>(p.width, lanes);
    for (Real** array : {&query, &residual, &sum}) *array = carver.take(tile);
    scale = carver.take(lanes);
    codes = carver.take(tile_numbers<Real>(p.atoms, lanes));
    columns = carver.take(Diagonals<Real>::group_size(p, lanes));
  }
};

// scale of every lane; zero in unused ones.
template <class Real>
void load_scale(const IstcProblem<Real>& p, const Real* scale, int64_t task, int64_t first,
                const Panels<Real>& panels, Real* lanes) {
  for (int64_t q = 0; q < panels.lanes; ++q) {
    lanes[q] = q < panels.count ? scale[task * p.queries + first + q] : Real(0);
  }
}

// The inner products ηDᵀz of all atoms, left in the codes, and the factor that makes the largest one of a
// query 1.
template <class Real>
void find_scale(const IstcForward<Real>& p, const Stream<Real>& stream, int64_t task, int64_t first,
                const Panels<Real>& panels, const std::optional<Diagonals<Real>>& diagonals,
                const ForwardArrays<Real>& own) {
  stream.sweep(task, panels, 0, nullptr, [&](const Tile<Real>& tile) {
    tile.first_products(diagonals, own.residual, p.step[task], own.scale, own.codes + tile.at());
    own.peaks.note(tile, own.codes + tile.at());
  });
  own.peaks.conclude(p, task, first, panels, p.peak, [&](int64_t q, Real peak) {
    const Real value = peak > 0 ? peak : Real(1);  // a patch of zeros has no scale
    p.peak_value[task * p.queries + first + q] = value;
    own.scale[q] = 1 / value;
  });
}

template <class Real, Shrinkage shrinkage>
void forward_group(const IstcForward<Real>& p, const Stream<Real>& stream, int64_t task, int64_t first,
                   const Panels<Real>& panels, const ForwardArrays<Real>& own) {
  const int64_t tile_size = panels.size(p.width);
  const Real step = p.step[task];
  gather_queries(panels, p.query_map, p.query_map.data + task * p.query_map.task_size(), first, own.query);
  const auto diagonals = Diagonals<Real>::of(p, task, first, panels, own.columns);
  scale_tile(own.query, step, tile_size, own.residual);
  if (p.peak) {
    std::fill_n(own.scale, panels.lanes, Real(1));
    find_scale(p, stream, task, first, panels, diagonals, own);
  } else {
    load_scale(p, p.scale, task, first, panels, own.scale);
  }
  scale_lanes(panels, own.query, own.scale, p.width, false, own.query);

  for (int m = 0; m < p.iterations; ++m) {
    const Real lambda = p.lambda[m], tau = p.tau[m], negligible = negligible_code<shrinkage>(lambda, tau);
    stream.sweep(task, panels, 1, own.sum, [&](const Tile<Real>& tile) {
      Real* codes = own.codes + tile.at();
      if (m > 0) {
        tile.products(tile.atoms, own.residual, codes, true);
      } else if (p.peak) {
        tile.scale_lanes(own.scale, codes);
      } else {
        tile.first_products(diagonals, own.residual, step, own.scale, codes);
      }
      for_each_vector<Real>(tile.size(), [&](int64_t i) {
        store(codes + i, shrink<shrinkage>(load(codes + i), lambda, tau).value);
      });
      tile.weighted_sum(tile.atoms, codes, tile.sums, negligible);
    });
    for (int64_t i = 0; i < tile_size; ++i) own.residual[i] = own.query[i] - own.sum[i];
    Real* target = m + 1 == p.iterations ? p.residual
                   : p.history           ? p.history + m * p.tasks * p.queries * p.width
                                         : nullptr;
    if (target) store_rows(panels, own.residual, p.width, target + (task * p.queries + first) * p.width);
    scale_tile(own.residual, step, tile_size, own.residual);
  }
}

template <class Real>
void istc_forward(const IstcForward<Real>& p) {
  const Stream<Real> stream(p, 1, false);
  const Slots<Real, ForwardArrays<Real>> slots(stream.slots(), p, stream.plan.lanes);
  with_shrinkage(p.shrinkage, [&](auto shrinkage) {
    stream.for_each(stream.groups(), stream.plan.grain, [&](int64_t group, int64_t slot) {
      stream.with_group(group, [&](int64_t task, int64_t first, const Panels<Real>& panels) {
        forward_group<Real, decltype(shrinkage)::value>(p, stream, task, first, panels,
                                                        slots.at(slot, p, stream.plan.lanes));
      });
    });
  });
}

}  // namespace FSAD_ISA
}  // namespace fsad
