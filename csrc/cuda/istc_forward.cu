// Forward: r_{m+1} for m = 0 … N−1, one fused kernel a step, or two for each band of queries.
#include "fused_rules.h"
#include "pass.cuh"

namespace fsad::cuda {

template <class Element>
const char* run_forward(const IstcForward<Element>& p, Workspace& workspace, Stream stream) {
  const int steps = p.iterations;
  const Sets sets{steps};
  Pass<Element> pass(p, path_of(p, false), steps, nullptr, workspace, stream);
  if (const char* error = pass.unsupported()) return error;
  pass.set_iteration(p);
  pack_rows<Element>({p.tasks, p.query_map, p.scale, nullptr, nullptr, pass.layout, pass.set(0)}, stream);
  const auto target = [&](int m) -> Target<Element> {
    if (m == steps) return {pass.set(0), nullptr, p.residual};
    return {pass.set(0), pass.set(sets.residual(m)), p.history + (m - 1) * p.tasks * p.queries * p.width};
  };
  if (pass.path() == Path::fused) {
    if constexpr (kHasTensorPaths<Element>) {
      for (int m = 0; m < steps; ++m) pass.template sum<Work::fused_codes>(ForwardStep{m}, target(m + 1));
    }
    return launch_error();
  }
  const Places places{0, false, false};
  pass.for_each_band(places.count(), [&] {
    Chain codes([&](int m) { pass.template launch<Work::codes>(BandCodes{places, m, false}); });
    for (int m = 0; m < steps; ++m) {
      BandSums<false> sums;
      sums.add(places.code(m + 1), Factor::one, Atoms::values);
      pass.sum(sums, target(m + 1), codes, m + 1);
    }
  });
  return launch_error();
}

template <class Element>
const char* istc_path(const IstcProblem<Element>& p, bool need_atoms) {
  return name_of(path_of(p, need_atoms));
}

template const char* run_forward(const IstcForward<float>&, Workspace&, Stream);
template const char* run_forward(const IstcForward<double>&, Workspace&, Stream);
template const char* run_forward(const IstcForward<Bfloat16>&, Workspace&, Stream);
template const char* run_forward(const IstcForward<Float16>&, Workspace&, Stream);
template const char* istc_path(const IstcProblem<float>&, bool);
template const char* istc_path(const IstcProblem<double>&, bool);
template const char* istc_path(const IstcProblem<Bfloat16>&, bool);
template const char* istc_path(const IstcProblem<Float16>&, bool);

}  // namespace fsad::cuda
