// The passes of csrc/cuda as C functions over one flat struct, for tests/ptx/passes.py.
#include <cstddef>

#include "cuda/kernels.h"

namespace {

struct Case {
  int64_t tasks, images, height, width, channels, receptive_field;
  int64_t atom_images, atom_height, atom_width, atoms, iterations, shrinkage, allow_tf32, limit_divisor;
  double lambda[fsad::kMaxIterations], tau[fsad::kMaxIterations];
  void *queries, *atom_map, *atom_index, *scale, *step;
  void *residual, *history;                                           // forward
  void *grad_residual, *grad_queries, *grad_scale, *grad_atoms;       // backward
  void *tangent_queries, *tangent_scale, *tangent_atoms, *grad_grad;  // double backward
  void* peak;
  void* (*allocate)(size_t);
};

class Memory : public fsad::cuda::Workspace {
 public:
  explicit Memory(const Case& c) : case_(c) {}
  void* allocate(size_t bytes) override { return case_.allocate(bytes); }
  int64_t limit(int64_t bytes) const override { return bytes / case_.limit_divisor; }

 private:
  const Case& case_;
};

template <class Problem, class Element>
void fill_maps(const Case& c, Problem& p) {
  const int field = static_cast<int>(c.receptive_field);
  p.tasks = c.tasks;
  p.queries = c.images * c.height * c.width;
  p.atoms = c.atoms;
  p.width = c.channels * field * field;
  p.query_map = {static_cast<const Element*>(c.queries), c.images, c.height, c.width, c.channels, field};
  p.atom_map = {
      static_cast<const Element*>(c.atom_map), c.atom_images, c.atom_height, c.atom_width, c.channels, field};
  p.atom_index = static_cast<const int64_t*>(c.atom_index);
}

template <class Element>
void fill(const Case& c, fsad::IstcProblem<Element>& p) {
  using Real = typename fsad::Computing<Element>::type;
  fill_maps<fsad::IstcProblem<Element>, Element>(c, p);
  p.scale = static_cast<const Element*>(c.scale);
  p.step = static_cast<const Element*>(c.step);
  p.iterations = static_cast<int>(c.iterations);
  p.shrinkage = static_cast<fsad::Shrinkage>(c.shrinkage);
  p.allow_tf32 = c.allow_tf32;
  for (int m = 0; m < fsad::kMaxIterations; ++m) {
    p.lambda[m] = static_cast<Real>(c.lambda[m]);
    p.tau[m] = static_cast<Real>(c.tau[m]);
  }
}

template <class Element>
void fill_backward(const Case& c, fsad::IstcBackward<Element>& p) {
  fill<Element>(c, p);
  p.history = static_cast<const Element*>(c.history);
  p.grad_residual = static_cast<const Element*>(c.grad_residual);
  p.grad_queries = static_cast<Element*>(c.grad_queries);
  p.grad_scale = static_cast<Element*>(c.grad_scale);
  p.grad_atoms = static_cast<Element*>(c.grad_atoms);
}

template <class Element>
const char* forward(const Case& c) {
  fsad::IstcForward<Element> p{};
  fill<Element>(c, p);
  p.residual = static_cast<Element*>(c.residual);
  p.history = static_cast<Element*>(c.history);
  Memory memory(c);
  return fsad::cuda::run_forward(p, memory, nullptr);
}

template <class Element>
const char* backward(const Case& c) {
  fsad::IstcBackward<Element> p{};
  fill_backward(c, p);
  Memory memory(c);
  return fsad::cuda::run_backward(p, memory, nullptr);
}

template <class Element>
const char* double_backward(const Case& c) {
  fsad::IstcDoubleBackward<Element> p{};
  fill_backward<Element>(c, p);
  p.tangent_queries = static_cast<const Element*>(c.tangent_queries);
  p.tangent_scale = static_cast<const Element*>(c.tangent_scale);
  p.tangent_atoms = static_cast<const Element*>(c.tangent_atoms);
  p.grad_grad_residual = static_cast<Element*>(c.grad_grad);
  Memory memory(c);
  return fsad::cuda::run_double_backward(p, memory, nullptr);
}

template <class Element>
const char* peak_atom(const Case& c) {
  fsad::PeakAtom<Element> p{};
  fill_maps<fsad::PeakAtom<Element>, Element>(c, p);
  p.peak = static_cast<int64_t*>(c.peak);
  Memory memory(c);
  return fsad::cuda::run_peak_atom(p, memory, nullptr);
}

template <class Element>
const char* path(const Case& c, bool need_atoms) {
  fsad::IstcForward<Element> p{};
  fill<Element>(c, p);
  return fsad::cuda::istc_path(p, need_atoms);
}

template <class Element>
const char* peak_path(const Case& c) {
  fsad::PeakAtom<Element> p{};
  fill_maps<fsad::PeakAtom<Element>, Element>(c, p);
  return fsad::cuda::peak_path(p);
}

}  // namespace

#define FSAD_EXPORT(name, Element)                                                                      \
  extern "C" const char* forward_##name(const Case* c) { return forward<Element>(*c); }                 \
  extern "C" const char* backward_##name(const Case* c) { return backward<Element>(*c); }               \
  extern "C" const char* double_backward_##name(const Case* c) { return double_backward<Element>(*c); } \
  extern "C" const char* peak_atom_##name(const Case* c) { return peak_atom<Element>(*c); }             \
  extern "C" const char* forward_path_##name(const Case* c) { return path<Element>(*c, false); }        \
  extern "C" const char* backward_path_##name(const Case* c) { return path<Element>(*c, true); }        \
  extern "C" const char* peak_path_##name(const Case* c) { return peak_path<Element>(*c); }

FSAD_EXPORT(float32, float)
FSAD_EXPORT(float64, double)
FSAD_EXPORT(bfloat16, fsad::Bfloat16)
FSAD_EXPORT(float16, fsad::Float16)
