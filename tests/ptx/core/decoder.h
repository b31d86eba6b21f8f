// Statement to Inst. One Decoder serves all statements of a kernel; the instruction families
// register themselves in the table that decode() looks up by the first part of the opcode.
#pragma once

#include <unordered_map>

#include "program.h"

namespace ptx {

class Decoder {
 public:
  Decoder(Kernel& kernel, const Symbols& symbols);
  void run();

  // ---- for the instruction families ----
  const Statement& statement() const { return *statement_; }
  /// Whether the opcode has this part. A part that no one asks for makes the instruction unknown: a
  /// modifier is never ignored in silence.
  bool has(std::string_view part);
  void accept(std::initializer_list<std::string_view> parts);  // parts that change nothing here
  void accept_all();
  const Operand& operand(size_t i) const;
  size_t operands() const { return statement_->operands.size(); }
  const std::string& type(int from_last = 0);  // the last type in the opcode
  Inst& inst() { return inst_; }
  Extra& extra();  // of the current instruction, made at the first call

  u32 source(const Operand& o, int width);
  u32 source(size_t i, int width) { return source(operand(i), width); }
  u32 destination(const Operand& o, int width);
  u32 destination(size_t i, int width) { return destination(operand(i), width); }
  std::vector<u32> rows(const Operand& o, int width, bool destination);
  void address(size_t i, Space space);
  u32 constant(u64 value, int width);
  u32 label(const std::string& name);
  const std::vector<std::string>& branch_targets(const std::string& name) const;
  int width(const Operand& o) const;  // of a register; 0 for others

  /// Destination op[0], sources op[1 …] of one width each.
  void lanes(Handler run, int dst_width, std::initializer_list<int> src_widths);
  [[noreturn]] void unknown(const std::string& why = "") const;

 private:
  u32 new_rows(int width);
  u32 register_row(int reg);
  u64 symbol_value(const std::string& name);
  void layout();

  Kernel& kernel_;
  const Symbols& symbols_;
  const Statement* statement_ = nullptr;
  std::vector<bool> asked_;  // of the opcode's parts
  Inst inst_;
  std::vector<u32> register_rows_;
  std::map<std::pair<u64, int>, u32> constant_rows_;
  std::map<std::string, u32> special_rows_;
  std::map<std::string, u64> shared_, local_, parameters_;
};

using Family = void (*)(Decoder&);
using Table = std::unordered_map<std::string, Family>;

void add_integer(Table& table);
void add_bits(Table& table);
void add_float(Table& table);
void add_special(Table& table);
void add_compare(Table& table);
void add_convert(Table& table);
void add_move(Table& table);
void add_flow(Table& table);
void add_memory(Table& table);
void add_atomic(Table& table);
void add_async(Table& table);
void add_matrix(Table& table);
void add_warp(Table& table);

}  // namespace ptx
