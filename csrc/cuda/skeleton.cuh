// The skeleton of every kernel here: stream the tiles of one side past a tile of the other.
//
// A block owns kRows rows of one side, 16 to a warp. For each tile of kColumns rows of the other side a rule
// asks for inner products of the two tiles, computes codes from them entry by entry, and asks for sums of the
// streamed rows weighted by the codes, which gather in registers.
//
//   query side: owns queries, streams atoms.     atom side: owns atoms, streams queries.
//
// Codes exist in registers; a rule may keep them in shared memory until the end of the tile (fused_rules.h),
// or store them to the workspace of a band for other kernels (band_rules.h).
#pragma once

#include "ring.cuh"

namespace fsad::cuda {

template <class Shape>
class Skeleton {
 public:
  using Element = typename Shape::Element;
  using Real = typename Computing<Element>::type;
  using Arithmetic = typename Shape::Arithmetic;
  static constexpr bool kPlain = Shape::kPlain;
  static constexpr int kPerLane = Shape::kColumns / 2;  // columns 8j + 2t, 8j + 2t + 1 of rows g, g + 8

  struct Codes {
    Real v[kPerLane];
  };

  __device__ __forceinline__ Skeleton(const StreamPass<Element>& pass, const Item& item)
      : pass(pass),
        item(item),
        tile_(split_tile(item.split)),
        ring_(pass, item, tile_, split_tile(item.split + 1)) {
#pragma unroll
    for (int c = 0; c < Shape::kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kBlocks * 4; ++i) sums_[c][i / 4][i % 4] = 0;
    }
  }

  // Runs the rule over all tiles.
  template <class Rule>
  __device__ __forceinline__ void run(Rule& rule) {
    ring_.start();
    for (; tile_ < ring_.last_tile; ++tile_) rule.tile(*this);
    copies_arrive<0>();
  }

  // ---- what rules ask for ---------------------------------------------------------------------------

  __device__ __forceinline__ const Iteration<Real>& iteration() const { return pass.iteration; }
  __device__ __forceinline__ Real step() const { return load_number(pass.step + ring_.task()); }

  // codes += inner products of rows x and atoms `of`.
  __device__ __forceinline__ void add_products(Codes& codes, int x, Atoms of) {
    const int slot = pass.plan.slot_of[Shape::kAtomSide ? int(of) : x];
#pragma unroll 1
    for (int chunk = 0; chunk < ring_.row_chunks(); ++chunk) {
      unsigned char* const streamed = ring_.next_stage();
      unsigned char* const owned = ring_.owned_tile(slot, chunk, streamed);
      const int steps = (pass.width - chunk * Shape::kPerRow) / kStepNumbers;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if (step >= steps) break;
        const auto a = Arithmetic::rows(owned, 16 * warp_index(), step);
#pragma unroll
        for (int j = 0; j < Shape::kColumns / 16; ++j) {
          typename Arithmetic::Columns b[2];
          Arithmetic::columns(b, streamed, 16 * j, step);
          multiply(codes.v + 8 * j, a, b[0]);
          multiply(codes.v + 8 * j + 4, a, b[1]);
        }
      }
    }
  }

  // Keeps codes in shared memory until the end of the tile, in place i.
  __device__ __forceinline__ void keep(int i, const Codes& codes) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) kept_vector(i, k) = reinterpret_cast<const Vector*>(codes.v)[k];
  }

  __device__ __forceinline__ Codes kept(int i) const {
    Codes codes;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) reinterpret_cast<Vector*>(codes.v)[k] = kept_vector(i, k);
    return codes;
  }

  // Adds the atoms `of` (query side), weighted by kept codes, to this block's sums. The weights are read anew
  // for every chunk: registers are short.
  __device__ __forceinline__ void add_atoms(int place, Atoms) {
    static_assert(!Shape::kAtomSide);
    add_streamed(place);
  }

  // The same with the rows x (atom side).
  __device__ __forceinline__ void add_rows(int place, int) {
    static_assert(Shape::kAtomSide);
    add_streamed(place);
  }

  // Stores codes to a place of the band's workspace (query side).
  __device__ __forceinline__ void store(int place, const Codes& codes) const {
    for_each_pair([&](int i, int64_t row, int64_t column) {
      *reinterpret_cast<Pair*>(stored(place, row, column)) = {codes.v[i], codes.v[i + 1]};
    });
  }

  // The codes in a place, with their rows on the owning side: transposed on the atom side.
  __device__ __forceinline__ Codes load(int place) const {
    Codes codes = {};
    for_each_pair([&](int i, int64_t row, int64_t column) {
      if constexpr (Shape::kAtomSide) {
        codes.v[i] = *stored(place, column, row);
        if (column + 1 < streamed_rows()) codes.v[i + 1] = *stored(place, column + 1, row);
      } else {
        const Pair pair = *reinterpret_cast<const Pair*>(stored(place, row, column));
        codes.v[i] = pair.a;
        codes.v[i + 1] = pair.b;
      }
    });
    return codes;
  }

  // ---- results --------------------------------------------------------------------------------------

  // The owned row of this lane's codes 4j + 2, 4j + 3 (half 1) or 4j, 4j + 1 (half 0), in the band; −1
  // beyond.
  __device__ __forceinline__ int64_t row(int half) const {
    const int64_t row = int64_t(item.tile) * kRows + 16 * warp_index() + lane_index() / 4 + 8 * half;
    return row < owned_rows() ? row : -1;
  }

  // The streamed row of this lane's code i.
  __device__ __forceinline__ int64_t column(int i) const {
    return int64_t(tile_) * Shape::kColumns + i / 4 * 8 + lane_index() % 4 * 2 + i % 2;
  }

  __device__ __forceinline__ int64_t streamed_rows() const {
    return Shape::kAtomSide ? pass.band.rows : pass.atoms;
  }
  __device__ __forceinline__ int64_t owned_rows() const {
    return Shape::kAtomSide ? pass.atoms : pass.band.rows;
  }

  // Writes the weighted sums to pass.partial.
  __device__ __forceinline__ void store_sums() const {
    Real* const partial =
        pass.partial + (int64_t(item.split) * pass.band.tasks + item.task) * owned_rows() * pass.width;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = row(half);
      if (at < 0) continue;
#pragma unroll
      for (int c = 0; c < Shape::kChunks; ++c) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const int column = (item.first_chunk + c) * Shape::kPerRow + 8 * block + lane_index() % 4 * 2;
          if (c >= item.chunks || column >= pass.width) continue;
          *reinterpret_cast<Pair*>(partial + at * pass.width + column) = {sums_[c][block][2 * half],
                                                                          sums_[c][block][2 * half + 1]};
        }
      }
    }
  }

  const StreamPass<Element>& pass;
  const Item item;

 private:
  static constexpr int kBlocks = Shape::kPerRow / 8;  // of eight columns in a chunk
  static constexpr int kStepNumbers = kStepBytes / sizeof(Element);
  static constexpr int kPerVector = 16 / sizeof(Real);
  static constexpr int kVectors = kPerLane / kPerVector;
  struct alignas(16) Vector {
    Real v[kPerVector];
  };
  struct alignas(2 * sizeof(Real)) Pair {
    Real a, b;
  };

  __device__ __forceinline__ Vector& kept_vector(int i, int k) const {
    Vector* const kept = reinterpret_cast<Vector*>(Ring<Shape>::shared() + pass.shared.kept_at);
    return kept[(i * kVectors + k) * kThreads + threadIdx.x];
  }

  __device__ __forceinline__ Real* stored(int place, int64_t query, int64_t atom) const {
    return pass.codes + ((place * pass.band.tasks + item.task) * pass.band.rows + query) * pass.codes_stride +
           atom;
  }

  // Calls body(i, owned row, streamed row) for the codes i and i + 1 of every pair that exists.
  template <class Body>
  __device__ __forceinline__ void for_each_pair(Body body) const {
#pragma unroll
    for (int i = 0; i < kPerLane; i += 2) {
      const int64_t owned = row(i / 2 % 2), streamed = column(i);
      if (owned >= 0 && streamed < streamed_rows()) body(i, owned, streamed);
    }
  }

  // The first tile of a split.
  __device__ __forceinline__ int split_tile(int split) const {
    const int64_t tiles = (streamed_rows() + Shape::kColumns - 1) / Shape::kColumns;
    return static_cast<int>(tiles * split / pass.splits);
  }

  template <class A, class B>
  __device__ __forceinline__ void multiply(Real* c, const A& a, const B& b) const {
    Arithmetic::multiply(*reinterpret_cast<Real(*)[4]>(c), a, b);
  }

  __device__ __forceinline__ void add_streamed(int place) {
#pragma unroll
    for (int c = 0; c < Shape::kChunks; ++c) {
      if (c >= item.chunks) break;
      unsigned char* const streamed = ring_.next_stage();
#pragma unroll
      for (int k = 0; k < Shape::kColumns; k += Arithmetic::kWeights) {
        Vector weights[Arithmetic::kWeights / 2 / kPerVector];
#pragma unroll
        for (int i = 0; i < Arithmetic::kWeights / 2 / kPerVector; ++i) {
          weights[i] = kept_vector(place, k / 2 / kPerVector + i);
        }
        const auto a = Arithmetic::weights(weights[0].v);
#pragma unroll
        for (int block = 0; block < kBlocks; block += 2) {
          typename Arithmetic::Across b[2];
          Arithmetic::across(b, streamed, k, block);
          multiply(sums_[c][block], a, b[0]);
          multiply(sums_[c][block + 1], a, b[1]);
        }
      }
    }
  }

  int tile_;
  Ring<Shape> ring_;
  Real sums_[Shape::kChunks > 0 ? Shape::kChunks : 1][kBlocks][4];
};

}  // namespace fsad::cuda
