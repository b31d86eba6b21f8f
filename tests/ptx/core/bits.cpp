// Logic, shifts and bit fields.
#include "lanes.h"

namespace ptx {
namespace {

template <class T>
T shift_left(T a, u32 n) {
  return n >= u32(kBits<T>) ? T(0) : T(a << n);
}
template <class T>
T shift_right(T a, u32 n) {
  if (n >= u32(kBits<T>)) n = u32(kBits<T>) - 1, a = std::is_signed_v<T> ? a : T(0);
  return T(a >> n);
}

template <class T>
void shl(Decoder& d) {
  d.lanes(map2<T, T, u32, [](T a, u32 n) { return shift_left(a, n); }>, kBits<T>, {kBits<T>, 32});
}
template <class T>
void shr(Decoder& d) {
  d.lanes(map2<T, T, u32, [](T a, u32 n) { return shift_right(a, n); }>, kBits<T>, {kBits<T>, 32});
}

/// A table of three inputs: bit (a,b,c) of `table`.
template <class T>
void lop3(Warp& w, const Inst& in, u32 mask) {
  const T *a = w.row<T>(in.op[1]), *b = w.row<T>(in.op[2]), *c = w.row<T>(in.op[3]);
  T out[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    T r = 0;
    for (int i = 0; i < 8; ++i)
      if (in.imm >> i & 1)
        r |= (i & 4 ? a[l] : T(~a[l])) & (i & 2 ? b[l] : T(~b[l])) & (i & 1 ? c[l] : T(~c[l]));
    out[l] = r;
  }
  w.write(in.op[0], out, mask);
}

void decode_lop3(Decoder& d) {
  if (d.operands() != 5 || d.operand(4).kind != Operand::kNumber || d.type() != "b32") return;
  d.inst().run = lop3<u32>;
  d.inst().op[0] = d.destination(0, 32);
  for (size_t i = 1; i < 4; ++i) d.inst().op[i] = d.source(i, 32);
  d.inst().sources = 3;
  d.inst().imm = s64(d.operand(4).number.bits);
}

template <class T>
T extract(T a, u32 position, u32 length) {
  position &= 255, length &= 255;
  const u32 top = std::min<u32>(position + length, u32(kBits<T>)) - 1;
  const bool fill = std::is_signed_v<T> && length && (a >> std::min<u32>(top, kBits<T> - 1) & 1);
  u64 field = position >= u32(kBits<T>) ? 0 : low_bits(u64(a), kBits<T>) >> position;
  field = low_bits(field, int(std::min<u32>(length, 64)));
  if (fill) field |= ~low_bits(~u64(0), int(std::min<u32>(length, 64)));
  return length == 0 ? T(0) : T(field);
}

template <class T>
void bfe(Decoder& d) {
  d.lanes(map3<T, T, u32, u32, [](T a, u32 p, u32 n) { return extract(a, p, n); }>, kBits<T>,
          {kBits<T>, 32, 32});
}

template <class T>
void bfi(Warp& w, const Inst& in, u32 mask) {
  const Extra& x = w.extra(in);
  for (u32 r : x.src) w.require(r, mask);
  const T *from = w.row<T>(x.src[0]), *into = w.row<T>(x.src[1]);
  const u32 *position = w.row<u32>(x.src[2]), *length = w.row<u32>(x.src[3]);
  T out[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const u32 p = position[l] & 255, n = length[l] & 255;
    const u64 field = p >= u32(kBits<T>) ? 0 : low_bits(~u64(0), int(std::min<u32>(n, 64))) << p;
    const u64 moved = p >= u32(kBits<T>) ? 0 : u64(from[l]) << p;
    out[l] = T((u64(into[l]) & ~field) | (moved & field));
  }
  w.write(in.op[0], out, mask);
}

void decode_bfi(Decoder& d) {
  const int width = d.type() == "b64" ? 64 : 32;
  d.inst().run = width == 64 ? bfi<u64> : bfi<u32>;
  d.inst().op[0] = d.destination(0, width);
  d.extra().src = {d.source(1, width), d.source(2, width), d.source(3, 32), d.source(4, 32)};
}

u32 permute(u32 a, u32 b, u32 selector) {
  const u64 both = u64(b) << 32 | a;
  u32 out = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 pick = selector >> (4 * i) & 15;
    u32 byte = u32(both >> (8 * (pick & 7))) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    out |= byte << (8 * i);
  }
  return out;
}

void decode_prmt(Decoder& d) {
  d.accept({"b32"});
  ternary<u32, [](u32 a, u32 b, u32 c) { return permute(a, b, c); }>(d);
}

template <bool Left, bool Wrap>
u32 funnel(u32 low, u32 high, u32 count) {
  const u32 n = Wrap ? count & 31 : std::min<u32>(count, 32);
  const u64 both = u64(high) << 32 | low;
  return Left ? u32(both << n >> 32) : u32(both >> n);
}

void decode_shf(Decoder& d) {
  const bool left = d.has("l"), wrap = d.has("wrap");
  d.accept({"r", "clamp", "b32"});
  if (left && wrap)
    ternary<u32, [](u32 a, u32 b, u32 c) { return funnel<true, true>(a, b, c); }>(d);
  else if (left)
    ternary<u32, [](u32 a, u32 b, u32 c) { return funnel<true, false>(a, b, c); }>(d);
  else if (wrap)
    ternary<u32, [](u32 a, u32 b, u32 c) { return funnel<false, true>(a, b, c); }>(d);
  else
    ternary<u32, [](u32 a, u32 b, u32 c) { return funnel<false, false>(a, b, c); }>(d);
}

template <class T>
u32 find_top(T a, bool shift_amount) {
  using U = std::make_unsigned_t<T>;
  U u = std::is_signed_v<T> && a < 0 ? U(~a) : U(a);
  if (u == 0) return ~0u;
  const u32 top = u32(kBits<T> - 1 - std::countl_zero(u));
  return shift_amount ? u32(kBits<T> - 1) - top : top;
}

template <class T>
void bfind(Decoder& d) {
  if (d.has("shiftamt"))
    d.lanes(map1<u32, T, [](T a) { return find_top(a, true); }>, 32, {kBits<T>});
  else
    d.lanes(map1<u32, T, [](T a) { return find_top(a, false); }>, 32, {kBits<T>});
}

template <class T>
T reverse(T a) {
  T out = 0;
  for (int i = 0; i < kBits<T>; ++i) out |= T(T(a >> i & 1) << (kBits<T> - 1 - i));
  return out;
}

/// and, or, xor, not on predicates: whole masks at once. mode: 0 and, 1 or, 2 xor, 3 not.
void predicate_logic(Warp& w, const Inst& in, u32 mask) {
  const u32 a = w.predicate(in.op[1]), b = w.predicate(in.op[2]);
  const u32 out = in.mode == 0 ? a & b : in.mode == 1 ? a | b : in.mode == 2 ? a ^ b : ~a;
  w.write_predicate(in.op[0], out, mask);
}

template <int Mode, auto F>
void logic(Decoder& d) {
  if (d.type() == "pred") {
    d.lanes(predicate_logic, 1, {1, 1});
    d.inst().mode = Mode;
    return;
  }
  by_type(d, {{"b16", binary<u16, [](u16 a, u16 b) { return u16(F(a, b)); }>},
              {"b32", binary<u32, [](u32 a, u32 b) { return u32(F(a, b)); }>},
              {"b64", binary<u64, [](u64 a, u64 b) { return u64(F(a, b)); }>}});
}

void decode_not(Decoder& d) {
  if (d.type() == "pred") {
    d.lanes(predicate_logic, 1, {1});
    d.inst().mode = 3;
    return;
  }
  by_type(d, {{"b16", unary<u16, [](u16 a) { return u16(~a); }>},
              {"b32", unary<u32, [](u32 a) { return ~a; }>},
              {"b64", unary<u64, [](u64 a) { return ~a; }>}});
}

template <class T>
void clz(Decoder& d) {
  d.lanes(map1<u32, T, [](T a) { return u32(std::countl_zero(a)); }>, 32, {kBits<T>});
}
template <class T>
void popc(Decoder& d) {
  d.lanes(map1<u32, T, [](T a) { return u32(std::popcount(a)); }>, 32, {kBits<T>});
}

}  // namespace

void add_bits(Table& table) {
  table["and"] = logic<0, [](u64 a, u64 b) { return a & b; }>;
  table["or"] = logic<1, [](u64 a, u64 b) { return a | b; }>;
  table["xor"] = logic<2, [](u64 a, u64 b) { return a ^ b; }>;
  table["not"] = decode_not;
  table["shl"] = [](Decoder& d) { by_type(d, {{"b16", shl<u16>}, {"b32", shl<u32>}, {"b64", shl<u64>}}); };
  table["shr"] = [](Decoder& d) {
    by_type(d, {{"u16", shr<u16>},
                {"u32", shr<u32>},
                {"u64", shr<u64>},
                {"b16", shr<u16>},
                {"b32", shr<u32>},
                {"b64", shr<u64>},
                {"s16", shr<s16>},
                {"s32", shr<s32>},
                {"s64", shr<s64>}});
  };
  table["shf"] = decode_shf;
  table["lop3"] = decode_lop3;
  table["prmt"] = decode_prmt;
  table["bfi"] = decode_bfi;
  table["bfe"] = [](Decoder& d) {
    by_type(d, {{"u32", bfe<u32>}, {"u64", bfe<u64>}, {"s32", bfe<s32>}, {"s64", bfe<s64>}});
  };
  table["bfind"] = [](Decoder& d) {
    by_type(d, {{"u32", bfind<u32>}, {"u64", bfind<u64>}, {"s32", bfind<s32>}, {"s64", bfind<s64>}});
  };
  table["clz"] = [](Decoder& d) { by_type(d, {{"b32", clz<u32>}, {"b64", clz<u64>}}); };
  table["popc"] = [](Decoder& d) { by_type(d, {{"b32", popc<u32>}, {"b64", popc<u64>}}); };
  table["brev"] = [](Decoder& d) {
    by_type(d, {{"b32", unary<u32, [](u32 a) { return reverse(a); }>},
                {"b64", unary<u64, [](u64 a) { return reverse(a); }>}});
  };
}

}  // namespace ptx
