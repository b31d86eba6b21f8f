// Names shared by every file of the interpreter.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using f32 = float;
using f64 = double;

inline constexpr int kLanes = 32;
inline constexpr u32 kAllLanes = 0xffffffffu;
inline constexpr int kRowBytes = 128;  // one 32-bit register of a whole warp
inline constexpr u8 kPoison = 0xff;    // fills fresh memory: NaN in every floating format

enum class Space : u8 { kGeneric, kGlobal, kShared, kLocal, kParam, kConst };

/// A rule broken by the program under test. The text starts with the rule's name in brackets.
class Fault : public std::runtime_error {
 public:
  Fault(const std::string& rule, const std::string& what) : std::runtime_error("[" + rule + "] " + what) {}
};

template <class To, class From>
inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &value, sizeof out);
  return out;
}

inline u64 low_bits(u64 value, int count) { return count >= 64 ? value : value & ((u64(1) << count) - 1); }

/// SplitMix64 step: the hash behind every seeded choice, so that a seed repeats a run exactly.
inline u64 mix(u64 x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

struct Random {
  u64 state;
  u32 below(u32 bound) { return u32((mix(state++) >> 32) * bound >> 32); }
};

}  // namespace ptx
