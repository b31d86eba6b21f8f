// Exchange among the lanes of a warp (shfl, vote, redux) and barriers (bar, fence).
#include "access.h"
#include "lanes.h"

namespace ptx {
namespace {

/// The member mask, which must be the same in every lane that executes.
u32 members(Warp& w, u32 row, u32 mask) {
  w.require(row, mask);
  const u32* values = w.row<u32>(row);
  const u32 first = values[std::countr_zero(mask)];
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int l = std::countr_zero(rest);
    if (values[l] != first) w.fault("divergence", "lanes name different member masks", l);
    if (!(first >> l & 1)) w.fault("divergence", "a lane executes that its own member mask leaves out", l);
  }
  return first;
}

enum Mode : u8 { kUp, kDown, kButterfly, kIndex };

/// src: value, lane operand, clamp and segment, member mask; dst: result and, if asked for, predicate.
void shuffle(Warp& w, const Inst& in, u32 mask) {
  const Extra& x = w.extra(in);
  if (!w.converge(mask, members(w, x.src[3], mask))) return;
  for (u32 row : x.src) w.require(row, mask);
  const u32 *a = w.row<u32>(x.src[0]), *b = w.row<u32>(x.src[1]), *c = w.row<u32>(x.src[2]);
  u32 out[kLanes] = {}, valid = 0;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = u32(std::countr_zero(rest));
    const u32 step = b[lane] & 31, clamp = c[lane] & 31, segment = c[lane] >> 8 & 31;
    const u32 last = (lane & segment) | (clamp & ~segment);
    u32 from = 0;
    bool good = false;
    switch (in.mode) {
      case kUp:
        from = lane - step, good = s32(from) >= s32(last);
        break;
      case kDown:
        from = lane + step, good = from <= last;
        break;
      case kButterfly:
        from = lane ^ step, good = from <= last;
        break;
      default:
        from = (lane & segment) | (step & ~segment), good = from <= last;
    }
    if (!good) from = lane;
    if (!(mask >> from & 1))
      w.fault("divergence", "reads lane " + std::to_string(from) + ", which does not take part", int(lane));
    out[lane] = a[from];
    valid |= u32(good) << lane;
  }
  w.write(x.dst[0], out, mask);
  if (x.dst.size() > 1) w.write_predicate(x.dst[1], valid, mask);
}

void decode_shuffle(Decoder& d) {
  if (!d.has("sync") || d.type() != "b32" || d.operands() != 5) return;
  static const char* modes[] = {"up", "down", "bfly", "idx"};
  const Operand& to = d.operand(0);
  const bool pair = to.kind == Operand::kVector;
  d.extra().dst.push_back(d.destination(pair ? to.items[0] : to, 32));
  if (pair) d.extra().dst.push_back(d.destination(to.items[1], 1));
  for (size_t i = 1; i < 5; ++i) d.extra().src.push_back(d.source(i, 32));
  for (u8 mode = 0; mode < 4; ++mode)
    if (d.has(modes[mode])) {
      d.inst().mode = mode;
      d.inst().run = shuffle;
    }
}

enum Vote : u8 { kAll, kAny, kUniform, kBallot };

void vote(Warp& w, const Inst& in, u32 mask) {
  const u32 group = members(w, in.op[2], mask);
  if (!w.converge(mask, group)) return;
  w.require(in.op[1], mask);
  const u32 p = (w.predicate(in.op[1]) ^ (in.imm ? kAllLanes : 0)) & group & mask;
  const u32 whole = group & mask;
  if (in.mode == kBallot) {
    u32 out[kLanes];
    std::fill(out, out + kLanes, p);
    w.write(in.op[0], out, mask);
  } else {
    const bool yes = in.mode == kAll ? p == whole : in.mode == kAny ? p != 0 : p == 0 || p == whole;
    w.write_predicate(in.op[0], yes ? kAllLanes : 0, mask);
  }
}

void decode_vote(Decoder& d) {
  if (!d.has("sync") || d.operands() != 3) return;
  Inst& in = d.inst();
  in.mode = d.has("all") ? kAll : d.has("any") ? kAny : d.has("uni") ? kUniform : kBallot;
  d.accept({"ballot", "pred", "b32"});
  in.op[0] = d.destination(0, in.mode == kBallot ? 32 : 1);
  in.op[1] = d.source(1, 1);
  in.op[2] = d.source(2, 32);
  in.imm = d.operand(1).negated;
  in.run = vote;
}

template <class T, auto F>
void reduce(Warp& w, const Inst& in, u32 mask) {
  if (!w.converge(mask, members(w, in.op[2], mask))) return;
  const T* a = w.row<T>(in.op[1]);
  T sum = a[std::countr_zero(mask)];
  for (u32 rest = mask & (mask - 1); rest; rest &= rest - 1) sum = F(sum, a[std::countr_zero(rest)]);
  T out[kLanes];
  std::fill(out, out + kLanes, sum);
  w.write(in.op[0], out, mask);
}

void decode_redux(Decoder& d) {
  const bool sign = d.type() == "s32";
  const Handler run = d.has("add")   ? reduce<u32, [](u32 a, u32 b) { return a + b; }>
                      : d.has("and") ? reduce<u32, [](u32 a, u32 b) { return a & b; }>
                      : d.has("or")  ? reduce<u32, [](u32 a, u32 b) { return a | b; }>
                      : d.has("xor") ? reduce<u32, [](u32 a, u32 b) { return a ^ b; }>
                      : d.has("min") ? (sign ? reduce<s32, [](s32 a, s32 b) { return std::min(a, b); }>
                                             : reduce<u32, [](u32 a, u32 b) { return std::min(a, b); }>)
                      : d.has("max") ? (sign ? reduce<s32, [](s32 a, s32 b) { return std::max(a, b); }>
                                             : reduce<u32, [](u32 a, u32 b) { return std::max(a, b); }>)
                                     : nullptr;
  if (d.has("sync") && type_bits(d.type()) == 32 && d.type()[0] != 'f') d.lanes(run, 32, {32, 32});
}

void active_mask(Warp& w, const Inst& in, u32 mask) {
  u32 out[kLanes];
  std::fill(out, out + kLanes, mask);
  w.write(in.op[0], out, mask);
}

void sync_warp(Warp& w, const Inst& in, u32 mask) {
  if (w.converge(mask, members(w, in.op[1], mask))) w.sync_lanes();
}

/// bar.sync, bar.arrive and bar.red. op[1]: barrier; op[2]: threads (0: all); op[3]: predicate.
template <bool Wait>
void barrier(Warp& w, const Inst& in, u32 mask) {
  if (!w.converge(mask, kAllLanes)) return;
  const int first = std::countr_zero(mask);
  w.require(in.op[1], mask);
  w.require(in.op[2], mask);
  const u32 id = w.row<u32>(in.op[1])[first], threads = w.row<u32>(in.op[2])[first];
  if (id > 15 || threads % kLanes)
    w.fault("barrier", "barrier " + std::to_string(id) + " for " + std::to_string(threads) +
                           " threads: there are 16 barriers, and they count whole warps");
  if (in.mode != Barrier::kNone) {
    w.require(in.op[3], mask);
    const u32 p = w.predicate(in.op[3]) ^ (in.imm ? kAllLanes : 0);
    Barrier& b = w.cta.barriers[id];
    b.reduction = Barrier::Reduction(in.mode);
    b.count += u32(std::popcount((in.mode == Barrier::kAnd ? ~p : p) & mask));
    w.barrier_row = in.op[0];
  }
  w.cta.arrive(w, id, threads, Wait);
}

void decode_barrier(Decoder& d) {
  Inst& in = d.inst();
  in.kind = Kind::kBarrier;
  d.accept({"cta", "aligned", "sync", "pred", "u32"});
  if (d.has("warp")) {
    in.op[1] = d.source(0, 32);
    in.run = sync_warp;
    return;
  }
  const bool reduces = d.has("red");
  d.accept({"or"});
  size_t at = 0;
  if (reduces) {
    in.mode = d.has("popc") ? Barrier::kPopc : d.has("and") ? Barrier::kAnd : Barrier::kOr;
    in.op[0] = d.destination(at++, d.has("popc") ? 32 : 1);
  }
  in.op[1] = d.source(at++, 32);
  const bool counted = at + (reduces ? 1 : 0) < d.operands();
  in.op[2] = counted ? d.source(at++, 32) : d.constant(0, 32);
  if (reduces) {
    in.imm = d.operand(at).negated;
    in.op[3] = d.source(at++, 1);
  }
  if (at == d.operands())
    in.run = d.has("arrive") ? barrier<false> : d.has("sync") || reduces ? barrier<true> : nullptr;
}

void fence_instruction(Warp& w, const Inst&, u32) { fence(w); }

}  // namespace

void add_warp(Table& table) {
  table["shfl"] = decode_shuffle;
  table["vote"] = decode_vote;
  table["redux"] = decode_redux;
  table["activemask"] = [](Decoder& d) {
    d.accept({"b32"});
    d.lanes(active_mask, 32, {});
  };
  table["bar"] = table["barrier"] = decode_barrier;
  table["membar"] = table["fence"] = [](Decoder& d) {
    d.accept({"cta", "gl", "gpu", "sys", "sc", "acq_rel"});
    d.inst().run = fence_instruction;
  };
}

}  // namespace ptx
