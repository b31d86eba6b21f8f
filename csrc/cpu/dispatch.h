// The CPU kernels, and the choice among the instruction sets they are compiled for.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>

#include "istc.h"

#define FSAD_DECLARE_CPU_KERNELS(isa)                         \
  namespace isa {                                             \
  template <class Real>                                       \
  void istc_forward(const IstcForward<Real>&);                \
  template <class Real>                                       \
  void istc_backward(const IstcBackward<Real>&);              \
  template <class Real>                                       \
  void istc_double_backward(const IstcDoubleBackward<Real>&); \
  template <class Real>                                       \
  void peak_atom(const PeakAtom<Real>&);                      \
  }

namespace fsad {

FSAD_DECLARE_CPU_KERNELS(portable)
#ifdef FSAD_HAS_AVX2
FSAD_DECLARE_CPU_KERNELS(avx2)
#endif

// The instruction set in use: the best that the processor has, unless FSAD_CPU_ISA in the environment names
// one, which the tests and `fsad doctor` do.
inline const char* cpu_isa() {
  static const char* const chosen = [] {
    const char* wanted = std::getenv("FSAD_CPU_ISA");
    const auto fits = [&](const char* name) { return !wanted || std::strcmp(wanted, name) == 0; };
#ifdef FSAD_HAS_AVX2
    if (fits("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    STD_TORCH_CHECK(fits("portable"), "FSAD_CPU_ISA is '", wanted,
                    "': expected 'portable', or 'avx2' where both this build and the processor have it");
    return "portable";
  }();
  return chosen;
}

}  // namespace fsad

#ifdef FSAD_HAS_AVX2
#define FSAD_CPU_CALL(kernel, params) \
  (std::strcmp(cpu_isa(), "avx2") == 0 ? avx2::kernel(params) : portable::kernel(params))
#else
#define FSAD_CPU_CALL(kernel, params) portable::kernel(params)
#endif
