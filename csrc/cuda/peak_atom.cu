// The search for the most correlated atom: inner products only.
#include "stream.cuh"

namespace fsad::cuda {

// Of the two rows of a lane, the largest |⟨query, atom⟩| so far and the number of its atom.
template <class Real>
struct PeakRule {
  Real best[2] = {-1, -1};
  int64_t number[2] = {0, 0};

  FSAD_HOST_DEVICE void take(int half, Real magnitude, int64_t atom) {
    if (magnitude > best[half] || (magnitude == best[half] && atom < number[half])) {
      best[half] = magnitude;
      number[half] = atom;
    }
  }

#pragma nv_exec_check_disable
  template <class Engine>
  FSAD_HOST_DEVICE void tile(Engine& e) {
    typename Engine::Codes product = {};
    e.add_products(product, 0, Atoms::values);
#pragma unroll
    for (int i = 0; i < Engine::kPerLane; ++i) {
      if (e.column(i) < e.streamed_rows())
        take(i / 2 % 2, product.v[i] < 0 ? -product.v[i] : product.v[i], e.column(i));
    }
  }
};

template <class Shape, class Real>
__device__ __forceinline__ void finish(const Skeleton<Shape>& skeleton, PeakRule<Real>& rule) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {  // over the four lanes of a row
      rule.take(half, __shfl_xor_sync(0xffffffffu, rule.best[half], distance),
                __shfl_xor_sync(0xffffffffu, rule.number[half], distance));
    }
    const int64_t row = skeleton.row(half);
    if (row < 0 || lane_index() % 4 != 0) continue;
    const auto& pass = skeleton.pass;
    const int64_t at = (skeleton.item.split * pass.band.tasks + skeleton.item.task) * pass.queries + row;
    pass.partial[at] = rule.best[half];
    pass.numbers[at] = rule.number[half];
  }
}

// The best of all splits.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    choose_peak(const __grid_constant__ StreamPass<Element> pass, int64_t* peak) {
  const int64_t count = pass.band.tasks * pass.queries, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  PeakRule<typename Computing<Element>::type> rule;
  for (int split = 0; split < pass.splits; ++split) {
    rule.take(0, pass.partial[split * count + i], pass.numbers[split * count + i]);
  }
  const int64_t task = i / pass.queries;
  peak[i] = pass.maps.index ? pass.maps.index[task * pass.atoms + rule.number[0]] : rule.number[0];
}

template <class Element>
const char* run_peak_atom(const PeakAtom<Element>& p, Workspace& workspace, Stream stream) {
  Pass<Element> pass(p, path_of(p), 1, nullptr, workspace, stream);
  if (const char* error = pass.unsupported()) return error;
  if (pass.count() == 0) return nullptr;
  pack_rows<Element>({p.tasks, p.query_map, nullptr, nullptr, nullptr, pass.layout, pass.set(0)}, stream);
  pass.template launch<Work::peak>(PeakRule<typename Computing<Element>::type>());
  const int64_t blocks = (pass.count() + kThreads - 1) / kThreads;
  choose_peak<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(pass.parameters(), p.peak);
  return launch_error();
}

template <class Element>
const char* peak_path(const PeakAtom<Element>& p) {
  return name_of(path_of(p));
}

template const char* run_peak_atom(const PeakAtom<float>&, Workspace&, Stream);
template const char* run_peak_atom(const PeakAtom<double>&, Workspace&, Stream);
template const char* run_peak_atom(const PeakAtom<Bfloat16>&, Workspace&, Stream);
template const char* run_peak_atom(const PeakAtom<Float16>&, Workspace&, Stream);
template const char* peak_path(const PeakAtom<float>&);
template const char* peak_path(const PeakAtom<double>&);
template const char* peak_path(const PeakAtom<Bfloat16>&);
template const char* peak_path(const PeakAtom<Float16>&);

}  // namespace fsad::cuda
