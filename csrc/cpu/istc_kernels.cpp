// The CPU kernels of one instruction set: compiled once for each, into its own inline namespace.
#include "istc_double_backward.h"
#include "peak_atom.h"

namespace fsad {
inline namespace FSAD_ISA {

template void istc_forward(const IstcForward<float>&);
template void istc_forward(const IstcForward<double>&);
template void istc_backward(const IstcBackward<float>&);
template void istc_backward(const IstcBackward<double>&);
template void istc_double_backward(const IstcDoubleBackward<float>&);
template void istc_double_backward(const IstcDoubleBackward<double>&);
template void peak_atom(const PeakAtom<float>&);
template void peak_atom(const PeakAtom<double>&);

}  // namespace FSAD_ISA
}  // namespace fsad
