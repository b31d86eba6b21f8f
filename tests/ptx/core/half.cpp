// Arithmetic in f16 and bf16, alone and in pairs: computed in double, rounded once.
#include "families.h"
#include "formats.h"
#include "lanes.h"

namespace ptx {
namespace {

struct Half {
  static f64 load(u16 a) { return f64(from_half(a)); }
  static u16 store(f64 a) { return to_half(a); }
};
struct Bfloat {
  static f64 load(u16 a) { return f64(from_bfloat(a)); }
  static u16 store(f64 a) { return to_bfloat(a); }
};

template <class T, class Format, int Sources, auto F>
void half_lanes(Warp& w, const Inst& in, u32 mask) {
  const T *a = w.row<T>(in.op[1]), *b = w.row<T>(in.op[2]), *c = w.row<T>(in.op[3]);
  T out[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    T packed = 0;
    for (int shift = 0; shift < kBits<T>; shift += 16) {
      const f64 x = Format::load(u16(a[l] >> shift));
      const f64 y = Sources > 1 ? Format::load(u16(b[l] >> shift)) : 0;
      const f64 z = Sources > 2 ? Format::load(u16(c[l] >> shift)) : 0;
      packed |= T(T(Format::store(F(x, y, z))) << shift);
    }
    out[l] = packed;
  }
  w.write(in.op[0], out, mask);
}

template <int Sources, auto F>
void half(Decoder& d) {
  d.accept({"rn"});
  const std::string& type = d.type();
  const Handler run = type == "f16"      ? half_lanes<u16, Half, Sources, F>
                      : type == "bf16"   ? half_lanes<u16, Bfloat, Sources, F>
                      : type == "f16x2"  ? half_lanes<u32, Half, Sources, F>
                      : type == "bf16x2" ? half_lanes<u32, Bfloat, Sources, F>
                                         : nullptr;
  const int bits = type_bits(type);
  if constexpr (Sources == 1)
    d.lanes(run, bits, {bits});
  else if constexpr (Sources == 2)
    d.lanes(run, bits, {bits, bits});
  else
    d.lanes(run, bits, {bits, bits, bits});
}

/// Signs of packed values, as bits.
template <u32 And, u32 Xor>
void signs(Decoder& d) {
  if (type_bits(d.type()) == 32)
    unary<u32, [](u32 a) { return (a & (And | And << 16)) ^ (Xor | Xor << 16); }>(d);
  else
    unary<u16, [](u16 a) { return u16((a & And) ^ Xor); }>(d);
}

}  // namespace

void half_add(Decoder& d) {
  half<2, [](f64 a, f64 b, f64) { return a + b; }>(d);
}
void half_sub(Decoder& d) {
  half<2, [](f64 a, f64 b, f64) { return a - b; }>(d);
}
void half_mul(Decoder& d) {
  half<2, [](f64 a, f64 b, f64) { return a * b; }>(d);
}
void half_fma(Decoder& d) {
  half<3, [](f64 a, f64 b, f64 c) { return std::fma(a, b, c); }>(d);
}
void half_min(Decoder& d) {
  half<2, [](f64 a, f64 b, f64) { return std::fmin(a, b); }>(d);
}
void half_max(Decoder& d) {
  half<2, [](f64 a, f64 b, f64) { return std::fmax(a, b); }>(d);
}
void half_neg(Decoder& d) { signs<0xffff, 0x8000>(d); }
void half_abs(Decoder& d) { signs<0x7fff, 0>(d); }

}  // namespace ptx
