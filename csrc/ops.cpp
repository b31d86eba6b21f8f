// The operators: schemas, checks of what torch hands over, and the parameter structs of the kernels.
//
// Shapes are as in istc.h. Python (fsad_ext/ops.py) adds fake kernels, autograd and autocast.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "build_info.h"
#include "cpu/dispatch.h"
#include "istc.h"

#ifdef FSAD_HAS_CUDA
#include "cuda/launch.h"
#endif

namespace fsad {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- checks ------------------------------------------------------------------------------------------

std::string shape(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + ")";
}

void check_like(const char* name, const Tensor& tensor, const Tensor& like,
                const std::vector<int64_t>& sizes) {
  std::string expected = "(";
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    fits = fits && tensor.size(i) == sizes[i];
    expected += (i ? ", " : "") + std::to_string(sizes[i]);
  }
  STD_TORCH_CHECK(fits, "fsad: ", name, " must have the shape ", expected, "), got ", shape(tensor));
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "fsad: ", name,
                  " must have the dtype of the queries");
  STD_TORCH_CHECK(tensor.device() == like.device(), "fsad: ", name, " must be on the device of the queries");
  STD_TORCH_CHECK(tensor.is_contiguous(), "fsad: ", name, " must be contiguous");
}

std::vector<int64_t> sizes(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

// ---- parameter structs -------------------------------------------------------------------------------

template <class Real>
const Real* read(const Tensor& tensor) {
  return static_cast<const Real*>(tensor.const_data_ptr());
}

template <class Real>
Real* write(const Tensor& tensor) {
  return static_cast<Real*>(tensor.mutable_data_ptr());
}

template <class Real>
PatchMap<const Real> patch_map(const Tensor& maps, int64_t receptive_field) {
  return {read<Real>(maps), maps.size(1), maps.size(2),
          maps.size(3),     maps.size(4), static_cast<int>(receptive_field)};
}

// What the four operators share; Params is an IstcProblem or PeakAtom.
template <class Real, class Params>
void set_maps(Params& p, const Tensor& queries, const Tensor& atoms, const std::optional<Tensor>& atom_index,
              int64_t receptive_field) {
  p.query_map = patch_map<Real>(queries, receptive_field);
  p.atom_map = patch_map<Real>(atoms, receptive_field);
  p.tasks = queries.size(0);
  p.queries = p.query_map.positions();
  p.atoms = atom_index ? atom_index->size(1) : p.atom_map.positions();
  p.width = queries.size(4) * receptive_field * receptive_field;
  p.atom_index = atom_index ? read<int64_t>(*atom_index) : nullptr;
}

void check_dtype(const Tensor& queries) {
  const ScalarType dtype = queries.scalar_type();
  const bool full = dtype == ScalarType::Float || dtype == ScalarType::Double;
  const bool half = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  STD_TORCH_CHECK(full || half, "fsad: queries must be float32, float64, bfloat16 or float16, got ",
                  torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(full || queries.is_cuda(), "fsad: queries must be float32 or float64 on the CPU, got ",
                  torch::headeronly::toString(dtype), "; convert them first");
}

void check_maps(const Tensor& queries, const Tensor& atoms, const std::optional<Tensor>& atom_index,
                int64_t receptive_field) {
  STD_TORCH_CHECK(queries.dim() == 5, "fsad: queries must be (T, B, h, w, c), got ", shape(queries));
  check_dtype(queries);
  STD_TORCH_CHECK(atoms.dim() == 5 && atoms.size(0) == queries.size(0) && atoms.size(4) == queries.size(4),
                  "fsad: atoms must be (T, K, H, W, c) with the T and c of queries ", shape(queries),
                  ", got ", shape(atoms));
  check_like("queries", queries, queries, sizes(queries));
  check_like("atoms", atoms, queries, sizes(atoms));
  STD_TORCH_CHECK(receptive_field > 0 && receptive_field % 2 == 1,
                  "fsad: receptive_field must be odd and positive, got ", receptive_field);
  if (atom_index) {
    STD_TORCH_CHECK(
        atom_index->dim() == 2 && atom_index->size(0) == queries.size(0) && atom_index->size(1) > 0 &&
            atom_index->scalar_type() == ScalarType::Long && atom_index->is_contiguous() &&
            atom_index->device() == queries.device(),
        "fsad: atom_index must be contiguous int64 (T, k) with k > 0 on the device of the queries, got ",
        shape(*atom_index));
    if (!queries.is_cuda()) {  // reading it on a GPU would synchronise
      const int64_t positions = atoms.size(1) * atoms.size(2) * atoms.size(3);
      const int64_t* index = read<int64_t>(*atom_index);
      for (int64_t i = 0; i < atom_index->numel(); ++i) {
        STD_TORCH_CHECK(index[i] >= 0 && index[i] < positions, "fsad: atom_index holds ", index[i],
                        ", but there are ", positions, " positions");
      }
    }
  }
}

// The tensors and settings that all passes of the iteration take.
struct Problem {
  const Tensor &queries, &scale, &atoms;
  const std::optional<Tensor>& atom_index;
  const Tensor& step;
  const std::vector<double>&lambdas, &taus;
  int64_t shrinkage, receptive_field;
  bool allow_tf32;  // of no effect on the CPU, whose float32 is float32

  int64_t positions() const { return queries.size(1) * queries.size(2) * queries.size(3); }
  int64_t width() const { return queries.size(4) * receptive_field * receptive_field; }
  std::vector<int64_t> rows() const { return {queries.size(0), positions(), width()}; }
  std::vector<int64_t> history() const {
    return {static_cast<int64_t>(lambdas.size()) - 1, queries.size(0), positions(), width()};
  }

  void check() const {
    check_maps(queries, atoms, atom_index, receptive_field);
    check_like("scale", scale, queries, {queries.size(0), positions()});
    check_like("step", step, queries, {queries.size(0)});
    STD_TORCH_CHECK(!lambdas.empty() && lambdas.size() <= kMaxIterations && lambdas.size() == taus.size(),
                    "fsad: lambdas and taus must have one value a step, 1 to ", kMaxIterations, ", got ",
                    lambdas.size(), " and ", taus.size());
    STD_TORCH_CHECK(shrinkage >= 0 && shrinkage <= 2,
                    "fsad: shrinkage must be 0 (none), 1 (soft) or 2 (SigShrink), got ", shrinkage);
  }

  template <class Real>
  void fill(IstcProblem<Real>& p) const {
    set_maps<Real>(p, queries, atoms, atom_index, receptive_field);
    p.scale = read<Real>(scale);
    p.step = read<Real>(step);
    p.iterations = static_cast<int>(lambdas.size());
    p.shrinkage = static_cast<Shrinkage>(shrinkage);
    p.allow_tf32 = allow_tf32;
    for (int m = 0; m < p.iterations; ++m) {
      p.lambda[m] = static_cast<typename Computing<Real>::type>(lambdas[m]);
      p.tau[m] = static_cast<typename Computing<Real>::type>(taus[m]);
    }
  }
};

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

std::tuple<Tensor, Tensor> istc(const Tensor& queries, const Tensor& scale, const Tensor& atoms,
                                const std::optional<Tensor>& atom_index, const Tensor& step,
                                const std::vector<double>& lambdas, const std::vector<double>& taus,
                                int64_t shrinkage, int64_t receptive_field, bool allow_tf32) {
  const Problem problem{queries, scale, atoms,     atom_index,      step,
                        lambdas, taus,  shrinkage, receptive_field, allow_tf32};
  problem.check();
  Tensor residual = torch::stable::new_empty(queries, problem.rows());
  Tensor history = torch::stable::new_empty(queries, problem.history());
  with_dtype(queries, [&](auto real) {
    using Real = decltype(real);
    IstcForward<Real> p;
    problem.fill(p);
    p.residual = write<Real>(residual);
    p.history = write<Real>(history);
    p.peak = nullptr;
    FSAD_CALL(istc_forward, Real, p, queries);
  });
  return {residual, history};
}

std::tuple<Tensor, Tensor, Tensor> istc_relative(const Tensor& queries, const Tensor& atoms,
                                                 const std::optional<Tensor>& atom_index, const Tensor& step,
                                                 const std::vector<double>& lambdas,
                                                 const std::vector<double>& taus, int64_t shrinkage,
                                                 int64_t receptive_field) {
  check_maps(queries, atoms, atom_index, receptive_field);
  const int64_t positions = queries.size(1) * queries.size(2) * queries.size(3);
  const Tensor scale = torch::stable::new_empty(queries, {queries.size(0), positions});  // not read
  const Problem problem{queries, scale, atoms,     atom_index,      step,
                        lambdas, taus,  shrinkage, receptive_field, false};
  problem.check();
  Tensor residual = torch::stable::new_empty(queries, problem.rows());
  Tensor history = torch::stable::new_empty(queries, problem.history());
  Tensor peak = torch::stable::new_empty(queries, sizes(scale), ScalarType::Long);
  with_dtype(queries, [&](auto real) {
    using Real = decltype(real);
    if constexpr (std::is_floating_point_v<Real>) {
      IstcForward<Real> p;
      problem.fill(p);
      STD_TORCH_CHECK(p.atoms > 0, "fsad: istc_relative needs at least one atom");
      p.residual = write<Real>(residual);
      p.history = write<Real>(history);
      p.peak = write<int64_t>(peak);
      FSAD_CPU_CALL(istc_forward, p);
    }
  });
  return {residual, history, peak};
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
      "float[] taus, int shrinkage, int receptive_field) -> (Tensor, Tensor, Tensor)");
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
