// The skeleton that every kernel here is an instance of: stream the atoms past a group of queries.
//
// Inner products of a few query-side tiles X_i with every atom, a pointwise rule on them, a weighted sum of
// the atoms:  S_i = D X_i,  W = rule(S_0, S_1, …),  Y += Dᵀ W.  (Atoms are rows here.)
#pragma once

#include <array>
#include <cmath>

#include "diagonals.h"
#include "threads.h"

namespace fsad {
inline namespace FSAD_ISA {

constexpr int kLocalArrays = 2, kSums = 2;

// What one thread has of its own while atoms stream by.
template <class Real>
struct WorkerArrays {
  Real *packed, *packed_tangents;  // tiles of atoms (atoms × d), if they are packed by tiles
  Real* local[kLocalArrays];       // a rule's numbers for one tile (atoms × lanes)
  Real* parts;                     // a tile's products, where many parts are summed first
  Real* ring;                      // see Diagonals

  WorkerArrays(Carver<Real>& carver, const IstcProblem<Real>& p, const Plan<Real>& plan, bool has_tangents) {
    const int64_t atoms = tile_atoms(p.width), lanes = plan.lanes;
    const int64_t tile = atoms * AtomRows<Real>::packed_stride(p.width);
    const bool by_tiles = plan.packing == Packing::tiles;
    packed = by_tiles ? carver.take(tile) : nullptr;
    packed_tangents = by_tiles && has_tangents ? carver.take(tile) : nullptr;
    for (Real*& array : local) array = carver.take(tile_numbers<Real>(atoms, lanes));
    parts = carver.take(tile_numbers<Real>(atoms, lanes));
    ring = carver.take(Diagonals<Real>::worker_size(p, lanes));
  }
};

// One tile of atoms beside one group of queries.
template <class Real>
struct Tile {
  int64_t first, count;  // atoms
  const Panels<Real>& panels;
  int64_t width, depth;  // of an atom, and of the parts that products over it take
  Rows<Real> atoms, tangents;
  Real* const* local;
  Real* parts;
  Real* sums;  // where this tile's weighted sums go
  Real* ring;
  int64_t& known;  // of the ring

  int64_t at() const { return first * panels.lanes; }    // in arrays of all atoms × lanes
  int64_t size() const { return count * panels.lanes; }  // numbers of this tile

  // S (atoms × lanes) = D X, or += D X, with X (d × lanes).
  void products(Rows<Real> rows, const Real* x, Real* s, bool accumulate) const {
    // Many parts are summed first: added to s one by one, each would round by the size of what is there.
    if (accumulate && panels.block > 1 && width > kFewParts * depth) {
      products(rows, x, parts, false);
      for (int64_t i = 0; i < size(); ++i) s[i] += parts[i];
      return;
    }
    const int64_t lanes = panels.lanes;
    panels.for_each(width, [&](int64_t panel, int64_t lane, int64_t columns) {
      if (columns == 1)
        return inner_products<Real>(count, rows, width, x + panel, {s + lane, lanes, accumulate});
      for (int64_t start = 0; start < width; start += depth) {
        const int64_t length = std::min(depth, width - start);
        const Rows<Real> part{rows.data + start, rows.stride};
        const Real* x_part = x + panel + start * columns;
        const Target<Real> target{s + lane, lanes, accumulate || start > 0};
        with_columns<Real>(columns, [&](auto known) {
          right_product<Real, decltype(known)::value>(count, part, length, 1, x_part, columns, target);
        });
      }
    });
  }

  // S (atoms × lanes) = step · scale · D X for query patches X, by diagonals if given, else from step · X.
  // All passes take this one: what rounds alike in all of them is not amplified by the iteration.
  void first_products(const std::optional<Diagonals<Real>>& diagonals, const Real* stepped, Real step,
                      const Real* scale, Real* s) const {
    if (diagonals) {
      diagonals->products(first, count, ring, known, s);
      for (int64_t i = 0; i < size(); ++i) s[i] *= step;
    } else {
      products(atoms, stepped, s, false);
    }
    scale_lanes(scale, s);
  }

  // S (atoms × lanes) times a factor for every lane.
  void scale_lanes(const Real* scale, Real* s) const {
    for (int64_t atom = 0; atom < count; ++atom) {
      Real* row = s + atom * panels.lanes;
      for (int64_t q = 0; q < panels.lanes; ++q) row[q] *= scale[q];
    }
  }

  // Y (d × lanes) += Dᵀ W with W (atoms × lanes). Atoms all of whose weights in a panel are at most
  // `negligible` are left out there; if that is below zero, nobody looks. What is no number stays.
  void weighted_sum(Rows<Real> rows, const Real* w, Real* y, Real negligible) const {
    const int64_t lanes = panels.lanes;
    std::array<int, kMostAtoms> listed;
    int64_t used = count;
    for (int i = 0; i < count; ++i) listed[i] = i;
    panels.for_each(width, [&](int64_t panel, int64_t lane, int64_t columns) {
      if (negligible >= 0) used = list_weighty(w + lane, columns, negligible, listed.data());
      if (columns == 1)
        return weighted_rows<Real>(width, rows, listed.data(), used, w + lane, lanes, y + panel);
      with_columns<Real>(columns, [&](auto known) {
        across_product<Real, decltype(known)::value>(width, rows, listed.data(), used, w + lane, lanes,
                                                     {y + panel, columns, true});
      });
    });
  }

 private:
  int64_t list_weighty(const Real* w, int64_t columns, Real negligible, int* listed) const {
    int64_t used = 0;
    for (int atom = 0; atom < count; ++atom) {
      const Real* weights = w + atom * panels.lanes;
      bool weighty = false;
      for (int64_t q = 0; q < columns; ++q) weighty |= !(std::abs(weights[q]) <= negligible);
      listed[used] = atom;
      used += weighty;
    }
    return used;
  }
};

// The problem, its plan, and what the threads share of it.
template <class Real>
class Stream {
 public:
  Stream(const IstcProblem<Real>& problem, int arrays, bool sums_over_queries,
         const Real* tangent_atoms = nullptr)
      : p(problem),
        plan(problem, arrays, sums_over_queries),
        threads_(torch::stable::get_num_threads()),
        has_tangents_(tangent_atoms != nullptr),
        workers_(threads_, problem, plan, has_tangents_),
        partial_size_(kSums * tile_numbers<Real>(problem.width, plan.lanes)),
        partial_sums_(plan.splits > 1 ? plan.splits * partial_size_ : 0),
        packed_(plan.packing == Packing::all ? (has_tangents_ ? 2 : 1) * packed_size() : 0),
        atoms_(pack_all(problem.atom_map.data, 0)),
        tangents_(pack_all(tangent_atoms, packed_size())) {}

  const IstcProblem<Real>& p;
  const Plan<Real> plan;

  // Sets of arrays that for_each_group hands out.
  int64_t slots() const { return plan.splits > 1 ? 1 : threads_; }
  int64_t groups() const { return p.tasks * plan.groups; }

  // Calls body(task, first query, panels) of a group by its number.
  template <class Body>
  void with_group(int64_t group, Body body) const {
    const int64_t first = group % plan.groups * plan.lanes;
    body(group / plan.groups, first, Panels<Real>(std::min(plan.lanes, p.queries - first), plan.single));
  }

  // Calls body(i, slot) for i in [0, count): on torch's threads, each with a slot of its own, unless the
  // atoms of a group are what threads share.
  template <class Body>
  void for_each(int64_t count, int64_t grain, Body body) const {
    if (plan.splits > 1) {
      for (int64_t i = 0; i < count; ++i) body(i, int64_t(0));
      return;
    }
    parallel_for(count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i, thread_index());
    });
  }

  // Calls rule(tile) for all tiles of atoms of a task, past one group of queries, and leaves `sums` tiles
  // (d × lanes) of weighted sums in `totals`.
  template <class Rule>
  void sweep(int64_t task, const Panels<Real>& panels, int sums, Real* totals, Rule rule) const {
    const int64_t size = sums * panels.size(p.width);
    if (plan.splits == 1) {
      stream(task, panels, 0, p.atoms, totals, size, rule);
      return;
    }
    parallel_for(plan.splits, 1, [&](int64_t begin, int64_t end) {
      const int64_t tiles = (p.atoms + tile_atoms(p.width) - 1) / tile_atoms(p.width);
      for (int64_t split = begin; split < end; ++split) {
        const int64_t first = split * tiles / plan.splits * tile_atoms(p.width);
        const int64_t last = (split + 1) * tiles / plan.splits * tile_atoms(p.width);
        stream(task, panels, first, std::min(last, p.atoms), partial_sums(split), size, rule);
      }
    });
    std::fill_n(totals, size, Real(0));
    for (int64_t split = 0; split < plan.splits; ++split) {
      const Real* partial = partial_sums(split);
      for (int64_t i = 0; i < size; ++i) totals[i] += partial[i];
    }
  }

 private:
  template <class Rule>
  void stream(int64_t task, const Panels<Real>& panels, int64_t first, int64_t last, Real* sums, int64_t size,
              Rule rule) const {
    const WorkerArrays<Real> own = workers_.at(thread_index(), p, plan, has_tangents_);
    std::fill_n(sums, size, Real(0));
    const int64_t step = tile_atoms(p.width);
    int64_t known = -1;
    for (; first < last; first += step) {
      const int64_t count = std::min(step, last - first);
      const Rows<Real> rows = atoms_.rows(task, first, count, own.packed);
      const Rows<Real> dotted =
          has_tangents_ ? tangents_.rows(task, first, count, own.packed_tangents) : Rows<Real>{};
      rule(Tile<Real>{first, count, panels, p.width, plan.depth, rows, dotted, own.local, own.parts, sums,
                      own.ring, known});
    }
  }

  // Rows of the atoms of these maps, all of which are packed first, at an offset, if that is the plan.
  AtomRows<Real> pack_all(const Real* maps, int64_t offset) const {
    if (!maps || plan.packing != Packing::all) return AtomRows<Real>(p, maps, nullptr);
    Real* const memory = packed_.get() + offset;
    const AtomRows<Real> rows(p, maps, memory);
    parallel_for(p.tasks * p.atoms, kThreadWork / kPackingWork, [&](int64_t begin, int64_t end) {
      rows.pack(begin, end - begin, memory + begin * AtomRows<Real>::packed_stride(p.width));
    });
    return rows;
  }
  int64_t packed_size() const { return p.tasks * p.atoms * AtomRows<Real>::packed_stride(p.width); }

  // Weighted sums of one part of the atoms: kSums tiles (d × lanes).
  Real* partial_sums(int64_t split) const { return partial_sums_.get() + split * partial_size_; }

  int64_t threads_;
  bool has_tangents_;
  Slots<Real, WorkerArrays<Real>> workers_;
  int64_t partial_size_;
  Buffer<Real> partial_sums_, packed_;
  AtomRows<Real> atoms_, tangents_;
};

// Calls body(shrinkage tag) with the shrinkage as a compile-time constant.
template <class Body>
void with_shrinkage(Shrinkage shrinkage, Body body) {
  switch (shrinkage) {
    case Shrinkage::none:
      return body(std::integral_constant<Shrinkage, Shrinkage::none>());
    case Shrinkage::soft:
      return body(std::integral_constant<Shrinkage, Shrinkage::soft>());
    default:
      return body(std::integral_constant<Shrinkage, Shrinkage::sigshrink>());
  }
}

}  // namespace FSAD_ISA
}  // namespace fsad
