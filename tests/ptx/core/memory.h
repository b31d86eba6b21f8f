// The two memories that threads share, with the rules that hardware does not enforce: bounds,
// alignment, initialisation and order.
#pragma once

#include <memory>
#include <unordered_map>

#include "program.h"

namespace ptx {

class Warp;
class Cta;

enum ByteState : u8 { kUnwritten = 0, kWritten = 1, kInFlight = 2 };  // in flight: an unlanded cp.async

/// For the at most 16 bytes of one lane's access.
inline bool all_written(const u8* state, u32 bytes) {
  constexpr u64 kAll = kWritten * 0x0101010101010101;
  u64 pair[2] = {kAll, kAll};
  std::memcpy(pair, state, bytes);
  return pair[0] == kAll && pair[1] == kAll;
}

/// How one instruction touches memory.
struct Use {
  bool read = false, write = false;
  bool strong = false;        // atomic, volatile or with a scope: may meet another strong access
  bool non_coherent = false;  // ld.global.nc
  bool collective = false;    // ldmatrix: what one lane addresses, all lanes read
};

/// The last access of a 32-bit word of device memory in the current launch.
struct GlobalAccess {
  u64 used : 1 = 0;
  u64 strong : 1 = 0;
  u64 many_lanes : 1 = 0, many_warps : 1 = 0;  // concurrent readers
  u64 bytes : 4 = 0;                           // of the word
  u64 lane : 5 = 0, warp : 5 = 0;
  u64 clock : 24 = 0;  // of the warp; with many_warps: the CTA's generation
  u64 cta : 22 = 0;
  static constexpr u64 kManyCtas = (1 << 22) - 1;
};
static_assert(sizeof(GlobalAccess) == 8);

struct Allocation {
  u64 base, size;
  std::string name;
  std::vector<u8> data, state;
  std::vector<GlobalAccess> readers, writers;  // one a word, cleared at the first use in a launch
  std::vector<u32> writer_inst;
  u64 launch = 0;
};

/// Device memory. Each allocation has 64 GiB of addresses to itself, so that an index that runs out of
/// one buffer never lands in another.
class Device {
 public:
  Allocation& allocate(u64 size, const std::string& name);
  void release(u64 base);
  Allocation* find(u64 address);
  u64 launches = 0;

 private:
  std::vector<std::unique_ptr<Allocation>> allocations_;
};

/// What a thread made visible to others by a fence followed by an atomic: for each CTA, the clocks of
/// its warps up to which its accesses are covered.
struct Snapshot {
  std::vector<u32> clocks;
  u32 generation = 0;
};
using Released = std::unordered_map<u32, std::shared_ptr<const Snapshot>>;

/// Checks one access of a warp to device memory, counts its sectors and finds the bytes behind it.
void access_global(Warp& warp, const Inst& inst, u32 mask, const u64* at, u32 bytes, Use use, u8** out);
/// The same for shared memory (`at` holds shared addresses); counts wavefronts.
void access_shared(Warp& warp, const Inst& inst, u32 mask, const u32* at, u32 bytes, Use use, u8** out);
/// Counts only: passes of a shared access of `bytes` a lane, and what it would need without conflicts.
void count_wavefronts(Stat& stat, u32 mask, const u32* at, u32 bytes);
void count_sectors(Stat& stat, u32 mask, const u64* at, u32 bytes);

class SharedMemory {
 public:
  void start(u32 bytes, u32 warps, u32 clock_base);  // poisons; forgets who touched what
  u32 size() const { return u32(data.size()); }
  /// Order checks of bytes [offset, offset + count) for one lane; `offset` counts from 0.
  void note_read(Warp& warp, int lane, u32 offset, u32 count, bool strong);
  void note_write(Warp& warp, int lane, u32 offset, u32 count, bool strong, u32 inst);
  std::vector<u8> data, state;

 private:
  struct Writer {
    u32 clock = 0, inst = 0;
    u8 warp = 0, lane = 0, bytes = 0;
    bool strong = false;
  };
  struct Reader {
    u32 clock = 0;
    u8 lane = 0, bytes = 0;
    bool strong = false;
  };
  bool ordered(const Warp& warp, int lane, u32 other, u32 other_lane, u32 clock) const;
  std::vector<Writer> writers_;  // one a word
  std::vector<Reader> readers_;  // one a word and warp
  u32 warps_ = 0, base_ = 0;
};

}  // namespace ptx
