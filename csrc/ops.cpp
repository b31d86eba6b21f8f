// The operators: their schemas, and calls of the kernels. Python (fsad_ext/ops.py) adds fake kernels,
// autograd and autocast.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <type_traits>

#include "build_info.h"
#include "cpu/dispatch.h"
#include "problem.h"

#ifdef FSAD_HAS_CUDA
#include "cuda/launch.h"
#endif

namespace fsad {
namespace {

// Calls body(Real()) with the kernels' type for the dtype of the tensor, which check_maps has let pass.
template <class Body>
void with_dtype(const Tensor& tensor, Body body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float());
    case ScalarType::Double:
      return body(double());
#ifdef FSAD_HAS_CUDA
    case ScalarType::BFloat16:
      return body(Bfloat16());
    case ScalarType::Half:
      return body(Float16());
#endif
    default:
      STD_TORCH_CHECK(false, "fsad: no kernels for ", torch::headeronly::toString(tensor.scalar_type()));
  }
}

// One kernel, on the device of `like`. There are no CPU kernels for the 16-bit types.
#ifdef FSAD_HAS_CUDA
#define FSAD_CALL(kernel, Real, params, like)            \
  if ((like).is_cuda()) {                                \
    cuda::kernel(params, like);                          \
  } else if constexpr (std::is_floating_point_v<Real>) { \
    FSAD_CPU_CALL(kernel, params);                       \
  }
#else
#define FSAD_CALL(kernel, Real, params, like) FSAD_CPU_CALL(kernel, params)
#endif

// ---- operators ---------------------------------------------------------------------------------------

// The forward pass; `history` is null where no derivative will read it.
Tensor iterate(const Problem& problem, const Tensor* history) {
  Tensor residual = torch::stable::new_empty(problem.queries, problem.rows());
  with_dtype(problem.queries, [&](auto real) {
    using Real = decltype(real);
    IstcForward<Real> p;
    problem.fill(p);
    p.residual = write<Real>(residual);
    p.history = history ? write<Real>(*history) : nullptr;
    p.peak = nullptr;
    FSAD_CALL(istc_forward, Real, p, problem.queries);
  });
  return residual;
}

std::tuple<Tensor, Tensor> istc(const Tensor& queries, const Tensor& scale, const Tensor& atoms,
                                const std::optional<Tensor>& atom_index, const Tensor& step,
                                const std::vector<double>& lambdas, const std::vector<double>& taus,
                                int64_t shrinkage, int64_t receptive_field, bool allow_tf32) {
  const Problem problem{queries, scale, atoms,     atom_index,      step,
                        lambdas, taus,  shrinkage, receptive_field, allow_tf32};
  problem.check();
  Tensor history = torch::stable::new_empty(queries, problem.history());
  return {iterate(problem, &history), history};
}

Tensor istc_residual(const Tensor& queries, const Tensor& scale, const Tensor& atoms,
                     const std::optional<Tensor>& atom_index, const Tensor& step,
                     const std::vector<double>& lambdas, const std::vector<double>& taus, int64_t shrinkage,
                     int64_t receptive_field, bool allow_tf32) {
  const Problem problem{queries, scale, atoms,     atom_index,      step,
                        lambdas, taus,  shrinkage, receptive_field, allow_tf32};
  problem.check();
  if (queries.is_cpu()) return iterate(problem, nullptr);
  const Tensor history = torch::stable::new_empty(queries, problem.history());  // the kernels' working memory
  return iterate(problem, &history);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> istc_relative(const Tensor& queries, const Tensor& atoms,
                                                         const std::optional<Tensor>& atom_index,
                                                         const Tensor& step,
                                                         const std::vector<double>& lambdas,
                                                         const std::vector<double>& taus, int64_t shrinkage,
                                                         int64_t receptive_field) {
  check_maps(queries, atoms, atom_index, receptive_field);
  const int64_t positions = queries.size(1) * queries.size(2) * queries.size(3);
  // Stands for the scale, too, which is not read.
  Tensor value = torch::stable::new_empty(queries, {queries.size(0), positions});
  const Problem problem{queries, value, atoms,     atom_index,      step,
                        lambdas, taus,  shrinkage, receptive_field, false};
  problem.check();
  Tensor residual = torch::stable::new_empty(queries, problem.rows());
  Tensor history = torch::stable::new_empty(queries, problem.history());
  Tensor peak = torch::stable::new_empty(queries, sizes(value), ScalarType::Long);
  with_dtype(queries, [&](auto real) {
    using Real = decltype(real);
    if constexpr (std::is_floating_point_v<Real>) {
      IstcForward<Real> p;
      problem.fill(p);
      STD_TORCH_CHECK(p.atoms > 0, "fsad: istc_relative needs at least one atom");
      p.residual = write<Real>(residual);
      p.history = write<Real>(history);
      p.peak = write<int64_t>(peak);
      p.peak_value = write<Real>(value);
      FSAD_CPU_CALL(istc_forward, p);
    }
  });
  return {residual, history, peak, value};
}

// What the two reverse passes return of their own accord, and the parameters they share.
struct Gradients {
  Tensor queries, scale, atoms;

  Gradients(const Problem& problem, bool need_atoms)
      : queries(torch::stable::new_zeros(problem.queries, sizes(problem.queries))),
        scale(torch::stable::new_empty(problem.queries, sizes(problem.scale))),
        atoms(torch::stable::new_zeros(problem.atoms,
                                       need_atoms ? sizes(problem.atoms) : std::vector<int64_t>{0})) {}

  template <class Real>
  void fill(IstcBackward<Real>& p, const Problem& problem, const Tensor& history,
            const Tensor& grad_residual) const {
    problem.fill(p);
    p.history = read<Real>(history);
    p.grad_residual = read<Real>(grad_residual);
    p.grad_queries = write<Real>(queries);
    p.grad_scale = write<Real>(scale);
    p.grad_atoms = atoms.dim() == 5 ? write<Real>(atoms) : nullptr;
  }
};

std::tuple<Tensor, Tensor, Tensor> istc_backward(const Tensor& grad_residual, const Tensor& history,
                                                 const Tensor& queries, const Tensor& scale,
                                                 const Tensor& atoms, const std::optional<Tensor>& atom_index,
                                                 const Tensor& step, const std::vector<double>& lambdas,
                                                 const std::vector<double>& taus, int64_t shrinkage,
                                                 int64_t receptive_field, bool allow_tf32, bool need_atoms) {
  const Problem problem{queries, scale, atoms,     atom_index,      step,
                        lambdas, taus,  shrinkage, receptive_field, allow_tf32};
  problem.check();
  check_like("grad_residual", grad_residual, queries, problem.rows());
  check_like("history", history, queries, problem.history());
  const Gradients gradients(problem, need_atoms);
  with_dtype(queries, [&](auto real) {
    using Real = decltype(real);
    IstcBackward<Real> p;
    gradients.fill(p, problem, history, grad_residual);
    FSAD_CALL(istc_backward, Real, p, queries);
  });
  return {gradients.queries, gradients.scale, gradients.atoms};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> istc_double_backward(
    const Tensor& tangent_queries, const Tensor& tangent_scale, const std::optional<Tensor>& tangent_atoms,
    const std::optional<Tensor>& energy_factors, const Tensor& grad_residual, const Tensor& history,
    const Tensor& queries, const Tensor& scale, const Tensor& atoms, const std::optional<Tensor>& atom_index,
    const Tensor& step, const std::vector<double>& lambdas, const std::vector<double>& taus,
    int64_t shrinkage, int64_t receptive_field, bool allow_tf32, bool need_atoms) {
  const Problem problem{queries, scale, atoms,     atom_index,      step,
                        lambdas, taus,  shrinkage, receptive_field, allow_tf32};
  problem.check();
  STD_TORCH_CHECK(!energy_factors || queries.is_cpu(), "fsad: energy_factors are for the CPU kernels alone");
  if (energy_factors) {
    check_like("energy_factors", *energy_factors, queries, {2, scale.size(0), scale.size(1)});
  }
  check_like("grad_residual", grad_residual, queries, problem.rows());
  check_like("history", history, queries, problem.history());
  check_like("tangent_queries", tangent_queries, queries, sizes(queries));
  check_like("tangent_scale", tangent_scale, queries, sizes(scale));
  if (tangent_atoms) check_like("tangent_atoms", *tangent_atoms, queries, sizes(atoms));
  const Gradients gradients(problem, need_atoms);
  Tensor grad_grad = torch::stable::new_empty(queries, problem.rows());
  with_dtype(queries, [&](auto real) {
    using Real = decltype(real);
    IstcDoubleBackward<Real> p;
    gradients.fill(p, problem, history, grad_residual);
    p.tangent_queries = read<Real>(tangent_queries);
    p.tangent_scale = read<Real>(tangent_scale);
    p.tangent_atoms = tangent_atoms ? read<Real>(*tangent_atoms) : nullptr;
    p.energy_factors = energy_factors ? read<Real>(*energy_factors) : nullptr;
    p.grad_grad_residual = write<Real>(grad_grad);
    FSAD_CALL(istc_double_backward, Real, p, queries);
  });
  return {grad_grad, gradients.queries, gradients.scale, gradients.atoms};
}

Tensor peak_atom(const Tensor& queries, const Tensor& atoms, const std::optional<Tensor>& atom_index,
                 int64_t receptive_field) {
  check_maps(queries, atoms, atom_index, receptive_field);
  const int64_t positions = queries.size(1) * queries.size(2) * queries.size(3);
  Tensor peak = torch::stable::new_empty(queries, {queries.size(0), positions}, ScalarType::Long);
  with_dtype(queries, [&](auto real) {
    using Real = decltype(real);
    PeakAtom<Real> p;
    set_maps<Real>(p, queries, atoms, atom_index, receptive_field);
    STD_TORCH_CHECK(p.atoms > 0, "fsad: peak_atom needs at least one atom");
    p.peak = write<int64_t>(peak);
    FSAD_CALL(peak_atom, Real, p, queries);
  });
  return peak;
}

// What computes a problem: an instruction set, or what cuda/tiling.h chooses. Of no iterations: peak_atom.
std::string path(const Tensor& queries, const Tensor& atoms, const std::optional<Tensor>& atom_index,
                 int64_t iterations, int64_t receptive_field, bool need_atoms) {
  check_maps(queries, atoms, atom_index, receptive_field);
#ifdef FSAD_HAS_CUDA
  if (queries.is_cuda()) {
    std::string name;
    with_dtype(queries, [&](auto real) {
      using Real = decltype(real);
      if (iterations == 0) {
        PeakAtom<Real> p;
        set_maps<Real>(p, queries, atoms, atom_index, receptive_field);
        name = cuda::peak_path(p, queries);
      } else {
        IstcProblem<Real> p;
        set_maps<Real>(p, queries, atoms, atom_index, receptive_field);
        p.iterations = static_cast<int>(iterations);
        name = cuda::istc_path(p, need_atoms, queries);
      }
    });
    return name;
  }
#endif
  return cpu_isa();
}

std::string build_info() { return FSAD_BUILD_INFO; }

std::string cpu_instruction_set() { return cpu_isa(); }

}  // namespace
}  // namespace fsad

STABLE_TORCH_LIBRARY(fsad, m) {
  m.def("build_info() -> str");
  m.def("cpu_isa() -> str");
  m.def(
      "istc(Tensor queries, Tensor scale, Tensor atoms, Tensor? atom_index, Tensor step, "
      "float[] lambdas, float[] taus, int shrinkage, int receptive_field, bool allow_tf32) "
      "-> (Tensor, Tensor)");
  m.def(
      "istc_residual(Tensor queries, Tensor scale, Tensor atoms, Tensor? atom_index, Tensor step, "
      "float[] lambdas, float[] taus, int shrinkage, int receptive_field, bool allow_tf32) -> Tensor");
  m.def(
      "istc_backward(Tensor grad_residual, Tensor history, Tensor queries, Tensor scale, Tensor atoms, "
      "Tensor? atom_index, Tensor step, float[] lambdas, float[] taus, int shrinkage, "
      "int receptive_field, bool allow_tf32, bool need_atoms) -> (Tensor, Tensor, Tensor)");
  m.def(
      "istc_double_backward(Tensor tangent_queries, Tensor tangent_scale, Tensor? tangent_atoms, "
      "Tensor? energy_factors, Tensor grad_residual, Tensor history, Tensor queries, Tensor scale, Tensor "
      "atoms, "
      "Tensor? atom_index, Tensor step, float[] lambdas, float[] taus, int shrinkage, "
      "int receptive_field, bool allow_tf32, bool need_atoms) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "istc_relative(Tensor queries, Tensor atoms, Tensor? atom_index, Tensor step, float[] lambdas, "
      "float[] taus, int shrinkage, int receptive_field) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("peak_atom(Tensor queries, Tensor atoms, Tensor? atom_index, int receptive_field) -> Tensor");
  m.def(
      "path(Tensor queries, Tensor atoms, Tensor? atom_index, int iterations, int receptive_field, "
      "bool need_atoms) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fsad, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&fsad::build_info));
  m.impl("cpu_isa", TORCH_BOX(&fsad::cpu_instruction_set));
}

#define FSAD_REGISTER(device)                                               \
  STABLE_TORCH_LIBRARY_IMPL(fsad, device, m) {                              \
    m.impl("istc", TORCH_BOX(&fsad::istc));                                 \
    m.impl("istc_residual", TORCH_BOX(&fsad::istc_residual));               \
    m.impl("istc_backward", TORCH_BOX(&fsad::istc_backward));               \
    m.impl("istc_double_backward", TORCH_BOX(&fsad::istc_double_backward)); \
    m.impl("peak_atom", TORCH_BOX(&fsad::peak_atom));                       \
    m.impl("path", TORCH_BOX(&fsad::path));                                 \
  }

FSAD_REGISTER(CPU)
STABLE_TORCH_LIBRARY_IMPL(fsad, CPU, m) { m.impl("istc_relative", TORCH_BOX(&fsad::istc_relative)); }
#ifdef FSAD_HAS_CUDA
FSAD_REGISTER(CUDA)
#endif
