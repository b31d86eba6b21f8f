// How operands reach shared memory.
//
// The owned tiles stay there where they fit. The rest passes through a ring of stages, filled by asynchronous
// copies that run kStages − 1 chunks ahead, straight from the maps: Im2Col is in the addresses, and padding,
// and rows and columns beyond the end, arrive as zeros, whose codes are zeros. Which chunk is next is known
// from the plan, the rule's own list of what it will ask for.
#pragma once

#include "arithmetic.cuh"
#include "streams.h"

namespace fsad::cuda {

constexpr int kRows = 16 * kWarps;
constexpr int kOwnedBytes = kRows * kRowBytes;  // of a chunk

// Sides, widths and depths of a kernel's tiles; tiling.h has the instances.
template <class Element_, Products products, bool atom_side, int chunks, int columns, int stages>
struct Shape {
  using Element = Element_;
  using Arithmetic = typename ArithmeticOf<Element, products>::type;
  static constexpr bool kPlain = products == Products::plain;
  static constexpr bool kAtomSide = atom_side;
  static constexpr int kChunks = chunks;    // of columns of the weighted sums that a block forms
  static constexpr int kColumns = columns;  // rows of the streamed side in a tile
  static constexpr int kStages = stages;
  static constexpr int kPerRow = kRowBytes / sizeof(Element);  // numbers in a row of a chunk
  static constexpr int kStreamedBytes = kColumns * kRowBytes;
  // Three coordinates of every row of atoms, for each of the eight threads that copy it.
  static constexpr int kLocatedBytes = 3 * kUnits * (kAtomSide ? kRows : kColumns) * int(sizeof(int));
  static constexpr int kCodesBytes = kRows * kColumns * sizeof(typename Computing<Element>::type);
};

// One block's part of the work.
struct Item {
  int task, tile, split;    // in the band; of the owning side; of the streamed side
  int first_chunk, chunks;  // of the sums
};

template <class Shape>
class Ring {
 public:
  using Element = typename Shape::Element;

  __device__ __forceinline__ Ring(const StreamPass<Element>& pass, const Item& item, int first_tile,
                                  int last_tile)
      : pass(pass), item(item), last_tile(last_tile), tile_(first_tile) {}

  // Starts the copies of the owned tiles that stay, and of the first stages.
  __device__ __forceinline__ void start() {
    locate(Shape::kAtomSide ? item.tile : tile_);
    for (int slot = 0; slot < pass.shared.resident; ++slot) {
      for (int chunk = 0; chunk < row_chunks(); ++chunk) {
        copy_owned(resident_tile(slot, chunk), pass.plan.matrix_in[slot], chunk);
      }
    }
    commit_copies();
#pragma unroll
    for (int i = 0; i < Shape::kStages - 1; ++i) load_next(i);
  }

  // Waits for the next stage, in the order of the plan, and sends for a later one into the stage that all
  // warps have left.
  __device__ __forceinline__ unsigned char* next_stage() {
    copies_arrive<Shape::kStages - 2>();
    __syncthreads();
    load_next(stage_ == 0 ? Shape::kStages - 1 : stage_ - 1);
    unsigned char* const current = stage(stage_);
    stage_ = stage_ + 1 == Shape::kStages ? 0 : stage_ + 1;
    return current;
  }

  // The chunk of owned tile `slot` that goes with a stage.
  __device__ __forceinline__ unsigned char* owned_tile(int slot, int chunk, unsigned char* stage) const {
    return slot < pass.shared.resident ? resident_tile(slot, chunk) : stage + Shape::kStreamedBytes;
  }

  static __device__ __forceinline__ unsigned char* shared() {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    return shared_memory;
  }

  __device__ __forceinline__ int64_t task() const { return pass.band.first_task + item.task; }
  __device__ __forceinline__ int row_chunks() const {
    return (pass.width + Shape::kPerRow - 1) / Shape::kPerRow;
  }

  const StreamPass<Element>& pass;
  const Item item;
  const int last_tile;

 private:
  static constexpr int kPerUnit = kUnitBytes / sizeof(Element);
  static constexpr int kCopyRows = kThreads / kUnits;  // rows that the block copies at a time
  static constexpr int kAtomRows = Shape::kAtomSide ? kRows : Shape::kColumns;

  __device__ __forceinline__ unsigned char* resident_tile(int slot, int chunk) const {
    return shared() + (slot * row_chunks() + chunk) * kOwnedBytes;
  }

  __device__ __forceinline__ unsigned char* stage(int i) const {
    return shared() + pass.shared.ring_at + i * pass.shared.stage_bytes;
  }

  // Where the atom lies that is row i of those that this thread copies: its position in the map, y and x
  // there. In shared memory for want of registers; no other thread reads it.
  __device__ __forceinline__ int& located(int i, int coordinate) const {
    return reinterpret_cast<int*>(shared() +
                                  pass.shared.located_at)[(i * 3 + coordinate) * kThreads + threadIdx.x];
  }

  __device__ __forceinline__ void copy_owned(unsigned char* to, int matrix, int chunk) const {
    if constexpr (Shape::kAtomSide) {
      copy_atoms(to, static_cast<Atoms>(matrix), chunk);
    } else {
      copy_rows<kRows>(to, matrix, item.tile, chunk);
    }
  }

  // Starts the copies of the next chunk of the plan. There is a group for each call, if an empty one.
  __device__ __forceinline__ void load_next(int load_stage) {
    if (tile_ < last_tile) {
      unsigned char* const streamed = stage(load_stage);
      const Plan::Entry entry = pass.plan.entries[entry_];
      const int chunk = chunk_ + (entry.sum ? item.first_chunk : 0);
      if constexpr (Shape::kAtomSide) {
        copy_rows<Shape::kColumns>(streamed, entry.x, tile_, chunk);
      } else {
        copy_atoms(streamed, entry.of, chunk);
      }
      const int matrix = Shape::kAtomSide ? int(entry.of) : entry.x;
      if (!entry.sum && pass.plan.slot_of[matrix] >= pass.shared.resident) {
        copy_owned(streamed + Shape::kStreamedBytes, matrix, chunk);
      }
      if (++chunk_ == (entry.sum ? item.chunks : row_chunks())) {
        chunk_ = 0;
        if (++entry_ == pass.plan.count) {
          entry_ = 0;
          ++tile_;
          if constexpr (!Shape::kAtomSide) locate(tile_);
        }
      }
    }
    commit_copies();
  }

  // A thread copies one unit of every 16th row.
  template <int rows>
  __device__ __forceinline__ void copy_rows(unsigned char* to, int x, int tile, int chunk) const {
    const int64_t first = int64_t(tile) * rows;
    const int unit = threadIdx.x % kUnits, column = chunk * Shape::kPerRow + unit * kPerUnit;
    const Element* const set =
        pass.rows + x * pass.set_size + (task() * pass.queries + pass.band.first_row) * pass.width;
#pragma unroll
    for (int row = threadIdx.x / kUnits; row < rows; row += kCopyRows) {
      const bool valid = first + row < pass.band.rows && column < pass.width;
      copy_unit(unit_of(to, row, unit), valid ? set + (first + row) * pass.width + column : set, valid);
    }
  }

  __device__ __forceinline__ void copy_atoms(unsigned char* to, Atoms of, int chunk) const {
    const AtomMaps<Element>& maps = pass.maps;
    const int unit = threadIdx.x % kUnits;
    int column = chunk * Shape::kPerRow + unit * kPerUnit, dy = 0, dx = 0;
    const bool inside = column < pass.width;
    if (maps.receptive_field > 1) {
      const int offset = column / maps.channels, margin = maps.receptive_field / 2;
      column -= offset * maps.channels;
      dy = offset / maps.receptive_field - margin;
      dx = offset % maps.receptive_field - margin;
    }
    const Element* const map = maps.data[int(of)] + task() * maps.task_size;
#pragma unroll
    for (int i = 0; i < kAtomRows / kCopyRows; ++i) {
      const int row = threadIdx.x / kUnits + i * kCopyRows, position = located(i, 0);
      const int64_t vector = int64_t(position) + dy * maps.width + dx;
      bool valid = inside && position >= 0;
      if (maps.receptive_field > 1) {
        valid = valid && unsigned(located(i, 1) + dy) < unsigned(maps.height) &&
                unsigned(located(i, 2) + dx) < unsigned(maps.width);
      }
      copy_unit(unit_of(to, row, unit), valid ? map + vector * maps.channels + column : map, valid);
    }
  }

  // Finds the atoms of a tile.
  __device__ __forceinline__ void locate(int tile) const {
#pragma unroll
    for (int i = 0; i < kAtomRows / kCopyRows; ++i) {
      const int64_t atom = int64_t(tile) * kAtomRows + threadIdx.x / kUnits + i * kCopyRows;
      int position = -1;
      if (atom < pass.atoms) {
        position = static_cast<int>(pass.maps.index ? pass.maps.index[task() * pass.atoms + atom] : atom);
      }
      located(i, 0) = position;
      if (pass.maps.receptive_field > 1) {
        located(i, 1) = position / pass.maps.width % pass.maps.height;
        located(i, 2) = position % pass.maps.width;
      }
    }
  }

  int tile_, entry_ = 0, chunk_ = 0;  // the chunk to load next
  int stage_ = 0;                     // the stage to hand out next
};

}  // namespace fsad::cuda
