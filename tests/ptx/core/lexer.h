// PTX text to tokens. Comments vanish; a token knows its line.
#pragma once

#include <string_view>
#include <vector>

#include "types.h"

namespace ptx {

enum class TokenKind : u8 { kWord, kNumber, kString, kPunctuation, kEnd };

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  int line = 0;
};

/// Words keep their dots and double colons ("ld.global.nc", "shared::cta", "%tid.x").
std::vector<Token> tokenize(std::string_view text);

/// The value of a number token: integer, 0f/0d bit pattern or decimal fraction.
struct Number {
  u64 bits = 0;         // integer value, or the bits of a float of `float_bytes` bytes
  int float_bytes = 0;  // 0 for integers
};
Number parse_number(const Token& token);

}  // namespace ptx
