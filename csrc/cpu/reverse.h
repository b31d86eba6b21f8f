// What the backward passes share: two sides, and what queries leave behind.
//
// The query side is the reverse pass of a group of queries. What the dictionary gradient needs of it are
// weights W_i (atoms × lanes) and the vectors X_i (lanes × d) that they weigh. The atom side adds them up,
// D̄ += Σ_i W_i X_i, group after group in order, for as many groups at a time as there are threads.
#pragma once

#include "istc_forward.h"

namespace fsad {
inline namespace FSAD_ISA {

// Pairs (W_i, X_i) of one group.
template <class Real>
struct AtomSide {
  Real* weights;  // all W_i (atoms × lanes), `apart` numbers from one to the next
  Real* turned;   // all X_i turned, see turn_tile, or null if the dictionary gradient is not wanted
  int64_t parts, apart;

  AtomSide(Carver<Real>& carver, const IstcProblem<Real>& p, int64_t lanes, int parts, bool wanted)
      : parts(parts), apart(tile_numbers<Real>(p.atoms, lanes)) {
    weights = carver.take(parts * apart);
    turned = wanted ? carver.take(parts * lanes * round_up(p.width, kBlock<Real>)) : nullptr;
  }

  Real* weight(int64_t part) const { return weights + part * apart; }

  void turn(const Panels<Real>& panels, int part, const Real* x, int64_t width) const {
    turn_tile(panels, x, width, parts * panels.lanes, part * panels.lanes, turned);
  }

  // D̄ of atoms [first, first + count), rows of `stride` numbers, += Σ_i W_i X_i.
  void add(int64_t first, int64_t count, int64_t lanes, Real* sum, int64_t stride) const {
    constexpr int64_t block = kBlock<Real>;
    const int64_t together = std::max<int64_t>(kDepth / lanes, 1);
    for (int64_t start = 0; start < stride; start += block) {
      const Target<Real> target{sum + first * stride + start, stride, true};
      for (int64_t part = 0; part < parts; part += together) {
        const Rows<Real> rows{weight(part) + first * lanes, lanes, apart};
        const Real* vectors = turned + (start * parts + part * block) * lanes;
        right_product<Real, kBlock<Real>>(count, rows, lanes, std::min(together, parts - part), vectors,
                                          block, target);
      }
    }
  }
};

// Adds to the gradients of query patches (rows) and of their scale: z̄ is the tile of the gradients of scaled
// patches, `patches` and `scale` what was multiplied.
template <class Real>
void add_query_gradients(const Panels<Real>& panels, int64_t width, const Real* bar, const Real* patches,
                         const Real* scale, Real* rows, Real* grad_scale) {
  panels.for_each(width, [&](int64_t panel, int64_t lane, int64_t columns) {
    for (int64_t q = 0; q < columns && lane + q < panels.count; ++q) {
      double product = 0;  // a long sum of one number: float32's roundings would add up
      for (int64_t i = 0; i < width; ++i) {
        const int64_t at = panel + i * columns + q;
        product += double(bar[at]) * double(patches[at]);
        rows[(lane + q) * width + i] += bar[at] * scale[lane + q];
      }
      grad_scale[lane + q] += Real(product);
    }
  });
}

// Calls body(task, first, panels, slot, rows, scale gradients) for all groups, whose atom sides are
// side(slot); then adds up what groups share: the dictionary gradient, and overlapping query patches.
template <class Real, class Body, class Side>
void reverse(const IstcBackward<Real>& p, const Stream<Real>& stream, Body body, Side side) {
  const int64_t stride = round_up(p.width, kBlock<Real>), rows_size = p.tasks * p.queries * p.width;
  const Buffer<Real> rows(rows_size), sums(p.grad_atoms ? p.tasks * p.atoms * stride : 0);
  std::fill_n(rows.get(), rows_size, Real(0));
  std::fill_n(p.grad_scale, p.tasks * p.queries, Real(0));
  const auto query_side = [&](int64_t group, int64_t slot) {
    stream.with_group(group, [&](int64_t task, int64_t first, const Panels<Real>& panels) {
      const int64_t row = task * p.queries + first;
      body(task, first, panels, slot, rows.get() + row * p.width, p.grad_scale + row);
    });
  };
  if (!p.grad_atoms) {
    stream.for_each(stream.groups(), stream.plan.grain, query_side);
  } else {
    std::fill_n(sums.get(), p.tasks * p.atoms * stride, Real(0));
    const int64_t step = tile_atoms(p.width), tiles = (p.atoms + step - 1) / step;
    for (int64_t round = 0; round < stream.groups(); round += stream.slots()) {
      const int64_t count = std::min(stream.slots(), stream.groups() - round);
      stream.for_each(count, 1, [&](int64_t i, int64_t) { query_side(round + i, i); });
      const int64_t grain = kThreadWork / (step * p.width * stream.plan.lanes * count) + 1;
      parallel_for(tiles, grain, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * step, atoms = std::min(end * step, p.atoms) - first;
        for (int64_t i = 0; i < count; ++i) {
          stream.with_group(round + i, [&](int64_t task, int64_t, const Panels<Real>& panels) {
            side(i).add(first, atoms, panels.lanes, sums.get() + task * p.atoms * stride, stride);
          });
        }
      });
    }
  }
  parallel_for(p.tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const PatchMap<Real> queries = writable(p.query_map, p.grad_queries);
      scatter_rows<Real>(queries, queries.data + task * queries.task_size(), nullptr, p.queries,
                         rows.get() + task * p.queries * p.width, p.width);
      if (!p.grad_atoms) continue;
      const PatchMap<Real> atoms = writable(p.atom_map, p.grad_atoms);
      scatter_rows<Real>(atoms, atoms.data + task * atoms.task_size(),
                         p.atom_index ? p.atom_index + task * p.atoms : nullptr, p.atoms,
                         sums.get() + task * p.atoms * stride, stride);
    }
  });
}

}  // namespace FSAD_ISA
}  // namespace fsad
