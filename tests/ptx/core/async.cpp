// cp.async. A copy is issued, belongs to a group once committed, and lands only when its thread waits
// for the group: earlier than that nothing may touch the bytes it is to fill.
#include "access.h"
#include "lanes.h"

namespace ptx {
namespace {

void issue(Warp& w, const Inst& in, u32 mask) {
  const Extra& x = w.extra(in);  // base: the destination; src: source address, and source size
  u64 to[kLanes], from[kLanes];
  u8* data[kLanes] = {};
  lane_addresses(w, in, mask, to);
  for (u32 row : x.src) w.require(row, mask);
  u32 reading = 0;
  u32 sizes[kLanes];
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int l = std::countr_zero(rest);
    from[l] = w.row<u64>(x.src[0])[l] + u64(in.imm);
    sizes[l] = x.src.size() > 1 ? w.row<u32>(x.src[1])[l] : u32(x.bytes);
    if (sizes[l] > u32(x.bytes))
      w.fault("cp.async",
              "the source size " + std::to_string(sizes[l]) + " exceeds " + std::to_string(x.bytes), l);
    if (from[l] & u64(x.bytes - 1))
      w.fault("misaligned",
              "the source address of a " + std::to_string(x.bytes) + "-byte copy is not a multiple of that",
              l);
    reading |= u32(sizes[l] > 0) << l;
  }
  for (u32 size = 1; size <= u32(x.bytes); ++size) {  // all lanes of one size at once
    u32 same = 0;
    for (int l = 0; l < kLanes; ++l) same |= u32((reading >> l & 1) && sizes[l] == size) << l;
    if (same) access_global(w, in, same, from, size, {.read = true}, data);
  }
  SharedMemory& shared = w.cta.shared;
  u32 narrow[kLanes];
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int l = std::countr_zero(rest);
    narrow[l] = u32(to[l]);
    const u32 offset = narrow[l] - kSharedBase;
    if (to[l] >> 32 || offset >= shared.size() || offset + u32(x.bytes) > shared.size())
      w.fault("out of bounds",
              "the destination is shared byte " + std::to_string(s32(offset)) + " of " +
                  std::to_string(shared.size()),
              l);
    if (offset & u32(x.bytes - 1))
      w.fault("misaligned", "the destination is not a multiple of " + std::to_string(x.bytes), l);
    Flight flight{offset, w.groups[size_t(l)], w.index_of(in), u8(l), u8(x.bytes), {}};
    if (sizes[l]) std::memcpy(flight.data.data(), data[l], sizes[l]);
    for (u32 b = 0; b < u32(x.bytes); ++b)
      if (shared.state[offset + b] == kInFlight)
        w.fault("cp.async",
                "another copy to shared byte " + std::to_string(offset + b) + " is still in flight", l);
    shared.note_write(w, l, offset, u32(x.bytes), false, flight.inst);
    std::memset(shared.state.data() + offset, kInFlight, size_t(x.bytes));
    w.flights.push_back(flight);
  }
  count_wavefronts(w.stat(in), mask, narrow, u32(x.bytes));
}

void commit(Warp& w, const Inst&, u32 mask) {
  for (u32 rest = mask; rest; rest &= rest - 1) ++w.groups[size_t(std::countr_zero(rest))];
}

/// imm: how many of the newest groups may stay in flight; negative: none, and uncommitted copies land
/// too (wait_all).
void wait(Warp& w, const Inst& in, u32 mask) {
  SharedMemory& shared = w.cta.shared;
  std::erase_if(w.flights, [&](const Flight& f) {
    const s64 groups = w.groups[f.lane];
    if (!(mask >> f.lane & 1) || (in.imm >= 0 && s64(f.group) >= groups - in.imm)) return false;
    std::memcpy(shared.data.data() + f.offset, f.data.data(), f.bytes);
    std::memset(shared.state.data() + f.offset, kWritten, f.bytes);
    shared.note_write(w, f.lane, f.offset, f.bytes, false, f.inst);
    return true;
  });
}

void decode_async(Decoder& d) {
  const auto& parts = d.statement().opcode;
  if (parts.size() < 3 || parts[1] != "async") return;
  Inst& in = d.inst();
  d.accept({"async", parts[2], "L2::64B", "L2::128B", "L2::256B"});
  if (parts[2] == "commit_group") {
    in.run = commit;
  } else if (parts[2] == "wait_all" || (parts[2] == "wait_group" && d.operand(0).kind == Operand::kNumber)) {
    in.run = wait;
    in.imm = parts[2] == "wait_all" ? -1 : s64(d.operand(0).number.bits);
  } else if ((parts[2] == "ca" || parts[2] == "cg") && (d.has("shared") || d.has("shared::cta")) &&
             d.has("global") && d.operands() >= 3 && d.operands() <= 4) {
    d.address(0, Space::kShared);
    const Operand& from = d.operand(1);
    if (from.kind != Operand::kAddress || from.reg < 0 || d.operand(2).kind != Operand::kNumber) return;
    Extra& x = d.extra();
    x.bytes = int(d.operand(2).number.bits);
    in.imm = from.offset;
    x.src.push_back(d.source(Operand{.kind = Operand::kRegister, .reg = from.reg}, 64));
    if (d.operands() == 4) {
      if (d.width(d.operand(3)) == 1)  // the form with a predicate
        return;
      x.src.push_back(d.source(3, 32));
    }
    const bool size_known = parts[2] == "cg" ? x.bytes == 16 : x.bytes == 4 || x.bytes == 8 || x.bytes == 16;
    in.run = size_known ? issue : nullptr;
    in.kind = Kind::kAsyncCopy;
  }
}

}  // namespace

void add_async(Table& table) { table["cp"] = decode_async; }

}  // namespace ptx
