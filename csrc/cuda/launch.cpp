// Torch's side of the CUDA kernels: workspaces from torch's allocator, its device and its stream.
#include "launch.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "kernels.h"

// Of libtorch_cuda, which a CPU build of torch does not have: null there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace fsad::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

// The device of a tensor made current, its stream, and the memory of one pass, which may go as soon as the
// pass is enqueued: the allocator hands it on only to later work of the same stream.
class Session : public Workspace {
 public:
  explicit Session(const Tensor& like) : like_(like), guard_(like.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream,
                    "fsad: a CUDA tensor, but this torch has no CUDA streams");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<Stream>(stream);
  }

  Stream stream() const { return stream_; }

  // Torch's blocks begin at multiples of 512 bytes.
  void* allocate(size_t bytes) override {
    tensors_.push_back(torch::stable::new_empty(like_, {static_cast<int64_t>(bytes)}, ScalarType::Byte));
    return tensors_.back().mutable_data_ptr();
  }

 private:
  const Tensor& like_;
  DeviceGuard guard_;
  Stream stream_;
  std::vector<Tensor> tensors_;
};

template <class Params>
void enqueue(const char* (*run)(const Params&, Workspace&, Stream), const Params& params,
             const Tensor& like) {
  Session session(like);
  const char* const error = run(params, session, session.stream());
  STD_TORCH_CHECK(!error, "fsad: CUDA reports: ", error);
}

}  // namespace

template <class Element>
void istc_forward(const IstcForward<Element>& p, const Tensor& like) {
  enqueue(run_forward<Element>, p, like);
}

template <class Element>
void istc_backward(const IstcBackward<Element>& p, const Tensor& like) {
  enqueue(run_backward<Element>, p, like);
}

template <class Element>
void istc_double_backward(const IstcDoubleBackward<Element>& p, const Tensor& like) {
  enqueue(run_double_backward<Element>, p, like);
}

template <class Element>
void peak_atom(const PeakAtom<Element>& p, const Tensor& like) {
  enqueue(run_peak_atom<Element>, p, like);
}

template <class Element>
std::string istc_path(const IstcProblem<Element>& p, bool need_atoms, const Tensor& like) {
  const DeviceGuard guard(like.get_device_index());
  return istc_path(p, need_atoms);
}

template <class Element>
std::string peak_path(const PeakAtom<Element>& p, const Tensor& like) {
  const DeviceGuard guard(like.get_device_index());
  return peak_path(p);
}

#define FSAD_INSTANTIATE(Element)                                                        \
  template void istc_forward(const IstcForward<Element>&, const Tensor&);                \
  template void istc_backward(const IstcBackward<Element>&, const Tensor&);              \
  template void istc_double_backward(const IstcDoubleBackward<Element>&, const Tensor&); \
  template void peak_atom(const PeakAtom<Element>&, const Tensor&);                      \
  template std::string istc_path(const IstcProblem<Element>&, bool, const Tensor&);      \
  template std::string peak_path(const PeakAtom<Element>&, const Tensor&);

FSAD_INSTANTIATE(float)
FSAD_INSTANTIATE(double)
FSAD_INSTANTIATE(Bfloat16)
FSAD_INSTANTIATE(Float16)

}  // namespace fsad::cuda
