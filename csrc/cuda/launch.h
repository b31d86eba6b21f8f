// The CUDA kernels as torch sees them: cpu/dispatch.h's counterpart.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>

#include "istc.h"

namespace fsad::cuda {

// For float, double, Bfloat16 and Float16. Each runs on the current stream of the device of `like`, without
// waiting for it.
template <class Element>
void istc_forward(const IstcForward<Element>&, const torch::stable::Tensor& like);
template <class Element>
void istc_backward(const IstcBackward<Element>&, const torch::stable::Tensor& like);
template <class Element>
void istc_double_backward(const IstcDoubleBackward<Element>&, const torch::stable::Tensor& like);
template <class Element>
void peak_atom(const PeakAtom<Element>&, const torch::stable::Tensor& like);

// kernels.h's, on the device of `like`.
template <class Element>
std::string istc_path(const IstcProblem<Element>&, bool need_atoms, const torch::stable::Tensor& like);
template <class Element>
std::string peak_path(const PeakAtom<Element>&, const torch::stable::Tensor& like);

}  // namespace fsad::cuda
