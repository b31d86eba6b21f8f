// Forward: r_{m+1} = z − Dα_{m+1}, one launch a step.
#include "stream.cuh"

namespace fsad::cuda {

template <class Real>
__global__ void __launch_bounds__(kThreads) forward_step(const ForwardPass<Real> pass, int m) {
  const IstcProblem<Real>& p = pass.problem;
  for_each_share<Real>(p.tasks * p.queries, p.width, [&](const Share& share) {
    const int64_t task = share.row / p.queries;
    const PatchMap<const Real> atoms = task_map(p.atom_map, p.atom_map.data, task);
    Sum<Real> sum(share);
    for_each_atom(p, task, [&](int64_t, const Patch& atom) {
      const auto residual = [&](int i) { return pass.residual(i, share.row); };
      const Codes<Real> codes = recode(p, p.step[task], m + 1, atoms, atom, residual);
      sum.add_patch(from_lane(codes.code, m), atoms, atom);
    });
    const Real* query = pass.residual(0, share.row);
    Real* target = pass.residual(m + 1, share.row);
    sum.finish([&](int64_t column, Real value) { target[column] = query[column] - value; });
  });
}

template <class Real>
const char* run_forward(const ForwardPass<Real>& pass, Stream stream) {
  const IstcForward<Real>& p = pass.problem;
  pack_rows<Real>({p.tasks, p.query_map, p.scale, nullptr, nullptr, pass.queries}, stream);
  for (int m = 0; m < p.iterations; ++m) {
    launch_shares<Real>(forward_step<Real>, p.tasks * p.queries, p.width, stream, pass, m);
  }
  return launch_error();
}

template const char* run_forward(const ForwardPass<float>&, Stream);
template const char* run_forward(const ForwardPass<double>&, Stream);

}  // namespace fsad::cuda
