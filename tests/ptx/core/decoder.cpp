#include "decoder.h"

#include <algorithm>
#include <set>

namespace ptx {
namespace {

const Table& table() {
  static const Table all = [] {
    Table t;
    for (auto add : {add_integer, add_bits, add_float, add_special, add_compare, add_convert, add_move,
                     add_flow, add_memory, add_atomic, add_async, add_matrix, add_warp})
      add(t);
    return t;
  }();
  return all;
}

const std::set<std::string> kSpecials = {"%tid.x",          "%tid.y",       "%tid.z",
                                         "%ntid.x",         "%ntid.y",      "%ntid.z",
                                         "%ctaid.x",        "%ctaid.y",     "%ctaid.z",
                                         "%nctaid.x",       "%nctaid.y",    "%nctaid.z",
                                         "%laneid",         "%warpid",      "%nwarpid",
                                         "%lanemask_eq",    "%lanemask_le", "%lanemask_lt",
                                         "%lanemask_ge",    "%lanemask_gt", "%dynamic_smem_size",
                                         "%total_smem_size"};

u64 align_up(u64 value, u64 align) { return (value + align - 1) / align * align; }

}  // namespace

Kernel decode(const Unit& unit, const Body& body, const Symbols& symbols) {
  Kernel kernel;
  kernel.unit = &unit;
  kernel.body = &body;
  Decoder(kernel, symbols).run();
  find_reconvergence(kernel);
  return kernel;
}

Decoder::Decoder(Kernel& kernel, const Symbols& symbols) : kernel_(kernel), symbols_(symbols) {
  kernel_.rows = 2;  // rows 0 and 1 receive what is written to "_"
  for (const Register& r : kernel_.body->registers) register_rows_.push_back(new_rows(r.width));
  kernel_.register_rows = kernel_.rows;
  layout();
}

/// Places parameters, shared and local variables as nvcc does: in order, each aligned to itself.
void Decoder::layout() {
  for (const Variable& v : kernel_.body->parameters) {
    u32 offset = u32(align_up(kernel_.parameter_bytes, v.align));
    u64 size = v.size;
    kernel_.parameters.push_back({v.name, offset, u32(size)});
    parameters_[v.name] = offset;
    kernel_.parameter_bytes = offset + u32(size);
  }
  std::set<std::string> used;
  for (const Statement& s : kernel_.body->statements)
    for (const Operand& o : s.operands) used.insert(o.name);
  u32 dynamic_align = 16;
  std::vector<std::string> dynamic;
  auto place = [&](const Variable& v) {
    if (v.space == Space::kLocal) {
      kernel_.local_bytes = u32(align_up(kernel_.local_bytes, std::max<u32>(v.align, 16)));
      local_[v.name] = kernel_.local_bytes;
      kernel_.local_bytes += u32(v.size);
    } else if (v.space == Space::kShared && v.size == 0) {
      dynamic.push_back(v.name);
      dynamic_align = std::max(dynamic_align, v.align);
    } else if (v.space == Space::kShared && used.contains(v.name)) {
      kernel_.static_shared = u32(align_up(kernel_.static_shared, v.align));
      shared_[v.name] = kernel_.static_shared + kSharedBase;
      kernel_.static_shared += u32(v.size);
    }
  };
  for (const Variable& v : kernel_.unit->variables) place(v);
  for (const Variable& v : kernel_.body->variables) place(v);
  kernel_.dynamic_base = u32(align_up(kernel_.static_shared, dynamic_align));
  for (const std::string& name : dynamic) shared_[name] = kernel_.dynamic_base + kSharedBase;
}

void Decoder::run() {
  kernel_.extras.emplace_back();  // index 0: none
  for (const Statement& statement : kernel_.body->statements) {
    statement_ = &statement;
    inst_ = Inst();
    if (statement.guard >= 0) {
      inst_.guard = register_row(statement.guard);
      inst_.guard_negated = statement.guard_negated;
    }
    auto family = table().find(statement.opcode[0]);
    if (family == table().end()) unknown();
    asked_.assign(statement.opcode.size(), false);
    asked_[0] = true;
    family->second(*this);
    if (!inst_.run) unknown();
    for (size_t i = 0; i < asked_.size(); ++i)
      if (!asked_[i]) unknown("modifier ." + statement.opcode[i]);
    kernel_.code.push_back(inst_);
  }
  if (kernel_.code.empty() || kernel_.code.back().kind != Kind::kExit)
    throw Fault("syntax", "kernel " + kernel_.body->name + " does not end with ret or exit");
}

u32 Decoder::new_rows(int width) {
  u32 row = kernel_.rows;
  kernel_.rows += width > 32 ? 2 : 1;
  return row;
}

u32 Decoder::register_row(int reg) { return register_rows_[size_t(reg)]; }

const Operand& Decoder::operand(size_t i) const {
  if (i >= operands()) unknown("too few operands");
  return statement_->operands[i];
}

const std::string& Decoder::type(int from_last) {
  for (size_t i = statement_->opcode.size(); i-- > 1;)
    if (type_bits(statement_->opcode[i]) && from_last-- == 0) {
      asked_[i] = true;
      return statement_->opcode[i];
    }
  unknown("no type in the opcode");
}

bool Decoder::has(std::string_view part) {
  bool found = false;
  for (size_t i = 1; i < asked_.size(); ++i)
    if (statement_->opcode[i] == part) found = asked_[i] = true;
  return found;
}

void Decoder::accept(std::initializer_list<std::string_view> parts) {
  for (std::string_view part : parts) has(part);
}

void Decoder::accept_all() { asked_.assign(asked_.size(), true); }

Extra& Decoder::extra() {
  if (inst_.extra == 0) {
    inst_.extra = u32(kernel_.extras.size());
    kernel_.extras.emplace_back();
  }
  return kernel_.extras[inst_.extra];
}

int Decoder::width(const Operand& o) const {
  return o.kind == Operand::kRegister ? kernel_.body->registers[size_t(o.reg)].width : 0;
}

u32 Decoder::constant(u64 value, int width) {
  value = low_bits(value, width);
  auto [found, fresh] = constant_rows_.try_emplace({value, width}, 0);
  if (fresh) {
    found->second = new_rows(width);
    kernel_.constants.push_back({found->second, width, value});
  }
  return found->second;
}

u32 Decoder::source(const Operand& o, int width) {
  switch (o.kind) {
    case Operand::kRegister:
      if (this->width(o) != width)
        unknown("operand " + kernel_.body->registers[size_t(o.reg)].name + " is not " +
                std::to_string(width) + " bits wide");
      return register_row(o.reg);
    case Operand::kNumber:
      if (o.number.float_bytes == 8 && width == 32)
        return constant(bits<u32>(f32(bits<f64>(o.number.bits))), 32);
      return constant(o.number.bits, width);
    case Operand::kSpecial: {
      if (!kSpecials.contains(o.name) || width != 32) unknown("special register " + o.name);
      auto [found, fresh] = special_rows_.try_emplace(o.name, 0);
      if (fresh) {
        found->second = new_rows(32);
        kernel_.specials.push_back({found->second, o.name});
      }
      return found->second;
    }
    case Operand::kSymbol:
      return constant(symbol_value(o.name) + u64(o.offset), width);
    default:
      unknown("an operand of this form");
  }
}

u64 Decoder::symbol_value(const std::string& name) {
  if (name == "WARP_SZ") return kLanes;
  for (const auto& places : {shared_, local_, parameters_})
    if (auto found = places.find(name); found != places.end()) return found->second;
  if (auto found = symbols_.find(name); found != symbols_.end()) return found->second;
  unknown("symbol " + name);
}

u32 Decoder::destination(const Operand& o, int width) {
  if (o.kind == Operand::kSink) return 0;
  if (o.kind != Operand::kRegister) unknown("the destination is no register");
  return source(o, width);
}

std::vector<u32> Decoder::rows(const Operand& o, int width, bool destination) {
  std::vector<u32> out;
  const std::vector<Operand> single = {o};
  for (const Operand& item : o.kind == Operand::kVector ? o.items : single)
    out.push_back(destination ? this->destination(item, width) : source(item, width));
  return out;
}

void Decoder::address(size_t i, Space space) {
  const Operand& o = operand(i);
  if (o.kind != Operand::kAddress) unknown("operand " + std::to_string(i) + " is no address");
  Extra& x = extra();
  x.space = space;
  x.offset = o.offset + (o.name.empty() ? 0 : s64(symbol_value(o.name)));
  if (o.reg >= 0) {
    x.base_bits = width(o.reg >= 0 ? Operand{.kind = Operand::kRegister, .reg = o.reg} : o);
    x.base = register_row(o.reg);
  }
}

u32 Decoder::label(const std::string& name) {
  auto found = kernel_.body->labels.find(name);
  if (found == kernel_.body->labels.end()) unknown("label " + name);
  if (found->second >= kernel_.body->statements.size()) unknown("label " + name + " at the very end");
  return found->second;
}

const std::vector<std::string>& Decoder::branch_targets(const std::string& name) const {
  auto found = kernel_.body->targets.find(name);
  if (found == kernel_.body->targets.end()) unknown("branch table " + name);
  return found->second;
}

void Decoder::lanes(Handler run, int dst_width, std::initializer_list<int> src_widths) {
  inst_.run = run;
  inst_.op[0] = destination(0, dst_width);
  inst_.sources = u8(src_widths.size());
  size_t i = 1;
  for (int width : src_widths) {
    inst_.op[i] = source(i, width);
    ++i;
  }
  if (operands() != i) unknown("the number of operands");
}

void Decoder::unknown(const std::string& why) const {
  throw Fault("unknown instruction",
              kernel_.describe(u32(statement_ - kernel_.body->statements.data())) +
                  (why.empty() ? "" : " (" + why + ")") +
                  ". Teach tests/ptx/core this instruction, or write the kernel without it.");
}

std::string Kernel::describe(u32 index) const {
  const Statement& s = body->statements[index];
  std::string text = unit->lines[size_t(s.line - 1)];
  text.erase(0, text.find_first_not_of(' '));
  std::string where = "PTX line " + std::to_string(s.line);
  if (auto file = unit->files.find(s.file); file != unit->files.end())
    where +=
        " (" + file->second.substr(file->second.rfind('/') + 1) + ":" + std::to_string(s.source_line) + ")";
  return where + ": " + text;
}

}  // namespace ptx
