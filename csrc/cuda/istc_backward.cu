// Backward: h_m for m = N−1 … 0, then D̄.
#include "reverse.cuh"

namespace fsad::cuda {

template <class Element>
void fused_adjoints(int steps, Pass<Element>& pass) {
  const Sets sets{steps};
  for (int m = steps - 1; m >= 0; --m) {
    pass.template sum<Work::fused_kept>(BackwardStep{m}, {nullptr, pass.set(sets.adjoint(m)), nullptr});
  }
}

template <class Element>
const char* run_backward(const IstcBackward<Element>& p, Workspace& workspace, Stream stream) {
  using Real = typename Computing<Element>::type;
  const int steps = p.iterations;
  const Sets sets{steps};
  Pass<Element> pass(p, path_of(p, p.grad_atoms != nullptr), 2 * steps + 1, nullptr, workspace, stream);
  if (const char* error = pass.unsupported()) return error;
  pass.set_iteration(p);
  load_sets(p, pass, stream);
  atom_gradient(p, pass, stream, [&](Real* rows) {
    if (pass.path() == Path::fused) {
      if constexpr (kHasTensorPaths<Element>) {
        fused_adjoints(steps, pass);
        if (rows) pass.template sum_atoms<Work::fused_atoms>(BackwardAtoms{}, rows);
      }
      return;
    }
    const Places places{steps, false, rows != nullptr};
    pass.for_each_band(places.count(), [&] {
      auto codes = adjoint_chain(steps, places, pass);
      band_adjoints(steps, places, pass, codes);
      if (!rows) return;
      BandSums<true> sums;
      for (int m = 0; m < steps; ++m) {
        sums.add(places.code(m + 1), Factor::minus_one, sets.adjoint(m + 1));
        sums.add(places.slope(m), Factor::step, sets.residual(m));
      }
      pass.sum_atoms(sums, rows, codes, 2 * steps);
    });
  });
  QueryGradient<Element> gradient{};
  gradient.adjoints = pass.set(sets.adjoint(0));
  gradient.sets = steps + 1;
  query_gradients(p, gradient, pass, stream);
  return launch_error();
}

template void fused_adjoints(int, Pass<float>&);
template void fused_adjoints(int, Pass<Bfloat16>&);
template void fused_adjoints(int, Pass<Float16>&);
template const char* run_backward(const IstcBackward<float>&, Workspace&, Stream);
template const char* run_backward(const IstcBackward<double>&, Workspace&, Stream);
template const char* run_backward(const IstcBackward<Bfloat16>&, Workspace&, Stream);
template const char* run_backward(const IstcBackward<Float16>&, Workspace&, Stream);

}  // namespace fsad::cuda
