// The one micro-kernel: small matrix products whose right operand lies in the lanes.
#pragma once

#include "simd.h"

namespace fsad {
inline namespace FSAD_ISA {

// Columns of one register block: two vectors. With six rows that is twelve accumulators, two operands and
// one broadcast: all but one of the sixteen registers of AVX2.
template <class Real>
constexpr int kBlock = 2 * kLanes<Real>;

// The left operand A, addressed by two strides: rows of atoms, or the same read across for their transpose.
template <class Real>
struct Left {
  const Real* data;
  int64_t row_stride, depth_stride;
};

template <class Real, int kRows>
inline void gemm_rows(int64_t columns, int64_t depth, Left<Real> a, const Real* b, int64_t b_stride, Real* c,
                      int64_t c_stride, Real factor, bool accumulate) {
  constexpr int lanes = kLanes<Real>;
  for (int64_t column = 0; column < columns; column += kBlock<Real>) {
    Vector<Real> sum[kRows][2] = {};
    const Real* b_row = b + column;
    const Real* a_column = a.data;
    for (int64_t k = 0; k < depth; ++k, b_row += b_stride, a_column += a.depth_stride) {
      const Vector<Real> left = load(b_row), right = load(b_row + lanes);
#pragma GCC unroll 6
      for (int row = 0; row < kRows; ++row) {
        const Real value = a_column[row * a.row_stride];
        sum[row][0] += left * value;
        sum[row][1] += right * value;
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int half = 0; half < 2; ++half) {
        Real* target = c + row * c_stride + column + half * lanes;
        const Vector<Real> product = sum[row][half] * factor;
        store(target, accumulate ? load(target) + product : product);
      }
    }
  }
}

// C = factor · A B, or C += factor · A B: A (rows × depth), B (depth × columns), C (rows × columns).
// `columns` is a multiple of kBlock. Every entry sums over the depth in order, whatever the blocking.
template <class Real>
inline void gemm(int64_t rows, int64_t columns, int64_t depth, Left<Real> a, const Real* b, int64_t b_stride,
                 Real* c, int64_t c_stride, Real factor, bool accumulate) {
  constexpr int kRows = 6;
  for (; rows >= kRows; rows -= kRows, a.data += kRows * a.row_stride, c += kRows * c_stride) {
    gemm_rows<Real, kRows>(columns, depth, a, b, b_stride, c, c_stride, factor, accumulate);
  }
  switch (rows) {
    case 5:
      return gemm_rows<Real, 5>(columns, depth, a, b, b_stride, c, c_stride, factor, accumulate);
    case 4:
      return gemm_rows<Real, 4>(columns, depth, a, b, b_stride, c, c_stride, factor, accumulate);
    case 3:
      return gemm_rows<Real, 3>(columns, depth, a, b, b_stride, c, c_stride, factor, accumulate);
    case 2:
      return gemm_rows<Real, 2>(columns, depth, a, b, b_stride, c, c_stride, factor, accumulate);
    case 1:
      return gemm_rows<Real, 1>(columns, depth, a, b, b_stride, c, c_stride, factor, accumulate);
    default:
      return;
  }
}

}  // namespace FSAD_ISA
}  // namespace fsad
