// The inner loops of rows with one query: the query heads of a group against some keys.
//
// The heads go together, so that every key and value is read and widened once.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "ragged_paged_attention/cpu_pages.h"

namespace fastgen::paged {

inline constexpr int64_t kBlockKeys = 32;  // a multiple of 4
inline constexpr int kStep = 2 * kLanes;   // numbers that are loaded together
inline constexpr int kMaxHeads = 3;        // of a group at a time: registers are few

// Keys of bfloat16, halves of words side by side: the even places come before the odd ones.
struct Bfloat16Source {
  static constexpr int64_t kStepBytes = kStep * 2;
  static void load(const char* from, Vec* low, Vec* high) { load_bf16_pair(from, low, high); }
  static constexpr int64_t place(int64_t lane) { return lane % 2 * kLanes + lane / 2; }
};

struct Float32Source {
  static constexpr int64_t kStepBytes = kStep * 4;
  static void load(const char* from, Vec* low, Vec* high) {
    *low = fastgen::load<Vec>(from);
    *high = fastgen::load<Vec>(from + kLanes * 4);
  }
  static constexpr int64_t place(int64_t lane) { return lane; }
};

// Some keys, or some values: number i is at places[i] + offset. `ahead` are the places of what will
// be wanted a block later, to be fetched meanwhile: pages lie scattered, and the processor's own
// fetching knows nothing of block tables. Null where there is nothing to fetch.
//
// Neighbours in a page lie side by side, so a few keys are fetched from the place of the first one.
// Where a page ends in between, something else is fetched, which does no harm.
struct Numbers {
  const char* const* places;
  const char* const* ahead;
  int64_t offset;
  int64_t count;  // places go on to the next multiple of 4
};

FASTGEN_INLINE void prefetch(const char* from, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += kCacheLine) __builtin_prefetch(from + byte, 0, 3);
}

// Scores of kHeads heads, for keys up to the next multiple of 4; `stride` is from head to head.
template <typename Source, int kHeads>
void score_keys(const float* queries, int64_t num_steps, const Numbers& keys, float* scores,
                int64_t stride) {
  for (int64_t key = 0; key < keys.count; key += 4) {
    Vec sums[kHeads][4] = {};
    for (int64_t step = 0; step < num_steps; ++step) {
      if (keys.ahead != nullptr) {
        const int64_t begin = keys.offset + step * 4 * Source::kStepBytes;
        prefetch(keys.ahead[key] + begin, 4 * Source::kStepBytes);
      }
      FASTGEN_UNROLL for (int i = 0; i < 4; ++i) {
        Vec low, high;
        Source::load(keys.places[key + i] + keys.offset + step * Source::kStepBytes, &low, &high);
        FASTGEN_UNROLL for (int head = 0; head < kHeads; ++head) {
          const float* query = queries + (head * num_steps + step) * kStep;
          sums[head][i] = fma(low, load<Vec>(query), sums[head][i]);
          sums[head][i] = fma(high, load<Vec>(query + kLanes), sums[head][i]);
        }
      }
    }
    FASTGEN_UNROLL for (int head = 0; head < kHeads; ++head) {
      sum4(sums[head], scores + head * stride + key);
    }
  }
}

// Adds weighted values to what kHeads heads have seen. Weights beyond the last key are zeros.
//
// A step of the numbers at a time, and several keys with sums of their own: so many sums are under
// way as the multipliers need, and all stay in registers.
template <typename Source, int kHeads>
void add_values(const float* weights, int64_t stride, int64_t num_steps, const Numbers& values,
                float* seen) {
  constexpr int kKeys = kHeads == 1 ? 4 : 2;
  for (int64_t step = 0; step < num_steps; ++step) {
    const int64_t offset = values.offset + step * Source::kStepBytes;
    // The part of what comes that is fetched during this step.
    const char* ahead = nullptr;
    if (values.ahead != nullptr) {
      ahead = values.ahead[step * values.count / num_steps] + values.offset;
    }
    Vec sums[kHeads][kKeys][2] = {};
    for (int64_t key = 0; key < values.count; key += kKeys) {
      if (ahead != nullptr) prefetch(ahead + key * Source::kStepBytes, kKeys * Source::kStepBytes);
      FASTGEN_UNROLL for (int i = 0; i < kKeys; ++i) {
        Vec low, high;
        Source::load(values.places[key + i] + offset, &low, &high);
        FASTGEN_UNROLL for (int head = 0; head < kHeads; ++head) {
          const Vec weight = broadcast(weights[head * stride + key + i]);
          sums[head][i][0] = fma(weight, low, sums[head][i][0]);
          sums[head][i][1] = fma(weight, high, sums[head][i][1]);
        }
      }
    }
    FASTGEN_UNROLL for (int head = 0; head < kHeads; ++head) {
      float* to = seen + (head * num_steps + step) * kStep;
      FASTGEN_UNROLL for (int half = 0; half < 2; ++half) {
        Vec sum = load<Vec>(to + half * kLanes);
        FASTGEN_UNROLL for (int i = 0; i < kKeys; ++i) sum += sums[head][i][half];
        store(to + half * kLanes, sum);
      }
    }
  }
}

// The largest score and the sum of the weights.
struct Softmax {
  float top, total;
};

// Scores to weights, in place: zeros beyond the last one, up to the next multiple of kLanes.
inline Softmax weigh(float* scores, int64_t count, float softcap) {
  const int64_t padded = round_up(count, kLanes);
  for (int64_t i = count; i < padded; ++i) scores[i] = scores[count - 1];
  Vec best = broadcast(kMasked);
  for (int64_t i = 0; i < padded; i += kLanes) {
    Vec score = load<Vec>(scores + i);
    if (softcap != 0) {
      score = cap(score, softcap);
      store(scores + i, score);
    }
    best = max(best, score);
  }
  float top = kMasked;
  for (int lane = 0; lane < kLanes; ++lane) top = std::max(top, best[lane]);
  std::fill(scores + count, scores + padded, -INFINITY);
  Vec sums = {};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec weights = exp(load<Vec>(scores + i) - top);
    store(scores + i, weights);
    sums += weights;
  }
  return {top, sum(sums)};
}

// Calls run(n, first) until all heads of a group have had their turn, n at a time; n is a constant
// of the type.
template <typename Run>
void each_heads(int64_t group, const Run& run) {
  for (int64_t head = 0; head < group;) {
    const int64_t rest = group - head;
    if (rest == 3 || rest > 4) {
      run(std::integral_constant<int, 3>(), head);
      head += 3;
    } else if (rest > 1) {
      run(std::integral_constant<int, 2>(), head);
      head += 2;
    } else {
      run(std::integral_constant<int, 1>(), head);
      head += 1;
    }
  }
}

}  // namespace fastgen::paged
