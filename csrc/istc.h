// What the operators hand to the kernels, CPU and CUDA alike: plain structs, passed by value.
//
// Queries and atoms are the l×l patches of channels-last maps, (tasks, images, height, width, channels),
// zero-padded; a patch is l² vectors of c channels, d = c·l² numbers, never stored as such in the
// caller's memory. Patches are named by their flat position in images·height·width.
#pragma once

#include <cstdint>

#include "shrinkage.h"

namespace fsad {

constexpr int kMaxIterations = 32;  // functional.MAX_ITERATIONS

// Numbers that are only stored: kernels compute with them in float.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class Element>
struct Computing {
  using type = float;
};
template <>
struct Computing<double> {
  using type = double;
};

template <class Real>
struct PatchMap {
  Real* data;
  int64_t images, height, width, channels;
  int receptive_field;

  FSAD_HOST_DEVICE int64_t positions() const { return images * height * width; }
  FSAD_HOST_DEVICE int64_t task_size() const { return positions() * channels; }
};

// Equation 6: r_0 = z, u_m = α_m + ηDᵀr_m, α_{m+1} = σ(u_m, λ_m), r_{m+1} = z − Dα_{m+1}.
// `history` holds r_1 … r_{N−1}; the codes are recomputed from it wherever they are needed.
template <class Real>
struct IstcProblem {
  int64_t tasks, queries, atoms, width;  // T, n, k, d
  PatchMap<const Real> query_map, atom_map;
  const int64_t* atom_index;  // (T, k) positions of the atoms, distinct in each task; null for all
  const Real* scale;          // (T, n), the factor on every query patch
  const Real* step;           // (T), η
  int iterations;             // N
  Shrinkage shrinkage;
  bool allow_tf32;  // CUDA, float32: products of operands rounded to TF32
  typename Computing<Real>::type lambda[kMaxIterations], tau[kMaxIterations];
};

template <class Real>
struct IstcForward : IstcProblem<Real> {
  Real* residual;  // r_N (T, n, d)
  Real* history;   // (N−1, T, n, d)
  // Relative thresholds: for every query patch the position of the atom with the largest |⟨query, atom⟩|, of
  // which the kernel makes the scale, 1 / (η|⟨query, atom⟩|). Null: the scale is given. CPU alone.
  int64_t* peak;     // (T, n)
  Real* peak_value;  // (T, n): η|⟨query, atom⟩|, or 1 where that is 0; with `peak`
};

// With G the gradient of r_N: ∂⟨G, r_N⟩.
template <class Real>
struct IstcBackward : IstcProblem<Real> {
  const Real* history;
  const Real* grad_residual;  // G (T, n, d)
  Real* grad_queries;         // as query_map
  Real* grad_scale;           // (T, n)
  Real* grad_atoms;           // as atom_map, zeroed; or null if not wanted
};

// With v the cotangents of the backward's results: ∂⟨v, (z̄, s̄, D̄)⟩, the reverse pass over the iteration
// on dual numbers whose tangents are v.
template <class Real>
struct IstcDoubleBackward : IstcBackward<Real> {
  const Real* tangent_queries;  // as query_map
  const Real* tangent_scale;    // (T, n)
  const Real* tangent_atoms;    // as atom_map, or null for zero
  const Real* energy_factors;   // (2, T, n), w and κ: r_N gets the adjoint w·ṙ_N + κ·G; or null; CPU alone
  Real* grad_grad_residual;     // (T, n, d)
};

// For every query patch the position of the atom with the largest |⟨query, atom⟩|; the first if several.
template <class Real>
struct PeakAtom {
  int64_t tasks, queries, atoms, width;
  PatchMap<const Real> query_map, atom_map;
  const int64_t* atom_index;
  int64_t* peak;  // (T, n)
};

}  // namespace fsad
