// The streaming kernel and its launch, for the files that compile instances of it: fused.cu, fused_dual.cu,
// band.cu, peak_atom.cu.
#pragma once

#include "pass.cuh"

namespace fsad::cuda {

// What a kernel does after the last tile; the peak search has its own.
template <class Shape, class Rule>
__device__ __forceinline__ void finish(const Skeleton<Shape>& skeleton, const Rule&) {
  if constexpr (Shape::kChunks > 0) skeleton.store_sums();
}

// The work of this block.
template <class Shape, bool fused>
__device__ __forceinline__ Item find_item(const StreamPass<typename Shape::Element>& pass) {
  const int64_t owned = Shape::kAtomSide ? pass.atoms : pass.band.rows;
  const int tiles = static_cast<int>((owned + kRows - 1) / kRows);
  const int chunks = (pass.width + Shape::kPerRow - 1) / Shape::kPerRow;
  const int block = blockIdx.x;
  int rest = block / tiles, first = 0, last = chunks;
  if constexpr (!fused) {
    first = chunks * (rest % pass.parts) / pass.parts;
    last = chunks * (rest % pass.parts + 1) / pass.parts;
    rest /= pass.parts;
  }
  return {rest / pass.splits, block % tiles, rest % pass.splits, first, last - first};
}

// What needs tensor cores is empty where there are none: the host does not call it there.
template <class Shape, bool fused, class Rule>
__global__ void __launch_bounds__(kThreads, 2)
    stream(const __grid_constant__ StreamPass<typename Shape::Element> pass, const Rule rule) {
#if __CUDA_ARCH__ < 800
  if constexpr (!Shape::kPlain)
    return;
  else
#endif
  {
    Skeleton<Shape> skeleton(pass, find_item<Shape, fused>(pass));
    Rule own = rule;
    skeleton.run(own);
    finish(skeleton, own);
  }
}

template <class Element>
template <Work work, class Rule>
void Pass<Element>::launch(const Rule& rule) {
  if (path_ == Path::plain) {
    using Chosen = Tiles<Element, work, Products::plain>;
    if constexpr (kHasPlainPath<Element> && !Chosen::kFused) launch_tiles<Chosen>(rule);
    return;
  }
  if constexpr (std::is_same_v<Element, float>) {
    if (!allow_tf32_) return launch_tiles<Tiles<Element, work, Products::split>>(rule);
  }
  if constexpr (kHasTensorPaths<Element>) launch_tiles<Tiles<Element, work, Products::tensor>>(rule);
}

template <class Element>
template <class Tiles, class Rule>
void Pass<Element>::launch_tiles(const Rule& rule) {
  using Shape = typename Tiles::type;
  auto& pass = stream_pass_;
  Recorder<Real, Shape::kAtomSide> recorder{pass.iteration};
  Rule(rule).tile(recorder);
  pass.plan = recorder.plan;

  const int64_t owned = Shape::kAtomSide ? pass.atoms : pass.band.rows;
  const int64_t streamed = Shape::kAtomSide ? pass.band.rows : pass.atoms;
  const int row_chunks = (pass.width + Shape::kPerRow - 1) / Shape::kPerRow;
  pass.parts = Shape::kChunks > 0 ? (row_chunks + Shape::kChunks - 1) / Shape::kChunks : 1;
  const int64_t blocks = (owned + kRows - 1) / kRows * pass.parts * pass.band.tasks;
  constexpr bool kResults = Shape::kChunks > 0 || Tiles::kPeak;
  const int64_t results = pass.band.tasks * owned * (Shape::kChunks > 0 ? pass.width : 1);
  pass.splits = choose_splits(blocks, (streamed + Shape::kColumns - 1) / Shape::kColumns,
                              kResults ? results * sizeof(Real) : 0, workspace_.limit(kMaxPartialBytes));
  if (kResults && pass.splits * results > partial_size_) {
    partial_size_ = pass.splits * results;
    pass.partial = workspace_.take<Real>(partial_size_);
    if (Tiles::kPeak) pass.numbers = workspace_.take<int64_t>(partial_size_);
  }
  if (blocks == 0) return;  // CUDA refuses an empty grid

  pass.shared = place_shared<Shape>(pass.plan.slots, row_chunks, recorder.places, processor_bytes_);
  const auto kernel = fsad::cuda::stream<Shape, Tiles::kFused, Rule>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, pass.shared.bytes);
  kernel<<<static_cast<unsigned>(blocks * pass.splits), kThreads, pass.shared.bytes, stream_>>>(pass, rule);
}

}  // namespace fsad::cuda
