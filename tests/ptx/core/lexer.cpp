#include "lexer.h"

#include <cctype>

namespace ptx {
namespace {

bool starts_word(char c) { return std::isalpha(u8(c)) || c == '_' || c == '%' || c == '$' || c == '.'; }
bool continues_word(char c) { return std::isalnum(u8(c)) || c == '_' || c == '%' || c == '$' || c == '.'; }

}  // namespace

std::vector<Token> tokenize(std::string_view text) {
  std::vector<Token> tokens;
  int line = 1;
  size_t i = 0;
  auto at = [&](size_t k) { return k < text.size() ? text[k] : '\0'; };
  while (i < text.size()) {
    char c = text[i];
    if (c == '\n') {
      ++line, ++i;
    } else if (std::isspace(u8(c))) {
      ++i;
    } else if (c == '/' && at(i + 1) == '/') {
      while (i < text.size() && text[i] != '\n') ++i;
    } else if (c == '/' && at(i + 1) == '*') {
      for (i += 2; i < text.size() && !(text[i] == '*' && at(i + 1) == '/'); ++i) line += text[i] == '\n';
      i += 2;
    } else if (c == '"') {
      size_t end = text.find('"', i + 1);
      if (end == std::string_view::npos)
        throw Fault("syntax", "line " + std::to_string(line) + ": string without an end");
      tokens.push_back({TokenKind::kString, std::string(text.substr(i + 1, end - i - 1)), line});
      i = end + 1;
    } else if (starts_word(c) || std::isdigit(u8(c))) {
      TokenKind kind = std::isdigit(u8(c)) ? TokenKind::kNumber : TokenKind::kWord;
      size_t begin = i;
      while (continues_word(at(i)) || (at(i) == ':' && at(i + 1) == ':')) i += at(i) == ':' ? 2 : 1;
      tokens.push_back({kind, std::string(text.substr(begin, i - begin)), line});
    } else {
      tokens.push_back({TokenKind::kPunctuation, std::string(1, c), line});
      ++i;
    }
  }
  tokens.push_back({TokenKind::kEnd, "", line});
  return tokens;
}

Number parse_number(const Token& token) {
  const std::string& t = token.text;
  size_t used = 0;
  try {
    if (t.size() > 2 && t[0] == '0' && (t[1] == 'f' || t[1] == 'F'))
      return {std::stoull(t.substr(2), nullptr, 16), 4};
    if (t.size() > 2 && t[0] == '0' && (t[1] == 'd' || t[1] == 'D'))
      return {std::stoull(t.substr(2), nullptr, 16), 8};
    if (t.find('.') != std::string::npos) return {bits<u64>(std::stod(t, &used)), 8};
    bool binary = t.size() > 2 && t[0] == '0' && (t[1] == 'b' || t[1] == 'B');
    u64 value = binary ? std::stoull(t.substr(2), &used, 2) : std::stoull(t, &used, 0);
    size_t rest = t.size() - used - (binary ? 2 : 0);
    if (rest == 0 || (rest == 1 && t.back() == 'U')) return {value, 0};
  } catch (const std::logic_error&) {  // from std::stoull; reported below
  }
  throw Fault("syntax", "line " + std::to_string(token.line) + ": not a number: " + t);
}

}  // namespace ptx
