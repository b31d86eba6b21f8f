// Kernels between and around the streaming ones: each reads and writes every number once.
#include "arithmetic.cuh"
#include "rows.h"

namespace fsad::cuda {

// Calls body(i) for i of [0, count), each on one thread of the grid.
template <class Body>
__device__ __forceinline__ void for_each(int64_t count, Body body) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) body(i);
}

// Enqueues a kernel that is one for_each. No memory holds so much that the grid's limit, 2³¹ blocks, is met.
template <class... Params, class... Arguments>
void launch_each(void (*kernel)(Params...), int64_t count, Stream stream, const Arguments&... arguments) {
  if (count == 0) return;  // CUDA refuses an empty grid
  kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(arguments...);
}

// A vector of the patch at `position` of its task: its number in the map, or −1 for padding.
template <class Element>
__device__ __forceinline__ int64_t patch_vector(const PatchMap<Element>& map, int64_t position, int offset) {
  const int margin = map.receptive_field / 2;
  const int dy = offset / map.receptive_field - margin, dx = offset % map.receptive_field - margin;
  const int64_t y = position / map.width % map.height + dy, x = position % map.width + dx;
  const bool inside = y >= 0 && y < map.height && x >= 0 && x < map.width;
  return inside ? position + dy * map.width + dx : -1;
}

template <class Element>
__global__ void __launch_bounds__(kThreads)
    pad_kernel(const Element* from, int64_t vectors, RowLayout layout, Element* to) {
  for_each(vectors * layout.padded, [&](int64_t i) {
    const int64_t vector = i / layout.padded, channel = i % layout.padded;
    to[i] = channel < layout.channels ? from[vector * layout.channels + channel] : Element{};
  });
}

template <class Element>
__global__ void __launch_bounds__(kThreads) pack_kernel(const PackRows<Element> p) {
  using Real = typename Computing<Element>::type;
  const int width = p.layout.width();
  for_each(p.tasks * p.map.positions() * width, [&](int64_t i) {
    const int64_t row = i / width, task = row / p.map.positions();
    const int offset = static_cast<int>(i % width) / p.layout.padded;
    const int channel = static_cast<int>(i % width) % p.layout.padded;
    const int64_t vector = patch_vector(p.map, row % p.map.positions(), offset);
    Real value = 0;
    if (vector >= 0 && channel < p.layout.channels) {
      const int64_t at = task * p.map.task_size() + vector * p.map.channels + channel;
      value = load_number(p.map.data + at) * (p.scale ? load_number(p.scale + row) : Real(1));
      if (p.other) value += load_number(p.other + at) * load_number(p.other_scale + row);
    }
    store_number(p.rows + i, value);
  });
}

template <class Element>
__global__ void __launch_bounds__(kThreads)
    import_kernel(const Element* from, int64_t count, RowLayout layout, Element* rows) {
  const int width = layout.width();
  for_each(count * width, [&](int64_t i) {
    const int64_t column = layout.compact(static_cast<int>(i % width));
    rows[i] = column < 0 ? Element{} : from[i / width * layout.compact_width() + column];
  });
}

template <class Element>
__global__ void __launch_bounds__(kThreads) finish_kernel(const FinishRows<Element> p) {
  using Real = typename Computing<Element>::type;
  const int width = p.layout.width();
  const int64_t size = p.band.tasks * p.band.rows * width;
  for_each(size, [&](int64_t i) {
    Real sum = 0;
    for (int split = 0; split < p.splits; ++split) sum += p.partial[split * size + i];
    const int64_t in_band = i / width, task = p.band.first_task + in_band / p.band.rows;
    const int64_t row = task * p.queries + p.band.first_row + in_band % p.band.rows;
    const int column = static_cast<int>(i % width);
    if (p.base) sum = load_number(p.base + row * width + column) - sum;
    if (p.rows) store_number(p.rows + row * width + column, sum);
    const int64_t compact = p.layout.compact(column);
    if (p.compact && compact >= 0) store_number(p.compact + row * p.layout.compact_width() + compact, sum);
  });
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    add_kernel(const Real* partial, int splits, int64_t count, bool add, Real* sums) {
  for_each(count, [&](int64_t i) {
    Real sum = add ? sums[i] : 0;
    for (int split = 0; split < splits; ++split) sum += partial[split * count + i];
    sums[i] = sum;
  });
}

// One warp a query.
template <class Element>
__global__ void __launch_bounds__(kThreads) query_kernel(const QueryGradient<Element> p) {
  using Real = typename Computing<Element>::type;
  const int width = p.layout.width();
  const int64_t count = p.tasks * p.map.positions(), size = count * width;
  for_each(count * kLanes, [&](int64_t i) {
    const int64_t row = i / kLanes, task = row / p.map.positions();
    const Real scale = load_number(p.scale + row);
    Real product = 0;
    for (int column = lane_index(); column < width; column += kLanes) {
      const int64_t at = row * width + column;
      const int channel = column % p.layout.padded;
      const int64_t vector = patch_vector(p.map, row % p.map.positions(), column / p.layout.padded);
      Real gradient = 0;
      if (vector >= 0 && channel < p.layout.channels) {
        const int64_t x = task * p.map.task_size() + vector * p.map.channels + channel;
        Real sum = 0;
        for (int set = p.sets - 1; set >= 0; --set) sum += load_number(p.adjoints + set * size + at);
        gradient = sum * scale;
        product += sum * load_number(p.map.data + x);
        if (p.tangent_map) {
          sum = 0;
          for (int set = p.tangent_sets - 1; set >= 0; --set) {
            sum += load_number(p.tangent_adjoints + set * size + at);
          }
          gradient += sum * load_number(p.tangent_scale + row);
          product += sum * load_number(p.tangent_map + x);
        }
      }
      p.rows[at] = gradient;
    }
    product = warp_sum(product);
    if (lane_index() == 0) store_number(p.grad_scale + row, product);
  });
}

template <class Element>
__global__ void __launch_bounds__(kThreads) forget_kernel(const UnpackRows<Element> p) {
  for_each(p.tasks * p.map.positions(), [&](int64_t i) { p.row_of_position[i] = -1; });
}

template <class Element>
__global__ void __launch_bounds__(kThreads) invert_kernel(const UnpackRows<Element> p) {
  for_each(p.tasks * p.count, [&](int64_t i) {
    const int64_t task = i / p.count;
    p.row_of_position[task * p.map.positions() + p.index[i]] = i - task * p.count;
  });
}

// A vector stands at offset (dy, dx) in the patch whose centre lies at (−dy, −dx) from it.
template <class Element>
__global__ void __launch_bounds__(kThreads) unpack_kernel(const UnpackRows<Element> p) {
  using Real = typename Computing<Element>::type;
  for_each(p.tasks * p.map.task_size(), [&](int64_t i) {
    const int64_t item = i / p.map.channels, channel = i % p.map.channels;
    const int64_t task = item / p.map.positions(), position = item % p.map.positions();
    Real sum = 0;
    for (int offset = 0; offset < p.layout.offsets; ++offset) {
      const int64_t center = patch_vector(p.map, position, p.layout.offsets - 1 - offset);
      if (center < 0) continue;
      const int64_t row = p.index ? p.row_of_position[task * p.map.positions() + center] : center;
      if (row < 0) continue;  // no atom
      sum += p.rows[(task * p.count + row) * p.layout.width() + offset * p.layout.padded + channel];
    }
    store_number(p.map.data + i, sum);
  });
}

__global__ void __launch_bounds__(kThreads) number_kernel(int64_t count, int64_t positions, int64_t* index) {
  for_each(count, [&](int64_t i) { index[i] = i % positions; });
}

template <class Element>
void pad_vectors(const Element* from, int64_t vectors, const RowLayout& layout, Element* to, Stream stream) {
  launch_each(pad_kernel<Element>, vectors * layout.padded, stream, from, vectors, layout, to);
}

template <class Element>
void pack_rows(const PackRows<Element>& p, Stream stream) {
  launch_each(pack_kernel<Element>, p.tasks * p.map.positions() * p.layout.width(), stream, p);
}

template <class Element>
void import_rows(const Element* from, int64_t count, const RowLayout& layout, Element* rows, Stream stream) {
  launch_each(import_kernel<Element>, count * layout.width(), stream, from, count, layout, rows);
}

template <class Element>
void finish_rows(const FinishRows<Element>& p, Stream stream) {
  launch_each(finish_kernel<Element>, p.band.tasks * p.band.rows * p.layout.width(), stream, p);
}

template <class Real>
void add_splits(const Real* partial, int splits, int64_t count, bool add, Real* sums, Stream stream) {
  launch_each(add_kernel<Real>, count, stream, partial, splits, count, add, sums);
}

template <class Element>
void query_gradient(const QueryGradient<Element>& p, Stream stream) {
  launch_each(query_kernel<Element>, p.tasks * p.map.positions() * kLanes, stream, p);
}

template <class Element>
void unpack_rows(const UnpackRows<Element>& p, Stream stream) {
  if (p.index) {
    launch_each(forget_kernel<Element>, p.tasks * p.map.positions(), stream, p);
    launch_each(invert_kernel<Element>, p.tasks * p.count, stream, p);
  }
  launch_each(unpack_kernel<Element>, p.tasks * p.map.task_size(), stream, p);
}

void number_positions(int64_t tasks, int64_t positions, int64_t* index, Stream stream) {
  launch_each(number_kernel, tasks * positions, stream, tasks * positions, positions, index);
}

#define FSAD_INSTANTIATE(Element)                                                         \
  template void pad_vectors(const Element*, int64_t, const RowLayout&, Element*, Stream); \
  template void pack_rows(const PackRows<Element>&, Stream);                              \
  template void import_rows(const Element*, int64_t, const RowLayout&, Element*, Stream); \
  template void finish_rows(const FinishRows<Element>&, Stream);                          \
  template void query_gradient(const QueryGradient<Element>&, Stream);                    \
  template void unpack_rows(const UnpackRows<Element>&, Stream);

template void add_splits(const float*, int, int64_t, bool, float*, Stream);
template void add_splits(const double*, int, int64_t, bool, double*, Stream);
FSAD_INSTANTIATE(float)
FSAD_INSTANTIATE(double)
FSAD_INSTANTIATE(Bfloat16)
FSAD_INSTANTIATE(Float16)

}  // namespace fsad::cuda
