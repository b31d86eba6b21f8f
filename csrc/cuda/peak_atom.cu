// The search for the most correlated atom.
#include "stream.cuh"

namespace fsad::cuda {

// One block a query; its warps share the atoms.
template <class Real>
__global__ void __launch_bounds__(kThreads) find_peak(const PeakPass<Real> pass) {
  const PeakAtom<Real>& p = pass.problem;
  __shared__ Real magnitudes[kWarps];
  __shared__ int64_t numbers[kWarps];
  for (int64_t row = blockIdx.x; row < p.tasks * p.queries; row += gridDim.x) {
    const int64_t task = row / p.queries;
    const PatchMap<const Real> atoms = task_map(p.atom_map, p.atom_map.data, task);
    Real best = -1;
    int64_t number = 0;
    for_each_atom(p, task, [&](int64_t atom, const Patch& patch) {
      const Real magnitude = fabs(dot<Real>(atoms, patch, pass.queries + row * p.width));
      if (magnitude > best) {
        best = magnitude;
        number = atom;
      }
    });
    if (lane_index() == 0) {
      magnitudes[warp_index()] = best;
      numbers[warp_index()] = number;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < kWarps; ++warp) {
        const bool equal = magnitudes[warp] == best;
        if (magnitudes[warp] > best || (equal && numbers[warp] < number)) {
          best = magnitudes[warp];
          number = numbers[warp];
        }
      }
      p.peak[row] = p.atom_index ? p.atom_index[task * p.atoms + number] : number;
    }
    __syncthreads();  // before the next query overwrites the shared results
  }
}

template <class Real>
const char* run_peak_atom(const PeakPass<Real>& pass, Stream stream) {
  const PeakAtom<Real>& p = pass.problem;
  pack_rows<Real>({p.tasks, p.query_map, nullptr, nullptr, nullptr, pass.queries}, stream);
  launch(find_peak<Real>, p.tasks * p.queries, 0, stream, pass);
  return launch_error();
}

template const char* run_peak_atom(const PeakPass<float>&, Stream);
template const char* run_peak_atom(const PeakPass<double>&, Stream);

}  // namespace fsad::cuda
