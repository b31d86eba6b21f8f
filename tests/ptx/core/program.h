// A kernel decoded for execution: flat instructions over rows of a warp's register file.
#pragma once

#include "syntax.h"

namespace ptx {

class Warp;
struct Inst;
using Handler = void (*)(Warp&, const Inst&, u32 mask);

/// What an instruction counts as.
enum class Kind : u8 {
  kOther,
  kMma,
  kSpecial,
  kGlobalLoad,
  kGlobalStore,
  kGlobalAtomic,
  kSharedLoad,
  kSharedStore,
  kSharedAtomic,
  kAsyncCopy,
  kLocal,
  kBarrier,
  kExit,
  kCount
};

/// One instruction. Every operand is a row: 32 lanes × 32 bits (64-bit values take two rows, 16-bit
/// values fill half a row, a predicate is a 32-bit mask at the row's start). Immediates and special
/// registers are rows too, filled before the kernel starts.
struct Inst {
  Handler run = nullptr;
  u32 op[4] = {0, 0, 0, 0};  // op[0] is the destination of arithmetic
  u32 guard = 0;             // row of the guard predicate; 0: none
  bool guard_negated = false;
  bool meeting = false;  // divergent lanes may meet again before this instruction
  u8 sources = 0;        // op[1 … sources] must be defined in the active lanes
  Kind kind = Kind::kOther;
  u8 mode = 0;    // meaning depends on the handler
  u32 extra = 0;  // index into Kernel::extras
  s64 imm = 0;
};

/// Operands beyond the four of Inst: memory accesses, vectors, branches, conversions.
struct Extra {
  std::vector<u32> dst, src;
  std::vector<u32> targets;  // branches: instruction indices
  u32 reconvergence = ~0u;   // where the lanes of a divergent branch meet; ~0: never
  Space space = Space::kGeneric;
  u32 base = 0;  // address row; 0: none
  int base_bits = 64;
  s64 offset = 0;
  int bytes = 0;     // of one element
  int reg_bits = 0;  // of one register of dst or src
  bool sign = false, non_coherent = false;
  bool strong = false, acquire = false, release = false;
};

/// Counters of one instruction, summed over all warps.
struct Stat {
  u64 issues = 0, lanes = 0;
  u64 sectors = 0, used_bytes = 0;  // global: 32-byte sectors touched, distinct bytes asked for
  u64 wavefronts = 0, ideal = 0;    // shared: passes needed, passes without bank conflicts
};

struct Constant {
  u32 row;
  int width;  // bits
  u64 value;
};

struct SpecialRow {
  u32 row;
  std::string name;
};

struct Parameter {
  std::string name;
  u32 offset;
  u32 size;
};

struct Kernel {
  const Unit* unit = nullptr;
  const Body* body = nullptr;
  std::vector<Inst> code;  // one for each of body->statements
  std::vector<Extra> extras;
  std::vector<Constant> constants;
  std::vector<SpecialRow> specials;
  std::vector<Parameter> parameters;
  u32 parameter_bytes = 0;
  u32 rows = 0, register_rows = 0;  // register rows come first
  u32 static_shared = 0;            // bytes of static variables
  u32 dynamic_base = 0;             // shared offset of the extern array
  u32 local_bytes = 0;

  std::string describe(u32 index) const;  // "PTX line 12 (kernel.cu:34): add.s32 …"
};

/// Addresses of module-level variables in device memory, by name.
using Symbols = std::map<std::string, u64>;

Kernel decode(const Unit& unit, const Body& body, const Symbols& symbols);

/// Fills Extra::reconvergence of every branch: its immediate post-dominator. See flow.cpp.
void find_reconvergence(Kernel& kernel);

inline constexpr u32 kSharedBase = 1024;  // address 0 of shared memory is never valid
inline constexpr u64 kSharedWindow = u64(1) << 60, kLocalWindow = u64(2) << 60, kParamWindow = u64(3) << 60;

}  // namespace ptx
