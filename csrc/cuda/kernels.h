// What lies between torch (launch.cpp) and the kernels (*.cu): one struct a pass, the caller's tensors and
// the workspaces beside them, and one function a pass that launches its kernels. No torch, no CUDA header.
//
// Workspaces hold query-side vectors, (T, n, d) for each step m of the iteration, and rows of patch
// gradients. No array here has n·k entries.
#pragma once

#include "istc.h"

struct CUstream_st;

namespace fsad::cuda {

using Stream = CUstream_st*;  // cudaStream_t

template <class Real>
struct ForwardPass {
  IstcForward<Real> problem;
  Real* queries;  // r_0 = z, the scaled query patches (T, n, d)

  // Row of r_m in (T·n, d), m = 0 … N.
  FSAD_HOST_DEVICE Real* residual(int m, int64_t row) const {
    const int64_t size = problem.tasks * problem.queries * problem.width;
    Real* rows = m == 0                    ? queries
                 : m == problem.iterations ? problem.residual
                                           : problem.history + (m - 1) * size;
    return rows + row * problem.width;
  }
};

template <class Real>
struct BackwardPass {
  IstcBackward<Real> problem;
  Real* queries;             // r_0 = z (T, n, d)
  Real* adjoints;            // h_0 … h_{N−1} (N, T, n, d); h_N is grad_residual
  Real* atom_rows;           // D̄ patch by patch (T, k, d); null without grad_atoms
  int64_t* row_of_position;  // (T, positions), atom_index inverted, −1 elsewhere; null without either

  // Row of r_m in (T·n, d), m = 0 … N−1.
  FSAD_HOST_DEVICE const Real* residual(int m, int64_t row) const {
    const int64_t size = problem.tasks * problem.queries * problem.width;
    return (m == 0 ? queries : problem.history + (m - 1) * size) + row * problem.width;
  }

  // Row of h_m, m = 0 … N.
  FSAD_HOST_DEVICE const Real* adjoint(int m, int64_t row) const {
    const int64_t size = problem.tasks * problem.queries * problem.width;
    return (m == problem.iterations ? problem.grad_residual : adjoints + m * size) + row * problem.width;
  }
};

// The adjoint of ṙ_m obeys the recursion of h_m (cpu/istc_double_backward.h), so `adjoints` serves both
// passes.
template <class Real>
struct DoubleBackwardPass : BackwardPass<Real> {
  const Real *tangent_queries, *tangent_scale, *tangent_atoms;  // as in IstcDoubleBackward
  Real* grad_grad_residual;                                     // ṙ_N (T, n, d)
  Real* tangents;                                               // ṙ_0 … ṙ_{N−1} (N, T, n, d)
  Real* seconds;  // r'_0 … r'_{N−1}, the adjoints of r_m (N, T, n, d); r'_N = 0

  // Row of ṙ_m, m = 0 … N.
  FSAD_HOST_DEVICE Real* tangent(int m, int64_t row) const {
    const auto& p = this->problem;
    const int64_t size = p.tasks * p.queries * p.width;
    return (m == p.iterations ? grad_grad_residual : tangents + m * size) + row * p.width;
  }

  // Row of r'_m, m = 0 … N−1.
  FSAD_HOST_DEVICE Real* second(int m, int64_t row) const {
    const auto& p = this->problem;
    return seconds + (m * p.tasks * p.queries + row) * p.width;
  }
};

template <class Real>
struct PeakPass {
  PeakAtom<Real> problem;
  Real* queries;  // the query patches (T, n, d)
};

// Each enqueues its kernels on the stream of the current device and returns at once: null, or what CUDA
// found wrong with a launch.
template <class Real>
const char* run_forward(const ForwardPass<Real>&, Stream);
template <class Real>
const char* run_backward(const BackwardPass<Real>&, Stream);
template <class Real>
const char* run_double_backward(const DoubleBackwardPass<Real>&, Stream);
template <class Real>
const char* run_peak_atom(const PeakPass<Real>&, Stream);

}  // namespace fsad::cuda
