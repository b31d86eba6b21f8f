// The first inner products at receptive fields above 1, without patches.
//
// ⟨patch i, patch j⟩ = Σ_o ⟨z(i + o), z(j + o)⟩ over the l² offsets o: the inner products of single
// positions, summed along their diagonals. Those are c multiplications a pair instead of c·l², and a group of
// queries shares them: its positions and their surroundings are far fewer than l² times its lanes. Positions
// beyond the border are zeros, so that all of it is exact.
#pragma once

#include <optional>

#include "tiling.h"

namespace fsad {
inline namespace FSAD_ISA {

// A map's positions with a margin of l/2 around every image: a raster of rows, image below image.
struct Raster {
  int64_t images, height, width, margin;

  template <class Real>
  explicit Raster(const PatchMap<Real>& map)
      : images(map.images), height(map.height), width(map.width), margin(map.receptive_field / 2) {}

  int64_t row_size() const { return width + 2 * margin; }
  int64_t row(int64_t position) const {
    return position / (height * width) * (height + 2 * margin) + margin + position / width % height;
  }
  // The first position of a raster's row, or -1 if it lies in a margin.
  int64_t position(int64_t row) const {
    const int64_t image = row / (height + 2 * margin), y = row % (height + 2 * margin) - margin;
    return y < 0 || y >= height || image >= images ? -1 : (image * height + y) * width;
  }
};

// The positions of a group of queries and around them, in columns, and those of the atoms around a tile.
template <class Real>
class Diagonals {
  static constexpr int64_t kMostColumns = 32;

 public:
  // Whether all positions of the support are atoms, and it is worth while: by shapes alone, as it changes
  // roundings. Around a group lie three rows of the map or more (l = 3): wide ones are more columns than
  // l² times its lanes.
  static bool pay(const IstcProblem<Real>& p) {
    return p.query_map.receptive_field > 1 && !p.atom_index && !Panels<Real>::are_single(p.queries) &&
           p.query_map.width >= 8 && p.query_map.width <= kMostColumns && p.atom_map.width >= 8 &&
           p.query_map.channels >= 16;
  }

  // Numbers that a group and a worker need for it; none if it does not pay.
  static int64_t group_size(const IstcProblem<Real>& p, int64_t lanes) {
    return pay(p) ? most_columns(p, lanes) * p.query_map.channels : 0;
  }
  static int64_t worker_size(const IstcProblem<Real>& p, int64_t lanes) {
    return pay(p) ? ring_rows(p) * Raster(p.atom_map).row_size() * most_columns(p, lanes) : 0;
  }

  // Of a group of queries, if it pays.
  static std::optional<Diagonals> of(const IstcProblem<Real>& p, int64_t task, int64_t first,
                                     const Panels<Real>& panels, Real* columns) {
    if (!pay(p)) return std::nullopt;
    return Diagonals(p, task, first, panels, columns);
  }

  // Gathers the columns of a group of queries.
  Diagonals(const IstcProblem<Real>& p, int64_t task, int64_t first, const Panels<Real>& panels,
            Real* columns)
      : p_(p),
        queries_(p.query_map),
        atoms_(p.atom_map),
        lanes_(panels.lanes),
        first_(first),
        count_(panels.count),
        top_(queries_.row(first) - queries_.margin),
        columns_(columns),
        width_(round_up(rows_of(first, panels.count) * queries_.row_size(), kBlock<Real>)),
        atom_map_(p.atom_map.data + task * p.atom_map.task_size()) {
    const int64_t channels = p.query_map.channels, bottom = top_ + rows_of(first, panels.count);
    std::fill_n(columns_, width_ * channels, Real(0));
    for (int64_t row = top_; row < bottom; ++row) {
      const int64_t position = queries_.position(row);
      if (position < 0) continue;
      const Real* vectors = p.query_map.data + task * p.query_map.task_size() + position * channels;
      for (int64_t x = 0; x < queries_.width; ++x) {
        const int64_t column = (row - top_) * queries_.row_size() + queries_.margin + x;
        Real* target = columns_ + column / kBlock<Real> * kBlock<Real> * channels + column % kBlock<Real>;
        for (int64_t c = 0; c < channels; ++c) target[c * kBlock<Real>] = vectors[x * channels + c];
      }
    }
  }

  // S (atoms × lanes) = inner products of the tile's atoms with the unscaled query patches. `ring` holds the
  // products of single positions around the tile; `known` says up to which row of the raster, and begins as
  // -1. Tiles come in the order of their atoms.
  void products(int64_t first, int64_t count, Real* ring, int64_t& known, Real* s) const {
    const int64_t last_row = atoms_.row(first + count - 1) + atoms_.margin;
    if (known < 0) {
      std::fill_n(ring, ring_rows(p_) * atoms_.row_size() * width_, Real(0));  // margins stay so
      known = atoms_.row(first) - atoms_.margin - 1;
    }
    while (known < last_row) compute_row(++known, ring);
    for (int64_t atom = first; atom < first + count; ++atom) sum(atom, ring, s + (atom - first) * lanes_);
  }

 private:
  static int64_t rows_between(const Raster& raster, int64_t positions) {
    const int64_t images = positions / (raster.height * raster.width) + 2;
    return positions / raster.width + 2 + images * 2 * raster.margin;
  }
  static int64_t most_columns(const IstcProblem<Real>& p, int64_t lanes) {
    const Raster raster(p.query_map);
    return round_up(rows_between(raster, lanes) * raster.row_size(), kBlock<Real>);
  }
  static int64_t ring_rows(const IstcProblem<Real>& p) {
    return rows_between(Raster(p.atom_map), tile_atoms(p.width));
  }
  int64_t rows_of(int64_t first, int64_t count) const {
    return queries_.row(first + count - 1) - queries_.row(first) + 1 + 2 * queries_.margin;
  }

  Real* ring_row(int64_t row, Real* ring) const {
    return ring + row % ring_rows(p_) * atoms_.row_size() * width_;
  }

  void compute_row(int64_t row, Real* ring) const {
    Real* target = ring_row(row, ring) + atoms_.margin * width_;
    const int64_t position = atoms_.position(row), channels = p_.atom_map.channels;
    if (position < 0) return void(std::fill_n(target, atoms_.width * width_, Real(0)));
    const Rows<Real> rows{atom_map_ + position * channels, channels};
    for (int64_t column = 0; column < width_; column += kBlock<Real>) {
      right_product<Real, kBlock<Real>>(atoms_.width, rows, channels, 1, columns_ + column * channels,
                                        kBlock<Real>, {target + column, width_, false});
    }
  }

  void sum(int64_t atom, Real* ring, Real* s) const {
    const int64_t x = atom % atoms_.width, row = atoms_.row(atom), margin = atoms_.margin;
    std::fill_n(s + count_, lanes_ - count_, Real(0));
    for (int64_t lane = 0, end; lane < count_; lane = end) {  // by parts that lie in one row of the map
      const int64_t query_x = (first_ + lane) % queries_.width;
      end = std::min(count_, lane + queries_.width - query_x);
      const int64_t column = (queries_.row(first_ + lane) - margin - top_) * queries_.row_size() + query_x;
      int64_t at = lane;
      for (; at + kLanes<Real> <= end; at += kLanes<Real>) {
        Vector<Real> total = {};
        for_each_offset([&](int64_t dy, int64_t dx) {
          const Real* row_of_products = ring_row(row + dy - margin, ring) + (x + dx) * width_;
          total += load(row_of_products + column + dy * queries_.row_size() + dx + at - lane);
        });
        store(s + at, total);
      }
      for (; at < end; ++at) {
        s[at] = 0;
        for_each_offset([&](int64_t dy, int64_t dx) {
          const Real* row_of_products = ring_row(row + dy - margin, ring) + (x + dx) * width_;
          s[at] += row_of_products[column + dy * queries_.row_size() + dx + at - lane];
        });
      }
    }
  }

  template <class Visit>
  void for_each_offset(Visit visit) const {
    for (int64_t dy = 0; dy <= 2 * atoms_.margin; ++dy) {
      for (int64_t dx = 0; dx <= 2 * atoms_.margin; ++dx) visit(dy, dx);
    }
  }

  const IstcProblem<Real>& p_;
  Raster queries_, atoms_;
  int64_t lanes_, first_, count_, top_;  // top_: the raster's row where the columns begin
  Real* columns_;
  int64_t width_;  // columns
  const Real* atom_map_;
};

}  // namespace FSAD_ISA
}  // namespace fsad
