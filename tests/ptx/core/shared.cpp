// Shared memory: bounds, alignment, initialisation, order and bank conflicts.
#include <algorithm>

#include "machine.h"

namespace ptx {

void SharedMemory::start(u32 bytes, u32 warps, u32 clock_base) {
  data.assign(bytes, kPoison);
  state.assign(bytes, kUnwritten);
  const size_t words = (bytes + 3) / 4;
  if (writers_.size() != words || warps_ != warps) {
    writers_.assign(words, {});
    readers_.assign(words * warps, {});
  }  // else: what earlier CTAs left lies below clock_base and orders before everything
  warps_ = warps;
  base_ = clock_base;
}

bool SharedMemory::ordered(const Warp& warp, int lane, u32 other, u32 other_lane, u32 clock) const {
  if (other == warp.index) return other_lane == u32(lane) || clock < base_ + warp.clock();
  return clock <= base_ + warp.cta.known(warp.index, other);
}

namespace {

constexpr int kManyLanes = 255;  // in a record: several lanes of the warp, or all

/// The part of word `word` that [offset, offset + count) covers, as a 4-bit mask.
u32 covered(u32 word, u32 offset, u32 count) {
  const u32 begin = std::max(offset, word * 4) - word * 4;
  const u32 end = std::min(offset + count, word * 4 + 4) - word * 4;
  return ((1u << end) - 1) & ~((1u << begin) - 1);
}

std::string touched(u32 word) { return "shared byte " + std::to_string(word * 4); }

}  // namespace

void SharedMemory::note_read(Warp& warp, int lane, u32 offset, u32 count, bool strong) {
  const u32 now = base_ + warp.clock();
  for (u32 word = offset / 4; word * 4 < offset + count; ++word) {
    const u32 bytes = covered(word, offset, count);
    Reader& r = readers_[size_t(word) * warps_ + warp.index];
    const bool again = r.clock == now;
    // Checked before, for all lanes, and a write since then would have met this record.
    if (again && r.lane == kManyLanes && (r.bytes & bytes) == bytes && r.strong <= strong) continue;
    const Writer& w = writers_[word];
    if ((w.bytes & bytes) && !(w.strong && strong) && !ordered(warp, lane, w.warp, w.lane, w.clock))
      warp.fault("race",
                 touched(word) + " is read, and written by warp " + std::to_string(w.warp) + " lane " +
                     std::to_string(w.lane) + " at " + warp.cta.kernel.describe(w.inst) +
                     " with no barrier between",
                 lane == kManyLanes ? -1 : lane);
    if (again) {
      r.lane = r.lane == lane ? r.lane : u8(kManyLanes);
      r.bytes |= u8(bytes);
      r.strong &= strong;
    } else {
      r = {now, u8(lane), u8(bytes), strong};
    }
  }
}

void SharedMemory::note_write(Warp& warp, int lane, u32 offset, u32 count, bool strong, u32 inst) {
  for (u32 word = offset / 4; word * 4 < offset + count; ++word) {
    const u32 bytes = covered(word, offset, count);
    Writer& w = writers_[word];
    if ((w.bytes & bytes) && !(w.strong && strong) && !ordered(warp, lane, w.warp, w.lane, w.clock))
      warp.fault("race",
                 touched(word) + " is written, and written by warp " + std::to_string(w.warp) + " lane " +
                     std::to_string(w.lane) + " at " + warp.cta.kernel.describe(w.inst) +
                     " with no barrier between",
                 lane);
    for (u32 other = 0; other < warps_; ++other) {
      const Reader& r = readers_[size_t(word) * warps_ + other];
      if (r.clock > base_ && (r.bytes & bytes) && !(r.strong && strong) &&
          !ordered(warp, lane, other, r.lane, r.clock))
        warp.fault("race",
                   touched(word) + " is written, and read by warp " + std::to_string(other) +
                       (r.lane == kManyLanes ? "" : " lane " + std::to_string(r.lane)) +
                       " with no barrier between",
                   lane);
    }
    w = {base_ + warp.clock(), inst, u8(warp.index), u8(lane), u8(bytes), strong};
  }
}

void count_wavefronts(Stat& stat, u32 mask, const u32* at, u32 bytes) {
  const int lanes = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;  // that one pass can serve
  const u32 width = (bytes + 3) / 4;
  for (int first = 0; first < kLanes; first += lanes) {
    u32 rest = (mask >> first) & u32(low_bits(~u64(0), lanes));
    if (!rest) continue;
    u32 words[kLanes][kLanes];  // the distinct words asked of each bank
    u8 count[kLanes] = {};
    u8 most = 1;
    u32 last = ~0u;
    for (; rest; rest &= rest - 1) {
      const u32 begin = at[first + std::countr_zero(rest)] / 4;
      if (begin == last)  // a broadcast
        continue;
      last = begin;
      for (u32 word = begin; word < begin + width; ++word) {
        const u32 bank = word % kLanes;
        u8 i = 0;
        while (i < count[bank] && words[bank][i] != word) ++i;
        if (i == count[bank]) {
          words[bank][count[bank]++] = word;
          most = std::max(most, count[bank]);
        }
      }
    }
    stat.wavefronts += most;
    stat.ideal += 1;
  }
}

namespace {

/// Says what is wrong with an access, lane by lane; called when a check of the whole warp failed.
[[noreturn]] void explain(Warp& warp, u32 mask, const u32* offsets, u32 bytes, Use use) {
  const SharedMemory& shared = warp.cta.shared;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    const u32 offset = offsets[lane];
    const std::string where = std::to_string(bytes) + " bytes at shared byte " + std::to_string(s32(offset));
    if (offset >= shared.size() || offset + bytes > shared.size())
      warp.fault("out of bounds", where + " of a block with " + std::to_string(shared.size()), lane);
    if (offset & (bytes - 1))
      warp.fault("misaligned", where + " is not a multiple of the access's size", lane);
    for (u32 b = 0; b < bytes; ++b) {
      if (shared.state[offset + b] == kInFlight)
        warp.fault("cp.async",
                   where +
                       " are still in flight: no wait_group of the thread that "
                       "issued the copy came before",
                   lane);
      if (use.read && shared.state[offset + b] != kWritten)
        warp.fault("uninitialised", where + " were never written", lane);
    }
  }
  warp.fault("internal", "a check failed without a reason");
}

bool none_in_flight(const u8* state, u32 bytes) {
  return std::find(state, state + bytes, u8(kInFlight)) == state + bytes;
}

}  // namespace

void access_shared(Warp& warp, const Inst& inst, u32 mask, const u32* at, u32 bytes, Use use, u8** out) {
  SharedMemory& shared = warp.cta.shared;
  const u32 index = warp.index_of(inst);
  u32 offsets[kLanes];
  u32 largest = 0, low = 0;
  for (int l = 0; l < kLanes; ++l) {
    const bool active = mask >> l & 1;
    offsets[l] = at[l] - kSharedBase;
    largest = std::max(largest, active ? offsets[l] : 0);
    low |= active ? offsets[l] : 0;
  }
  if (u64(largest) + bytes > shared.size() || (low & (bytes - 1))) explain(warp, mask, offsets, bytes, use);
  u32 last = ~0u;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    const u32 offset = offsets[lane];
    u8* state = shared.state.data() + offset;
    out[lane] = shared.data.data() + offset;
    if (use.read) {
      // A word that several lanes read is noted once as read by all of them.
      const bool again = offset == last;
      last = offset;
      if (!again && !all_written(state, bytes)) explain(warp, mask, offsets, bytes, use);
      const bool many = use.collective || again;
      shared.note_read(warp, many ? kManyLanes : lane, offset, bytes, use.strong);
    }
    if (use.write) {
      if (!none_in_flight(state, bytes)) explain(warp, mask, offsets, bytes, use);
      shared.note_write(warp, lane, offset, bytes, use.strong, index);
      std::memset(state, kWritten, bytes);
    }
  }
  count_wavefronts(warp.stat(inst), mask, at, bytes);
}

}  // namespace ptx
