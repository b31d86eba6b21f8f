// cvt: between all integer and floating-point types, with rounding and saturation.
#include <cmath>
#include <limits>

#include "formats.h"
#include "lanes.h"

namespace ptx {
namespace {

enum class Format : u8 { kS8, kU8, kS16, kU16, kS32, kU32, kS64, kU64, kF16, kBf16, kF32, kF64, kTf32 };

struct FormatInfo {
  const char* name;
  Format format;
  int bits;
};
constexpr FormatInfo kFormats[] = {
    {"s8", Format::kS8, 8},      {"u8", Format::kU8, 8},    {"s16", Format::kS16, 16},
    {"u16", Format::kU16, 16},   {"s32", Format::kS32, 32}, {"u32", Format::kU32, 32},
    {"s64", Format::kS64, 64},   {"u64", Format::kU64, 64}, {"f16", Format::kF16, 16},
    {"bf16", Format::kBf16, 16}, {"f32", Format::kF32, 32}, {"f64", Format::kF64, 64},
    {"tf32", Format::kTf32, 32}};

const FormatInfo* format_of(const std::string& name) {
  for (const FormatInfo& f : kFormats)
    if (name == f.name) return &f;
  return nullptr;
}

bool is_integer(Format f) { return f <= Format::kU64; }
bool is_signed(Format f) {
  return f == Format::kS8 || f == Format::kS16 || f == Format::kS32 || f == Format::kS64;
}

using Int = __int128;

/// How to convert, packed into Inst::imm.
struct Plan {
  Format from, to;
  u8 from_bits, to_bits;  // of the formats
  u8 from_reg, to_reg;    // of the registers, which may be wider
  Round mode;
  bool integral : 1, saturate : 1;  // .rni and so on; .sat
};
static_assert(sizeof(Plan) == sizeof(Inst::imm));

Int load_integer(const Plan& p, u64 raw) {
  raw = low_bits(raw, p.from_bits);
  if (is_signed(p.from) && p.from_bits < 64 && raw >> (p.from_bits - 1) & 1)
    raw |= ~low_bits(~u64(0), p.from_bits);
  return is_signed(p.from) ? Int(s64(raw)) : Int(raw);
}

f64 load_float(const Plan& p, u64 raw) {
  switch (p.from) {
    case Format::kF16:
      return f64(from_half(u16(raw)));
    case Format::kBf16:
      return f64(from_bfloat(u16(raw)));
    case Format::kF32:
      return f64(bits<f32>(u32(raw)));
    default:
      return bits<f64>(raw);
  }
}

u64 store_integer(const Plan& p, Int value, bool clamp) {
  if (clamp) {
    const Int top = (Int(1) << (p.to_bits - (is_signed(p.to) ? 1 : 0))) - 1;
    const Int bottom = is_signed(p.to) ? -top - 1 : Int(0);
    value = value > top ? top : value < bottom ? bottom : value;
  }
  u64 raw = low_bits(u64(value), p.to_bits);
  if (is_signed(p.to) && p.to_bits < 64 && raw >> (p.to_bits - 1) & 1)
    raw |= ~low_bits(~u64(0), p.to_bits);  // a wider register takes the sign
  return raw;
}

f64 to_integral(f64 x, Round mode) {
  switch (mode) {
    case Round::kNearestEven:
      return std::nearbyint(x);
    case Round::kZero:
      return std::trunc(x);
    case Round::kDown:
      return std::floor(x);
    default:
      return std::ceil(x);
  }
}

u64 store_float(const Plan& p, f64 x) {
  if (p.saturate) x = x > 0 ? std::fmin(x, 1.0) : 0;
  switch (p.to) {
    case Format::kF16:
      return to_half(x, p.mode);
    case Format::kBf16:
      return to_bfloat(x, p.mode);
    case Format::kF32:
      return bits<u32>(p.mode == Round::kNearestEven ? f32(x) : f32(round_to(x, 23, -126, 127, p.mode)));
    case Format::kTf32:
      return bits<u32>(to_tf32(f32(x), p.mode));
    default:
      return bits<u64>(x);
  }
}

u64 from_integer_to_float(const Plan& p, Int value) {
  // An integer of 64 bits does not fit a double: round here, once, to the target's precision.
  const int mantissa = p.to == Format::kF64 ? 52 : p.to == Format::kF32 ? 23 : p.to == Format::kF16 ? 10 : 7;
  Int magnitude = value < 0 ? -value : value;
  int shift = 0;
  while (magnitude >> shift >= Int(1) << (mantissa + 1)) ++shift;
  const Int rest = magnitude & ((Int(1) << shift) - 1), half = shift ? Int(1) << (shift - 1) : 0;
  Int whole = magnitude >> shift;
  const bool up = p.mode == Round::kNearestEven ? shift && (rest > half || (rest == half && (whole & 1)))
                  : p.mode == Round::kDown      ? rest && value < 0
                  : p.mode == Round::kUp        ? rest && value > 0
                                                : false;
  whole += up;
  const f64 x = std::ldexp(f64(u64(whole)), shift);
  return store_float(p, value < 0 ? -x : x);
}

u64 convert(const Plan& p, u64 raw) {
  if (is_integer(p.from)) {
    const Int value = load_integer(p, raw);
    return is_integer(p.to) ? store_integer(p, value, p.saturate) : from_integer_to_float(p, value);
  }
  f64 x = load_float(p, raw);
  if (p.integral) x = to_integral(x, p.mode);
  if (!is_integer(p.to)) return store_float(p, x);
  // Float to integer always saturates; NaN becomes 0.
  if (std::isnan(x)) return 0;
  return store_integer(p, Int(std::clamp(x, -0x1p65, 0x1p65)), true);
}

u64 load_row(Warp& w, u32 row, int reg_bits, int lane) {
  return reg_bits == 16   ? w.row<u16>(row)[lane]
         : reg_bits == 32 ? w.row<u32>(row)[lane]
                          : w.row<u64>(row)[lane];
}

void convert_lanes(Warp& w, const Inst& in, u32 mask) {
  const Plan p = bits<Plan>(in.imm);
  u64 out[kLanes] = {};
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int l = std::countr_zero(rest);
    out[l] = convert(p, load_row(w, in.op[1], p.from_reg, l));
  }
  if (p.to_reg == 64) {
    w.write(in.op[0], out, mask);
  } else if (p.to_reg == 32) {
    u32 narrow[kLanes];
    std::copy(out, out + kLanes, narrow);
    w.write(in.op[0], narrow, mask);
  } else {
    u16 narrow[kLanes];
    std::copy(out, out + kLanes, narrow);
    w.write(in.op[0], narrow, mask);
  }
}

Round rounding(Decoder& d) {
  d.accept({"rn", "rni"});
  if (d.has("rz") || d.has("rzi")) return Round::kZero;
  if (d.has("rm") || d.has("rmi")) return Round::kDown;
  if (d.has("rp") || d.has("rpi")) return Round::kUp;
  return d.has("rna") ? Round::kNearestAway : Round::kNearestEven;
}

/// cvt.rn.f16x2.f32 d, a, b: a becomes the upper half.
template <auto F>
void pack(Warp& w, const Inst& in, u32 mask) {
  const f32 *a = w.row<f32>(in.op[1]), *b = w.row<f32>(in.op[2]);
  u32 out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = u32(F(a[l])) << 16 | F(b[l]);
  w.write(in.op[0], out, mask);
}

/// Conversions that C++ makes the same way, and that kernels are full of.
template <class To, class From>
bool plain(Decoder& d) {
  d.lanes(map1<To, From, [](From x) { return To(x); }>, kBits<To>, {kBits<From>});
  return true;
}

bool decode_plain(Decoder& d, const std::string& to, const std::string& from) {
  const bool registers_fit = d.width(d.operand(0)) == type_bits(to) &&
                             (d.width(d.operand(1)) == 0 || d.width(d.operand(1)) == type_bits(from));
  if (!registers_fit || d.statement().opcode.size() > (d.has("rn") ? 4 : 3)) return false;
  const bool nearest = d.has("rn");
  return from == "s32" && (to == "s64" || to == "u64")                      ? plain<s64, s32>(d)
         : from == "u32" && (to == "s64" || to == "u64")                    ? plain<u64, u32>(d)
         : (from == "u64" || from == "s64") && (to == "u32" || to == "s32") ? plain<u32, u64>(d)
         : from == "s32" && to == "f32" && nearest                          ? plain<f32, s32>(d)
         : from == "u32" && to == "f32" && nearest                          ? plain<f32, u32>(d)
         : from == "f32" && to == "f64"                                     ? plain<f64, f32>(d)
         : from == "f64" && to == "f32" && nearest                          ? plain<f32, f64>(d)
                                                                            : false;
}

bool decode_common(Decoder& d, const std::string& to, const std::string& from) {
  if (decode_plain(d, to, from)) return true;
  const bool nearest = d.has("rn") && !d.has("relu") && !d.has("satfinite");
  if (to == "f16x2" && from == "f32" && nearest)
    d.lanes(pack<[](f32 x) { return to_half(f64(x)); }>, 32, {32, 32});
  else if (to == "bf16x2" && from == "f32" && nearest)
    d.lanes(pack<[](f32 x) { return fast_bfloat(x); }>, 32, {32, 32});
  else if (to == "bf16" && from == "f32" && nearest)
    d.lanes(map1<u16, f32, [](f32 x) { return fast_bfloat(x); }>, 16, {32});
  else if (to == "f32" && from == "bf16")
    d.lanes(map1<f32, u16, [](u16 x) { return from_bfloat(x); }>, 32, {16});
  else if (to == "f32" && from == "f16" && !d.has("ftz"))
    d.lanes(map1<f32, u16, [](u16 x) { return from_half(x); }>, 32, {16});
  else if (to == "tf32" && d.has("rna"))
    d.lanes(map1<u32, u32,
                 [](u32 x) { return (x & 0x7f800000) == 0x7f800000 ? x : (x + 0x1000) & ~u32(0x1fff); }>,
            32, {32});
  else
    return false;
  return true;
}

void decode_cvt(Decoder& d) {
  const std::string &to = d.type(1), &from = d.type(0);
  if (decode_common(d, to, from)) return;
  const FormatInfo *target = format_of(to), *source = format_of(from);
  if (!target || !source || d.operands() != 2 || d.has("relu") || d.has("satfinite") || d.has("ftz")) return;
  Plan plan{};
  plan.from = source->format, plan.to = target->format;
  plan.from_bits = u8(source->bits), plan.to_bits = u8(target->bits);
  const int from_reg = d.width(d.operand(1));
  plan.from_reg = u8(from_reg ? from_reg : std::max(32, source->bits));
  plan.to_reg = u8(d.width(d.operand(0)));
  if (plan.from_reg < plan.from_bits || plan.to_reg < plan.to_bits) return;
  plan.mode = rounding(d);
  plan.integral = d.has("rni") || d.has("rzi") || d.has("rmi") || d.has("rpi");
  plan.saturate = d.has("sat");
  d.lanes(convert_lanes, plan.to_reg, {plan.from_reg});
  d.inst().imm = bits<s64>(plan);
}

}  // namespace

void add_convert(Table& table) { table["cvt"] = decode_cvt; }

}  // namespace ptx
