// The choice of tiles, and why. What was tried and measured is in bench/NOTES.md.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "panels.h"

namespace fsad {
inline namespace FSAD_ISA {

// Atoms of a tile: enough that a block of the weighted sum, stored once a tile, is worth it; few enough that
// tile and sums stay in the second cache (1 MiB on the machine measured) when atoms are wide.
constexpr int64_t kMostAtoms = 96;
inline int64_t tile_atoms(int64_t width) { return width <= 256 ? kMostAtoms : kMostAtoms / 2; }

// Products over a wide d go by equal parts of at most this depth: a panel of so many rows (12 KiB) stays in
// the first cache, and roundings of a longer sum would exceed twice those of plain PyTorch.
constexpr int64_t kDepth = 192;

// Shorter parts where atoms or queries are few, and over many steps, which amplify roundings: of vectors of
// one sign a long sum's grow with its length, and plain PyTorch's own sums are short.
constexpr int64_t kFewAtoms = 128, kManySteps = 4, kShortDepth = 32;

// Parts that are added to what is there one by one; more of them are summed first.
constexpr int64_t kFewParts = 4;

// Lanes of a group of queries. Atoms come from the outer caches once a group, so more is better, but the
// group's own numbers (arrays × k × lanes) should not all go out to memory. With a dictionary gradient twice
// as many: each group also reads and writes all of its sum (k × d).
constexpr int64_t kMostLanes = 64, kLeastLanes = 8;
constexpr int64_t kGroupBytes = int64_t(4) << 20;

// Multiply-adds below which work is not handed to a further thread: some 10 µs.
constexpr int64_t kThreadWork = int64_t(1) << 19;

// As many multiply-adds take as long as to pack an atom, whose patch is gathered piece by piece.
constexpr int64_t kPackingWork = 1024;

// Dictionaries up to which all atoms are packed once, not tile by tile for each group and step.
constexpr int64_t kPackedBytes = int64_t(4) << 20;

// Panels of queries below which the atoms are split among threads too, and into how many pieces of work.
constexpr int64_t kFewPanels = 16, kPieces = 32;

// How a problem is cut into work. Results are the same for every number of threads: they depend on `splits`,
// and those summed over queries on `lanes`, which then depend on shapes alone.
template <class Real>
struct Plan {
  int64_t lanes, groups;  // queries of a group, groups of a task
  int64_t splits;         // of the atoms; with more than one, groups come one after the other
  int64_t grain;          // groups that one thread takes at least
  int64_t depth;          // of a part of a product
  bool single;
  Packing packing;

  // `arrays`: of k × lanes numbers, what a group keeps.
  Plan(const IstcProblem<Real>& p, int arrays, bool sums_over_queries) {
    const int64_t tasks = p.tasks, queries = p.queries, atoms = p.atoms, width = p.width;
    constexpr int64_t block = kBlock<Real>;
    const int64_t panels = std::max<int64_t>(tasks * (round_up(queries, block) / block), 1);
    const int64_t work = std::max<int64_t>(atoms * width, 1);
    single = Panels<Real>::are_single(queries);
    const bool is_delicate = atoms <= kFewAtoms || queries <= kBlock<Real> || p.iterations >= kManySteps;
    const int64_t deepest = is_delicate ? kShortDepth : kDepth;
    const int64_t parts = std::max<int64_t>((width + deepest - 1) / deepest, 1);
    depth = round_up((width + parts - 1) / parts, 16);
    // A single query waits for the atoms' memory as long as several would compute.
    const bool packs = AtomRows<Real>::are_packed(p, single);
    const int64_t an_atom = width * std::clamp(queries, kLeastLanes, kMostLanes) + (packs ? kPackingWork : 0);
    const int64_t tiles = atoms / (2 * tile_atoms(width)), worth = atoms * an_atom / kThreadWork;
    splits = panels < kFewPanels ? std::max<int64_t>(std::min({kPieces / panels, tiles, worth}), 1) : 1;
    const int64_t affordable =
        (sums_over_queries ? 2 : 1) * kGroupBytes / (std::max<int64_t>(arrays * atoms, 1) * sizeof(Real));
    lanes = std::clamp(affordable / block * block, block, kMostLanes);
    lanes = std::min(lanes, single ? std::max<int64_t>(queries, 1) : round_up(queries, block));
    if (splits == 1) {
      const int64_t wanted = sums_over_queries ? kFewPanels : 2 * int64_t(torch::stable::get_num_threads());
      while (lanes > block && tasks * ((queries + lanes - 1) / lanes) < wanted) lanes -= block;
    }
    groups = (queries + lanes - 1) / lanes;
    grain = std::max<int64_t>(kThreadWork / (work * lanes), 1);
    const int64_t bytes = tasks * atoms * AtomRows<Real>::packed_stride(width) * sizeof(Real);
    const bool again = groups > 1 || p.iterations > 1;
    packing = !packs ? Packing::none : again && bytes <= kPackedBytes ? Packing::all : Packing::tiles;
  }
};

}  // namespace FSAD_ISA
}  // namespace fsad
