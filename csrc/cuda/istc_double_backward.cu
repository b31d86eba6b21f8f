// Double backward: the backward's adjoints h_m, the tangents ṙ_m, the second adjoints r'_m, then D̄.
#include "reverse.cuh"

namespace fsad::cuda {

// ṙ_1 … ṙ_N from ṙ_0 = ż, and r'_{N−1} … r'_0.
template <class Element>
void fused_seconds(const IstcDoubleBackward<Element>& p, Pass<Element>& pass) {
  const int steps = p.iterations;
  const Sets sets{steps};
  Element* const start = pass.set(sets.tangent(0));
  for (int m = 0; m < steps; ++m) {
    Target<Element> target{start, nullptr, p.grad_grad_residual};
    if (m + 1 < steps) target = {start, pass.set(sets.tangent(m + 1)), nullptr};
    pass.template sum<Work::fused_dual>(TangentStep{m}, target);
  }
  for (int m = steps - 1; m >= 0; --m) {
    pass.template sum<Work::fused_dual>(SecondStep{m}, {nullptr, pass.set(sets.second(m)), nullptr});
  }
}

// The 2N stages of their codes in a band: α_1, α̇_1 … α_N, α̇_N, then u'_{N−1}, u̇'_{N−1} … u'_0, u̇'_0.
template <class Element>
auto second_chain(int steps, const Places& places, Pass<Element>& pass) {
  return Chain([=, &pass](int stage) {
    if (stage < steps) {
      pass.template launch<Work::codes>(BandTangent{places, stage});
    } else {
      pass.template launch<Work::codes>(BandSecond{places, 2 * steps - 1 - stage});
    }
  });
}

// The same ṙ and r' in a band.
template <class Element, class Stage>
void band_seconds(const IstcDoubleBackward<Element>& p, const Places& places, Pass<Element>& pass,
                  Chain<Stage>& chain) {
  const int steps = p.iterations;
  const Sets sets{steps};
  Element* const start = pass.set(sets.tangent(0));
  for (int m = 0; m < steps; ++m) {
    Target<Element> target{start, nullptr, p.grad_grad_residual};
    if (m + 1 < steps) target = {start, pass.set(sets.tangent(m + 1)), nullptr};
    BandSums<false> sums;
    sums.add(places.tangent(m + 1), Factor::one, Atoms::values);
    if (pass.has_tangents()) sums.add(places.code(m + 1), Factor::one, Atoms::tangents);
    pass.sum(sums, target, chain, m + 1);
  }
  for (int m = steps - 1; m >= 0; --m) {
    BandSums<false> sums;
    sums.add(places.slope(m), Factor::step, Atoms::values);
    if (pass.has_tangents()) sums.add(places.bend(m), Factor::step, Atoms::tangents);
    pass.sum(sums, {nullptr, pass.set(sets.second(m)), nullptr}, chain, 2 * steps - m);
  }
}

template <class Element>
const char* run_double_backward(const IstcDoubleBackward<Element>& p, Workspace& workspace, Stream stream) {
  using Real = typename Computing<Element>::type;
  const int steps = p.iterations;
  const Sets sets{steps};
  Pass<Element> pass(p, path_of(p, p.grad_atoms != nullptr), 4 * steps + 1, p.tangent_atoms, workspace,
                     stream);
  if (const char* error = pass.unsupported()) return error;
  pass.set_iteration(p);
  load_sets<Element>(p, pass, stream);
  PatchMap<const Element> tangent_map = p.query_map;
  tangent_map.data = p.tangent_queries;
  Element* const start = pass.set(sets.tangent(0));
  pack_rows<Element>({p.tasks, tangent_map, p.scale, p.query_map.data, p.tangent_scale, pass.layout, start},
                     stream);
  atom_gradient<Element>(p, pass, stream, [&](Real* rows) {
    if (pass.path() == Path::fused) {
      if constexpr (kHasTensorPaths<Element>) {
        fused_adjoints(steps, pass);
        fused_seconds(p, pass);
        if (rows) pass.template sum_atoms<Work::fused_dual_atoms>(SecondAtoms{}, rows);
      }
      return;
    }
    const Places places{steps, true, rows != nullptr};
    pass.for_each_band(places.count(), [&] {
      auto adjoints = adjoint_chain(steps, places, pass);
      band_adjoints(steps, places, pass, adjoints);
      auto codes = second_chain(steps, places, pass);
      band_seconds(p, places, pass, codes);
      if (!rows) return;
      BandSums<true> sums;
      for (int m = 0; m < steps; ++m) {
        if (m + 1 < steps) sums.add(places.code(m + 1), Factor::minus_one, sets.second(m + 1));
        sums.add(places.tangent(m + 1), Factor::minus_one, sets.adjoint(m + 1));
        sums.add(places.slope(m), Factor::step, sets.residual(m));
        sums.add(places.bend(m), Factor::step, sets.tangent(m));
      }
      pass.sum_atoms(sums, rows, codes, 2 * steps);
    });
  });
  QueryGradient<Element> gradient{};
  gradient.tangent_map = p.tangent_queries;
  gradient.tangent_scale = p.tangent_scale;
  gradient.adjoints = pass.set(sets.second(0));
  gradient.sets = steps;
  gradient.tangent_adjoints = pass.set(sets.adjoint(0));
  gradient.tangent_sets = steps + 1;
  query_gradients<Element>(p, gradient, pass, stream);
  return launch_error();
}

template const char* run_double_backward(const IstcDoubleBackward<float>&, Workspace&, Stream);
template const char* run_double_backward(const IstcDoubleBackward<double>&, Workspace&, Stream);
template const char* run_double_backward(const IstcDoubleBackward<Bfloat16>&, Workspace&, Stream);
template const char* run_double_backward(const IstcDoubleBackward<Float16>&, Workspace&, Stream);

}  // namespace fsad::cuda
