// Branches, returns and traps.
#include "lanes.h"

namespace ptx {
namespace {

void jump(Warp& w, const Inst& in, u32 mask) {
  const Extra& x = w.extra(in);
  w.branch(mask, x.targets[0], x.reconvergence);
}

/// brx.idx: a table of targets.
void jump_indexed(Warp& w, const Inst& in, u32 mask) {
  const Extra& x = w.extra(in);
  const u32* index = w.row<u32>(in.op[1]);
  std::vector<Fragment> parts;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int l = std::countr_zero(rest);
    if (index[l] >= x.targets.size())
      w.fault("out of bounds",
              "branch index " + std::to_string(index[l]) + " of " + std::to_string(x.targets.size()), l);
    const u32 target = x.targets[index[l]];
    auto same = std::find_if(parts.begin(), parts.end(), [&](const Fragment& f) { return f.pc == target; });
    if (same == parts.end())
      parts.push_back({target, 1u << l});
    else
      same->mask |= 1u << l;
  }
  if (parts.size() == 1)
    w.branch(parts[0].mask, parts[0].pc, x.reconvergence);
  else
    w.diverge(parts, x.reconvergence);
}

void leave(Warp& w, const Inst&, u32 mask) { w.exit(mask); }
void trap(Warp& w, const Inst&, u32) { w.fault("trap", "the kernel gave up by trap"); }
void call(Warp& w, const Inst&, u32) {
  w.fault("unknown instruction", "functions that were not inlined are not interpreted");
}
void nothing(Warp&, const Inst&, u32) {}

void decode_branch(Decoder& d) {
  d.accept({"uni"});  // a promise, which the interpreter needs not rely on
  d.extra().targets = {d.label(d.operand(0).name)};
  d.inst().run = jump;
}

void decode_indexed_branch(Decoder& d) {
  if (d.inst().guard || !d.has("idx")) return;
  d.accept({"uni"});
  d.inst().op[1] = d.source(0, 32);
  d.inst().sources = 1;
  for (const std::string& name : d.branch_targets(d.operand(1).name))
    d.extra().targets.push_back(d.label(name));
  d.inst().run = jump_indexed;
}

}  // namespace

void add_flow(Table& table) {
  table["bra"] = decode_branch;
  table["brx"] = decode_indexed_branch;
  table["ret"] = table["exit"] = [](Decoder& d) {
    d.accept({"uni"});
    d.inst().run = leave;
    d.inst().kind = Kind::kExit;
  };
  table["trap"] = [](Decoder& d) {
    d.inst().run = trap;
    d.inst().kind = Kind::kExit;
  };
  table["call"] = [](Decoder& d) {
    d.accept_all();
    d.inst().run = call;
  };
  table["nanosleep"] = [](Decoder& d) {
    d.accept({"u32"});
    d.inst().run = nothing;
  };
}

}  // namespace ptx
