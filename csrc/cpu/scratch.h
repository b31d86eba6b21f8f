// Scratch memory of the kernels.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace fsad {
inline namespace FSAD_ISA {

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Uninitialised memory for `size` numbers. A large one asks for huge pages: the first touch of every small
// page costs more than the sums that go through it.
template <class Real>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    constexpr size_t line = 64, huge = size_t(2) << 20;
    const size_t bytes = std::max<int64_t>(size, 1) * sizeof(Real);
    const size_t alignment = bytes >= huge ? huge : line;
    data_.reset(static_cast<Real*>(std::aligned_alloc(alignment, round_up(bytes, alignment))));
    if (!data_) throw std::bad_alloc();
    if (alignment == huge) madvise(data_.get(), bytes, MADV_HUGEPAGE);  // advice: where refused, no harm
  }
  Real* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(Real* data) const { std::free(data); }
  };
  std::unique_ptr<Real, Free> data_;
};

// Cuts arrays out of one piece of memory, each at the start of a cache line. Over no memory it only counts.
template <class Real>
class Carver {
 public:
  explicit Carver(Real* memory) : memory_(memory) {}

  Real* take(int64_t size) {
    Real* array = memory_ ? memory_ + used_ : nullptr;
    used_ += round_up(size, 64 / sizeof(Real));
    return array;
  }
  int64_t used() const { return used_; }

 private:
  Real* memory_;
  int64_t used_ = 0;
};

// `count` equal sets of arrays in one memory; Arrays is constructed from a Carver and further arguments.
template <class Real, class Arrays>
class Slots {
 public:
  template <class... Arguments>
  Slots(int64_t count, const Arguments&... arguments)
      : size_(measure(arguments...)), memory_(count * size_) {}

  template <class... Arguments>
  Arrays at(int64_t slot, const Arguments&... arguments) const {
    Carver<Real> carver(memory_.get() + slot * size_);
    return Arrays(carver, arguments...);
  }

 private:
  template <class... Arguments>
  static int64_t measure(const Arguments&... arguments) {
    Carver<Real> carver(nullptr);
    Arrays(carver, arguments...);
    return carver.used();
  }

  int64_t size_;
  Buffer<Real> memory_;
};

}  // namespace FSAD_ISA
}  // namespace fsad
