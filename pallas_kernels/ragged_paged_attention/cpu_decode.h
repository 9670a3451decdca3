// Rows with one query: a product of the query with each key, and the weighted sum of the values.
//
// The query heads of a group go together, so that every key and value is read and widened once.
#pragma once

#include <cmath>

#include "ragged_paged_attention/cpu_pages.h"

namespace fastgen::paged {

// Keys of a split. Where a row is cut depends on its own length and on nothing else, so its result
// doesn't depend on threads or neighbours.
inline constexpr int64_t kSplitKeys = 256;
inline constexpr int64_t kBlockKeys = 64;
inline constexpr int kStep = 2 * kLanes;  // numbers that are loaded together
inline constexpr int kMaxHeads = 3;       // of a group at a time: registers are few

// Keys of bfloat16, halves of words side by side: the even places come before the odd ones.
struct Bfloat16Source {
  static void load(const char* from, int64_t step, Vec* low, Vec* high) {
    load_bf16_pair(from + step * kStep * 2, low, high);
  }
  static int64_t place(int64_t i) {
    const int64_t within = i % kStep;
    return i - within + within % 2 * kLanes + within / 2;
  }
};

struct Float32Source {
  static void load(const char* from, int64_t step, Vec* low, Vec* high) {
    *low = fastgen::load<Vec>(from + step * kStep * 4);
    *high = fastgen::load<Vec>(from + (step * kStep + kLanes) * 4);
  }
  static int64_t place(int64_t i) { return i; }
};

// What a split leaves for the merge, for every head: the largest score, the sum of the weights, and
// the weighted sum of the values.
struct Partial {
  float* memory;
  int64_t padded_dim;
  static int64_t size(int64_t padded_dim) { return kLanes + padded_dim; }
  float* of(int64_t head) const { return memory + head * size(padded_dim); }
  float& top(int64_t head) const { return of(head)[0]; }
  float& total(int64_t head) const { return of(head)[1]; }
  float* seen(int64_t head) const { return of(head) + kLanes; }
};

struct DecodeScratch {
  Scratch queries, scores, keys, values;
};

// Scores of kHeads heads for a multiple of 4 keys.
template <typename Source, int kHeads>
void score_keys(const float* queries, int64_t num_steps, const char* const* keys, int64_t count,
                float* scores) {
  for (int64_t key = 0; key < count; key += 4) {
    Vec sums[kHeads][4] = {};
    for (int64_t step = 0; step < num_steps; ++step) {
      FASTGEN_UNROLL for (int i = 0; i < 4; ++i) {
        Vec low, high;
        Source::load(keys[key + i], step, &low, &high);
        FASTGEN_UNROLL for (int head = 0; head < kHeads; ++head) {
          const float* query = queries + (head * num_steps + step) * kStep;
          sums[head][i] = fma(low, load<Vec>(query), sums[head][i]);
          sums[head][i] = fma(high, load<Vec>(query + kLanes), sums[head][i]);
        }
      }
    }
    FASTGEN_UNROLL for (int head = 0; head < kHeads; ++head) {
      sum4(sums[head], scores + head * kBlockKeys + key);
    }
  }
}

// Adds weighted values to what kHeads heads have seen, for kSteps steps of their numbers.
template <typename Source, int kHeads, int kSteps>
void add_values(const float* weights, const char* const* values, int64_t count, int64_t first_step,
                const float* fading, const Partial& partial, int64_t first_head) {
  Vec seen[kHeads][2 * kSteps];
  FASTGEN_UNROLL for (int head = 0; head < kHeads; ++head) {
    const float* old = partial.seen(first_head + head) + first_step * kStep;
    FASTGEN_UNROLL for (int i = 0; i < 2 * kSteps; ++i) {
      seen[head][i] = load<Vec>(old + i * kLanes) * fading[head];
    }
  }
  for (int64_t key = 0; key < count; ++key) {
    Vec value[2 * kSteps];
    FASTGEN_UNROLL for (int step = 0; step < kSteps; ++step) {
      Source::load(values[key], first_step + step, &value[2 * step], &value[2 * step + 1]);
    }
    FASTGEN_UNROLL for (int head = 0; head < kHeads; ++head) {
      const Vec weight = broadcast(weights[head * kBlockKeys + key]);
      FASTGEN_UNROLL for (int i = 0; i < 2 * kSteps; ++i) {
        seen[head][i] = fma(weight, value[i], seen[head][i]);
      }
    }
  }
  FASTGEN_UNROLL for (int head = 0; head < kHeads; ++head) {
    float* to = partial.seen(first_head + head) + first_step * kStep;
    FASTGEN_UNROLL for (int i = 0; i < 2 * kSteps; ++i) store(to + i * kLanes, seen[head][i]);
  }
}

// Scores to weights, in place; returns what the sums so far are multiplied by.
inline float weigh(float* scores, int64_t count, float softcap, float* top, float* total) {
  const int64_t padded = round_up(count, kLanes);
  Vec best = broadcast(kMasked);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec capped = cap(load<Vec>(scores + i), softcap);
    store(scores + i, capped);
    if (i + kLanes <= count) best = max(best, capped);
  }
  std::fill(scores + count, scores + padded, -INFINITY);
  if (padded > count) best = max(best, load<Vec>(scores + padded - kLanes));
  float new_top = *top;
  for (int lane = 0; lane < kLanes; ++lane) new_top = std::max(new_top, best[lane]);
  Vec sums = {};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec weights = exp(load<Vec>(scores + i) - new_top);
    store(scores + i, weights);
    sums += weights;
  }
  const float fading = exp(broadcast(*top - new_top))[0];
  *top = new_top;
  *total = *total * fading + sum(sums);
  return fading;
}

// One block of keys for kHeads heads.
template <typename Source, int kHeads>
void attend_block(const AttentionArgs& args, const float* queries, const char* const* keys,
                  const char* const* values, int64_t count, const Partial& partial,
                  int64_t first_head, float* scores) {
  constexpr int kSteps = kHeads == 1 ? 4 : 2;
  const int64_t num_steps = partial.padded_dim / kStep;
  score_keys<Source, kHeads>(queries + first_head * partial.padded_dim, num_steps, keys,
                             round_up(count, 4), scores);
  float fading[kHeads];
  for (int head = 0; head < kHeads; ++head) {
    fading[head] = weigh(scores + head * kBlockKeys, count, args.softcap,
                         &partial.top(first_head + head), &partial.total(first_head + head));
  }
  int64_t step = 0;
  for (; step + kSteps <= num_steps; step += kSteps) {
    add_values<Source, kHeads, kSteps>(scores, values, count, step, fading, partial, first_head);
  }
  for (; step < num_steps; ++step) {
    add_values<Source, kHeads, 1>(scores, values, count, step, fading, partial, first_head);
  }
}

// Pages lie scattered, and the processor's own prefetching knows nothing of block tables.
inline void prefetch(const char* const* places, int64_t first, int64_t last, int64_t bytes) {
  for (int64_t i = first; i < last; ++i) {
    for (int64_t byte = 0; byte < bytes; byte += kCacheLine) {
      __builtin_prefetch(places[i] + byte, 0, 3);
    }
  }
}

// The keys and values at these places, at most kSplitKeys of each.
template <typename Source>
void attend_places(const AttentionArgs& args, const float* queries, const char* const* keys,
                   const char* const* values, int64_t count, int64_t key_bytes,
                   const Partial& partial, float* scores) {
  const int64_t group = args.num_heads / args.num_kv_heads;
  prefetch(keys, 0, std::min(count, kBlockKeys), key_bytes);
  for (int64_t first = 0; first < count; first += kBlockKeys) {
    const int64_t last = std::min(count, first + kBlockKeys);
    prefetch(values, first, last, key_bytes);
    for (int64_t head = 0; head < group;) {
      const auto attend = [&](auto run, int heads) {
        run(args, queries, keys + first, values + first, last - first, partial, head, scores);
        head += heads;
      };
      const int64_t rest = group - head;
      if (rest == 3 || rest > 4) {
        attend(attend_block<Source, 3>, 3);
      } else if (rest > 1) {
        attend(attend_block<Source, 2>, 2);
      } else {
        attend(attend_block<Source, 1>, 1);
      }
    }
    prefetch(keys, last, std::min(count, last + kBlockKeys), key_bytes);
  }
}

// The queries of a group in the order in which Source loads keys, zeros beyond their numbers.
template <typename Source>
float* arrange_queries(const AttentionArgs& args, const Keys& keys, int64_t padded_dim,
                       DecodeScratch& scratch) {
  const int64_t group = args.num_heads / args.num_kv_heads;
  const float scale = score_scale(args, keys.head);
  float* queries = scratch.queries.floats(group * padded_dim);
  float query[kMaxHeadDim];
  std::fill(queries, queries + group * padded_dim, 0.0f);
  for (int64_t head = 0; head < group; ++head) {
    load_query(args, args.query_start[keys.row], keys.head * group + head, scale, query);
    float* to = queries + head * padded_dim;
    for (int64_t i = 0; i < args.head_dim; ++i) to[Source::place(i)] = query[i];
  }
  return queries;
}

inline int64_t padded_dim(const AttentionArgs& args) { return round_up(args.head_dim, kStep); }

// Whether keys are read where they lie; others are widened into scratch first.
inline bool reads_in_place(const AttentionArgs& args) {
  return args.head_dim % kStep == 0 && bytes_of(args.kv_dtype) > 1;
}

inline bool has_pairs(const AttentionArgs& args) {
  return reads_in_place(args) && args.kv_dtype == DType::kBfloat16;
}

// Where the keys of [first, last) lie in `pages`, or in `scratch` as float32.
inline void find_places(const Keys& keys, const void* pages, int64_t first, int64_t last,
                        Scratch& scratch, const char** places) {
  const AttentionArgs& args = keys.args;
  const int64_t dim = args.head_dim, padded = padded_dim(args);
  const int64_t count = last - first;
  if (reads_in_place(args)) {
    const int64_t bytes = bytes_of(args.kv_dtype);
    keys.each_stretch(first, last, [&](int64_t index, int64_t offset, int64_t length) {
      const char* from = static_cast<const char*>(pages) + offset * bytes;
      for (int64_t i = 0; i < length; ++i) places[index + i] = from + i * dim * bytes;
    });
  } else {
    float* wide = scratch.floats(kSplitKeys * padded);
    keys.each_stretch(first, last, [&](int64_t index, int64_t offset, int64_t length) {
      for (int64_t i = 0; i < length; ++i) {
        float* to = wide + (index + i) * padded;
        widen(pages, args.kv_dtype, offset + i * dim, dim, to);
        std::fill(to + dim, to + padded, 0.0f);
        places[index + i] = reinterpret_cast<const char*>(to);
      }
    });
  }
  // Keys are taken by fours; the last one stands in for those that aren't there.
  for (int64_t i = count; i < round_up(count, 4); ++i) places[i] = places[count - 1];
}

inline void attend_split(const Keys& keys, int64_t first, int64_t last, const Partial& partial,
                         DecodeScratch& scratch) {
  const AttentionArgs& args = keys.args;
  const int64_t group = args.num_heads / args.num_kv_heads;
  const char* key_places[kSplitKeys];
  const char* value_places[kSplitKeys];
  find_places(keys, args.k_pages, first, last, scratch.keys, key_places);
  find_places(keys, args.v_pages, first, last, scratch.values, value_places);
  for (int64_t head = 0; head < group; ++head) {
    partial.top(head) = kMasked;
    partial.total(head) = 0;
    std::fill_n(partial.seen(head), partial.padded_dim, 0.0f);
  }
  float* scores = scratch.scores.floats(kMaxHeads * kBlockKeys);
  const auto attend = [&](auto run, const float* queries, int64_t number_bytes) {
    run(args, queries, key_places, value_places, last - first, partial.padded_dim * number_bytes,
        partial, scores);
  };
  if (has_pairs(args)) {
    attend(attend_places<Bfloat16Source>,
           arrange_queries<Bfloat16Source>(args, keys, partial.padded_dim, scratch), 2);
  } else {
    attend(attend_places<Float32Source>,
           arrange_queries<Float32Source>(args, keys, partial.padded_dim, scratch), 4);
  }
}

// The result of a row's group from its splits, which are taken in their order.
inline void merge_splits(const Keys& keys, float* partials, int64_t num_splits,
                         int64_t split_size) {
  const AttentionArgs& args = keys.args;
  const int64_t group = args.num_heads / args.num_kv_heads, dim = padded_dim(args);
  const auto split = [&](int64_t i) { return Partial{partials + i * split_size, dim}; };
  const bool is_paired = has_pairs(args);
  float seen[kMaxHeadDim + kStep];
  for (int64_t head = 0; head < group; ++head) {
    const int64_t query_head = keys.head * group + head;
    float top = args.sinks == nullptr ? kMasked : args.sinks[query_head];
    for (int64_t i = 0; i < num_splits; ++i) top = std::max(top, split(i).top(head));
    float total = args.sinks == nullptr ? 0.0f : std::exp(args.sinks[query_head] - top);
    std::fill_n(seen, dim, 0.0f);
    for (int64_t i = 0; i < num_splits; ++i) {
      const float weight = std::exp(split(i).top(head) - top);
      const float* from = split(i).seen(head);
      total += split(i).total(head) * weight;
      for (int64_t j = 0; j < dim; ++j) seen[j] += from[j] * weight;
    }
    const float factor = (args.v_scales == nullptr ? 1.0f : args.v_scales[keys.head]) / total;
    const int64_t to =
        (args.query_start[keys.row] * args.num_heads + query_head) * args.head_dim;
    float result[kMaxHeadDim + kStep];
    for (int64_t i = 0; i < args.head_dim; ++i) {
      result[i] = seen[is_paired ? Bfloat16Source::place(i) : i] * factor;
    }
    narrow(result, args.head_dim, args.q_dtype, to, args.out);
  }
}

}  // namespace fastgen::paged
