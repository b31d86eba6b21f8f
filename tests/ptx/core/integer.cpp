// Integer arithmetic.
#include "lanes.h"

namespace ptx {
namespace {

template <class T>
struct Wide;
template <>
struct Wide<s16> {
  using type = s32;
};
template <>
struct Wide<u16> {
  using type = u32;
};
template <>
struct Wide<s32> {
  using type = s64;
};
template <>
struct Wide<u32> {
  using type = u64;
};
template <>
struct Wide<s64> {
  using type = __int128;
};
template <>
struct Wide<u64> {
  using type = unsigned __int128;
};
template <class T>
using wide = typename Wide<T>::type;

template <class T>
T wrap_add(T a, T b) {
  return T(u64(a) + u64(b));
}
template <class T>
T mul_lo(T a, T b) {
  return T(u64(a) * u64(b));
}
template <class T>
T mul_hi(T a, T b) {
  return T((wide<T>(a) * wide<T>(b)) >> kBits<T>);
}
template <class T>
wide<T> mul_wide(T a, T b) {
  return wide<T>(a) * wide<T>(b);
}

// Division by zero is undefined in PTX; hardware gives all ones. The most negative by -1 must not trap.
template <class T>
T divide(T a, T b) {
  if (b == 0) return T(~T(0));
  return std::is_signed_v<T> && b == T(-1) ? T(0 - u64(a)) : T(a / b);
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  return std::is_signed_v<T> && b == T(-1) ? T(0) : T(a % b);
}

template <class T>
void mul(Decoder& d) {
  if (d.has("lo")) {
    binary<T, [](T a, T b) { return mul_lo(a, b); }>(d);
  } else if (d.has("hi")) {
    binary<T, [](T a, T b) { return mul_hi(a, b); }>(d);
  } else if constexpr (sizeof(T) < 8) {
    if (d.has("wide"))
      d.lanes(map2<wide<T>, T, T, [](T a, T b) { return mul_wide(a, b); }>, 2 * kBits<T>,
              {kBits<T>, kBits<T>});
  }
}

template <class T>
void mad(Decoder& d) {
  if (d.has("lo")) {
    ternary<T, [](T a, T b, T c) { return wrap_add(mul_lo(a, b), c); }>(d);
  } else if (d.has("hi")) {
    ternary<T, [](T a, T b, T c) { return wrap_add(mul_hi(a, b), c); }>(d);
  } else if constexpr (sizeof(T) < 8) {
    if (d.has("wide"))
      d.lanes(map3<wide<T>, T, T, wide<T>,
                   [](T a, T b, wide<T> c) { return wrap_add<wide<T>>(mul_wide(a, b), c); }>,
              2 * kBits<T>, {kBits<T>, kBits<T>, 2 * kBits<T>});
  }
}

/// add, sub and mad with the carry flag: `reads` and `writes` it.
enum Chain : u8 { kReads = 1, kWrites = 2, kSubtracts = 4, kHigh = 8 };

template <class T>
void chained(Warp& w, const Inst& in, u32 mask) {
  using U = unsigned __int128;
  const bool product = in.sources == 3;
  const T *a = w.row<T>(in.op[1]), *b = w.row<T>(in.op[2]), *c = w.row<T>(in.op[3]);
  T out[kLanes] = {};
  u32 carry = 0;
  for (int l = 0; l < kLanes; ++l) {
    T x = product ? (in.mode & kHigh ? T(U(a[l]) * b[l] >> kBits<T>) : T(a[l] * b[l])) : a[l];
    T y = product ? c[l] : b[l];
    U in_carry = in.mode & kReads ? w.carry >> l & 1 : 0;
    U sum = in.mode & kSubtracts ? U(x) - y - in_carry : U(x) + y + in_carry;
    out[l] = T(sum);
    carry |= u32(sum >> kBits<T> & 1) << l;
  }
  w.write(in.op[0], out, mask);
  if (in.mode & kWrites) w.carry = (w.carry & ~mask) | (carry & mask);
}

void carry_chain(Decoder& d) {
  const std::string& name = d.statement().opcode[0];
  d.accept({"lo"});
  const bool wide = d.type() == "u64" || d.type() == "s64" || d.type() == "b64";
  const int bits = wide ? 64 : 32;
  const Handler run = wide ? chained<u64> : chained<u32>;
  if (name.substr(0, 3) == "mad")
    d.lanes(run, bits, {bits, bits, bits});
  else
    d.lanes(run, bits, {bits, bits});
  d.inst().mode = u8((name.back() == 'c' ? kReads : 0) | (d.has("cc") ? kWrites : 0) |
                     (name.substr(0, 3) == "sub" ? kSubtracts : 0) | (d.has("hi") ? kHigh : 0));
}

template <class T>
void add(Decoder& d) {
  binary<T, [](T a, T b) { return wrap_add(a, b); }>(d);
}
template <class T>
void sub(Decoder& d) {
  binary<T, [](T a, T b) { return T(u64(a) - u64(b)); }>(d);
}
template <class T>
void div(Decoder& d) {
  binary<T, [](T a, T b) { return divide(a, b); }>(d);
}
template <class T>
void rem(Decoder& d) {
  binary<T, [](T a, T b) { return remainder(a, b); }>(d);
}
template <class T>
void min(Decoder& d) {
  binary<T, [](T a, T b) { return a < b ? a : b; }>(d);
}
template <class T>
void max(Decoder& d) {
  binary<T, [](T a, T b) { return a < b ? b : a; }>(d);
}
template <class T>
void neg(Decoder& d) {
  unary<T, [](T a) { return T(0 - u64(a)); }>(d);
}
template <class T>
void abs(Decoder& d) {
  unary<T, [](T a) { return a < 0 ? T(0 - u64(a)) : a; }>(d);
}
template <class T>
void sad(Decoder& d) {
  ternary<T, [](T a, T b, T c) { return wrap_add(c, T(a < b ? u64(b) - u64(a) : u64(a) - u64(b))); }>(d);
}

#define PTX_ALL_INTEGERS(f)                                                                                \
  {                                                                                                        \
    {"s16", f<s16>}, {"u16", f<u16>}, {"s32", f<s32>}, {"u32", f<u32>}, {"s64", f<s64>}, { "u64", f<u64> } \
  }

}  // namespace

void integer_add(Decoder& d) {
  if (d.has("cc")) return carry_chain(d);
  by_type(d, PTX_ALL_INTEGERS(add));
}
void integer_sub(Decoder& d) {
  if (d.has("cc")) return carry_chain(d);
  by_type(d, PTX_ALL_INTEGERS(sub));
}
void integer_mul(Decoder& d) { by_type(d, PTX_ALL_INTEGERS(mul)); }
void integer_mad(Decoder& d) {
  if (d.has("cc")) return carry_chain(d);
  by_type(d, PTX_ALL_INTEGERS(mad));
}
void integer_div(Decoder& d) { by_type(d, PTX_ALL_INTEGERS(div)); }
void integer_min(Decoder& d) { by_type(d, PTX_ALL_INTEGERS(min)); }
void integer_max(Decoder& d) { by_type(d, PTX_ALL_INTEGERS(max)); }
void integer_neg(Decoder& d) { by_type(d, {{"s16", neg<s16>}, {"s32", neg<s32>}, {"s64", neg<s64>}}); }
void integer_abs(Decoder& d) { by_type(d, {{"s16", abs<s16>}, {"s32", abs<s32>}, {"s64", abs<s64>}}); }

void add_integer(Table& table) {
  table["addc"] = table["subc"] = table["madc"] = carry_chain;
  table["rem"] = [](Decoder& d) { by_type(d, PTX_ALL_INTEGERS(rem)); };
  table["sad"] = [](Decoder& d) { by_type(d, PTX_ALL_INTEGERS(sad)); };
}

}  // namespace ptx
