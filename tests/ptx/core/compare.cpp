// setp, set, selp and slct.
#include <cmath>

#include "formats.h"
#include "lanes.h"

namespace ptx {
namespace {

enum Combine : u8 { kPlain = 0, kAnd = 1, kOr = 2, kXor = 3 };

/// op[0] = dst p, op[1], op[2] = a, b, op[3] = predicate c of a combined comparison; imm = dst q.
template <class T, auto F>
void set_predicate(Warp& w, const Inst& in, u32 mask) {
  const T *a = w.row<T>(in.op[1]), *b = w.row<T>(in.op[2]);
  u32 yes = 0;
  for (int l = 0; l < kLanes; ++l) yes |= u32(F(a[l], b[l])) << l;
  u32 no = ~yes;
  if (in.mode != kPlain) {
    w.require(in.op[3], mask);
    const u32 c = w.predicate(in.op[3]) ^ (in.mode & 4 ? kAllLanes : 0);
    switch (in.mode & 3) {
      case kAnd:
        yes &= c, no &= c;
        break;
      case kOr:
        yes |= c, no |= c;
        break;
      default:
        yes ^= c, no ^= c;
    }
  }
  w.write_predicate(in.op[0], yes, mask);
  if (in.imm) w.write_predicate(u32(in.imm), no, mask);
}

struct Half {
  u16 raw;
  operator f32() const { return from_half(raw); }
};
struct Bfloat {
  u16 raw;
  operator f32() const { return from_bfloat(raw); }
};

template <class T>
using Value = std::conditional_t<std::is_same_v<T, Half> || std::is_same_v<T, Bfloat>, f32, T>;

template <class T, bool Float>
Handler comparison(const std::string& op) {
  using V = Value<T>;
#define PTX_COMPARE(name, expression) \
  if (op == name) return set_predicate<T, [](V a, V b) { return bool(expression); }>
  PTX_COMPARE("eq", a == b);
  PTX_COMPARE("lt", a < b);
  PTX_COMPARE("le", a <= b);
  PTX_COMPARE("gt", a > b);
  PTX_COMPARE("ge", a >= b);
  if constexpr (Float) {
    PTX_COMPARE("ne", a < b || a > b);
    PTX_COMPARE("equ", !(a < b || a > b));
    PTX_COMPARE("neu", a != b);
    PTX_COMPARE("ltu", !(a >= b));
    PTX_COMPARE("leu", !(a > b));
    PTX_COMPARE("gtu", !(a <= b));
    PTX_COMPARE("geu", !(a < b));
    PTX_COMPARE("num", a == a && b == b);
    PTX_COMPARE("nan", a != a || b != b);
  } else {
    PTX_COMPARE("ne", a != b);
    PTX_COMPARE("lo", a < b);
    PTX_COMPARE("ls", a <= b);
    PTX_COMPARE("hi", a > b);
    PTX_COMPARE("hs", a >= b);
  }
#undef PTX_COMPARE
  return nullptr;
}

Handler comparison_of(const std::string& type, const std::string& op) {
  if (type == "f32") return comparison<f32, true>(op);
  if (type == "f64") return comparison<f64, true>(op);
  if (type == "f16") return comparison<Half, true>(op);
  if (type == "bf16") return comparison<Bfloat, true>(op);
  if (type == "s16") return comparison<s16, false>(op);
  if (type == "s32") return comparison<s32, false>(op);
  if (type == "s64") return comparison<s64, false>(op);
  const int bits = type_bits(type);
  return bits == 16   ? comparison<u16, false>(op)
         : bits == 32 ? comparison<u32, false>(op)
         : bits == 64 ? comparison<u64, false>(op)
                      : nullptr;
}

void decode_setp(Decoder& d) {
  if (d.has("ftz")) return;
  const std::string& type = d.type();
  const Operand& dst = d.operand(0);
  const bool pair = dst.kind == Operand::kVector;
  Inst& in = d.inst();
  const std::string& op = d.statement().opcode[1];
  d.accept({op});
  in.run = comparison_of(type, op);
  in.op[0] = d.destination(pair ? dst.items[0] : dst, 1);
  in.imm = pair ? d.destination(dst.items[1], 1) : 0;
  in.op[1] = d.source(1, type_bits(type));
  in.op[2] = d.source(2, type_bits(type));
  in.sources = 2;
  if (d.operands() == 4) {
    const std::string& combine = d.statement().opcode[2];
    d.accept({combine});
    in.mode = combine == "and" ? kAnd : combine == "or" ? kOr : kXor;
    in.mode |= d.operand(3).negated ? 4 : 0;
    in.op[3] = d.source(3, 1);
  }
}

/// selp: the operand not chosen may be undefined; an undefined choice stays undefined.
template <class T>
void select(Warp& w, const Inst& in, u32 mask) {
  const T *a = w.row<T>(in.op[1]), *b = w.row<T>(in.op[2]);
  w.require(in.op[3], mask);
  const u32 p = w.predicate(in.op[3]);
  T out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = p >> l & 1 ? a[l] : b[l];
  const u32 defined = (w.defined(in.op[1]) & p) | (w.defined(in.op[2]) & ~p);
  const u32 before = w.defined(in.op[0]);
  w.write(in.op[0], out, mask);
  w.defined(in.op[0]) = (before & ~mask) | (defined & mask);
}

void decode_selp(Decoder& d) {
  const int bits = type_bits(d.type());
  d.lanes(bits == 16 ? select<u16> : bits == 32 ? select<u32> : select<u64>, bits, {bits, bits, 1});
  d.inst().sources = 0;
}

}  // namespace

void add_compare(Table& table) {
  table["setp"] = decode_setp;
  table["selp"] = decode_selp;
}

}  // namespace ptx
