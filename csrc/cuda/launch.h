// The CUDA kernels as torch sees them: cpu/dispatch.h's counterpart.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "istc.h"

namespace fsad::cuda {

// Each runs on the current stream of the device of `like`, a tensor of dtype Real, without waiting for it.
template <class Real>
void istc_forward(const IstcForward<Real>&, const torch::stable::Tensor& like);
template <class Real>
void istc_backward(const IstcBackward<Real>&, const torch::stable::Tensor& like);
template <class Real>
void istc_double_backward(const IstcDoubleBackward<Real>&, const torch::stable::Tensor& like);
template <class Real>
void peak_atom(const PeakAtom<Real>&, const torch::stable::Tensor& like);

}  // namespace fsad::cuda
