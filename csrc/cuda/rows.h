// Patches to rows and back: what the passes do once, before, between and after their streaming kernels.
//
// A row is a patch: l² vectors of channels, in the order of istc.h. Where kernels stream rows, every vector
// is padded with zeros to a multiple of 32 bytes.
#pragma once

#include "kernels.h"
#include "streams.h"

namespace fsad::cuda {

// The columns of rows: `offsets` vectors of `channels` numbers, each padded to `padded`.
struct RowLayout {
  int offsets, channels, padded;

  FSAD_HOST_DEVICE int width() const { return offsets * padded; }
  FSAD_HOST_DEVICE int64_t compact_width() const { return int64_t(offsets) * channels; }
  // Column of the row without padding; −1 for padding.
  FSAD_HOST_DEVICE int64_t compact(int column) const {
    const int offset = column / padded, channel = column - offset * padded;
    return channel < channels ? int64_t(offset) * channels + channel : -1;
  }
};

// to (vectors, padded) = from (vectors, channels), zeros beyond.
template <class Element>
void pad_vectors(const Element* from, int64_t vectors, const RowLayout&, Element* to, Stream);

// rows (T, n) = scale · patches of map; + other_scale · patches of other, if given. scale null: 1.
template <class Element>
struct PackRows {
  int64_t tasks;
  PatchMap<const Element> map;
  const Element* scale;
  const Element *other, *other_scale;
  RowLayout layout;
  Element* rows;
};

template <class Element>
void pack_rows(const PackRows<Element>&, Stream);

// rows (count, padded) = rows without padding (count, d).
template <class Element>
void import_rows(const Element* from, int64_t count, const RowLayout&, Element* rows, Stream);

// Of the rows of a band: base − Σ partial over the splits, or Σ partial without a base; one of the targets
// may be null.
template <class Element>
struct FinishRows {
  using Real = typename Computing<Element>::type;
  Band band;
  int64_t queries;
  RowLayout layout;
  const Real* partial;  // (splits, band's tasks, band's rows, padded width)
  int splits;
  const Element* base;  // (T, n, padded width), like `rows`
  Element* rows;
  Element* compact;  // (T, n, d)
};

template <class Element>
void finish_rows(const FinishRows<Element>&, Stream);

// sums (count) = Σ partial (splits, count), or += if `add`.
template <class Real>
void add_splits(const Real* partial, int splits, int64_t count, bool add, Real* sums, Stream);

// The gradients of the patches x and scales s from the adjoints of z = s·x, a sum over sets of rows; with
// those of ż = s·ẋ + ṡ·x too.
template <class Element>
struct QueryGradient {
  int64_t tasks;
  PatchMap<const Element> map;
  const Element* scale;
  const Element *tangent_map, *tangent_scale;  // null in the backward
  RowLayout layout;
  const Element *adjoints, *tangent_adjoints;  // sets, each (T, n, padded width)
  int sets, tangent_sets;
  typename Computing<Element>::type* rows;  // gradient of the patches (T, n, padded width)
  Element* grad_scale;
};

template <class Element>
void query_gradient(const QueryGradient<Element>&, Stream);

// map (T, …) = Σ of the rows (T, count) of all patches that hold a vector, in the order of the offsets.
// The rows are those of all positions, or of the `count` positions in `index` (T, count), which must be
// distinct: row_of_position (T, positions) is filled with the inverse of it.
template <class Element>
struct UnpackRows {
  int64_t tasks, count;
  PatchMap<Element> map;
  RowLayout layout;
  const typename Computing<Element>::type* rows;
  const int64_t* index;
  int64_t* row_of_position;
};

template <class Element>
void unpack_rows(const UnpackRows<Element>&, Stream);

// index (tasks, positions) = 0, 1 … positions − 1 in every task.
void number_positions(int64_t tasks, int64_t positions, int64_t* index, Stream);

}  // namespace fsad::cuda
