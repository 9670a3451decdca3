// Where keys and values lie, and queries as the kernels want them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "native/numbers.h"
#include "native/scratch.h"
#include "ragged_paged_attention/cpu.h"

namespace fastgen::paged {

inline constexpr float kMasked = -1e30f;  // finite, so that two of them differ by 0 and not by NaN
inline constexpr int64_t kMaxHeadDim = 256;

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

inline int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kBfloat16 ? 2 : 1;
}

// One row's keys of one kv head: where they lie in the pages.
struct Keys {
  const AttentionArgs& args;
  int64_t row;
  int64_t head;

  int64_t length() const { return args.kv_len[row]; }

  // Calls visit(index, offset, count) for each stretch of [first, last) that lies in one page;
  // index counts from first, offset is in numbers.
  template <typename Visit>
  void each_stretch(int64_t first, int64_t last, const Visit& visit) const {
    const int32_t* table = args.block_tables + row * args.pages_per_row;
    int64_t page = first / args.page_size, slot = first % args.page_size;
    for (int64_t key = first; key < last; ++page, slot = 0) {
      const int64_t count = std::min(last - key, args.page_size - slot);
      const int64_t place = (args.first_page + table[page]) * args.num_kv_heads + head;
      visit(key - first, (place * args.page_size + slot) * args.head_dim, count);
      key += count;
    }
  }
};

// The first key that the query at a position sees.
inline int64_t first_seen(const AttentionArgs& args, int64_t position) {
  return args.window == 0 ? 0 : std::max<int64_t>(0, position - args.window + 1);
}

// Factor of a head's scores.
inline float score_scale(const AttentionArgs& args, int64_t kv_head) {
  return args.k_scales == nullptr ? args.scale : args.scale * args.k_scales[kv_head];
}

// One head's query: rotated where that is asked for, then scaled.
inline void load_query(const AttentionArgs& args, int64_t token, int64_t head, float scale,
                       float* to) {
  const int64_t first = (token * args.num_heads + head) * args.head_dim;
  widen(args.q, args.q_dtype, first, args.head_dim, to);
  if (args.cos != nullptr) {
    const int64_t first_angle = token * args.rotary_half;
    rotate_halves(args.cos + first_angle, args.sin + first_angle, args.rotary_half, to);
  }
  for (int64_t i = 0; i < args.head_dim; ++i) to[i] *= scale;
}

FASTGEN_INLINE Vec cap(Vec scores, float softcap) {
  return softcap == 0 ? scores : softcap * tanh(scores * (1 / softcap));
}

}  // namespace fastgen::paged
