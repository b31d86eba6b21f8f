// What the parser makes of PTX text: declarations and instructions, still by name.
#pragma once

#include <map>
#include <optional>

#include "lexer.h"

namespace ptx {

/// An operand as written. Registers are already numbered (index into Body::registers).
struct Operand {
  enum Kind : u8 { kRegister, kSpecial, kNumber, kSymbol, kAddress, kVector, kSink } kind;
  int reg = -1;                  // kRegister; kAddress: base register, or -1
  bool negated = false;          // !%p
  Number number{};               // kNumber
  std::string name{};            // kSpecial, kSymbol; kAddress: base symbol, or empty
  s64 offset = 0;                // kAddress, kSymbol
  std::vector<Operand> items{};  // kVector; also the pair p|q of setp and shfl
};

struct Statement {
  int line = 0;                   // in the PTX text
  int file = 0, source_line = 0;  // of the last .loc, 0 if none
  int guard = -1;                 // predicate register, or -1
  bool guard_negated = false;
  std::vector<std::string> opcode;  // split at the dots: {"ld", "global", "f32"}
  std::vector<Operand> operands;
};

struct Register {
  std::string name;
  int width;  // bits; 1 for predicates
};

/// A variable of any space, or a kernel parameter.
struct Variable {
  std::string name;
  Space space;
  u32 align = 1;
  u64 size = 0;               // bytes; 0 for an extern array: dynamic shared memory
  std::vector<u8> initial{};  // of .global and .const
};

struct Body {
  std::string name;
  std::vector<Variable> parameters, variables;
  std::vector<Register> registers;
  std::vector<Statement> statements;
  std::map<std::string, u32> labels;                        // to statement index
  std::map<std::string, std::vector<std::string>> targets;  // .branchtargets
  u32 max_threads = 0;                                      // .maxntid / .reqntid, 0 if absent
};

struct Unit {
  std::vector<std::string> lines;  // the text, for messages; lines[0] is line 1
  std::string target;
  std::vector<Variable> variables;
  std::vector<Body> kernels;
  std::map<int, std::string> files;
};

Unit parse(std::string_view text);
int type_bits(std::string_view type);  // "f32" -> 32, "pred" -> 1, 0 if it is no type

}  // namespace ptx
