// Device memory: allocations, and the rules for every access to them.
#include <algorithm>

#include "machine.h"

namespace ptx {
namespace {

constexpr int kAllocationShift = 36;

std::string hex(u64 value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

Allocation& Device::allocate(u64 size, const std::string& name) {
  auto fresh = std::make_unique<Allocation>();
  fresh->base = u64(allocations_.size() + 1) << kAllocationShift;
  fresh->size = size;
  fresh->name = name;
  fresh->data.assign(size, kPoison);
  fresh->state.assign(size, kUnwritten);
  allocations_.push_back(std::move(fresh));
  return *allocations_.back();
}

void Device::release(u64 base) {
  if (Allocation* found = find(base)) allocations_[size_t(found->base >> kAllocationShift) - 1].reset();
}

Allocation* Device::find(u64 address) {
  const u64 index = (address >> kAllocationShift) - 1;
  return index < allocations_.size() ? allocations_[size_t(index)].get() : nullptr;
}

void count_sectors(Stat& stat, u32 mask, const u64* at, u32 bytes) {
  u64 sectors[kLanes];
  u32 used[kLanes];
  int count = 0;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u64 address = at[std::countr_zero(rest)];
    const u64 sector = address >> 5;
    const u32 touched = u32(low_bits(~u64(0), int(bytes)) << (address & 31));
    int i = count - 1;
    while (i >= 0 && sectors[i] != sector) --i;
    if (i < 0) {
      i = count++;
      sectors[i] = sector;
      used[i] = 0;
    }
    used[i] |= touched;
  }
  stat.sectors += u64(count);
  for (int i = 0; i < count; ++i) stat.used_bytes += u64(std::popcount(used[i]));
}

namespace {

/// One warp's access, with what the order rules need at hand.
class Access {
 public:
  Access(Warp& warp, const Inst& inst, u32 bytes, Use use)
      : warp_(warp), cta_(warp.cta), inst_(inst), bytes_(bytes), use_(use) {
    mine_.used = 1;
    mine_.strong = use.strong;
    mine_.warp = warp.index;
    mine_.clock = warp.clock();
    mine_.cta = cta_.index;
  }

  u8* lane(int lane, u64 at) {
    if (!memory_ || at - memory_->base >= memory_->size) memory_ = find(lane, at);
    const u64 offset = at - memory_->base;
    if (offset + bytes_ > memory_->size)
      warp_.fault("out of bounds", what(at) + " ends outside of " + describe(), lane);
    if (std::has_single_bit(bytes_) && (at & (bytes_ - 1)))  // cp.async may read 12 of 16 bytes
      warp_.fault("misaligned", what(at) + " is not a multiple of its size", lane);
    u8* state = memory_->state.data() + offset;
    if (use_.read && !all_written(state, bytes_))
      for (u32 b = 0; b < bytes_; ++b)
        if (state[b] != kWritten)
          warp_.fault("uninitialised",
                      what(at) + " reads byte " + std::to_string(offset + b) + " of " + describe() +
                          ", which nothing has written",
                      lane);
    order(lane, offset);
    if (use_.write) std::memset(state, kWritten, bytes_);
    return memory_->data.data() + offset;
  }

 private:
  std::string what(u64 at) const { return std::to_string(bytes_) + " bytes at " + hex(at); }
  std::string describe() const {
    return "'" + memory_->name + "' (" + std::to_string(memory_->size) + " bytes at " + hex(memory_->base) +
           ")";
  }

  Allocation* find(int lane, u64 at) {
    Allocation* found = cta_.launch.device.find(at);
    if (!found) warp_.fault("out of bounds", what(at) + " lie in no buffer", lane);
    memory_ = found;
    if (at - found->base >= found->size)
      warp_.fault("out of bounds", what(at) + " lie outside of " + describe(), lane);
    if (found->launch != cta_.launch.device.launches) {
      found->launch = cta_.launch.device.launches;
      const size_t words = size_t(found->size + 3) / 4;
      found->readers.assign(words, {});
      found->writers.assign(words, {});
      found->writer_inst.assign(words, 0);
    }
    return found;
  }

  /// Does the earlier access happen before this lane's?
  bool ordered(const GlobalAccess& earlier, int lane) const {
    if (earlier.cta == mine_.cta) {
      if (earlier.many_warps) return earlier.clock < cta_.generation;
      if (earlier.warp == mine_.warp)
        return (!earlier.many_lanes && earlier.lane == u32(lane)) || earlier.clock < mine_.clock;
      return earlier.clock <= cta_.known(warp_.index, earlier.warp);
    }
    auto released = cta_.acquired.find(u32(earlier.cta));
    if (released == cta_.acquired.end()) return false;
    const Snapshot& snapshot = *released->second;
    return earlier.many_warps ? earlier.clock < snapshot.generation
                              : earlier.clock <= snapshot.clocks[earlier.warp];
  }

  void order(int lane, u64 offset) {
    for (u64 word = offset / 4; word * 4 < offset + bytes_; ++word) {
      const u64 begin = std::max(offset, word * 4) - word * 4;
      const u64 end = std::min(offset + bytes_, word * 4 + 4) - word * 4;
      mine_.bytes = ((1u << end) - 1) & ~((1u << begin) - 1);
      mine_.lane = u32(lane);
      GlobalAccess& writer = memory_->writers[size_t(word)];
      GlobalAccess& reader = memory_->readers[size_t(word)];
      if (use_.non_coherent && writer.used)
        warp_.fault("non-coherent",
                    what(memory_->base + offset) +
                        " are read through the read-only cache (ld.global.nc), but "
                        "this launch writes them",
                    lane);
      if (conflicts(writer, lane)) race(lane, word, "written", writer, true);
      if (use_.write && conflicts(reader, lane)) race(lane, word, "read", reader, false);
      if (use_.write) {
        writer = mine_;
        memory_->writer_inst[size_t(word)] = warp_.index_of(inst_);
      } else {
        note_reader(reader, lane);
      }
    }
  }

  bool conflicts(const GlobalAccess& earlier, int lane) const {
    return earlier.used && (earlier.bytes & mine_.bytes) && !(earlier.strong && mine_.strong) &&
           !ordered(earlier, lane);
  }

  void note_reader(GlobalAccess& reader, int lane) const {
    if (!reader.used || ordered(reader, lane)) {
      reader = mine_;
      return;
    }
    reader.bytes |= mine_.bytes;
    reader.strong &= mine_.strong;
    if (reader.cta != mine_.cta) {
      reader.cta = GlobalAccess::kManyCtas;
    } else if (reader.warp != mine_.warp) {
      reader.many_warps = 1;
      reader.clock = cta_.generation;
    } else {
      reader.many_lanes = 1;
    }
  }

  [[noreturn]] void race(int lane, u64 word, const char* verb, const GlobalAccess& earlier,
                         bool writer) const {
    std::string who = earlier.cta == GlobalAccess::kManyCtas ? "several CTAs"
                      : earlier.cta != mine_.cta             ? "CTA number " + std::to_string(earlier.cta)
                      : earlier.many_warps                   ? "several warps"
                                                             : "warp " + std::to_string(earlier.warp);
    if (!earlier.many_lanes && !earlier.many_warps && earlier.cta != GlobalAccess::kManyCtas)
      who += " lane " + std::to_string(earlier.lane);
    warp_.fault("race",
                std::string(use_.write ? "write" : "read") + " of byte " + std::to_string(word * 4) + " of " +
                    describe() + ", " + verb + " by " + who +
                    (writer ? " at " + cta_.kernel.describe(memory_->writer_inst[size_t(word)]) : "") +
                    " with nothing that orders the two",
                lane);
  }

  Warp& warp_;
  Cta& cta_;
  const Inst& inst_;
  const u32 bytes_;
  const Use use_;
  Allocation* memory_ = nullptr;
  GlobalAccess mine_;
};

}  // namespace

void access_global(Warp& warp, const Inst& inst, u32 mask, const u64* at, u32 bytes, Use use, u8** out) {
  Access access(warp, inst, bytes, use);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    out[lane] = access.lane(lane, at[lane]);
  }
  count_sectors(warp.stat(inst), mask, at, bytes);
}

}  // namespace ptx
