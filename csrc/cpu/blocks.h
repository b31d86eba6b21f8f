// The micro-kernels: small matrix products whose result stays in registers.
//
//   right   C (rows × columns) = A B, or += A B   A's rows are read along: inner products with atoms
//   across  C (rows × columns) += AᵀB             A's rows are read across: weighted sums of atoms
//
// B's columns lie in the lanes, one or two vectors of them or half of one; or B is a single column, and A's
// rows lie in them. No factors: one more register, and the compiler would have to store a part of the block.
#pragma once

#include <algorithm>

#include "simd.h"

namespace fsad {
inline namespace FSAD_ISA {

// Whether a block asks for the rows of the next one while it computes: wide vectors outrun the second cache's
// own fetching, narrow ones have no slot to spare for it.
constexpr bool kFetchAhead = kVectorBytes == 64;

// Columns of the widest block. The narrowest have half a vector of them, if a narrower vector there is.
template <class Real>
constexpr int kBlock = 2 * kLanes<Real>;
constexpr bool kHasHalves = kVectorBytes > 16;

// So many columns as vectors of the type that holds them best.
template <class Real, int kColumns>
struct Columns {
  static constexpr int kWidth = kColumns < kLanes<Real> ? kColumns : kLanes<Real>;
  static constexpr int kVectors = kColumns / kWidth;
  using Type = typename Part<Real, kWidth>::Type;
  static inline Type load_at(const Real* row, int v) { return load<Real, kWidth>(row + v * kWidth); }
};

// Calls body(std::integral_constant columns) for the columns of a panel that is not a single one.
template <class Real, class Body>
inline void with_columns(int64_t columns, Body body) {
  if (columns == kBlock<Real>) return body(std::integral_constant<int, kBlock<Real>>());
  if constexpr (kHasHalves) {
    if (columns < kLanes<Real>) return body(std::integral_constant<int, kLanes<Real> / 2>());
  }
  body(std::integral_constant<int, kLanes<Real>>());
}

// Matrices of equal shape in one memory, `apart` numbers from one to the next: their rows are `stride` apart.
template <class Real>
struct Rows {
  const Real* data;
  int64_t stride;
  int64_t apart = 0;
};

// A result's block, and what becomes of it.
template <class Real>
struct Target {
  Real* data;
  int64_t stride;
  bool accumulate;
};

template <class Real, int kRows, int kColumns>
inline void finish_block(
    typename Columns<Real, kColumns>::Type (&sum)[kRows][Columns<Real, kColumns>::kVectors],
    Target<Real> target) {
  using Block = Columns<Real, kColumns>;
  if (target.accumulate) {
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
      const Real* place = target.data + row * target.stride;
#pragma GCC unroll 2
      for (int v = 0; v < Block::kVectors; ++v) sum[row][v] += Block::load_at(place, v);
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
    Real* place = target.data + row * target.stride;
#pragma GCC unroll 2
    for (int v = 0; v < Block::kVectors; ++v) store(place + v * Block::kWidth, sum[row][v]);
  }
}

template <class Real, int kRows, int kColumns>
inline void right_block(Rows<Real> a, int64_t depth, int64_t parts, const Real* b, int64_t b_stride,
                        Target<Real> target) {
  using Block = Columns<Real, kColumns>;
  typename Block::Type sum[kRows][Block::kVectors] = {};
  // A pointer for every third row, as addresses may be base + stride and base + 2 stride: one for each row
  // would be more than there are registers.
  constexpr int kPointers = (kRows + 2) / 3;
  for (int64_t part = 0; part < parts; ++part) {
    const Real *thirds[kPointers], *next = a.data + part * a.apart + kRows * a.stride;
    for (int i = 0; i < kPointers; ++i) thirds[i] = a.data + part * a.apart + 3 * i * a.stride;
    for (int64_t k = 0; k < depth; ++k, b += b_stride) {
      typename Block::Type right[Block::kVectors];
      for (int v = 0; v < Block::kVectors; ++v) right[v] = Block::load_at(b, v);
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row) {
        const Real value = thirds[row / 3][row % 3 * a.stride];
        for (int v = 0; v < Block::kVectors; ++v) sum[row][v] += right[v] * value;
      }
#pragma GCC unroll 4
      for (int i = 0; i < kPointers; ++i) ++thirds[i];
      if constexpr (kFetchAhead) {
        __builtin_prefetch(next);
        next += kRows;
      }
    }
  }
  finish_block<Real, kRows, kColumns>(sum, target);
}

template <class Real, int kRows, int kColumns>
inline void across_block(Rows<Real> a, const int* listed, int64_t depth, const Real* b, int64_t b_stride,
                         Target<Real> target) {
  using Block = Columns<Real, kColumns>;
  typename Block::Type sum[kRows][Block::kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const int64_t atom = listed[k];
    const Real* a_row = a.data + atom * a.stride;
    const Real* b_row = b + atom * b_stride;
    typename Block::Type right[Block::kVectors];
    for (int v = 0; v < Block::kVectors; ++v) right[v] = Block::load_at(b_row, v);
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < Block::kVectors; ++v) sum[row][v] += right[v] * a_row[row];
    }
  }
  finish_block<Real, kRows, kColumns>(sum, target);
}

// Calls block(row, std::integral_constant rows) until all rows are done: whole blocks, then one of the rest.
template <int kRows = kBlockRows, class Block>
inline void for_each_block(int64_t rows, Block block, int64_t first = 0) {
  for (; rows - first >= kRows; first += kRows) block(first, std::integral_constant<int, kRows>());
  if constexpr (kRows > 1) {
    if (first < rows) for_each_block<kRows - 1>(rows, block, first);
  }
}

// C (rows × kColumns) = or += Σ_parts A_part B_part; the B of all parts follow each other.
// Every entry sums over the depth in order, whatever the blocking.
template <class Real, int kColumns>
inline void right_product(int64_t rows, Rows<Real> a, int64_t depth, int64_t parts, const Real* b,
                          int64_t b_stride, const Target<Real>& target) {
  for_each_block(rows, [&](int64_t row, auto count) {
    const Rows<Real> block{a.data + row * a.stride, a.stride, a.apart};
    right_block<Real, decltype(count)::value, kColumns>(
        block, depth, parts, b, b_stride,
        {target.data + row * target.stride, target.stride, target.accumulate});
  });
}

// C (rows × kColumns) += AᵀB over those of A's and B's rows that are listed.
template <class Real, int kColumns>
inline void across_product(int64_t rows, Rows<Real> a, const int* listed, int64_t depth, const Real* b,
                           int64_t b_stride, const Target<Real>& target) {
  for_each_block(rows, [&](int64_t row, auto count) {
    across_block<Real, decltype(count)::value, kColumns>(
        {a.data + row, a.stride}, listed, depth, b, b_stride,
        {target.data + row * target.stride, target.stride, target.accumulate});
  });
}

// ---- a single column -------------------------------------------------------------------------------------

// As a tree: one half of the lanes onto the other.
template <class Real, int kCount = kLanes<Real>>
inline Real sum_of_lanes(typename Part<Real, kCount>::Type vector) {
  if constexpr (kCount == 2) {
    return vector[0] + vector[1];
  } else {
    typename Part<Real, kCount / 2>::Type halves[2];
    __builtin_memcpy(halves, &vector, sizeof vector);
    return sum_of_lanes<Real, kCount / 2>(halves[0] + halves[1]);
  }
}

// Where the vectors of a row of `width` numbers start: the last one ends with the row, and overlaps the one
// before unless the width is a multiple of the lanes. Rows shorter than a vector have none.
template <class Real>
struct VectorsOfRow {
  int64_t width;

  int64_t count() const { return width < kLanes<Real> ? 0 : (width + kLanes<Real> - 1) / kLanes<Real>; }
  int64_t start(int64_t vector) const { return std::min(vector * kLanes<Real>, width - kLanes<Real>); }
  int64_t overlap(int64_t vector) const { return vector * kLanes<Real> - start(vector); }
  int64_t rest() const { return count() ? width : 0; }  // the first number that is in no vector
};

// c_i = or += ⟨a_i, b⟩; c is strided.
template <class Real>
inline void inner_products(int64_t rows, Rows<Real> a, int64_t depth, const Real* b, Target<Real> target) {
  const VectorsOfRow<Real> vectors{depth};
  const int64_t last = vectors.count() - 1;
  Vector<Real> end = {};  // of b, zero where the vector before has it already
  if (last >= 0) {
    end = load(b + vectors.start(last));
    for (int64_t lane = 0; lane < vectors.overlap(last); ++lane) end[lane] = 0;
  }
  for_each_block<4>(rows, [&](int64_t first, auto count) {
    constexpr int kRows = decltype(count)::value;
    const Real* row = a.data + first * a.stride;
    Vector<Real> sum[kRows] = {};
    for (int64_t v = 0; v <= last; ++v) {
      const int64_t at = vectors.start(v);
      const Vector<Real> right = v < last ? load(b + at) : end;
      for (int i = 0; i < kRows; ++i) sum[i] += load(row + i * a.stride + at) * right;
    }
    Real product[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) product[i] = sum_of_lanes<Real>(sum[i]);
    for (int64_t k = vectors.rest(); k < depth; ++k) {
      for (int i = 0; i < kRows; ++i) product[i] += row[i * a.stride + k] * b[k];
    }
    for (int i = 0; i < kRows; ++i) {
      Real& place = target.data[(first + i) * target.stride];
      place = target.accumulate ? place + product[i] : product[i];
    }
  });
}

// c += Σ_i b_i a_i over the rows that are listed; b is strided. Sums of a tile stay in registers until it
// ends, as in the blocks above: fewer roundings than adding row after row.
template <class Real>
inline void weighted_rows(int64_t width, Rows<Real> a, const int* listed, int64_t depth, const Real* b,
                          int64_t b_stride, Real* c) {
  const VectorsOfRow<Real> vectors{width};
  for_each_block<4>(vectors.count(), [&](int64_t first, auto count) {
    constexpr int kVectors = decltype(count)::value;
    constexpr int kChains = 4 / kVectors;  // of additions, each of which waits for the one before
    Vector<Real> sum[kChains][kVectors] = {};
    int64_t start[kVectors];
    for (int v = 0; v < kVectors; ++v) start[v] = vectors.start(first + v);
    const auto add = [&](int64_t i, Vector<Real>(&to)[kVectors]) {
      const Real* row = a.data + listed[i] * a.stride;
      const Real weight = b[listed[i] * b_stride];
      for (int v = 0; v < kVectors; ++v) to[v] += load(row + start[v]) * weight;
    };
    int64_t i = 0;
    for (; i + kChains <= depth; i += kChains) {
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) add(i + chain, sum[chain]);
    }
    for (; i < depth; ++i) add(i, sum[0]);
    for (int v = 0; v < kVectors; ++v) {
      for (int chain = 1; chain < kChains; ++chain) sum[0][v] += sum[chain][v];
      Real* place = c + start[v];
      const Vector<Real> before = load(place), total = before + sum[0][v];
      store(place, total);
      for (int64_t lane = 0; lane < vectors.overlap(first + v); ++lane) place[lane] = before[lane];
    }
  });
  for (int64_t k = vectors.rest(); k < width; ++k) {
    Real sum = 0;
    for (int64_t i = 0; i < depth; ++i) sum += a.data[listed[i] * a.stride + k] * b[listed[i] * b_stride];
    c[k] += sum;
  }
}

}  // namespace FSAD_ISA
}  // namespace fsad
