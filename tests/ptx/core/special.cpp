// Reciprocals, roots and the approximate transcendental instructions.
//
// PTX bounds the error of an approximate instruction and says no more, so the interpreter returns the
// correctly rounded result pushed off by a pseudo-random part of that bound: a fixed function of the
// input, as on hardware, but never better than documented. Results at the corner cases that the PTX ISA
// tabulates (zero, infinity, NaN, flushed subnormals) are exact.
#include <cmath>
#include <limits>

#include "families.h"
#include "lanes.h"

namespace ptx {
namespace {

f32 flush(f32 a) { return std::fabs(a) < 0x1p-126f ? std::copysign(0.0f, a) : a; }

/// In [-1, 1], fixed by the input.
f64 deviation(u32 input) { return f64(s64(mix(input) >> 11)) * 0x1p-52 - 1; }

/// `exact`, off by at most `bound` (relative, or absolute), rounding to f32 included.
f32 off_by_relative(f64 exact, u32 input, f64 bound) {
  return f32(exact * (1 + (bound - 0x1p-24) * deviation(input)));
}
f32 off_by_absolute(f64 exact, u32 input, f64 bound) {
  return f32(exact + (bound - 0x1p-24) * deviation(input));
}

struct Approximation {
  static f32 ex2(f32 a) {  // 2 ulp
    const f64 exact = std::exp2(f64(a));
    return a == 0 || !std::isfinite(a) ? f32(exact) : off_by_relative(exact, bits<u32>(a), 0x1.4p-23);
  }
  static f32 lg2(f32 a) {  // absolute error 2^-22 on (0.5, 2), relative outside
    const f64 exact = std::log2(f64(a));
    if (!(a > 0) || std::isinf(a)) return f32(exact);
    return a > 0.5f && a < 2 ? off_by_absolute(exact, bits<u32>(a), 0x1p-22)
                             : off_by_relative(exact, bits<u32>(a), 0x1p-22);
  }
  static f32 rcp(f32 a) {  // 1 ulp: half for rounding, half (2^-25 relative, at least) to be off by
    const f64 exact = 1 / f64(a);
    return std::isfinite(exact) && exact != 0 ? off_by_relative(exact, bits<u32>(a), 0x1.8p-24) : f32(exact);
  }
  static f32 sqrt(f32 a) {  // relative error 2^-23
    const f64 exact = std::sqrt(f64(a));
    return a > 0 && std::isfinite(a) ? off_by_relative(exact, bits<u32>(a), 0x1p-23) : f32(exact);
  }
  static f32 rsqrt(f32 a) {  // relative error 2^-22.9
    const f64 exact = 1 / std::sqrt(f64(a));
    return a > 0 && std::isfinite(a) ? off_by_relative(exact, bits<u32>(a), 0x1.125p-23) : f32(exact);
  }
  static f32 tanh(f32 a) {  // relative error 2^-11
    const f64 exact = std::tanh(f64(a));
    return std::isfinite(a) && a != 0 ? std::clamp(off_by_relative(exact, bits<u32>(a), 0x1p-11), -1.0f, 1.0f)
                                      : f32(exact);
  }
  static f32 sin(f32 a) {  // absolute error 2^-20.5 on [-2π, 2π]
    return a == 0 ? a : off_by_absolute(std::sin(f64(a)), bits<u32>(a), 0x1.6ap-21);
  }
  static f32 cos(f32 a) { return a == 0 ? 1 : off_by_absolute(std::cos(f64(a)), bits<u32>(a), 0x1.6ap-21); }
  static f32 divide(f32 a, f32 b) {  // 2 ulp
    const f64 exact = f64(a) / f64(b);
    return std::isfinite(exact) && exact != 0
               ? off_by_relative(exact, bits<u32>(a) * 31 + bits<u32>(b), 0x1.4p-23)
               : f32(exact);
  }
};

template <auto F>
void approximate(Decoder& d) {
  if (d.type() != "f32") return;
  d.accept({"approx"});
  if (d.has("ftz"))
    d.lanes(map1<f32, f32, [](f32 a) { return flush(F(flush(a))); }>, 32, {32});
  else
    d.lanes(map1<f32, f32, F>, 32, {32});
  d.inst().kind = Kind::kSpecial;
}

/// Correctly rounded f32 and f64 of a function, in the rounding mode named.
template <auto F32, auto F64>
void exact(Decoder& d) {
  constexpr auto single = map1<f32, f32, F32>;
  constexpr auto twice = map1<f64, f64, F64>;
  const bool wide = d.type() == "f64";
  if (d.has("ftz")) return;
  const int bits = wide ? 64 : 32;
  d.lanes(d.has("rn") ? (wide ? twice : single) : nullptr, bits, {bits});
  d.inst().kind = Kind::kSpecial;
}

/// rcp and rsqrt.approx.ftz.f64 look at the upper 32 bits only and fill those of the result.
template <auto F>
void approximate_double(Decoder& d) {
  d.accept({"approx", "ftz"});
  d.lanes(map1<f64, f64,
               [](f64 a) {
                 const f64 x = bits<f64>(bits<u64>(a) & ~u64(0xffffffff));
                 const f64 y = F(x) * (1 + 0x1p-21 * deviation(u32(bits<u64>(a) >> 32)));
                 return bits<f64>(bits<u64>(y) & ~u64(0xffffffff));
               }>,
          64, {64});
  d.inst().kind = Kind::kSpecial;
}

}  // namespace

void approximate_division(Decoder& d) {
  if (d.type() != "f32") return;
  if (d.has("ftz"))
    d.lanes(
        map2<f32, f32, f32, [](f32 a, f32 b) { return flush(Approximation::divide(flush(a), flush(b))); }>,
        32, {32, 32});
  else
    d.lanes(map2<f32, f32, f32, [](f32 a, f32 b) { return Approximation::divide(a, b); }>, 32, {32, 32});
  d.inst().kind = Kind::kSpecial;
}

void add_special(Table& table) {
  table["ex2"] = approximate<[](f32 a) { return Approximation::ex2(a); }>;
  table["lg2"] = approximate<[](f32 a) { return Approximation::lg2(a); }>;
  table["tanh"] = approximate<[](f32 a) { return Approximation::tanh(a); }>;
  table["sin"] = approximate<[](f32 a) { return Approximation::sin(a); }>;
  table["cos"] = approximate<[](f32 a) { return Approximation::cos(a); }>;
  table["rcp"] = [](Decoder& d) {
    if (!d.has("approx"))
      exact<[](f32 a) { return 1 / a; }, [](f64 a) { return 1 / a; }>(d);
    else if (d.type() == "f64")
      approximate_double<[](f64 a) { return 1 / a; }>(d);
    else
      approximate<[](f32 a) { return Approximation::rcp(a); }>(d);
  };
  table["sqrt"] = [](Decoder& d) {
    if (!d.has("approx"))
      exact<[](f32 a) { return std::sqrt(a); }, [](f64 a) { return std::sqrt(a); }>(d);
    else
      approximate<[](f32 a) { return Approximation::sqrt(a); }>(d);
  };
  table["rsqrt"] = [](Decoder& d) {
    if (d.type() == "f64")
      approximate_double<[](f64 a) { return 1 / std::sqrt(a); }>(d);
    else
      approximate<[](f32 a) { return Approximation::rsqrt(a); }>(d);
  };
}

}  // namespace ptx
