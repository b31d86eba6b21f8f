// The fused kernels of forward and backward.
#include "fused_rules.h"
#include "stream.cuh"

namespace fsad::cuda {

#define FSAD_INSTANTIATE(Element)                                             \
  template void Pass<Element>::launch<Work::fused_codes>(const ForwardStep&); \
  template void Pass<Element>::launch<Work::fused_kept>(const BackwardStep&); \
  template void Pass<Element>::launch<Work::fused_atoms>(const BackwardAtoms&);

FSAD_INSTANTIATE(float)
FSAD_INSTANTIATE(Bfloat16)
FSAD_INSTANTIATE(Float16)

}  // namespace fsad::cuda
