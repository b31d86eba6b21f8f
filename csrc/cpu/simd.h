// Vectors of the instruction set this file is compiled for, by the compiler's vector extension.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "shrinkage.h"

namespace fsad {
inline namespace FSAD_ISA {

// FSAD_VECTOR_BYTES: wider than the instruction set has, so that the compiler puts lanes together from
// narrower ones. The tests compile the AVX-512 form so.
#if defined(FSAD_VECTOR_BYTES)
constexpr int kVectorBytes = FSAD_VECTOR_BYTES;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;  // SSE2 and NEON, which every x86-64 and AArch64 has
#endif

// Rows of a block of accumulators, two vectors wide: with two vectors and a broadcast beside them, as many as
// 16 registers hold, or the 32 of AVX-512 and AArch64.
#if defined(__aarch64__)
constexpr int kBlockRows = 12;
#else
constexpr int kBlockRows = kVectorBytes == 64 ? 12 : 6;
#endif

template <class Real>
struct VectorOf;

template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Int __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23, kBias = 127, kTaylor = 7;
  static constexpr float kShift = 12582912;  // 1.5 · 2^23: adding it rounds to an integer in the low bits
  // ln 2 in two parts, the first with few enough digits that n·kLn2High is exact.
  static constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};

template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Int __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kBias = 1023, kTaylor = 13;
  static constexpr double kShift = 6755399441055744;  // 1.5 · 2^52
  static constexpr double kLog2e = 1.4426950408889634, kLn2High = 6.93147180369123816490e-01,
                          kLn2Low = 1.90821492927058770002e-10;
};

template <class Real>
using Vector = typename VectorOf<Real>::Type;

template <class Real>
constexpr int kLanes = kVectorBytes / sizeof(Real);

// A part of a vector, of so many lanes.
template <class Real, int kCount>
struct Part {
  typedef Real Type __attribute__((vector_size(kCount * sizeof(Real))));
};

// Unaligned, aliasing-safe access: one move instruction each.
template <class Real, int kCount = kLanes<Real>>
inline typename Part<Real, kCount>::Type load(const Real* source) {
  typename Part<Real, kCount>::Type value;
  __builtin_memcpy(&value, source, sizeof value);
  return value;
}

template <class Real, class Values>
inline void store(Real* target, Values value) {
  __builtin_memcpy(target, &value, sizeof value);
}

// 1/n! as a number that the compiler folds.
constexpr double inverse_factorial(int n) { return n < 2 ? 1.0 : inverse_factorial(n - 1) / n; }

// e^x for |x| ≤ 80 (float) or 700 (double): 2^n e^r with |r| ≤ ln2/2 and e^r by its Taylor series, whose
// first term left out is below 6e-9 (float) or 5e-18 (double). Error at most 2 units in the last place.
template <class Real>
inline Vector<Real> vector_exp(Vector<Real> x) {
  using Traits = VectorOf<Real>;
  using Int = typename Traits::Int;
  const Vector<Real> shifted = x * Traits::kLog2e + Traits::kShift;
  const Vector<Real> n = shifted - Traits::kShift;
  const Vector<Real> r = (x - n * Traits::kLn2High) - n * Traits::kLn2Low;
  Vector<Real> series =
      r * Real(inverse_factorial(Traits::kTaylor)) + Real(inverse_factorial(Traits::kTaylor - 1));
#pragma GCC unroll 16
  for (int term = Traits::kTaylor - 2; term >= 0; --term) series = series * r + Real(inverse_factorial(term));
  Int bits;  // n + kShift as a number: n in the low bits, and what is above is shifted out
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  const Int power = (bits + Traits::kBias) << Traits::kMantissa;
  Vector<Real> factor;
  __builtin_memcpy(&factor, &power, sizeof factor);
  return series * factor;
}

}  // namespace FSAD_ISA

template <>
struct Lanes<FSAD_ISA::Vector<float>> {
  using Scalar = float;
  static inline FSAD_ISA::Vector<float> exp(FSAD_ISA::Vector<float> x) {
    return FSAD_ISA::vector_exp<float>(x);
  }
  static inline FSAD_ISA::Vector<float> reciprocal(FSAD_ISA::Vector<float> x) {
#if defined(__AVX512F__)
    // An estimate to 14 bits and one step of Newton: to 2 units in the last place, in a third of a division.
    const FSAD_ISA::Vector<float> y = _mm512_maskz_rcp14_ps(0xffff, x);
    return y + y * (1 - x * y);
#else
    return 1 / x;
#endif
  }
};

template <>
struct Lanes<FSAD_ISA::Vector<double>> {
  using Scalar = double;
  static inline FSAD_ISA::Vector<double> exp(FSAD_ISA::Vector<double> x) {
    return FSAD_ISA::vector_exp<double>(x);
  }
  static inline FSAD_ISA::Vector<double> reciprocal(FSAD_ISA::Vector<double> x) { return 1 / x; }
};

}  // namespace fsad
