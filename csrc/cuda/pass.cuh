// What the passes share: their workspaces, and how they call the streaming kernels.
#pragma once

#include "band_rules.h"
#include "rows.h"
#include "tiling.h"

namespace fsad::cuda {

// Where the sums of a query-side kernel go: base − sums or, without a base, sums; to a set of rows, and to
// rows without padding. Null for none.
template <class Element>
struct Target {
  const Element* base;
  Element *rows, *compact;
};

inline bool has_tensor_cores() {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major >= 8;
}

template <class Element>
RowLayout layout_of(const PatchMap<const Element>& map) {
  constexpr int kPerStep = kStepBytes / sizeof(Element);
  const int field = map.receptive_field, channels = static_cast<int>(map.channels);
  return {field * field, channels, (channels + kPerStep - 1) / kPerStep * kPerStep};
}

// Sums run over the width and the atoms, and over the queries for the atoms' gradient.
template <class Element>
Path path_of(const IstcProblem<Element>& p, bool sums_queries) {
  const int64_t queries = sums_queries ? p.queries : p.atoms;
  return choose_path<Element>(layout_of(p.query_map).width(), p.iterations,
                              std::min({p.width, p.atoms, queries}), has_tensor_cores());
}

template <class Element>
Path path_of(const PeakAtom<Element>& p) {
  return choose_path<Element>(0, 1, p.width, has_tensor_cores());
}

// Kernels that form codes, each from what those before it left: stage(0), stage(1) …
template <class Stage>
struct Chain {
  explicit Chain(Stage stage) : stage(stage) {}
  Stage stage;
  int done = 0;
};

template <class Element>
class Pass {
 public:
  using Real = typename Computing<Element>::type;

  // For an IstcProblem or PeakAtom, with room for `sets` sets of rows.
  template <class Problem>
  Pass(const Problem& p, Path path, int sets, const Element* tangent_atoms, Workspace& workspace,
       Stream stream)
      : layout(layout_of(p.query_map)),
        workspace_(workspace),
        stream_(stream),
        tasks_(p.tasks),
        atoms_(p.atoms),
        path_(path),
        window_(p.atoms) {
    int device = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&processor_bytes_, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    stream_pass_.queries = p.queries;
    stream_pass_.atoms = p.atoms;
    stream_pass_.width = layout.width();
    stream_pass_.set_size = p.tasks * p.queries * layout.width();
    stream_pass_.rows = rows_ = workspace.take<Element>(sets * stream_pass_.set_size);
    stream_pass_.maps.data[0] = padded(p, p.atom_map.data);
    stream_pass_.maps.data[1] = tangent_atoms ? padded(p, tangent_atoms) : nullptr;
    stream_pass_.maps.index = p.atom_index;
    stream_pass_.maps.task_size = p.atom_map.positions() * layout.padded;
    stream_pass_.maps.height = static_cast<int>(p.atom_map.height);
    stream_pass_.maps.width = static_cast<int>(p.atom_map.width);
    stream_pass_.maps.channels = layout.padded;
    stream_pass_.maps.receptive_field = p.atom_map.receptive_field;
    stream_pass_.band = {0, p.tasks, 0, p.queries};
  }

  void set_iteration(const IstcProblem<Element>& p) {
    stream_pass_.step = p.step;
    allow_tf32_ = p.allow_tf32;
    auto& iteration = stream_pass_.iteration;
    iteration.steps = p.iterations;
    iteration.shrinkage = p.shrinkage;
    iteration.atom_tangents = stream_pass_.maps.data[1] != nullptr;
    std::copy_n(p.lambda, p.iterations, iteration.lambda);
    std::copy_n(p.tau, p.iterations, iteration.tau);
  }

  // What is wrong with this device for this type; or null.
  const char* unsupported() const {
    if (kHasPlainPath<Element> || has_tensor_cores()) return nullptr;
    return "bfloat16 and float16 need a GPU of compute capability 8.0 or newer: use float32";
  }

  Path path() const { return path_; }

  Element* set(int i) const { return rows_ + i * stream_pass_.set_size; }
  int64_t count() const { return tasks_ * stream_pass_.queries; }
  bool has_tangents() const { return stream_pass_.iteration.atom_tangents; }
  const StreamPass<Element>& parameters() const { return stream_pass_; }
  Stream stream_handle() const { return stream_; }
  Workspace& workspace() const { return workspace_; }

  // Calls body() for every band of queries whose codes in `places` places the workspace holds, of all atoms
  // or of a window of them.
  template <class Body>
  void for_each_band(int places, Body body) {
    auto& pass = stream_pass_;
    constexpr int kSector = 8;  // codes; rows begin at sectors
    const int64_t padded_atoms = (atoms_ + kSector - 1) / kSector * kSector;
    const Portion portion = choose_portion(tasks_, pass.queries, padded_atoms, places * sizeof(Real),
                                           workspace_.limit(kMaxCodesBytes));
    const Band& first = portion.band;
    pass.codes_stride = portion.atoms;
    pass.codes = workspace_.take<Real>(places * first.tasks * first.rows * pass.codes_stride);
    window_ = std::min(portion.atoms, atoms_);
    if (!holds_all_atoms()) {
      window_sums_ = workspace_.take<Real>(first.rows * pass.width);
      if (!pass.maps.index) pass.maps.index = all_positions();
    }
    for (int64_t task = 0; task < tasks_; task += first.tasks) {
      for (int64_t row = 0; row < pass.queries; row += first.rows) {
        pass.band = {task, std::min(first.tasks, tasks_ - task), row,
                     std::min(first.rows, pass.queries - row)};
        body();
      }
    }
    pass.band = {0, tasks_, 0, pass.queries};
  }

  // The query-side sums of a rule's kernel.
  template <Work work, class Rule>
  void sum(const Rule& rule, const Target<Element>& target) {
    launch<work>(rule);
    finish(stream_pass_.partial, stream_pass_.splits, target);
  }

  // The same in a band, of codes that the first `stages` of a chain form.
  template <class Stage>
  void sum(const BandSums<false>& sums, const Target<Element>& target, Chain<Stage>& chain, int stages) {
    for_each_window([&](int64_t first) {
      form(chain, stages);
      if (holds_all_atoms()) return sum<Work::sums>(sums, target);
      launch<Work::sums>(sums);
      add_splits(stream_pass_.partial, stream_pass_.splits, stream_pass_.band.rows * stream_pass_.width,
                 first > 0, window_sums_, stream_);
    });
    if (!holds_all_atoms()) finish(window_sums_, 1, target);
  }

  // The atom-side sums of a rule's kernel, added up over bands: rows (T, k, padded width).
  template <Work work, class Rule>
  void sum_atoms(const Rule& rule, Real* rows, int64_t first_atom = 0) {
    launch<work>(rule);
    const Band& band = stream_pass_.band;
    const int width = stream_pass_.width;
    add_splits(stream_pass_.partial, stream_pass_.splits, band.tasks * stream_pass_.atoms * width,
               band.first_row > 0, rows + (band.first_task * atoms_ + first_atom) * width, stream_);
  }

  // The same in a band, of codes that the first `stages` of a chain form.
  template <class Stage>
  void sum_atoms(const BandSums<true>& sums, Real* rows, Chain<Stage>& chain, int stages) {
    for_each_window([&](int64_t first) {
      form(chain, stages);
      sum_atoms<Work::atom_sums>(sums, rows, first);
    });
  }

  // The kernel alone. Defined in stream.cuh, for the files that compile kernels.
  template <Work work, class Rule>
  void launch(const Rule& rule);

  const RowLayout layout;

 private:
  bool holds_all_atoms() const { return window_ == atoms_; }

  // Calls body(first) for every window of atoms, which for that time are all that launches see.
  template <class Body>
  void for_each_window(Body body) {
    auto& pass = stream_pass_;
    const int64_t* const index = pass.maps.index;
    int64_t first = 0;
    do {
      pass.atoms = std::min(window_, atoms_ - first);
      // Kernels look for those of task t from t · atoms on; of several windows, each has a task to itself.
      if (index) pass.maps.index = index + pass.band.first_task * (atoms_ - pass.atoms) + first;
      body(first);
      first += window_;
    } while (first < atoms_);
    pass.atoms = atoms_;
    pass.maps.index = index;
  }

  // Runs the stages that are missing: all, in a window.
  template <class Stage>
  void form(Chain<Stage>& chain, int stages) {
    for (int i = holds_all_atoms() ? chain.done : 0; i < stages; ++i) chain.stage(i);
    chain.done = stages;
  }

  void finish(const Real* partial, int splits, const Target<Element>& target) {
    finish_rows<Element>({stream_pass_.band, stream_pass_.queries, layout, partial, splits, target.base,
                          target.rows, target.compact},
                         stream_);
  }

  // An index of every position, (T, k).
  const int64_t* all_positions() {
    int64_t* const index = workspace_.take<int64_t>(tasks_ * atoms_);
    number_positions(tasks_, atoms_, index, stream_);
    return index;
  }

  // A map whose vectors are multiples of 32 bytes at addresses of whole units: the map itself, or a copy.
  template <class Problem>
  const Element* padded(const Problem& p, const Element* map) {
    if (layout.padded == layout.channels && reinterpret_cast<uintptr_t>(map) % kUnitBytes == 0) return map;
    const int64_t vectors = p.tasks * p.atom_map.positions();
    Element* const copy = workspace_.take<Element>(vectors * layout.padded);
    pad_vectors(map, vectors, layout, copy, stream_);
    return copy;
  }

  template <class Tiles, class Rule>
  void launch_tiles(const Rule& rule);

  Workspace& workspace_;
  Stream stream_;
  int64_t tasks_, atoms_;
  int processor_bytes_ = 0;
  bool allow_tf32_ = false;
  Path path_;
  StreamPass<Element> stream_pass_{};
  Element* rows_;
  int64_t partial_size_ = 0;
  int64_t window_;  // atoms whose codes the workspace holds
  Real* window_sums_ = nullptr;
};

}  // namespace fsad::cuda
