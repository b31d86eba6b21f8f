// ld and st of every width, vector and space.
#include <set>

#include "access.h"
#include "lanes.h"

namespace ptx {
namespace {

/// Spreads memory elements over registers of a possibly larger width.
template <class Memory, class Reg>
void spread(Warp& w, const Extra& x, u32 mask, u8* const* from) {
  for (size_t i = 0; i < x.dst.size(); ++i) {
    Reg out[kLanes] = {};
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const int l = std::countr_zero(rest);
      Memory value;
      std::memcpy(&value, from[l] + i * sizeof(Memory), sizeof value);
      out[l] = Reg(value);
    }
    w.write(x.dst[i], out, mask);
  }
}

template <class Memory>
void spread_into(Warp& w, const Extra& x, u32 mask, u8* const* from) {
  if (x.reg_bits == 16)
    spread<Memory, u16>(w, x, mask, from);
  else if (x.reg_bits == 32)
    spread<Memory, u32>(w, x, mask, from);
  else
    spread<Memory, u64>(w, x, mask, from);
}

Use use_of(const Extra& x, bool write) {
  return {.read = !write, .write = write, .strong = x.strong, .non_coherent = x.non_coherent};
}

void load(Warp& w, const Inst& in, u32 mask) {
  const Extra& x = w.extra(in);
  u64 at[kLanes];
  u8* from[kLanes];
  lane_addresses(w, in, mask, at);
  locate(w, in, mask, at, u32(x.bytes * int(x.dst.size())), use_of(x, false), from);
  switch (x.bytes) {
    case 1:
      x.sign ? spread_into<s8>(w, x, mask, from) : spread_into<u8>(w, x, mask, from);
      break;
    case 2:
      x.sign ? spread_into<s16>(w, x, mask, from) : spread_into<u16>(w, x, mask, from);
      break;
    case 4:
      x.sign ? spread_into<s32>(w, x, mask, from) : spread_into<u32>(w, x, mask, from);
      break;
    default:
      spread_into<u64>(w, x, mask, from);
  }
  if (x.acquire) {
    observe(w, at[std::countr_zero(mask)]);
    fence(w);
  }
}

void store(Warp& w, const Inst& in, u32 mask) {
  const Extra& x = w.extra(in);
  u64 at[kLanes];
  u8* to[kLanes];
  lane_addresses(w, in, mask, at);
  for (u32 row : x.src) w.require(row, mask);
  locate(w, in, mask, at, u32(x.bytes * int(x.src.size())), use_of(x, true), to);
  const size_t reg_bytes = size_t(x.reg_bits / 8);
  for (size_t i = 0; i < x.src.size(); ++i) {
    const u8* values = w.row<u8>(x.src[i]);  // little endian: the low bytes come first
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const size_t l = size_t(std::countr_zero(rest));
      std::memcpy(to[l] + i * size_t(x.bytes), values + l * reg_bytes, size_t(x.bytes));
    }
  }
  if (x.release) {
    fence(w);
    publish(w, at[std::countr_zero(mask)]);
  }
}

/// The parts of an opcode that say nothing the interpreter must know: cache and scope hints.
bool is_hint(const std::string& part) {
  static const std::set<std::string> hints = {
      "ca",  "cg",  "cs",     "lu",     "cv",          "wb",    "wt",    "weak",         "cta",
      "gpu", "sys", "global", "shared", "shared::cta", "local", "param", "param::entry", "const"};
  return hints.contains(part) || part.starts_with("L1::") || part.starts_with("L2::");
}

void decode_access(Decoder& d) {
  const bool loads = d.statement().opcode[0] == "ld" || d.statement().opcode[0] == "ldu";
  const std::string& type = d.type();
  Inst& in = d.inst();
  d.address(loads ? 1 : 0, space_of(d));
  Extra& x = d.extra();
  for (size_t i = 1; i + 1 < d.statement().opcode.size(); ++i) {
    const std::string& part = d.statement().opcode[i];
    if (part == "nc" && loads)
      x.non_coherent = true;
    else if (part == "volatile" || part == "relaxed")
      x.strong = true;
    else if (part == "acquire" && loads)
      x.strong = x.acquire = true;
    else if (part == "release" && !loads)
      x.strong = x.release = true;
    else if (part != "v2" && part != "v4" && !is_hint(part))
      return;
  }
  d.accept_all();
  x.bytes = type_bits(type) / 8;
  x.sign = type[0] == 's';
  const Operand& data = d.operand(loads ? 0 : 1);
  const std::vector<Operand>& items = data.kind == Operand::kVector ? data.items : std::vector<Operand>{data};
  x.reg_bits = std::max(x.bytes * 8, 16);
  for (const Operand& item : items) x.reg_bits = std::max(x.reg_bits, d.width(item));
  if (x.bytes == 0 || x.bytes * int(items.size()) > 16 || d.operands() != 2) return;
  (loads ? x.dst : x.src) = d.rows(data, x.reg_bits, loads);
  in.run = loads ? load : store;
  in.kind = loads ? kind_of(x.space, Kind::kGlobalLoad, Kind::kSharedLoad)
                  : kind_of(x.space, Kind::kGlobalStore, Kind::kSharedStore);
}

void nothing(Warp&, const Inst&, u32) {}

}  // namespace

void add_memory(Table& table) {
  table["ld"] = table["ldu"] = table["st"] = decode_access;
  table["prefetch"] = table["prefetchu"] = [](Decoder& d) {
    d.accept_all();
    d.inst().run = nothing;
  };
}

}  // namespace ptx
