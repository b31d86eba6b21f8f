// The Python module: device memory, programs and launches. tests/ptx/gpu.py is its face.
#include <cxxabi.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "machine.h"

namespace py = pybind11;

namespace ptx {
namespace {

std::string demangle(const std::string& name) {
  int status = 0;
  std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), std::free);
  return status == 0 ? text.get() : name;
}

/// A parsed PTX file whose module-level variables live on a device.
class Program {
 public:
  Program(std::shared_ptr<Device> device, const std::string& text)
      : device_(std::move(device)), unit_(parse(text)) {
    for (const Variable& v : unit_.variables)
      if (v.space != Space::kShared) {
        Allocation& memory = device_->allocate(v.size, v.name);
        std::copy(v.initial.begin(), v.initial.end(), memory.data.begin());
        if (v.initial.empty())  // as in C++: static variables start at zero
          std::fill(memory.data.begin(), memory.data.end(), u8(0));
        std::fill(memory.state.begin(), memory.state.end(), u8(kWritten));
        symbols_[v.name] = memory.base;
      }
  }

  std::vector<std::pair<std::string, std::string>> kernels() const {
    std::vector<std::pair<std::string, std::string>> names;
    for (const Body& body : unit_.kernels) names.emplace_back(body.name, demangle(body.name));
    return names;
  }

  const Kernel& kernel(const std::string& name) {
    if (auto found = decoded_.find(name); found != decoded_.end()) return found->second;
    for (const Body& body : unit_.kernels)
      if (body.name == name) return decoded_.emplace(name, decode(unit_, body, symbols_)).first->second;
    throw Fault("launch", "no kernel is called " + name);
  }

  py::list parameters(const std::string& name) {
    py::list out;
    for (const Parameter& p : kernel(name).parameters) out.append(py::make_tuple(p.name, p.offset, p.size));
    return out;
  }

  py::dict launch(const std::string& name, std::array<u32, 3> grid, std::array<u32, 3> block, u32 shared,
                  const std::string& parameters, u64 seed, u64 max_instructions) {
    const Kernel& k = kernel(name);
    const u64 threads = u64(block[0]) * block[1] * block[2];
    const u64 limit = k.body->max_threads ? k.body->max_threads : 1024;
    if (threads == 0 || threads > limit || u64(grid[0]) * grid[1] * grid[2] == 0)
      throw Fault("launch", name + " takes 1 to " + std::to_string(limit) +
                                " threads in a block and at least one block, not " + std::to_string(threads) +
                                " threads");
    if (u64(grid[0]) * grid[1] * grid[2] >= GlobalAccess::kManyCtas)
      throw Fault("launch", "more than four million blocks");
    Launch launch{k, *device_, {grid, block, shared, seed, max_instructions}, {}, {}, 0, {}};
    launch.parameters.assign(parameters.begin(), parameters.end());
    {
      py::gil_scoped_release release;
      launch.run();
    }
    return counters(k, launch.stats);
  }

 private:
  /// One array a counter, one entry an instruction.
  static py::dict counters(const Kernel& k, const std::vector<Stat>& stats) {
    py::dict out;
    auto column = [&](const char* name, auto get) {
      py::array_t<u64> values{py::ssize_t(stats.size())};
      for (size_t i = 0; i < stats.size(); ++i) values.mutable_at(i) = u64(get(i));
      out[name] = values;
    };
    column("issues", [&](size_t i) { return stats[i].issues; });
    column("lanes", [&](size_t i) { return stats[i].lanes; });
    column("sectors", [&](size_t i) { return stats[i].sectors; });
    column("used_bytes", [&](size_t i) { return stats[i].used_bytes; });
    column("wavefronts", [&](size_t i) { return stats[i].wavefronts; });
    column("ideal_wavefronts", [&](size_t i) { return stats[i].ideal; });
    column("kind", [&](size_t i) { return u64(k.code[i].kind); });
    column("ptx_line", [&](size_t i) { return k.body->statements[i].line; });
    column("file", [&](size_t i) { return k.body->statements[i].file; });
    column("source_line", [&](size_t i) { return k.body->statements[i].source_line; });
    py::dict files;
    for (const auto& [number, file] : k.unit->files) files[py::int_(number)] = file;
    out["files"] = files;
    return out;
  }

  std::shared_ptr<Device> device_;
  Unit unit_;
  Symbols symbols_;
  std::map<std::string, Kernel> decoded_;
};

Allocation& at(Device& device, u64 base) {
  Allocation* found = device.find(base);
  if (!found || found->base != base) throw Fault("memory", "no buffer begins here");
  return *found;
}

py::bytes as_bytes(const std::vector<u8>& data) {
  return py::bytes(reinterpret_cast<const char*>(data.data()), data.size());
}

}  // namespace
}  // namespace ptx

PYBIND11_MODULE(ptx_interpreter, m) {
  using namespace ptx;
  py::register_exception<Fault>(m, "PtxFault", PyExc_RuntimeError);
  py::list kinds;
  for (const char* kind :
       {"other", "mma", "special", "global_load", "global_store", "global_atomic", "shared_load",
        "shared_store", "shared_atomic", "async_copy", "local", "barrier", "exit"})
    kinds.append(kind);
  m.attr("kinds") = kinds;  // in the order of Kind
  py::class_<Device, std::shared_ptr<Device>>(m, "Device")
      .def(py::init<>())
      .def("allocate",
           [](Device& d, u64 size, const std::string& name) { return d.allocate(size, name).base; })
      .def("release", &Device::release)
      .def("write",
           [](Device& d, u64 base, const std::string& data) {
             Allocation& memory = at(d, base);
             if (data.size() != memory.size) throw Fault("memory", "a write of another size than the buffer");
             std::copy(data.begin(), data.end(), memory.data.begin());
             std::fill(memory.state.begin(), memory.state.end(), u8(kWritten));
           })
      .def("read", [](Device& d, u64 base) { return as_bytes(at(d, base).data); })
      .def("state", [](Device& d, u64 base) { return as_bytes(at(d, base).state); });
  py::class_<Program>(m, "Program")
      .def(py::init<std::shared_ptr<Device>, const std::string&>())
      .def("kernels", &Program::kernels)
      .def("parameters", &Program::parameters)
      .def("launch", &Program::launch);
}
