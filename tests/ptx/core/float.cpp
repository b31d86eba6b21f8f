// Floating-point arithmetic in f32 and f64; names shared with the integers go there when the type says
// so, and to half.cpp for 16-bit floats.
#include <cmath>

#include "families.h"
#include "lanes.h"

namespace ptx {
namespace {

/// Subnormal to zero of the same sign.
template <bool Ftz, class T>
T flush(T a) {
  if constexpr (Ftz) return std::fabs(a) < 0x1p-126f ? std::copysign(T(0), a) : a;
  return a;
}

template <class T>
T saturate(T a) {
  return a > T(0) ? (a < T(1) ? a : T(1)) : T(0);
}  // NaN to 0

// PTX: the operand that is a number wins over NaN, and -0 is below +0.
template <class T>
T minimum(T a, T b) {
  return a < b || b != b ? a : a == b ? (std::signbit(a) ? a : b) : b;
}
template <class T>
T maximum(T a, T b) {
  return a > b || b != b ? a : a == b ? (std::signbit(a) ? b : a) : b;
}

/// Chooses the handler for the modifiers: rounding, .ftz and .sat.
template <class T, template <class, bool, bool> class Op>
Handler choose(Decoder& d) {
  const bool ftz = d.has("ftz"), sat = d.has("sat");
  d.accept({"rn"});
  if (d.has("rz") || d.has("rm") || d.has("rp")) {
    if (ftz || sat) return nullptr;
    return d.has("rz")   ? rounded<Op<T, false, false>::run, FE_TOWARDZERO>
           : d.has("rm") ? rounded<Op<T, false, false>::run, FE_DOWNWARD>
                         : rounded<Op<T, false, false>::run, FE_UPWARD>;
  }
  if constexpr (std::is_same_v<T, f32>) {
    if (ftz) return sat ? Op<T, true, true>::run : Op<T, true, false>::run;
    if (sat) return Op<T, false, true>::run;
  }
  return ftz || sat ? nullptr : Op<T, false, false>::run;
}

template <class T, bool Ftz, bool Sat>
T finish(T a) {
  a = flush<Ftz>(a);
  return Sat ? saturate(a) : a;
}

#define PTX_BINARY(Name, expression)                         \
  template <class T, bool Ftz, bool Sat>                     \
  struct Name {                                              \
    static constexpr auto run = map2<T, T, T, [](T a, T b) { \
      a = flush<Ftz>(a), b = flush<Ftz>(b);                  \
      return finish<T, Ftz, Sat>(expression);                \
    }>;                                                      \
  }
PTX_BINARY(Add, a + b);
PTX_BINARY(Sub, a - b);
PTX_BINARY(Mul, a* b);
PTX_BINARY(Div, a / b);
PTX_BINARY(Min, minimum(a, b));
PTX_BINARY(Max, maximum(a, b));
#undef PTX_BINARY

template <class T, bool Ftz, bool Sat>
struct Fma {
  static constexpr auto run = map3<T, T, T, T, [](T a, T b, T c) {
    return finish<T, Ftz, Sat>(std::fma(flush<Ftz>(a), flush<Ftz>(b), flush<Ftz>(c)));
  }>;
};

template <template <class, bool, bool> class Op, int Sources>
bool in_float(Decoder& d) {
  const bool single = d.type() == "f32";
  if (!single && d.type() != "f64") return false;
  const int bits = single ? 32 : 64;
  const Handler run = single ? choose<f32, Op>(d) : choose<f64, Op>(d);
  if constexpr (Sources == 2)
    d.lanes(run, bits, {bits, bits});
  else
    d.lanes(run, bits, {bits, bits, bits});
  return true;
}

/// neg, abs: bits only, so that NaNs pass unchanged.
template <auto Sign32, auto Sign64>
bool in_sign(Decoder& d) {
  if (d.type() == "f32")
    unary<u32, [](u32 a) { return Sign32(a); }>(d);
  else if (d.type() == "f64")
    unary<u64, [](u64 a) { return Sign64(a); }>(d);
  else
    return false;
  return true;
}

bool is_half(Decoder& d) { return d.type().find("f16") != std::string::npos; }

constexpr u32 kSign32 = 1u << 31;
constexpr u64 kSign64 = u64(1) << 63;

}  // namespace

void add_float(Table& table) {
  table["add"] = [](Decoder& d) { is_half(d) ? half_add(d) : in_float<Add, 2>(d) ? void() : integer_add(d); };
  table["sub"] = [](Decoder& d) { is_half(d) ? half_sub(d) : in_float<Sub, 2>(d) ? void() : integer_sub(d); };
  table["mul"] = [](Decoder& d) { is_half(d) ? half_mul(d) : in_float<Mul, 2>(d) ? void() : integer_mul(d); };
  table["min"] = [](Decoder& d) {
    d.has("NaN") ? void() : is_half(d) ? half_min(d) : in_float<Min, 2>(d) ? void() : integer_min(d);
  };
  table["max"] = [](Decoder& d) {
    d.has("NaN") ? void() : is_half(d) ? half_max(d) : in_float<Max, 2>(d) ? void() : integer_max(d);
  };
  table["fma"] = [](Decoder& d) { is_half(d) ? half_fma(d) : (void)in_float<Fma, 3>(d); };
  table["mad"] = [](Decoder& d) { in_float<Fma, 3>(d) ? void() : integer_mad(d); };
  table["div"] = [](Decoder& d) {
    d.has("approx") || d.has("full") ? approximate_division(d)
    : in_float<Div, 2>(d)            ? void()
                                     : integer_div(d);
  };
  table["neg"] = [](Decoder& d) {
    is_half(d)                                                                         ? half_neg(d)
    : in_sign<[](u32 a) { return a ^ kSign32; }, [](u64 a) { return a ^ kSign64; }>(d) ? void()
                                                                                       : integer_neg(d);
  };
  table["abs"] = [](Decoder& d) {
    is_half(d)                                                                           ? half_abs(d)
    : in_sign<[](u32 a) { return a & ~kSign32; }, [](u64 a) { return a & ~kSign64; }>(d) ? void()
                                                                                         : integer_abs(d);
  };
  table["copysign"] = [](Decoder& d) {  // the sign of the first operand on the second
    by_type(d, {{"f32", binary<u32, [](u32 a, u32 b) { return (a & kSign32) | (b & ~kSign32); }>},
                {"f64", binary<u64, [](u64 a, u64 b) { return (a & kSign64) | (b & ~kSign64); }>}});
  };
}

}  // namespace ptx
