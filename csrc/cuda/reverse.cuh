// What the two reverse passes share.
#pragma once

#include "fused_rules.h"
#include "pass.cuh"

namespace fsad::cuda {

// r_0 … r_{N−1} from the queries and the history, h_N = G.
template <class Element>
void load_sets(const IstcBackward<Element>& p, const Pass<Element>& pass, Stream stream) {
  const Sets sets{p.iterations};
  pack_rows<Element>({p.tasks, p.query_map, p.scale, nullptr, nullptr, pass.layout, pass.set(0)}, stream);
  for (int m = 1; m < p.iterations; ++m) {
    const Element* const saved = p.history + (m - 1) * p.tasks * p.queries * p.width;
    import_rows(saved, pass.count(), pass.layout, pass.set(sets.residual(m)), stream);
  }
  import_rows(p.grad_residual, pass.count(), pass.layout, pass.set(sets.adjoint(p.iterations)), stream);
}

// h_{N−1} … h_0.
template <class Element>
void fused_adjoints(int steps, Pass<Element>& pass);

// The 2N stages of their codes in a band: α_1 … α_N with the slopes, then ū_{N−1} … ū_0.
template <class Element>
auto adjoint_chain(int steps, const Places& places, Pass<Element>& pass) {
  return Chain([=, &pass](int stage) {
    if (stage < steps) {
      pass.template launch<Work::codes>(BandCodes{places, stage, true});
    } else {
      pass.template launch<Work::codes>(BandAdjoint{places, 2 * steps - 1 - stage});
    }
  });
}

// The same h in a band.
template <class Element, class Stage>
void band_adjoints(int steps, const Places& places, Pass<Element>& pass, Chain<Stage>& chain) {
  const Sets sets{steps};
  for (int m = steps - 1; m >= 0; --m) {
    BandSums<false> sums;
    sums.add(places.slope(m), Factor::step, Atoms::values);
    pass.sum(sums, {nullptr, pass.set(sets.adjoint(m)), nullptr}, chain, 2 * steps - m);
  }
}

// D̄ from its rows, or its beginning: fill(rows) forms them.
template <class Element, class Fill>
void atom_gradient(const IstcBackward<Element>& p, const Pass<Element>& pass, Stream stream, Fill fill) {
  using Real = typename Computing<Element>::type;
  if (!p.grad_atoms || p.atoms == 0 || p.queries == 0) {
    fill(static_cast<Real*>(nullptr));  // without atoms or queries it stays as it came: zero
    return;
  }
  Workspace& workspace = pass.workspace();
  Real* const rows = workspace.take<Real>(p.tasks * p.atoms * pass.layout.width());
  fill(rows);
  const PatchMap<Element> map{p.grad_atoms,     p.atom_map.images,   p.atom_map.height,
                              p.atom_map.width, p.atom_map.channels, p.atom_map.receptive_field};
  int64_t* const inverse = p.atom_index ? workspace.take<int64_t>(p.tasks * map.positions()) : nullptr;
  unpack_rows<Element>({p.tasks, p.atoms, map, pass.layout, rows, p.atom_index, inverse}, stream);
}

// The gradients of queries and scale.
template <class Element>
void query_gradients(const IstcBackward<Element>& p, QueryGradient<Element> gradient,
                     const Pass<Element>& pass, Stream stream) {
  gradient.tasks = p.tasks;
  gradient.map = p.query_map;
  gradient.scale = p.scale;
  gradient.layout = pass.layout;
  gradient.rows =
      pass.workspace().template take<typename Computing<Element>::type>(pass.count() * pass.layout.width());
  gradient.grad_scale = p.grad_scale;
  query_gradient(gradient, stream);
  const PatchMap<Element> map{p.grad_queries,    p.query_map.images,   p.query_map.height,
                              p.query_map.width, p.query_map.channels, p.query_map.receptive_field};
  unpack_rows<Element>({p.tasks, p.queries, map, pass.layout, gradient.rows, nullptr, nullptr}, stream);
}

}  // namespace fsad::cuda
