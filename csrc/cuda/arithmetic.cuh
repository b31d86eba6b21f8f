// How a warp multiplies: fragments of chunks in shared memory, for each number type.
//
// A chunk is some rows of 128 bytes each, eight units of 16 bytes; unit u of row r lies at place u ^ (r % 8),
// so that eight rows of one unit, as ldmatrix reads them, and eight units of one row, as copies write them,
// lie in different banks. A step is 32 bytes of every row, four steps a chunk.
//
// Two products are formed, and both leave in lane 4g + t the entries (g, 2t), (g, 2t + 1), (g + 8, 2t),
// (g + 8, 2t + 1) of every 16×8 block:
//   inner products   S (16 × columns) = A Bᵀ, A and B chunks: `rows` and `columns`
//   weighted sums    Y (16 × 8) += W B, W such entries: `weights` and `across`
// Fragments of B come in pairs, for two neighbouring blocks.
#pragma once

#include <type_traits>

#include "istc.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace fsad::cuda {

constexpr int kUnitBytes = 16, kRowBytes = 128, kUnits = kRowBytes / kUnitBytes;
constexpr int kStepBytes = 32, kSteps = kRowBytes / kStepBytes;

__device__ __forceinline__ unsigned char* unit_of(unsigned char* chunk, int row, int unit) {
  return chunk + row * kRowBytes + (unit ^ row % kUnits) * kUnitBytes;
}

// Numbers as memory holds them, in the precision that computes with them.
__device__ __forceinline__ float load_number(const float* p) { return *p; }
__device__ __forceinline__ double load_number(const double* p) { return *p; }
__device__ __forceinline__ float load_number(const Bfloat16* p) {
  return __uint_as_float(uint32_t(p->bits) << 16);
}
__device__ __forceinline__ float load_number(const Float16* p) {
  return __half2float(__ushort_as_half(p->bits));
}
__device__ __forceinline__ void store_number(float* p, float x) { *p = x; }
__device__ __forceinline__ void store_number(double* p, double x) { *p = x; }
__device__ __forceinline__ void store_number(Bfloat16* p, float x) {
  p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ __forceinline__ void store_number(Float16* p, float x) {
  p->bits = __half_as_ushort(__float2half_rn(x));
}

// ---- tensor cores --------------------------------------------------------------------------------------

struct Fragments {
  // The 16×16-byte halves of rows row … row + 15, as the first factor takes them.
  static __device__ __forceinline__ void load_rows(unsigned char* chunk, int row, int step,
                                                   uint32_t (&to)[4]) {
    const int lane = lane_index();
    load_matrices(to, unit_of(chunk, row + lane % 16, 2 * step + lane / 16));
  }

  // The same rows as two second factors, eight rows each.
  static __device__ __forceinline__ void load_columns(unsigned char* chunk, int row, int step,
                                                      uint32_t (&to)[4]) {
    const int lane = lane_index();
    load_matrices(to, unit_of(chunk, row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
  }
};

// float32 rounded to TF32, where torch allows it; or, if exact, as sums of two TF32 numbers,
// a b ≈ a₁b₁ + a₁b₀ + a₀b₁. The tensor core cuts off what it adds; each product starts from zero and is added
// in float32, rounded.
template <bool exact>
struct Tf32 : Fragments {
  static constexpr int kWeights = 8;  // columns of W that one multiplication takes
  template <int n>
  struct Parts {
    uint32_t large[n], small[exact ? n : 1];

    __device__ __forceinline__ void set(int i, uint32_t bits) {
      if constexpr (exact) {
        // Two instructions where the conversion has four. It loses the sign of a NaN, which the difference
        // keeps.
        large[i] = (bits + 0x1000u) & 0xffffe000u;
        small[i] = __float_as_uint(__uint_as_float(bits) - __uint_as_float(large[i]));  // exact
      } else {
        large[i] = to_tf32(__uint_as_float(bits));
      }
    }
  };
  using Rows = Parts<4>;
  using Columns = Parts<2>;
  using Across = Columns;

  static __device__ __forceinline__ Rows rows(unsigned char* chunk, int row, int step) {
    uint32_t raw[4];
    load_rows(chunk, row, step, raw);
    Rows a;
#pragma unroll
    for (int i = 0; i < 4; ++i) a.set(i, raw[i]);
    return a;
  }

  static __device__ __forceinline__ void columns(Columns (&b)[2], unsigned char* chunk, int row, int step) {
    uint32_t raw[4];
    load_columns(chunk, row, step, raw);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].set(i % 2, raw[i]);
  }

  // A lane has columns 2t and 2t + 1 of W where the core expects t and t + 4: `across` permutes its rows
  // alike.
  static __device__ __forceinline__ Rows weights(const float* w) {
    Rows a;
    a.set(0, __float_as_uint(w[0]));
    a.set(1, __float_as_uint(w[2]));
    a.set(2, __float_as_uint(w[1]));
    a.set(3, __float_as_uint(w[3]));
    return a;
  }

  static __device__ __forceinline__ void across(Columns (&b)[2], unsigned char* chunk, int row, int block) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int unit = 2 * (block + i) + g / 4;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        b[i].set(k, reinterpret_cast<const uint32_t*>(unit_of(chunk, row + 2 * t + k, unit))[g % 4]);
      }
    }
  }

  static __device__ __forceinline__ void multiply(float (&c)[4], const Rows& a, const Columns& b) {
    float part[4] = {0, 0, 0, 0};
    if constexpr (exact) {
      multiply_tf32(part, a.small, b.large);
      multiply_tf32(part, a.large, b.small);
    }
    multiply_tf32(part, a.large, b.large);
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] += part[i];
  }
};

// bfloat16 and float16, summed in float32.
template <class Element>
struct SixteenBit : Fragments {
  static constexpr int kWeights = 16;
  struct Rows {
    uint32_t packed[4];
  };
  struct Columns {
    uint32_t packed[2];
  };
  using Across = Columns;

  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    if constexpr (std::is_same_v<Element, Bfloat16>) {
      return pack_bf16(low, high);
    } else {
      return pack_f16(low, high);
    }
  }

  static __device__ __forceinline__ Rows rows(unsigned char* chunk, int row, int step) {
    Rows a;
    load_rows(chunk, row, step, a.packed);
    return a;
  }

  static __device__ __forceinline__ void columns(Columns (&b)[2], unsigned char* chunk, int row, int step) {
    uint32_t raw[4];
    load_columns(chunk, row, step, raw);
    b[0] = {{raw[0], raw[1]}};
    b[1] = {{raw[2], raw[3]}};
  }

  static __device__ __forceinline__ Rows weights(const float* w) {
    return {{pack(w[0], w[1]), pack(w[2], w[3]), pack(w[4], w[5]), pack(w[6], w[7])}};
  }

  static __device__ __forceinline__ void across(Columns (&b)[2], unsigned char* chunk, int row, int block) {
    const int lane = lane_index();
    uint32_t raw[4];
    load_matrices_across(raw, unit_of(chunk, row + lane % 16, block + lane / 16));
    b[0] = {{raw[0], raw[1]}};
    b[1] = {{raw[2], raw[3]}};
  }

  static __device__ __forceinline__ void multiply(float (&c)[4], const Rows& a, const Columns& b) {
    if constexpr (std::is_same_v<Element, Bfloat16>) {
      multiply_bf16(c, a.packed, b.packed);
    } else {
      multiply_f16(c, a.packed, b.packed);
    }
  }
};

// ---- the plain path: fused multiply-adds ------------------------------------------

template <class Real>
struct Plain {
  static constexpr int kWeights = 8;
  static constexpr int kDepth = 32 / sizeof(Real);  // numbers in a step
  template <int depth>
  struct Two {  // rows g and g + 8 of the first factor; columns 2t and 2t + 1 of the second
    Real v[2][depth];
  };

  static __device__ __forceinline__ const Real& at(unsigned char* chunk, int row, int column) {
    constexpr int kPerUnit = kUnitBytes / sizeof(Real);
    return reinterpret_cast<const Real*>(unit_of(chunk, row, column / kPerUnit))[column % kPerUnit];
  }

  static __device__ __forceinline__ Two<kDepth> rows(unsigned char* chunk, int row, int step) {
    Two<kDepth> a;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < kDepth; ++k)
        a.v[i][k] = at(chunk, row + lane_index() / 4 + 8 * i, step * kDepth + k);
    }
    return a;
  }

  using Columns = Two<kDepth>;
  using Across = Two<kWeights>;
  static __device__ __forceinline__ void columns(Columns (&b)[2], unsigned char* chunk, int row, int step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        b[i / 2].v[i % 2][k] = at(chunk, row + i / 2 * 8 + lane_index() % 4 * 2 + i % 2, step * kDepth + k);
      }
    }
  }

  static __device__ __forceinline__ Two<kWeights> weights(const Real* w) {
    Two<kWeights> a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        a.v[i / 2][2 * t + i % 2] = __shfl_sync(0xffffffffu, w[i], lane_index() / 4 * 4 + t);
      }
    }
    return a;
  }

  static __device__ __forceinline__ void across(Across (&b)[2], unsigned char* chunk, int row, int block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 0; k < kWeights; ++k) {
        b[i / 2].v[i % 2][k] = at(chunk, row + k, 8 * (block + i / 2) + lane_index() % 4 * 2 + i % 2);
      }
    }
  }

  template <int depth>
  static __device__ __forceinline__ void multiply(Real (&c)[4], const Two<depth>& a, const Two<depth>& b) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 0; k < depth; ++k) c[i] += a.v[i / 2][k] * b.v[i % 2][k];
    }
  }
};

// ---- which of them -------------------------------------------------------------------------------------

// tensor: at the precision of the type, or TF32. split: float32 by three products of TF32 numbers.
enum class Products { plain, split, tensor };

template <class Element, Products products>
struct ArithmeticOf {
  using type = Plain<Element>;
};
template <>
struct ArithmeticOf<float, Products::split> {
  using type = Tf32<true>;
};
template <>
struct ArithmeticOf<float, Products::tensor> {
  using type = Tf32<false>;
};
template <>
struct ArithmeticOf<Bfloat16, Products::tensor> {
  using type = SixteenBit<Bfloat16>;
};
template <>
struct ArithmeticOf<Float16, Products::tensor> {
  using type = SixteenBit<Float16>;
};

}  // namespace fsad::cuda
