// The kernels of bands.
#include "band_rules.h"
#include "stream.cuh"

namespace fsad::cuda {

#define FSAD_INSTANTIATE(Element)                                          \
  template void Pass<Element>::launch<Work::codes>(const BandCodes&);      \
  template void Pass<Element>::launch<Work::codes>(const BandAdjoint&);    \
  template void Pass<Element>::launch<Work::codes>(const BandTangent&);    \
  template void Pass<Element>::launch<Work::codes>(const BandSecond&);     \
  template void Pass<Element>::launch<Work::sums>(const BandSums<false>&); \
  template void Pass<Element>::launch<Work::atom_sums>(const BandSums<true>&);

FSAD_INSTANTIATE(float)
FSAD_INSTANTIATE(double)
FSAD_INSTANTIATE(Bfloat16)
FSAD_INSTANTIATE(Float16)

}  // namespace fsad::cuda
