// What lies between torch (launch.cpp) and the kernels (*.cu): one function a pass, which takes the caller's
// tensors and launches its kernels. No torch, no CUDA header.
#pragma once

#include <cstddef>

#include "istc.h"

struct CUstream_st;

namespace fsad::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Device memory for the time of a pass, aligned to 256 bytes.
class Workspace {
 public:
  virtual ~Workspace() = default;
  virtual void* allocate(size_t bytes) = 0;
  // How much may be taken of a bound in tiling.h; tests lower it.
  virtual int64_t limit(int64_t bytes) const { return bytes; }

  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(allocate(count * sizeof(T)));
  }
};

// Each enqueues its kernels on the stream of the current device and returns at once: null, or what was wrong.
template <class Element>
const char* run_forward(const IstcForward<Element>&, Workspace&, Stream);
template <class Element>
const char* run_backward(const IstcBackward<Element>&, Workspace&, Stream);
template <class Element>
const char* run_double_backward(const IstcDoubleBackward<Element>&, Workspace&, Stream);
template <class Element>
const char* run_peak_atom(const PeakAtom<Element>&, Workspace&, Stream);

// How the current device would compute it: "fused", "banded" or "plain", see tiling.h. The forward and passes
// without a gradient of the atoms do not `need_atoms`.
template <class Element>
const char* istc_path(const IstcProblem<Element>&, bool need_atoms);
template <class Element>
const char* peak_path(const PeakAtom<Element>&);

}  // namespace fsad::cuda
