// Memory that a thread keeps from call to call.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace fastgen {

inline constexpr int64_t kCacheLine = 64;

// Memory that only grows; what it holds is lost when it does.
class Scratch {
 public:
  float* floats(int64_t count) {
    if (count > count_) {
      memory_.reset(static_cast<float*>(
          ::operator new[](count * sizeof(float), std::align_val_t{kCacheLine})));
      count_ = count;
    }
    return memory_.get();
  }

 private:
  struct Release {
    void operator()(float* memory) const {
      ::operator delete[](memory, std::align_val_t{kCacheLine});
    }
  };
  std::unique_ptr<float, Release> memory_;
  int64_t count_ = 0;
};

}  // namespace fastgen
