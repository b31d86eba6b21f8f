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
FSAD_DECLARE_CPU_KERNELS(avx512)
#endif

// Whether this build and this processor have an instruction set. The names are those in CMakeLists.txt.
inline bool has_cpu_isa(const char* name) {
#ifdef FSAD_HAS_AVX2
  if (std::strcmp(name, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (std::strcmp(name, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
#endif
  return std::strcmp(name, "portable") == 0;
}

// The instruction set in use: the widest there is, unless FSAD_CPU_ISA in the environment names another.
// `fsad doctor` compares them; AVX-512 was the faster one on all three kinds of processor it was measured on.
inline const char* cpu_isa() {
  static const char* const chosen = [] {
    const char* usual = has_cpu_isa("avx512") ? "avx512" : has_cpu_isa("avx2") ? "avx2" : "portable";
    const char* wanted = std::getenv("FSAD_CPU_ISA");
    STD_TORCH_CHECK(
        !wanted || has_cpu_isa(wanted), "FSAD_CPU_ISA is '", wanted ? wanted : "",
        "': expected 'portable', or 'avx2' or 'avx512' where this build and the processor have them");
    return wanted ? wanted : usual;
  }();
  return chosen;
}

}  // namespace fsad

#ifdef FSAD_HAS_AVX2
#define FSAD_CPU_CALL(kernel, params)                               \
  (std::strcmp(cpu_isa(), "avx2") == 0     ? avx2::kernel(params)   \
   : std::strcmp(cpu_isa(), "avx512") == 0 ? avx512::kernel(params) \
                                           : portable::kernel(params))
#else
#define FSAD_CPU_CALL(kernel, params) portable::kernel(params)
#endif
