// What the bindings share: XLA's numbers of types as ours, and errors.
#pragma once

#include <string>

#include "native/dtype.h"
#include "xla/ffi/api/ffi.h"

namespace fastgen {

inline xla::ffi::ErrorOr<DType> dtype_of(xla::ffi::AnyBuffer buffer) {
  switch (buffer.element_type()) {
    case xla::ffi::F32:
      return DType::kFloat32;
    case xla::ffi::BF16:
      return DType::kBfloat16;
    case xla::ffi::F8E4M3FN:
      return DType::kFloat8E4M3;
    case xla::ffi::F8E5M2:
      return DType::kFloat8E5M2;
    default:
      return xla::ffi::Unexpected(
          xla::ffi::Error(xla::ffi::ErrorCode::kInvalidArgument,
                          "the native kernels don't take arrays of XLA type " +
                              std::to_string(static_cast<int>(buffer.element_type()))));
  }
}

inline xla::ffi::Error invalid(const char* message) {
  return xla::ffi::Error(xla::ffi::ErrorCode::kInvalidArgument, message);
}

template <typename T>
T scalar(xla::ffi::AnyBuffer buffer) {
  return *static_cast<const T*>(buffer.untyped_data());
}

}  // namespace fastgen
