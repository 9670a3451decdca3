// Rows with one query: their keys are cut into splits, whose results are merged.
//
// A split is gone through block by block in the order of memory, for several kv heads in turn where
// they go together: first all keys, whose scores are kept, then all values. What comes a block
// later is fetched meanwhile.
#pragma once

#include <cmath>

#include "ragged_paged_attention/cpu_group.h"

namespace fastgen::paged {

// Keys of a split. Where a row is cut depends on its own length and on nothing else, so its result
// doesn't depend on threads or neighbours.
inline constexpr int64_t kSplitKeys = 256;

inline int64_t group_of(const AttentionArgs& args) { return args.num_heads / args.num_kv_heads; }

inline int64_t padded_dim(const AttentionArgs& args) { return round_up(args.head_dim, kStep); }

// What a split leaves for the merge, for the query heads of one kv head.
struct Partial {
  float* memory;
  int64_t group;
  int64_t padded_dim;

  static int64_t size(const AttentionArgs& args) {
    return Partial{nullptr, group_of(args), paged::padded_dim(args)}.size();
  }
  int64_t size() const { return sums_size() + group * padded_dim; }
  int64_t sums_size() const { return round_up(2 * group, kLanes); }
  float& top(int64_t head) const { return memory[2 * head]; }
  float& total(int64_t head) const { return memory[2 * head + 1]; }
  float* seen(int64_t head) const { return memory + sums_size() + head * padded_dim; }
  Partial next(int64_t count) const { return {memory + count * size(), group, padded_dim}; }
};

// Keys [first, last) of a row, at most kSplitKeys, for some kv heads that go together.
struct Split {
  const AttentionArgs& args;
  int64_t row, first, last;
  int64_t first_head, num_heads;

  int64_t count() const { return last - first; }
  Keys keys(int64_t head) const { return {args, row, first_head + head}; }
};

struct DecodeScratch {
  Scratch queries, scores, widened;
};

// Whether keys are read where they lie; others are widened into scratch first.
inline bool reads_in_place(const AttentionArgs& args) {
  return args.head_dim % kStep == 0 && bytes_of(args.kv_dtype) > 1;
}

inline bool has_pairs(const AttentionArgs& args) {
  return reads_in_place(args) && args.kv_dtype == DType::kBfloat16;
}

// Where a split's keys and values are.
class Places {
 public:
  Places(const Split& split, Scratch& widened)
      : split_(split),
        widened_(widened),
        head_bytes_(split.args.page_size * split.args.head_dim * bytes_of(split.args.kv_dtype)),
        padded_count_(round_up(split.count(), kBlockKeys)) {
    if (!reads_in_place(split.args)) return;
    find(split.args.k_pages, places_);
    find(split.args.v_pages, places_ + padded_count_);
  }

  // Fetches the first block of keys.
  void begin() const {
    if (!reads_in_place(split_.args)) return;
    const int64_t row_bytes = split_.args.head_dim * bytes_of(split_.args.kv_dtype);
    for (int64_t head = 0; head < split_.num_heads; ++head) {
      for (int64_t i = 0; i < std::min(split_.count(), kBlockKeys); ++i) {
        prefetch(places_[i] + head * head_bytes_, row_bytes);
      }
    }
  }

  Numbers keys(int64_t head, int64_t first) {
    return reads_in_place(split_.args) ? in_place(places_, head, first, true)
                                       : widen_block(split_.args.k_pages, head, first);
  }

  Numbers values(int64_t head, int64_t first) {
    const bool has_more = first + kBlockKeys < split_.count();
    return reads_in_place(split_.args) ? in_place(places_ + padded_count_, head, first, has_more)
                                       : widen_block(split_.args.v_pages, head, first);
  }

 private:
  // The places of the first head; those of others are at fixed distances. The last key stands in
  // for those that aren't there.
  void find(const void* pages, const char** places) const {
    const AttentionArgs& args = split_.args;
    const int64_t bytes = bytes_of(args.kv_dtype);
    split_.keys(0).each_stretch(
        split_.first, split_.last, [&](int64_t index, int64_t offset, int64_t length) {
          const char* from = static_cast<const char*>(pages) + offset * bytes;
          for (int64_t i = 0; i < length; ++i) {
            places[index + i] = from + i * args.head_dim * bytes;
          }
        });
    std::fill(places + split_.count(), places + padded_count_, places[split_.count() - 1]);
  }

  int64_t block_count(int64_t first) const { return std::min(split_.count() - first, kBlockKeys); }

  Numbers in_place(const char* const* places, int64_t head, int64_t first, bool has_more) const {
    const char* const* at = places + first;
    return {at, has_more ? at + kBlockKeys : nullptr, head * head_bytes_, block_count(first)};
  }

  Numbers widen_block(const void* pages, int64_t head, int64_t first) {
    const AttentionArgs& args = split_.args;
    const int64_t dim = args.head_dim, padded = padded_dim(args), count = block_count(first);
    float* wide = widened_.floats(kBlockKeys * padded);
    const int64_t begin = split_.first + first;
    split_.keys(head).each_stretch(
        begin, begin + count, [&](int64_t index, int64_t offset, int64_t length) {
          for (int64_t i = 0; i < length; ++i) {
            float* to = wide + (index + i) * padded;
            widen(pages, args.kv_dtype, offset + i * dim, dim, to);
            std::fill(to + dim, to + padded, 0.0f);
          }
        });
    for (int64_t i = 0; i < round_up(count, 4); ++i) {
      places_[i] = reinterpret_cast<const char*>(wide + std::min(i, count - 1) * padded);
    }
    return {places_, nullptr, 0, count};
  }

  const Split& split_;
  Scratch& widened_;
  int64_t head_bytes_;
  int64_t padded_count_;
  const char* places_[2 * kSplitKeys];
};

// A head's numbers from their order to that in which Source loads them, or back.
template <typename Source>
void arrange(const float* from, int64_t dim, float* to) {
  for (int64_t first = 0; first < dim; first += kStep) {
    FASTGEN_UNROLL for (int64_t i = 0; i < kStep; ++i) {
      to[first + Source::place(i)] = from[first + i];
    }
  }
}

template <typename Source>
void put_back(const float* from, int64_t dim, float* to) {
  for (int64_t first = 0; first < dim; first += kStep) {
    FASTGEN_UNROLL for (int64_t i = 0; i < kStep; ++i) {
      to[first + i] = from[first + Source::place(i)];
    }
  }
}

// The queries of the split's heads in the order in which Source loads keys, zeros beyond their
// numbers.
template <typename Source>
const float* arrange_queries(const Split& split, Scratch& scratch) {
  const AttentionArgs& args = split.args;
  const int64_t group = group_of(args), padded = padded_dim(args);
  float* queries = scratch.floats(split.num_heads * group * padded);
  float query[kMaxHeadDim + kStep] = {};
  for (int64_t i = 0; i < split.num_heads * group; ++i) {
    const int64_t kv_head = split.first_head + i / group;
    load_query(args, args.query_start[split.row], split.first_head * group + i,
               score_scale(args, kv_head), query);
    arrange<Source>(query, padded, queries + i * padded);
  }
  return queries;
}

// Scores to weights; nothing is seen yet.
inline void begin_values(const Split& split, float* scores, const Partial& to) {
  for (int64_t head = 0; head < to.group; ++head) {
    const Softmax sums = weigh(scores + head * kSplitKeys, split.count(), split.args.softcap);
    to.top(head) = sums.top;
    to.total(head) = sums.total;
    std::fill_n(to.seen(head), to.padded_dim, 0.0f);
  }
}

// Partials of the split's heads lie one after another, from `partial` on.
template <typename Source>
void attend_split(const Split& split, const Partial& partial, DecodeScratch& scratch) {
  const int64_t group = partial.group, padded = partial.padded_dim, num_steps = padded / kStep;
  Places places(split, scratch.widened);
  places.begin();
  const float* queries = arrange_queries<Source>(split, scratch.queries);
  float* scores = scratch.scores.floats(split.num_heads * group * kSplitKeys);
  for (int64_t first = 0; first < split.count(); first += kBlockKeys) {
    for (int64_t kv_head = 0; kv_head < split.num_heads; ++kv_head) {
      Numbers keys = places.keys(kv_head, first);
      each_heads(group, [&](auto heads, int64_t head) {
        const int64_t query = kv_head * group + head;
        score_keys<Source, heads>(queries + query * padded, num_steps, keys,
                                  scores + query * kSplitKeys + first, kSplitKeys);
        keys.ahead = nullptr;
      });
    }
  }
  for (int64_t first = 0; first < split.count(); first += kBlockKeys) {
    for (int64_t kv_head = 0; kv_head < split.num_heads; ++kv_head) {
      const Partial to = partial.next(kv_head);
      float* of_group = scores + kv_head * group * kSplitKeys;
      if (first == 0) begin_values(split, of_group, to);
      Numbers values = places.values(kv_head, first);
      each_heads(group, [&](auto heads, int64_t head) {
        add_values<Source, heads>(of_group + head * kSplitKeys + first, kSplitKeys, num_steps,
                                  values, to.seen(head));
        values.ahead = nullptr;
      });
    }
  }
}

inline void attend_split(const Split& split, const Partial& partial, DecodeScratch& scratch) {
  if (has_pairs(split.args)) {
    attend_split<Bfloat16Source>(split, partial, scratch);
  } else {
    attend_split<Float32Source>(split, partial, scratch);
  }
}

// The result of a row's group from its splits, which are taken in their order; `stride` is from
// split to split.
inline void merge_splits(const Keys& keys, const Partial& first, int64_t num_splits,
                         int64_t stride) {
  const AttentionArgs& args = keys.args;
  const auto split = [&](int64_t i) {
    return Partial{first.memory + i * stride, first.group, first.padded_dim};
  };
  for (int64_t head = 0; head < first.group; ++head) {
    const int64_t query_head = keys.head * first.group + head;
    float top = args.sinks == nullptr ? kMasked : args.sinks[query_head];
    for (int64_t i = 0; i < num_splits; ++i) top = std::max(top, split(i).top(head));
    float total = args.sinks == nullptr ? 0.0f : std::exp(args.sinks[query_head] - top);
    float seen[kMaxHeadDim + kStep] = {}, result[kMaxHeadDim + kStep];
    for (int64_t i = 0; i < num_splits; ++i) {
      const float weight = std::exp(split(i).top(head) - top);
      const float* from = split(i).seen(head);
      total += split(i).total(head) * weight;
      for (int64_t j = 0; j < first.padded_dim; ++j) seen[j] += from[j] * weight;
    }
    const float factor = (args.v_scales == nullptr ? 1.0f : args.v_scales[keys.head]) / total;
    for (int64_t j = 0; j < first.padded_dim; ++j) seen[j] *= factor;
    if (has_pairs(args)) {
      put_back<Bfloat16Source>(seen, args.head_dim, result);
    } else {
      std::copy_n(seen, args.head_dim, result);
    }
    const int64_t to =
        (args.query_start[keys.row] * args.num_heads + query_head) * args.head_dim;
    narrow(result, args.head_dim, args.q_dtype, to, args.out);
  }
}

}  // namespace fastgen::paged
