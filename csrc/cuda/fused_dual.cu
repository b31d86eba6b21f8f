// The fused kernels of the double backward.
#include "fused_rules.h"
#include "stream.cuh"

namespace fsad::cuda {

#define FSAD_INSTANTIATE(Element)                                            \
  template void Pass<Element>::launch<Work::fused_dual>(const TangentStep&); \
  template void Pass<Element>::launch<Work::fused_dual>(const SecondStep&);  \
  template void Pass<Element>::launch<Work::fused_dual_atoms>(const SecondAtoms&);

FSAD_INSTANTIATE(float)
FSAD_INSTANTIATE(Bfloat16)
FSAD_INSTANTIATE(Float16)

}  // namespace fsad::cuda
