#include "parser.h"

#include <algorithm>
#include <utility>

namespace ptx {

const Token& Cursor::peek(int ahead) const {
  return tokens_[std::min(position_ + ahead, tokens_.size() - 1)];
}

const Token& Cursor::next() {
  const Token& token = peek();
  if (position_ + 1 < tokens_.size()) ++position_;
  return token;
}

bool Cursor::accept(std::string_view text) {
  bool found = at(text);
  if (found) next();
  return found;
}

const Token& Cursor::expect(std::string_view text) {
  if (!at(text)) fail("expected '" + std::string(text) + "', got '" + peek().text + "'");
  return next();
}

s64 Cursor::integer() {
  bool negative = accept("-");
  Number number = parse_number(next());
  return negative ? -s64(number.bits) : s64(number.bits);
}

void Cursor::skip_line() {
  for (int line = peek().line; peek().line == line && peek().kind != TokenKind::kEnd;) next();
}

void Cursor::skip_block() {
  expect("{");
  for (int depth = 1; depth > 0;) {
    const Token& token = next();
    if (token.kind == TokenKind::kEnd) fail("a block without an end");
    depth += token.text == "{" ? 1 : token.text == "}" ? -1 : 0;
  }
}

void Cursor::fail(const std::string& what) const {
  throw Fault("syntax", "line " + std::to_string(peek().line) + ": " + what);
}

std::vector<std::string> split_dots(const std::string& word) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= word.size();) {
    size_t end = std::min(word.find('.', begin), word.size());
    parts.push_back(word.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

int type_bits(std::string_view type) {
  if (type == "pred") return 1;
  if (type == "f16x2" || type == "bf16x2" || type == "tf32") return 32;
  if (type.substr(0, 2) == "bf") type.remove_prefix(1);
  if (type.size() < 2 || std::string_view("bsuf").find(type[0]) == std::string_view::npos) return 0;
  std::string_view digits = type.substr(1);
  for (int width : {8, 16, 32, 64})
    if (digits == std::to_string(width)) return width;
  return 0;
}

Variable parse_variable(Cursor& cursor, Space space) {
  Variable variable{.name = "", .space = space};
  int width = 0;
  while (cursor.peek().kind == TokenKind::kWord && cursor.peek().text[0] == '.') {
    std::string word = cursor.next().text.substr(1);
    if (word == "align")
      variable.align = u32(cursor.integer());
    else if (int bits = type_bits(word))
      width = bits;
    else if (word == "ptr" || word == "global" || word == "shared" || word == "const")
      ;  // ".ptr .global .align 16" describes what a parameter points to
    else
      cursor.fail("unknown declaration ." + word);
  }
  variable.align = std::max<u32>(variable.align, u32(width / 8));
  variable.name = cursor.next().text;
  u64 elements = 1;
  while (cursor.accept("[")) {
    elements *= cursor.at("]") ? 0 : u64(cursor.integer());
    cursor.expect("]");
  }
  variable.size = elements * u64(width / 8);
  if (cursor.accept("=")) {
    variable.initial.resize(variable.size);
    size_t at = 0;
    auto element = [&] {
      Number number = parse_number(cursor.next());
      if (at + width / 8 > variable.size) cursor.fail("too many initial values of " + variable.name);
      std::memcpy(&variable.initial[at], &number.bits, size_t(width / 8));
      at += size_t(width / 8);
    };
    if (cursor.accept("{")) {
      for (bool more = !cursor.accept("}"); more; more = !cursor.accept("}")) {
        element();
        cursor.accept(",");
      }
    } else {
      element();
    }
  }
  return variable;
}

namespace {

Body parse_kernel(Cursor& cursor) {
  Body body;
  body.name = cursor.next().text;
  if (cursor.accept("(")) {
    while (!cursor.accept(")")) {
      cursor.expect(".param");
      body.parameters.push_back(parse_variable(cursor, Space::kParam));
      cursor.accept(",");
    }
  }
  while (!cursor.at("{")) {  // performance directives: ".maxntid 128, 1, 1"
    std::string directive = cursor.next().text;
    u32 product = 1;
    while (cursor.peek().kind == TokenKind::kNumber || cursor.at(","))
      if (!cursor.accept(",")) product *= u32(cursor.integer());
    if (directive == ".maxntid" || directive == ".reqntid") body.max_threads = product;
  }
  BodyParser(cursor, body).run();
  return body;
}

std::string split_lines(std::string_view text, std::vector<std::string>& lines) {
  std::string line;
  for (char c : text) {
    if (c == '\n')
      lines.push_back(std::exchange(line, ""));
    else
      line += c == '\t' ? ' ' : c;
  }
  return line;
}

}  // namespace

Unit parse(std::string_view text) {
  Unit unit;
  unit.lines.push_back(split_lines(text, unit.lines));
  Cursor cursor(tokenize(text));
  while (cursor.peek().kind != TokenKind::kEnd) {
    const std::string word = cursor.next().text;
    if (word == ".version" || word == ".address_size" || word == ".loc") {
      cursor.skip_line();
    } else if (word == ".target") {
      unit.target = cursor.peek().text;
      cursor.skip_line();
    } else if (word == ".file") {
      int number = int(cursor.integer());
      unit.files[number] = cursor.peek().text;
      cursor.skip_line();
    } else if (word == ".section") {
      while (!cursor.at("{")) cursor.next();
      cursor.skip_block();
    } else if (word == ".entry") {
      unit.kernels.push_back(parse_kernel(cursor));
    } else if (word == ".func") {  // only `call` could reach it, and that is refused by name
      while (!cursor.at("{") && !cursor.at(";")) cursor.next();
      cursor.at("{") ? cursor.skip_block() : (void)cursor.next();
    } else if (word == ".global" || word == ".const" || word == ".shared") {
      Space space = word == ".global" ? Space::kGlobal : word == ".const" ? Space::kConst : Space::kShared;
      unit.variables.push_back(parse_variable(cursor, space));
      cursor.expect(";");
    } else if (word != ".visible" && word != ".extern" && word != ".weak" && word != ".common" &&
               word != "," && word != "debug") {
      cursor.fail("unknown at module level: " + word);
    }
  }
  return unit;
}

}  // namespace ptx
