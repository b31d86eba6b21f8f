// The part of the CUDA runtime that nvcc's host code calls, handing every launch to the interpreter
// instead of a driver. Linked in place of libcudart, so that launch geometry, shared memory sizes and the
// order of launches are those of the real host code.
#include <cstddef>
#include <map>
#include <string>

namespace {

struct Dim {
  unsigned x, y, z;
};

// Returns 0, or a cudaError_t.
using Launcher = int (*)(const char* kernel, const Dim* grid, const Dim* block, void** arguments,
                         size_t shared_bytes);

constexpr int kInvalidValue = 1, kInvalidFunction = 98;
constexpr size_t kDefaultShared = 48 * 1024;       // more needs cudaFuncSetAttribute
constexpr int kMaxDynamicShared = 8;               // cudaFuncAttributeMaxDynamicSharedMemorySize
constexpr int kMajor = 75, kProcessorShared = 81;  // cudaDevAttr…
constexpr int kReservedShared = 1024;              // of every block

struct Kernel {
  std::string name;
  size_t max_shared = kDefaultShared;
};

struct Call {
  Dim grid, block;
  size_t shared_bytes;
  void* stream;
};

// A compute capability, and the shared memory of a multiprocessor; a block may have all but the reserve.
struct Device {
  int major = 8;
  int shared_bytes = 164 * 1024;
};

Device device;
Launcher launcher = nullptr;
int last_error = 0;
Call pending;

std::map<const void*, Kernel>& kernels() {  // by host function; filled before main
  static std::map<const void*, Kernel> all;
  return all;
}

int fail(int error) {
  last_error = error;
  return error;
}

int run(const Kernel& kernel, const Call& call, void** arguments) {
  if (!launcher || call.shared_bytes > kernel.max_shared) return fail(kInvalidValue);
  const int error = launcher(kernel.name.c_str(), &call.grid, &call.block, arguments, call.shared_bytes);
  return error ? fail(error) : 0;
}

}  // namespace

extern "C" {

void ptx_set_launcher(Launcher function) { launcher = function; }
void ptx_set_device(int major, int shared_bytes) { device = {major, shared_bytes}; }

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*,
                            void*, int*) {
  kernels()[host].name = name;
}

unsigned __cudaPushCallConfiguration(Dim grid, Dim block, size_t shared_bytes, void* stream) {
  pending = {grid, block, shared_bytes, stream};
  return 0;
}
int __cudaPopCallConfiguration(Dim* grid, Dim* block, size_t* shared_bytes, void** stream) {
  *grid = pending.grid;
  *block = pending.block;
  *shared_bytes = pending.shared_bytes;
  *stream = pending.stream;
  return 0;
}

int __cudaGetKernel(const Kernel** kernel, const void* host) {
  const auto found = kernels().find(host);
  if (found == kernels().end()) return fail(kInvalidFunction);
  *kernel = &found->second;
  return 0;
}
int __cudaLaunchKernel(const Kernel* kernel, Dim grid, Dim block, void** arguments, size_t shared_bytes,
                       void* stream) {
  return run(*kernel, {grid, block, shared_bytes, stream}, arguments);
}
int cudaLaunchKernel(const void* host, Dim grid, Dim block, void** arguments, size_t shared_bytes,
                     void* stream) {
  const Kernel* kernel = nullptr;
  const int error = __cudaGetKernel(&kernel, host);
  return error ? error : run(*kernel, {grid, block, shared_bytes, stream}, arguments);
}

int cudaFuncSetAttribute(const void* host, int attribute, int value) {
  const auto found = kernels().find(host);
  if (found == kernels().end()) return fail(kInvalidFunction);
  if (attribute == kMaxDynamicShared) {
    if (value > device.shared_bytes - kReservedShared) return fail(kInvalidValue);
    found->second.max_shared = static_cast<size_t>(value);
  }
  return 0;
}
int cudaGetDevice(int* number) {
  *number = 0;
  return 0;
}
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute == kMajor) {
    *value = device.major;
  } else if (attribute == kProcessorShared) {
    *value = device.shared_bytes;
  } else {
    return fail(kInvalidValue);
  }
  return 0;
}
int cudaPeekAtLastError() { return last_error; }
int cudaGetLastError() {
  const int error = last_error;
  last_error = 0;
  return error;
}
const char* cudaGetErrorString(int) { return "the interpreter refused a launch"; }

}  // extern "C"
