// The skeleton that every kernel here is an instance of, in its plain form: for each pair of a query and an
// atom, inner products of the atom with a few query-side vectors, a scalar rule on them, a weighted sum.
//
//   query side: a block has one query and a chunk of the columns of its result; its warps share the atoms.
//   atom side:  a block has one atom and a chunk of the columns of its gradient; its warps share the queries.
//
// The lanes of a warp lie across the columns. Every warp sums in order on its own, in shared memory, and the
// warps' sums are added in order, so that results repeat to the last bit.
#pragma once

#include "patches.cuh"

namespace fsad::cuda {

// Columns of one block, at most; 16 KiB of shared memory with all warps' sums.
template <class Real>
constexpr int64_t kChunk = 4096 / sizeof(Real);

// One block's part of the work: columns [first, first + count) of one row of results.
struct Share {
  int64_t row, first, count;
};

// Calls body(share) for all columns of all rows, each by a whole block.
template <class Real, class Body>
__device__ __forceinline__ void for_each_share(int64_t rows, int64_t width, Body body) {
  const int64_t chunks = (width + kChunk<Real> - 1) / kChunk<Real>;
  for (int64_t i = blockIdx.x; i < rows * chunks; i += gridDim.x) {
    const int64_t first = i % chunks * kChunk<Real>;
    body(Share{i / chunks, first, min(kChunk<Real>, width - first)});
    __syncthreads();  // before the next share overwrites the shared sums
  }
}

// Launches a kernel that is one for_each_share.
template <class Real, class Kernel, class... Arguments>
void launch_shares(Kernel kernel, int64_t rows, int64_t width, Stream stream, const Arguments&... arguments) {
  const int64_t chunks = (width + kChunk<Real> - 1) / kChunk<Real>;
  const size_t shared_bytes = kWarps * std::min(kChunk<Real>, width) * sizeof(Real);
  launch(kernel, rows * chunks, shared_bytes, stream, arguments...);
}

// A weighted sum of patches or of rows, for the columns of a share.
template <class Real>
class Sum {
 public:
  __device__ __forceinline__ explicit Sum(const Share& share) : share_(share) {
    extern __shared__ __align__(16) unsigned char shared_memory[];
    partial_ = reinterpret_cast<Real*>(shared_memory);
    own_ = partial_ + warp_index() * share.count;
    for (int64_t i = lane_index(); i < share.count; i += kLanes) own_[i] = 0;
    __syncwarp();
  }

  __device__ __forceinline__ void add_patch(Real weight, const PatchMap<const Real>& map,
                                            const Patch& patch) {
    visit_patch(map, patch, [&](int offset, const Real* vector) {
      if (!vector) return;
      const int64_t column = offset * map.channels - share_.first;  // of the vector's start, in the share
      const int64_t end = min(map.channels, share_.count - column);
      for (int64_t c = max(int64_t(0), -column) + lane_index(); c < end; c += kLanes) {
        own_[column + c] += weight * vector[c];
      }
    });
  }

  __device__ __forceinline__ void add_row(Real weight, const Real* row) {
    for (int64_t i = lane_index(); i < share_.count; i += kLanes) {
      own_[i] += weight * row[share_.first + i];
    }
  }

  // Calls store(column, sum over all warps) for every column of the share.
  template <class Store>
  __device__ __forceinline__ void finish(Store store) const {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < share_.count; i += kThreads) {
      Real sum = partial_[i];
      for (int warp = 1; warp < kWarps; ++warp) sum += partial_[warp * share_.count + i];
      store(share_.first + i, sum);
    }
  }

 private:
  Share share_;
  Real *partial_, *own_;  // all warps' sums; this warp's
};

// The patch that is atom number `atom` of a task. Problem is an IstcProblem or PeakAtom.
template <class Problem>
__device__ __forceinline__ Patch atom_patch(const Problem& p, int64_t task, int64_t atom) {
  return locate(p.atom_map, p.atom_index ? p.atom_index[task * p.atoms + atom] : atom);
}

// Calls body(number, patch) for the atoms of this warp.
template <class Problem, class Body>
__device__ __forceinline__ void for_each_atom(const Problem& p, int64_t task, Body body) {
  for (int64_t atom = warp_index(); atom < p.atoms; atom += kWarps) {
    body(atom, atom_patch(p, task, atom));
  }
}

// Calls body(row) for the queries of this warp, by their row in (T·n, d).
template <class Real, class Body>
__device__ __forceinline__ void for_each_query(const IstcProblem<Real>& p, int64_t task, Body body) {
  for (int64_t query = warp_index(); query < p.queries; query += kWarps) {
    body(task * p.queries + query);
  }
}

// σ, σ' and σ'' of step m.
template <class Real>
__device__ __forceinline__ Shrunk<Real> shrink_step(const IstcProblem<Real>& p, int m, Real u) {
  switch (p.shrinkage) {
    case Shrinkage::none:
      return shrink<Shrinkage::none>(u, p.lambda[m], p.tau[m]);
    case Shrinkage::soft:
      return shrink<Shrinkage::soft>(u, p.lambda[m], p.tau[m]);
    default:
      return shrink<Shrinkage::sigshrink>(u, p.lambda[m], p.tau[m]);
  }
}

// The codes of one query and one atom. Lane m keeps what belongs to step m.
template <class Real>
struct Codes {
  Real code, slope;  // α_{m+1}, σ'(u_m)
};
static_assert(kMaxIterations <= kLanes, "a warp keeps one step in each lane");

// u_m = α_m + η⟨atom, r_m⟩, α_{m+1} = σ(u_m) for m = 0 … steps − 1. residual(m) is the query's row of r_m.
template <class Real, class Residual>
__device__ __forceinline__ Codes<Real> recode(const IstcProblem<Real>& p, Real step, int steps,
                                              const PatchMap<const Real>& atoms, const Patch& atom,
                                              Residual residual) {
  Codes<Real> codes{0, 0};
  Real code = 0;
  for (int m = 0; m < steps; ++m) {
    const Shrunk<Real> shrunk = shrink_step(p, m, code + step * dot(atoms, atom, residual(m)));
    code = shrunk.value;
    if (lane_index() == m) codes = {shrunk.value, shrunk.first};
  }
  return codes;
}

}  // namespace fsad::cuda
