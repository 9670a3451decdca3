// Vectors of one register, and the few operations that the compiler doesn't offer by itself.
//
// Arithmetic is the compiler's own on vector types (GCC and Clang), so one source serves every
// instruction set; what differs is the width and the handful of functions below.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

// Bounds of small arrays of registers must vanish: such loops are unrolled whole.
#define FASTGEN_UNROLL _Pragma("GCC unroll 16")
#define FASTGEN_INLINE inline __attribute__((always_inline))

namespace fastgen {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

using Vec = float __attribute__((vector_size(4 * kLanes)));
using VecI = int32_t __attribute__((vector_size(4 * kLanes)));
using VecU = uint32_t __attribute__((vector_size(4 * kLanes)));
using VecU16 = uint16_t __attribute__((vector_size(2 * kLanes)));

template <typename V>
FASTGEN_INLINE V load(const void* from) {
  V result;
  std::memcpy(&result, from, sizeof(V));
  return result;
}

template <typename V>
FASTGEN_INLINE void store(void* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

FASTGEN_INLINE Vec broadcast(float value) { return value - Vec{}; }

// a * b + c, rounded once.
FASTGEN_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  Vec result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = std::fma(a[lane], b[lane], c[lane]);
  return result;
#endif
}

FASTGEN_INLINE float sum(Vec value) {
  float total = 0;
  FASTGEN_UNROLL for (int lane = 0; lane < kLanes; ++lane) total += value[lane];
  return total;
}

// to[i] is the sum of the lanes of values[i].
FASTGEN_INLINE void sum4(const Vec values[4], float to[4]) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  __m256 half[4];
  FASTGEN_UNROLL for (int i = 0; i < 4; ++i) {
    __m256 parts[2];
    std::memcpy(parts, &values[i], sizeof parts);
    half[i] = _mm256_add_ps(parts[0], parts[1]);
  }
#else
  const __m256 half[4] = {(__m256)values[0], (__m256)values[1], (__m256)values[2],
                          (__m256)values[3]};
#endif
  const __m256 first = _mm256_add_ps(_mm256_unpacklo_ps(half[0], half[1]),
                                     _mm256_unpackhi_ps(half[0], half[1]));
  const __m256 second = _mm256_add_ps(_mm256_unpacklo_ps(half[2], half[3]),
                                      _mm256_unpackhi_ps(half[2], half[3]));
  const __m256 both = _mm256_add_ps(_mm256_shuffle_ps(first, second, 0x44),
                                    _mm256_shuffle_ps(first, second, 0xee));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
#else
  FASTGEN_UNROLL for (int i = 0; i < 4; ++i) to[i] = sum(values[i]);
#endif
}

FASTGEN_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

// bfloat16 is the upper half of a float32.
FASTGEN_INLINE Vec widen_bf16(VecU16 value) {
  return (Vec)(__builtin_convertvector(value, VecU) << 16);
}

FASTGEN_INLINE Vec load_bf16(const void* from) { return widen_bf16(load<VecU16>(from)); }

// 2 * kLanes bfloat16 numbers: those at even places and those at odd places.
FASTGEN_INLINE void load_bf16_pair(const void* from, Vec* even, Vec* odd) {
  const VecU bits = load<VecU>(from);
  *even = (Vec)(bits << 16);
  *odd = (Vec)(bits & 0xffff0000u);
}

// To the nearest, ties to even; a NaN stays one.
FASTGEN_INLINE VecU16 round_bf16(Vec value) {
  const VecU bits = (VecU)value;
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector(value == value ? rounded : nan, VecU16);
}

FASTGEN_INLINE float widen_bf16(uint16_t value) {
  const uint32_t bits = uint32_t{value} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

FASTGEN_INLINE uint16_t round_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// kLanes half-precision numbers as float32.
FASTGEN_INLINE Vec load_f16(const void* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#elif defined(__ARM_NEON)
  return (Vec)vcvt_f32_f16(vld1_f16(static_cast<const __fp16*>(from)));
#else
#error "half precision needs AVX2 with F16C, AVX-512 or NEON"
#endif
}

// e**value to within 2 units in the last place; 0 below -87.
FASTGEN_INLINE Vec exp(Vec value) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693145751953125f;
  constexpr float kLn2Low = 1.42860677e-6f;
  const Vec clamped = max(broadcast(-88.0f), value > 88.0f ? broadcast(88.0f) : value);
  const Vec biased = fma(clamped, broadcast(kLog2E), broadcast(12582912.0f));
  const Vec power = biased - 12582912.0f;  // the nearest integer
  Vec rest = fma(power, broadcast(-kLn2High), clamped);
  rest = fma(power, broadcast(-kLn2Low), rest);
  Vec result = broadcast(1.0f / 5040.0f);
  result = fma(result, rest, broadcast(1.0f / 720.0f));
  result = fma(result, rest, broadcast(1.0f / 120.0f));
  result = fma(result, rest, broadcast(1.0f / 24.0f));
  result = fma(result, rest, broadcast(1.0f / 6.0f));
  result = fma(result, rest, broadcast(0.5f));
  result = fma(result, rest, broadcast(1.0f));
  result = fma(result, rest, broadcast(1.0f));
  const VecI exponent = (__builtin_convertvector(power, VecI) + 127) << 23;
  result = result * (Vec)exponent;
  result = value < -87.0f ? broadcast(0.0f) : result;
  return value == value ? result : value;
}

// Off by no more than a few 1e-7; -1 and 1 far out.
FASTGEN_INLINE Vec tanh(Vec value) { return 1.0f - 2.0f / (exp(value + value) + 1.0f); }

}  // namespace fastgen
