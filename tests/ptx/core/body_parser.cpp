#include "parser.h"

namespace ptx {

void BodyParser::run() {
  cursor_.expect("{");
  scopes_.emplace_back();
  while (!scopes_.empty()) {
    const Token& token = cursor_.peek();
    if (token.kind == TokenKind::kEnd) cursor_.fail("the body of " + body_.name + " has no end");
    if (cursor_.accept("{")) {
      scopes_.emplace_back();
    } else if (cursor_.accept("}")) {
      scopes_.pop_back();
    } else if (cursor_.accept(";")) {
      // an empty statement, as after an inline asm block
    } else if (token.text[0] == '.') {
      directive();
    } else if (token.kind == TokenKind::kWord && cursor_.at(":", 1)) {
      std::string name = cursor_.next().text;
      cursor_.next();
      label(name);
    } else {
      statement();
    }
  }
}

void BodyParser::label(const std::string& name) {
  if (cursor_.accept(".branchtargets")) {
    do body_.targets[name].push_back(cursor_.next().text);
    while (cursor_.accept(","));
    cursor_.expect(";");
    return;
  }
  if (!body_.labels.emplace(name, u32(body_.statements.size())).second)
    cursor_.fail("label " + name + " appears twice");
}

void BodyParser::directive() {
  const std::string word = cursor_.next().text;
  if (word == ".reg") {
    declare_registers();
  } else if (word == ".shared" || word == ".local" || word == ".param") {
    Space space = word == ".shared" ? Space::kShared : word == ".local" ? Space::kLocal : Space::kParam;
    body_.variables.push_back(parse_variable(cursor_, space));
    cursor_.expect(";");
  } else if (word == ".loc") {
    file_ = int(cursor_.integer());
    source_line_ = int(cursor_.integer());
    cursor_.skip_line();
  } else if (word == ".pragma") {
    while (!cursor_.accept(";")) cursor_.next();
  } else {
    cursor_.fail("unknown directive " + word);
  }
}

void BodyParser::declare_registers() {
  int width = type_bits(cursor_.next().text.substr(1));
  if (width == 0 || width == 8) cursor_.fail("registers of an unknown type");
  do {
    std::string name = cursor_.next().text;
    if (cursor_.accept("<")) {
      cursor_.integer();
      cursor_.expect(">");
      scopes_.back().prefixes[name] = width;
    } else {
      scopes_.back().names[name] = int(body_.registers.size());
      body_.registers.push_back({name, width});
    }
  } while (cursor_.accept(","));
  cursor_.expect(";");
}

int BodyParser::find_register(const std::string& name) {
  std::string prefix = name.substr(0, name.find_last_not_of("0123456789") + 1);
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (auto found = scope->names.find(name); found != scope->names.end()) return found->second;
    if (auto found = scope->prefixes.find(prefix);
        found != scope->prefixes.end() && prefix.size() < name.size()) {
      int index = int(body_.registers.size());
      scope->names[name] = index;
      body_.registers.push_back({name, found->second});
      return index;
    }
  }
  return -1;
}

void BodyParser::statement() {
  Statement s;
  s.line = cursor_.peek().line;
  s.file = file_;
  s.source_line = source_line_;
  if (cursor_.accept("@")) {
    s.guard_negated = cursor_.accept("!");
    s.guard = find_register(cursor_.next().text);
    if (s.guard < 0 || body_.registers[size_t(s.guard)].width != 1)
      cursor_.fail("the guard is no predicate register");
  }
  s.line = cursor_.peek().line;
  s.opcode = split_dots(cursor_.next().text);
  while (!cursor_.accept(";")) {
    Operand o = operand();
    if (cursor_.accept("|"))  // the pair p|q of setp and shfl
      o = {.kind = Operand::kVector, .items = {o, operand()}};
    s.operands.push_back(o);
    if (!cursor_.at(";")) cursor_.expect(",");
  }
  body_.statements.push_back(std::move(s));
}

Operand BodyParser::operand() {
  if (cursor_.at("[")) return address();
  if (cursor_.at("{") || cursor_.at("(")) return vector();
  if (cursor_.peek().kind == TokenKind::kNumber || cursor_.at("-")) {
    bool negative = cursor_.accept("-");
    Number number = parse_number(cursor_.next());
    if (negative && number.float_bytes == 0)
      number.bits = u64(-s64(number.bits));
    else if (negative)
      number.bits ^= u64(1) << (number.float_bytes * 8 - 1);
    return {.kind = Operand::kNumber, .number = number};
  }
  return word_operand();
}

Operand BodyParser::word_operand() {
  bool negated = cursor_.accept("!");
  const Token& token = cursor_.next();
  if (token.kind != TokenKind::kWord) cursor_.fail("unexpected '" + token.text + "' among the operands");
  std::string name = token.text;
  if (name == "_") return {.kind = Operand::kSink};
  if (int reg = find_register(name); reg >= 0)
    return {.kind = Operand::kRegister, .reg = reg, .negated = negated};
  if (name[0] == '%') return {.kind = Operand::kSpecial, .name = name};
  Operand symbol{.kind = Operand::kSymbol, .name = name};
  if (cursor_.accept("+")) symbol.offset = cursor_.integer();
  return symbol;
}

Operand BodyParser::vector() {
  Operand list{.kind = Operand::kVector};
  std::string close = cursor_.next().text == "{" ? "}" : ")";
  while (!cursor_.accept(close)) {
    list.items.push_back(operand());
    cursor_.accept(",");
  }
  return list;
}

Operand BodyParser::address() {
  cursor_.expect("[");
  Operand result{.kind = Operand::kAddress};
  Operand base = operand();
  if (base.kind == Operand::kRegister)
    result.reg = base.reg;
  else if (base.kind == Operand::kSymbol)
    result.name = base.name, result.offset = base.offset;
  else if (base.kind == Operand::kNumber)
    result.offset = s64(base.number.bits);
  else
    cursor_.fail("an address must be a register, a variable or a number");
  if (cursor_.at("+") || cursor_.at("-")) {
    bool minus = cursor_.next().text == "-";
    s64 offset = cursor_.integer();
    result.offset += minus ? -offset : offset;
  }
  cursor_.expect("]");
  return result;
}

}  // namespace ptx
