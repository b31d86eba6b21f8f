// From an address operand to bytes, in whatever space it points to.
#pragma once

#include "machine.h"

namespace ptx {

/// The address of each lane, `base + offset`.
void lane_addresses(Warp& warp, const Inst& inst, u32 mask, u64* at);

/// Checks the access of `bytes` a lane, counts it and finds the bytes behind it.
void locate(Warp& warp, const Inst& inst, u32 mask, const u64* at, u32 bytes, Use use, u8** out);

/// The space named in an opcode ("ld.shared::cta.f32"), generic if none is.
class Decoder;
Space space_of(Decoder& d);
Kind kind_of(Space space, Kind global, Kind shared);

/// A fence: what the warp's lanes did so far is covered by their next atomic, and what atomics brought
/// to them so far is in force.
void fence(Warp& warp);
void publish(Warp& warp, u64 address);  // an atomic or store that others may acquire from
void observe(Warp& warp, u64 address);  // an atomic or load that may acquire

}  // namespace ptx
