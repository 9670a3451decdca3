// Numbers of 8 bits: float8_e4m3fn and float8_e5m2.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "native/dtype.h"

namespace fastgen {

struct Float8Format {
  int mantissa_bits;
  int bias;
  float largest;
};

inline constexpr Float8Format kE4M3 = {3, 7, 448.0f};
inline constexpr Float8Format kE5M2 = {2, 15, 57344.0f};

inline Float8Format float8_format(DType dtype) {
  return dtype == DType::kFloat8E4M3 ? kE4M3 : kE5M2;
}

inline float widen_float8(uint8_t code, DType dtype) {
  const Float8Format format = float8_format(dtype);
  const int magnitude = code & 0x7f;
  const int mantissa = magnitude & ((1 << format.mantissa_bits) - 1);
  const int exponent = magnitude >> format.mantissa_bits;
  const float sign = code & 0x80 ? -1.0f : 1.0f;
  if (dtype == DType::kFloat8E4M3 && magnitude == 0x7f) return std::nanf("");
  if (dtype == DType::kFloat8E5M2 && exponent == 31)
    return mantissa ? std::nanf("") : sign * std::numeric_limits<float>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - format.bias - format.mantissa_bits);
  const int significand = mantissa + (1 << format.mantissa_bits);
  return sign * std::ldexp(significand, exponent - format.bias - format.mantissa_bits);
}

using Float8Table = std::array<float, 256>;

// What each of the 256 codes stands for.
inline const Float8Table& float8_table(DType dtype) {
  auto make = [](DType of) {
    Float8Table table;
    for (int code = 0; code < 256; ++code) table[code] = widen_float8(code, of);
    return table;
  };
  static const Float8Table e4m3 = make(DType::kFloat8E4M3);
  static const Float8Table e5m2 = make(DType::kFloat8E5M2);
  return dtype == DType::kFloat8E4M3 ? e4m3 : e5m2;
}

// To the nearest, ties to even; what is out of range takes the largest number; a NaN stays one.
inline uint8_t round_float8(float value, DType dtype) {
  const Float8Format format = float8_format(dtype);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  if (value != value) return sign | 0x7f;
  const float magnitude = std::fmin(std::fabs(value), format.largest);
  std::memcpy(&bits, &magnitude, sizeof bits);
  const int dropped = 23 - format.mantissa_bits;
  const int exponent = static_cast<int>(bits >> 23) - 127 + format.bias;
  if (exponent < 1) {
    // Adding a number whose last bit is the smallest subnormal rounds to a multiple of that.
    const float anchor = std::ldexp(1.0f, 24 - format.bias - format.mantissa_bits);
    const float sum = magnitude + anchor;
    uint32_t anchor_bits;
    std::memcpy(&bits, &sum, sizeof bits);
    std::memcpy(&anchor_bits, &anchor, sizeof anchor_bits);
    return sign | static_cast<uint8_t>(bits - anchor_bits);
  }
  const uint32_t rounded = bits + ((1u << (dropped - 1)) - 1) + ((bits >> dropped) & 1u);
  const uint32_t code = (rounded >> dropped) - (static_cast<uint32_t>(127 - format.bias)
                                                << format.mantissa_bits);
  return sign | static_cast<uint8_t>(code);
}

}  // namespace fastgen
