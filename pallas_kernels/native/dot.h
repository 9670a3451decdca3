// Exact dot products of bytes, four of them in each 32-bit lane, as an instruction set does them
// best.
#pragma once

#include "native/simd.h"

namespace fastgen {

using VecI16 = int16_t __attribute__((vector_size(4 * kLanes)));

FASTGEN_INLINE VecU broadcast_word(const uint32_t* from) { return *from - VecU{}; }
FASTGEN_INLINE VecI broadcast(int32_t value) { return value - VecI{}; }

// The value itself, computed where it stands: the compiler would like to put off the additions of a
// sum until their terms fill all registers and more.
template <typename V>
FASTGEN_INLINE V in_register(V value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__AVX2__)
  asm("" : "+x"(value));
#elif defined(__ARM_NEON)
  asm("" : "+w"(value));
#endif
  return value;
}

// Any signed bytes times signed bytes from -127 to 127. A sum is too large by kExcess times the sum
// of the second factors.
struct SignedDot;

// Bytes from 0 to 15 times signed bytes from -127 to 127, no more than 32 in a lane's sum.
struct NibbleDot;

#if defined(__AVX512VNNI__)

// The instruction's first factor is unsigned.
struct SignedDot {
  static constexpr int kExcess = 128;
  using First = VecU;
  using Sum = VecI;
  static FASTGEN_INLINE First prepare(VecU bytes) { return bytes ^ 0x80808080u; }
  static FASTGEN_INLINE Sum add(Sum sum, First first, VecU second) {
    return (VecI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)first, (__m512i)second);
  }
  static FASTGEN_INLINE VecI total(Sum sum) { return sum; }
};

struct NibbleDot {
  using Sum = VecI;
  static FASTGEN_INLINE Sum add(Sum sum, VecU first, VecU second) {
    return (VecI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)first, (__m512i)second);
  }
  static FASTGEN_INLINE VecI total(Sum sum) { return sum; }
};

#elif defined(__AVX512F__)

// The first factor's sign goes over to the second one, since one of them has to be unsigned.
struct SignedDot {
  static constexpr int kExcess = 0;
  struct First {
    __m512i sizes;
    __mmask64 negative;
  };
  using Sum = VecI;
  static FASTGEN_INLINE First prepare(VecU bytes) {
    return {_mm512_abs_epi8((__m512i)bytes), _mm512_movepi8_mask((__m512i)bytes)};
  }
  static FASTGEN_INLINE Sum add(Sum sum, First first, VecU second) {
    const __m512i turned = _mm512_mask_sub_epi8((__m512i)second, first.negative,
                                                _mm512_setzero_si512(), (__m512i)second);
    const __m512i pairs = _mm512_maddubs_epi16(first.sizes, turned);
    return sum + (VecI)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  }
  static FASTGEN_INLINE VecI total(Sum sum) { return sum; }
};

// 32 products of at most 15 * 127 go into two sums of 16 bits.
struct NibbleDot {
  using Sum = VecI16;
  static FASTGEN_INLINE Sum add(Sum sum, VecU first, VecU second) {
    return sum + (VecI16)_mm512_maddubs_epi16((__m512i)first, (__m512i)second);
  }
  static FASTGEN_INLINE VecI total(Sum sum) {
    return (VecI)_mm512_madd_epi16((__m512i)sum, _mm512_set1_epi16(1));
  }
};

#elif defined(__AVX2__)

// The first factor's sign goes over to the second one, since one of them has to be unsigned.
struct SignedDot {
  static constexpr int kExcess = 0;
  struct First {
    __m256i sizes, signs;
  };
  using Sum = VecI;
  static FASTGEN_INLINE First prepare(VecU bytes) {
    return {_mm256_abs_epi8((__m256i)bytes), (__m256i)bytes};
  }
  static FASTGEN_INLINE Sum add(Sum sum, First first, VecU second) {
    const __m256i turned = _mm256_sign_epi8((__m256i)second, first.signs);
    const __m256i pairs = _mm256_maddubs_epi16(first.sizes, turned);
    return sum + (VecI)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  static FASTGEN_INLINE VecI total(Sum sum) { return sum; }
};

// 32 products of at most 15 * 127 go into two sums of 16 bits.
struct NibbleDot {
  using Sum = VecI16;
  static FASTGEN_INLINE Sum add(Sum sum, VecU first, VecU second) {
    return sum + (VecI16)_mm256_maddubs_epi16((__m256i)first, (__m256i)second);
  }
  static FASTGEN_INLINE VecI total(Sum sum) {
    return (VecI)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
  }
};

#elif defined(__ARM_NEON)

struct SignedDot {
  static constexpr int kExcess = 0;
  using First = VecU;
  using Sum = VecI;
  static FASTGEN_INLINE First prepare(VecU bytes) { return bytes; }
  static FASTGEN_INLINE Sum add(Sum sum, First first, VecU second) {
#if defined(__ARM_FEATURE_DOTPROD)
    return (VecI)vdotq_s32((int32x4_t)sum, (int8x16_t)first, (int8x16_t)second);
#else
    const int8x16_t a = (int8x16_t)first, b = (int8x16_t)second;
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(a), vget_high_s8(b)));
    return sum + (VecI)vpaddq_s32(low, high);
#endif
  }
  static FASTGEN_INLINE VecI total(Sum sum) { return sum; }
};

struct NibbleDot {
  using Sum = VecI;
  static FASTGEN_INLINE Sum add(Sum sum, VecU first, VecU second) {
    return SignedDot::add(sum, first, second);
  }
  static FASTGEN_INLINE VecI total(Sum sum) { return sum; }
};

#endif

}  // namespace fastgen
