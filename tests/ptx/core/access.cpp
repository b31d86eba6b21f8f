#include "access.h"

#include "decoder.h"

namespace ptx {

void lane_addresses(Warp& warp, const Inst& inst, u32 mask, u64* at) {
  const Extra& x = warp.extra(inst);
  if (x.base == 0) {
    std::fill(at, at + kLanes, u64(x.offset));
    return;
  }
  warp.require(x.base, mask);
  if (x.base_bits == 64) {
    const u64* base = warp.row<u64>(x.base);
    for (int l = 0; l < kLanes; ++l) at[l] = base[l] + u64(x.offset);
  } else {
    const u32* base = warp.row<u32>(x.base);
    for (int l = 0; l < kLanes; ++l) at[l] = u32(base[l] + u32(x.offset));
  }
}

namespace {

void locate_local(Warp& warp, u32 mask, const u64* at, u32 bytes, Use use, u8** out) {
  const u32 size = warp.cta.kernel.local_bytes;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    const u64 offset = at[lane];
    const std::string where = "local byte " + std::to_string(s64(offset));
    if (offset >= size || offset + bytes > size)
      warp.fault("out of bounds", where + " of " + std::to_string(size), lane);
    if (offset & (bytes - 1))
      warp.fault("misaligned", where + " is not a multiple of the access's size", lane);
    u8* state = warp.local_state.data() + size_t(lane) * size + offset;
    for (u32 b = 0; b < bytes && use.read; ++b)
      if (state[b] != kWritten) warp.fault("uninitialised", where + " was never written", lane);
    if (use.write) std::memset(state, kWritten, bytes);
    out[lane] = warp.local.data() + size_t(lane) * size + offset;
  }
}

void locate_parameter(Warp& warp, u32 mask, const u64* at, u32 bytes, Use use, u8** out) {
  std::vector<u8>& parameters = warp.cta.launch.parameters;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    if (use.write) warp.fault("read-only", "a kernel parameter is written", lane);
    if (at[lane] + bytes > parameters.size() || (at[lane] & (bytes - 1)))
      warp.fault("out of bounds",
                 std::to_string(bytes) + " bytes at parameter byte " + std::to_string(at[lane]) + " of " +
                     std::to_string(parameters.size()),
                 lane);
    out[lane] = parameters.data() + at[lane];
  }
}

}  // namespace

void locate(Warp& warp, const Inst& inst, u32 mask, const u64* at, u32 bytes, Use use, u8** out) {
  Space space = warp.extra(inst).space;
  u64 from = 0;
  if (space == Space::kGeneric) {
    from = at[std::countr_zero(mask)] & (u64(15) << 60);
    space = from == kSharedWindow  ? Space::kShared
            : from == kLocalWindow ? Space::kLocal
            : from == kParamWindow ? Space::kParam
                                   : Space::kGlobal;
  }
  switch (space) {
    case Space::kShared: {
      u32 narrow[kLanes];
      for (int l = 0; l < kLanes; ++l)
        narrow[l] = (at[l] - from) >> 32 ? 0 : u32(at[l]);  // 0 is out of bounds
      return access_shared(warp, inst, mask, narrow, bytes, use, out);
    }
    case Space::kLocal:
    case Space::kParam: {
      u64 offsets[kLanes];
      for (int l = 0; l < kLanes; ++l) offsets[l] = at[l] - from;
      return space == Space::kLocal ? locate_local(warp, mask, offsets, bytes, use, out)
                                    : locate_parameter(warp, mask, offsets, bytes, use, out);
    }
    default:
      return access_global(warp, inst, mask, at, bytes, use, out);
  }
}

Space space_of(Decoder& d) {
  static const std::pair<const char*, Space> names[] = {
      {"global", Space::kGlobal}, {"shared", Space::kShared}, {"shared::cta", Space::kShared},
      {"local", Space::kLocal},   {"param", Space::kParam},   {"param::entry", Space::kParam},
      {"const", Space::kConst}};
  for (const auto& [name, space] : names)
    if (d.has(name)) return space;
  return Space::kGeneric;
}

Kind kind_of(Space space, Kind global, Kind shared) {
  return space == Space::kShared                            ? shared
         : space == Space::kLocal || space == Space::kParam ? Kind::kLocal
                                                            : global;
}

void fence(Warp& warp) {
  Cta& cta = warp.cta;
  warp.fenced = std::make_shared<Snapshot>(cta.snapshot(warp.index));
  warp.sync_lanes();  // a new clock: what follows is not covered
  for (const auto& [other, snapshot] : warp.acquiring) cta.acquired[other] = snapshot;
  warp.acquiring.clear();
}

void publish(Warp& warp, u64 address) {
  if (!warp.fenced) return;
  Released& released = warp.cta.launch.released[address];
  for (const auto& [other, snapshot] : warp.cta.acquired) released[other] = snapshot;
  released[warp.cta.index] = warp.fenced;
}

void observe(Warp& warp, u64 address) {
  auto found = warp.cta.launch.released.find(address);
  if (found != warp.cta.launch.released.end())
    for (const auto& [other, snapshot] : found->second) warp.acquiring[other] = snapshot;
}

}  // namespace ptx
