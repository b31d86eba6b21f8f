// The shrinkages and their derivatives, written once for the CPU's vectors and the GPU's scalars.
#pragma once

#include <math.h>

#ifdef __CUDACC__
#define FSAD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FSAD_HOST_DEVICE inline __attribute__((always_inline))  // not shared by the CPU's instruction sets
#endif

namespace fsad {

enum class Shrinkage : int { none = 0, soft = 1, sigshrink = 2 };  // order of functional.SHRINKAGES

// What a rule needs to know of a number type V: a scalar here, a vector of lanes in cpu/simd.h.
template <class V>
struct Lanes;

template <>
struct Lanes<float> {
  using Scalar = float;
  static FSAD_HOST_DEVICE float exp(float x) { return expf(x); }
  static FSAD_HOST_DEVICE float reciprocal(float x) {
#ifdef __CUDA_ARCH__
    return __fdividef(1.0f, x);  // to 2 units in the last place, without the slow path of a division
#else
    return 1 / x;
#endif
  }
};

template <>
struct Lanes<double> {
  using Scalar = double;
  static FSAD_HOST_DEVICE double exp(double x) { return ::exp(x); }
  static FSAD_HOST_DEVICE double reciprocal(double x) { return 1 / x; }
};

// σ(u), σ'(u) and σ''(u); the compiler drops what a caller does not read.
template <class V>
struct Shrunk {
  V value, first, second;
};

// Soft (eq. 7): sgn(u) max(|u| − λ, 0).  SigShrink (eq. 9): u g with g = sigmoid(τ(|u| − λ)), whence
// σ' = g(1 + τ|u|(1−g)) and σ'' = sgn(u) τ g(1−g)(2 + τ|u|(1−2g)).
template <Shrinkage shrinkage, class V>
FSAD_HOST_DEVICE Shrunk<V> shrink(V u, typename Lanes<V>::Scalar lambda, typename Lanes<V>::Scalar tau) {
  using Real = typename Lanes<V>::Scalar;
  const V zero = V{}, one = zero + Real(1);
  if constexpr (shrinkage == Shrinkage::none) {
    return {u, one, zero};
  } else {
    const V magnitude = u > zero ? u : -u;
    const V sign = u > zero ? one : (u < zero ? -one : zero);
    if constexpr (shrinkage == Shrinkage::soft) {
      const V excess = magnitude - lambda;
      // Compared so that what is no number stays none: a zero would hide it.
      return {excess <= zero ? zero : sign * excess, excess > zero ? one : zero, zero};
    } else {
      // The exponent is held where e and g stay finite and normal: beyond it σ is u or 0 to rounding.
      const Real limit = sizeof(Real) == 4 ? Real(80) : Real(700);
      V exponent = tau * (lambda - magnitude);
      exponent = exponent > zero + limit ? zero + limit : exponent;
      exponent = exponent < zero - limit ? zero - limit : exponent;
      const V e = Lanes<V>::exp(exponent);
      const V g = Lanes<V>::reciprocal(one + e), rest = e * g;  // rest = 1 − g without cancellation
      const V steepness = tau * magnitude;
      return {u * g, g * (one + steepness * rest),
              sign * tau * g * rest * (one + one + steepness * (rest - g))};
    }
  }
}

}  // namespace fsad
