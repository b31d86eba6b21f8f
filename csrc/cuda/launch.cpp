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

// The device of a tensor made current, its stream, and workspaces that live as long as this does: the
// allocator hands their memory on only to later work of the same stream.
class Session {
 public:
  explicit Session(const Tensor& like) : like_(like), guard_(like.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream,
                    "fsad: a CUDA tensor, but this torch has no CUDA streams");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<Stream>(stream);
  }

  Stream stream() const { return stream_; }

  template <class Real>
  Real* space(int64_t count) {
    return static_cast<Real*>(keep(torch::stable::new_empty(like_, {count})));
  }

  int64_t* index_space(int64_t count) {
    return static_cast<int64_t*>(keep(torch::stable::new_empty(like_, {count}, ScalarType::Long)));
  }

 private:
  void* keep(Tensor tensor) {
    workspaces_.push_back(tensor);
    return tensor.mutable_data_ptr();
  }

  const Tensor& like_;
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_;
  std::vector<Tensor> workspaces_;
};

void check(const char* error) { STD_TORCH_CHECK(!error, "fsad: CUDA reports: ", error); }

template <class Problem>
int64_t rows_size(const Problem& p) {
  return p.tasks * p.queries * p.width;
}

// The workspaces that both reverse passes use.
template <class Real>
void allocate(Session& session, const IstcBackward<Real>& p, BackwardPass<Real>& pass) {
  pass.problem = p;
  pass.queries = session.space<Real>(rows_size(p));
  pass.adjoints = session.space<Real>(p.iterations * rows_size(p));
  pass.atom_rows = p.grad_atoms ? session.space<Real>(p.tasks * p.atoms * p.width) : nullptr;
  pass.row_of_position =
      p.grad_atoms && p.atom_index ? session.index_space(p.tasks * p.atom_map.positions()) : nullptr;
}

}  // namespace

template <class Real>
void istc_forward(const IstcForward<Real>& p, const Tensor& like) {
  Session session(like);
  check(run_forward<Real>({p, session.space<Real>(rows_size(p))}, session.stream()));
}

template <class Real>
void istc_backward(const IstcBackward<Real>& p, const Tensor& like) {
  Session session(like);
  BackwardPass<Real> pass;
  allocate(session, p, pass);
  check(run_backward(pass, session.stream()));
}

template <class Real>
void istc_double_backward(const IstcDoubleBackward<Real>& p, const Tensor& like) {
  Session session(like);
  DoubleBackwardPass<Real> pass;
  allocate<Real>(session, p, pass);
  pass.tangent_queries = p.tangent_queries;
  pass.tangent_scale = p.tangent_scale;
  pass.tangent_atoms = p.tangent_atoms;
  pass.grad_grad_residual = p.grad_grad_residual;
  pass.tangents = session.space<Real>(p.iterations * rows_size(p));
  pass.seconds = session.space<Real>(p.iterations * rows_size(p));
  check(run_double_backward(pass, session.stream()));
}

template <class Real>
void peak_atom(const PeakAtom<Real>& p, const Tensor& like) {
  Session session(like);
  check(run_peak_atom<Real>({p, session.space<Real>(rows_size(p))}, session.stream()));
}

template void istc_forward(const IstcForward<float>&, const Tensor&);
template void istc_forward(const IstcForward<double>&, const Tensor&);
template void istc_backward(const IstcBackward<float>&, const Tensor&);
template void istc_backward(const IstcBackward<double>&, const Tensor&);
template void istc_double_backward(const IstcDoubleBackward<float>&, const Tensor&);
template void istc_double_backward(const IstcDoubleBackward<double>&, const Tensor&);
template void peak_atom(const PeakAtom<float>&, const Tensor&);
template void peak_atom(const PeakAtom<double>&, const Tensor&);

}  // namespace fsad::cuda
