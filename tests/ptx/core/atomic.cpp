// atom and red: read-modify-write, lane after lane in seeded order, as hardware promises none.
#include <numeric>

#include "access.h"
#include "formats.h"
#include "lanes.h"

namespace ptx {
namespace {

enum class Op : u8 { kAdd, kMin, kMax, kInc, kDec, kAnd, kOr, kXor, kExchange, kCompare };

template <class T>
T apply(Op op, T old, T b, T c) {
  if constexpr (std::is_integral_v<T>) {
    switch (op) {
      case Op::kInc:
        return old >= b ? T(0) : T(old + 1);
      case Op::kDec:
        return old == 0 || old > b ? b : T(old - 1);
      case Op::kAnd:
        return old & b;
      case Op::kOr:
        return old | b;
      case Op::kXor:
        return old ^ b;
      case Op::kExchange:
        return b;
      case Op::kCompare:
        return old == b ? c : old;
      case Op::kAdd:
        return T(u64(old) + u64(b));
      default:
        break;
    }
  }
  return op == Op::kMin ? std::min(old, b) : op == Op::kMax ? std::max(old, b) : old + b;
}

/// Two packed 16-bit floats; only addition exists.
template <f32 (*Load)(u16), u16 (*Store)(f64, Round)>
struct Pair {
  u32 raw;
  friend Pair operator+(Pair a, Pair b) {
    u32 out = 0;
    for (int s = 0; s < 32; s += 16)
      out |= u32(Store(f64(Load(u16(a.raw >> s))) + f64(Load(u16(b.raw >> s))), Round::kNearestEven)) << s;
    return {out};
  }
  friend bool operator<(Pair a, Pair b) { return a.raw < b.raw; }
};
using HalfPair = Pair<from_half, to_half>;
using BfloatPair = Pair<from_bfloat, to_bfloat>;

template <class T>
void atomic(Warp& w, const Inst& in, u32 mask) {
  const Extra& x = w.extra(in);
  u64 at[kLanes];
  u8* place[kLanes];
  lane_addresses(w, in, mask, at);
  for (u32 row : x.src) w.require(row, mask);
  if (x.release) fence(w);
  locate(w, in, mask, at, sizeof(T), {.read = true, .write = true, .strong = true}, place);
  int order[kLanes];
  std::iota(order, order + kLanes, 0);
  for (u32 i = kLanes; i > 1; --i) std::swap(order[i - 1], order[w.cta.random.below(i)]);
  T out[kLanes] = {};
  const T *b = w.row<T>(x.src[0]), *c = w.row<T>(x.src.back());
  for (int l : order) {
    if (!(mask >> l & 1)) continue;
    T old;
    std::memcpy(&old, place[l], sizeof old);
    const T fresh = apply(Op(in.mode), old, b[l], c[l]);
    std::memcpy(place[l], &fresh, sizeof fresh);
    out[l] = old;
    publish(w, at[l]);
    observe(w, at[l]);
  }
  if (!x.dst.empty()) w.write(x.dst[0], out, mask);
  if (x.acquire) fence(w);
}

void decode_atomic(Decoder& d) {
  static const std::pair<const char*, Op> names[] = {
      {"add", Op::kAdd},       {"min", Op::kMin},    {"max", Op::kMax}, {"inc", Op::kInc},
      {"dec", Op::kDec},       {"and", Op::kAnd},    {"or", Op::kOr},   {"xor", Op::kXor},
      {"exch", Op::kExchange}, {"cas", Op::kCompare}};
  static const std::pair<const char*, Handler> types[] = {
      {"u32", atomic<u32>},        {"s32", atomic<s32>},          {"b32", atomic<u32>}, {"u64", atomic<u64>},
      {"s64", atomic<s64>},        {"b64", atomic<u64>},          {"f32", atomic<f32>}, {"f64", atomic<f64>},
      {"f16x2", atomic<HalfPair>}, {"bf16x2", atomic<BfloatPair>}};
  if (d.has("v2") || d.has("v4") || d.has("v8")) return;
  d.accept({"relaxed", "cta", "gpu", "sys", "noftz"});
  const size_t to = d.statement().opcode[0] == "atom" ? 1 : 0;  // index of the address
  const int bits = type_bits(d.type());
  Inst& in = d.inst();
  d.address(to, space_of(d));
  Extra& x = d.extra();
  for (size_t i = to + 1; i < d.operands(); ++i) x.src.push_back(d.source(i, bits));
  if (to) x.dst = {d.destination(0, bits)};
  x.acquire = d.has("acquire") || d.has("acq_rel");
  x.release = d.has("release") || d.has("acq_rel");
  in.kind = kind_of(x.space, Kind::kGlobalAtomic, Kind::kSharedAtomic);
  Handler run = nullptr;
  for (const auto& [name, handler] : types)
    if (d.type() == name) run = handler;
  const bool integer = d.type()[0] == 'u' || d.type()[0] == 's' || d.type()[0] == 'b';
  for (const auto& [name, op] : names)
    if (d.has(name) && (d.type().find("bf") == 0 || d.type()[0] == 'f' ? op == Op::kAdd : integer)) {
      in.mode = u8(op);
      in.run = x.src.size() == (op == Op::kCompare ? 2u : 1u) ? run : nullptr;
    }
}

}  // namespace

void add_atomic(Table& table) { table["atom"] = table["red"] = decode_atomic; }

}  // namespace ptx
