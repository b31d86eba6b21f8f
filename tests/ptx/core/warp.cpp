#include "machine.h"

namespace ptx {

Warp::Warp(Cta& cta, u32 index) : cta(cta), index(index) {
  const Kernel& kernel = cta.kernel;
  storage_.resize(size_t(kernel.rows) * kRowBytes / sizeof(Line));
  registers_.p = storage_.data()->bytes;
  defined_.resize(kernel.rows);
  for (const Constant& c : kernel.constants)
    for (int l = 0; l < kLanes; ++l) {
      if (c.width == 64)
        row<u64>(c.row)[l] = c.value;
      else if (c.width == 32)
        row<u32>(c.row)[l] = u32(c.value);
      else if (c.width == 16)
        row<u16>(c.row)[l] = u16(c.value);
      else
        predicate(c.row) = c.value ? kAllLanes : 0;
    }
  local.resize(size_t(kernel.local_bytes) * kLanes);
  local_state.resize(local.size());
}

namespace {

u32 special(const Cta& cta, const std::string& name, u32 warp, u32 lane) {
  const auto& config = cta.launch.config;
  const u32 thread = warp * kLanes + lane;
  const size_t axis = name.back() >= 'x' && name.back() <= 'z' ? size_t(name.back() - 'x') : 0;
  if (name.starts_with("%tid."))
    return axis == 0   ? thread % config.block[0]
           : axis == 1 ? thread / config.block[0] % config.block[1]
                       : thread / config.block[0] / config.block[1];
  if (name.starts_with("%ntid.")) return config.block[axis];
  if (name.starts_with("%ctaid.")) return cta.position[axis];
  if (name.starts_with("%nctaid.")) return config.grid[axis];
  if (name == "%laneid") return lane;
  if (name == "%warpid") return warp;
  if (name == "%nwarpid") return u32(cta.warps.size());
  if (name == "%dynamic_smem_size") return config.dynamic_shared;
  if (name == "%total_smem_size") return cta.shared.size();
  const u32 below = (1u << lane) - 1, self = 1u << lane;
  const std::string which = name.substr(name.size() - 2);  // of %lanemask_…
  return which == "eq"   ? self
         : which == "lt" ? below
         : which == "le" ? below | self
         : which == "ge" ? ~below
                         : ~(below | self);
}

}  // namespace

void Warp::start(u32 lanes) {
  alive = lanes;
  state = kReady;
  carry = 0;
  now_ = {0, lanes, -1, 0};
  others_.clear();
  meetings_.clear();
  flights.clear();
  groups.fill(0);
  fenced.reset();
  acquiring.clear();
  std::fill(defined_.begin(), defined_.begin() + cta.kernel.register_rows, 0);
  std::fill(defined_.begin() + cta.kernel.register_rows, defined_.end(), kAllLanes);
  std::fill(local.begin(), local.end(), kPoison);
  std::fill(local_state.begin(), local_state.end(), kUnwritten);
  for (const SpecialRow& s : cta.kernel.specials)
    for (u32 l = 0; l < kLanes; ++l) row<u32>(s.row)[l] = special(cta, s.name, index, l);
}

void Warp::run(int budget) {
  const Inst* code = cta.kernel.code.data();
  Stat* stats = cta.launch.stats.data();
  stop_ = false;
  const int given = budget;
  while (budget > 0 && !stop_) {
    const Inst& in = code[now_.pc];
    if (in.meeting && meet()) continue;
    --budget;
    u32 mask = now_.mask;
    if (in.guard) {
      fault_pc = now_.pc;
      require(in.guard, mask);
      const u32 p = predicate(in.guard);
      mask &= in.guard_negated ? ~p : p;
    }
    Stat& s = stats[now_.pc];
    s.issues++;
    s.lanes += u32(std::popcount(mask));
    fault_pc = now_.pc++;
    if (!mask) continue;
    for (int i = 1; i <= in.sources; ++i) require(in.op[i], mask);
    in.run(*this, in, mask);
  }
  cta.launch.executed += u64(given - budget);
  if (state == kReady && !others_.empty()) {  // let divergent lanes overtake each other
    others_.push_back(now_);
    now_.mask = 0;
    pick();
  }
}

void Warp::branch(u32 mask, u32 target, u32 reconvergence) {
  const u32 rest = now_.mask & ~mask;
  if (rest == 0)
    now_.pc = target;
  else
    diverge({{target, mask}, {now_.pc, rest}}, reconvergence);
}

void Warp::diverge(const std::vector<Fragment>& parts, u32 reconvergence) {
  int meeting = now_.meeting;
  const bool same = meeting >= 0 && meetings_[size_t(meeting)].pc == reconvergence;
  if (reconvergence != ~0u && !same) {  // a loop's next iteration joins the meeting of its first
    meetings_.push_back({reconvergence, now_.mask, 0, meeting});
    meeting = int(meetings_.size()) - 1;
  }
  for (Fragment part : parts) {
    part.meeting = meeting;
    others_.push_back(part);
  }
  now_.mask = 0;
  pick();
}

/// Called before an instruction where lanes may meet. True if now_ changed.
bool Warp::meet() {
  if (now_.meeting < 0 || meetings_[size_t(now_.meeting)].pc != now_.pc) return false;
  const int meeting = now_.meeting;
  meetings_[size_t(meeting)].arrived |= now_.mask;
  now_.mask = 0;
  settle(meeting);
  pick();
  return true;
}

/// Sends the lanes of a complete meeting on their way.
void Warp::settle(int index) {
  Meeting& m = meetings_[size_t(index)];
  if (m.arrived != m.expected) return;
  if (m.arrived) others_.push_back({m.pc, m.arrived, m.parent, 0});
  m.arrived = m.expected = 0;
  m.pc = ~0u;
}

void Warp::exit(u32 mask) {
  alive &= ~mask;
  now_.mask &= ~mask;
  std::vector<int> chain;
  for (int m = now_.meeting; m >= 0; m = meetings_[size_t(m)].parent) chain.push_back(m);
  for (int m : chain) {
    meetings_[size_t(m)].expected &= ~mask;
    settle(m);
  }
  if (alive == 0) {
    state = kDone;
    stop_ = true;
    cta.warp_done();
  } else if (now_.mask == 0) {
    pick();
  }
}

/// Continues with a random fragment among those that can.
void Warp::pick() {
  u32 able = 0;
  size_t chosen = 0;
  for (size_t i = 0; i < others_.size(); ++i) {
    const u32 needed = others_[i].needed & alive;
    if ((needed & ~others_[i].mask) == 0 && cta.random.below(++able) == 0) chosen = i;
  }
  if (able == 0) {
    fault_pc = others_.front().pc;
    fault("divergence", "lanes " + std::to_string(others_.front().mask) +
                            " (a bit mask) wait here for lanes that wait elsewhere" +
                            (others_.size() > 1 ? ", at " + cta.kernel.describe(others_[1].pc) : ""));
  }
  now_ = others_[chosen];
  now_.needed = 0;
  others_[chosen] = others_.back();
  others_.pop_back();
  if (others_.empty() && now_.meeting < 0) meetings_.clear();
}

bool Warp::converge(u32 mask, u32 required) {
  required &= alive;
  if ((required & ~mask) == 0) return true;
  if (mask != now_.mask) fault("divergence", "a predicate keeps away lanes that the instruction needs");
  --now_.pc;
  now_.needed = required;
  for (Fragment& f : others_)
    if (f.pc == now_.pc && f.meeting == now_.meeting) {
      f.mask |= now_.mask;
      f.needed |= required;
      now_.mask = 0;
      break;
    }
  if (now_.mask) others_.push_back(now_);
  now_.mask = 0;
  pick();
  return false;
}

void Warp::sync_lanes() { ++cta.known(index, index); }

const Extra& Warp::extra(const Inst& inst) const { return cta.kernel.extras[inst.extra]; }
u32 Warp::index_of(const Inst& inst) const { return u32(&inst - cta.kernel.code.data()); }
Stat& Warp::stat(const Inst& inst) { return cta.launch.stats[index_of(inst)]; }

void Warp::undefined(u32 r, u32 lanes) const {
  std::string name = "a register";
  u32 row = 2;
  for (const Register& reg : cta.kernel.body->registers) {
    if (row == r) name = reg.name;
    row += reg.width > 32 ? 2 : 1;
  }
  fault("uninitialised", name + " is read before it was written", std::countr_zero(lanes));
}

void Warp::fault(const std::string& rule, const std::string& what, int lane) const {
  const auto& p = cta.position;
  throw Fault(rule, what + "\n  at " + cta.kernel.describe(fault_pc) + "\n  in " + cta.kernel.body->name +
                        ", CTA (" + std::to_string(p[0]) + ", " + std::to_string(p[1]) + ", " +
                        std::to_string(p[2]) + "), warp " + std::to_string(index) +
                        (lane >= 0 ? ", lane " + std::to_string(lane) + " (thread " +
                                         std::to_string(index * kLanes + u32(lane)) + ")"
                                   : ""));
}

}  // namespace ptx
