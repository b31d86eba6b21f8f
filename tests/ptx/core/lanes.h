// Arithmetic over a whole warp: a plain function of one lane becomes a handler whose loop the compiler
// vectorises. All 32 lanes are computed and the active ones kept, so the function must be safe for any
// input.
#pragma once

#include <algorithm>
#include <cfenv>

#include "decoder.h"
#include "machine.h"

namespace ptx {

template <class D, class A, auto F>
void map1(Warp& w, const Inst& in, u32 mask) {
  const A* a = w.row<A>(in.op[1]);
  D out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = F(a[l]);
  w.write(in.op[0], out, mask);
}

template <class D, class A, class B, auto F>
void map2(Warp& w, const Inst& in, u32 mask) {
  const A* a = w.row<A>(in.op[1]);
  const B* b = w.row<B>(in.op[2]);
  D out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = F(a[l], b[l]);
  w.write(in.op[0], out, mask);
}

template <class D, class A, class B, class C, auto F>
void map3(Warp& w, const Inst& in, u32 mask) {
  const A* a = w.row<A>(in.op[1]);
  const B* b = w.row<B>(in.op[2]);
  const C* c = w.row<C>(in.op[3]);
  D out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = F(a[l], b[l], c[l]);
  w.write(in.op[0], out, mask);
}

template <class T>
inline constexpr int kBits = int(sizeof(T) * 8);

template <class T, auto F>
void unary(Decoder& d) {
  d.lanes(map1<T, T, F>, kBits<T>, {kBits<T>});
}
template <class T, auto F>
void binary(Decoder& d) {
  d.lanes(map2<T, T, T, F>, kBits<T>, {kBits<T>, kBits<T>});
}
template <class T, auto F>
void ternary(Decoder& d) {
  d.lanes(map3<T, T, T, T, F>, kBits<T>, {kBits<T>, kBits<T>, kBits<T>});
}

/// Runs a handler under another rounding mode.
template <Handler H, int Mode>
void rounded(Warp& w, const Inst& in, u32 mask) {
  std::fesetround(Mode);
  H(w, in, mask);
  std::fesetround(FE_TONEAREST);
}

/// One decoder a type: "s32", "u32" and so on; unknown types are unknown instructions.
struct ByType {
  const char* type;
  Family family;
};
template <size_t N>
void by_type(Decoder& d, const ByType (&choices)[N]) {
  for (const ByType& choice : choices)
    if (d.type() == choice.type) return choice.family(d);
}

}  // namespace ptx
