// How each packed format becomes vectors of weights.
//
// Every format stores a panel as 32-bit words, [words][kPanel]: a word holds the weights of one
// output feature for 1, 2, 4 or 8 input features in a row. So one loop serves them all, with the
// functions below to take a word apart.
#pragma once

#include "linear/cpu.h"
#include "native/simd.h"

namespace fastgen {

// Registers of a panel's row.
inline constexpr int kPanelVecs = kPanel / kLanes;
// Input features that share a scale, in the formats that have such groups.
inline constexpr int64_t kGroup = 32;

// One panel of a matrix.
struct Panel {
  const uint32_t* words;   // [words][kPanel]
  const uint16_t* scales;  // [groups][kPanel] or null
  const uint16_t* mins;
};

struct Float32Format {
  static constexpr int kPerWord = 1;
  static constexpr bool kGrouped = false;
  static constexpr bool kNibbles = false;
  template <int>
  static FASTGEN_INLINE Vec decode(VecU word) {
    return (Vec)word;
  }
};

struct Bfloat16Format {
  static constexpr int kPerWord = 2;
  static constexpr bool kGrouped = false;
  static constexpr bool kNibbles = false;
  template <int kPart>
  static FASTGEN_INLINE Vec decode(VecU word) {
    return (Vec)(kPart == 0 ? word << 16 : word & 0xffff0000u);
  }
};

// Signed bytes, from the top of their lane: 2**24 times their values, which saves shifts.
struct Int8Format {
  static constexpr int kPerWord = 4;
  static constexpr bool kGrouped = false;
  static constexpr bool kNibbles = false;
  static constexpr float kUnit = 1.0f / (1 << 24);
  template <int kPart>
  static FASTGEN_INLINE Vec decode(VecU word) {
    const VecU top = kPart == 3 ? word : word << (24 - 8 * kPart);
    return __builtin_convertvector((VecI)(kPart == 0 ? top : top & 0xff000000u), Vec);
  }
};

struct Q80Format : Int8Format {
  static constexpr bool kGrouped = true;
  static constexpr bool kHasMin = false;
  static FASTGEN_INLINE Vec scale(const Panel& panel, int64_t at) {
    return load_f16(panel.scales + at) * kUnit;
  }
};

// Nibbles stay where they are in their word, so each but the last is a power of 16 times its value.
// The rows that they are multiplied with are divided by that power beforehand, which is exact.
inline constexpr float kNibbleUnits[8] = {1.0f,          1.0f / (1 << 4),  1.0f / (1 << 8),
                                          1.0f / (1 << 12), 1.0f / (1 << 16), 1.0f / (1 << 20),
                                          1.0f / (1 << 24), 1.0f};

struct Q41Format {
  static constexpr int kPerWord = 8;
  static constexpr bool kGrouped = true;
  static constexpr bool kNibbles = true;
  static constexpr bool kHasMin = true;
  template <int kPart>
  static FASTGEN_INLINE Vec decode(VecU word) {
    const VecU bits = kPart == 7 ? word >> 28 : word & (15u << (4 * kPart));
    return __builtin_convertvector((VecI)bits, Vec);
  }
  static FASTGEN_INLINE Vec scale(const Panel& panel, int64_t at) {
    return load_f16(panel.scales + at);
  }
  static FASTGEN_INLINE Vec min(const Panel& panel, int64_t at, Vec) {
    return load_f16(panel.mins + at);
  }
};

struct Q40Format : Q41Format {
  static FASTGEN_INLINE Vec min(const Panel&, int64_t, Vec scale) { return scale * -8.0f; }
};

// Codes that are decoded already, a float32 each.
template <typename Format>
struct Unpacked : Format {
  static constexpr int kPerWord = 1;
  template <int>
  static FASTGEN_INLINE Vec decode(VecU word) {
    return (Vec)word;
  }
};

template <typename Format>
int64_t num_words(int64_t in_features) {
  return (in_features + Format::kPerWord - 1) / Format::kPerWord;
}

template <typename Format>
Panel panel_of(const Matrix& matrix, int64_t index) {
  const int64_t K = matrix.in_features;
  Panel panel = {};
  panel.words =
      static_cast<const uint32_t*>(matrix.codes) + index * num_words<Format>(K) * kPanel;
  if (!Format::kGrouped) return panel;
  const int64_t offset = index * (K / kGroup) * kPanel;
  panel.scales = static_cast<const uint16_t*>(matrix.scales) + offset;
  if (matrix.mins) panel.mins = static_cast<const uint16_t*>(matrix.mins) + offset;
  return panel;
}

// Calls `function` with the format as a type.
template <typename Function>
void with_format(WeightFormat format, Function function) {
  switch (format) {
    case WeightFormat::kFloat32:
      return function(Float32Format{});
    case WeightFormat::kBfloat16:
      return function(Bfloat16Format{});
    case WeightFormat::kInt8:
      return function(Int8Format{});
    case WeightFormat::kQ8_0:
      return function(Q80Format{});
    case WeightFormat::kQ4_0:
      return function(Q40Format{});
    case WeightFormat::kQ4_1:
      return function(Q41Format{});
  }
}

}  // namespace fastgen
