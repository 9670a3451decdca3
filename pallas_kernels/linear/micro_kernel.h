// The innermost loops: a few rows times a few panels, with every sum in a register.
//
// Each output is one sum of fused multiply-adds over ascending input features, or one for each
// group of them, which its scale then brings into the whole. It is the same sum in every kernel
// here and whatever the number of rows: that is why a row's result doesn't depend on its
// neighbours.
#pragma once

#include <utility>

#include "linear/panel_format.h"

namespace fastgen {

// Alone in its function, a loop gets its sums into registers.
#define FASTGEN_NO_INLINE __attribute__((noinline))

// Words by which fetching from memory runs ahead of their use.
inline constexpr int64_t kStreamAhead = 16;

// Rows that one kernel takes of unpacked weights: their sums fill the registers.
inline constexpr int kMaxRows = kLanes == 16 ? 12 : 6;
// Rows that it can take while it also decodes weights, and with which that is fastest.
inline constexpr int kMaxDecodingRows = kLanes == 16 ? 12 : 5;
inline constexpr int kBestDecodingRows = kLanes == 16 ? 12 : 4;
// From so many rows on, unpacking weights once for all costs less than decoding them on the way.
inline constexpr int64_t kUnpackFrom = 48;

template <typename Function, int... kIndex>
FASTGEN_INLINE void static_for(Function function, std::integer_sequence<int, kIndex...>) {
  (function(std::integral_constant<int, kIndex>{}), ...);
}
template <int kCount, typename Function>
FASTGEN_INLINE void static_for(Function function) {
  static_for(function, std::make_integer_sequence<int, kCount>{});
}

// Calls `function` with a height from 1 to kMaxRows as a constant.
template <typename Function>
FASTGEN_INLINE void with_height(int height, Function function) {
  static_for<kMaxRows>([&](auto index) {
    constexpr int kHeight = decltype(index)::value + 1;
    if (height == kHeight) function(std::integral_constant<int, kHeight>{});
  });
}

// What a kernel fetches while it computes: so many bytes of memory for each word that it uses.
struct Ahead {
  const char* from;
  int64_t bytes_per_word;
};

// A block of rows of x: [features][rows], and the sums over each group of features, [groups][rows].
struct Rows {
  const float* values;
  const float* group_sums;
};

// Adds the products of `words` words, of the `all` of a panel, to `total`. Where `kStreams` is set,
// the panels' own bytes are fetched ahead of their use, and at their end those of the panels that
// come next.
template <typename Format, int kRows, int kPanels, bool kStreams>
FASTGEN_INLINE void accumulate(const float* x, const uint32_t* const (&from)[kPanels],
                               int64_t first, int64_t words, int64_t all, Ahead* ahead,
                               Vec (&total)[kRows][kPanels * kPanelVecs]) {
  constexpr int kVecs = kPanels * kPanelVecs;
  for (int64_t word = first; word < first + words; ++word) {
    if constexpr (kStreams) {
      int64_t at = word + kStreamAhead;
      if (at >= all) at += (kPanels - 1) * all;
      FASTGEN_UNROLL for (int p = 0; p < kPanels; ++p) __builtin_prefetch(from[p] + at * kPanel);
    } else {
      // To the second level: the first is full of what is being used.
      __builtin_prefetch(ahead->from, 0, 2);
      ahead->from += ahead->bytes_per_word;
    }
    const auto bits = [&](int v) {
      return load<VecU>(from[v / kPanelVecs] + word * kPanel + v % kPanelVecs * kLanes);
    };
    static_for<Format::kPerWord>([&](auto part) {
      Vec weights[kVecs];
      FASTGEN_UNROLL for (int v = 0; v < kVecs; ++v) {
        weights[v] = Format::template decode<decltype(part)::value>(bits(v));
      }
      FASTGEN_UNROLL for (int r = 0; r < kRows; ++r) {
        const Vec value = broadcast(x[part * kRows + r]);
        FASTGEN_UNROLL for (int v = 0; v < kVecs; ++v) {
          total[r][v] = fma(value, weights[v], total[r][v]);
        }
      }
    });
    x += Format::kPerWord * kRows;
  }
}

// sums [kRows][kPanels * kPanel] = x times panels. The sums go on from their values where `resume`
// is set.
template <typename Format, int kRows, int kPanels, bool kStreams>
FASTGEN_NO_INLINE void multiply(Rows x, const Panel* panels, int64_t words, bool resume,
                                Ahead ahead, float* sums) {
  constexpr int kVecs = kPanels * kPanelVecs, kWidth = kPanels * kPanel;
  const uint32_t* from[kPanels];
  FASTGEN_UNROLL for (int p = 0; p < kPanels; ++p) from[p] = panels[p].words;
  const auto sum_of = [&](int r, int v) { return sums + r * kWidth + v * kLanes; };
  if constexpr (!Format::kGrouped) {
    Vec total[kRows][kVecs] = {};
    if (resume) {
      FASTGEN_UNROLL for (int r = 0; r < kRows; ++r) {
        FASTGEN_UNROLL for (int v = 0; v < kVecs; ++v) total[r][v] = load<Vec>(sum_of(r, v));
      }
    }
    accumulate<Format, kRows, kPanels, kStreams>(x.values, from, 0, words, words, &ahead,
                                                  total);
    FASTGEN_UNROLL for (int r = 0; r < kRows; ++r) {
      FASTGEN_UNROLL for (int v = 0; v < kVecs; ++v) store(sum_of(r, v), total[r][v]);
    }
  } else {
    constexpr int64_t kWords = kGroup / Format::kPerWord;
    if (!resume) {
      for (int i = 0; i < kRows * kWidth; i += kLanes) store(sums + i, Vec{});
    }
    for (int64_t group = 0; group < words / kWords; ++group) {
      Vec part[kRows][kVecs] = {};
      accumulate<Format, kRows, kPanels, kStreams>(x.values + group * kGroup * kRows, from,
                                                   group * kWords, kWords, words, &ahead, part);
      // The whole stays in memory: the compiler must not keep a copy of it on the stack.
      asm volatile("" : "+r"(sums));
      FASTGEN_UNROLL for (int v = 0; v < kVecs; ++v) {
        const Panel& panel = panels[v / kPanelVecs];
        const int64_t at = group * kPanel + v % kPanelVecs * kLanes;
        const Vec scale = Format::scale(panel, at);
        if (kStreams && v % kPanelVecs == 0) {
          const int64_t next = at + kPanels * (words / kWords) * kPanel;
          __builtin_prefetch(panel.scales + next);
          if (Format::kHasMin) __builtin_prefetch(panel.mins + next);
        }
        FASTGEN_UNROLL for (int r = 0; r < kRows; ++r) {
          Vec total = fma(part[r][v], scale, load<Vec>(sum_of(r, v)));
          if constexpr (Format::kHasMin) {
            const Vec whole = broadcast(x.group_sums[group * kRows + r]);
            total = fma(whole, Format::min(panel, at, scale), total);
          }
          store(sum_of(r, v), total);
        }
      }
    }
  }
}

// A part of a panel's codes as float32 [words * kPerWord][kPanel].
template <typename Format>
void unpack(const uint32_t* from, int64_t words, float* codes) {
  for (int64_t word = 0; word < words; ++word) {
    FASTGEN_UNROLL for (int v = 0; v < kPanelVecs; ++v) {
      const VecU bits = load<VecU>(from + word * kPanel + v * kLanes);
      static_for<Format::kPerWord>([&](auto part) {
        store(codes + (word * Format::kPerWord + part) * kPanel + v * kLanes,
              Format::template decode<decltype(part)::value>(bits));
      });
    }
  }
}

}  // namespace fastgen
