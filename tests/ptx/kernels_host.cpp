// The passes of csrc/cuda as C functions over one flat struct, for tests/ptx/passes.py.
#include "cuda/kernels.h"

namespace {

struct Case {
  int64_t tasks, images, height, width, channels, receptive_field;
  int64_t atom_images, atom_height, atom_width, atoms, iterations, shrinkage;
  double lambda[fsad::kMaxIterations], tau[fsad::kMaxIterations];
  void *queries, *atom_map, *atom_index, *scale, *step;
  void *residual, *history;                                           // forward
  void *grad_residual, *grad_queries, *grad_scale, *grad_atoms;       // backward
  void *tangent_queries, *tangent_scale, *tangent_atoms, *grad_grad;  // double backward
  void* peak;
  void *rows, *adjoints, *atom_rows, *row_of_position, *tangents, *seconds;  // workspaces
};

template <class Problem, class Real>
void fill_maps(const Case& c, Problem& p) {
  const int field = static_cast<int>(c.receptive_field);
  p.tasks = c.tasks;
  p.queries = c.images * c.height * c.width;
  p.atoms = c.atoms;
  p.width = c.channels * field * field;
  p.query_map = {static_cast<const Real*>(c.queries), c.images, c.height, c.width, c.channels, field};
  p.atom_map = {
      static_cast<const Real*>(c.atom_map), c.atom_images, c.atom_height, c.atom_width, c.channels, field};
  p.atom_index = static_cast<const int64_t*>(c.atom_index);
}

template <class Real>
void fill(const Case& c, fsad::IstcProblem<Real>& p) {
  fill_maps<fsad::IstcProblem<Real>, Real>(c, p);
  p.scale = static_cast<const Real*>(c.scale);
  p.step = static_cast<const Real*>(c.step);
  p.iterations = static_cast<int>(c.iterations);
  p.shrinkage = static_cast<fsad::Shrinkage>(c.shrinkage);
  for (int m = 0; m < fsad::kMaxIterations; ++m) {
    p.lambda[m] = static_cast<Real>(c.lambda[m]);
    p.tau[m] = static_cast<Real>(c.tau[m]);
  }
}

template <class Real>
void fill_backward(const Case& c, fsad::cuda::BackwardPass<Real>& pass) {
  auto& p = pass.problem;
  fill<Real>(c, p);
  p.history = static_cast<const Real*>(c.history);
  p.grad_residual = static_cast<const Real*>(c.grad_residual);
  p.grad_queries = static_cast<Real*>(c.grad_queries);
  p.grad_scale = static_cast<Real*>(c.grad_scale);
  p.grad_atoms = static_cast<Real*>(c.grad_atoms);
  pass.queries = static_cast<Real*>(c.rows);
  pass.adjoints = static_cast<Real*>(c.adjoints);
  pass.atom_rows = static_cast<Real*>(c.atom_rows);
  pass.row_of_position = static_cast<int64_t*>(c.row_of_position);
}

template <class Real>
const char* forward(const Case& c) {
  fsad::cuda::ForwardPass<Real> pass{};
  fill<Real>(c, pass.problem);
  pass.problem.residual = static_cast<Real*>(c.residual);
  pass.problem.history = static_cast<Real*>(c.history);
  pass.queries = static_cast<Real*>(c.rows);
  return fsad::cuda::run_forward<Real>(pass, nullptr);
}

template <class Real>
const char* backward(const Case& c) {
  fsad::cuda::BackwardPass<Real> pass{};
  fill_backward(c, pass);
  return fsad::cuda::run_backward<Real>(pass, nullptr);
}

template <class Real>
const char* double_backward(const Case& c) {
  fsad::cuda::DoubleBackwardPass<Real> pass{};
  fill_backward<Real>(c, pass);
  pass.tangent_queries = static_cast<const Real*>(c.tangent_queries);
  pass.tangent_scale = static_cast<const Real*>(c.tangent_scale);
  pass.tangent_atoms = static_cast<const Real*>(c.tangent_atoms);
  pass.grad_grad_residual = static_cast<Real*>(c.grad_grad);
  pass.tangents = static_cast<Real*>(c.tangents);
  pass.seconds = static_cast<Real*>(c.seconds);
  return fsad::cuda::run_double_backward<Real>(pass, nullptr);
}

template <class Real>
const char* peak_atom(const Case& c) {
  fsad::cuda::PeakPass<Real> pass{};
  fill_maps<fsad::PeakAtom<Real>, Real>(c, pass.problem);
  pass.problem.peak = static_cast<int64_t*>(c.peak);
  pass.queries = static_cast<Real*>(c.rows);
  return fsad::cuda::run_peak_atom<Real>(pass, nullptr);
}

}  // namespace

extern "C" {

const char* forward_float(const Case* c) { return forward<float>(*c); }
const char* forward_double(const Case* c) { return forward<double>(*c); }
const char* backward_float(const Case* c) { return backward<float>(*c); }
const char* backward_double(const Case* c) { return backward<double>(*c); }
const char* double_backward_float(const Case* c) { return double_backward<float>(*c); }
const char* double_backward_double(const Case* c) { return double_backward<double>(*c); }
const char* peak_atom_float(const Case* c) { return peak_atom<float>(*c); }
const char* peak_atom_double(const Case* c) { return peak_atom<double>(*c); }

}  // extern "C"
