// The choice of paths and tiles, and why. The counts behind it are in docs/roofline.md.
#pragma once

#include "skeleton.cuh"

namespace fsad::cuda {

// ---- paths ---------------------------------------------------------------------------------------------

// fused   One kernel a step recomputes the codes from the residuals, tile by tile: no code leaves the chip.
// banded  Codes of a band of queries go to a workspace, one kernel for inner products, one for sums.
// plain   The same without tensor cores: float64, GPUs before sm_80, and short sums of float32.
enum class Path { fused, banded, plain };

inline const char* name_of(Path path) {
  return path == Path::fused ? "fused" : path == Path::banded ? "banded" : "plain";
}

// Recomputing costs N(N + 1)/2 + N products where keeping costs 2N and two passes of memory over the codes a
// step. By the counts, recomputing is the faster up to 4 steps with 16 bits, and with float32 at d = 64 for
// all passes together; with float32 at d = 152 and N = 3 keeping would be a quarter to two fifths faster.
// Memory decides there: fused, no codes are stored. Beyond 4 steps keeping is up to 2.5 times as fast.
constexpr int kFusedSteps = 4;

// A tensor core cuts off the low bits of what it adds. Over many terms that is less than the rounding of
// float32 adds up to; over few it is more, and there the tensor cores would have little to do.
constexpr int kShortSum = 48;

// The sums of a block stay in registers, 80 of a thread for 160 columns of float32, 96 for 192 of 16 bits.
template <class Element>
constexpr int kFusedChunks = sizeof(Element) == 4 ? 5 : 3;
template <class Element>
constexpr int kFusedWidth = kFusedChunks<Element> * (kRowBytes / int(sizeof(Element)));

// Nothing else is in the registers of the kernels that only sum: 160 columns of float32, 192 of 16 bits, 64
// of float64.
template <class Element>
constexpr int kBandChunks = sizeof(Element) == 4   ? 5
                            : sizeof(Element) == 2 ? 3
                                                   : 4;

template <class Element>
constexpr bool kHasTensorPaths = sizeof(Element) < 8;
template <class Element>
constexpr bool kHasPlainPath = sizeof(Element) > 2;

template <class Element>
Path choose_path(int width, int steps, int64_t shortest_sum, bool tensor_cores) {
  const bool short_sum = sizeof(Element) == 4 && shortest_sum < kShortSum;
  if (!kHasTensorPaths<Element> || !tensor_cores || short_sum) return Path::plain;
  return width <= kFusedWidth<Element> && steps <= kFusedSteps ? Path::fused : Path::banded;
}

// ---- tiles ---------------------------------------------------------------------------------------------

enum class Work {
  peak,
  fused_codes,
  fused_kept,
  fused_dual,
  fused_atoms,
  fused_dual_atoms,
  codes,
  sums,
  atom_sums
};

// A block of 4 warps owns 64 rows. It streams 64 of the other side where registers allow, else 32. Three
// stages hide the latency of copies where a block is alone on its multiprocessor; two leave room for the
// codes that the double backward keeps.
template <class Element, Work work, Products products>
struct Tiles {
  static constexpr bool kPeak = work == Work::peak;
  static constexpr bool kFused = work >= Work::fused_codes && work <= Work::fused_dual_atoms;
  static constexpr bool kAtomSide =
      work == Work::fused_atoms || work == Work::fused_dual_atoms || work == Work::atom_sums;
  static constexpr bool kSums = kFused || work == Work::sums || work == Work::atom_sums;
  static constexpr bool kWide = sizeof(Element) == 2 ? !kFused || work == Work::fused_codes : !kSums;
  static constexpr int kColumns = kWide && products != Products::plain ? 64 : 32;
  static constexpr int kStages = work == Work::fused_dual || work == Work::fused_dual_atoms ? 2 : 3;
  static constexpr int kChunks = !kSums ? 0 : kFused ? kFusedChunks<Element> : kBandChunks<Element>;
  using type = Shape<Element, products, kAtomSide, kChunks, kColumns, kStages>;
};

// Every resident owned tile is copied once instead of once a streamed tile. As many stay as leave room for
// another block of the same size on the multiprocessor.
template <class Shape>
SharedLayout place_shared(int slots, int row_chunks, int kept, int processor_bytes) {
  constexpr int kReserved = 1024;  // of every block, by the driver
  for (int resident = slots;; --resident) {
    SharedLayout layout{};
    layout.resident = resident;
    layout.stage_bytes = Shape::kStreamedBytes + (resident < slots ? kOwnedBytes : 0);
    layout.ring_at = resident * row_chunks * kOwnedBytes;
    layout.located_at = layout.ring_at + Shape::kStages * layout.stage_bytes;
    layout.kept_at = layout.located_at + Shape::kLocatedBytes;
    layout.bytes = layout.kept_at + kept * Shape::kCodesBytes;
    if (resident == 0 || 2 * (layout.bytes + kReserved) <= processor_bytes) return layout;
  }
}

// ---- splits and bands ----------------------------------------------------------------------------------

// Blocks that keep a large GPU busy: not quite three for each of 132 multiprocessors, so that the last round
// is short. The same number everywhere: a result does not depend on the GPU.
constexpr int64_t kWantedBlocks = 396;
// Workspaces beside the arrays of the size of inputs and results, 64 MiB together.
constexpr int64_t kMaxPartialBytes = 16 << 20;  // of the results of all splits, if there are several; twice
constexpr int64_t kMaxCodesBytes = 32 << 20;    // of the codes of a band

inline int choose_splits(int64_t blocks, int64_t streamed_tiles, int64_t result_bytes, int64_t max_bytes) {
  if (blocks == 0 || streamed_tiles == 0) return 1;
  const int64_t wanted = std::max<int64_t>(1, kWantedBlocks / blocks);
  const int64_t affordable = std::max<int64_t>(1, max_bytes / std::max<int64_t>(1, result_bytes));
  return static_cast<int>(std::min({wanted, streamed_tiles, affordable}));
}

// With fewer rows of a band than this, a block's 64 would be too empty.
constexpr int64_t kLeastRows = 16;
// Rows of a band of which only a window of atoms has room: every launch reads both.
constexpr int64_t kWindowRows = 4 * kRows;

// Whose codes the workspace holds at a time: a band of queries, and all atoms or a window of them.
struct Portion {
  Band band;
  int64_t atoms;
};

// The largest band: several whole tasks, or rows of one. A code takes `code_bytes` in all places together.
// Where not even a few rows of all atoms have room, the codes of a window are formed anew for every sum: that
// costs as many products as fusing, but no memory that grows with the atoms.
inline Portion choose_portion(int64_t tasks, int64_t queries, int64_t atoms, int64_t code_bytes,
                              int64_t max_bytes) {
  const int64_t rows = max_bytes / (code_bytes * std::max<int64_t>(1, atoms));
  if (rows >= queries && rows > 0) {
    return {{0, std::min(tasks, rows / std::max<int64_t>(1, queries)), 0, queries}, atoms};
  }
  if (rows >= kLeastRows) return {{0, 1, 0, rows >= kRows ? rows / kRows * kRows : rows}, atoms};
  const int64_t band = std::clamp<int64_t>(queries, 1, kWindowRows);
  return {{0, 1, 0, band}, std::max<int64_t>(1, max_bytes / (code_bytes * band * kRows)) * kRows};
}

}  // namespace fsad::cuda
