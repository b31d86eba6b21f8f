// What a streaming kernel is given: matrices of rows, the order in which it will ask for their tiles, and
// where its results go. For host and device.
#pragma once

#include "istc.h"

namespace fsad::cuda {

// An atom matrix: the dictionary D, or its tangent Ḋ.
enum class Atoms : uint8_t { values = 0, tangents = 1 };

// The order in which a kernel consumes matrices, the same for every tile. An inner product reads rows `x` and
// atoms `of`; a weighted sum reads one of them, that which is streamed.
struct Plan {
  static constexpr int kMaxEntries = 4 * kMaxIterations;
  static constexpr int kMaxMatrices = 4 * kMaxIterations + 1, kMaxSlots = 16;
  struct Entry {
    uint8_t x;
    Atoms of;
    bool sum;
  };
  Entry entries[kMaxEntries];
  int count = 0;
  // Slots number the matrices that products read on the owning side: x on the query side, `of` on the atom
  // side.
  uint8_t matrix_in[kMaxSlots], slot_of[kMaxMatrices];
  int slots = 0;
};

// The settings of the iteration.
template <class Real>
struct Iteration {
  int steps;  // N
  Shrinkage shrinkage;
  bool atom_tangents;  // whether there is Ḋ
  Real lambda[kMaxIterations], tau[kMaxIterations];
};

// Rows of an atom map: its patches at `index`, or all. Channels are a multiple of 32 bytes.
template <class Element>
struct AtomMaps {
  const Element* data[2];  // by Atoms
  const int64_t* index;    // (T, k), or null
  int64_t task_size;
  int height, width, channels, receptive_field;
};

// A part of the queries: `rows` of them, from `first_row` on, in each of `tasks` tasks from `first_task` on.
struct Band {
  int64_t first_task, tasks, first_row, rows;
};

// Where things lie in shared memory, in bytes from its start, where the resident tiles are.
struct SharedLayout {
  int resident;  // slots of the plan whose tiles stay; those of the others pass through the ring
  int stage_bytes, ring_at, located_at, kept_at, bytes;
};

template <class Element>
struct StreamPass {
  using Real = typename Computing<Element>::type;

  int64_t queries, atoms, set_size;
  int width;               // of the rows: channels · l²
  const Element* rows;     // sets of query-side vectors, each (T, n, width)
  AtomMaps<Element> maps;  // D, Ḋ
  const Element* step;     // (T), η
  Iteration<Real> iteration;
  Plan plan;
  Band band;
  int parts;   // of the width of sums, each for blocks of its own
  int splits;  // of the streamed side, likewise
  SharedLayout shared;

  Real* partial;     // results of every split (splits, tasks, rows of the owning side, width)
  int64_t* numbers;  // the peak search: beside `partial`, (splits, tasks, rows) both
  // Where codes are exchanged between kernels: places, each (tasks, rows, codes_stride).
  Real* codes;
  int64_t codes_stride;
};

}  // namespace fsad::cuda
