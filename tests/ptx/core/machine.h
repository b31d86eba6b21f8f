// A running kernel: launch, CTA, warp. A warp's lanes may diverge into fragments, each with its own
// program counter; they meet again at the immediate post-dominator of the branch that parted them.
#pragma once

#include <array>
#include <bit>

#include "memory.h"

namespace ptx {

struct LaunchConfig {
  std::array<u32, 3> grid{1, 1, 1}, block{1, 1, 1};
  u32 dynamic_shared = 0;
  u64 seed = 0;
  u64 max_instructions = 0;  // a run that takes more warp instructions counts as endless
};

struct Launch {
  const Kernel& kernel;
  Device& device;
  LaunchConfig config;
  std::vector<u8> parameters;
  std::vector<Stat> stats;  // one for each instruction
  u64 executed = 0;
  std::unordered_map<u64, Released> released;  // by the address of an atomic
  void run();
};

struct Fragment {
  u32 pc = 0, mask = 0;
  int meeting = -1;  // index of the Meeting these lanes head for
  u32 needed = 0;    // lanes that a .sync instruction waits for
};

/// Lanes of a divergent branch, waiting for each other.
struct Meeting {
  u32 pc = 0, expected = 0, arrived = 0;
  int parent = -1;
};

/// A cp.async that was issued and has not landed.
struct Flight {
  u32 offset, group, inst;  // offset in shared memory
  u8 lane, bytes;
  std::array<u8, 16> data;
};

class Warp {
 public:
  enum State : u8 { kReady, kAtBarrier, kDone };
  Warp(Cta& cta, u32 index);
  void start(u32 lanes);
  void run(int budget);

  template <class T>
  T* row(u32 r) {
    return reinterpret_cast<T*>(registers_.data() + size_t(r) * kRowBytes);
  }
  u32& predicate(u32 r) { return *row<u32>(r); }
  void define(u32 r, u32 mask) { defined_[r] |= mask; }
  u32& defined(u32 r) { return defined_[r]; }
  void require(u32 r, u32 mask) {
    if (mask & ~defined_[r]) undefined(r, mask & ~defined_[r]);
  }
  template <class T>
  void write(u32 r, const T* values, u32 mask) {
    T* to = row<T>(r);
    if (mask == kAllLanes)
      std::memcpy(to, values, sizeof(T) * kLanes);
    else
      for (int l = 0; l < kLanes; ++l) to[l] = (mask >> l & 1) ? values[l] : to[l];
    defined_[r] |= mask;
  }
  void write_predicate(u32 r, u32 values, u32 mask) {
    predicate(r) = (predicate(r) & ~mask) | (values & mask);
    defined_[r] |= mask;
  }

  // ---- flow ----
  void branch(u32 mask, u32 target, u32 reconvergence);
  void diverge(const std::vector<Fragment>& parts, u32 reconvergence);
  void exit(u32 mask);
  /// False if lanes of `required` are elsewhere: the instruction will run again once they are here.
  bool converge(u32 mask, u32 required);
  void sync_lanes();  // what bar.warp.sync does to memory order
  void yield() { stop_ = true; }

  [[noreturn]] void fault(const std::string& rule, const std::string& what, int lane = -1) const;
  const Extra& extra(const Inst& inst) const;
  Stat& stat(const Inst& inst);
  u32 index_of(const Inst& inst) const;
  u32 clock() const;

  Cta& cta;
  const u32 index;
  u32 alive = 0, carry = 0;
  State state = kDone;
  std::vector<u8> local, local_state;  // per-thread memory, lane after lane
  std::vector<Flight> flights;
  std::array<u32, kLanes> groups{};  // cp.async groups committed by each lane
  std::shared_ptr<const Snapshot> fenced;
  Released acquiring;   // seen through atomics, in force from the next fence on
  u32 barrier_row = 0;  // destination of the bar.red it waits in
  u32 barrier = 0;      // the barrier it waits at
  u32 fault_pc = 0;

 private:
  void pick();
  bool meet();
  void settle(int meeting);
  [[noreturn]] void undefined(u32 r, u32 lanes) const;

  struct alignas(64) Line {
    u8 bytes[64];
  };
  std::vector<Line> storage_;
  std::vector<u32> defined_;
  struct View {
    u8* p = nullptr;
    u8* data() const { return p; }
  } registers_;
  Fragment now_;
  std::vector<Fragment> others_;
  std::vector<Meeting> meetings_;
  bool stop_ = false;
};

struct Barrier {
  u32 arrived = 0, expected = 0;  // threads; expected 0: all that have not exited
  std::vector<u32> waiting;       // warps
  std::vector<u32> clocks;        // joined clocks of those that arrived
  enum Reduction : u8 { kNone, kPopc, kAnd, kOr } reduction = kNone;
  u32 count = 0;  // of true predicates
};

class Cta {
 public:
  Cta(Launch& launch);
  void run(u32 index);

  void arrive(Warp& warp, u32 id, u32 threads, bool wait);
  void warp_done();
  u32& known(u32 warp, u32 other) { return known_[warp * u32(warps.size()) + other]; }
  Snapshot snapshot(u32 warp);

  Launch& launch;
  const Kernel& kernel;
  u32 index = 0;
  std::array<u32, 3> position{};
  std::vector<Warp> warps;
  SharedMemory shared;
  std::array<Barrier, 16> barriers;
  Random random{0};
  u32 generation = 1;  // number of barriers completed, plus one
  u32 clock_base = 0;  // shared clocks of earlier CTAs lie below
  Released acquired;

 private:
  void release(Barrier& barrier);
  [[noreturn]] void deadlock();
  std::vector<u32> known_;  // vector clocks of the warps
};

inline u32 Warp::clock() const { return cta.known(index, index); }

}  // namespace ptx
