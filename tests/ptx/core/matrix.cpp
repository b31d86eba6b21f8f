// ldmatrix and mma.sync.
//
// A tensor core multiplies exactly, aligns the products of a few k-steps and the accumulator to the
// largest of them, cuts off what lies more than 24 bits below it, adds, and cuts the sum to fp32. Block
// lengths and widths as measured on A100 (Fasi et al., "Numerical behavior of NVIDIA tensor cores",
// PeerJ CS 2021; Xie et al., "MMA-Sim", arXiv 2511.10909): 8 products for f16 and bf16, 4 for tf32.
// Newer chips keep at least as much.
#include "access.h"
#include "formats.h"
#include "lanes.h"

namespace ptx {
namespace {

constexpr int kN = 8;  // columns of every shape here: one vector of the host
typedef f32 Floats __attribute__((vector_size(kN * 4)));
typedef s32 Ints __attribute__((vector_size(kN * 4)));

template <class Vector>
Vector larger(Vector a, Vector b) {
  return a > b ? a : b;
}
/// |a| as bits: these order as the values do, with NaN above all.
Ints magnitude(Floats a) { return Ints(a) & 0x7fffffff; }

bool any(Ints truth) {
  u64 parts[kN / 2];
  std::memcpy(parts, &truth, sizeof parts);
  return parts[0] | parts[1] | parts[2] | parts[3];
}

/// acc + Σ a_i b_i over one block of products, truncating. The rounding mode is towards zero.
template <int Terms>
Floats add_block(Floats acc, const f32* a, const Floats* b) {
  Floats product[Terms];
  Ints top = magnitude(acc);
  for (int i = 0; i < Terms; ++i) {
    product[i] = a[i] * b[i];  // exact: 11 + 11 bits
    top = larger(top, magnitude(product[i]));
  }
  const Ints exponent = larger(top >> 23, Ints{} + 24);
  if (any(exponent >= 250)) {  // infinities, NaNs and their neighbours: no alignment
    for (int i = 0; i < Terms; ++i) acc += product[i];
    return acc;
  }
  const Floats up = Floats((278 - exponent) << 23);   // 2^(24 - e)
  const Floats down = Floats((exponent - 24) << 23);  // 2^(e - 24)
  Ints sum = __builtin_convertvector(acc * up, Ints);
  for (int i = 0; i < Terms; ++i) sum += __builtin_convertvector(product[i] * up, Ints);
  return __builtin_convertvector(sum, Floats) * down;
}

enum Input : u8 { kF16, kBf16, kTf32 };

/// The elements of 32-bit registers `rows` as f32: out[element][lane].
void unpack(Warp& w, const u32* rows, int elements, Input input, f32 (*out)[kLanes]) {
  for (int i = 0; i < elements; ++i) {
    if (input == kTf32) {  // the low bits are ignored
      const u32* raw = w.row<u32>(rows[i]);
      for (int l = 0; l < kLanes; ++l) out[i][l] = bits<f32>(raw[l] & ~u32(0x1fff));
    } else {
      const u32* raw = w.row<u32>(rows[i / 2]);
      const int shift = 16 * (i & 1);
      for (int l = 0; l < kLanes; ++l) {
        const u16 half = u16(raw[l] >> shift);
        out[i][l] = input == kF16 ? from_half(half) : from_bfloat(half);
      }
    }
  }
}

/// src: A, B and C registers; dst: D. mode: Input. imm: K.
void multiply(Warp& w, const Inst& in, u32 mask) {
  if (!w.converge(mask, kAllLanes)) return;
  if (mask != kAllLanes) w.fault("divergence", "mma.sync needs all 32 lanes");
  const Extra& x = w.extra(in);
  for (u32 row : x.src) w.require(row, mask);
  const Input input = Input(in.mode);
  const int k = int(in.imm), pair = input == kTf32 ? 1 : 2;
  const int a_count = 16 * k / kLanes, b_count = 8 * k / kLanes;
  const u32 *a_rows = x.src.data(), *b_rows = a_rows + a_count / pair, *c_rows = b_rows + b_count / pair;
  f32 a_lanes[8][kLanes], b_lanes[4][kLanes], a[16][16];
  Floats b[16], c[16];
  unpack(w, a_rows, a_count, input, a_lanes);
  unpack(w, b_rows, b_count, input, b_lanes);
  for (int i = 0; i < a_count; ++i)
    for (int g = 0; g < 8; ++g)  // lane 4g + t
      for (int t = 0; t < 4; ++t)
        a[g + i / pair % 2 * 8][pair * t + i % pair + i / pair / 2 * 4 * pair] = a_lanes[i][4 * g + t];
  for (int i = 0; i < b_count; ++i)
    for (int t = 0; t < 4; ++t) {
      f32 column[kN];
      for (int g = 0; g < 8; ++g) column[g] = b_lanes[i][4 * g + t];
      std::memcpy(&b[pair * t + i % pair + i / pair * 4 * pair], column, sizeof column);
    }
  for (int half = 0; half < 2; ++half) {
    const f32 *even = w.row<f32>(c_rows[2 * half]), *odd = w.row<f32>(c_rows[2 * half + 1]);
    for (int g = 0; g < 8; ++g)
      for (int t = 0; t < 4; ++t) {
        c[g + 8 * half][2 * t] = even[4 * g + t];
        c[g + 8 * half][2 * t + 1] = odd[4 * g + t];
      }
  }
  std::fesetround(FE_TOWARDZERO);
  for (int row = 0; row < 16; ++row) {
    if (input == kTf32)
      for (int i = 0; i < k; i += 4) c[row] = add_block<4>(c[row], a[row] + i, b + i);
    else
      for (int i = 0; i < k; i += 8) c[row] = add_block<8>(c[row], a[row] + i, b + i);
  }
  std::fesetround(FE_TONEAREST);
  for (int i = 0; i < 4; ++i) {
    f32 out[kLanes];
    for (int g = 0; g < 8; ++g)
      for (int t = 0; t < 4; ++t) out[4 * g + t] = c[g + i / 2 * 8][2 * t + i % 2];
    w.write(x.dst[size_t(i)], out, mask);
  }
}

/// m8n8k4 in f64: A (8×4) a = (g, t), B (4×8) b = (t, g), C c_i = (g, 2t + i). Chained fma.
void multiply_double(Warp& w, const Inst& in, u32 mask) {
  if (!w.converge(mask, kAllLanes)) return;
  const Extra& x = w.extra(in);
  for (u32 row : x.src) w.require(row, mask);
  const f64 *a = w.row<f64>(x.src[0]), *b = w.row<f64>(x.src[1]);
  f64 out[2][kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < 2; ++i) {
      const int g = lane / 4, column = 2 * (lane % 4) + i;
      f64 sum = w.row<f64>(x.src[size_t(2 + i)])[lane];
      for (int k = 0; k < 4; ++k) sum = std::fma(a[g * 4 + k], b[column * 4 + k], sum);
      out[i][lane] = sum;
    }
  for (size_t i = 0; i < 2; ++i) w.write(x.dst[i], out[i], mask);
}

void decode_mma(Decoder& d) {
  const auto& parts = d.statement().opcode;
  if (parts.size() != 10 || parts[1] != "sync" || parts[2] != "aligned" || parts[4] != "row" ||
      parts[5] != "col" || parts[7] != parts[8])
    return;
  d.accept_all();  // the ten parts are checked one by one
  const std::string &shape = parts[3], &type = parts[7];
  Inst& in = d.inst();
  Extra& x = d.extra();
  in.kind = Kind::kMma;
  auto gather = [&](int bits, std::initializer_list<size_t> counts) {
    x.dst = d.rows(d.operand(0), bits, true);
    size_t i = 1;
    for (size_t count : counts) {
      const std::vector<u32> rows = d.rows(d.operand(i++), bits, false);
      if (rows.size() != count)
        d.unknown("operand " + std::to_string(i - 1) + " has " + std::to_string(rows.size()) +
                  " registers and needs " + std::to_string(count));
      x.src.insert(x.src.end(), rows.begin(), rows.end());
    }
  };
  if (shape == "m8n8k4" && type == "f64" && parts[6] == "f64" && parts[9] == "f64") {
    gather(64, {1, 1, 2});
    in.run = multiply_double;
    return;
  }
  const bool half = type == "f16" || type == "bf16";
  const int k = shape == "m16n8k16" && half                      ? 16
                : shape == "m16n8k8" && (half || type == "tf32") ? 8
                : shape == "m16n8k4" && type == "tf32"           ? 4
                                                                 : 0;
  if (k == 0 || parts[6] != "f32" || parts[9] != "f32") return;
  const size_t per_register = half ? 2 : 1;
  gather(32, {size_t(k) / 2 / per_register, size_t(k) / 4 / per_register, 4});
  in.run = multiply;
  in.mode = type == "f16" ? kF16 : type == "bf16" ? kBf16 : kTf32;
  in.imm = k;
}

/// mode 1: transposed. Lane 8m + r addresses row r of matrix m.
void load_matrix(Warp& w, const Inst& in, u32 mask) {
  if (!w.converge(mask, kAllLanes)) return;
  const Extra& x = w.extra(in);
  const u32 count = u32(x.dst.size());
  const u32 addressing = u32(low_bits(~u64(0), int(8 * count)));
  u64 wide[kLanes];
  u32 at[kLanes];
  u8* rows[kLanes];
  lane_addresses(w, in, addressing & mask, wide);
  for (int l = 0; l < kLanes; ++l) at[l] = wide[l] >> 32 ? 0 : u32(wide[l]);
  access_shared(w, in, addressing, at, 16, {.read = true, .collective = true}, rows);
  for (u32 m = 0; m < count; ++m) {
    u32 out[kLanes];
    for (u32 lane = 0; lane < kLanes; ++lane) {
      const u32 g = lane / 4, t = lane % 4;
      if (in.mode == 0) {
        std::memcpy(&out[lane], rows[8 * m + g] + 4 * t, 4);
      } else {
        u16 low, high;
        std::memcpy(&low, rows[8 * m + 2 * t] + 2 * g, 2);
        std::memcpy(&high, rows[8 * m + 2 * t + 1] + 2 * g, 2);
        out[lane] = u32(high) << 16 | low;
      }
    }
    w.write(x.dst[m], out, mask);
  }
}

void decode_ldmatrix(Decoder& d) {
  if (!d.has("sync") || !d.has("m8n8") || d.type() != "b16" || space_of(d) != Space::kShared) return;
  d.accept({"aligned", "x1"});
  const size_t count = d.has("x4") ? 4 : d.has("x2") ? 2 : 1;
  d.address(1, Space::kShared);
  d.extra().dst = d.rows(d.operand(0), 32, true);
  d.inst().mode = d.has("trans");
  d.inst().kind = Kind::kSharedLoad;
  d.inst().run = d.extra().dst.size() == count ? load_matrix : nullptr;
}

}  // namespace

void add_matrix(Table& table) {
  table["mma"] = decode_mma;
  table["ldmatrix"] = decode_ldmatrix;
}

}  // namespace ptx
