#include <algorithm>

#include "machine.h"

namespace ptx {

Cta::Cta(Launch& launch) : launch(launch), kernel(launch.kernel) {
  const auto& block = launch.config.block;
  const u32 threads = block[0] * block[1] * block[2];
  const u32 count = (threads + kLanes - 1) / kLanes;
  warps.reserve(count);
  for (u32 i = 0; i < count; ++i) warps.emplace_back(*this, i);
}

void Cta::run(u32 index_) {
  const auto& [grid, block, dynamic_shared, seed, max_instructions] = launch.config;
  index = index_;
  position = {index % grid[0], index / grid[0] % grid[1], index / grid[0] / grid[1]};
  random.state = mix(mix(seed) + index);
  const u32 count = u32(warps.size());
  if (!known_.empty()) clock_base += *std::max_element(known_.begin(), known_.end());
  known_.assign(size_t(count) * count, 0);
  for (u32 w = 0; w < count; ++w) known(w, w) = 1;
  generation = 1;
  acquired.clear();
  barriers.fill({});
  shared.start(kernel.dynamic_base + dynamic_shared, count, clock_base);
  u32 threads = block[0] * block[1] * block[2];
  for (Warp& w : warps) {
    const u32 lanes = std::min<u32>(threads, kLanes);
    w.start(lanes == kLanes ? kAllLanes : (1u << lanes) - 1);
    threads -= lanes;
  }
  std::vector<u32> ready;
  for (;;) {
    ready.clear();
    bool done = true;
    for (const Warp& w : warps) {
      done &= w.state == Warp::kDone;
      if (w.state == Warp::kReady) ready.push_back(w.index);
    }
    if (done) return;
    if (ready.empty()) deadlock();
    Warp& next = warps[ready[random.below(u32(ready.size()))]];
    next.run(int(1 + random.below(200)));
    if (launch.executed > max_instructions)
      next.fault("endless",
                 "more than " + std::to_string(max_instructions) + " warp instructions were executed");
  }
}

void Cta::arrive(Warp& warp, u32 id, u32 threads, bool wait) {
  Barrier& b = barriers[id];
  if (b.arrived && b.expected != threads)
    warp.fault("barrier", "barrier " + std::to_string(id) + " is used with " + std::to_string(threads) +
                              " threads and with " + std::to_string(b.expected) + " (0 means all)");
  b.expected = threads;
  b.arrived += kLanes;
  b.clocks.resize(warps.size());
  for (u32 w = 0; w < warps.size(); ++w) b.clocks[w] = std::max(b.clocks[w], known(warp.index, w));
  ++known(warp.index, warp.index);  // what follows is not covered
  if (wait) {
    b.waiting.push_back(warp.index);
    warp.barrier = id;
    warp.state = Warp::kAtBarrier;
    warp.yield();
  }
  release(b);
}

void Cta::release(Barrier& b) {
  u32 expected = b.expected;
  if (expected == 0)
    for (const Warp& w : warps) expected += w.state == Warp::kDone ? 0 : kLanes;
  if (b.arrived == 0 || b.arrived < expected) return;
  for (u32 w : b.waiting) {
    for (u32 other = 0; other < warps.size(); ++other)
      known(w, other) = std::max(known(w, other), b.clocks[other]);
    Warp& warp = warps[w];
    warp.state = Warp::kReady;
    if (b.reduction == Barrier::kPopc) {
      std::array<u32, kLanes> value;
      value.fill(b.count);
      warp.write(warp.barrier_row, value.data(), warp.alive);
    } else if (b.reduction != Barrier::kNone) {
      bool all = b.reduction == Barrier::kAnd ? b.count == 0 : b.count > 0;
      warp.write_predicate(warp.barrier_row, all ? kAllLanes : 0, warp.alive);
    }
  }
  b = {};
  ++generation;
}

void Cta::warp_done() {
  for (Barrier& b : barriers)  // those that wait for all wait for one warp less
    release(b);
}

Snapshot Cta::snapshot(u32 warp) {
  Snapshot s;
  for (u32 w = 0; w < warps.size(); ++w) s.clocks.push_back(known(warp, w));
  s.generation = generation;
  return s;
}

void Cta::deadlock() {
  std::string what = "no warp can go on:";
  for (const Warp& w : warps)
    if (w.state == Warp::kAtBarrier)
      what += "\n  warp " + std::to_string(w.index) + " waits at barrier " + std::to_string(w.barrier) +
              ", " + kernel.describe(w.fault_pc);
  for (const Warp& w : warps)
    if (w.state == Warp::kAtBarrier) w.fault("deadlock", what);
  throw Fault("deadlock", what);
}

void Launch::run() {
  stats.assign(kernel.code.size(), {});
  executed = 0;
  ++device.launches;
  const auto& grid = config.grid;
  std::vector<u32> order(size_t(grid[0]) * grid[1] * grid[2]);
  for (u32 i = 0; i < order.size(); ++i) order[i] = i;
  Random random{mix(config.seed ^ 0x5eed)};
  for (u32 i = u32(order.size()); i > 1; --i)  // CTAs run one after another, in random order
    std::swap(order[i - 1], order[random.below(i)]);
  Cta cta(*this);
  for (u32 index : order) cta.run(index);
}

}  // namespace ptx
