// mov (with packing and unpacking) and cvta.
#include "lanes.h"

namespace ptx {
namespace {

/// Copies definedness along with the value: reading an undefined register is a fault only once it is
/// used.
template <class T>
void copy(Warp& w, const Inst& in, u32 mask) {
  const u32 defined = w.defined(in.op[1]), before = w.defined(in.op[0]);
  w.write(in.op[0], w.row<T>(in.op[1]), mask);
  w.defined(in.op[0]) = (before & ~mask) | (defined & mask);
}

void copy_predicate(Warp& w, const Inst& in, u32 mask) {
  w.require(in.op[1], mask);
  w.write_predicate(in.op[0], w.predicate(in.op[1]), mask);
}

u64 lane_value(Warp& w, u32 row, int reg_bits, int lane) {
  return reg_bits == 16 ? w.row<u16>(row)[lane] : w.row<u32>(row)[lane];
}

/// mov.b32 %r, {%rs, %rs}: the first element is the lowest part.
template <class T>
void join(Warp& w, const Inst& in, u32 mask) {
  const Extra& x = w.extra(in);
  T out[kLanes] = {};
  for (size_t i = 0; i < x.src.size(); ++i) {
    w.require(x.src[i], mask);
    for (int l = 0; l < kLanes; ++l)
      out[l] |= T(T(lane_value(w, x.src[i], x.reg_bits, l)) << (int(i) * x.reg_bits));
  }
  w.write(in.op[0], out, mask);
}

template <class T>
void split(Warp& w, const Inst& in, u32 mask) {
  const Extra& x = w.extra(in);
  const T* a = w.row<T>(in.op[1]);
  for (size_t i = 0; i < x.dst.size(); ++i) {
    u32 wide[kLanes];
    u16 narrow[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      wide[l] = u32(a[l] >> (int(i) * x.reg_bits));
      narrow[l] = u16(wide[l]);
    }
    x.reg_bits == 16 ? w.write(x.dst[i], narrow, mask) : w.write(x.dst[i], wide, mask);
  }
}

void decode_mov(Decoder& d) {
  const int bits = type_bits(d.type());
  Inst& in = d.inst();
  const Operand &to = d.operand(0), &from = d.operand(1);
  if (from.kind == Operand::kVector || to.kind == Operand::kVector) {
    const bool joins = from.kind == Operand::kVector;
    const Operand& list = joins ? from : to;
    const int part = bits / int(list.items.size());
    if (bits < 32 || part < 16 || part > 32) return;
    d.extra().reg_bits = part;
    if (joins) {
      d.extra().src = d.rows(from, part, false);
      in.op[0] = d.destination(to, bits);
      in.run = bits == 64 ? join<u64> : join<u32>;
    } else {
      d.extra().dst = d.rows(to, part, true);
      in.op[1] = d.source(from, bits);
      in.sources = 1;
      in.run = bits == 64 ? split<u64> : split<u32>;
    }
    return;
  }
  d.lanes(bits == 1    ? copy_predicate
          : bits == 16 ? copy<u16>
          : bits == 32 ? copy<u32>
                       : copy<u64>,
          bits, {bits});
  in.sources = 0;
}

/// Generic addresses of global memory are the addresses; the other spaces have a window each.
void decode_cvta(Decoder& d) {
  const bool to = d.has("to");
  if (d.type() != "u64") return;
  if (d.has("shared"))
    to ? unary<u64, [](u64 a) { return a - kSharedWindow; }>(d)
       : unary<u64, [](u64 a) { return a + kSharedWindow; }>(d);
  else if (d.has("local"))
    to ? unary<u64, [](u64 a) { return a - kLocalWindow; }>(d)
       : unary<u64, [](u64 a) { return a + kLocalWindow; }>(d);
  else if (d.has("param"))
    to ? unary<u64, [](u64 a) { return a - kParamWindow; }>(d)
       : unary<u64, [](u64 a) { return a + kParamWindow; }>(d);
  else if (d.has("global") || d.has("const"))
    unary<u64, [](u64 a) { return a; }>(d);
}

}  // namespace

void add_move(Table& table) {
  table["mov"] = decode_mov;
  table["cvta"] = decode_cvta;
}

}  // namespace ptx
