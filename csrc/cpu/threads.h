// Work on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace fsad {
inline namespace FSAD_ISA {

// While it lives, this thread takes and makes zero for numbers too small for their full precision. Far below
// its threshold SigShrink is full of them, and Intel's multipliers take a hundred times as long over each.
class FlushSubnormals {
#if defined(__x86_64__)
  static constexpr unsigned kFlush = 1u << 15 | 1u << 6;  // of results, and of operands
  static unsigned mode() { return __builtin_ia32_stmxcsr(); }
  static void set(unsigned mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
  static constexpr unsigned kFlush = 1u << 24;
  static unsigned mode() { return __builtin_aarch64_get_fpcr(); }
  static void set(unsigned mode) { __builtin_aarch64_set_fpcr(mode); }
#else
  static constexpr unsigned kFlush = 0;
  static unsigned mode() { return 0; }
  static void set(unsigned) {}
#endif

 public:
  FlushSubnormals() { set(before_ | kFlush); }
  ~FlushSubnormals() { set(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;

 private:
  const unsigned before_ = mode();
};

// Calls body(begin, end) for pieces of [0, count), at least `grain` long unless there is no more.
template <class Body>
void parallel_for(int64_t count, int64_t grain, Body body) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    body(begin, end);
  });
}

inline int64_t thread_index() {
  uint32_t index;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_thread_idx(&index));
  return index;
}

}  // namespace FSAD_ISA
}  // namespace fsad
