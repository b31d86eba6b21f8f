// Backward. With h_N = G, ᾱ = 0, for m = N−1 … 0:  ᾱ −= Dᵀh_{m+1};  ū_m = ᾱ ← σ'(u_m) ᾱ;  h_m = ηDū_m.
// Then z̄ = Σ h_m and D̄ = Σ η r_m ū_mᵀ − h_{m+1} α_{m+1}ᵀ. One launch a step, then one for D̄.
#include "istc_backward.cuh"

namespace fsad::cuda {

// Calls visit(m, ū_m) for m = N−1 … last, one query and one atom. adjoint(m) is the query's row of h_m.
template <class Real, class Adjoint, class Visit>
__device__ __forceinline__ void reverse(const IstcProblem<Real>& p, int last,
                                        const PatchMap<const Real>& atoms, const Patch& atom,
                                        const Codes<Real>& codes, Adjoint adjoint, Visit visit) {
  Real bar = 0;
  for (int m = p.iterations - 1; m >= last; --m) {
    bar = from_lane(codes.slope, m) * (bar - dot(atoms, atom, adjoint(m + 1)));
    visit(m, bar);
  }
}

// h_m from h_{m+1} … h_N.
template <class Real>
__global__ void __launch_bounds__(kThreads) backward_step(const BackwardPass<Real> pass, int m) {
  const IstcProblem<Real>& p = pass.problem;
  for_each_share<Real>(p.tasks * p.queries, p.width, [&](const Share& share) {
    const int64_t task = share.row / p.queries;
    const Real step = p.step[task];
    const PatchMap<const Real> atoms = task_map(p.atom_map, p.atom_map.data, task);
    const auto residual = [&](int i) { return pass.residual(i, share.row); };
    const auto adjoint = [&](int i) { return pass.adjoint(i, share.row); };
    Sum<Real> sum(share);
    for_each_atom(p, task, [&](int64_t, const Patch& atom) {
      const Codes<Real> codes = recode(p, step, p.iterations, atoms, atom, residual);
      Real bar = 0;
      reverse(p, m, atoms, atom, codes, adjoint, [&](int, Real value) { bar = value; });
      sum.add_patch(step * bar, atoms, atom);
    });
    Real* target = pass.adjoints + (m * p.tasks * p.queries + share.row) * p.width;
    sum.finish([&](int64_t column, Real value) { target[column] = value; });
  });
}

// The rows of D̄.
template <class Real>
__global__ void __launch_bounds__(kThreads) backward_atoms(const BackwardPass<Real> pass) {
  const IstcProblem<Real>& p = pass.problem;
  for_each_share<Real>(p.tasks * p.atoms, p.width, [&](const Share& share) {
    const int64_t task = share.row / p.atoms;
    const Real step = p.step[task];
    const PatchMap<const Real> atoms = task_map(p.atom_map, p.atom_map.data, task);
    const Patch atom = atom_patch(p, task, share.row % p.atoms);
    Sum<Real> sum(share);
    for_each_query(p, task, [&](int64_t row) {
      const auto residual = [&](int i) { return pass.residual(i, row); };
      const auto adjoint = [&](int i) { return pass.adjoint(i, row); };
      const Codes<Real> codes = recode(p, step, p.iterations, atoms, atom, residual);
      reverse(p, 0, atoms, atom, codes, adjoint, [&](int m, Real bar) {
        sum.add_row(step * bar, residual(m));
        sum.add_row(-from_lane(codes.code, m), adjoint(m + 1));
      });
    });
    Real* target = pass.atom_rows + share.row * p.width;
    sum.finish([&](int64_t column, Real value) { target[column] = value; });
  });
}

// z̄ of every query, to the gradients of its patch x and scale s: z = s·x. One warp a query.
template <class Real>
__global__ void __launch_bounds__(kThreads) backward_queries(const BackwardPass<Real> pass) {
  const IstcBackward<Real>& p = pass.problem;
  for_each_warp_item(p.tasks * p.queries, [&](int64_t row) {
    const PatchMap<const Real> map = task_map(p.query_map, p.query_map.data, row / p.queries);
    const Patch patch = locate(map, row % p.queries);
    Real* target = query_rows(pass) + row * p.width;
    Real product = 0;
    visit_patch(map, patch, [&](int offset, const Real* vector) {
      if (!vector) return;
      for (int64_t c = lane_index(); c < map.channels; c += kLanes) {
        const int64_t column = offset * map.channels + c;
        Real sum = 0;
        for (int m = p.iterations; m >= 0; --m) sum += pass.adjoint(m, row)[column];
        product += sum * vector[c];
        target[column] = sum * p.scale[row];
      }
    });
    product = warp_sum(product);
    if (lane_index() == 0) p.grad_scale[row] = product;
  });
}

template <class Real>
void compute_adjoints(const BackwardPass<Real>& pass, Stream stream) {
  const IstcBackward<Real>& p = pass.problem;
  for (int m = p.iterations - 1; m >= 0; --m) {
    launch_shares<Real>(backward_step<Real>, p.tasks * p.queries, p.width, stream, pass, m);
  }
}

template <class Real>
const char* run_backward(const BackwardPass<Real>& pass, Stream stream) {
  const IstcBackward<Real>& p = pass.problem;
  pack_rows<Real>({p.tasks, p.query_map, p.scale, nullptr, nullptr, pass.queries}, stream);
  compute_adjoints(pass, stream);
  if (p.grad_atoms) {
    launch_shares<Real>(backward_atoms<Real>, p.tasks * p.atoms, p.width, stream, pass);
  }
  launch(backward_queries<Real>, warp_item_blocks(p.tasks * p.queries), 0, stream, pass);
  unpack_gradients(pass, stream);
  return launch_error();
}

template void compute_adjoints(const BackwardPass<float>&, Stream);
template void compute_adjoints(const BackwardPass<double>&, Stream);
template const char* run_backward(const BackwardPass<float>&, Stream);
template const char* run_backward(const BackwardPass<double>&, Stream);

}  // namespace fsad::cuda
