// Decoders of instruction families that share a name: "add" is an integer, f32 or f16x2 addition.
#pragma once

#include "decoder.h"

namespace ptx {

void integer_add(Decoder& d);
void integer_sub(Decoder& d);
void integer_mul(Decoder& d);
void integer_mad(Decoder& d);
void integer_div(Decoder& d);
void integer_min(Decoder& d);
void integer_max(Decoder& d);
void integer_neg(Decoder& d);
void integer_abs(Decoder& d);

void half_add(Decoder& d);
void half_sub(Decoder& d);
void half_mul(Decoder& d);
void half_fma(Decoder& d);
void half_min(Decoder& d);
void half_max(Decoder& d);
void half_neg(Decoder& d);
void half_abs(Decoder& d);

void approximate_division(Decoder& d);

}  // namespace ptx
