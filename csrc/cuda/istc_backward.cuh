// The parts of the backward that the double backward uses as well.
#pragma once

#include "stream.cuh"

namespace fsad::cuda {

// h_m for m = N−1 … 0, into pass.adjoints.
template <class Real>
void compute_adjoints(const BackwardPass<Real>& pass, Stream stream);

// Where a pass leaves the gradients of the query patches (T, n, d): in the place of h_0, which nothing but
// their own computation reads.
template <class Real>
FSAD_HOST_DEVICE Real* query_rows(const BackwardPass<Real>& pass) {
  return pass.adjoints;
}

// Rows of gradients to the gradients of the maps.
template <class Real>
void unpack_gradients(const BackwardPass<Real>& pass, Stream stream) {
  const IstcBackward<Real>& p = pass.problem;
  unpack_rows<Real>(
      {p.tasks, p.queries, writable(p.query_map, p.grad_queries), query_rows(pass), nullptr, nullptr},
      stream);
  if (p.grad_atoms && p.atoms > 0) {  // without atoms it stays as it came: zero
    unpack_rows<Real>({p.tasks, p.atoms, writable(p.atom_map, p.grad_atoms), pass.atom_rows, p.atom_index,
                       pass.row_of_position},
                      stream);
  }
}

}  // namespace fsad::cuda
