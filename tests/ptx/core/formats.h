// Narrow floating-point formats as bit patterns.
#pragma once

#include <cmath>

#include "types.h"

namespace ptx {

enum class Round : u8 { kNearestEven, kZero, kDown, kUp, kNearestAway };

inline f32 from_half(u16 h) {
  const u32 sign = u32(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 31) return bits<f32>(sign | 0x7f800000u | mantissa << 13);
  const f32 magnitude =
      exponent ? bits<f32>((exponent + 112) << 23 | mantissa << 13) : f32(mantissa) * 0x1p-24f;
  return bits<f32>(sign | bits<u32>(magnitude));
}

inline f32 from_bfloat(u16 h) { return bits<f32>(u32(h) << 16); }

/// Rounds to a format of `mantissa` explicit bits with smallest normal exponent `lowest` and largest
/// exponent `highest`; the result is a double that the format holds exactly, or infinity.
inline f64 round_to(f64 x, int mantissa, int lowest, int highest, Round mode) {
  if (x == 0 || !std::isfinite(x)) return x;
  int exponent;
  std::frexp(x, &exponent);
  const int step = std::max(exponent - 1, lowest) - mantissa;  // exponent of the last bit
  const f64 scaled = std::ldexp(std::fabs(x), -step);
  f64 whole = std::floor(scaled);
  const f64 rest = scaled - whole;
  const bool up = mode == Round::kNearestEven   ? rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2) == 1)
                  : mode == Round::kNearestAway ? rest >= 0.5
                  : mode == Round::kDown        ? rest > 0 && x < 0
                  : mode == Round::kUp          ? rest > 0 && x > 0
                                                : false;
  const f64 magnitude = std::ldexp(whole + up, step);
  if (magnitude >= std::ldexp(1.0, highest + 1)) {  // overflow
    const bool infinite = mode == Round::kNearestEven || mode == Round::kNearestAway ||
                          (mode == Round::kDown && x < 0) || (mode == Round::kUp && x > 0);
    const f64 largest = std::ldexp(2.0 - std::ldexp(1.0, -mantissa), highest);
    return std::copysign(infinite ? INFINITY : largest, x);
  }
  return std::copysign(magnitude, x);
}

/// A double that f16 holds exactly (from round_to), as its bits.
inline u16 half_bits(f64 x) {
  const u16 sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7fff;
  if (std::isinf(x)) return u16(sign | 0x7c00);
  x = std::fabs(x);
  if (x < 0x1p-14) return u16(sign | u16(x * 0x1p24));
  int exponent;
  const f64 fraction = std::frexp(x, &exponent);  // in [0.5, 1)
  return u16(sign | (exponent + 14) << 10 | (int(fraction * 2048) - 1024));
}

inline u16 to_half(f64 x, Round mode = Round::kNearestEven) {
  return half_bits(round_to(x, 10, -14, 15, mode));
}
inline u16 to_bfloat(f64 x, Round mode = Round::kNearestEven) {
  if (std::isnan(x)) return 0x7fff;
  return u16(bits<u32>(f32(round_to(x, 7, -126, 127, mode))) >> 16);
}
/// tf32 keeps 10 mantissa bits; its low 13 bits are zero in an f32.
inline f32 to_tf32(f32 x, Round mode) { return f32(round_to(x, 10, -126, 127, mode)); }

/// Round to nearest even by bits, for the common conversions. NaN stays NaN.
inline u16 fast_bfloat(f32 x) {
  const u32 b = bits<u32>(x);
  const u32 rounded = (b + 0x7fff + (b >> 16 & 1)) >> 16;
  return u16((b & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded);
}

}  // namespace ptx
