// Stretches of numbers of any kind: to float32 and back, and rotated.
#pragma once

#include "native/float8.h"
#include "native/simd.h"

namespace fastgen {

// `count` numbers from `offset` on in float32.
inline void widen(const void* from, DType dtype, int64_t offset, int64_t count, float* to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(to, static_cast<const float*>(from) + offset, count * sizeof(float));
  } else if (dtype == DType::kBfloat16) {
    const uint16_t* numbers = static_cast<const uint16_t*>(from) + offset;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load_bf16(numbers + i));
    for (; i < count; ++i) to[i] = widen_bf16(numbers[i]);
  } else {
    const Float8Table& table = float8_table(dtype);
    const uint8_t* numbers = static_cast<const uint8_t*>(from) + offset;
    for (int64_t i = 0; i < count; ++i) to[i] = table[numbers[i]];
  }
}

// Rounded once, to numbers from `offset` on.
inline void narrow(const float* from, int64_t count, DType dtype, int64_t offset, void* to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(static_cast<float*>(to) + offset, from, count * sizeof(float));
  } else if (dtype == DType::kBfloat16) {
    uint16_t* numbers = static_cast<uint16_t*>(to) + offset;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(numbers + i, round_bf16(load<Vec>(from + i)));
    for (; i < count; ++i) numbers[i] = round_bf16(from[i]);
  } else {
    uint8_t* numbers = static_cast<uint8_t*>(to) + offset;
    for (int64_t i = 0; i < count; ++i) numbers[i] = round_float8(from[i], dtype);
  }
}

// The first `half` numbers of a head against the next `half`, in place.
inline void rotate_halves(const float* cos, const float* sin, int64_t half, float* head) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec c = load<Vec>(cos + i), s = load<Vec>(sin + i);
    const Vec low = load<Vec>(head + i), high = load<Vec>(head + half + i);
    store(head + i, low * c - high * s);
    store(head + half + i, high * c + low * s);
  }
  for (; i < half; ++i) {
    const float low = head[i], high = head[half + i];
    head[i] = low * cos[i] - high * sin[i];
    head[half + i] = high * cos[i] + low * sin[i];
  }
}

}  // namespace fastgen
