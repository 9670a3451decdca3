// The innermost loops of rows in int8: a few rows times a panel's codes, exactly, group by group.
//
// A group's sum of integers has no rounding, and the groups' results are added in float32 in one
// order: whatever the number of rows, a row's result is the same to the last bit.
#pragma once

#include <algorithm>
#include <type_traits>

#include "linear/micro_kernel.h"
#include "native/dot.h"

namespace fastgen {

// Rows that one kernel takes: their sums and the codes fill the registers.
inline constexpr int kMaxCodeRows = kLanes == 16 ? 12 : 4;

template <typename Format>
inline constexpr bool kHasCodes = !std::is_same_v<Format, Float32Format> &&
                                  !std::is_same_v<Format, Bfloat16Format>;

// Consecutive features of a row that share a scale: half a group of weights, because half as many
// make the error of rounding smaller than they make the product slower.
inline constexpr int64_t kRowGroup = 16;
inline constexpr int kHalves = kGroup / kRowGroup;

// What a row has for a group of weights: its codes times `scales` are its numbers.
struct RowGroup {
  float scales[kHalves];
  int32_t code_sums[kHalves];
  float sum;  // of the numbers
};

// A block of rows: four codes to a word, in the order that a format's words ask for.
struct CodeRows {
  const uint32_t* words;   // [depth / 4][rows]
  const RowGroup* groups;  // [depth / kGroup][rows]
};

// A word of weights is one factor, of four features.
struct ByteCodes : SignedDot {
  static constexpr int kParts = 1;
  template <int>
  static FASTGEN_INLINE First take(VecU word) {
    return prepare(word);
  }
};

// A word of weights is two factors, of its even features and of its odd ones.
struct NibbleCodes : NibbleDot {
  static constexpr int kExcess = 0;
  static constexpr int kParts = 2;
  using First = VecU;
  template <int kPart>
  static FASTGEN_INLINE VecU take(VecU word) {
    return (word >> (4 * kPart)) & 0x0f0f0f0fu;
  }
};

template <typename Format>
using CodesOf = std::conditional_t<Format::kNibbles, NibbleCodes, ByteCodes>;

// By how much each code is too large where its products are added.
template <typename Format>
inline constexpr int kCodeExcess =
    std::is_same_v<Format, Q40Format> ? 8 : CodesOf<Format>::kExcess;

template <typename Format>
inline constexpr bool kAddsMins = std::is_same_v<Format, Q41Format>;

// Words by which fetching from memory runs ahead of their use.
inline constexpr int64_t kCodesAhead = 32;

// Adds the products of `words` words to `sums`.
template <typename Codes, int kRows, bool kStreams>
FASTGEN_INLINE void add_words(const uint32_t* x, const uint32_t* from, int64_t words,
                              typename Codes::Sum (&sums)[kRows][kPanelVecs]) {
  for (int64_t word = 0; word < words; ++word) {
    if (kStreams) __builtin_prefetch(from + kCodesAhead * kPanel);
    static_for<Codes::kParts>([&](auto part) {
      typename Codes::First codes[kPanelVecs];
      FASTGEN_UNROLL for (int v = 0; v < kPanelVecs; ++v) {
        codes[v] = Codes::template take<decltype(part)::value>(load<VecU>(from + v * kLanes));
      }
      FASTGEN_UNROLL for (int r = 0; r < kRows; ++r) {
        const VecU row = broadcast_word(x + part * kRows + r);
        FASTGEN_UNROLL for (int v = 0; v < kPanelVecs; ++v) {
          sums[r][v] = in_register(Codes::add(sums[r][v], codes[v], row));
        }
      }
    });
    x += Codes::kParts * kRows;
    from += kPanel;
  }
}

// numbers [kRows][kPanel] = the rows' numbers of a group times codes, of which there are `words`
// words. kWhole: they are those of a whole group.
template <typename Format, int kRows, bool kStreams, bool kWhole>
FASTGEN_INLINE void multiply_group(const CodeRows& x, const uint32_t* from, int64_t words,
                                   Vec (&numbers)[kRows][kPanelVecs]) {
  using Codes = CodesOf<Format>;
  constexpr int64_t kWords = kRowGroup / Format::kPerWord;
  static_for<kHalves>([&](auto half) {
    typename Codes::Sum sums[kRows][kPanelVecs] = {};
    const int64_t left = words - half * kWords;
    add_words<Codes, kRows, kStreams>(x.words + half * (kRowGroup / 4) * kRows,
                                      from + half * kWords * kPanel,
                                      kWhole ? kWords : std::min(kWords, left), sums);
    FASTGEN_UNROLL for (int r = 0; r < kRows; ++r) {
      const Vec scale = broadcast(x.groups[r].scales[half]);
      FASTGEN_UNROLL for (int v = 0; v < kPanelVecs; ++v) {
        VecI sum = Codes::total(sums[r][v]);
        if constexpr (kCodeExcess<Format> != 0) {
          sum -= broadcast(kCodeExcess<Format> * x.groups[r].code_sums[half]);
        }
        const Vec exact = __builtin_convertvector(sum, Vec);
        numbers[r][v] = half == 0 ? exact * scale : fma(exact, scale, numbers[r][v]);
      }
    }
  });
}

// sums [kRows][kPanel] = rows times `words` words of a panel. The sums go on from their values
// where `resume` is set.
template <typename Format, int kRows, bool kStreams>
FASTGEN_NO_INLINE void multiply_codes(CodeRows x, const Panel& panel, int64_t words, bool resume,
                                      float* sums) {
  constexpr int64_t kWords = kGroup / Format::kPerWord;
  if (!resume) {
    for (int i = 0; i < kRows * kPanel; i += kLanes) store(sums + i, Vec{});
  }
  const uint32_t* from = panel.words;
  for (int64_t group = 0; group * kWords < words; ++group) {
    Vec numbers[kRows][kPanelVecs];
    const int64_t left = words - group * kWords;
    if (Format::kGrouped || left >= kWords) {
      multiply_group<Format, kRows, kStreams, true>(x, from, kWords, numbers);
    } else {
      multiply_group<Format, kRows, kStreams, false>(x, from, left, numbers);
    }
    // The whole stays in memory: the compiler must not keep a copy of it on the stack.
    asm volatile("" : "+r"(sums));
    FASTGEN_UNROLL for (int v = 0; v < kPanelVecs; ++v) {
      const int64_t at = group * kPanel + v * kLanes;
      Vec scale = {}, min = {};
      if constexpr (Format::kGrouped) scale = load_f16(panel.scales + at);
      if constexpr (kAddsMins<Format>) min = load_f16(panel.mins + at);
      FASTGEN_UNROLL for (int r = 0; r < kRows; ++r) {
        float* sum = sums + r * kPanel + v * kLanes;
        Vec total = load<Vec>(sum);
        if constexpr (kAddsMins<Format>) total = fma(broadcast(x.groups[r].sum), min, total);
        total = Format::kGrouped ? fma(numbers[r][v], scale, total) : total + numbers[r][v];
        store(sum, total);
      }
    }
    x.words += kGroup / 4 * kRows;
    x.groups += kRows;
    from += kWords * kPanel;
  }
}

}  // namespace fastgen
