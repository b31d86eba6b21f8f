// What torch hands over, checked, and as the parameter structs of the kernels. Shapes are as in istc.h.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "istc.h"

namespace fsad {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- checks ------------------------------------------------------------------------------------------

inline std::string shape(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + ")";
}

inline void check_like(const char* name, const Tensor& tensor, const Tensor& like,
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

inline std::vector<int64_t> sizes(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

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

inline void check_dtype(const Tensor& queries) {
  const ScalarType dtype = queries.scalar_type();
  const bool full = dtype == ScalarType::Float || dtype == ScalarType::Double;
  const bool half = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  STD_TORCH_CHECK(full || half, "fsad: queries must be float32, float64, bfloat16 or float16, got ",
                  torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(full || queries.is_cuda(), "fsad: queries must be float32 or float64 on the CPU, got ",
                  torch::headeronly::toString(dtype), "; convert them first");
}

inline void check_maps(const Tensor& queries, const Tensor& atoms, const std::optional<Tensor>& atom_index,
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

}  // namespace fsad
