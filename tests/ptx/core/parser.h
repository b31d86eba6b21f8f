// Recursive descent over the tokens; one class for the module level and one for a kernel body.
#pragma once

#include "syntax.h"

namespace ptx {

/// The token stream, with the few moves the grammar needs.
class Cursor {
 public:
  explicit Cursor(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  const Token& peek(int ahead = 0) const;
  const Token& next();
  bool at(std::string_view text, int ahead = 0) const { return peek(ahead).text == text; }
  bool accept(std::string_view text);
  const Token& expect(std::string_view text);
  s64 integer();  // with an optional sign
  void skip_line();
  void skip_block();
  [[noreturn]] void fail(const std::string& what) const;

 private:
  std::vector<Token> tokens_;
  size_t position_ = 0;
};

/// ".align 4 .b8 name[128] = {…}", the space already read.
Variable parse_variable(Cursor& cursor, Space space);
std::vector<std::string> split_dots(const std::string& word);

class BodyParser {
 public:
  BodyParser(Cursor& cursor, Body& body) : cursor_(cursor), body_(body) {}
  void run();  // from the opening to the closing brace

 private:
  void directive();
  void declare_registers();
  void statement();
  void label(const std::string& name);
  Operand operand();
  Operand address();
  Operand vector();
  Operand word_operand();
  int find_register(const std::string& name);

  Cursor& cursor_;
  Body& body_;
  /// One per brace level: declared names, and prefixes of parametrised names (%r<180>).
  struct Scope {
    std::map<std::string, int> names, prefixes;  // to register index; to width
  };
  std::vector<Scope> scopes_;
  int file_ = 0, source_line_ = 0;
};

}  // namespace ptx
