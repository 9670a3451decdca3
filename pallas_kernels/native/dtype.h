// The kinds of numbers that kernels read and write.
#pragma once

#include <cstdint>

namespace fastgen {

enum class DType : int32_t { kFloat32, kBfloat16, kFloat8E4M3, kFloat8E5M2 };

}  // namespace fastgen
